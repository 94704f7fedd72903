"""The gain of one model over another on the same rows, with its standard error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BLOCKS = 500


def paired_gain(
    score: Callable[[np.ndarray], float], before: np.ndarray, after: np.ndarray
) -> tuple[float, float | None]:
    """Return by how much a metric rose, and the jackknife's standard error of that over the rows.

    The rows are left out one by one in both models at once, so what they share cancels. For a metric that is a mean
    over rows this is the standard error of the mean difference, exactly where rows are left out singly. Above 500 rows,
    blocks of rows are left out.

    Args:
        score: The metric of some rows.
        before: Evidence of the first model, shape ``(rows, m)``.
        after: Evidence of the second, of the same rows in the same order.

    Returns:
        ``score(after) - score(before)``, and its standard error; None for fewer than two rows.

    Example:
        >>> right = np.array([[1.0], [0.0], [0.0], [1.0]])
        >>> gain, error = paired_gain(lambda rows: float(rows.mean()), np.zeros((4, 1)), right)
        >>> gain, round(error, 4)
        (0.5, 0.2887)

    Source:
        Efron and Tibshirani, 1993, "An Introduction to the Bootstrap", equation 11.5.
    """
    gain = score(after) - score(before)
    rows = len(before)
    if rows < 2:
        return gain, None
    blocks = np.array_split(np.arange(rows), min(rows, _BLOCKS))
    kept = np.ones(rows, dtype=bool)
    gains = np.empty(len(blocks))
    for i, block in enumerate(blocks):
        kept[block] = False
        gains[i] = score(after[kept]) - score(before[kept])
        kept[block] = True
    count = len(blocks)
    return gain, float(np.sqrt((count - 1) / count * ((gains - gains.mean()) ** 2).sum()))
