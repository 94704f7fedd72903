"""What a sweep tells while it runs, and the observer that listens to nothing. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from asymlora.sweep.run_record import RunJob, RunRow


class SweepObserver(Protocol):
    """What the engine of a sweep calls, all from one thread and in the order in which things happen.

    Of one run: ``started``, any number of ``progress``, then ``ended``, or ``lost`` and later ``started`` once more. An
    executor that hears nothing of a run before it ends leaves out ``progress``, but not ``started``: the time left is
    reckoned from there.
    """

    def planned(self, cells: Sequence[str], runs: int, *, each: Mapping[str, int] | None = None) -> None:
        """Hear what is to be done; called before the first run, and again when the number of runs is another.

        Args:
            cells: Labels of the cells, in the plan's order.
            runs: Runs of the whole sweep as far as they are known, those of an earlier session included.
            each: The same by cell; None where it is not known.
        """

    def grown(self, cell: str, lr: float) -> None:
        """Hear that the grid of a cell has grown by one rate, which its tuning seeds will be run at."""

    def started(self, job: RunJob) -> None:
        """Hear that a run has begun."""

    def progress(self, job: RunJob, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Hear how far a run is.

        Args:
            job: The run.
            step: Steps taken.
            steps: Steps that it will take unless it is stopped early.
            values: What is known at this step: ``loss``, or the metric on the validation part under its name.
        """

    def ended(self, row: RunRow) -> None:
        """Hear how a run ended; of the rows found in the store, before the first run is started."""

    def lost(self, job: RunJob, reason: str) -> None:
        """Hear that a run was lost with its worker and will be done again.

        Args:
            job: The run.
            reason: What is known of it, as a sentence.
        """

    def stage(self, text: str) -> None:
        """Hear in a sentence what the sweep does now: loading the model, closing runs, comparing adapters."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Hear that the sweep has ended.

        Args:
            summary: As `asymlora.sweep.analysis.Summary.to_dict` gives it.
        """


class SilentObserver:
    """An observer that does nothing."""

    def planned(self, cells: Sequence[str], runs: int, *, each: Mapping[str, int] | None = None) -> None:
        """Do nothing."""

    def grown(self, cell: str, lr: float) -> None:
        """Do nothing."""

    def started(self, job: RunJob) -> None:
        """Do nothing."""

    def progress(self, job: RunJob, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def ended(self, row: RunRow) -> None:
        """Do nothing."""

    def lost(self, job: RunJob, reason: str) -> None:
        """Do nothing."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""
