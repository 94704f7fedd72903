"""Claims on advised recipes: what made-up records make of each."""

from __future__ import annotations

from typing import Any

import pytest

from asymlora.papers.advice_claims import CLAIMS
from asymlora.papers.advice_runs import ADVISED
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence
from papers.made_advice import advised, evidence, records
from papers.made_sweeps import Behaviour


def _found(key: str, **given: Any) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence(**given))


@pytest.mark.parametrize("key", ["beats_lora", "beats_b_only", "beats_own_default"])
@pytest.mark.parametrize(("rival", "verdict"), [(0.8, "holds"), (0.9, "fails"), (0.905, "fails"), (0.95, "fails")])
def test_better_than_a_default_is_a_difference_beyond_a_point(key: str, rival: float, verdict: str) -> None:
    found = _found(key, plain=rival, own=rival)
    assert (found.verdict, found.estimate, found.pairs) == (verdict, pytest.approx(0.9 - rival), 6)


def test_each_default_is_compared_by_itself() -> None:
    assert _found("beats_lora", plain=0.95, own=0.8).verdict == "fails"
    assert _found("beats_own_default", plain=0.95, own=0.8).verdict == "holds"


def test_what_is_better_at_some_seeds_and_worse_at_others_is_not_decided() -> None:
    uneven = [{**r, "accuracy": r["accuracy"] + (0.06 if r["seed"] % 2 else -0.05)} for r in records()]
    assert _found("beats_lora", plain=0.895, measured=uneven).verdict == "undecided"


def test_the_cost_is_counted_and_what_it_took_away_is_told() -> None:
    told = [{**r, "accuracy": r["accuracy"] - (0.2 if r["cost_counted"] else 0)} for r in records()]
    found = _found("beats_lora", measured=told)
    assert (found.verdict, found.estimate) == ("fails", pytest.approx(-0.1))
    assert "By set: TREC-6 -10.00 points; SST-2 (500 rows) -10.00 points." in found.ours
    assert "Were the advice free: TREC-6 +10.00 points; SST-2 (500 rows) +10.00 points." in found.ours


def test_a_run_that_diverged_is_left_out_and_named() -> None:
    lost = [advised("trec6", r["seed"], cost_counted=r["cost_counted"], accuracy=None, status="diverged")
            if (r["set"], r["seed"]) == ("trec6", 3) else r for r in records()]  # fmt: skip
    found = _found("beats_lora", measured=lost)
    assert (found.verdict, found.pairs) == ("undecided", 5)
    assert "1 seed (3)" in found.ours


@pytest.mark.parametrize("arm", ["lora", "b_only"])
@pytest.mark.parametrize(("top", "verdict"), [(0.9, "holds"), (0.91, "holds"), (0.93, "fails")])
def test_as_good_as_tuned_is_at_most_a_point_and_a_half_behind(arm: str, top: float, verdict: str) -> None:
    name = {"lora": "both", "b_only": "b_only"}[arm]
    found = _found(f"as_good_as_tuned_{arm}", tuned={name: Behaviour(best=3.16e-3, top=top)})
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(0.9 - top, abs=1e-6))


def test_a_best_rate_at_an_end_leaves_it_open() -> None:
    found = _found("as_good_as_tuned_lora", tuned={"both": Behaviour(best=1e-5)})
    assert found.verdict == "undecided"
    assert "the best rate of LoRA, rank 8 is the first or the last one tried" in found.ours


@pytest.mark.parametrize(("lr", "verdict"), [(1.6e-3, "holds"), (6e-3, "holds"), (3e-4, "fails"), (3e-2, "fails")])
def test_a_rate_is_near_within_two_octaves(lr: float, verdict: str) -> None:
    assert _found("rate_near_tuned", measured=records(lr=lr)).verdict == verdict


def test_time_is_held_against_the_counted_steps() -> None:
    # 106 counted steps of 0.2 s.
    for seconds, verdict in ((20.0, "holds"), (26.0, "holds"), (30.0, "fails")):
        found = _found("cost_in_time", measured=records(advice_seconds=seconds))
        assert (found.verdict, found.estimate) == (verdict, pytest.approx(seconds / 21.2))
        assert "Counted steps: TREC-6 106 to 106; SST-2 (500 rows) 106 to 106." in found.ours


def test_one_layer_of_another_factor_is_not_every_layer() -> None:
    assert _found("what_is_advised").verdict == "holds"
    found = _found("what_is_advised", measured=records(sites_B=27, sites_A=9, per_site_ranks=True))
    assert found.verdict == "fails"
    assert "TREC-6: B alone at 75% of the layers, rates 1e-3 to 1e-3, ranks by layer at 6 of 6 seeds" in found.ours


def test_nothing_is_judged_without_records() -> None:
    assert {claim.finding(Evidence()).ours for claim in CLAIMS} == {f"Not run yet: {ADVISED}."}
    only_small = Evidence(measured={ADVISED: [advised("sst2_500", 0)]})
    verdicts = {claim.key: claim.finding(only_small).verdict for claim in CLAIMS}
    assert {key for key, verdict in verdicts.items() if verdict != "undecided"} == {"what_is_advised"}
