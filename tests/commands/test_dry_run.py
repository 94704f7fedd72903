"""Every recipe at the papers' scale builds without weights, tells its cost, and lacks weights or memory only."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from asymlora.cli import main
from asymlora.papers.paper_recipes import recipe_file, recipe_names
from asymlora.train.recipe import Recipe

RECIPES = [recipe_file(name) for name in recipe_names()]
_LLAMA_7B = 32 * 64 * (4 * 2 * 4096 + 3 * (4096 + 11008))
# Factors and heads by hand: layers x (in or out) x rank x targets.
TRAINED = {
    "bart_large_xsum": (12 + 2 * 12) * 3 * 1024 * 16,
    "llama_2_7b_alpaca": 32 * 2 * 4096 * 32,
    "llama_7b_flan": _LLAMA_7B,
    "llama_7b_gsm8k": _LLAMA_7B,
    "roberta_large_glue": 24 * 2 * 1024 * 8 + 1024 * 1024 + 1024 + 2 * 1024 + 2,
    "roberta_large_mnli": 24 * 2 * 2 * 1024 * 8 + 1024 * 1024 + 1024 + 2 * 1024 + 2,
    "tinyllama_wikitext2": 22 * 16 * (2 * 2 * 2048 + 2 * (2048 + 256) + 3 * (2048 + 5632)),
    "vit_base_pacs": 12 * 8 * (3 * 768) + 2 * 768 + 2,
}


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # a recipe names its configuration wherever it is read from
    monkeypatch.setenv("COLUMNS", "120")


def test_every_recipe_is_tested() -> None:
    assert [file.stem for file in RECIPES] == sorted(TRAINED)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_paper_scale_recipe_tells_cost_and_count_and_what_is_missing(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "full fine-tuning" in printed
    assert f"Trained: {TRAINED[file.stem]:,} values" in printed
    assert re.search(r"A step needs about .* of the .* that is free|memory of a step is not predicted", printed)
    missing = re.findall(r"^(\w+) (?:are|is) missing here", printed, flags=re.MULTILINE)
    assert set(missing) <= {"Weights", "Data", "Memory"}
    assert "Weights" in missing
    recipe = Recipe.load(file)
    assert recipe.model.name in printed
    assert recipe.data.name in printed


def test_without_dry_run_it_fails_for_want_of_data_or_weights_with_that_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["finetune", str(recipe_file("roberta_large_glue")), "--output", str(tmp_path / "run")]) == 2
    assert "hub cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_where_nothing_is_missing_it_says_so(small_recipe: dict[str, dict[str, str]]) -> None:
    options = ["--model.name", small_recipe["model"]["name"], "--data.name", small_recipe["data"]["name"]]
    command = [sys.executable, "-m", "asymlora", "finetune", *options, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Weights and data can be had here: run it without --dry-run." in done.stdout


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("full", 355_361_794),
        ("head", 1024 * 1024 + 1024 + 2 * 1024 + 2),
        ("peft:lora", 24 * 8 * (4 * 2 * 1024 + 2 * (1024 + 4096)) + 1_051_650),
    ],
)
def test_what_is_counted_is_what_the_method_trains(
    method: str, trained: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = Recipe.load(recipe_file("roberta_large_mnli")).to_dict()
    plain = {"task": recipe["task"], "model": recipe["model"], "data": recipe["data"], "method": method}
    (tmp_path / "recipe.yaml").write_text(Recipe.from_dict(plain).to_yaml())
    assert main(["finetune", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert f"Trained: {trained:,} values" in capsys.readouterr().out


def test_a_field_that_the_method_would_not_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--dry-run", "--method", "full", "--adapter.rank", "4"]) == 2
    assert "does not read adapter.rank" in capsys.readouterr().err
