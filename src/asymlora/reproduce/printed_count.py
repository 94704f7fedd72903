"""Counts of trained values as a paper prints them, in its own unit and digits, against what is trained. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

MILLION = 1_000_000.0
Agreement = Literal["equal", "equal as cut", "differs"]
"""``equal``: rounded to the printed digits it is what is printed; ``equal as cut``: cut off there it is."""


@dataclass(frozen=True, kw_only=True)
class PrintedCount:
    """A count as it is printed.

    Attributes:
        text: The number with the unit that the paper gives it.
        unit: Values that one of it stands for: `MILLION`, or a hundredth of a model's values where it is in per cent.
        where: Where it stands, and what is known of it.

    Raises:
        ValueError: If the text begins with no number, or the unit is not positive.
    """

    text: str
    unit: float
    where: str

    def __post_init__(self) -> None:
        if _number(self.text) is None or self.unit <= 0:
            raise ValueError(f"{self!r} has no number of a unit above 0.")

    def agreement(self, values: int) -> Agreement:
        """Return whether a count is what is printed, to the digits that are printed.

        Args:
            values: Values that are trained.

        Example:
            >>> printed = PrintedCount(text="0.3 M", unit=MILLION, where="Table 7")
            >>> printed.agreement(312_000), printed.agreement(393_216), printed.agreement(442_368)
            ('equal', 'equal as cut', 'differs')
        """
        number = _number(self.text) or ""
        digits = len(number.partition(".")[2])
        scaled = values / self.unit * 10**digits
        printed = round(float(number) * 10**digits)
        if math.floor(scaled + 0.5) == printed:
            return "equal"
        return "equal as cut" if math.floor(scaled) == printed else "differs"


def _number(text: str) -> str | None:
    found = re.match(r"\d+(\.\d+)?", text)
    return None if found is None else found[0]
