"""What was found in a sweep: the shape of ``summary.json``. `asymlora.sweep.analysis` fills it.

Metrics are in their own units (an accuracy is a fraction); `Summary.scale` and `Summary.unit` say how to show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from asymlora.sweep.rates import BestAt, RateStatus

BasinEnd = Literal["crossed", "end of range", "diverged", "pruned", "missing"]
"""Why a basin ends: its edge was seen between two rates; no rate was tried beyond; the next rate diverged; the next
rate was stopped early; the next rate has no value yet."""
Outcome = Literal["first better", "second better", "equivalent", "not decided", "not testable"]
"""``not testable``: fewer than six pairs, by which no difference can be shown."""


class SeedValue(NamedTuple):
    """A figure of one run.

    Attributes:
        seed: The paired seed.
        value: The figure.
    """

    seed: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval for a mean.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Nominal coverage, a fraction.
        method: How it was made, as words.
    """

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """A cell at one learning rate, of its tuning runs.

    Attributes:
        lr: ``train.lr``.
        status: Worst of its seeds.
        values: Metric on the validation part, of the seeds that finished.
        mean: Of ``values``; None where there are none.
        losses: Last recorded training loss, of the seeds that finished.
        mean_loss: Of ``losses``; None where there are none.
        pruned: Seeds that were stopped early.
        diverged: Seeds that diverged.
        failed: Seeds that failed.
        collapsed: Seeds that finished and had learnt next to nothing, at a rate above the best one.
    """

    lr: float
    status: RateStatus
    values: tuple[SeedValue, ...]
    mean: float | None
    losses: tuple[SeedValue, ...]
    mean_loss: float | None
    pruned: tuple[int, ...] = ()
    diverged: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    collapsed: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Basin:
    """The rates around the best one that are within one noise floor of it.

    Attributes:
        low: Smallest rate of it that is known to belong to it.
        high: Largest such rate.
        octaves: ``log2(high / low)``; the width itself where both ends are ``crossed``, otherwise the least it can be.
        most_octaves: The most it can be; None where nothing bounds it.
        low_end: Why it ends below.
        high_end: Why it ends above.
        floor: The noise floor that was allowed, in units of the metric: the standard error of a mean of the tuning
            seeds.
    """

    low: float
    high: float
    octaves: float
    most_octaves: float | None
    low_end: BasinEnd
    high_end: BasinEnd
    floor: float


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Standard deviation of runs that differ in nothing but the seed (or in nothing at all), pooled over groups.

    Attributes:
        of: What it is of, as words: ``test accuracy, closing runs that differ in the seed alone``.
        deviation: Pooled standard deviation, in units of the metric.
        degrees: Degrees of freedom: runs less groups.
        groups: Groups of at least two runs.
        low: Lower end of its 95 % interval (chi-square, so for normal noise).
        high: Upper end.
    """

    of: str
    deviation: float
    degrees: int
    groups: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a group of runs cost.

    Attributes:
        runs: Runs that ended, in any way.
        steps: Optimizer steps that were taken.
        planned_steps: Steps of their recipes.
        saved_steps: Of the runs that were stopped early: planned less taken.
        seconds: Setup, steps and scoring.
        flops: Floating-point operations of the steps; None where unknown for any run.
    """

    runs: int
    steps: int
    planned_steps: int
    saved_steps: int
    seconds: float
    flops: float | None


