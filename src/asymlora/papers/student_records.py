"""What the records of the teacher-student model say of learning rates and of runs at the best one. No torch in here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from asymlora.reproduce.evidence import MissingEvidenceError, Record
from asymlora.theory.best_rates import BestRate, best_rate

NAMES = {"init_a": "Init[A]", "init_b": "Init[B]", "init_b_small": "Init[B] of variance 1/n"}
"""Starts for people."""


class StudentRuns:
    """Runs of the teacher-student model over widths, starts, rates and seeds.

    A seed is quoted at the rate with the smallest mean training loss over the *other* seeds, so that no run both
    chooses a rate and is quoted at it.

    Args:
        records: Of `asymlora.papers.student_points.measure_sweep`.

    Attributes:
        widths: Widths that both starts were run at, rising.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._losses: dict[tuple[int, str], dict[int, dict[int, Record]]] = {}
        for record in records:
            of_arm = self._losses.setdefault((record["width"], record["scheme"]), {})
            of_arm.setdefault(record["seed"], {})[record["log2_rate"]] = record
        both = {width for width, _ in self._losses}
        self.widths = sorted(n for n in both if {(n, "init_a"), (n, "init_b")} <= set(self._losses))

    @property
    def largest(self) -> int:
        """The largest width.

        Raises:
            MissingEvidenceError: There is none.
        """
        if not self.widths:
            raise MissingEvidenceError("runs of both starts at one width")
        return self.widths[-1]

    def seeds(self, width: int, scheme: str) -> dict[int, dict[int, Record]]:
        """Return the runs of one start at one width, by seed and log2 of the rate.

        Args:
            width: Width of the student.
            scheme: The start.

        Raises:
            MissingEvidenceError: There is none.
        """
        if (width, scheme) not in self._losses:
            raise MissingEvidenceError(f"runs of {NAMES[scheme]} at width {width}")
        return self._losses[width, scheme]

    def best_rates(self, width: int, scheme: str) -> dict[int, float]:
        """Return log2 of each seed's best rate by training loss.

        It is the lowest point of a parabola in the logarithms of rate and loss through the best rate and its
        neighbours. Where there is none, at an end of the grid or beside a run that diverged, it is the best rate itself
        (at an end the true one may lie beyond). Seeds of which every run diverged are left out.

        Args:
            width: Width of the student.
            scheme: The start.
        """
        found: dict[int, float] = {}
        for seed, runs in sorted(self.seeds(width, scheme).items()):
            if any(record["train_loss"] is not None for record in runs.values()):
                best = _best_of_seed(runs)
                found[seed] = math.log2(best.parabola or best.argmin)
        return found

    def quoted(self, width: int, scheme: str, quantity: str) -> dict[int, float]:
        """Return a quantity of each seed's run at the rate that is best in the mean over the other seeds.

        Args:
            width: Width of the student.
            scheme: The start.
            quantity: ``train_loss``, ``test_loss``, ``Z_A`` or ``Z_B``.

        Returns:
            By seed; runs that diverged there are left out.

        Raises:
            MissingEvidenceError: There are fewer than two seeds.
        """
        runs = self.seeds(width, scheme)
        if len(runs) < 2:
            raise MissingEvidenceError(f"a second seed of {NAMES[scheme]} at width {width}")
        found: dict[int, float] = {}
        for seed in sorted(runs):
            means = _means({other: of_seed for other, of_seed in runs.items() if other != seed})
            value = runs[seed][min(means, key=means.__getitem__)][quantity]
            if value is not None:
                found[seed] = value
        return found

    def at_an_end(self, width: int) -> list[str]:
        """Return the starts whose best rate in the mean over seeds is the first or last one tried at a width.

        Args:
            width: Width of the student.
        """
        found: list[str] = []
        for scheme in ("init_a", "init_b"):
            means = _means(self.seeds(width, scheme))
            if min(means, key=means.__getitem__) in (min(means), max(means)):
                found.append(NAMES[scheme])
        return found

    def open_seeds(self, width: int, scheme: str) -> list[int]:
        """Return the seeds whose own best rate is the first or last one tried, so that the true one may lie beyond.

        Args:
            width: Width of the student.
            scheme: The start.
        """
        return [
            seed
            for seed, runs in sorted(self.seeds(width, scheme).items())
            if any(record["train_loss"] is not None for record in runs.values()) and _best_of_seed(runs).at_edge
        ]


def _means(runs: Mapping[int, Mapping[int, Record]]) -> dict[int, float]:
    """Return mean training losses by log2 of the rate, of the rates that every seed has."""
    tried = set.intersection(*(set(of_seed) for of_seed in runs.values()))
    losses = {rate: [of_seed[rate]["train_loss"] for of_seed in runs.values()] for rate in sorted(tried)}
    return {rate: math.inf if None in values else statistics.fmean(values) for rate, values in losses.items()}


def _best_of_seed(runs: Mapping[int, Record]) -> BestRate:
    losses = {rate: record["train_loss"] for rate, record in runs.items()}
    return best_rate(
        {"rate": 2.0**rate, "seed": 0, "train_loss": math.inf if loss is None else loss}
        for rate, loss in losses.items()
    )


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent of a power law by least squares of log2 value on log2 size.

    Args:
        sizes: Widths or ranks.
        values: One for each, above 0.

    Returns:
        The exponent; not a number for fewer than two different sizes or a value that is not above 0.

    Example:
        >>> slope([1, 2, 4], [3.0, 12.0, 48.0])
        2.0
    """
    if len(set(sizes)) < 2 or not all(value > 0 for value in values):
        return math.nan
    logs = [[math.log2(number) for number in numbers] for numbers in (sizes, values)]
    return statistics.linear_regression(*logs).slope


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of some values and its standard error; None for fewer than two.

    Args:
        values: At least one.
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error
