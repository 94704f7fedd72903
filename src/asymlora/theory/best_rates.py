"""The best learning rate of a sweep: of the grid, and between its points. Reads records, trains nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asymlora.errors import SpecError

Tie = Literal["smallest", "largest"]


@dataclass(frozen=True, kw_only=True)
class BestRate:
    """The best learning rate of one arm of a sweep.

    Attributes:
        argmin: The rate of the grid with the smallest loss in the mean over seeds.
        loss: That loss.
        standard_error: Of the loss over seeds; not a number for one seed.
        parabola: The lowest point of a parabola in the logarithms of rate and loss through the smallest loss and its
            neighbours; None where they make none: at an edge of the grid, or beside a run that diverged.
        at_edge: Whether the argmin is the first or last rate, so that the best one may lie outside the grid.
        tied: Rates within the tolerance of the smallest loss, in rising order.
        seeds: Number of seeds.
    """

    argmin: float
    loss: float
    standard_error: float
    parabola: float | None
    at_edge: bool
    tied: tuple[float, ...]
    seeds: int


def best_rate(
    records: Iterable[Mapping[str, Any]], *, loss: str = "train_loss", tie: Tie = "smallest", tolerance: float = 0.0
) -> BestRate:
    """Return the best learning rate among records that differ in rate and seed only.

    Args:
        records: Rows with ``rate``, ``seed`` and the loss, of one width and scheme.
        loss: The column to make small; a run that diverged has an infinite one.
        tie: Which rate to take of several within the tolerance.
        tolerance: How much larger than the smallest loss another one may be to count as a tie, as a fraction.

    Returns:
        The best rate by both rules.

    Raises:
        SpecError: There is no record, the seeds of the rates differ, the records mix arms, or every run diverged.

    Example:
        >>> losses = {1: 0.4, 2: 0.1, 4: 0.1}
        >>> found = best_rate([{"rate": rate, "seed": 0, "train_loss": loss} for rate, loss in losses.items()])
        >>> found.argmin, found.tied, found.at_edge
        (2, (2, 4), False)
    """
    found = _by_rate(list(records), loss)
    means = {rate: sum(seeds.values()) / len(seeds) for rate, seeds in found.items()}
    smallest = min(means.values())
    if not math.isfinite(smallest):
        raise SpecError(f"every one of the rates {tuple(means)} diverged for some seed: sweep smaller learning rates.")
    tied = tuple(rate for rate, mean in means.items() if mean <= smallest * (1 + tolerance))
    argmin = tied[0] if tie == "smallest" else tied[-1]
    losses = list(found[argmin].values())
    return BestRate(
        argmin=argmin,
        loss=means[argmin],
        standard_error=_standard_error(losses),
        parabola=_parabola(means, argmin),
        at_edge=argmin in (min(means), max(means)),
        tied=tied,
        seeds=len(losses),
    )


def _by_rate(records: list[Mapping[str, Any]], loss: str) -> dict[float, dict[int, float]]:
    if not records:
        raise SpecError("there is no record to find a learning rate in: give those of one width and scheme.")
    arms = {(record.get("width"), record.get("scheme")) for record in records}
    if len(arms) > 1:
        raise SpecError(
            f"the records mix {len(arms)} arms (width, scheme), {sorted(arms, key=str)}: give one at a time."
        )
    found: dict[float, dict[int, float]] = {}
    for record in sorted(records, key=lambda record: record["rate"]):
        value = record[loss]
        found.setdefault(record["rate"], {})[record["seed"]] = value if math.isfinite(value) else math.inf
    seeds = {tuple(sorted(by_seed)) for by_seed in found.values()}
    if len(seeds) > 1 or len(records) != sum(map(len, found.values())):
        raise SpecError(
            f"the rates {tuple(found)} were not each run once with the same seeds, but with {sorted(seeds)}: means over"
            " them would compare seeds instead of rates. Run what is missing."
        )
    return found


def _standard_error(values: list[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _parabola(means: Mapping[float, float], argmin: float) -> float | None:
    rates = list(means)
    at = rates.index(argmin)
    if at in (0, len(rates) - 1):
        return None
    near = rates[at - 1 : at + 2]
    if not all(0 < means[rate] < math.inf for rate in near):
        return None
    (x0, x1, x2), (y0, y1, y2) = [math.log(rate) for rate in near], [math.log(means[rate]) for rate in near]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    if bend <= 0:
        return None
    return math.exp((x0 + x1) / 2 - left / (2 * bend))
