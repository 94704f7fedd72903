from __future__ import annotations

from dataclasses import replace

import pytest

from asymlora.papers.vision_claims import (
    CLAIMS,
    PAPER_SETS,
    by_domain,
    domains_of,
    elsewhere,
    gap_elsewhere,
    gap_own,
    own,
)
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence
from papers.made_domains import Reached, evidence

OF = {claim.key: claim for claim in CLAIMS}


def _found(key: str, *names: str, **arms: Reached) -> Finding:
    return OF[key].finding(evidence(*(names or ("pacs",)), arms=arms))


def test_values_are_means_over_the_other_domains_and_gaps_to_trained_rows() -> None:
    records = evidence("pacs", arms={"b_only": Reached(trained=1.0, own=0.75, near=0.5, far=0.25)})
    found = {value.__name__: value(records, "pacs", "b_only")[0] for value in (own, elsewhere, gap_own, gap_elsewhere)}
    assert found == pytest.approx({"own": 0.75, "elsewhere": 0.375, "gap_own": 0.25, "gap_elsewhere": 0.625})
    assert {name: values[0] for name, values in by_domain(records, "pacs", "b_only").items()} == pytest.approx(
        {"near": 0.5, "far": 0.25}
    )


@pytest.mark.parametrize(
    ("key", "b_only", "verdict"),
    [
        ("pacs_row", Reached(near=0.5), "holds"),
        ("pacs_row", Reached(near=0.7), "fails"),
        ("smaller_gap_own", Reached(trained=0.85), "holds"),
        ("smaller_gap_own", Reached(own=0.7), "fails"),
        ("smaller_gap_elsewhere", Reached(far=0.5), "holds"),
        ("smaller_gap_elsewhere", Reached(far=0.3), "fails"),
        ("nearly_as_well", Reached(own=0.795), "holds"),
        ("nearly_as_well", Reached(own=0.75), "fails"),
        ("nearly_as_well", Reached(own=0.9), "holds"),
        ("b_over_a_own", Reached(own=0.9), "holds"),
        ("b_over_a_own", Reached(own=0.7), "fails"),
        ("b_over_a_elsewhere", Reached(far=0.5), "holds"),
        ("b_over_a_elsewhere", Reached(far=0.3), "fails"),
    ],
)
def test_b_only_is_held_against_each_other_adapter_by_six_seeds(key: str, b_only: Reached, verdict: str) -> None:
    found = _found(key, b_only=b_only)
    assert (found.verdict, found.pairs) == (verdict, 6)
    assert "b_only: best rate" in found.ours


def test_a_best_rate_at_an_end_of_the_grid_leaves_a_claim_open() -> None:
    records = evidence("pacs", best={"b_only": 1e-4}, arms={"b_only": Reached(near=0.7)})
    found = OF["pacs_row"].finding(records)
    assert found.verdict == "undecided"
    assert "the best rate of B-only is the first or the last one tried" in found.ours


def test_at_the_papers_scale_it_is_the_mean_over_all_four_sets() -> None:
    arms = {"b_only": Reached(near=0.7)}
    assert _found("better_elsewhere", **arms).verdict == "not testable here"  # of PACS the paper says the opposite
    found = _found("better_elsewhere", *PAPER_SETS, **arms)
    assert found.verdict == "holds"
    assert "TerraIncognita, b_only: best rate" in found.ours
    lacking = OF["better_elsewhere"].finding(evidence(*list(PAPER_SETS)[:3], arms=arms))
    assert (lacking.verdict, lacking.ours) == ("undecided", "Not run yet: terra_incognita_domains.")


def test_a_seed_that_was_lost_is_named() -> None:
    whole = evidence("pacs", arms={"b_only": Reached(near=0.7)})
    part = domains_of("pacs")
    left = [r for r in whole.records(part) if (r["arm"], r["seed"]) != ("b_only", 4)]
    found = OF["pacs_row"].finding(replace(whole, measured={part: left}))
    assert (found.verdict, found.pairs) == ("undecided", 5)
    assert "1 seed (4)" in found.ours


def test_the_row_of_pacs_is_told_by_domain_with_the_sign_of_the_paper() -> None:
    found = _found("pacs_row", both=Reached(near=0.8))
    assert (found.verdict, found.p, found.pairs) == ("holds", 0.03125, 6)
    assert found.estimate == pytest.approx(0.1 * 1.025)
    assert "By domain: far 0.00 points, near +20.50 points." in found.ours


@pytest.mark.parametrize(
    ("key", "arms", "estimate"),
    [
        ("doubled_rank", {"b_only_2r": Reached(near=0.7)}, 0.05),
        ("full_finetuning", {"full": Reached(far=0.2)}, 0.1),
    ],
)
def test_rows_of_three_seeds_are_described_at_these(key: str, arms: dict[str, Reached], estimate: float) -> None:
    found = _found(key, **arms)
    assert (found.verdict, found.pairs, found.p) == ("undecided", 3, None)
    assert found.estimate == pytest.approx(1.01 * estimate)
    assert "Left out" not in found.ours


def test_the_table_tells_every_arm() -> None:
    found = _found("linear_probe", both=Reached(own=0.75), head=Reached(trained=0.5, own=0.5))
    assert found.verdict == "undecided"
    assert "Gap to the own domain: LoRA 20.50 points (6 seeds)" in found.ours
    assert "head alone 0.00 points (3 seeds)" in found.ours


def test_nothing_is_judged_without_records() -> None:
    verdicts = {claim.key: claim.finding(Evidence()).verdict for claim in CLAIMS}
    assert verdicts.pop("better_elsewhere") == "not testable here"
    assert set(verdicts.values()) == {"undecided"}
    assert len(OF) == len(CLAIMS) == 10
