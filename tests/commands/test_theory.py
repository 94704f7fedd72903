from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asymlora.cli import main

TOY = (
    *("toy", "--widths", "[8,16]", "--rates", "[0.001,0.01,0.1]", "--seeds", "2", "--steps", "3"),
    *("--train_points", "20", "--teacher_width", "16", "--teacher_rank", "4"),
)
RUNS = {
    "toy": TOY,
    "stability": ("stability", "--widths", "[64,128,256]", "--seeds", "2"),
    "gap": ("gap", "--seeds", "1"),
}


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_toy_model_sweeps_every_combination_and_keeps_every_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.jsonl"
    assert main(["theory", *TOY, "--records", str(file), "--figure", str(tmp_path / "toy.html")]) == 0
    records = _records(file)
    assert len(records) == 2 * 2 * 3 * 2
    assert {r["scheme"] for r in records} == {"init_a", "init_b"}
    assert all((r["steps"], r["train_points"], r["beta2"]) == (3, 20, 0.99) for r in records)
    assert "Plotly.newPlot" in (tmp_path / "toy.html").read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert "best of 3 learning rates" in shown
    assert str(file) in shown


def test_stability_measures_exponents_and_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stability.jsonl"
    assert main(["theory", *RUNS["stability"], "--records", str(file)]) == 0
    records = _records(file)
    edges = [r for r in records if r["kind"] == "largest stable rate"]
    assert {(r["width"], r["seed"]) for r in edges} == {(w, s) for w in (64, 128, 256) for s in (0, 1)}
    fits = [r for r in records if r["kind"] == "exponents"]
    assert all(r["widths"] == [64, 128, 256] for r in fits)
    shown = capsys.readouterr().out
    assert "and those of the calculus" in shown
    assert "-1/2" in shown


def test_gap_counts_the_winner_in_each_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gap.jsonl"
    assert main(["theory", *RUNS["gap"], "--records", str(file)]) == 0
    assert {r["wanted"] for r in _records(file)} == {"generic", "high variance", "low variance"}
    assert "B wins" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gap", "--figure", "plot.png"), "--figure plot.png has no ending that is known. Allowed: .html, .svg"),
        (("gap", "--records", "no/such/records.jsonl"), "there is no folder no/such"),
        (("gap", "--seeds", "-1"), "--seeds -1 must hold numbers above 0"),
        (("gap", "--seeds", "0"), "--seeds 0 must hold numbers above 0"),
        (("toy", "--widths", "[]"), "--widths [] must hold numbers above 0"),
        (("toy", "--rates", "[0.1,-0.1]"), "--rates [0.1, -0.1] must hold numbers above 0"),
        (("toy", "--schemes", "[]"), "names no start"),
        (("stability", "--widths", "[0,8]"), "--widths [0, 8] must hold numbers above 0"),
        (("stability", "--widths", "[64]"), "allow no slope"),
        (("gap", "--figure", ".svg/"), "no ending"),
        (("toy", "--schemes", "[init_c]"), "there is no scheme 'init_c'"),
        (("toy", "--rank", "0"), "rank=0 must be a whole number"),
        (("nothing",), "simulation"),
        (("stability", "--steps", "3"), "steps"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["theory", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_of_each_simulation_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words, option in ((("toy",), "--weight_decay"), (("stability",), "--widths"), ((), "--figure")):
        with pytest.raises(SystemExit) as stopped:
            main(["theory", *words, "--help"])
        assert stopped.value.code == 0
        assert option in capsys.readouterr().out


def test_what_diverged_is_null_in_the_records_and_kept_though_no_table_can_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.jsonl"
    small = ("--widths", "[8]", "--seeds", "1", "--steps", "30", "--train_points", "20", "--teacher_width", "16")
    assert main(["theory", "toy", *small, "--rates", "[1e20]", "--records", str(file)]) == 2
    assert "diverged" in capsys.readouterr().err
    assert all(record["train_loss"] is None for record in _records(file))
    assert "Infinity" not in file.read_text(encoding="utf-8")
