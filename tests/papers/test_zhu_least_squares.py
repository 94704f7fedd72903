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


def test_the_figure_has_a_line_a_kind_of_layer_against_each_prediction() -> None:
    records: list[Record] = [
        {"inputs": inputs, "outputs": 8, "rank": rank, "wanted": wanted, "criterion": 2.0 + rank, "predicted": 1.4,
         "ratio": 1.5}
        for inputs, rank in ((8, 4), (8, 16), (4, 4))
        for wanted in ("generic", "low variance")
    ]  # fmt: skip
    drawn = ARTEFACT.figure(Evidence(measured={"draws": records})).plotly
    lines = [trace for trace in drawn.data if trace.name]
    assert [trace.name for trace in lines] == ["rank 4", "update on low variance", "not square", "rank 16"] * 2
    assert [list(trace.x) for trace in lines if trace.name == "rank 16"] == [[18.0], [1.4]]
    with pytest.raises(MissingEvidenceError, match="draws"):
        ARTEFACT.figure(Evidence())
