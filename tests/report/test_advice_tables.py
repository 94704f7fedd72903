from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from asymlora.report.advice_tables import advice_tables, rise_of_ramp
from small_advice import small_record


def _shown(record: dict[str, Any], width: int, *, every: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(advice_tables(record, every=every))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", [80, 120])
def test_the_verdict_the_pair_and_the_open_question_are_shown(width: int) -> None:
    text = " ".join(_shown(small_record(), width).split())
    assert "Train B alone at 3 of 3 layers, from a learning rate of 0.005." in text
    assert "leaves 60 % within reach of B" in text
    assert "was not shown to beat" in text
    assert "3 rows were dropped." in text


def test_numbers_of_the_narrow_table_are_not_cut() -> None:
    (line,) = [line for line in _shown(small_record(), 80).splitlines() if line.startswith("dense")]
    assert line.split() == ["dense", "B", "8", "5/64", "256", "60", "%", "3.1", "%", "high"]


def test_each_layer_has_a_row_on_request() -> None:
    text = _shown(small_record(), 120, every=True)
    assert all(f"net.layer.{i}.dense" in text for i in range(3))


def test_layers_outside_of_the_recipe_stand_apart_and_their_names_are_no_markup() -> None:
    text = _shown(small_record(), 120)
    assert text.index("for a look") < text.index("head<b>")
    assert "Other layers" not in _shown({**small_record(), "sites": small_record()["sites"][:3]}, 120)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [("found", "the next octave was not"), ("highest stable", "the edge lies above"), ("none stable", "lies below")],
)
def test_what_is_known_of_the_edge_is_said(outcome: str, words: str) -> None:
    record = small_record()
    record["range_test"]["outcome"] = outcome
    assert words in " ".join(_shown(record, 120).split())


def test_a_law_that_nothing_confirms_is_named_so() -> None:
    assert "(derived, not confirmed)" in _shown(small_record(), 120)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"per_site_ranks": True, "mean_share": 0.5, "by_site_mean_share": 0.5}, "Ranks: by layer."),
        ({"per_site_ranks": False, "mean_share": 0.4, "by_site_mean_share": None}, "would gain too little."),
        (
            {"per_site_ranks": False, "mean_share": 0.4, "by_site_mean_share": 0.5},
            "would reach 50 % (--ranks-by-layer); that they train better has not been shown.",
        ),
    ],
)
def test_ranks_are_explained(shares: dict[str, Any], words: str) -> None:
    record = {**small_record(), "uniform_mean_share": 0.4, **shares}
    text = " ".join(_shown(record, 80).split())
    assert words in text
    assert ("Ranks: by layer." in text) == shares["per_site_ranks"]


def test_a_ramp_that_never_rose_tells_no_rate_of_a_rise() -> None:
    test = small_record()["range_test"]
    assert rise_of_ramp(test) == ("rise began", "0.026", "in a ramp of 12 steps")
    calm = {**test, "ramp_edge": test["points"][-1]["rate"]}
    assert rise_of_ramp(calm) == ("rise began", "-", "not in a ramp of 12 steps, up to 0.2")
