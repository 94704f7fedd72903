"""`asymlora advise` from its options to the recipe that `asymlora finetune` runs unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asymlora.cli import main
from asymlora.train.recipe import Recipe

QUICK = ("--steps", "12", "--batches", "2", "--rows", "48", "--rank", "2")


@pytest.fixture
def given(small_recipe: dict[str, Any]) -> tuple[str, ...]:
    model, data = small_recipe["model"], small_recipe["data"]
    return (
        *("advise", model["name"], "--data", data["name"], "--model.pooling", "mean", "--data.group", "film"),
        *("--data.max_tokens", "16", "--train.batch_size", "8", "--train.steps", "4", "--train.evaluate_every", "2"),
    )


def test_the_recipe_runs_unchanged(given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, page = tmp_path / "my recipe.yaml", tmp_path / "reasons.html"
    recipe.write_text("of an earlier day")
    assert main([*given, *QUICK, "--out", str(recipe), "--page", str(page), "--overwrite"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("within reach of B", "was not shown to beat", "advised start", f"finetune '{recipe}'"):
        assert words in shown, words
    assert "further training rows" not in shown  # they are the recipe's, and advice alone did not read them
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(tmp_path.glob(".incomplete-*"))
    assert Recipe.load(recipe).train.steps == 4
    assert main(["finetune", str(recipe), "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.optional  # a second whole advice: ten seconds
def test_json_is_alone_on_the_standard_output(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*given, *QUICK, "--json", "--only-targets"]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["summary"]["layers"] == len(record["sites"])
    assert Recipe.from_dict(record["recipe"]).train.lr == record["rate"]["lr"]
    assert "Range test" in printed.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "recipe.txt"), "--out recipe.txt has no ending that is known"),
        (("--out", "nowhere/recipe.yaml"), "there is no folder nowhere"),
        (("--page", "page.svg"), "--page page.svg has no ending"),
        (("--out", "/proc/recipe.yaml"), "--out /proc/recipe.yaml cannot be written"),
        (("--train.lr_A", "0.1"), "--train.lr_A"),
        (("--values", "3"), "values=3 is less than rank 1 costs at 12 targets, 192 or more"),
        (("--steps", "11"), "steps=11 must be at least 12"),
        (("--batches", "1"), "batches=1 must be at least 2"),
        (("--task", "text_clasification"), "Did you mean 'text_classification'"),
        (("--data", "gone.csv"), "There is no data at gone.csv"),
        (("--targets", "q_prj"), "no layer matches"),
        (("--adapter.preset", "lora"), "adapter.preset"),
    ],
)
def test_mistakes_are_answered(
    given: tuple[str, ...], options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*given, *options]) == 2
    printed = capsys.readouterr()
    assert words in " ".join(printed.err.split())
    assert "Fitting" not in printed.out


def test_an_unknown_model_is_answered_before_the_data_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "embedded:minilm", "--data", "gone.csv"]) == 2
    assert "No embedded model is called" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--page"])
def test_a_file_is_not_replaced_unasked(
    option: str, given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / {"--out": "recipe.yaml", "--page": "page.html"}[option]
    file.write_text("mine")
    assert main([*given, *QUICK, option, str(file)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_without_a_name_the_recipe_is_written_beside_and_never_over_another(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "advised.yaml").write_text("mine")
    assert main([*given, *QUICK]) == 2
    assert "--out advised.yaml exists. Choose another name" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "advised.yaml").read_text() == "mine"


def test_a_recipe_can_be_begun_from(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    from asymlora.commands.advise import _recipe

    (tmp_path / "mine.yaml").write_text("data: {label: stars}\ntrain: {steps: 7}\n")
    own = {"model_name": "some/model", "recipe": str(tmp_path / "mine.yaml")}
    recipe = _recipe({"train": {"steps": 9}}, own)
    assert (recipe.model.name, recipe.data.label, recipe.train.steps) == ("some/model", "stars", 9)
