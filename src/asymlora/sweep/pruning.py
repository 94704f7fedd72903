"""Which runs are stopped early: successive halving over steps, by Optuna's pruner.

A decision depends on the run's own scores and on those of runs of its seed that ended in earlier waves, never on what
happens to run at the same time. So it is the same in one process, in several, on a cluster, and after a sweep was
resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asymlora.errors import MissingPackageError
from asymlora.sweep.run_record import RunJob, RunRow

Scores = Mapping[int, float]
"""A metric by the step that it was measured at."""


def is_behind(rivals: Sequence[Scores], own: Scores, *, every: int, eta: int, greater_is_better: bool) -> bool:
    """Return whether a run should be stopped at its last score.

    The rungs are at ``every * eta**k`` steps. At a rung a run goes on if it is among the best ``1/eta`` of the runs
    that have reached it, itself included; among fewer than ``2 * eta`` runs, if it is the best.

    Args:
        rivals: Scores of each earlier run, up to where it went.
        own: Scores of this run so far, the last of them new.
        every: Steps between two scores.
        eta: Of the runs at a rung, one in so many goes on; at least 2.
        greater_is_better: Whether more of the metric is better.

    Returns:
        Whether to stop.

    Raises:
        MissingPackageError: Optuna is not installed.

    Example:
        >>> is_behind([{10: 0.8}], {10: 0.7}, every=10, eta=2, greater_is_better=True)
        True
        >>> is_behind([{10: 0.8}], {10: 0.9}, every=10, eta=2, greater_is_better=True)
        False

    Source:
        Li et al., 2020, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2 (ASHA), as Optuna's
        `SuccessiveHalvingPruner` has it; that only ended waves count is ours.
    """
    optuna = quiet_optuna()
    study = optuna.create_study(
        direction="maximize" if greater_is_better else "minimize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=every, reduction_factor=eta),
    )
    for scores in rivals:
        _replay(study, scores)
    return _replay(study, own)


def _replay(study: Any, scores: Scores) -> bool:
    # The pruner notes a rung when it is asked there, whatever it answers.
    trial = study.ask()
    behind = False
    for step in sorted(scores):
        trial.report(scores[step], step)
        behind = trial.should_prune()
    return bool(behind)


def with_rivals(jobs: Iterable[RunJob], ended: Iterable[RunRow]) -> list[RunJob]:
    """Return runs that may be stopped early, each beside the ended runs of its own seed.

    Runs of one seed see the same rows from the same head, so what they differ in is what is compared; a run of another
    seed may be ahead or behind by its luck alone.

    Args:
        jobs: The runs.
        ended: Runs of the same cell that ended in earlier waves.
    """
    rows = list(ended)
    return [replace(job, rivals=scores_of(row for row in rows if row.seed == job.seed)) for job in jobs]


def scores_of(rows: Iterable[RunRow]) -> list[dict[int, float]]:
    """Return the metric of runs by step, as rivals of others.

    Args:
        rows: Rows of one cell.

    Returns:
        One mapping for each run that has a score.
    """
    found = [dict(zip(map(int, row.scores.get("step", ())), row.scores.get("value", ()), strict=True)) for row in rows]
    return [scores for scores in found if scores]


def quiet_optuna() -> Any:
    """Return Optuna, which would else tell of each study.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingPackageError("Early stopping and searches need Optuna: pip install 'asymlora[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
