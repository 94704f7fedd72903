"""What the artefacts of both papers share of seeds, and of how a test is worded before its runs. No torch in here."""

from __future__ import annotations

from asymlora.reproduce.units import Unit

UNKNOWN = "unknown"
"""Of a setting that the paper leaves unsaid."""
FIRST_TUNING_SEED = 200

SIGN_FLIP = (
    "exact two-sided sign-flip test over the seeds, at a level of 0.03125 for six and of 0.01875 for ten (both looks"
    " together: 0.05)"
)
EXPONENT = Unit(scale=1.0, name="(exponent)", digits=2)
"""Of a slope in logarithms."""
UNTOLD = " What it can detect is unknown before the runs, and told with the finding."
"""Ends the statement of a test of real models."""
DECIDES = "holds or fails by the sign where p is at most the level, else undecided"
"""Ends the statement of a sign-flip test."""


def known_before(text: str) -> str:
    """Return what was known of a claim when its test was written, as the end of that.

    Args:
        text: What was known, as sentences.

    Example:
        >>> known_before("Nothing.")
        ' Known before: Nothing.'
    """
    return f" Known before: {text}"


def closing_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds of runs that are quoted: 0, 1, 2, ...

    Args:
        count: Their number.
    """
    return tuple(range(count))


def tuning_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds of runs that choose a learning rate, none of which is quoted: 200, 201, ...

    Args:
        count: Their number.

    Example:
        >>> tuning_seeds(2)
        (200, 201)
    """
    return tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + count))
