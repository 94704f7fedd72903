from __future__ import annotations

import json
from dataclasses import replace

import pytest

from asymlora.reproduce.claim import VERDICTS, Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError

FOUND = Finding(
    verdict="fails", ours="-0.5 points", estimate=-0.5, interval=(-0.9, -0.1), p=0.03125, pairs=6, detectable=0.4
)


def _judge(evidence: Evidence) -> Finding:
    evidence.records("toy")
    return FOUND


CLAIM = Claim(
    key="better", says="It is better.", kind="abstract", source="a paper", test="Sign flips.", parts=("toy",),
    judge=_judge,
)  # fmt: skip


@pytest.mark.parametrize(
    "found", [FOUND, Finding(verdict="undecided", ours="Nothing."), replace(FOUND, seeds_needed=9)]
)
def test_a_finding_comes_back_from_plain_values(found: Finding) -> None:
    assert Finding.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_claim_whose_records_are_missing_is_undecided_and_says_which() -> None:
    assert CLAIM.finding(Evidence()) == Finding(verdict="undecided", ours="Not run yet: toy.")
    assert CLAIM.finding(Evidence(measured={"toy": [{"slope": 0.5}]})) == FOUND


def test_records_that_tell_nothing_are_not_called_missing() -> None:
    def judge(evidence: Evidence) -> Finding:
        raise MissingEvidenceError("tuning runs of init_a that were stable")

    claim = replace(CLAIM, judge=judge, parts=("toy", "of the paper's scale"))
    there = Evidence(measured={"toy": [{"slope": 0.5}]})
    assert claim.finding(there).ours == "Not to be told from the records: tuning runs of init_a that were stable."
    assert claim.finding(Evidence(measured={"toy": []})).ours == "Not run yet: tuning runs of init_a that were stable."
    assert CLAIM.finding(Evidence(measured={"other": [{}]})).ours == "Not run yet: toy."


def test_an_error_of_the_test_itself_is_no_verdict() -> None:
    def broken(evidence: Evidence) -> Finding:
        raise KeyError("slope")

    with pytest.raises(KeyError, match="slope"):
        replace(CLAIM, judge=broken).finding(Evidence())


def test_only_claims_of_the_abstract_are_run_until_they_are_decided() -> None:
    kinds = ("abstract", "paper", "derived", "question")
    assert [replace(CLAIM, kind=kind).runs_until_decided for kind in kinds] == [True, False, False, False]
    assert VERDICTS == ("holds", "fails", "undecided", "not testable here")
