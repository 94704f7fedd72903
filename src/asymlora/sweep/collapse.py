"""Runs that ended with finite numbers and had learnt next to nothing: the rate was too large. No torch in here.

Adaptive steps, clipping and layer norms keep losses finite at rates far above those that train, so an edge of
divergence that waits for a number that is not finite is hardly ever met.
"""

from __future__ import annotations

from collections.abc import Iterable

from asymlora.sweep.run_record import RunRow

SHARE = 0.25
"""A run has collapsed where its loss fell by less than this share of what the best run's fell by."""
CLEAR_DROP = 0.1
"""That is asked only where the best run's loss fell by at least this share of the loss at the start."""
RISE = 1.02
"""And in any case a run has collapsed where its loss ended above so many times that of the start."""


def collapsed(rows: Iterable[RunRow]) -> frozenset[tuple[float, int]]:
    """Return the runs of one cell that finished at a rate above the best one and had learnt next to nothing.

    Training losses are compared seed by seed: the start is the first recorded loss at the smallest rate, where the
    weights have hardly moved; the best run is the one that ended lowest.

    Args:
        rows: Tuning runs of one cell.

    Returns:
        Rate and seed of each.

    Source:
        The definition and its three numbers are ours. They were set on one sweep of 57 runs of MiniLM on TREC-6 (tuning
        seeds 100 and 101, closing seeds 0 to 5), in which runs of Init[B] at 3e-3 ended at the loss of a constant
        answer: on another set, or another model, they have not been tried.
    """
    by_seed: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        losses = [loss for loss in row.losses.get("loss", ()) if loss is not None]
        if row.status == "finished" and len(losses) > 1:
            by_seed.setdefault(row.seed, {})[row.lr] = losses
    return frozenset((lr, seed) for seed, losses in by_seed.items() for lr in _collapsed_rates(losses))


def _collapsed_rates(losses: dict[float, list[float]]) -> list[float]:
    start = losses[min(losses)][0]
    ends = {lr: curve[-1] for lr, curve in losses.items()}
    best = min(ends, key=lambda lr: ends[lr])
    drop = start - ends[best]
    limit = start * RISE
    if drop >= CLEAR_DROP * start:
        limit = min(limit, start - SHARE * drop)
    return [lr for lr, end in ends.items() if lr > best and end > limit]
