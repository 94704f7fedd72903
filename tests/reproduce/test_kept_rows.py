from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlora.errors import DataError
from asymlora.reproduce.kept_rows import (
    ERROR_LENGTH,
    compact_measured,
    compact_run,
    places_in,
    records_of,
    rounded,
    run_of,
    texts_of,
    without_places,
)
from asymlora.reproduce.measured_store import MeasuredRow
from sweep.made_rows import row

THIRD = 1 / 3


def _there_and_back(**fields: Any) -> Any:
    whole = row("init_a", lr=10**-2.5, seed=3, value=THIRD, phase="closing", **fields)
    return whole, run_of(json.loads(json.dumps(compact_run(whole))))


def test_what_is_chosen_by_and_quoted_keeps_every_digit() -> None:
    scores = {"step": [64], "value": [THIRD]}
    whole, back = _there_and_back(scores=scores, test={"accuracy": THIRD, "loss": THIRD})
    assert (back.lr, back.validation, back.scores) == (10**-2.5, THIRD, scores)
    assert back.test == {"accuracy": THIRD, "loss": 0.333333}
    same = ("id", "arm", "phase", "seed", "rank", "status", "metric", "steps", "planned_steps", "trained_parameters",
            "head_parameters", "flops_per_step", "greater_is_better", "repeat", "axes")  # fmt: skip
    assert [getattr(back, name) for name in same] == [getattr(whole, name) for name in same]


def test_other_numbers_keep_six_digits_and_curves_four() -> None:
    dynamics = {"step": [1, 2, 3], "Z_A": [THIRD, 2e5 / 3, 0.0], "delta1": [0.0, 0.0, 0.0], "grad_A": [None] * 3}
    _, back = _there_and_back(
        before={"accuracy": THIRD}, losses={"step": [10, 20], "loss": [THIRD, 1.0]}, dynamics=dynamics
    )
    assert back.before == {"accuracy": 0.333333}
    assert back.losses == {"step": [10, 20], "loss": [0.3333, 1.0]}
    assert back.dynamics == {**dynamics, "Z_A": [0.3333, 66670.0, 0.0]}


def test_a_kept_row_has_one_time_and_nothing_of_the_process_or_recipe() -> None:
    whole, back = _there_and_back(recipe={"data": {"name": "/home/me"}}, worker=4943, executor="ray", adapter="a/b")
    assert back.train_seconds == whole.setup_seconds + whole.train_seconds + whole.evaluate_seconds
    assert back.setup_seconds == back.evaluate_seconds == 0
    assert (back.recipe, back.worker, back.executor, back.adapter, back.ended) == ({}, 0, "inline", None, "")
    assert "/home/me" not in json.dumps(compact_run(whole))


def test_a_row_that_diverged_says_why_in_few_words_without_a_place() -> None:
    said = "Loss is nan at\n/home/someone/x/y.py: " + "word " * 100
    whole = row("init_b", lr=0.1, seed=0, status="diverged", error=said, diverged_at=5)
    back = run_of(compact_run(whole))
    assert (back.status, back.diverged_at, back.validation) == ("diverged", 5, None)
    assert back.error is not None
    assert back.error.startswith("Loss is nan at .../y.py: word")
    assert len(back.error) == ERROR_LENGTH


def test_a_row_of_another_form_is_refused() -> None:
    with pytest.raises(DataError, match=r"unexpected keyword argument 'colour'.*again from the run's folder"):
        run_of({**compact_run(row("a", lr=1.0, seed=0)), "colour": 1})
    with pytest.raises(DataError, match="missing 1 required"):
        run_of({"id": "x", "phase": "tuning", "arm": "a", "seed": 0, "lr": 1.0, "rank": 8})


PLAIN = st.one_of(st.integers(-9, 9), st.booleans(), st.none(), st.sampled_from(["Z_A", "b"]), st.just(0.25))


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from("xyz"), PLAIN, min_size=1), max_size=6))
def test_records_come_back_as_they_were_in_their_order(records: list[dict[str, Any]]) -> None:
    kept = compact_measured(MeasuredRow(id="i", point={"n": 1}, records=records, seconds=1.0, ended=""))
    back = records_of(json.loads(json.dumps(kept)))
    assert back == records
    assert [[type(value) for value in sorted_values(one)] for one in back] == [
        [type(value) for value in sorted_values(one)] for one in records
    ]


def sorted_values(record: Any) -> list[Any]:
    return [record[key] for key in sorted(record)]


def test_settings_of_a_point_keep_every_digit_in_its_records() -> None:
    records = [{"rate": 10**-2.5, "loss": 10**-1.5}]
    kept = compact_measured(MeasuredRow(id="i", point={"rate": 10**-2.5}, records=records, seconds=1.0, ended=""))
    assert records_of(kept) == [{"rate": 10**-2.5, "loss": 0.0316228}]
    assert kept["point"] == {"rate": 10**-2.5}


@pytest.mark.parametrize("kept", [{}, {"tables": 3}, {"tables": [{"count": 2, "same": {}, "columns": {"x": [1]}}]}])
def test_a_point_of_another_form_is_refused(kept: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="tables with count, same and columns"):
        records_of(kept)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_is_within_its_digits_and_done_once(value: float) -> None:
    short = rounded(value)
    assert math.isclose(short, value, rel_tol=5.1e-6)
    assert rounded(short) == short


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--out /srv/someone/runs/x --rate 1/2", "--out .../x --rate 1/2"),
        ("--data-root ../shared/data", "--data-root ../shared/data"),
        ("~/data and ~me/data", ".../data and .../data"),
        (r"C:\Users\me\data", ".../data"),
        ("ray://head.local:10001", "ray://..."),
        ("--out=/tmp", "--out=.../tmp"),
        ("n^-1/2, Z_A/Z_B, and/or, 3 / 4", "n^-1/2, Z_A/Z_B, and/or, 3 / 4"),
        ("'/data/a b'", "'.../a b'"),
        ("--data-root ../../home/me/data --out ../runs", "--data-root .../data --out ../runs"),
        ("--address head-node:6379 --workers 2", "--address ... --workers 2"),
        ("--address=auto", "--address=..."),
        ("lost worker at 10.0.31.7:45123, port 8", "lost worker at ..., port 8"),
        ("(ip=192.168.0.12)", "(ip=...)"),
        ("node-3.cluster:6379 is gone", "... is gone"),
        (
            "arXiv:2406.08447, seeds:100, torch 2.6.0, at 21:45:07",
            "arXiv:2406.08447, seeds:100, torch 2.6.0, at 21:45:07",
        ),
    ],
)
def test_of_a_path_from_the_root_the_last_name_remains(text: str, shown: str) -> None:
    assert without_places({"x": [text, 1]}) == {"x": [shown, 1]}
    assert places_in([shown]) == []
    assert bool(places_in([text])) == (text != shown)


def test_this_machine_and_its_user_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "quince.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "gardener")
    texts = ["lost on quince.example.org", "quince: no memory", "gardener said", "--owner gardener"]
    assert without_places(texts) == ["lost on ...", "...: no memory", "... said", "--owner ..."]
    assert places_in(texts) == ["quince.example.org", "quince", "quince", "gardener", "gardener"]
    assert places_in(without_places(texts)) == []
    assert places_in(["quinces and gardeners"]) == []
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    assert places_in(["--data-root data", "the root"]) == []


def test_texts_are_found_at_any_depth() -> None:
    assert list(texts_of({"a": [{"b": "c"}, 1, ("d",)]})) == ["a", "b", "c", "d"]
