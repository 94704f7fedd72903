"""What a range test is and how it decides, on losses alone: settings, what was found, the rules. No torch in here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from asymlora.schema import refuse_values

Outcome = Literal["found", "highest stable", "none stable"]
_WINDOW = 5
_RISE_WINDOW = 3
QUIET_SHARE = 4


@dataclass(frozen=True, kw_only=True)
class RangeSettings:
    """How the range test is run. The defaults are ours: 20 octaves at 3 steps each, then up to 10 runs of 10 steps.

    Two or three runs are the rule. The others are for ramps that were stopped by the noise of batches: from there the
    runs must climb, an octave each.

    Attributes:
        lowest: Rate of the first step, as ``train.lr``; so small that the first quarter of the ramp changes nothing.
        highest: Rate of the last step.
        steps: Steps of the ramp, at least 12.
        probe_steps: Steps of each run at one rate, at least 2 and at most a quarter of ``steps``.
        most_probes: Runs at one rate, at least 1.
        rise: Share of the start's loss by which a loss must rise to count as lost, above 0.
    """

    lowest: float = 1e-6
    highest: float = 1.0
    steps: int = 60
    probe_steps: int = 10
    most_probes: int = 10
    rise: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers."""
        problems: list[str] = []
        if not 0 < self.lowest < self.highest < math.inf:
            problems.append(f"lowest={self.lowest:g} and highest={self.highest:g} must be rising numbers above 0")
        if self.steps < 12:
            problems.append(f"steps={self.steps} must be at least 12: a quarter of them measures the start")
        elif not 2 <= self.probe_steps <= self.steps // QUIET_SHARE:
            problems.append(
                f"probe_steps={self.probe_steps} must lie between 2 and a quarter of steps={self.steps}, whose losses"
                " they are compared with"
            )
        if self.most_probes < 1:
            problems.append(f"most_probes={self.most_probes} must be at least 1")
        if not 0 < self.rise < math.inf:
            problems.append(f"rise={self.rise:g} must be a number above 0")
        refuse_values(problems)

    @classmethod
    def of_length(cls, steps: int) -> RangeSettings:
        """Return the defaults for a ramp of another length.

        Args:
            steps: Of the ramp, at least 12.
        """
        usual = cls()
        return replace(usual, steps=steps, probe_steps=max(2, min(usual.probe_steps, steps // QUIET_SHARE)))

    def rates(self) -> list[float]:
        """Return the rate of each step of the ramp, in equal ratios."""
        ratio = self.highest / self.lowest
        return [self.lowest * ratio ** (step / (self.steps - 1)) for step in range(self.steps)]


class RangePoint(NamedTuple):
    """One step of the ramp.

    Attributes:
        step: Its number, from 1.
        rate: Its rate, as ``train.lr``.
        loss: Of its batch, at the weights before the step; may be infinite or no number in the last one.
        smoothed: Mean of the losses of up to 5 steps around it, of those that are finite; None where none is.
    """

    step: int
    rate: float
    loss: float
    smoothed: float | None


class RateProbe(NamedTuple):
    """A short run at one rate, from the weights that the ramp began with and over its first batches.

    Attributes:
        rate: Its rate, as ``train.lr``.
        losses: Of its batches.
        change: Mean, over the second half of its steps, of its loss less that of the start on the same batch.
        stable: Whether every loss was finite and the change is at most the allowed share of the start's loss.
    """

    rate: float
    losses: tuple[float, ...]
    change: float
    stable: bool


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What a range test found; every rate is one of ``train.lr``, with the recipe's own ratios between its groups.

    Attributes:
        points: The ramp.
        probes: The runs at one rate, in their order.
        start_loss: Mean loss of the ramp's first quarter, whose rates change nothing.
        ramp_edge: Last rate of the ramp after which the smoothed loss was not above ``start_loss``.
        edge: Largest rate that was stable in a run of its own.
        outcome: ``found``: the next octave above the edge was unstable; ``highest stable``: no rate that was tried was
            unstable, so the edge is only known to be above; ``none stable``: no rate that was tried was stable, so the
            edge is only known to be below the smallest of them, half of which is given.
        steepest: Rate at which the smoothed loss of the ramp fell fastest in the logarithm of the rate; None where it
            never fell. Nothing is decided by it.
        suggested: The rate to start from.
        steps: Steps taken in all.
        seconds: Seconds that it took.
    """

    points: tuple[RangePoint, ...]
    probes: tuple[RateProbe, ...]
    start_loss: float
    ramp_edge: float
    edge: float
    outcome: Outcome
    steepest: float | None
    suggested: float
    steps: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a loss that is not finite is None, as JSON has no word for it."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("points", "probes")}
        points = [{**point._asdict(), "loss": _finite(point.loss)} for point in self.points]
        probes = [
            {**probe._asdict(), "losses": [_finite(loss) for loss in probe.losses], "change": _finite(probe.change)}
            for probe in self.probes
        ]
        return {**plain, "points": points, "probes": probes}


def rise_rule(settings: RangeSettings) -> Callable[[Sequence[float]], bool]:
    """Return the rule by which the ramp stops.

    Args:
        settings: Of the ramp.

    Returns:
        A function of the losses so far: whether the mean of the last three is above that of the first quarter by the
        allowed share of it, and by 4 standard errors of three.
    """
    quiet = settings.steps // QUIET_SHARE

    def rises(losses: Sequence[float]) -> bool:
        if len(losses) < quiet + _RISE_WINDOW:
            return False
        level, noise = statistics.fmean(losses[:quiet]), statistics.stdev(losses[:quiet])
        margin = max(4 * noise / math.sqrt(_RISE_WINDOW), settings.rise * abs(level))
        return statistics.fmean(losses[-_RISE_WINDOW:]) > level + margin

    return rises


def ramp_points(rates: Sequence[float], losses: Sequence[float]) -> list[RangePoint]:
    """Return the steps of a ramp.

    Args:
        rates: Of all its steps.
        losses: Of those that were taken.

    Returns:
        A point for each loss.
    """
    half = _WINDOW // 2
    points: list[RangePoint] = []
    for index, loss in enumerate(losses):
        near = [value for value in losses[max(0, index - half) : index + half + 1] if math.isfinite(value)]
        points.append(RangePoint(index + 1, rates[index], loss, statistics.fmean(near) if near else None))
    return points


def has_risen(points: Sequence[RangePoint], settings: RangeSettings) -> bool:
    """Whether the ramp ended by its loss.

    Args:
        points: Those of the ramp.
        settings: Of the ramp.
    """
    losses = [point.loss for point in points]
    return len(points) < settings.steps or not math.isfinite(losses[-1]) or rise_rule(settings)(losses)


def edge_of_ramp(points: Sequence[RangePoint], settings: RangeSettings) -> float:
    """Return the last rate after which the smoothed loss was not above that of the start: where the rise began.

    Args:
        points: Those of the ramp, at least its first quarter.
        settings: Of the ramp.

    Returns:
        The rate; the highest if the loss never rose enough to stop the ramp, the lowest if it was above the start's all
        along.
    """
    losses = [point.loss for point in points]
    if not has_risen(points, settings):
        return settings.highest
    level = statistics.fmean(losses[: settings.steps // QUIET_SHARE])
    good = [
        index
        for index, p in enumerate(points)
        if math.isfinite(p.loss) and p.smoothed is not None and p.smoothed <= level
    ]
    # The loss of a step shows what the rate of the step before it did.
    return points[max(good[-1] - 1, 0)].rate if good else points[0].rate


def probe_rates(rate: float, steps: int, *, warm_up: bool) -> list[float]:
    """Return the rate of each step of a run at one rate.

    Args:
        rate: That rate.
        steps: Of the run.
        warm_up: Whether it rises to the rate over the first half of the steps, which are not judged.

    Example:
        >>> probe_rates(1.0, 4, warm_up=True), probe_rates(1.0, 2, warm_up=False)
        ([0.5, 1.0, 1.0, 1.0], [1.0, 1.0])
    """
    rising = steps // 2 if warm_up else 1
    return [rate * min(1.0, (step + 1) / rising) for step in range(steps)]


def judged(rate: float, losses: Sequence[float], *, start: Sequence[float], rise: float) -> RateProbe:
    """Return whether a run at one rate was stable.

    Args:
        rate: Its rate.
        losses: Of its steps.
        start: Losses of the first weights on the same batches, at least as many.
        rise: Share of them by which the loss may rise.

    Returns:
        The run with its verdict.
    """
    steps = len(losses)
    if not all(map(math.isfinite, losses)):
        return RateProbe(rate, tuple(losses), math.inf, stable=False)
    later = range(steps // 2, steps)
    change = statistics.fmean(losses[i] - start[i] for i in later)
    allowed = rise * abs(statistics.fmean(start[i] for i in later))
    return RateProbe(rate, tuple(losses), change, stable=change <= allowed)


def confirmed(probe: Callable[[float], RateProbe], rate: float, *, highest: float, most: int) -> list[RateProbe]:
    """Run at single rates, an octave apart, until one was stable and the next one up was not.

    Args:
        probe: Runs at a rate.
        rate: The first one.
        highest: No rate above it is tried.
        most: Runs after which to stop all the same.

    Returns:
        The runs, in their order.
    """
    probes = [probe(rate)]
    upwards = probes[0].stable
    while len(probes) < most and probes[-1].stable == upwards:
        rate = rate * 2 if upwards else rate / 2
        if rate > highest:
            break
        probes.append(probe(rate))
    return probes


def edge_of_probes(probes: Sequence[RateProbe]) -> tuple[float, Outcome]:
    """Return the largest rate that was stable, and what is known of it.

    Args:
        probes: Runs at single rates, at least one.
    """
    stable = [probe.rate for probe in probes if probe.stable]
    if not stable:
        return min(probe.rate for probe in probes) / 2, "none stable"
    return max(stable), "found" if len(stable) < len(probes) else "highest stable"


def steepest_rate(points: Sequence[RangePoint], edge: float) -> float | None:
    """Return the rate at which the smoothed loss fell fastest, by the rate's logarithm; None where it never fell.

    Args:
        points: Those of the ramp.
        edge: Points at larger rates are left out.
    """
    falls: dict[float, float] = {}
    before = [point for point in points if point.rate <= edge and point.smoothed is not None]
    for i in range(1, len(before) - 1):
        (low, high), (first, last) = (before[i - 1].rate, before[i + 1].rate), (before[i - 1][3], before[i + 1][3])
        assert first is not None
        assert last is not None
        falls[before[i].rate] = (last - first) / math.log(high / low)
    steepest = min(falls, key=falls.__getitem__, default=None)
    return steepest if steepest is not None and falls[steepest] < 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
