"""What the factors of a run did, in one number a step: the median over its sites. No torch in here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

QUANTITIES = (
    "Z_A", "Z_B", "delta1", "delta2", "delta3", "update_A", "update_B", "grad_A", "grad_B", "norm_A", "norm_B",
    "moved_A", "moved_B",
)  # fmt: skip
"""Of a row of `asymlora.diagnostics.dynamics.FeatureDynamics`."""


def median_dynamics(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return each quantity's median over the sites, step by step.

    Args:
        rows: Rows of `FeatureDynamics`, one a site and measured step, in the order of the steps.

    Returns:
        ``step`` and `QUANTITIES`, lists of one length; None where no site has the number or the median is not finite.
        Empty without rows.

    Example:
        >>> rows = [{"step": 1, "site": site, "Z_A": z} for site, z in (("q", 1.0), ("v", 3.0))]
        >>> found = median_dynamics(rows)
        >>> found["step"], found["Z_A"], found["grad_A"]
        ([1], [2.0], [None])
    """
    if not rows:
        return {}
    steps = [(step, list(of_one)) for step, of_one in groupby(rows, key=lambda row: row["step"])]
    found: dict[str, list[Any]] = {"step": [step for step, _ in steps]}
    for name in QUANTITIES:
        found[name] = [_median([row.get(name) for row in of_one]) for _, of_one in steps]
    return found


def _median(values: Sequence[float | None]) -> float | None:
    # What is not a number counts as too large: it must not vanish from the middle.
    told = [math.inf if math.isnan(value) else float(value) for value in values if value is not None]
    middle = statistics.median(told) if told else math.inf
    return middle if math.isfinite(middle) else None
