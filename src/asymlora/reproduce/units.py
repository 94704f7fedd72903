"""How the quantities of claims are shown: each number with its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How a quantity is shown.

    Attributes:
        scale: Factor by which its values are shown.
        name: What stands after the number.
        digits: Decimals.
        zero: A shown value that is no larger is rounding, and told as 0.
    """

    scale: float
    name: str
    digits: int
    zero: float = 1e-12

    def text(self, value: float) -> str:
        """Return a difference with its sign and its unit.

        Args:
            value: In the quantity's own scale.

        Example:
            >>> POINTS.text(0.0122), OCTAVES.text(-3), NATS.text(0)
            ('+1.22 points', '-3.00 octaves', '0.0000 nats')
        """
        return f"{self.number(value, signed=True)} {self.name}"

    def amount(self, value: float) -> str:
        """Return a value with its unit, without a sign where it is above 0.

        Args:
            value: In the quantity's own scale.

        Example:
            >>> POINTS.amount(0.8947)
            '89.47 points'
        """
        return f"{self.number(value)} {self.name}"

    def number(self, value: float, *, signed: bool = False) -> str:
        """Return a value without its unit; with an exponent where the decimals would show none of it.

        Args:
            value: In the quantity's own scale.
            signed: Whether a value above 0 has a sign.

        Example:
            >>> RATIO.number(0.25), RATIO.number(2e-5), RATIO.number(-0.0)
            ('0.250', '2.0e-05', '0.000')
        """
        shown, sign = value * self.scale, "+" if signed else ""
        text = f"{shown:{sign}.{self.digits}f}"
        if text.strip("+-0."):
            return text
        return f"{shown:{sign}.1e}" if abs(shown) > self.zero else f"{0:.{self.digits}f}"


POINTS = Unit(scale=100.0, name="points", digits=2, zero=1e-3)
"""Of a fraction: hundredths of the whole. Kept fractions have six digits, and no scored part so many rows."""
OCTAVES = Unit(scale=1.0, name="octaves", digits=2)
"""Of logarithms to base 2: 1 is a factor of two."""
NATS = Unit(scale=1.0, name="nats", digits=4)
"""Of a cross-entropy."""
RATIO = Unit(scale=1.0, name="(ratio)", digits=3)
"""Of what has no unit."""
