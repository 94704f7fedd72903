from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import asymlora as al
from asymlora.atomic import STAGING_PREFIX
from asymlora.errors import AttachError, DivergedError
from asymlora.train.trainer import AdapterTrainer, checkpoints, last_checkpoint
from cases import MODELS

BERT = MODELS[0]


def _rows(count: int = 16) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Tensor]] = []
    for label in torch.randint(0, 3, (count,), generator=generator):
        ids = torch.randint(5, 60, (6,), generator=generator)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label})
    return rows


def _model(preset: str = "b_only") -> nn.Module:
    spec = al.AdapterSpec.parse(preset, rank=2, targets=BERT.targets, modules_to_save=("classifier",))
    return al.attach(BERT.build(), spec)


def _trainer(folder: Path, model: nn.Module | None = None, **options: Any) -> AdapterTrainer:
    own = {k: options.pop(k) for k in ("rates", "lengths") if k in options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=4,
        logging_nan_inf_filter=False,
        **{"max_steps": 6, "save_steps": 2, "learning_rate": 0.01, **options},
    )
    return AdapterTrainer(model or _model(), arguments, train_dataset=_rows(), eval_dataset=_rows(4), **own)


def test_groups_are_by_factor_with_their_own_rates_and_explicit_decay(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _model("lora"), rates={"lr_B": 0.05, "lr_head": 0.02}, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("A", 0.01, 0.1),
        ("B", 0.05, 0.1),
        ("head", 0.02, 0.1),
        ("norm", 0.02, 0.0),
    ]
    # A second build gives the same groups (the stock hook for own groups forgets them).
    trainer.optimizer = None
    assert [g["name"] for g in trainer.create_optimizer().param_groups] == ["A", "B", "head", "norm"]


