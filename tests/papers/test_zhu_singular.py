"""Claims on singular vectors as the frozen A: the parts, and what made-up records make of each claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asymlora.papers.singular_points import RANDOM, RELEASED, TOP
from asymlora.papers.zhu_singular import ARTEFACT, CLAIMS, SHARED_RATE, paper_parts, small_parts
from asymlora.reproduce.artefact import MeasuredPart, SweepPart
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.forecasting import part_runs
from asymlora.sweep.grid import cells
from papers.made_sweeps import Behaviour, made

ROOT = Path("nowhere")
SEEDS = range(6)


def _sweep(scale: str = "small") -> SweepPart:
    parts = small_parts(ROOT) if scale == "small" else paper_parts(ROOT)
    (sweep,) = [part for part in parts if isinstance(part, SweepPart)]
    return sweep


def _found(key: str, evidence: Evidence) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence)


def _similar(start: str, factor: str, over_chance: float, *, least: float = 0.01, spread: float = 0.01) -> list[Any]:
    return [
        {"start": start, "factor": factor, "seed": seed, "layers": 36, "similarity": 0.02, "least": least,
         "over_chance": over_chance + spread * (seed % 2), "not_orthonormal": 1e-7}
        for seed in SEEDS
    ]  # fmt: skip


def _spaces(right: float, left: float = 1.0, *, top: float = 1.0) -> Evidence:
    rows = [*_similar(RELEASED, "A", right), *_similar(RELEASED, "B", left)]
    for factor in "AB":
        rows += [*_similar(RANDOM, factor, 0.98), *_similar(TOP, factor, 48.0, least=top)]
    return Evidence(measured={"similarity": rows})


def _trained(released: float, *, lost: tuple[int, ...] = (), top: float = 0.9) -> Evidence:
    rows = [
        {"start": start, "seed": seed, "rate": SHARED_RATE,
         "value": None if start == RELEASED and seed in lost else value + 0.002 * (seed % 3)}
        for start, value in ((TOP, top), (RELEASED, released), (RANDOM, 0.9))
        for seed in SEEDS
    ]  # fmt: skip
    return Evidence(measured={"released": rows})


@pytest.mark.parametrize(("top", "verdict"), [(0.905, "holds"), (0.94, "fails"), (0.86, "fails")])
def test_the_weights_own_vectors_are_held_against_the_released_ones(top: float, verdict: str) -> None:
    found = _found("true_as_released", _trained(0.9, top=top))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(top - 0.9))
    assert "B-only over V of W0 less over the released code's A" in found.ours


def test_both_scales_have_the_parts_that_the_claims_read() -> None:
    for parts, name in ((small_parts(ROOT), "trec6"), (paper_parts(ROOT), "rte")):
        assert [part.name for part in parts] == ["similarity", name, "released"]
    assert {name for claim in CLAIMS for name in claim.parts} == {"similarity", "trec6", "rte", "released"}


def test_the_small_scale_is_76_runs_at_most_and_a_few_decompositions() -> None:
    assert [(part.name, part_runs(part).first, part_runs(part).both) for part in small_parts(ROOT)] == [
        ("similarity", 6, None),
        ("trec6", 2 * (4 * 2 + 12), None),
        ("released", 36, None),
    ]


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_the_arms_differ_in_the_start_of_the_frozen_factor_alone(scale: str) -> None:
    recipes = {cell.label: cell.recipe.to_dict() for cell in cells(_sweep(scale).plan)}
    assert recipes["b_V"]["adapter"]["A"].pop("init") == "top_singular"
    assert recipes["b_only"]["adapter"]["A"].pop("init") == "orthonormal"
    assert recipes["b_V"] == recipes["b_only"]


def test_points_hold_what_is_measured_and_no_place_of_this_machine() -> None:
    for parts in (small_parts(ROOT), small_parts(Path("elsewhere"))):
        spaces, _, trained = parts
        assert isinstance(spaces, MeasuredPart)
        assert isinstance(trained, MeasuredPart)
        assert "nowhere" not in str((spaces.points, trained.points))
        assert {point["rate"] for point in trained.points} == {SHARED_RATE}
        assert [point["seed"] for point in trained.points[::3]] == list(range(12))
        assert len(spaces.points) == 6


@pytest.mark.parametrize(("top", "verdict"), [(0.905, "holds"), (0.94, "fails"), (0.86, "fails")])
def test_an_informed_start_is_neither_better_nor_worse_within_the_margin(top: float, verdict: str) -> None:
    sweep = made(_sweep().plan, {"b_only": Behaviour(), "b_V": Behaviour(top=top)})
    found = _found("informed_as_random", Evidence(sweeps={"trec6": sweep}))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(top - 0.9))
    assert "b_V: best rate 1e-2" in found.ours


def test_a_best_rate_at_an_end_leaves_the_informed_start_open_at_either_scale() -> None:
    sweep = made(_sweep("paper").plan, {"b_only": Behaviour(best=2e-4), "b_V": Behaviour(best=1.0)})
    found = _found("informed_as_random", Evidence(sweeps={"rte": sweep}))
    assert found.verdict == "undecided"
    assert "the best rate of B-only over V of W0 is the first or the last one tried" in found.ours


@pytest.mark.parametrize(("top", "verdict"), [(1 - 1e-9, "holds"), (1 - 1e-5, "fails")])
def test_one_layer_off_its_weights_space_is_enough(top: float, verdict: str) -> None:
    assert _found("informed_is_of_w0", _spaces(1.0, top=top)).verdict == verdict


@pytest.mark.parametrize(
    ("right", "left", "verdict"),
    [(1.0, 0.99, "holds"), (1.3, 1.0, "fails"), (1.0, 30.0, "fails"), (1.09, 1.0, "undecided")],
)
def test_the_released_draw_is_at_chance_where_both_factors_are(right: float, left: float, verdict: str) -> None:
    found = _found("released_at_chance", _spaces(right, left))
    assert found.verdict == verdict
    assert "Of a random frame it is 0.980 to 0.990. Off orthonormal by 1.0e-07 at most." in found.ours


@pytest.mark.parametrize(("value", "verdict"), [(0.905, "holds"), (0.95, "fails")])
def test_the_released_draw_is_held_against_a_random_one_at_one_rate(value: float, verdict: str) -> None:
    found = _found("released_as_random", _trained(value))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(value - 0.9))
    assert "both at 3.16e-3" in found.ours


def test_a_run_that_diverged_takes_its_pair_with_it() -> None:
    found = _found("released_as_random", _trained(0.9, lost=(4,)))
    assert (found.verdict, found.pairs) == ("undecided", 5)
    assert "Left out for want of a finite value: 1 seed (4)." in found.ours


def test_nothing_is_judged_without_records() -> None:
    for claim in CLAIMS:
        assert claim.finding(Evidence()).ours.startswith("Not run yet")
    with pytest.raises(MissingEvidenceError, match="trec6, rte"):
        ARTEFACT.figure(Evidence())


def test_the_figure_names_both_starts() -> None:
    sweep = made(_sweep().plan, {"b_only": Behaviour(), "b_V": Behaviour()})
    drawn = ARTEFACT.figure(Evidence(sweeps={"trec6": sweep})).plotly
    assert {"B-only over a random A", "B-only over V of W0"} <= {trace.name for trace in drawn.data}


def test_each_setting_is_told_once_and_in_full() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(all(vars(setting).values()) for setting in scale.settings)
        assert len({setting.what for setting in scale.settings}) == len(scale.settings)
