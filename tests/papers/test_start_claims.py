from __future__ import annotations

from typing import Any

import pytest

from asymlora.papers.one_layer_points import draw_points, measure_draws, measure_start, start_points
from asymlora.papers.start_claims import CLAIMS, DRAWS, START, chosen_records
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record

BY_KEY = {claim.key: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def measured() -> dict[str, list[Record]]:
    """The parts as they are run, on a narrower layer."""
    return {
        START: [record for point in start_points() for record in measure_start({**point, "width": 64})],
        DRAWS: [record for point in draw_points() for record in measure_draws(point)],
    }


@pytest.mark.parametrize("key", list(BY_KEY))
def test_each_claim_holds_on_a_real_measurement(key: str, measured: dict[str, list[Record]]) -> None:
    finding = BY_KEY[key].finding(Evidence(measured=measured))
    assert finding.verdict == "holds", finding.ours


@pytest.mark.parametrize(
    ("key", "part", "of", "wrong"),
    [
        ("identity", START, {"dtype": "float32"}, {"identity_error": 2e-5}),
        ("identity", START, {"dtype": "float64"}, {"identity_error": 1e-11}),
        ("changes_nothing", START, {"scheme": "init_b"}, {"output_at_start": 1e-30}),
        ("first_step", START, {"scheme": "init_a"}, {"step_A": 1e-30}),
        ("first_step", START, {"scheme": "init_b"}, {"step_A": 0.0}),
        ("controls", START, {"scheme": "both_zero"}, {"moved": 1e-30}),
        ("controls", START, {"weight_decay": 0.1}, {"step_A": 0.0}),
        ("variances", DRAWS, {"factor": "A", "init": "gaussian"}, {"variance": 1.06 / 4096}),
        ("variances", DRAWS, {"factor": "B", "init": "kaiming_uniform"}, {"variance": 1 / 8}),
    ],
)
def test_each_claim_fails_where_one_record_is_wrong(
    key: str, part: str, of: dict[str, Any], wrong: dict[str, Any], measured: dict[str, list[Record]]
) -> None:
    changed = [
        {**record, **wrong} if all(record[name] == value for name, value in of.items()) else record
        for record in measured[part]
    ]
    assert changed != measured[part]
    assert BY_KEY[key].finding(Evidence(measured={part: changed})).verdict == "fails"


@pytest.mark.parametrize("key", list(BY_KEY))
def test_without_records_it_is_undecided(key: str) -> None:
    finding = BY_KEY[key].finding(Evidence())
    assert finding.verdict == "undecided"
    assert finding.ours.startswith("Not run yet")


def test_what_is_missing_is_named() -> None:
    evidence = Evidence(measured={START: [{"scheme": "init_a"}]})
    with pytest.raises(MissingEvidenceError, match="start with scheme init_b"):
        chosen_records(evidence, START, scheme="init_b")
