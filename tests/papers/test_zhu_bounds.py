from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.papers.zhu_bounds import ARTEFACT, paper_parts, small_parts
from asymlora.reproduce.artefact import MeasuredPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record

NOWHERE = Path("nowhere")


def test_runs_are_six_seeds_of_every_set_and_the_abstracts_claim_reads_no_run() -> None:
    for parts in (small_parts(NOWHERE), paper_parts(NOWHERE)):
        bound, gaps = parts
        assert isinstance(bound, MeasuredPart)
        assert isinstance(gaps, MeasuredPart)
        assert bound.second
        seeds: dict[tuple[str, int | None], list[int]] = {}
        for point in gaps.points:
            seeds.setdefault((point["set"], point.get("rows")), []).append(point["seed"])
        assert set(map(tuple, seeds.values())) == {(0, 1, 2, 3, 4, 5)}
    (abstract,) = [claim for claim in ARTEFACT.claims if claim.kind == "abstract"]
    assert abstract.parts == ("bound",)


def test_the_figure_holds_gap_and_bound_of_each_arm() -> None:
    rows: list[Record] = [
        {
            "set": "rte", "rows": 256, "seed": seed, "arm": arm, "train_error": 0.1, "test_error": error, "both": 80.0,
            "b_only": 56.0, "a_only": 56.0,
        }
        for seed in (0, 1)
        for arm, error in (("both", 0.4), ("b_only", 0.3), ("a_only", None))
    ]  # fmt: skip
    drawn = ARTEFACT.figure(Evidence(measured={"gaps": rows})).plotly
    named = {trace.name for trace in drawn.data if trace.name}
    assert named == {f"{arm}, {kind}" for arm in ("both factors", "B alone") for kind in ("bound", "measured")}
    with pytest.raises(MissingEvidenceError, match="gaps"):
        ARTEFACT.figure(Evidence())
