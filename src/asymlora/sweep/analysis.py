"""From the rows of a sweep to what they show: curves, best rates, closing figures, comparisons, the answer. No torch.

The shape of the result is in `asymlora.sweep.summary`, what is found in one cell in `asymlora.sweep.cell_analysis`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asymlora.sweep.cell_analysis import CellRows, PlanView, analyse_cell, cells_of, spent, spent_by_phase
from asymlora.sweep.noise import noise_floor
from asymlora.sweep.rates import rate_text
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.statistics import ALPHA
from asymlora.sweep.summary import CellSummary, Comparison, NoiseFloor, Spent, Summary
from asymlora.sweep.verdicts import Contender, Shown, compare_cells, interval_text

__all__ = ["CellSummary", "Comparison", "Summary", "analyse"]


def analyse(plan: Mapping[str, Any], rows: Sequence[RunRow], *, resamples: int = 9999) -> Summary:
    """Return all that the rows of a sweep show, as far as it went.

    Args:
        plan: As ``sweep.yaml`` holds it (`SweepPlan.to_dict`). What it lacks is read from the rows: the order of the
            arms and the seeds. Equivalence is tested only where it states a ``margin``.
        rows: Of ended runs, of one metric; of the same id the last one counts. Those that the plan does not ask for,
            of a larger plan before, are passed over.
        resamples: Of the intervals' bootstrap.

    Returns:
        The summary. Missing runs are no error; what they hide is None, and the notes say so.
    """
    rows = list({row.id: row for row in rows}.values())
    view = PlanView.of(plan, rows)
    rows = [row for row in rows if view.asks(row)]
    metric = next((row.metric for row in rows if row.metric), "")
    cells = cells_of(view, [row for row in rows if row.metric in ("", metric)])
    shown = _shown(rows)
    validation = _validation_noise(cells, shown.metric)
    found = [analyse_cell(cell, view, noise=validation, resamples=resamples) for cell in cells]
    comparisons = compare_cells(
        [_contender(cell) for cell in found],
        shown,
        margin=view.margin,
        planned=math.comb(view.cells, 2),
        resamples=resamples,
    )
    repeats = _repeats(cells, shown.metric)
    return Summary(
        answer=_answer(found, comparisons, shown),
        metric=shown.metric,
        greater_is_better=shown.greater_is_better,
        scale=shown.scale,
        unit=shown.unit,
        cells=tuple(found),
        comparisons=tuple(comparisons),
        noise=noise_floor(
            ([value for _, value in cell.closing] for cell in found),
            of=f"{shown.metric} on test of closing runs that differ in the seed alone",
        ),
        validation_noise=validation,
        repeats=repeats,
        alpha=ALPHA,
        runs=dict(Counter(row.status for row in rows)),
        cost=_cost(rows),
        finished=_finished(found, view),
        notes=tuple(_notes(found, view, rows=rows, metric=metric, repeats=repeats)),
    )


def _shown(rows: Sequence[RunRow]) -> Shown:
    named = [row for row in rows if row.metric]
    if not named:
        return Shown(metric="", greater_is_better=True)
    metric = named[0].metric
    values = [value for row in named for value in (row.validation, (row.test or {}).get(metric)) if value is not None]
    return Shown.of(metric, values, greater_is_better=named[0].greater_is_better)


def _validation_noise(cells: Iterable[CellRows], metric: str) -> NoiseFloor | None:
    """Of the closing runs where there are any: at the best rate, which is where a basin's floor is needed."""
    cells = list(cells)
    closing = noise_floor(
        ([row.validation for row in cell.finished_closing if row.validation is not None] for cell in cells),
        of=f"{metric} on validation of closing runs that differ in the seed alone",
    )
    if closing is not None:
        return closing
    return noise_floor(
        (list(cell.choice.best.values.values()) for cell in cells if cell.choice.best is not None),
        of=f"{metric} on validation of tuning runs at the best rates that differ in the seed alone",
    )


def _repeats(cells: Iterable[CellRows], metric: str) -> NoiseFloor | None:
    groups: dict[tuple[str, float, int], list[float]] = {}
    for cell in cells:
        for row in (*cell.of("closing"), *cell.of("repeat")):
            if row.status == "finished" and (value := (row.test or {}).get(metric)) is not None:
                groups.setdefault((cell.label, row.lr, row.seed), []).append(value)
    return noise_floor(groups.values(), of=f"{metric} on test of runs repeated with the same recipe and seed")


def _contender(cell: CellSummary) -> Contender:
    return Contender(
        label=cell.label,
        values=dict(cell.closing),
        doubt=cell.rate_doubt or 0.0,
        diverged=cell.closing_diverged,
        caveats=cell.caveats,
    )


def _cost(rows: Sequence[RunRow]) -> dict[str, Spent]:
    return {**spent_by_phase(rows), "all": spent(rows)}


