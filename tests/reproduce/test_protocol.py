from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import small_artefact as small
from asymlora.errors import SpecError
from asymlora.reproduce.artefact import MeasuredPart, SweepPart
from asymlora.reproduce.protocol import data_digest, digest, has_second, plan_digest, plan_of, points_of
from asymlora.train.recipe import read_yaml

SWEPT = SweepPart(name="swept", plan=small.PLAN, second=small.SECOND)
TOY = MeasuredPart(name="toy", points=small.POINTS, measure=small.Meter(), second=({"width": 32},))


def test_the_second_look_has_more_seeds_or_more_points() -> None:
    assert (plan_of(SWEPT, "first"), plan_of(SWEPT, "second")) == (small.PLAN, small.SECOND)
    assert plan_of(replace(SWEPT, second=None), "second") == small.PLAN
    assert list(points_of(TOY, "first").values()) == [*small.POINTS]
    assert list(points_of(TOY, "second").values()) == [*small.POINTS, {"width": 32}]
    assert [has_second(part) for part in (SWEPT, replace(SWEPT, second=None), TOY, replace(TOY, second=()))] == [
        True, False, True, False,
    ]  # fmt: skip


def test_a_point_that_stands_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="Part toy has 3 points, 1 of them twice"):
        points_of(replace(TOY, second=({"width": 8},)), "second")


def test_digests_tell_looks_and_protocols_apart_and_no_threads() -> None:
    changed = replace(small.PLAN, rates=(1e-3, 1e-2))
    digests = [digest(part, look) for part in (SWEPT, TOY) for look in ("first", "second")]
    digests.append(digest(replace(SWEPT, plan=changed), "first"))
    assert len(set(digests)) == 5
    threaded = replace(SWEPT, plan=replace(small.PLAN, threads=2))
    assert digest(threaded, "first") == digest(SWEPT, "first")


def test_another_version_of_a_measurement_is_another_protocol() -> None:
    newer = replace(TOY, version=2)
    assert digest(newer, "first") != digest(TOY, "first")
    assert not set(points_of(newer, "second")) & set(points_of(TOY, "second"))


def test_data_are_told_by_their_names_and_bytes_wherever_they_stand(tmp_path: Path) -> None:
    def written(at: str, name: str = "a.jsonl", text: str = "x") -> Path:
        (tmp_path / at / "sub").mkdir(parents=True)
        (tmp_path / at / "sub" / name).write_text(text)
        return tmp_path / at

    first = written("first")
    assert data_digest(written("second")) == data_digest(first)
    assert len({data_digest(root) for root in (first, written("named", name="b"), written("other", text="y"))}) == 3
    linked = tmp_path / "linked"
    (linked / "sub").mkdir(parents=True)
    (linked / "sub" / "a.jsonl").symlink_to(first / "sub" / "a.jsonl")
    assert data_digest(linked) == data_digest(first)
    assert data_digest(first / "sub" / "a.jsonl") != data_digest(first)
    (first / "sub" / "a.jsonl").write_text("z")
    assert data_digest(linked) == data_digest(first) != data_digest(tmp_path / "second")


def test_a_plan_that_was_written_and_read_has_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(small.PLAN.to_yaml())
    assert plan_digest(read_yaml(tmp_path / "sweep.yaml")) == digest(SWEPT, "first")
