"""What README and docs say: their numbers are those of the stored results, their examples run, their links lead on."""

from __future__ import annotations

import importlib.util
import json
import operator
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import asymlora as al
from asymlora.theory.best_rates import best_rate
from asymlora.theory.width_fits import fit_slope
from asymlora.train.recipe import Recipe
from cases import MODELS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _rows(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def _row(result: dict[str, Any]) -> tuple[str, str, str, str]:
    gain = f"+{100 * result['gain']:.1f} ± {100 * result['gain_standard_error']:.1f}"
    shares = [f"{100 * result[key]:.1f} %" for key in ("head_alone_accuracy", "accuracy")]
    return (str(result["seed"]), *shares, gain)  # pyright: ignore[reportReturnType]


def test_margin_tables_are_the_stored_results() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "first-run.md"):
        text = page.read_text(encoding="utf-8")
        for result in _rows("finetune_margin"):
            seed, head, adapter, gain = _row(result)
            (line,) = [line for line in text.splitlines() if line.startswith(f"| {seed} | ")]
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert {head, adapter, gain, f"{result['train_seconds']:.0f} s"} <= set(cells)
            if len(cells) > 5:
                assert cells[1] == f"{result['rows']['test']:,}"
                assert cells[5] == str(result["best_step"])
                assert cells[7] == f"{result['total_seconds']:.0f} s"


def test_counts_in_the_text_are_the_stored_ones() -> None:
    text = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    for key in ("trained_parameters", "lora_parameters", "full_parameters"):
        assert f"{_rows('finetune_margin')[0][key]:,}" in text


def test_the_claimed_margin_holds_in_the_stored_results() -> None:
    rows = _rows("finetune_margin")
    assert len(rows) == 3
    assert all(r["gain"] > 5 * r["gain_standard_error"] for r in rows)
    assert all(r["train_seconds"] <= 150 and r["total_seconds"] <= 240 for r in rows)


def test_the_rate_table_is_the_stored_one_and_its_best_is_the_default() -> None:
    rows = _rows("finetune_rates")
    text = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| validation accuracy |")]
    assert re.findall(r"\d+\.\d(?= %)", line) == [f"{100 * row['validation_accuracy']:.1f}" for row in rows]
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert best["lr"] == Recipe().train.lr
    assert best not in (rows[0], rows[-1])


def test_the_page_on_time_and_bytes_is_the_stored_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import performance_page

    assert performance_page.PAGE.read_text(encoding="utf-8") == performance_page.render()


def test_what_the_texts_claim_of_bytes_and_attachment_holds_in_the_stored_results() -> None:
    frozen = [row for row in _rows("saved_activations") if row["trained"] == "B"]
    assert {(row["model"], row["base"], row["dropout"]) for row in frozen} == {
        (model, base, dropout)
        for model in ("BERT", "Llama", "GPT-2", "ViT")
        for base in ("float32", "bfloat16")
        for dropout in (0.0, 0.1)
    }
    assert all(row["ours_bytes"] == row["codes_and_bits"] for row in frozen)
    (times,) = _rows("attach_time")
    assert times["svd_s"] > 50 * times["asymlora_s"]
    assert times["asymlora_s"] <= times["peft_s"]


def test_no_cell_of_the_stored_grids_is_slower_than_the_bounds_that_were_set() -> None:
    for row in _rows("step_overhead_grid"):
        # At 128 tokens: not above 1 beyond the spread.
        assert row["ratio"] <= 0.90 if row["tokens"] >= 1024 else row["low"] <= 1.0
    for row in _rows("step_overhead_dropout"):
        assert row["ratio"] <= 1.0
    assert all(row["ratio"] < 1.0 for row in _rows("step_overhead_orders"))


def test_the_overhead_is_at_most_four_tenths_of_pefts_in_the_geometric_mean() -> None:
    ratios = [max(row["ratio"], 0.01) for row in _rows("step_overhead_grid")]
    mean = statistics.geometric_mean(ratios)
    assert mean <= 0.40
    assert f"is {mean:.2f} of what PEFT's adds" in (ROOT / "README.md").read_text(encoding="utf-8")


THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")


def test_functions_that_the_theory_page_names_are_there() -> None:
    named = set(re.findall(r"`(?:diagnostics\.)?([a-z_]+)\.([A-Za-z_.]+)(?:\(.*?\))?`", THEORY))
    modules = {module for module, _ in named if (ROOT / "src/asymlora/theory" / f"{module}.py").exists()}
    assert len(modules) >= 12
    for module, name in named:
        where = "diagnostics" if module == "similarity" else "theory"
        if module in modules | {"similarity"}:
            operator.attrgetter(name)(importlib.import_module(f"asymlora.{where}.{module}"))


def test_tests_that_the_theory_page_names_are_there() -> None:
    named = re.findall(r"`(test_\w+\.py)?(?:::)?(test_\w+)`", THEORY)
    every = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests/theory").glob("test_*.py"))
    assert len(named) >= 20
    for file, name in named:
        text = (ROOT / "tests/theory" / file).read_text(encoding="utf-8") if file else every
        assert f"def {name}(" in text, (file, name)


def test_simulated_figures_of_the_theory_page_are_the_stored_ones() -> None:
    def records(name: str) -> list[dict[str, Any]]:
        lines = (ROOT / "experiments" / "results" / f"theory_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    slopes: list[str] = []
    edges = [r for r in records("stability") if r["kind"] == "largest stable rate"]
    for scheme in ("init_a", "init_b", "init_b_small"):
        rates: dict[int, list[float]] = {}
        for row in edges:
            if row["scheme"] == scheme:
                rates.setdefault(row["width"], []).append(row["rate"])
        found = fit_slope(list(rates), [statistics.geometric_mean(rate) for rate in rates.values()])
        slopes.append(f"{found.exponent:.2f}")
    assert re.findall(r"(-0\.\d\d) \(Init", THEORY) == slopes
    toy = records("toy")
    losses = {
        scheme: [
            f"{1000 * best_rate([r for r in toy if (r['width'], r['scheme']) == (width, scheme)]).loss:.1f}"
            for width in (128, 256, 512, 1024)
        ]
        for scheme in ("init_a", "init_b")
    }
    assert f"({', '.join(losses['init_a'])} against {', '.join(losses['init_b'])} thousandths)" in THEORY.replace(
        "\n", " "
    )


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    case = MODELS[0]
    names: dict[str, Any] = {"torch": torch, "model": case.build(), "base": case.build()}
    exec(code, names)
    assert isinstance(names["optimizer"], torch.optim.AdamW)
    assert al.AdapterSpec.b_only(rank=16, targets=["query", "value"]).rank == 16
    assert torch.equal(case.logits(names["model"]), case.logits(case.build()))


def test_the_recipe_page_shows_a_recipe_that_loads(tmp_path: Path) -> None:
    (text,) = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert (recipe.adapter.rank, recipe.data.label, recipe.train.lr) == (16, "stars", 1e-3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    gone = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not gone


def test_files_that_documents_name_are_there() -> None:
    named = {
        path
        for page in PAGES
        for path in re.findall(r"`((?:src|tests|benchmarks|docs)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    }
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", ["task_matrix", "training_speed"])
def test_measured_tables_of_tasks_are_what_their_script_prints_from_the_stored_results(name: str) -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    script = _script(name)
    results = ROOT / "benchmarks" / "results"
    if name == "task_matrix":
        printed = script.table(script.stored())
    else:
        printed = script.table(json.loads((results / f"{name}.json").read_text()))
    assert printed.count("\n") > 5
    assert printed in page


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_matrix_has_every_set_every_arm_and_two_seeds_and_keeps_to_sixty_steps() -> None:
    script = _script("task_matrix")
    rows = script.stored()
    wanted = {(name, arm, seed) for name in script.sets() for arm in script.ARMS for seed in script.SEEDS}
    assert {(row["set"], row["arm"], row["seed"]) for row in rows} == wanted
    assert len(rows) == len(wanted)
    assert all(row["steps"] <= 60 for row in rows)
