"""What the rows of one cell show: its curve over rates, its best rate and basin, its closing figures. No torch."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from scipy import stats

from asymlora.sweep.grid import BOUND
from asymlora.sweep.intervals import mean_interval
from asymlora.sweep.noise import basin_width
from asymlora.sweep.rates import RateChoice, RateScore, choose_rate, ladder_through, rate_scores, rate_text
from asymlora.sweep.run_record import Phase, RunRow, cell_label
from asymlora.sweep.statistics import ALPHA, deviation
from asymlora.sweep.summary import Basin, CellSummary, NoiseFloor, RatePoint, SeedValue, Spent


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """What the analysis needs of a plan; what the plan lacks is read from the rows.

    Attributes:
        arms: Names, in their order.
        points: Points of the further axes, in their order.
        rates: Of the first grid, rising.
        bounds: Smallest and largest rate that may be tried.
        grow: Whether the grid grows.
        tuning_seeds: Seeds that choose the rate.
        closing_seeds: Seeds that are quoted.
        margin: Of equivalence; None where none is stated.
    """

    arms: tuple[str, ...]
    points: tuple[Mapping[str, Any], ...]
    rates: tuple[float, ...]
    bounds: tuple[float, float]
    grow: bool
    tuning_seeds: tuple[int, ...]
    closing_seeds: tuple[int, ...]
    margin: float | None

    @classmethod
    def of(cls, plan: Mapping[str, Any], rows: Sequence[RunRow]) -> PlanView:
        """Return the view of a plan.

        Args:
            plan: As ``sweep.yaml`` holds it.
            rows: Of the sweep.
        """
        rates = tuple(sorted(plan.get("rates") or {row.lr for row in rows if row.phase == "tuning"}))
        low, high = plan.get("bounds") or ((rates[0] / BOUND, rates[-1] * BOUND) if rates else (0.0, math.inf))
        return cls(
            arms=tuple(map(_arm_name, plan.get("arms") or ())),
            points=tuple(_points(plan.get("axes") or ())),
            rates=rates,
            bounds=(low, high),
            grow=bool(plan.get("grow", True)) and len(rates) > 1,
            tuning_seeds=_seeds(plan.get("tuning_seeds"), rows, phase="tuning"),
            closing_seeds=_seeds(plan.get("closing_seeds"), rows, phase="closing"),
            margin=plan.get("margin"),
        )

    @property
    def cells(self) -> int:
        """Number of cells that the plan names."""
        return len(self.arms) * len(self.points)

    @cached_property
    def _homes(self) -> frozenset[str]:
        # Once for all rows, of which there may be thousands.
        return frozenset(cell_label(arm, point) for arm, point in itertools.product(self.arms, self.points))

    def home(self, row: RunRow) -> str:
        """Return the label of the cell of the plan that a row belongs to; a search gives its rows further axes.

        Args:
            row: The row.
        """
        names = self.points[0] if self.points else ()
        return cell_label(row.arm, {name: row.axes[name] for name in names if name in row.axes})

    def asks(self, row: RunRow) -> bool:
        """Return whether the plan asks for a run; one of an earlier, larger plan may be in the store too.

        Args:
            row: The row.
        """
        seeds = self.tuning_seeds if row.phase in ("tuning", "search") else self.closing_seeds
        return row.seed in seeds and (not self._homes or self.home(row) in self._homes)

    def choice(self, scores: Sequence[RateScore], *, greater_is_better: bool) -> RateChoice:
        """Return what is known of a cell's rate.

        Args:
            scores: Of its rates.
            greater_is_better: Whether more of the metric is better.
        """
        ladder = ladder_through(self.rates) if self.grow else None
        return choose_rate(scores, greater_is_better=greater_is_better, ladder=ladder, bounds=self.bounds)


@dataclass(frozen=True)
class CellRows:
    """The rows of one cell.

    Attributes:
        label: Name that is unique in the sweep.
        rows: All of them.
        view: Of the plan.
    """

    label: str
    rows: tuple[RunRow, ...]
    view: PlanView

    def of(self, phase: Phase) -> list[RunRow]:
        """Return the rows of one phase."""
        return [row for row in self.rows if row.phase == phase]

    @cached_property
    def metric(self) -> str:
        """Name of the metric; empty where no row has one."""
        return next((row.metric for row in self.rows if row.metric), "")

    @cached_property
    def greater_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return next((row.greater_is_better for row in self.rows if row.metric), True)

    @cached_property
    def scores(self) -> list[RateScore]:
        """What the tuning runs say of each rate."""
        return rate_scores(self.rows, seeds=self.view.tuning_seeds)

    @cached_property
    def choice(self) -> RateChoice:
        """The best rate, where it lies, and the edge of divergence."""
        return self.view.choice(self.scores, greater_is_better=self.greater_is_better)

    @cached_property
    def closing(self) -> list[RunRow]:
        """The closing runs that are quoted: at the best rate, or where none are, at the rate that has most of them."""
        closing = [row for row in self.of("closing") if not row.repeat]
        if not closing:
            return []
        counts = Counter(row.lr for row in closing)
        best = self.choice.best.lr if self.choice.best else None
        rate = best if best in counts else max(counts, key=lambda lr: (counts[lr], -lr))
        return sorted((row for row in closing if row.lr == rate), key=lambda row: row.seed)

    @cached_property
    def finished_closing(self) -> list[RunRow]:
        """Those of them that finished with a finite figure on the test part."""
        ended = [row for row in self.closing if row.status == "finished"]
        return [row for row in ended if math.isfinite((row.test or {}).get(self.metric, math.nan))]

    def gaps(self) -> list[float] | None:
        """Return how far each other rate, or point of a search, was behind the chosen one on validation.

        A run that was stopped early is held against the chosen rate's run of its seed at that step. Rates at which a
        run diverged or failed could not be chosen and are left out.

        Returns:
            Mean over the tuning seeds of each; None where nothing was chosen.
        """
        points: dict[str, dict[int, RunRow]] = {}
        for row in (*self.of("tuning"), *self.of("search")):
            if row.seed in self.view.tuning_seeds and not row.repeat:
                points.setdefault(_point_of(row), {})[row.seed] = row
        best = self.choice.best
        picked = [row for row in self.of("tuning") if row.lr == best.lr] if best else self.closing
        chosen = points.pop(_point_of(picked[0]), {}) if picked else {}
        seeds = set(self.view.tuning_seeds)
        if set(chosen) != seeds or any(row.status != "finished" for row in chosen.values()):
            return None
        sign = 1 if self.greater_is_better else -1
        found = (_gap(chosen, other, sign) for other in points.values() if set(other) == seeds)
        return [gap for gap in found if gap is not None]


def cells_of(view: PlanView, rows: Sequence[RunRow]) -> list[CellRows]:
    """Return the rows cell by cell: arms in the plan's order, then points in the plan's order; others follow.

    The runs of a search follow those of the cell that it ended with; before it has ended they are no cell.

    Args:
        view: Of the plan.
        rows: Of the sweep.
    """
    grouped: dict[str, list[RunRow]] = {}
    for row in rows:
        if row.phase != "search":
            grouped.setdefault(cell_label(row.arm, row.axes), []).append(row)
    searched: dict[str, list[RunRow]] = {}
    for row in rows:
        if row.phase == "search":
            searched.setdefault(view.home(row), []).append(row)
    planned = [cell_label(arm, point) for arm, point in itertools.product(view.arms, view.points)]
    places = {label: place for place, label in enumerate(planned)}
    homes = {label: view.home(found[0]) for label, found in grouped.items()}
    order = sorted(grouped, key=lambda label: places.get(homes[label], len(places)))
    return [CellRows(label, (*grouped[label], *searched.get(homes[label], ())), view) for label in order]


def analyse_cell(cell: CellRows, view: PlanView, *, noise: NoiseFloor | None, resamples: int) -> CellSummary:
    """Return what was found in one cell.

    Args:
        cell: Its rows.
        view: Of the plan.
        noise: Noise of the metric on validation, for the basin.
        resamples: Of the interval's bootstrap.
    """
    first, choice, ended = cell.rows[0], cell.choice, cell.finished_closing
    closing = tuple(SeedValue(row.seed, (row.test or {})[cell.metric]) for row in ended)
    values = [value for _, value in closing]
    sized = (cell.closing or list(cell.rows))[0]
    return CellSummary(
        label=cell.label,
        arm=first.arm,
        axes=dict(first.axes),
        rank=first.rank,
        rates=tuple(_rate_point(cell, score) for score in cell.scores),
        best_rate=choice.best.lr if choice.best else None,
        best_validation=choice.best.mean if choice.best else None,
        best_at=choice.best_at,
        at_bound=choice.at_bound,
        largest_stable=choice.largest_stable,
        divergence_edge=choice.divergence_edge,
        basin=_basin(cell, noise),
        rate_doubt=_rate_doubt(cell, noise),
        closing_rate=cell.closing[0].lr if cell.closing else None,
        closing=closing,
        mean=statistics.fmean(values) if values else None,
        interval=mean_interval(values, resamples=resamples),
        deviation=deviation(values),
        test=_means(row.test for row in ended),
        before=_means(row.before for row in ended),
        closing_loss=_mean(_last_loss(row) for row in ended),
        closing_validation=_mean(row.validation for row in ended),
        closing_diverged=tuple(row.seed for row in cell.closing if row.status == "diverged"),
        closing_failed=tuple(row.seed for row in cell.closing if row.status == "failed"),
        trained_parameters=sized.trained_parameters,
        head_parameters=sized.head_parameters,
        flops_per_step=sized.flops_per_step,
        health=dict(Counter(name for row in cell.closing for name in dict.fromkeys(row.health))),
        cost=spent_by_phase(cell.rows),
        caveats=tuple(_caveats(cell, view)),
    )


def spent(rows: Sequence[RunRow]) -> Spent:
    """Return what some runs cost.

    Args:
        rows: Theirs.
    """
    flops = [row.steps * row.flops_per_step for row in rows if row.flops_per_step is not None]
    return Spent(
        runs=len(rows),
        steps=sum(row.steps for row in rows),
        planned_steps=sum(row.planned_steps for row in rows),
        saved_steps=sum(row.planned_steps - row.steps for row in rows if row.status == "pruned"),
        seconds=sum(row.setup_seconds + row.train_seconds + row.evaluate_seconds for row in rows),
        flops=sum(flops) if rows and len(flops) == len(rows) else None,
    )


def spent_by_phase(rows: Sequence[RunRow]) -> dict[str, Spent]:
    """Return what some runs cost, by their phase.

    Args:
        rows: Theirs.
    """
    phases = dict.fromkeys(row.phase for row in rows)
    return {phase: spent([row for row in rows if row.phase == phase]) for phase in phases}


def _rate_point(cell: CellRows, score: RateScore) -> RatePoint:
    runs = {row.seed: row for row in cell.of("tuning") if row.lr == score.lr}
    losses = tuple(SeedValue(seed, loss) for seed in score.values if (loss := _last_loss(runs[seed])) is not None)
    return RatePoint(
        lr=score.lr,
        status=score.status,
        values=tuple(SeedValue(seed, value) for seed, value in score.values.items()),
        mean=score.mean,
        losses=losses,
        mean_loss=_mean(loss for _, loss in losses),
        pruned=score.pruned,
        diverged=score.diverged,
        failed=score.failed,
        collapsed=score.collapsed,
    )


def _basin(cell: CellRows, noise: NoiseFloor | None) -> Basin | None:
    best = cell.choice.best
    if best is None or noise is None:
        return None
    means: dict[float, float | Literal["diverged", "pruned", "missing"]] = {}
    for score in cell.scores:
        if score.complete and score.mean is not None:
            means[score.lr] = score.mean
        else:
            means[score.lr] = "diverged" if score.diverged else "pruned" if score.pruned else "missing"
    floor = noise.deviation / math.sqrt(len(best.values))
    return basin_width(means, best=best.lr, floor=floor, greater_is_better=cell.greater_is_better)


def _rate_doubt(cell: CellRows, noise: NoiseFloor | None) -> float | None:
    gaps = cell.gaps()
    if gaps is None or noise is None or not cell.view.tuning_seeds:
        return None
    # Runs of one seed share some of their noise, so their difference has at most this standard error. Each cell that
    # is compared with the best one is one more that may have had bad luck.
    bound = float(stats.norm.isf(ALPHA / max(1, cell.view.cells - 1)))
    error = noise.deviation * math.sqrt(2 / len(cell.view.tuning_seeds))
    return max([0.0, *(bound * error - gap for gap in gaps)])


def _gap(chosen: Mapping[int, RunRow], other: Mapping[int, RunRow], sign: int) -> float | None:
    gaps: list[float] = []
    for seed, row in other.items():
        ahead = chosen[seed].validation
        if row.status == "pruned":
            scores = chosen[seed].scores
            ahead = dict(zip(scores.get("step", ()), scores.get("value", ()), strict=True)).get(row.steps)
        if row.status not in ("finished", "pruned") or ahead is None or row.validation is None:
            return None
        gaps.append(sign * (ahead - row.validation))
    return statistics.fmean(gaps)


def _caveats(cell: CellRows, view: PlanView) -> list[str]:
    said: list[str] = []
    at = cell.choice.best_at
    if at in ("lower end", "upper end"):
        end = "smallest" if at == "lower end" else "largest"
        why = ", where the plan's bound stops the grid" if cell.choice.at_bound else ""
        said.append(f"The rate of {cell.label} is the {end} of the tried ones{why}: a better one may lie beyond.")
    searched = len({row.lr for row in cell.of("search")}) > 1
    if at == "only rate" or (at is None and cell.closing and not searched):
        said.append(f"The rate of {cell.label} was not tuned.")
    if at is None and cell.scores and not cell.closing and not any(score.missing for score in cell.scores):
        said.append(f"No rate of {cell.label} has finished with all its seeds, so it has no closing runs.")
    best = cell.choice.best
    if best is not None and cell.closing and cell.closing[0].lr != best.lr:
        said.append(
            f"The closing runs of {cell.label} are at {rate_text(cell.closing[0].lr)}, not at its best rate"
            f" {rate_text(best.lr)}."
        )
    lost = [row.seed for row in cell.closing if row.status == "diverged"]
    if lost:
        said.append(
            f"{len(lost)} of {len(cell.closing)} closing runs of {cell.label} diverged; its figures are those of the"
            " others."
        )
    return said


def _arm_name(arm: Any) -> str:
    return str(arm.get("name") or arm.get("label")) if isinstance(arm, Mapping) else str(arm)


def _points(axes: Any) -> list[dict[str, Any]]:
    pairs = axes.items() if isinstance(axes, Mapping) else [(axis["field"], axis["values"]) for axis in axes]
    names, values = [name for name, _ in pairs], [each for _, each in pairs]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]


def _seeds(planned: Iterable[int] | None, rows: Sequence[RunRow], *, phase: Phase) -> tuple[int, ...]:
    return tuple(planned) if planned else tuple(sorted({row.seed for row in rows if row.phase == phase}))


def _point_of(row: RunRow) -> str:
    return f"{cell_label(row.arm, row.axes)}, rate {row.lr!r}"


def _last_loss(row: RunRow) -> float | None:
    losses = row.losses.get("loss") or ()
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else None


def _means(mappings: Iterable[Mapping[str, float] | None]) -> dict[str, float]:
    known = [mapping for mapping in mappings if mapping]
    names = dict.fromkeys(name for mapping in known for name in mapping)
    means = {name: _mean(mapping.get(name) for mapping in known) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}
