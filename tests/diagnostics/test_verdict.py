from __future__ import annotations

import json
import math

from asymlora.diagnostics.verdict import Verdict, named


def _verdict(**changed: object) -> Verdict:
    given = {"name": "B_zero", "factor": "B", "sites": ("q", "v"), "step": 2, "value": 0.0, "threshold": 0.0}
    return Verdict(**{**given, "says": "Seen.", "means": "Meant.", "remedy": "Do.", **changed})  # pyright: ignore[reportArgumentType]


def test_the_text_has_the_three_parts_in_order() -> None:
    assert _verdict().text == "Seen. Meant. Do."


def test_a_verdict_is_json_whatever_its_numbers_are() -> None:
    plain = _verdict(value=math.nan, threshold=math.inf).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["value"], plain["threshold"], plain["sites"]) == (None, None, ["q", "v"])
    assert _verdict(value=0.5).to_dict()["value"] == 0.5


def test_many_sites_are_named_by_the_first_and_counted() -> None:
    assert named(["a"]) == "a"
    assert named(["a", "b"], total=2) == "a, b (2 of 2 sites)"
    assert named([str(i) for i in range(9)], total=36) == "0, 1 and 7 more (9 of 36 sites)"
