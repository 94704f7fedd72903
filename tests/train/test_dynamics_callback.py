from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

import asymlora as al
from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.errors import SpecError, UnknownNameError
from asymlora.train.dynamics_callback import QUANTITIES, DynamicsCallback, values
from asymlora.train.trainer import AdapterTrainer
from cases import MODELS
from peft_models import BERT as PEFT_BERT

BERT = MODELS[0]
STEPS = 5


def _rows(count: int = 16) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Tensor]] = []
    for label in torch.randint(0, 3, (count,), generator=generator):
        ids = torch.randint(5, 60, (6,), generator=generator)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label})
    return rows


def _own() -> nn.Module:
    spec = al.AdapterSpec.b_only(rank=2, targets=BERT.targets, modules_to_save=("classifier",))
    return al.attach(BERT.build(), spec)


def _trainer(folder: Path, model: nn.Module, **options: Any) -> Trainer:
    chosen = AdapterTrainer if not hasattr(model, "peft_config") else Trainer
    given: dict[str, Any] = {
        "report_to": "none",
        "max_steps": STEPS,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=4,
        **{**given, **options},
    )
    return chosen(model, arguments, train_dataset=_rows())


class _Tracker(TrainerCallback):
    """A tracker as transformers has them, that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        assert model is not None
        self.seen.append((state.global_step, dict(logs)))

    @property
    def ours(self) -> list[tuple[int, dict[str, float]]]:
        return [(step, logs) for step, logs in self.seen if all(name.startswith("asymlora/") for name in logs)]


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[_Tracker]:
    """A tracker that ``report_to="wandb"`` builds."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", _Tracker)
    return _Tracker


def _found(trainer: Trainer) -> _Tracker:
    (tracker,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, _Tracker))
    return tracker


