from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from asymlora.papers.one_layer_claims import CLAIMS, EXPONENTS, FREEZING, RANKS, STABLE
from asymlora.papers.one_layer_points import (
    FIRST_SEEDS,
    WIDTHS,
    exponent_points,
    freezing_points,
    rank_points,
    stable_points,
)
from asymlora.reproduce.evidence import Evidence, Record

BY_KEY = {claim.key: claim for claim in CLAIMS}
EFFICIENT = {"Z_A": 0.5, "Z_B": 0.0, "delta1": 0.0, "delta2": 0.0, "delta3": 0.0, "step_B": 0.0}
ONE_SIDED = {"Z_A": 0.0, "Z_B": 0.0, "delta1": 0.0, "delta2": -1.0, "delta3": -1.0, "step_B": -1.0}
SLOPES: dict[tuple[str, float, float], dict[str, float]] = {
    ("init_a", -0.25, -0.25): {**EFFICIENT, "Z_B": 0.5},
    ("init_a", -0.5, -0.5): EFFICIENT,
    ("init_a", -1.0, -1.0): {**EFFICIENT, "Z_B": -1.0},
    ("init_b", -0.5, -0.5): {**EFFICIENT, "Z_B": 0.41},
    ("init_b", -1.0, -1.0): ONE_SIDED,
    ("init_b_small", -0.5, -0.5): EFFICIENT,
    ("init_a", -1.0, 0.0): dict.fromkeys(EFFICIENT, 0.0),
    ("init_b", -1.0, 0.0): dict.fromkeys(EFFICIENT, 0.0),
}
"""What the paper claims, and of Init[B] beyond its edge what these widths show."""


def made_exponents() -> list[Record]:
    """Records of the points as they are run, as the theory has them."""
    records: list[Record] = []
    for point in exponent_points():
        row = {name: point[name] for name in ("scheme", "rate_A", "rate_B", "coefficient", "target")}
        slopes = dict(SLOPES[row["scheme"], row["rate_A"], row["rate_B"]])
        near = row["target"] == 1.0
        flipped = 7 if near and row["coefficient"] == 1.0 else 0
        if flipped:
            slopes["delta2"] = -0.49
        records.append({**row, "slopes": slopes, "errors": dict.fromkeys(slopes, 0.01), "flipped": flipped})
    return records


def made_edges(slopes: dict[str, float], *, noise: float = 0.1) -> list[Record]:
    """Largest stable rates that are 1 at width 128 and fall by a power of the width, each seed off by a constant."""
    return [
        {"scheme": p["scheme"], "width": p["width"], "seed": seed,
         "log2_rate": slopes[p["scheme"]] * (WIDTHS.index(p["width"])) + noise * (seed - 302)}
        for p in stable_points(FIRST_SEEDS)
        for seed in FIRST_SEEDS
    ]  # fmt: skip


def made_gaps(by_frozen: dict[str, float]) -> list[Record]:
    """Gaps that are 1 at width 128 and fall by a power of the width."""
    return [
        {"scheme": p["scheme"], "frozen": p["frozen"], "coefficient": p["coefficient"], "width": n,
         "gap": (n / 128) ** by_frozen[p["frozen"]]}
        for p in freezing_points()
        for n in p["widths"]
    ]  # fmt: skip


def made_ranks(slopes: dict[tuple[str, int], float]) -> list[Record]:
    """Sizes that are a power of the rank."""
    return [
        {"scheme": p["scheme"], "by_rank": p["by_rank"], "rank": r, "Z_B": r ** slopes[p["scheme"], p["by_rank"]]}
        for p in rank_points()
        for r in p["ranks"]
    ]


EDGES = {"init_a": -0.5, "init_b": -1.0, "init_b_small": -0.5}
RANK_SLOPES = {("init_a", 0): 1.0, ("init_a", -1): 0.0, ("init_b", 0): 0.0, ("init_b", -1): -1.0}


def made() -> dict[str, Sequence[Record]]:
    """All parts as the theory has them."""
    return {
        EXPONENTS: made_exponents(),
        STABLE: made_edges(EDGES),
        FREEZING: made_gaps({"A": 0.0, "B": -1.0}),
        RANKS: made_ranks(RANK_SLOPES),
    }


def verdict(key: str, **changed: Sequence[Record]) -> str:
    """Judge one claim where some parts are other than the theory has them."""
    return BY_KEY[key].finding(Evidence(measured={**made(), **changed})).verdict


@pytest.mark.parametrize("key", list(BY_KEY))
def test_each_claim_holds_where_the_records_are_those_of_the_theory(key: str) -> None:
    assert verdict(key) == "holds"


