from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import small_artefact as small
from asymlora.errors import SpecError
from asymlora.reproduce.artefact import MeasuredPart, SweepPart
from asymlora.reproduce.part_runs import Did, Means, do_part, final_rows, first_records
from asymlora.sweep.executors import InProcess
from sweep.bowl import Bowl, work_of

SWEPT = SweepPart(name="swept", plan=small.PLAN, second=small.SECOND)


def _means(bowl: Bowl) -> Means:
    return Means(executor=lambda place: InProcess(place, work=partial(work_of, bowl)), ready=small.unchecked)


def test_what_is_missing_is_done_and_counted(tmp_path: Path) -> None:
    bowl, path = small.bowl(), tmp_path / "swept"
    assert do_part(SWEPT, "first", path, _means(bowl)) == Did(new=10)
    assert do_part(SWEPT, "first", path, _means(bowl)) == Did(new=0)
    first = first_records(SWEPT, path)
    assert frozenset(first.rows) == final_rows(SWEPT, path)
    assert do_part(SWEPT, "second", path, _means(bowl)) == Did(new=8)
    # The rows of the first look are known by their seeds whatever came after them.
    assert first_records(SWEPT, path) == first
    assert len(final_rows(SWEPT, path)) == 18


def test_runs_that_failed_now_are_counted(tmp_path: Path) -> None:
    assert do_part(SWEPT, "first", tmp_path / "swept", _means(small.bowl(broken=("init_b",)))) == Did(new=8, failed=3)


def test_points_of_an_older_version_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    meter = small.Meter()
    toy = MeasuredPart(name="toy", points=small.POINTS, measure=meter)
    assert do_part(toy, "first", tmp_path / "toy", _means(small.bowl())) == Did(new=2)
    assert set(first_records(toy, tmp_path / "toy").rows) == final_rows(toy, tmp_path / "toy")
    with pytest.raises(SpecError, match=r"Part toy: .*measured by an older version of the part"):
        do_part(replace(toy, version=2), "first", tmp_path / "toy", _means(small.bowl()))
    assert len(meter.measured) == 2


def test_the_same_data_at_another_place_are_told_as_that(tmp_path: Path) -> None:
    def at(place: str) -> SweepPart:
        recipe = replace(small.RECIPE, data=replace(small.RECIPE.data, name=place))
        return SweepPart(name="swept", plan=replace(small.PLAN, recipe=recipe))

    do_part(at("../data/trec6"), "first", tmp_path / "swept", _means(small.bowl()))
    with pytest.raises(SpecError, match=r"stood at \.\./data/trec6, and now .* from data/trec6\. Type --data-root"):
        do_part(at("data/trec6"), "first", tmp_path / "swept", _means(small.bowl()))
