"""What claims read of sweeps over texts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asymlora.papers.hayou_settings import INIT_ARMS
from asymlora.papers.text_evidence import (
    CHANCES,
    TREC6_CHANCE,
    by_set,
    counted_sets,
    has_learnt_its_set,
    label_entropy,
    main_stable,
    main_sweep,
    mean_over,
    rates_figure,
    stable_edges,
    tuning_rows,
)
from asymlora.papers.text_sweeps import SMALL_SETS, TREC6_SET, TextSet, small_plan
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, SweepEvidence
from papers.made_sweeps import LOST, Behaviour, made
from sweep.made_rows import row

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared research data are not beside this checkout")
PLAN = small_plan(TREC6_SET, Path("nowhere"), arms=INIT_ARMS, rates=(1e-3, 1e-2, 1e-1), seeds=(6, 6))


def _evidence(a: Behaviour, b: Behaviour) -> Evidence:
    return Evidence(sweeps={"trec6": made(PLAN, {"init_a": a, "init_b": b})})


def test_the_entropy_of_equal_labels_is_the_logarithm_of_their_number() -> None:
    assert label_entropy((5, 5, 5)) == pytest.approx(math.log(3), abs=1e-12)
    assert label_entropy((3, 1)) == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-12)


@pytest.mark.parametrize(
    ("loss", "status", "stable"),
    [
        (0.89 * TREC6_CHANCE, "finished", True),
        # One who knows how frequent the labels are is below ln 6, and has learnt nothing of the texts.
        (0.91 * TREC6_CHANCE, "finished", False),
        (0.1, "diverged", False),
    ],
)
def test_a_run_is_stable_where_it_learnt_more_than_how_frequent_labels_are(
    loss: float, status: Any, stable: bool
) -> None:
    run = row("init_a", lr=1e-3, seed=0, status=status, losses={"step": [60], "loss": [loss]})
    assert main_stable(_evidence(Behaviour(), Behaviour()))(run) is stable


def test_at_the_papers_scale_rates_are_those_of_mnli_and_chance_that_of_three_labels() -> None:
    trec6 = _evidence(Behaviour(), Behaviour()).sweep("trec6")
    evidence = Evidence(sweeps={"mnli": replace(trec6, plan={}), "sst2": trec6})
    assert main_sweep(evidence).plan == {}
    run = row("init_a", lr=1e-3, seed=0, losses={"step": [60], "loss": [1.0]})
    assert not main_stable(evidence)(run)
    assert main_stable(Evidence(sweeps={"trec6": trec6}))(run)


def test_part_of_the_papers_scale_is_not_taken_for_the_small_one() -> None:
    with pytest.raises(MissingEvidenceError, match="mnli"):
        main_sweep(Evidence(sweeps={"qnli": SweepEvidence(plan={}, rows=[])}))


def test_edges_tell_the_seeds_at_which_the_grid_ended_before_them() -> None:
    edges = stable_edges(_evidence(Behaviour(), Behaviour(lost_from=1e-1)), "init_a", "init_b")
    assert edges.first == dict.fromkeys(range(200, 206), math.log2(1e-1))
    assert edges.second == dict.fromkeys(range(200, 206), math.log2(1e-2))
    assert (edges.open_first, edges.open_second) == (tuple(range(200, 206)), ())
    # Whatever the first one's edge is, it lies above the second one's; how far is not known.
    assert edges.comparable() == (edges.first, edges.second)
    assert edges.known() == ({}, {})


def test_edges_that_neither_arm_reached_are_compared_with_nothing() -> None:
    edges = stable_edges(_evidence(Behaviour(), Behaviour()), "init_a", "init_b")
    first, second = edges.comparable()
    assert (first, second) == ({}, {})
    assert first.planned == second.planned == tuple(range(200, 206))


def test_edges_that_were_found_need_no_sentence() -> None:
    both = Behaviour(lost_from=1e-1)
    assert stable_edges(_evidence(both, both), "init_a", "init_b").sentence == ""


@needs_shared
@pytest.mark.parametrize("text_set", SMALL_SETS, ids=lambda each: each.name)
def test_chances_are_the_entropies_of_the_training_labels(text_set: TextSet) -> None:
    told = json.loads((SHARED / text_set.data.place / "dataset.json").read_text(encoding="utf-8"))
    assert label_entropy(tuple(told["splits"]["train"]["label_counts"].values())) == CHANCES[text_set.name]


@pytest.mark.parametrize(("lost_from", "learnt"), [(math.inf, True), (1e-2, False)])
def test_an_arm_has_learnt_where_its_runs_at_the_chosen_rate_have(lost_from: float, learnt: bool) -> None:
    evidence = _evidence(Behaviour(best=1e-2, lost_from=lost_from), Behaviour())
    assert has_learnt_its_set(evidence.sweep("trec6"), "init_a", TREC6_CHANCE) is learnt
    assert has_learnt_its_set(evidence.sweep("trec6"), "init_b", TREC6_CHANCE)


def test_one_tuning_run_that_learnt_nothing_is_enough() -> None:
    sweep = _evidence(Behaviour(best=1e-2), Behaviour()).sweep("trec6")
    lost = {"step": [10, 60], "loss": [LOST, LOST]}
    rows = [replace(run, losses=lost) if (run.arm, run.seed) == ("init_a", 203) else run for run in sweep.rows]
    assert not has_learnt_its_set(replace(sweep, rows=rows), "init_a", TREC6_CHANCE)


def test_a_set_counts_where_one_arm_has_learnt_it_or_it_has_numbers() -> None:
    lost = Behaviour(lost_from=1e-3)
    sweeps = {
        "trec6": _evidence(lost, Behaviour()).sweep("trec6"),
        "sst2": _evidence(lost, lost).sweep("trec6"),
        "stsb": _evidence(lost, lost).sweep("trec6"),
    }
    assert counted_sets(sweeps, ("init_a", "init_b")) == ["trec6", "stsb"]
    assert counted_sets(sweeps, ("init_a",)) == ["stsb"]


def test_a_mean_over_sets_has_the_seeds_of_all_of_them_and_knows_the_others() -> None:
    sweep = _evidence(Behaviour(top=0.8), Behaviour()).sweep("trec6")
    fewer = replace(sweep, rows=[run for run in sweep.rows if (run.phase, run.seed) != ("closing", 2)])
    mean = mean_over({"trec6": sweep, "sst2": fewer}, "init_a")
    assert mean == {seed: pytest.approx(0.8 + 0.01 * (seed % 3)) for seed in (0, 1, 3, 4, 5)}
    assert mean.planned == (0, 1, 2, 3, 4, 5)


def test_differences_are_told_set_by_set_and_sets_without_closing_runs_are_named() -> None:
    sweep = _evidence(Behaviour(top=0.8), Behaviour()).sweep("trec6")
    tuned = replace(sweep, rows=[run for run in sweep.rows if run.phase == "tuning"])
    said = by_set({"a": sweep, "b": tuned}, {"a": "One", "b": "Two"}, first="init_a", second="init_b")
    assert said == "By set: One -10.00 points (-10.00 points to -10.00 points); Two not known."


def test_tuning_rows_are_those_of_one_arm_and_rate() -> None:
    evidence = _evidence(Behaviour(), Behaviour())
    found = tuning_rows(evidence.sweep("trec6"), "init_b", 0.0100001)
    assert set(found) == set(range(200, 206))
    assert {(run.arm, run.lr, run.phase) for run in found.values()} == {("init_b", 1e-2, "tuning")}
    with pytest.raises(MissingEvidenceError, match=r"init_b at the rate 0\.02"):
        tuning_rows(evidence.sweep("trec6"), "init_b", 0.02)


def test_the_figure_marks_edges_by_what_was_learnt_and_only_where_they_were_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "asymlora.report.reproduction_figures.metric_against_rate",
        lambda panels, **words: drawn.update(panels=panels, **words),
    )
    evidence = _evidence(Behaviour(lost_from=1e-1), Behaviour())
    sweeps = {**evidence.sweeps, "sst2": evidence.sweep("trec6")}
    names = {"init_a": "Init[A]", "init_b": "Init[B]"}
    rates_figure(Evidence(sweeps=sweeps), {"trec6": "TREC-6", "sst2": "SST-2"}, names=names, title="Rates")
    first, second = drawn["panels"]
    assert (first.title, second.title, drawn["title"]) == ("TREC-6", "SST-2", "Rates")
    assert first.edge == {"Init[A]": pytest.approx(1e-2)}
    assert second.edge == {}
