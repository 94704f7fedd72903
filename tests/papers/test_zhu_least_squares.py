from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.papers.zhu_least_squares import ARTEFACT, PAPER_WIDTH, WIDTH
from asymlora.reproduce.artefact import MeasuredPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record

NOWHERE = Path("nowhere")


def test_it_is_measured_and_reads_no_data() -> None:
    for scale, width in ((ARTEFACT.small, WIDTH), (ARTEFACT.paper, PAPER_WIDTH)):
        parts = {part.name: part for part in scale.parts(NOWHERE)}
        assert all(isinstance(part, MeasuredPart) for part in parts.values())
        assert scale.data == ()
        assert {name for claim in ARTEFACT.claims for name in claim.parts} == set(parts)
        draws = parts["draws"]
        assert isinstance(draws, MeasuredPart)
        assert max(point["inputs"] for point in draws.points) == width


def test_the_figure_has_a_line_a_rank_and_one_for_other_updates() -> None:
    records: list[Record] = [
        {"rank": rank, "wanted": wanted, "criterion": 2.0 + rank, "ratio": 1.5}
        for rank in (4, 16)
        for wanted in ("generic", "low variance")
    ]
    drawn = ARTEFACT.figure(Evidence(measured={"draws": records})).plotly
    assert {"rank 4", "rank 16", "update on low variance"} <= {trace.name for trace in drawn.data}
    with pytest.raises(MissingEvidenceError, match="draws"):
        ARTEFACT.figure(Evidence())