@dataclass(frozen=True, kw_only=True)
class CellSummary:
    """What was found in one cell: an arm at one point of the further axes.

    Attributes:
        label: Name that is unique in the sweep: ``b_only`` or ``b_only, train.batch_size 16``.
        arm: Name of the arm.
        axes: Values of further axes by dotted field name.
        rank: ``adapter.rank``.
        rates: Every rate of the tuning runs, rising.
        best_rate: The rate with the best mean on validation among those whose every tuning run finished; None where
            there is none.
        best_validation: That mean.
        best_at: Where the best rate lies among the tried ones; None where there is none.
        at_bound: Whether growth stopped at the plan's bound with the best rate at the end.
        largest_stable: Largest tried rate at which, and at every smaller one, no run diverged or collapsed
            (`asymlora.sweep.collapse`); None where there is none.
        divergence_edge: Smallest tried rate from which on every larger tried one diverged or collapsed in some seed;
            None where none did.
        basin: None where the noise floor or the best rate is not known.
        rate_doubt: The most by which another tried rate (of a search: another point) could be better than the chosen
            one, in units of the metric: a one-sided 95 % bound from the means of the tuning runs, for all cells
            together, that takes their noise as known. A run that was stopped early counts by how far it was behind
            then. It says nothing of rates at which a run diverged, nor of those that were not tried. None where the
            noise floor or the choice is not known.
        closing_rate: Rate of the closing runs that are quoted; None where there are none.
        closing: Metric on the test part by fresh seed, of the closing runs that finished; the chosen rate's alone.
        mean: Of ``closing``; None where there are none.
        interval: Of that mean over seeds; None for fewer than 2 runs.
        deviation: Standard deviation of ``closing``; None for fewer than 2 runs.
        test: Mean of every metric on the test part over the closing runs.
        before: The same before the first step.
        closing_loss: Mean of the last recorded training loss; None where there is none.
        closing_validation: Mean of the metric on the validation part over the closing runs.
        closing_diverged: Seeds of closing runs that diverged.
        closing_failed: Seeds of closing runs that failed.
        trained_parameters: Values trained, head included; of the closing runs, otherwise of the tuning runs.
        head_parameters: Values of the head, and of what else is trained in full.
        flops_per_step: Of one optimizer step; None where unknown.
        health: How many closing runs had each verdict of the health watch, by its name.
        cost: By phase: ``tuning``, ``closing``, ``search``, ``repeat``, as far as there were runs.
        caveats: Sentences that belong beside the figures.
    """

    label: str
    arm: str
    axes: Mapping[str, Any]
    rank: int
    rates: tuple[RatePoint, ...]
    best_rate: float | None
    best_validation: float | None
    best_at: BestAt | None
    at_bound: bool
    largest_stable: float | None
    divergence_edge: float | None
    basin: Basin | None
    rate_doubt: float | None
    closing_rate: float | None
    closing: tuple[SeedValue, ...]
    mean: float | None
    interval: Interval | None
    deviation: float | None
    test: Mapping[str, float] = field(default_factory=dict[str, float])
    before: Mapping[str, float] = field(default_factory=dict[str, float])
    closing_loss: float | None = None
    closing_validation: float | None = None
    closing_diverged: tuple[int, ...] = ()
    closing_failed: tuple[int, ...] = ()
    trained_parameters: int = 0
    head_parameters: int = 0
    flops_per_step: float | None = None
    health: Mapping[str, int] = field(default_factory=dict[str, int])
    cost: Mapping[str, Spent] = field(default_factory=dict[str, Spent])
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two cells, paired by seed, on the test part.

    Attributes:
        first: Label of the first cell.
        second: Label of the second.
        differences: First less second by seed, in units of the metric, whichever way is better.
        mean: Of the differences; None where there is no pair.
        deviation: Their standard deviation; None for fewer than 2 pairs.
        interval: Of the mean; None for fewer than 2 pairs. Not corrected for the number of comparisons.
        p: Two-sided p of the sign-flip test, at the rates of the closing runs; None where there is no pair.
        p_adjusted: The same after Holm's correction over ``comparisons``.
        least_p: The smallest p that so many pairs can give.
        comparisons: Number of comparisons that were corrected for: every pair of cells that the plan names, or
            that has a pair of runs.
        allowance: What another rate could give the cell that is behind (its ``rate_doubt``), in units of the metric.
        p_beyond: As ``p_adjusted``, of the differences less the allowance; it decides which cell is better.
        margin: Largest difference that counts as none, stated beforehand; None where none was stated.
        p_equivalence: The larger p of the two one-sided tests against the margin less both cells' largest
            ``rate_doubt``, after Holm's correction over ``comparisons``; None without a margin.
        outcome: What may be said.
        better: Label of the better cell where there is one.
        seeds_needed: Pairs at which a difference as large as the observed one would be found with a probability of
            80 %, at the observed spread, after correction and beyond the allowance; None where that is as large as the
            difference, or where something was found.
        caveats: Sentences that limit this comparison.
        sentence: The verdict, caveats included.
    """

    first: str
    second: str
    differences: tuple[SeedValue, ...]
    mean: float | None
    deviation: float | None
    interval: Interval | None
    p: float | None
    p_adjusted: float | None
    least_p: float | None
    comparisons: int
    allowance: float
    p_beyond: float | None
    margin: float | None
    p_equivalence: float | None
    outcome: Outcome
    better: str | None
    seeds_needed: int | None
    caveats: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that was found in a sweep.

    Attributes:
        answer: One or two sentences: which cell is best, or that they cannot be told apart.
        metric: Name of the metric.
        greater_is_better: Whether more of it is better.
        scale: Factor by which values are shown: 100 for fractions in [0, 1] (``points``), otherwise 1.
        unit: ``points`` or nothing.
        cells: In the order of the plan's arms.
        comparisons: Every pair of cells once, in that order.
        noise: Noise floor over seeds of the closing runs on test; None where no cell has two.
        validation_noise: The same on validation: of the closing runs, or of the tuning runs at the best rates while
            there are none. The basins' floor comes from it.
        repeats: Noise floor of runs repeated with the same recipe and seed: of the machine; None where there are none.
        alpha: Level of the tests.
        runs: Number of runs by status.
        cost: Of all runs by phase, and ``all``.
        finished: Whether every closing run that the plan names is there.
        notes: Sentences on the whole: that it is not finished, failed and pruned runs, repeats, seeds used twice.
    """

    answer: str
    metric: str
    greater_is_better: bool
    scale: float
    unit: str
    cells: tuple[CellSummary, ...]
    comparisons: tuple[Comparison, ...]
    noise: NoiseFloor | None
    validation_noise: NoiseFloor | None
    repeats: NoiseFloor | None
    alpha: float
    runs: Mapping[str, int]
    cost: Mapping[str, Spent]
    finished: bool
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> list[str]:
        """The sentence of each comparison."""
        return [comparison.sentence for comparison in self.comparisons]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: nested mappings and lists, ``verdicts`` included."""
        return {**_plain(asdict(self)), "verdicts": self.verdicts}


def _plain(value: Any) -> Any:
    # asdict keeps named tuples and tuples; JSON has mappings and lists.
    if isinstance(value, SeedValue):
        return value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
