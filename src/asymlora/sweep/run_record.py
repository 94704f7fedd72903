"""One run of a sweep: what is to be done, and the flat row that it leaves. No torch in here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from asymlora.errors import SpecError
from asymlora.train.recipe import Recipe

Phase = Literal["tuning", "closing", "search", "repeat"]
"""``tuning``: chooses the rate, on validation; ``closing``: on fresh seeds at the chosen rate, scored on test;
``search``: proposed by a sampler; ``repeat``: a closing run once more, bit for bit the same settings."""
Status = Literal["finished", "pruned", "diverged", "failed"]
"""``pruned``: stopped early because others were ahead; ``diverged``: a loss or weight was not finite; ``failed``:
another error, tried again when the sweep is resumed."""
TIMINGS = ("setup_seconds", "train_seconds", "evaluate_seconds", "peak_memory_bytes", "executor", "worker", "ended")
"""Fields of a row that differ when the same run is done again."""


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """A run that is to be done.

    Attributes:
        recipe: Its resolved recipe.
        phase: What it is for.
        arm: Name of its arm.
        axes: Values of further axes by the recipe's dotted field name.
        seed: The paired seed: of the rows' order, the head, the dropout, and the adapter's draw.
        repeat: 0, or the number of a repetition of the same recipe.
        scores_test: Whether the closing figures on the test part are wanted.
        keeps_adapter: Whether the adapter is kept in the sweep's folder.
        rivals: What earlier runs of the same arm and seed had reached, for stopping early: one mapping from step to
            metric each. None: the run is never stopped early.
        prune_eta: Of the runs that reach a rung, one in so many goes on.
    """

    recipe: Recipe
    phase: Phase
    arm: str
    axes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int
    repeat: int = 0
    scores_test: bool = False
    keeps_adapter: bool = False
    rivals: Sequence[Mapping[int, float]] | None = None
    prune_eta: int = 2

    @cached_property
    def id(self) -> str:
        """Twenty hexadecimal digits that stand for the resolved recipe and the repetition."""
        return run_id(self.recipe, repeat=self.repeat)


def run_id(recipe: Recipe, *, repeat: int = 0) -> str:
    """Return the stable id of a resolved recipe: the same in any process, folder and order.

    Args:
        recipe: The recipe.
        repeat: Number of the repetition.

    Example:
        >>> run_id(Recipe()) == run_id(Recipe()) != run_id(Recipe(), repeat=1)
        True
    """
    canonical = json.dumps({"recipe": recipe.to_dict(), "repeat": repeat}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def cell_label(arm: str, axes: Mapping[str, Any]) -> str:
    """Return what a cell is called: its arm and its point of the further axes.

    Args:
        arm: Name of the arm.
        axes: Values of the further axes by the recipe's dotted field name.

    Example:
        >>> cell_label("init_a", {"train.batch_size": 16}), cell_label("init_a", {"adapter.targets": ["q", "v"]})
        ('init_a, train.batch_size 16', 'init_a, adapter.targets q+v')
    """
    return ", ".join([arm, *(f"{name} {_value_text(value)}" for name, value in axes.items())])


def _value_text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """What a run leaves: one line of ``runs.jsonl``.

    Attributes:
        id: As `RunJob.id`.
        phase: As in the job.
        arm: As in the job.
        axes: As in the job.
        seed: As in the job.
        repeat: As in the job.
        lr: ``train.lr`` of the recipe.
        rank: ``adapter.rank`` of the recipe.
        recipe: The resolved recipe, nested plain values.
        status: How it ended.
        error: What went wrong, as a sentence, where it diverged or failed.
        metric: Name of the metric.
        greater_is_better: Whether more of it is better.
        steps: Optimizer steps taken.
        planned_steps: Steps of the recipe.
        diverged_at: Step at which a loss or weight was not finite.
        validation: Metric on the validation part, of the weights that were kept; of a pruned run, the last one. None
            where it diverged or failed.
        best_step: Step of the weights that were kept.
        test: Every metric on the test part, of the weights that were kept, and closing measurements as
            ``choices.accuracy``; None where they were not asked for.
        before: Every metric on the test part before the first step, likewise.
        losses: ``step`` and ``loss``: training loss, mean since the step before.
        scores: ``step`` and ``value``: the metric on the validation part.
        dynamics: ``step`` and, for each measured quantity, its median over sites at each of these steps; empty where
            the factors are not measured.
        health: Names of the verdicts on factors and head.
        trained_parameters: Values trained, head included.
        head_parameters: Values of the head, and of what else is trained in full.
        flops_per_step: Floating-point operations of one optimizer step by `asymlora.theory.cost`; None where unknown.
        weights_digest: SHA-256 of the trained values that were kept, hexadecimal; None where there are none.
        adapter: Path of the kept adapter relative to the sweep's folder; None where it is not kept.
        threads: Threads of torch.
        setup_seconds: Before the first step: attaching, head, Trainer.
        train_seconds: Of the steps.
        evaluate_seconds: Of scoring.
        peak_memory_bytes: Largest resident memory of the process so far; None where it cannot be told.
        executor: ``inline``, ``processes`` or ``ray``.
        worker: Process id of the worker.
        ended: UTC time, ISO 8601.
    """

    id: str
    phase: Phase
    arm: str
    axes: Mapping[str, Any]
    seed: int
    repeat: int
    lr: float
    rank: int
    recipe: Mapping[str, Any]
    status: Status
    error: str | None = None
    metric: str = ""
    greater_is_better: bool = True
    steps: int = 0
    planned_steps: int = 0
    diverged_at: int | None = None
    validation: float | None = None
    best_step: int | None = None
    test: Mapping[str, float] | None = None
    before: Mapping[str, float] | None = None
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    dynamics: Mapping[str, Sequence[float | None]] = field(default_factory=dict[str, Sequence[float | None]])
    health: Sequence[str] = ()
    trained_parameters: int = 0
    head_parameters: int = 0
    flops_per_step: float | None = None
    weights_digest: str | None = None
    adapter: str | None = None
    threads: int = 1
    setup_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    executor: str = "inline"
    worker: int = 0
    ended: str = ""

    @property
    def final(self) -> bool:
        """Whether the run need not be done again."""
        return self.status != "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> RunRow:
        """Return the row of plain values.

        Args:
            mapping: As `to_dict` gives it; fields of a newer version are refused.

        Returns:
            The row.

        Raises:
            SpecError: A field is unknown or missing.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(mapping) - known):
            raise SpecError(f"A row of runs.jsonl has unknown fields: {', '.join(unknown)}.")
        try:
            return cls(**mapping)
        except TypeError as error:
            raise SpecError(f"A row of runs.jsonl lacks fields: {error}.") from None

    def result(self) -> dict[str, Any]:
        """Return what is the same whenever and wherever the run is done: everything but timings and memory."""
        return {key: value for key, value in self.to_dict().items() if key not in TIMINGS}
