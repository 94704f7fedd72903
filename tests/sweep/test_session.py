"""One session gives each run the result of `finetune`, in any order, and leaves its base as it was."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asymlora.errors import SpecError
from asymlora.schema import to_mapping
from asymlora.sweep import loaded_base, pruning
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.session import Session
from asymlora.train.recipe import Recipe, merged
from asymlora.train.run import finetune
from train.test_every_task import TASKS


def _recipe(small_recipe: Mapping[str, Any], **changes: Any) -> Recipe:
    adapter = changes.pop("adapter", small_recipe["adapter"])
    return Recipe.from_dict({**merged(small_recipe, changes), "adapter": adapter})


def _job(recipe: Recipe, **options: Any) -> RunJob:
    return RunJob(recipe=recipe, **{"phase": "tuning", "arm": "arm", "seed": recipe.train.seed, **options})


def _closing(recipe: Recipe) -> RunJob:
    return _job(recipe, phase="closing", scores_test=True, keeps_adapter=True)


def _model(used: Session) -> nn.Module:
    assert used._base is not None
    return used._base.prepared.model


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()}


def _kept(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def _same_as_alone(recipe: Recipe, folder: Path) -> RunRow:
    alone = finetune(recipe, output=folder / "alone")
    row = Session(folder=folder / "sweep").run(_closing(recipe))
    assert (row.status, row.error) == ("finished", None)
    assert row.adapter is not None
    kept = _kept(folder / "sweep" / row.adapter)
    assert kept
    assert kept == _kept(folder / "alone" / "adapter")
    assert (row.validation, row.best_step, row.steps) == (alone.validation, alone.best_step, alone.steps)
    further = {f"{what}.{name}": value for what, m in alone.closing.items() for name, value in m["after"].items()}
    assert row.test == {**alone.metrics["after"], **further}
    assert row.before == alone.metrics["before"]
    assert (row.trained_parameters, row.head_parameters) == (alone.trained_parameters, alone.head_parameters)
    records = [json.loads(line) for line in (folder / "alone" / "records.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["loss"] for r in records if r["split"] == "train"}
    assert dict(zip(row.losses["step"], row.losses["loss"], strict=True)) == losses
    scores = {r["step"]: r[row.metric] for r in records if r["split"] == "validation"}
    assert dict(zip(row.scores["step"], row.scores["value"], strict=True)) == scores
    return row


@pytest.mark.parametrize("method", ["adapter", "full", "head", "peft:lora"])
def test_a_run_gives_what_it_gives_by_itself(method: str, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    adapter = {"adapter": {"preset": "b_only", "rank": 2, "dropout": 0.2}, "peft:lora": {"rank": 2}}
    recipe = _recipe(small_recipe, method=method, adapter=adapter.get(method, {}), train={"seed": 3})
    _same_as_alone(recipe, tmp_path)


OTHERS: dict[str, dict[str, Any]] = {
    "a drawn head": {"train": {"head_start": "random", "seed": 5}},
    "a class of transformers": {"model": {"pooling": "native"}, "train": {"seed": 5}},
    "both start non-zero": {"adapter": {"rank": 2, "nonzero_start": "correct_base", "B": {"init": "gaussian"}}},
    "accumulation": {"train": {"gradient_accumulation": 2, "patience": 1, "lr": 0.1}},
    "fewer scores": {"train": {"evaluate_every": 5}},
    "half precision": {"train": {"precision": "bfloat16", "gradient_checkpointing": True}},
    "AdaLoRA": {"method": "peft:adalora", "adapter": {"rank": 2}},
    "LoRA-FA": {"method": "peft:lora_fa", "adapter": {"rank": 2}},
    "(IA)^3": {"method": "peft:ia3", "adapter": {}},
}


@pytest.mark.optional  # nine runs, each twice
@pytest.mark.parametrize("case", OTHERS)
def test_so_do_other_runs(case: str, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = _recipe(small_recipe, **OTHERS[case])
    _same_as_alone(recipe, tmp_path)


@pytest.mark.optional  # a run of each kind of model, twice
@pytest.mark.parametrize("task", TASKS)
def test_so_does_every_task(task: str, tmp_path: Path) -> None:
    made = TASKS[task](tmp_path)
    train = {"steps": 6, "evaluate_every": 3, "seed": 4, **made["train"]}
    mapping = {"task": task, **made, "train": train, "adapter": {"preset": "lora", "rank": 2, "dropout": 0.1}}
    _same_as_alone(Recipe.from_dict(mapping), tmp_path)
    mapping["train"] |= {"head_start": "random"}
    tuning = _job(Recipe.from_dict(mapping))  # scores nothing before the training, and draws the same all the same
    closing = replace(tuning, phase="closing", scores_test=True)
    rows = [Session().run(job) for job in (tuning, closing)]
    assert rows[0].weights_digest == rows[1].weights_digest != None  # noqa: E711


def test_the_order_of_runs_does_not_matter_and_the_base_is_untouched(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    used = Session(folder=tmp_path)
    first = _job(_recipe(small_recipe, train={"seed": 1, "head_start": "random"}), scores_test=True)
    others = [
        _job(_recipe(small_recipe, method="full", adapter={}, train={"seed": 2})),
        _job(_recipe(small_recipe, method="peft:lora", adapter={"rank": 2})),
        _job(_recipe(small_recipe, adapter={"rank": 2, "nonzero_start": "correct_base", "B": {"init": "gaussian"}})),
    ]
    rows = [used.run(first)]
    model = _model(used)
    bits, parts = _bits(model), [(name, id(module), type(module)) for name, module in model.named_modules()]
    flags = {name: (p.requires_grad, p.grad, id(p)) for name, p in model.named_parameters()}
    own = {name: sorted(vars(module)) for name, module in model.named_modules()}
    draws = torch.get_rng_state()
    for job in (*others, first):
        rows.append(used.run(job))
        assert rows[-1].status == "finished", rows[-1].error
        assert _bits(model) == bits
        assert [(name, id(module), type(module)) for name, module in model.named_modules()] == parts
        assert {name: (p.requires_grad, p.grad, id(p)) for name, p in model.named_parameters()} == flags
        assert {name: sorted(vars(module)) for name, module in model.named_modules()} == own
    assert rows[0].result() == rows[-1].result()
    assert len({row.weights_digest for row in rows}) == 4
    assert torch.equal(torch.get_rng_state(), draws)
    assert used.loads == 1
    assert gc.get_freeze_count() == 0


def test_a_base_is_read_and_its_head_fitted_once(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    used = Session()
    prepare, fit = loaded_base.prepare_task, loaded_base.fit_head

    def counted(what: str, done: Callable[..., Any], *args: Any, **options: Any) -> Any:
        calls.append(what)
        return done(*args, **options)

    monkeypatch.setattr(loaded_base, "prepare_task", partial(counted, "read", prepare))
    monkeypatch.setattr(loaded_base, "fit_head", partial(counted, "fit", fit))
    rows = [used.run(_job(_recipe(small_recipe, train={"seed": seed, "lr": 0.01 * (seed + 1)}))) for seed in range(3)]
    assert [row.status for row in rows] == ["finished"] * 3
    assert calls == ["read", "fit"]
    other = _recipe(small_recipe, data={"max_tokens": 8})
    assert used.run(_job(other)).status == "finished"
    assert calls == ["read", "fit"] * 2


def test_a_row_says_what_was_done(small_recipe: dict[str, Any]) -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    recipe = _recipe(small_recipe, train={"warmup_fraction": 0.0})
    job = _job(recipe, axes={"train.batch_size": 8}, arm="b_only", repeat=2)
    row = Session(threads=1, executor="processes").run(
        job, progress=lambda done, total, values: told.append((done, total, dict(values)))
    )
    assert row == RunRow.from_dict(json.loads(json.dumps(row.to_dict(), allow_nan=False)))
    assert (row.id, row.phase, row.arm, row.axes, row.repeat) == (
        job.id,
        "tuning",
        "b_only",
        {"train.batch_size": 8},
        2,
    )
    assert Recipe.from_dict(row.recipe) == job.recipe
    assert (row.lr, row.rank, row.threads, row.executor) == (0.01, 2, 1, "processes")
    assert [(done, total) for done, total, _ in told] == [(step, 12) for step in range(1, 13)]
    assert told[-1][2]["validation"] == row.scores["value"][1]
    assert row.test is row.before is row.adapter is None
    assert row.validation == max(row.scores["value"])
    assert row.best_step == row.scores["step"][list(row.scores["value"]).index(row.validation)]
    assert row.dynamics["step"] == [1, 2, 3]
    assert row.dynamics["delta1"] == [0.0] * 3  # A is frozen, so only B moves the features
    assert all(value is not None and value > 0 for value in row.dynamics["delta2"])
    assert row.dynamics["grad_A"] == [None] * 3
    assert row.dynamics["moved_A"] == [0.0] * 3
    assert row.dynamics["moved_B"] == [None] * 3  # B starts at zero, so its way has no ratio to the start
    assert row.flops_per_step is not None
    assert row.flops_per_step > 0
    assert len(row.weights_digest or "") == 64


def test_the_step_after_which_the_loss_is_lost_is_told(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = Session()
    good = _job(_recipe(small_recipe))
    before = used.run(good)
    bits = _bits(_model(used))
    row = used.run(_job(_recipe(small_recipe, train={"lr": 1e30, "max_grad_norm": 0.0, "warmup_fraction": 0.0})))
    assert row.status == "diverged"
    assert row.diverged_at is not None
    assert row.diverged_at == row.steps + 1
    assert "Lower train.lr" in (row.error or "")
    assert "checkpoint" not in (row.error or "")
    assert row.validation is row.weights_digest is row.test is None
    json.dumps(row.to_dict(), allow_nan=False)
    assert _bits(_model(used)) == bits
    assert used.run(good).result() == before.result()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"preset": "b_only", "rank": 2, "targets": "nowhere"}}, "nowhere"),
        ({"adapter": {"preset": "b_only", "rank": 10_000}}, "10000"),
        ({"train": {"optimizer": "nothing"}}, "nothing"),
        ({"data": {"name": "no-such-file.csv"}}, "no-such-file"),
    ],
)
def test_what_cannot_be_run_fails_with_its_reason(
    changes: dict[str, Any], said: str, small_recipe: dict[str, Any]
) -> None:
    used = Session()
    row = used.run(_job(_recipe(small_recipe, **changes)))
    assert row.status == "failed"
    assert not row.final
    assert said in (row.error or "")
    assert row.steps == 0


def test_a_failure_in_the_middle_leaves_the_session_usable(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = Session()
    good = _job(_recipe(small_recipe))
    before = used.run(good)
    step = torch.optim.AdamW.step

    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("the third step fails")

    with monkeypatch.context() as broken:
        broken.setattr(torch.optim.AdamW, "step", fails)
        row = used.run(good)
    assert torch.optim.AdamW.step is step
    assert (row.status, row.error, row.steps) == ("failed", "KeyError: 'the third step fails'", 0)
    assert used.run(good).result() == before.result()

    def interrupted(done: int, total: int, values: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        used.run(good, progress=interrupted)
    assert used.run(good).result() == before.result()


@pytest.mark.parametrize("behind", [True, False])
def test_a_run_stops_early_where_others_are_ahead(
    behind: bool, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Sequence[Mapping[int, float]], dict[int, float], dict[str, Any]]] = []

    def is_behind(rivals: Any, own: Mapping[int, float], **options: Any) -> bool:
        asked.append((rivals, dict(own), options))
        return behind and len(own) == 2

    monkeypatch.setattr(pruning, "is_behind", is_behind)
    rivals = ({4: 0.9, 8: 0.9, 12: 0.9},)
    job = _job(_recipe(small_recipe), rivals=rivals, prune_eta=3, scores_test=True)
    row = Session().run(job)
    assert [len(own) for _, own, _ in asked] == [1, 2]  # at the last score nothing is left to save
    assert asked[0][0] is rivals
    assert asked[0][2] == {"every": 4, "eta": 3, "greater_is_better": True}
    if behind:
        assert (row.status, row.steps, row.validation) == ("pruned", 8, row.scores["value"][-1])
        assert row.test is None
    else:
        assert (row.status, row.steps) == ("finished", 12)
        assert row.test is not None


def test_an_adapter_needs_a_folder(small_recipe: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"Session\(folder"):
        Session().run(_closing(_recipe(small_recipe)))


def test_trackers_are_left_out_but_stay_in_the_recipe(small_recipe: dict[str, Any]) -> None:
    recipe = replace(_recipe(small_recipe), train=replace(_recipe(small_recipe).train, report_to=("tensorboard",)))
    row = Session().run(_job(recipe))
    assert row.status == "finished"
    assert row.recipe["train"]["report_to"] == to_mapping(recipe)["train"]["report_to"]
