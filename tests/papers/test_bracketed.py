from __future__ import annotations

import pytest

from asymlora.papers.bracketed import open_arms, undecided_at_ends
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import MissingEvidenceError, SweepEvidence
from sweep.made_rows import plan, tuning

NAMES = {"init_a": "Init[A]", "init_b": "Init[B]"}
SWEEP = SweepEvidence(
    plan=plan(list(NAMES)),
    rows=[
        *tuning("init_a", {1e-4: 0.7, 1e-3: 0.9, 1e-2: 0.6}),
        *tuning("init_b", {1e-4: 0.9, 1e-3: 0.8, 1e-2: 0.6}),
    ],
)


def test_the_arms_whose_best_rate_is_at_an_end_are_named() -> None:
    assert open_arms(SWEEP, NAMES, where=" on TREC-6") == ["Init[B] on TREC-6"]
    assert open_arms(SWEEP, {"init_a": "Init[A]"}) == []
    with pytest.raises(MissingEvidenceError, match="init_b"):
        open_arms(SweepEvidence(plan=SWEEP.plan, rows=SWEEP.rows[:6]), NAMES)


def test_a_finding_loses_its_verdict_and_keeps_its_numbers() -> None:
    found = Finding(verdict="holds", ours="Ahead by 2.", estimate=2.0, p=0.03125, pairs=6)
    opened = undecided_at_ends(found, ["Init[A]", "Init[B]"])
    assert (opened.verdict, opened.estimate, opened.pairs) == ("undecided", 2.0, 6)
    assert opened.ours == (
        "Ahead by 2. Undecided, as the best rate of Init[A] and of Init[B] is the first or the last one tried."
    )
    assert undecided_at_ends(found, []) is found