@pytest.mark.parametrize("key", list(BY_KEY))
def test_without_records_it_is_undecided(key: str) -> None:
    assert BY_KEY[key].finding(Evidence()).verdict == "undecided"


@pytest.mark.parametrize(
    ("key", "row", "name", "slope"),
    [
        ("init_a_exponents", ("init_a", -0.5, -0.5), "delta3", -0.2),
        ("init_b_exponents", ("init_b", -1.0, -1.0), "step_B", -0.8),
        ("off_the_edge", ("init_a", -0.25, -0.25), "Z_B", 0.2),
        ("off_the_edge", ("init_b", -0.5, -0.5), "Z_B", 0.1),
        ("variance_decides", ("init_b_small", -0.5, -0.5), "Z_A", 0.0),
        ("loraplus_rates", ("init_b", -1.0, 0.0), "delta2", -1.0),
    ],
)
def test_a_slope_off_by_more_than_the_tolerance_fails_and_one_that_is_not_known_well_is_undecided(
    key: str, row: tuple[str, float, float], name: str, slope: float
) -> None:
    def changed(error: float) -> list[Record]:
        return [
            {**r, "slopes": {**r["slopes"], name: slope}, "errors": {**r["errors"], name: error}}
            if (r["scheme"], r["rate_A"], r["rate_B"]) == row and r["target"] > 1
            else r
            for r in made_exponents()
        ]

    assert verdict(key, exponents=changed(0.001)) == "fails"
    assert verdict(key, exponents=changed(2.0)) == "undecided"


def test_a_part_that_is_exactly_zero_has_not_the_claimed_slope() -> None:
    records = [
        {**r, "slopes": {name: slope for name, slope in r["slopes"].items() if name != "delta3"}}
        for r in made_exponents()
    ]
    assert verdict("init_a_exponents", exponents=records) == "fails"


@pytest.mark.parametrize("wrong", [{"flipped": 0}, {"slopes": {"delta2": 0.0, "delta1": 0.0}}])
def test_the_limit_of_near_targets_fails_where_nothing_flips_or_nothing_breaks(wrong: dict[str, Any]) -> None:
    records = [{**r, **wrong} if r["flipped"] else r for r in made_exponents()]
    assert verdict("sign_flips", exponents=records) == "fails"


def test_the_slopes_of_stable_rates_are_judged_by_their_spread_over_seeds() -> None:
    for key in ("stable_rate_slopes", "variance_decides_rate"):
        assert verdict(key, stable_rates=made_edges(dict.fromkeys(EDGES, -0.75))) == "fails"
    # Seeds whose slopes differ by more than the tolerance leave it open.
    spread = [{**r, "log2_rate": r["log2_rate"] * (1 + 0.3 * (r["seed"] - 302.5))} for r in made_edges(EDGES, noise=0)]
    assert verdict("stable_rate_slopes", stable_rates=spread) == "undecided"


def test_the_larger_stable_rate_is_tested_at_the_largest_width() -> None:
    finding = BY_KEY["larger_stable_rate"].finding(Evidence(measured=made()))
    # Six octaves of width: three octaves between n^-1/2 and n^-1.
    assert finding.estimate == pytest.approx(3.0)
    assert (finding.p, finding.pairs) == (0.03125, 6)
    assert BY_KEY["larger_stable_rate"].runs_until_decided
    assert verdict("larger_stable_rate", stable_rates=made_edges({**EDGES, "init_a": -1.5})) == "fails"
    few = [record for record in made_edges(EDGES) if record["seed"] < 305]
    assert verdict("larger_stable_rate", stable_rates=few) == "undecided"


def test_further_seeds_of_the_second_look_are_paired_too() -> None:
    more = [{**record, "seed": record["seed"] + 6} for record in made_edges(EDGES) if record["seed"] < 304]
    finding = BY_KEY["larger_stable_rate"].finding(Evidence(measured={STABLE: made_edges(EDGES) + more}))
    assert finding.pairs == 10
    assert finding.p == 2 / 2**10


def test_freezing_fails_on_the_other_side() -> None:
    assert verdict("undertrained_b", freezing=made_gaps({"A": 0.0, "B": 0.0})) == "fails"
    assert verdict("trained_a", freezing=made_gaps({"A": -1.0, "B": -1.0})) == "fails"
    small = [{**record, "gap": 0.4} for record in made_gaps({"A": 0.0, "B": -1.0})]
    assert verdict("trained_a", freezing=small) == "fails"


@pytest.mark.parametrize("arm", list(RANK_SLOPES))
def test_every_slope_in_the_rank_is_asked_for(arm: tuple[str, int]) -> None:
    assert verdict("ranks", ranks=made_ranks(RANK_SLOPES | {arm: 0.5})) == "fails"
