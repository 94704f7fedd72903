"""What a verdict on the health of a model says. What reaches one is in `health` and in `model_checks`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Factor = Literal["A", "B"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One trouble, at all sites that have it.

    Attributes:
        name: Of the list in `asymlora.diagnostics.health`, or in `asymlora.diagnostics.model_checks`.
        factor: ``A``, ``B``, or None where it is not one of them.
        sites: Paths of the sites (heads, targets), in the model's order.
        step: Optimizer step at which the first of them was seen; 0: before the training.
        value: The worst value seen, or None.
        threshold: What ``value`` was compared with, or None.
        says: What was seen.
        means: What that means.
        remedy: What to change.
    """

    name: str
    factor: Factor | None
    sites: tuple[str, ...]
    step: int
    value: float | None
    threshold: float | None
    says: str
    means: str
    remedy: str

    @property
    def text(self) -> str:
        """The three parts as one text."""
        return f"{self.says} {self.means} {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes: sites as a list, a number that is not finite as None."""
        plain = asdict(self)
        number = {key: plain[key] for key in ("value", "threshold")}
        finite = {k: v if v is not None and math.isfinite(v) else None for k, v in number.items()}
        return {**plain, **finite, "sites": list(self.sites)}


def named(sites: Sequence[str], total: int | None = None, *, shown: int = 2) -> str:
    """Return the first sites by name and the others by number.

    Example:
        >>> named(["q", "v", "k"], total=6)
        'q, v and 1 more (3 of 6 sites)'
        >>> named(["q"])
        'q'
    """
    text = ", ".join(sites[:shown]) + (f" and {len(sites) - shown} more" if len(sites) > shown else "")
    return text if total is None else f"{text} ({len(sites)} of {total} sites)"
