from __future__ import annotations

import pytest

from asymlora.reproduce.printed_count import MILLION, PrintedCount


@pytest.mark.parametrize(
    ("text", "unit", "values", "found"),
    [
        ("0.8 M", MILLION, 786_432, "equal"),
        ("0.8 M", MILLION, 849_999, "equal"),
        ("0.8 M", MILLION, 850_000, "equal as cut"),
        ("0.8 M", MILLION, 899_999, "equal as cut"),
        ("0.8 M", MILLION, 900_000, "differs"),
        ("0.8 M", MILLION, 749_999, "differs"),
        ("0.12 %", 1000, 124, "equal"),
        ("0.12 %", 1000, 125, "equal as cut"),
        ("3", 1, 3, "equal"),
        ("3", 1, 4, "differs"),
    ],
)
def test_a_count_is_held_against_the_printed_digits(text: str, unit: float, values: int, found: str) -> None:
    assert PrintedCount(text=text, unit=unit, where="Table 1").agreement(values) == found


@pytest.mark.parametrize(("text", "unit"), [("about 3 M", MILLION), ("3 M", 0)])
def test_what_is_no_count_is_refused(text: str, unit: float) -> None:
    with pytest.raises(ValueError, match="no number of a unit above 0"):
        PrintedCount(text=text, unit=unit, where="Table 1")