@pytest.mark.parametrize("kind", ["own", "peft"])
def test_tensorboard_holds_every_value_of_the_records(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model = _own() if kind == "own" else PEFT_BERT.peft(fill=False)
    trainer = _trainer(tmp_path / "run", model, report_to="tensorboard")
    callback = DynamicsCallback(BERT.inputs(), every=2).add_to(trainer)
    trainer.train()
    assert callback.dynamics is not None
    records = callback.dynamics.records
    assert sorted({row["step"] for row in records}) == [1, 2, 3, 4]
    board = EventAccumulator(str(tmp_path / "board"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith("train/asymlora/")]
    written = {(tag, event.step): event.value for tag in tags for event in board.Scalars(tag)}
    wanted = {(f"train/{name}", row["step"]): value for row in records for name, value in values([row]).items()}
    assert written == pytest.approx(wanted, rel=1e-6)  # float32 in the file
    name = next(iter(al.sites(model))).name
    assert {f"train/asymlora/{name}/{quantity}" for quantity in ("Z_A", "delta2", "grad_B", "effective_rank")} <= set(
        tags
    )
    # The loss stands beside, and the trainer's own history has none of it.
    assert "train/loss" in board.Tags()["scalars"]
    assert not any("asymlora" in key for entry in trainer.state.log_history for key in entry)


@pytest.mark.parametrize("kind", ["own", "peft"])
def test_each_tracker_gets_each_measured_step_at_its_number(kind: str, tmp_path: Path, tracker: type[_Tracker]) -> None:
    model = _own() if kind == "own" else PEFT_BERT.peft(fill=False)
    trainer = _trainer(tmp_path, model, report_to="wandb", gradient_accumulation_steps=2)
    callback = DynamicsCallback(BERT.inputs(), every=5).add_to(trainer)
    assert callback.add_to(trainer) is callback  # adding again adds nothing
    trainer.train()
    seen = _found(trainer).ours
    assert [step for step, _ in seen] == [1, 2, 3, 5]
    assert callback.dynamics is not None
    assert callback.dynamics.step == STEPS  # one for two batches
    of_step = {step: [r for r in callback.dynamics.records if r["step"] == step] for step, _ in seen}
    assert all(logs == values(of_step[step]) for step, logs in seen)


@pytest.mark.parametrize("kind", ["own", "peft"])
def test_the_run_is_bit_for_bit_the_same_with_it(kind: str, tmp_path: Path) -> None:
    results: list[Any] = []
    for measured in (False, True):
        torch.manual_seed(0)
        model = _own() if kind == "own" else PEFT_BERT.peft(fill=False, lora_dropout=0.3)
        trainer = _trainer(tmp_path / str(measured), model)
        if measured:
            DynamicsCallback(BERT.inputs(), every=1).add_to(trainer)
        trainer.train()
        kept = [{k: v for k, v in entry.items() if k in ("loss", "grad_norm")} for entry in trainer.state.log_history]
        results.append((kept, model.state_dict(), torch.get_rng_state()))
    plain, with_it = results
    assert plain[0] == with_it[0]
    assert all(torch.equal(value, with_it[1][key]) for key, value in plain[1].items())
    assert torch.equal(plain[2], with_it[2])


def test_one_made_before_is_used_as_it_is(tmp_path: Path, tracker: type[_Tracker]) -> None:
    model = _own()
    told: list[Any] = []
    dynamics = FeatureDynamics(model, BERT.inputs(), every=1, observe=told.append)
    trainer = _trainer(tmp_path, model, report_to="wandb")
    callback = DynamicsCallback(dynamics, quantities=("Z_B", "moved_A")).add_to(trainer)
    trainer.train()
    assert callback.dynamics is dynamics
    assert len(told) == len(_found(trainer).ours) == STEPS
    assert {name.rpartition("/")[2] for _, logs in _found(trainer).ours for name in logs} == {"Z_B", "moved_A"}


def test_a_run_that_raises_leaves_no_hook_and_the_next_one_measures(tmp_path: Path, tracker: type[_Tracker]) -> None:
    class Stop(TrainerCallback):
        armed = True

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.armed and state.global_step == 2:
                raise ZeroDivisionError

    hooks = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
    before = [len(of_kind) for of_kind in hooks]
    trainer = _trainer(tmp_path, _own(), report_to="wandb")
    stop = Stop()
    trainer.add_callback(stop)
    callback = DynamicsCallback(BERT.inputs(), every=1).add_to(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert [len(of_kind) for of_kind in hooks] == before
    stop.armed = False
    _found(trainer).seen.clear()
    trainer.train()
    assert [step for step, _ in _found(trainer).ours][-STEPS:] == [1, 2, 3, 4, 5]
    assert callback.dynamics is not None
    assert [len(of_kind) for of_kind in hooks] == before


def test_a_step_that_raises_leaves_no_hook_once_training_goes_on(tmp_path: Path) -> None:
    before = len(torch_optimizer._global_optimizer_pre_hooks)
    model = _own()
    trainer = _trainer(tmp_path, model)

    def refuse(rows: Any) -> None:
        raise ZeroDivisionError

    callback = DynamicsCallback(FeatureDynamics(model, BERT.inputs(), observe=refuse)).add_to(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    callback.on_train_end(trainer.args, trainer.state, trainer.control)
    assert len(torch_optimizer._global_optimizer_pre_hooks) == before


def test_given_in_another_way_it_says_how(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _own())
    trainer.add_callback(DynamicsCallback(BERT.inputs()))
    with pytest.raises(SpecError, match=r"add_to\(trainer\)"):
        trainer.train()


def test_only_the_first_process_measures(tmp_path: Path, tracker: type[_Tracker]) -> None:
    trainer = _trainer(tmp_path, _own(), report_to="wandb")
    callback = DynamicsCallback(BERT.inputs(), every=1).add_to(trainer)
    trainer.is_world_process_zero = lambda: False  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train()
    assert callback.dynamics is None
    assert not _found(trainer).ours


def test_a_resumed_run_goes_on_counting(tmp_path: Path, tracker: type[_Tracker]) -> None:
    _trainer(tmp_path, _own(), max_steps=3, save_strategy="steps", save_steps=3).train()
    again = _trainer(tmp_path, _own(), report_to="wandb")
    DynamicsCallback(BERT.inputs(), every=5).add_to(again)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [step for step, _ in _found(again).ours] == [5]


def test_many_values_go_in_parts(tmp_path: Path, tracker: type[_Tracker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymlora.train.dynamics_callback._VALUES_AT_ONCE", 7)
    trainer = _trainer(tmp_path, _own(), report_to="wandb", max_steps=1)
    callback = DynamicsCallback(BERT.inputs()).add_to(trainer)
    trainer.train()
    parts = [logs for _, logs in _found(trainer).ours]
    assert all(len(logs) <= 7 for logs in parts)
    assert callback.dynamics is not None
    assert {k: v for logs in parts for k, v in logs.items()} == values(callback.dynamics.records)


def test_what_has_no_value_and_frozen_factors_are_left_out() -> None:
    row: dict[str, Any] = {
        **dict.fromkeys(QUANTITIES, 1.0),
        **{"site": "q", "trains_A": False, "trains_B": True, "moved_B": None, "Z_A": 0.0},
    }
    found = {name.removeprefix("asymlora/q/") for name in values([row])}
    assert found == {
        *("Z_A", "Z_B", "delta1", "delta2", "delta3", "delta_Z_B", "moved_A", "effective_rank", "stable_rank"),
        *("grad_B", "norm_B", "update_B", "relative_update_B", "angle_B"),
    }


def test_an_unknown_quantity_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"quantities=\['delta4'\].*delta1"):
        DynamicsCallback(BERT.inputs(), quantities=("delta4",))