def _finished(found: Sequence[CellSummary], view: PlanView) -> bool:
    wanted = set(view.closing_seeds)
    return len(found) >= view.cells > 0 and all(
        wanted <= {seed for seed, _ in cell.closing} | set(cell.closing_diverged) for cell in found
    )


def _answer(found: Sequence[CellSummary], comparisons: Sequence[Comparison], shown: Shown) -> str:
    closed = [cell for cell in found if cell.mean is not None]
    if not closed:
        return _open_answer(found, shown)
    ahead = max(closed, key=lambda cell: (cell.mean or 0.0) * (1 if shown.greater_is_better else -1))
    if len(found) == 1:
        return f"{_reached(ahead, shown)} There is one cell, so it is compared with nothing."
    mine = [pair for pair in comparisons if ahead.label in (pair.first, pair.second)]
    beaten = [pair for pair in mine if pair.better == ahead.label]
    if len(beaten) == len(mine):
        others = "the other" if len(mine) == 1 else f"each of the other {len(mine)}"
        return f"{ahead.label} is best: it is better than {others}. {_reached(ahead, shown)}"
    return f"{_undecided(comparisons, found)} {'Highest' if shown.greater_is_better else 'Lowest'} mean: " + _reached(
        ahead, shown
    )


def _undecided(comparisons: Sequence[Comparison], found: Sequence[CellSummary]) -> str:
    decided = [pair for pair in comparisons if pair.better]
    if all(pair.outcome == "equivalent" for pair in comparisons):
        return "All are equivalent within the stated margin." if len(found) > 2 else "The two are equivalent."
    if not decided:
        return f"The {'two' if len(found) == 2 else len(found)} cannot be told apart by these runs."
    said = [
        f"{pair.better} is better than {pair.second if pair.better == pair.first else pair.first}" for pair in decided
    ]
    return f"No cell is better than all others; {', '.join(said)}."


def _reached(cell: CellSummary, shown: Shown) -> str:
    assert cell.mean is not None
    rate = f" at the rate {rate_text(cell.closing_rate)}" if cell.closing_rate is not None else ""
    seeds = f"{len(cell.closing)} seed{'s' if len(cell.closing) != 1 else ''}"
    return (
        f"{cell.label} with {shown.amount(cell.mean)} on test{rate} ({interval_text(cell.interval, shown)}, {seeds})."
    )


def _open_answer(found: Sequence[CellSummary], shown: Shown) -> str:
    tuned = [cell for cell in found if cell.best_validation is not None]
    if not tuned:
        if not found:  # the runs of a search are no cell before it has ended
            return "No closing run has ended yet." if shown.metric else "No run has a result yet."
        return "No rate has finished with all its seeds yet."
    ahead = max(tuned, key=lambda cell: (cell.best_validation or 0.0) * (1 if shown.greater_is_better else -1))
    assert ahead.best_validation is not None
    assert ahead.best_rate is not None
    return (
        f"No closing run has ended yet. On validation {ahead.label} is ahead with"
        f" {shown.amount(ahead.best_validation)} at the rate {rate_text(ahead.best_rate)}, which decides nothing."
    )


def _notes(
    found: Sequence[CellSummary], view: PlanView, *, rows: Sequence[RunRow], metric: str, repeats: NoiseFloor | None
) -> list[str]:
    said: list[str] = []
    if not _finished(found, view):
        said.append(
            "The sweep is not finished: some closing runs that its plan names have no result. What is said now may"
            " change, and who looks often and stops at the first difference is wrong more often than 1 time in 20."
        )
    failed = sum(row.status == "failed" for row in rows)
    if failed:
        said.append(f"{failed} run{'s' if failed != 1 else ''} failed and count for nothing until they are done again.")
    if pruned := sum(row.status == "pruned" for row in rows):
        said.append(
            f"{pruned} tuning run{'s were' if pruned != 1 else ' was'} stopped early: a rate of which a run was stopped"
            " cannot be chosen, though its later steps are not known."
        )
    metrics = sorted({row.metric for row in rows if row.metric})
    if len(metrics) > 1:
        said.append(f"The rows hold several metrics ({', '.join(metrics)}); only those of {metric} are analysed.")
    if repeats is not None:
        said.append(_repeats_note(repeats))
    if set(view.closing_seeds) & set(view.tuning_seeds):
        said.append("Some seeds both chose the rate and are quoted: their figures are better than fresh ones would be.")
    return said


def _repeats_note(repeats: NoiseFloor) -> str:
    if repeats.deviation == 0:
        return "Runs repeated with the same recipe and seed gave the same figure: the noise is that of the seeds alone."
    return (
        f"Runs repeated with the same recipe and seed differ, by a standard deviation of {repeats.deviation:.3g}: the"
        " machine does not repeat itself."
    )
