"""`docs/sweeps.md`: its figures are those of the stored results, its words those of the command."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from asymlora.cli import recipe_options
from asymlora.commands.sweep import parser
from asymlora.report.sweep_tables import interval_text, metric_text, octaves_text
from asymlora.sweep.analysis import analyse
from asymlora.sweep.axes import parse_arm, parse_axis, parse_rates
from asymlora.sweep.rates import rate_text
from asymlora.sweep.searching import parse_searched
from asymlora.sweep.sweep_folder import read_sweep
from asymlora.train.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")


def _results(name: str) -> list[dict[str, Any]]:
    lines = (ROOT / "experiments" / "results" / name).read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line)).get("kind") != "settings"]


def _table(first: str) -> list[list[str]]:
    lines = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_the_coverage_is_what_was_stored() -> None:
    heads, *rows = _table("differences")
    shown = {(row[0], int(head.removeprefix("n = "))): row[i + 1] for row in rows for i, head in enumerate(heads[1:])}
    stored = {(r["population"], r["values"]): f"{100 * r['ours']:.1f}" for r in _results("interval_coverage.jsonl")}
    assert shown == stored


def test_the_false_positives_are_what_was_stored() -> None:
    def span(values: list[float]) -> str:
        return f"{100 * min(values):.1f} to {100 * max(values):.1f} %"

    rows = _results("null_sweeps.jsonl")
    for arms, closing, false, alone, found in _table("arms")[1:]:
        mine = [r for r in rows if (str(r["arms"]), str(r["closing"])) == (arms, closing)]
        null = [r for r in mine if r["gain"] == 0]
        assert false == span([r["verdicts"] for r in null])
        assert alone == span([r["p alone"] for r in null])
        assert found == span([r["verdicts"] for r in mine if r["gain"]])
        assert max(r["verdicts"] for r in null) <= 0.05
    assert {(r["arms"], r["closing"]) for r in rows} == {(int(row[0]), int(row[1])) for row in _table("arms")[1:]}


def test_the_sweep_that_is_shown_is_the_stored_one() -> None:
    records = read_sweep(ROOT / "experiments" / "results" / "trec6_sweep")
    summary: Any = records.summary
    for row, cell in zip(_table("arm")[1:], summary["cells"], strict=True):
        assert row == [
            cell["label"],
            rate_text(cell["best_rate"]),
            cell["best_at"],
            metric_text(summary, cell["mean"]),
            interval_text(summary, cell["interval"]),
            octaves_text(cell["basin"]),
            rate_text(cell["divergence_edge"]),
            f"{cell['trained_parameters']:,}",
        ]
    assert f"{len(records.rows)} runs" in PAGE
    assert not any(pair["better"] for pair in summary["comparisons"])
    (first,) = (p for p in summary["comparisons"] if (p["first"], p["second"]) == ("init_a", "init_b"))
    assert all(each["value"] > 0 for each in first["differences"])
    assert (f"{first['p']:.3f}", f"{first['p_adjusted']:.3f}") == ("0.031", "0.094")
    # A summary is kept as it was written; it must still be what its rows say.
    again = analyse(records.plan, records.rows, resamples=99).to_dict()
    for cell, kept in zip(again["cells"], summary["cells"], strict=True):
        assert all(
            cell[key] == kept[key] for key in ("label", "best_rate", "mean", "divergence_edge", "largest_stable")
        )


def test_the_times_are_what_was_stored() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "sweep_time.json").read_text(encoding="utf-8"))["rows"]
    parts: dict[str, list[Any]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    said = " ".join(PAGE.split())
    assert f"took {_spread(parts['sweep'])} of the time of the same 16 runs" in said
    for row in parts["sweep"]:
        figures = row["figures"]
        # As long as any two sweeps give the same figures, one sentence tells of all.
        assert f"({100 * figures['mean_difference']:+.1f} ± {100 * figures['standard_error']:.1f} points" in said
    assert f"With `--prune` it was {_spread(parts['pruned'])}, with the same best arm and the same rates" in said
    for whole, pruned in zip(parts["sweep"], parts["pruned"], strict=True):
        assert whole["best"] == pruned["best"]
        assert f"{pruned['stopped']} of the 12 tuning runs were stopped" in said
    (overhead,) = parts["overhead"]
    middle, least, most = overhead["ratios"]["clock"]["run"]
    rounds = len(overhead["seconds"]["clock"]["run"])
    assert f"took {middle:.2f} of the time of the bare steps ({least:.2f} to {most:.2f} over {rounds} rounds" in said


def _spread(rows: list[Any]) -> str:
    ratios = [row["ratio"] for row in rows]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} turns)"


def test_the_opening_of_a_large_page_is_what_was_stored() -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "page_opening.json").read_text(encoding="utf-8"))
    page: dict[str, Any] = stored["rows"][0]
    painted, opened, attached = (f"{page[what]['median']:.1f} s" for what in ("painted", "opened", "attached"))
    said = " ".join(PAGE.split())
    assert f"{page['page']} ({page['bytes'] / 2**20:.1f} MiB, most of it Plotly)" in said
    assert f"shows its text after {painted} and its first figure after {opened}," in said
    assert f"makes that {attached})" in said
    assert page["opened"]["median"] < stored["limit"]


def test_every_option_and_word_on_the_page_is_one_of_the_command() -> None:
    known = {option for action in parser(recipe_options(Recipe()))._actions for option in action.option_strings}
    sweeps = PAGE.split("## Reports")[0]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z._-]*[a-z]", sweeps)) <= known
    for word in re.findall(r"--arm ([^\s`]+)", sweeps):
        parse_arm(word)
    for word in re.findall(r"--lr ([^\s`]+)", sweeps):
        parse_rates(word)
    for word in re.findall(r"--axis ([^\s`]+)", sweeps):
        parse_axis(word)
    for word in re.findall(r"--search ([^\s`]+)", sweeps):
        parse_searched(word)
