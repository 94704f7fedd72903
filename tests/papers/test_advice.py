from __future__ import annotations

import subprocess
import sys

import pytest

from asymlora.papers.advice import ARTEFACT
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from papers.made_advice import evidence


def test_it_is_no_part_of_a_paper() -> None:
    assert {claim.kind for claim in ARTEFACT.claims} == {"question"}
    assert "arXiv" not in ARTEFACT.source


def test_the_figure_shows_advised_plain_and_tuned_runs() -> None:
    drawn = ARTEFACT.figure(evidence()).plotly
    assert [note.text for note in drawn.layout.annotations][:2] == ["TREC-6", "SST-2 (500 rows)"]
    assert {trace.name for trace in drawn.data if trace.name} == {
        "LoRA, rank 8", "B alone, rank 16", "LoRA, rank 8, default rate", "B alone, rank 16, default rate", "advised",
    }  # fmt: skip
    with pytest.raises(MissingEvidenceError, match="advised"):
        ARTEFACT.figure(Evidence())


def test_it_loads_no_heavy_package() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom asymlora.papers.advice import ARTEFACT\n"
        "ARTEFACT.small.parts(Path('nowhere')), ARTEFACT.paper.parts(Path('nowhere'))\n"
        "sys.exit(', '.join({'torch', 'transformers', 'plotly', 'scipy'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
