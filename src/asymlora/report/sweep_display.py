"""A sweep as a terminal shows it while it runs: a live table of cells, and plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asymlora.report.sweep_tables import duration
from asymlora.report.tables import shown
from asymlora.sweep.observer import SilentObserver
from asymlora.sweep.progress import SweepProgress, cell_label
from asymlora.sweep.rates import rate_text
from asymlora.sweep.run_record import RunJob, RunRow

_COUNTS = {"done": "finished", "pruned": "pruned", "div.": "diverged", "failed": "failed"}
"""Columns, and the status that each counts."""
_LINES_BESIDE = 8
"""Lines of the screen that no cell can have: head, bar, current run, the prompt."""


class SweepDisplay(SilentObserver):
    """Shows how a sweep goes on; a context manager, so that the table is taken down whatever happens.

    Args:
        console: Where to write.
        clock: Seconds; for tests.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.state = SweepProgress(clock=clock)
        self._live = Live(
            console=console, auto_refresh=False, get_renderable=self.table, redirect_stdout=False, redirect_stderr=False
        )
        self._clock = clock
        self._draw_after = float("-inf")
        self._told_of_stored = False

    def __enter__(self) -> SweepDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.refresh()
            self._live.stop()

    def planned(self, cells: Sequence[str], runs: int, *, each: Mapping[str, int] | None = None) -> None:
        """Begin to show the cells, or take note of another number of runs."""
        self.state.planned(cells, runs, each=each)
        if self.console.is_terminal and not self._live.is_started:
            self._live.start()
        self._draw(now=True)

    def grown(self, cell: str, lr: float) -> None:
        """Say that a cell has got a further rate."""
        self.stage(f"{cell}: the best rate is the last that was tried; trying {rate_text(lr)} too")

    def started(self, job: RunJob) -> None:
        """Count a run as running."""
        self._tell_of_stored()
        self.state.started(job)
        self._draw()

    def progress(self, job: RunJob, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Move the bar."""
        self.state.progress(job, step, steps, values)
        self._draw()

    def ended(self, row: RunRow) -> None:
        """Count a run as ended; without a terminal, print a line of it."""
        self.state.ended(row)
        if not self.console.is_terminal and self.state.began:
            self.stage(f"[{self.state.ended_runs}/{self.state.runs}] {_line(row)}")
        elif row.status == "failed":
            self.stage(_line(row))
        self._draw()

    def lost(self, job: RunJob, reason: str) -> None:
        """Say that a run is done again."""
        self.state.lost(job)
        self.stage(f"Lost, and done again: {_words(job.arm, job.axes, job.recipe.train.lr, job.seed)}. {reason}")

    def stage(self, text: str) -> None:
        """Show one line above the table."""
        # Names and paths are the user's: brackets and colons in them are no markup, and a path stays on its line.
        self.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Take the table down: the tables of the summary say more."""
        self._tell_of_stored()
        self._live.transient = True

    def table(self) -> RenderableType:
        """Return what stands on the screen: a row a cell, the bar, and the current run."""
        wide = self.console.width >= 100
        parts: list[RenderableType] = [self._cells(wide), Text(), self._bar()]
        if current := self._current():
            parts.append(Text(current, no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _tell_of_stored(self) -> None:
        if not self._told_of_stored and self.state.ended_runs and not self.state.began:
            known = self.state.ended_runs
            self.stage(f"{known} of {self.state.runs} runs ended in an earlier session and are not repeated")
        self._told_of_stored = True

    def _draw(self, *, now: bool = False) -> None:
        # Once a second at most, and for no more than a hundredth of the time: the runs in this process pay for it.
        started = self._clock()
        if self._live.is_started and (now or started >= self._draw_after):
            self._live.refresh()
            ended = self._clock()
            self._draw_after = max(started + 1.0, ended + 100 * (ended - started))

    def _cells(self, wide: bool) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), expand=False)
        table.add_column("cell", overflow="fold", ratio=None, min_width=8)
        waiting = self.state.each is not None
        for head in ("done", "running", *_heads(self.state), *(("waiting",) if waiting else ())):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("best rate", justify="right", no_wrap=True)
        for head in ("validation", "test"):
            table.add_column(f"{head} (seeds)" if wide else head, justify="right", no_wrap=True)
        shown_cells = self._cells_in_view()
        for label in shown_cells:
            table.add_row(*self._row(label))
        if hidden := len(self.state.cells) - len(shown_cells):
            table.add_row(Text(f"and {hidden} more", style="dim"))
        return table

    def _cells_in_view(self) -> list[str]:
        room = max(self.console.height - _LINES_BESIDE, 3)
        labels = list(self.state.cells)
        if len(labels) <= room:
            return labels
        # What moves is what one wants to see; the plan's order stays.
        first = sorted(labels, key=lambda label: not self.state.cells[label].running)[: room - 1]
        return [label for label in labels if label in first]

    def _row(self, label: str) -> list[Text]:
        cell = self.state.cells[label]
        best = cell.best()
        counts = [cell.ended[status] for head, status in _COUNTS.items() if head in ("done", *_heads(self.state))]
        texts = [str(counts[0]), str(len(cell.running) or "-"), *(str(count or "-") for count in counts[1:])]
        if self.state.each is not None:
            texts.append(str(self.state.waiting(label) or "-"))
        if best is None:
            texts += ["-", "-"]
        else:
            texts += [rate_text(best.lr), f"{shown(cell.metric, best.mean)} ({best.seeds})"]
        test = cell.test()
        texts.append("-" if test is None else f"{shown(cell.metric, test.mean)} ({test.seeds})")
        return [Text(label), *map(Text, texts)]

    def _bar(self) -> RenderableType:
        state = self.state
        left = state.seconds_left()
        words = f" {state.ended_runs}/{state.runs} runs"
        words += "" if left is None else f", about {duration(left)} left" if left else ""
        grid = Table.grid(padding=(0, 0))
        grid.add_row(ProgressBar(total=max(state.runs, 1), completed=state.share() * state.runs, width=30), Text(words))
        return grid

    def _current(self) -> str:
        if (run := self.state.newest()) is None:
            return ""
        job, at = run.job, f"step {run.step}/{run.steps}" if run.steps else "starting"
        values = "".join(f"  {name} {value:.3f}" for name, value in run.values.items())
        more = f" and {self.state.running - 1} more" if self.state.running > 1 else ""
        return f"{_words(job.arm, job.axes, job.recipe.train.lr, job.seed)}: {at}{values}{more}"


def _heads(state: SweepProgress) -> list[str]:
    # A column of noughts tells nothing that its absence does not.
    present = {status for cell in state.cells.values() for status, count in cell.ended.items() if count}
    return [head for head, status in _COUNTS.items() if status in present and head != "done"]


def _line(row: RunRow) -> str:
    metric = f"{row.metric} {row.validation:.3f} on validation" if row.validation is not None else ""
    how = {
        "finished": metric,
        "pruned": f"stopped early at step {row.steps} of {row.planned_steps}, {metric}",
        "diverged": f"diverged at step {row.diverged_at}",
        "failed": f"failed: {row.error}",
    }[row.status]
    if row.test is not None:
        how += f", {row.test[row.metric]:.3f} on test"
    seconds = row.setup_seconds + row.train_seconds + row.evaluate_seconds
    return f"{_words(row.arm, row.axes, row.lr, row.seed)}, {row.phase}: {how} ({duration(seconds)})"


def _words(arm: str, axes: Mapping[str, Any], lr: float, seed: int) -> str:
    return f"{cell_label(arm, axes)}, rate {rate_text(lr)}, seed {seed}"
