from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from asymlora.papers.similarity_claims import AT_RATE, CONTROLS, DRAWN_HEAD, SIMILARITY, SLOWER
from asymlora.papers.zhu_cca import ARTEFACT, PAPER_TASKS, ROWS, STEPS, small_recipes
from asymlora.reproduce.artefact import MeasuredPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record
from asymlora.tasks.inputs import refuse_unread

ROOT = Path("nowhere")


@pytest.mark.parametrize("scale", [ARTEFACT.small, ARTEFACT.paper])
def test_either_start_has_six_pairs_and_controls_beside_them(scale: object) -> None:
    parts = scale.parts(ROOT)  # pyright: ignore[reportAttributeAccessIssue]
    assert [part.name for part in parts] == [SIMILARITY, CONTROLS]
    counts = Counter((point["variant"], point["start"]) for part in parts for point in part.points)
    assert counts == {
        (AT_RATE, "standard"): 6, (AT_RATE, "reversed"): 6, (SLOWER, "standard"): 6, (SLOWER, "reversed"): 6,
        (DRAWN_HEAD, "standard"): 6,
    }  # fmt: skip
    rates = {(p["variant"], p["start"]): p["rate"] for part in parts for p in part.points}
    for start in ("standard", "reversed"):
        assert rates[SLOWER, start] == pytest.approx(rates[AT_RATE, start] / 3, rel=0.01)
    assert rates[DRAWN_HEAD, "standard"] == rates[AT_RATE, "standard"]


def test_parts_share_what_they_have_loaded() -> None:
    first, second = ARTEFACT.small.parts(ROOT)
    assert isinstance(first, MeasuredPart)
    assert isinstance(second, MeasuredPart)
    assert first.measure is second.measure


def test_tasks_are_read_below_the_data_root_and_no_row_is_seen_twice() -> None:
    recipes = small_recipes(ROOT)
    assert [recipe.data.name for recipe in recipes.values()] == [str(ROOT / d.place) for d in ARTEFACT.small.data]
    for recipe in recipes.values():
        refuse_unread(recipe.task, recipe.data)
        assert recipe.train.batch_size * STEPS <= ROWS == recipe.data.max_rows
        assert (recipe.train.steps, recipe.adapter.rank) == (STEPS, 8)


def test_the_papers_tasks_are_those_of_its_figure() -> None:
    (main, _) = ARTEFACT.paper.parts(ROOT)
    assert isinstance(main, MeasuredPart)
    assert main.points[0]["tasks"] == list(PAPER_TASKS) == ["mrpc", "rte", "stsb", "cola"]


def test_what_differs_is_listed_with_a_reason() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(row.what and row.paper and row.ours and row.why for row in scale.settings)
        assert len({row.what for row in scale.settings}) == len(scale.settings)


def test_the_figure_has_a_panel_a_start_and_a_line_a_kind_of_pair() -> None:
    records: list[Record] = [
        {
            "kind": "similarity", "start": start, "factor": factor, "panel": panel, "moment": moment,
            "over_chance": 2.0 if moment == "end" else 1.5,
        }
        for start in ("standard", "reversed")
        for factor in "AB"
        for panel in ("shared start", "same task")
        for moment in ("first step", "end")
    ]  # fmt: skip
    figure = ARTEFACT.figure(Evidence(measured={SIMILARITY: records})).plotly
    assert [note.text for note in figure.layout.annotations] == ["standard start", "reversed start"]
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert names == ["A, same task", "A, shared start", "B, same task", "B, shared start"]
    with pytest.raises(MissingEvidenceError, match=SIMILARITY):
        ARTEFACT.figure(Evidence())