def test_a_checkpoint_holds_adapter_head_optimizer_and_state_and_nothing_else(tmp_path: Path) -> None:
    _trainer(tmp_path, max_steps=2).train()
    assert sorted(f.name for f in (tmp_path / "checkpoint-2").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "asymlora.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    ]


def test_resuming_gives_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = _model("lora"), _model("lora")
    _trainer(tmp_path / "whole", whole).train()
    _trainer(tmp_path / "cut", _model("lora"), save_total_limit=3).train()
    _trainer(tmp_path / "cut", resumed).train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    for one, other in zip(al.sites(whole), al.sites(resumed), strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
    assert torch.equal(whole.classifier.weight, resumed.classifier.weight)


def test_keeps_the_newest_checkpoints_and_the_best(tmp_path: Path) -> None:
    trainer = _trainer(
        tmp_path,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    scores = iter((0.1, 0.9, 0.2))
    trainer.compute_metrics = lambda _: {"score": next(scores)}
    trainer.train()
    assert sorted(f.name for f in checkpoints(tmp_path)) == ["checkpoint-4", "checkpoint-6"]
    best = al.load_adapter(BERT.build(), tmp_path / "checkpoint-4")
    assert torch.equal(BERT.logits(trainer.network), BERT.logits(best))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert STAGING_PREFIX not in (tmp_path / "checkpoint-4" / "trainer_state.json").read_text()


def test_the_best_checkpoint_is_found_again_after_the_folder_has_moved(tmp_path: Path) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": True,
    }
    first = _trainer(tmp_path / "here", max_steps=4, **options)
    scores = iter((0.9, 0.1, 0.2))
    first.compute_metrics = lambda _: {"score": next(scores)}
    first.train()
    (tmp_path / "here").rename(tmp_path / "there")
    second = _trainer(tmp_path / "there", max_steps=6, **options)
    second.compute_metrics = lambda _: {"score": next(scores)}
    second.train(resume_from_checkpoint=str(tmp_path / "there" / "checkpoint-4"))
    assert second.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-2")


def test_incomplete_and_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    _trainer(tmp_path, save_total_limit=3).train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    optimizer = tmp_path / "checkpoint-6" / "optimizer.pt"
    content = optimizer.read_bytes()
    for damaged in (b"garbage", content[: len(content) // 2]):
        optimizer.write_bytes(damaged)
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    optimizer.unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    weights = tmp_path / "checkpoint-4" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("")
    assert last_checkpoint(tmp_path) is None


class _NaNAt(nn.Module):
    """Multiplies its input by NaN at one call."""

    def __init__(self, inner: nn.Module, call: int) -> None:
        super().__init__()
        self.inner, self.left = inner, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        return self.inner(*args, **kwargs) * (float("nan") if self.left == 0 else 1.0)


def test_a_loss_that_is_not_finite_stops_with_step_rates_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = _model()
    model.classifier = _NaNAt(model.classifier, 4)
    with pytest.raises(DivergedError, match=r"loss is nan at step 4, .*B 0\.005.*checkpoint-2.*Lower train\.lr"):
        _trainer(tmp_path, model).train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_weight_that_is_not_finite_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    model = _model()
    trainer = _trainer(tmp_path, model)
    trainer.create_optimizer()
    next(iter(al.sites(model))).B.data[0, 0] = float("inf")
    with pytest.raises(DivergedError, match=r"query\.lora_B .*holds NaN or infinity.*No checkpoint was written yet"):
        trainer._save_checkpoint(model, None)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1000").mkdir(parents=True)
    _trainer(tmp_path, save_total_limit=1).train()
    assert sorted(f.name for f in checkpoints(tmp_path)) == ["checkpoint-1000", "checkpoint-6"]


def test_the_callers_arguments_are_not_written_to(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", save_total_limit=3)
    trainer = AdapterTrainer(_model(), arguments, train_dataset=_rows())
    assert (arguments.save_total_limit, trainer.keep_checkpoints) == (3, 3)


def test_without_a_limit_all_checkpoints_stay(tmp_path: Path) -> None:
    _trainer(tmp_path).train()
    assert sorted(f.name for f in checkpoints(tmp_path)) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


class _Deaf(nn.Module):
    """Reads the weight of its layer and never calls it, as some attention code does."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


def test_adapters_on_layers_that_are_never_called_stop_the_run(tmp_path: Path) -> None:
    model = BERT.build()
    attention = model.bert.encoder.layer[0].attention.self
    attention.query = _Deaf(attention.query)
    al.attach(model, al.AdapterSpec.b_only(rank=2, targets=("query", "query.inner"), modules_to_save=("classifier",)))
    with pytest.raises(AttachError, match=r"1 adapters have had no gradient .*layer\.0\.attention\.self\.query\.inner"):
        _trainer(tmp_path, model).train()


def test_a_failed_save_leaves_no_checkpoint_and_no_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_save_rng_state", full)
    with pytest.raises(OSError, match="No space left"):
        _trainer(tmp_path).train()
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_base_passes_only_with_an_adapter_on(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    for model, passes in ((_model(), True), (BERT.build(), False)):
        model.is_quantized = True
        model.hf_quantizer = type("Quantizer", (), {"is_trainable": True, "is_qat_trainable": False})()
        if passes:
            AdapterTrainer(model, arguments, train_dataset=_rows())
            assert not hasattr(model, "_hf_peft_config_loaded") or not model._hf_peft_config_loaded
        else:
            with pytest.raises(ValueError, match="attach trainable adapters"):
                AdapterTrainer(model, arguments, train_dataset=_rows())


def test_lengths_choose_the_length_grouped_order(tmp_path: Path) -> None:
    from asymlora.train.batching import LengthGroupedSampler

    lengths = [len(row["input_ids"]) for row in _rows()]
    assert isinstance(_trainer(tmp_path, lengths=lengths)._get_train_sampler(), LengthGroupedSampler)
    assert not isinstance(_trainer(tmp_path)._get_train_sampler(), LengthGroupedSampler)


def test_the_best_step_is_kept_in_memory_as_on_disk(tmp_path: Path) -> None:
    trained: list[dict[str, Tensor]] = []
    for name in ("disk", "memory"):
        trainer = _trainer(
            tmp_path / name,
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=True,
        )
        scores = iter((0.1, 0.9, 0.9))  # a tie keeps the earlier one
        trainer.compute_metrics = lambda _, scores=scores: {"score": next(scores)}
        if name == "memory":
            trainer.keep_in_memory()
        trainer.train()
        assert trainer.state.best_global_step == 4
        trained.append({n: p.detach().clone() for n, p in trainer.network.named_parameters() if p.requires_grad})
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(value, trained[1][n]) for n, value in trained[0].items())
    assert list((tmp_path / "memory").iterdir()) == []


def test_a_skipped_scoring_draws_what_a_scoring_draws(tmp_path: Path) -> None:
    trainer, states = _trainer(tmp_path), []
    for scores in (lambda: trainer.predict(_rows(4)), trainer.skip_scoring):  # pyright: ignore[reportArgumentType]
        torch.manual_seed(0)
        scores()
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], torch.get_rng_state())


class _Lengths(list[dict[str, Tensor]]):
    # Rows that hold their own length; scored by it.
    lengths = (2, 5, 5, 1, 4, 5)

    def __init__(self) -> None:
        super().__init__({"tokens": torch.arange(length)} for length in self.lengths)


class _LengthScoring:
    metric, greater_is_better = "mean", True

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def keep(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.batches.append(batch["lengths"].tolist())
        return batch["lengths"][:, None].float()

    def evidence(self, kept: Any, items: Any) -> Any:
        return kept

    def score(self, evidence: Any) -> dict[str, float]:
        return {"mean": float(evidence.mean())}


def test_rows_are_scored_the_longest_first_and_told_in_their_own_order(tmp_path: Path) -> None:
    scoring = _LengthScoring()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_eval_batch_size=4, remove_unused_columns=False
    )
    trainer = AdapterTrainer(
        _model(),
        arguments,
        scoring=scoring,  # pyright: ignore[reportArgumentType]
        data_collator=lambda rows: {"lengths": torch.tensor([len(row["tokens"]) for row in rows])},
    )
    rows: Any = _Lengths()
    assert trainer.evidence_of(rows)[:, 0].tolist() == list(rows.lengths)
    assert scoring.batches == [[5, 5, 5, 4], [2, 1]]
