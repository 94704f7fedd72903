from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.papers.feature_claims import DECODER, ENCODER, LARGE, STUDENTS
from asymlora.papers.hayou_features import ARTEFACT
from asymlora.papers.stated_tests import tuning_seeds
from asymlora.reproduce.artefact import MeasuredPart, SweepPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from papers.made_features import EFFICIENT, ONE_SIDED, swept, traces

NOWHERE = Path("nowhere")
ARMS = {"init_a": EFFICIENT, "init_b": ONE_SIDED}


def sweep_parts(scale: str) -> dict[str, SweepPart]:
    """The sweeps of one scale by name."""
    parts = (ARTEFACT.small if scale == "small" else ARTEFACT.paper).parts(NOWHERE)
    return {part.name: part for part in parts if isinstance(part, SweepPart)}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_both_scales_have_the_parts_that_the_claims_read(scale: str) -> None:
    parts = (ARTEFACT.small if scale == "small" else ARTEFACT.paper).parts(NOWHERE)
    assert [part.name for part in parts] == [STUDENTS, ENCODER, DECODER]
    assert {name for claim in ARTEFACT.claims for name in claim.parts} == {STUDENTS, ENCODER, DECODER}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_run_measures_its_factors_at_two_thirds_and_near_its_end(scale: str) -> None:
    for part in sweep_parts(scale).values():
        train = part.plan.recipe.train
        assert train.dynamics_every > 0
        multiples = range(train.dynamics_every, train.steps + 1, train.dynamics_every)
        late = 2 * train.steps / 3
        assert min(abs(step - late) for step in multiples) <= train.steps / 8
        assert train.steps - multiples[-1] < train.steps / 100


def test_both_starts_are_tuned_on_seeds_of_their_own() -> None:
    for part in (*sweep_parts("small").values(), *sweep_parts("paper").values()):
        assert [arm.name for arm in part.plan.arms] == ["init_a", "init_b"]
        assert part.plan.grow
        assert part.plan.tuning_seeds == tuning_seeds(len(part.plan.tuning_seeds))
        assert len(part.plan.tuning_seeds) >= 2
        assert part.plan.closing_seeds == (0, 1, 2, 3, 4, 5)
        assert part.second is None
        assert len(part.plan.rates) >= 3


def test_the_toy_has_the_widths_that_the_claims_are_about() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        (students,) = (part for part in scale.parts(NOWHERE) if isinstance(part, MeasuredPart))
        widths = {point["width"] for point in students.points}
        assert max(widths) >= LARGE
        assert min(widths) == 128
        assert all(point["closing_seeds"] == [300, 301, 302, 303, 304, 305] for point in students.points)
        assert all(point["tuning_seeds"] == [400, 401] for point in students.points)


def test_every_file_that_is_read_is_a_data_set_of_the_artefact() -> None:
    read = {part.plan.recipe.data.name for part in sweep_parts("small").values()}
    assert read == {str(NOWHERE / data.place) for data in ARTEFACT.small.data}


def test_what_differs_is_listed_with_a_reason() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(row.what and row.paper and row.ours and row.why for row in scale.settings)
        assert len({row.what for row in scale.settings}) == len(scale.settings)


def test_the_figure_has_a_panel_for_each_quantity_and_each_part_that_has_records() -> None:
    measured = {
        STUDENTS: traces((128, 512, 4096), {arm: dict.fromkeys((128, 512, 4096), c) for arm, c in ARMS.items()})
    }
    sweeps = {ENCODER: swept(ARMS)}
    figure = ARTEFACT.figure(Evidence(measured=measured, sweeps=sweeps)).plotly
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["|Z_A|, toy", "Z_A, text encoder", "|Z_B|, toy", "Z_B, text encoder"]
    names = {trace.name for trace in figure.data if trace.name}
    # The toy at the ends of its widths.
    assert names == {
        "Init[A], n = 128",
        "Init[B], n = 128",
        "Init[A], n = 4096",
        "Init[B], n = 4096",
        "Init[A]",
        "Init[B]",
    }
    with pytest.raises(MissingEvidenceError, match="students, encoder and decoder"):
        ARTEFACT.figure(Evidence())
