from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asymlora.papers.hayou_toy import ARTEFACT, PAPER_WIDTHS, WIDTHS
from asymlora.papers.one_layer_claims import STABLE
from asymlora.papers.student_claims import SMALL_WIDTHS, STUDENTS
from asymlora.reproduce.artefact import MeasuredPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record

NOWHERE = Path("nowhere")
RECORDS: dict[str, list[Record]] = {
    STABLE: [
        {"scheme": scheme, "width": n, "seed": seed, "log2_rate": -seed - n / 128}
        for scheme in ("init_a", "init_b", "init_b_small")
        for n in (128, 256)
        for seed in (0, 1)
    ],
    STUDENTS: [
        {"width": n, "scheme": scheme, "seed": seed, "log2_rate": rate, "train_loss": 1.0 + (rate + 6) ** 2}
        for scheme in ("init_a", "init_b")
        for n in (128, 256)
        for seed in (0, 1)
        for rate in (-7, -6, -5)
    ],
}


def test_it_is_measured_and_reads_no_data() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        parts = scale.parts(NOWHERE)
        assert all(isinstance(part, MeasuredPart) for part in parts)
        assert scale.data == ()
        assert {name for claim in ARTEFACT.claims for name in claim.parts} == {part.name for part in parts}


def test_the_widths_reach_what_the_claims_are_about() -> None:
    for widths in (WIDTHS, PAPER_WIDTHS):
        assert max(widths) >= 4096
        assert set(SMALL_WIDTHS) <= set(widths)


def test_further_points_are_other_points_with_other_seeds() -> None:
    parts = {part.name: part for part in ARTEFACT.small.parts(NOWHERE) if isinstance(part, MeasuredPart)}
    students, stable = parts[STUDENTS], parts[STABLE]
    assert {p["seed"] for p in students.points} | {p["seed"] for p in students.second} == set(range(300, 310))
    assert {p["width"] for p in students.second} == {max(WIDTHS)}
    assert not [p for p in students.second if p in students.points]
    assert all(not set(p["seeds"]) & set(q["seeds"]) for p in stable.points for q in stable.second)


def test_no_seed_of_the_models_is_one_of_earlier_records() -> None:
    seeds: set[int] = set()
    for part in ARTEFACT.small.parts(NOWHERE):
        if isinstance(part, MeasuredPart):
            for point in (*part.points, *part.second):
                seeds |= {*point.get("seeds", ()), *([point["seed"]] if "seed" in point else [])}
    assert seeds == set(range(300, 310))


def test_what_differs_is_listed_with_a_reason() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(row.what and row.paper and row.ours and row.why for row in scale.settings)
        assert len({row.what for row in scale.settings}) == len(scale.settings)


def test_the_figure_has_a_panel_for_each_part_that_has_records() -> None:
    both = ARTEFACT.figure(Evidence(measured=RECORDS)).plotly
    titles = [note.text for note in both.layout.annotations]
    assert titles == ["largest stable rate, one layer", "best rate, teacher and student"]
    names = {trace.name for trace in both.data if trace.name}
    assert {"Init[A]", "Init[B]", "Init[B] of variance 1/n"} <= names
    alone = ARTEFACT.figure(Evidence(measured={STABLE: RECORDS[STABLE]})).plotly
    assert len(alone.data) < len(both.data)
    with pytest.raises(MissingEvidenceError, match="stable_rates and students"):
        ARTEFACT.figure(Evidence())


def test_it_loads_no_heavy_package() -> None:
    code = (
        "import sys, asymlora.papers.hayou_toy, asymlora.papers.hayou_features\n"
        "sys.exit(', '.join({'torch', 'transformers', 'plotly', 'scipy'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
