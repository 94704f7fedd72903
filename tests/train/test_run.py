from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.errors import (
    BothFrozenError,
    BothZeroError,
    DataError,
    DataNotFoundError,
    DiskSpaceError,
    DivergedError,
    EmptyDataError,
    MissingColumnError,
    MissingPackageError,
    NoTargetError,
    RankError,
    RunExistsError,
    SingleClassError,
    SpecError,
    UnknownKeyError,
    UnknownNameError,
    UnseenLabelError,
    UnwritableFolderError,
)
from asymlora.tasks.classifiers import load_classifier
from asymlora.tasks.inputs import ModelRecipe
from asymlora.train.recipe import Recipe
from asymlora.train.run import finetune
from cases import small_reviews


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def begun(self, folder: str) -> None:
        self.lines.append(folder)

    def stage(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.steps.append((what, done, total))


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    return Recipe.from_dict(small_recipe)


def _changed(small_recipe: dict[str, Any], **parts: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({**small_recipe, **{k: {**small_recipe[k], **v} for k, v in parts.items()}})


def test_a_run_folder_holds_what_it_says(recipe: Recipe, tmp_path: Path) -> None:
    notes = Notes()
    result = finetune(recipe, output=tmp_path / "run", observer=notes)
    folder = tmp_path / "run"
    assert sorted(f.name for f in folder.iterdir()) == [
        "adapter",
        "dynamics.jsonl",
        "environment.json",
        "health.json",
        "recipe.yaml",
        "records.jsonl",
        "result.json",
    ]
    assert Recipe.load(folder / "recipe.yaml") == recipe
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert result.folder == str(folder)
    assert result.model == recipe.model.name
    assert ("training", 12, 12) in notes.steps
    assert any(what == "features" and done == total for what, done, total in notes.steps)
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    validation = [r for r in records if r["split"] == "validation"]
    assert [r["step"] for r in validation] == [4, 8, 12]
    assert result.validation == max(r["accuracy"] for r in validation)
    assert validation[[4, 8, 12].index(result.best_step)]["accuracy"] == result.validation
    training = [r for r in records if r["split"] == "train"]
    assert {"loss", "grad_norm", "lr_B", "lr_head", "lr_norm", "wall_s"} <= set(training[0])
    assert "lr_A" not in training[0]


def test_the_model_is_told_by_its_label(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymlora.train.run.label_of", lambda name: f"{name}, dequantised")
    notes = Notes()
    finetune(recipe, output=tmp_path / "run", observer=notes)
    told = f"{recipe.model.name}, dequantised"
    assert f"Reading {recipe.data.name} and {told}" in notes.lines
    assert json.loads((tmp_path / "run" / "result.json").read_text())["model"] == told


def test_the_figures_are_those_of_the_model(recipe: Recipe, tmp_path: Path, small_encoder: Path) -> None:
    result = finetune(recipe, output=tmp_path / "run")
    model, _ = load_classifier(ModelRecipe(name=str(small_encoder), pooling="mean"), label_names=result.label_names)
    full = sum(p.numel() for p in model.parameters())
    assert result.full_parameters == full
    shapes = [(m.in_features, m.out_features) for n, m in model.encoder.named_modules() if isinstance(m, nn.Linear)]
    head = sum(p.numel() for p in model.classifier.parameters())
    assert result.head_parameters == head == 2 * 16 + 2
    assert result.trained_parameters == head + sum(2 * out for _, out in shapes)
    assert result.lora_parameters == head + sum(2 * (width + out) for width, out in shapes)
    assert result.adapter_bytes == (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert sum(result.rows[part] for part in ("train", "validation", "test", "dropped")) == 240


def test_the_saved_adapter_gives_the_runs_test_accuracy_with_peft(
    recipe: Recipe, tmp_path: Path, small_encoder: Path
) -> None:
    from peft import PeftModel

    from asymlora.tasks.sources import load_table
    from asymlora.tasks.splits import divide

    result = finetune(recipe, output=tmp_path / "run")
    base, tokenizer = load_classifier(
        ModelRecipe(name=str(small_encoder), pooling="mean"), label_names=result.label_names
    )
    ours, _ = load_classifier(ModelRecipe(name=str(small_encoder), pooling="mean"), label_names=result.label_names)
    al.load_adapter(ours, tmp_path / "run" / "adapter")
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    data = recipe.data
    parts = divide(load_table(data), validation_fraction=0.1, test_fraction=0.2, seed=data.seed)
    batch = tokenizer(parts.test.texts, padding=True, return_tensors="pt", truncation=True, max_length=16)
    with torch.no_grad():
        logits = [m(**batch).logits for m in (ours.eval(), theirs)]
    assert (logits[0] - logits[1]).abs().max() <= 1e-5
    right = (logits[1].argmax(-1).numpy() == np.array(parts.test.labels)).mean()
    assert right == pytest.approx(result.score)


def test_training_learns_a_signal_that_is_there(
    small_recipe: dict[str, Any], tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    recipe = _changed(
        small_recipe,
        data={"name": str(write_rows(small_reviews(800), "more.csv"))},
        train={"steps": 300, "evaluate_every": 50, "lr": 0.005, "batch_size": 16},
        adapter={"rank": 8},
    )
    result = finetune(recipe, output=tmp_path / "run")
    # The label is one word of the text. The mean features of a random encoder blur it; a trained one need not.
    assert result.gain > 3 * result.gain_standard_error
    assert result.gain == pytest.approx(result.score - result.baseline)


def test_probe_start_begins_at_the_head_alone_and_random_start_does_not(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    probe = finetune(_changed(small_recipe), output=tmp_path / "probe")
    assert probe.before == probe.baseline
    chance = finetune(_changed(small_recipe, train={"head_start": "random", "seed": 3}), output=tmp_path / "random")
    assert chance.baseline == probe.baseline
    assert chance.before != probe.before


@pytest.mark.parametrize("preset", ["lora", "init_a", "init_b", "a_only"])
def test_every_preset_runs(small_recipe: dict[str, Any], tmp_path: Path, preset: str) -> None:
    result = finetune(_changed(small_recipe, adapter={"preset": preset}), output=tmp_path / "run")
    assert result.steps == 12


def test_the_native_class_of_the_model_runs_and_loads_as_peft_sequence_classifier(
    small_recipe: dict[str, Any], tmp_path: Path, small_encoder: Path
) -> None:
    from peft import PeftModelForSequenceClassification

    result = finetune(_changed(small_recipe, model={"pooling": "native"}), output=tmp_path / "run")
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(small_encoder, num_labels=len(result.label_names))
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
    assert isinstance(loaded, PeftModelForSequenceClassification)


def test_the_same_recipe_gives_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("one", "two"):
        finetune(recipe, output=tmp_path / name)
    weights = [(tmp_path / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in ("one", "two")]
    assert weights[0] == weights[1]


def test_overwrite_replaces_the_run_only_after_all_checks(
    recipe: Recipe, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    finetune(recipe, output=tmp_path / "run")
    before = (tmp_path / "run" / "result.json").read_text()
    with pytest.raises(RunExistsError, match="--overwrite"):
        finetune(recipe, output=tmp_path / "run")
    with pytest.raises(NoTargetError):
        finetune(_changed(small_recipe, adapter={"targets": "nope"}), output=tmp_path / "run", overwrite=True)
    without_decay = _changed(small_recipe, train={"optimizer": "rprop", "weight_decay": 0.1})
    with pytest.raises(SpecError, match="Rprop has no weight decay"):
        finetune(without_decay, output=tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "result.json").read_text() == before
    finetune(_changed(small_recipe, train={"steps": 4}), output=tmp_path / "run", overwrite=True)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4


class TestBadInputIsFoundBeforeAnythingIsWritten:
    """Each mistake has its own class and says what to do; no run folder is left behind."""

    @pytest.mark.parametrize(
        ("parts", "error", "words"),
        [
            ({"adapter": {"targets": ["qurey"]}}, NoTargetError, "end in: dense, key, .*query, .*value"),
            ({"adapter": {"rank": 17}}, RankError, "the rank may be at most 16"),
            ({"adapter": {"A": {"init": "zeros", "trainable": True}}}, BothZeroError, "nothing could ever learn"),
            ({"adapter": {"B": {"trainable": False}}}, BothFrozenError, "both frozen"),
            ({"adapter": {"rnak": 3}}, UnknownKeyError, "Did you mean 'rank'"),
            ({"data": {"name": "nowhere.csv"}}, DataNotFoundError, r"no data at nowhere\.csv"),
            ({"data": {"label": "lable"}}, MissingColumnError, "Did you mean 'label'.*text, label, film"),
            ({"model": {"name": "./nowhere"}}, DataNotFoundError, "no model folder"),
            ({"train": {"report_to": ["tensorbord"]}}, UnknownNameError, "Did you mean 'tensorboard'.*wandb"),
            ({"train": {"report_to": ["dvclive"]}}, MissingPackageError, "pip install dvclive"),
        ],
    )
    def test_wrong_recipe(
        self,
        small_recipe: dict[str, Any],
        tmp_path: Path,
        parts: dict[str, Any],
        error: type[Exception],
        words: str,
    ) -> None:
        with pytest.raises(error, match=words):
            finetune(_changed(small_recipe, **parts), output=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("rows", "error", "words"),
        [
            ([{**row, "label": "fresh"} for row in small_reviews(60)], SingleClassError, "at least two labels"),
            (
                [{**row, "label": "odd" if row["film"] == "film 3" else row["label"]} for row in small_reviews()],
                UnseenLabelError,
                "never sees .*'odd'",
            ),
        ],
        ids=["one class", "unseen label"],
    )
    def test_wrong_rows(
        self,
        small_recipe: dict[str, Any],
        tmp_path: Path,
        write_rows: Callable[..., Path],
        rows: list[dict[str, str]],
        error: type[Exception],
        words: str,
    ) -> None:
        recipes = [
            _changed(small_recipe, data={"name": str(write_rows(rows, "wrong.csv")), "seed": seed}) for seed in range(9)
        ]
        refusals: list[str] = []
        for recipe in recipes:  # of nine divisions some hold film 3 out
            try:
                finetune(recipe, output=tmp_path / "run", overwrite=(tmp_path / "run").exists())
            except error as refused:
                refusals.append(str(refused))
        assert refusals
        assert all(re.search(words, refusal) for refusal in refusals)

    def test_empty_file(self, small_recipe: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "empty.csv").write_text("")
        with pytest.raises(EmptyDataError, match=r"empty\.csv is empty"):
            finetune(_changed(small_recipe, data={"name": str(tmp_path / "empty.csv")}), output=tmp_path / "run")

    def test_full_disk(self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type("Usage", (), {"free": 2**20})()
        monkeypatch.setattr("asymlora.train.run_folder.shutil.disk_usage", lambda _: usage)
        with pytest.raises(DiskSpaceError, match=r"1 MiB left.*writes up to"):
            finetune(recipe, output=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_unwritable_folder(self, recipe: Recipe, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UnwritableFolderError, match="cannot be written"):
            finetune(recipe, output=tmp_path / "file" / "run")


class _StopError(Exception):
    pass


def _interrupted_at_the_end(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr("asymlora.train.run._test", stop)
        with pytest.raises(_StopError):
            finetune(recipe, output=folder)


def test_a_run_interrupted_after_its_last_step_takes_no_step_more(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A constant rate, so that one step more would show; 13 steps, so that it would not be at the end of an epoch.
    recipe = _changed(small_recipe, train={"schedule": "constant", "steps": 13})
    whole = finetune(recipe, output=tmp_path / "whole")
    _interrupted_at_the_end(recipe, tmp_path / "cut", monkeypatch)
    resumed = finetune(recipe, output=tmp_path / "cut", resume=True)
    assert (resumed.steps, resumed.best_step, resumed.score) == (13, whole.best_step, whole.score)
    weights = [(tmp_path / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_a_run_interrupted_after_its_patience_ended_takes_no_step_more(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rate so small that no score is better than the first.
    recipe = _changed(small_recipe, train={"lr": 1e-12, "steps": 40, "evaluate_every": 2, "patience": 3})
    _interrupted_at_the_end(recipe, tmp_path / "cut", monkeypatch)
    resumed = finetune(recipe, output=tmp_path / "cut", resume=True)
    assert (resumed.steps, resumed.best_step) == (8, 2)


def test_resuming_with_other_rows_is_refused(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]
) -> None:
    recipe = _changed(small_recipe)
    _interrupted_at_the_end(recipe, tmp_path / "run", monkeypatch)
    changed = [*small_reviews()[:-1], {"text": "quite good", "label": "fresh", "film": "film 1"}]
    Path(recipe.data.name).write_bytes(write_rows(changed, "changed.csv").read_bytes())
    with pytest.raises(DataError, match="are others than when the run"):
        finetune(recipe, output=tmp_path / "run", resume=True)


def test_a_damaged_baseline_is_measured_again(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _changed(small_recipe)
    whole = finetune(recipe, output=tmp_path / "whole")
    _interrupted_at_the_end(recipe, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "checkpoints" / "baseline.json").write_text("garbage")
    resumed = finetune(recipe, output=tmp_path / "run", resume=True)
    assert (resumed.score, resumed.gain) == (whole.score, whole.gain)


def test_a_base_without_a_pooler_gives_the_runs_model_again(
    small_recipe: dict[str, Any], tmp_path: Path, small_encoder: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM

    from asymlora.train.saved_run import load_run

    torch.manual_seed(0)
    BertForMaskedLM(AutoConfig.from_pretrained(small_encoder)).save_pretrained(tmp_path / "mlm")
    AutoTokenizer.from_pretrained(small_encoder).save_pretrained(tmp_path / "mlm")
    recipe = _changed(small_recipe, model={"name": str(tmp_path / "mlm"), "pooling": "native"})
    finetune(recipe, output=tmp_path / "run")
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(load_run(tmp_path / "run").answer(["a good film"])[0].probability)
    assert answers[0] == answers[1]


def test_two_processes_cannot_run_in_one_folder(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    recipe = _changed(small_recipe)
    _interrupted_at_the_end(recipe, tmp_path / "run", monkeypatch)
    handle = os.open(tmp_path / "run", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunExistsError, match="Another process is running"):
                finetune(recipe, output=tmp_path / "run", **options)
    finally:
        os.close(handle)
    assert finetune(recipe, output=tmp_path / "run", resume=True).resumed


def test_an_empty_folder_the_current_one_and_a_link_are_fine_places(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("empty", "here", "target"):
        (tmp_path / name).mkdir()
    finetune(recipe, output=tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "here")
    finetune(recipe, output=".")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    finetune(recipe, output=tmp_path / "link")
    finetune(recipe, output=tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert all((tmp_path / name / "result.json").is_file() for name in ("empty", "here", "target"))


def test_divergence_names_step_and_rate_and_leaves_a_run_to_resume(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _changed(small_recipe)
    healthy = nn.functional.cross_entropy
    calls = 0

    def diverging(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return healthy(*args, **kwargs) * (float("nan") if calls == 6 else 1.0)

    monkeypatch.setattr(nn.functional, "cross_entropy", diverging)
    with pytest.raises(DivergedError, match=r"nan at step 6, with the learning rates B 0\.00.*checkpoint-4"):
        finetune(recipe, output=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    assert finetune(recipe, output=tmp_path / "run", resume=True).resumed


def test_a_huge_learning_rate_is_stopped_and_leaves_no_adapter(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = _changed(small_recipe, train={"lr": 1e30, "max_grad_norm": 0.0, "warmup_fraction": 0.0})
    with pytest.raises(DivergedError, match=r"Lower train\.lr"):
        finetune(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
