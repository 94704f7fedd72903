from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from asymlora.report.reproduction_tables import (
    agreement_table,
    arms_tables,
    claim_list,
    list_table,
    runs_table,
    verdict_list,
)


def _shown(table: Any, *, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def _words(table: Any, **options: Any) -> str:
    return " ".join(_shown(table, **options).split())


def test_the_list_says_what_each_takes_and_how_far_it_is() -> None:
    row = {
        "name": "hayou_toy", "title": "Rates [and] widths", "minutes": 12.0, "memory_gib": 0.8,
        "status": "3 of 9 runs", "verdicts": {"holds": 2, "fails": 1, "undecided": 0, "not testable here": 0},
    }  # fmt: skip
    table = list_table([row, {**row, "name": "hayou_lm", "minutes": None, "verdicts": None}])
    said = _words(table)
    assert "hayou_toy 12 0.8 3 of 9 runs 2 holds, 1 fails Rates [and] widths" in said
    assert "hayou_lm - 0.8 3 of 9 runs - Rates [and] widths" in said
    # In eighty columns, each name, its status and its counts stand on one line.
    assert any("hayou_toy" in line and "2 holds, 1 fails" in line for line in _shown(table, width=80).splitlines())


def test_runs_are_added_up_where_there_are_several_parts() -> None:
    swept = {"name": "trec6", "kind": "sweep", "arms": ("init_a", "init_b"), "first": 96, "both": 160}
    toy = {"name": "toy", "kind": "measured", "arms": (), "first": 4, "both": None}
    said = _words(runs_table([swept, toy]))
    assert "trec6 sweep init_a, init_b 96 160" in said
    assert "toy measured - 4 -" in said
    assert "all 100 164" in said
    assert "all" not in _words(runs_table([toy]))


def test_costs_of_arms_stand_beside_what_the_paper_prints() -> None:
    arm = {
        "part": "mnli", "arm": "init_a", "rank": 8, "values": 786_432, "printed": {"text": "0.8 M"},
        "agreement": "equal", "runs": 30, "steps": 1000,
        "flops": 1.234e18, "file_bytes": 3_150_000, "peak_bytes": 5_000_000_000,
    }  # fmt: skip
    unknown = dict.fromkeys(("values", "printed", "agreement", "flops", "file_bytes", "peak_bytes"))
    said = _words(arms_tables([arm, {**arm, "arm": "full", **unknown}]))
    assert "mnli init_a 8 786,432 0.8 M, equal" in said
    assert "mnli init_a 30 1,000 1.2e+18 3.15 MB 5 GB" in said
    assert "mnli full 8 - - " in said
    assert "mnli full 30 1,000 - - -" in said


def test_a_verdict_stands_beside_claim_and_numbers() -> None:
    row = {"says": "Init[A] is better.", "paper": "1.22 points", "ours": "+0.8 points [0.1, 1.5]", "verdict": "holds"}
    said = _words(verdict_list([row, {**row, "paper": "", "verdict": "undecided"}], title="Claims"))
    assert "holds Init[A] is better. paper: 1.22 points here: +0.8 points [0.1, 1.5]" in said
    assert "undecided Init[A] is better. here: +0.8 points [0.1, 1.5]" in said


def test_before_any_run_a_claim_stands_with_its_test() -> None:
    row = {"kind": "abstract", "says": "Init[A] is better.", "paper": "1.22 points", "test": "Paired [by] seed."}
    said = _words(claim_list([row, {**row, "kind": "question", "paper": ""}], title="Claims"))
    assert "abstract Init[A] is better. paper: 1.22 points test: Paired [by] seed." in said
    assert "question Init[A] is better. test: Paired [by] seed." in said


def test_verdicts_are_whole_words_in_eighty_columns() -> None:
    row = {
        "says": "The two starts do not share one optimal learning rate. " * 3, "paper": "ratio 8",
        "ours": "Init[A] 2.3 octaves above Init[B], 95 % interval 1.1 to 3.4. " * 2, "verdict": "not testable here",
    }  # fmt: skip
    assert "not testable here" in _shown(verdict_list([row], title="Claims"), width=80)


def test_agreement_shows_both_runs() -> None:
    kept = {"verdict": "holds", "estimate": 1.2, "interval": [0.4, 2.0]}
    new = {"verdict": "holds", "estimate": 2.5, "interval": None}
    rows = [
        {"key": "better", "kept": kept, "new": new, "agreement": "outside"},
        {"key": "turned", "kept": {**kept, "verdict": "fails"}, "new": new, "agreement": "another verdict"},
        {"key": "new_one", "kept": None, "new": {**new, "estimate": None}, "agreement": "not compared"},
    ]
    said = _words(agreement_table(rows, title="Against"))
    assert "better 1.2 0.4 to 2 2.5 holds outside" in said
    assert "new_one - - - holds not compared" in said
    assert "2.5 fails, now holds another verdict" in said
