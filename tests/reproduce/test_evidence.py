from __future__ import annotations

import pytest

import small_sweep
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, SweepEvidence

SWEPT = SweepEvidence(plan={"rates": [1e-3]}, rows=[small_sweep.row("init_a", lr=1e-3, seed=0)])


def test_parts_are_found_by_name() -> None:
    evidence = Evidence(sweeps={"trec6": SWEPT}, measured={"toy": [{"slope": 0.5}]})
    assert evidence.sweep("trec6") is SWEPT
    assert evidence.records("toy") == [{"slope": 0.5}]


@pytest.mark.parametrize(
    "evidence", [Evidence(), Evidence(sweeps={"part": SweepEvidence(plan={}, rows=[])}, measured={"part": []})]
)
def test_a_part_without_records_is_missing_by_its_name(evidence: Evidence) -> None:
    for read in (evidence.sweep, evidence.records):
        with pytest.raises(MissingEvidenceError, match="part"):
            read("part")
