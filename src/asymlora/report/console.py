"""A run as a terminal shows it: stages, a live bar, and plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunDisplay:
    """Shows stages and training progress; a context manager, so that the bar is taken down whatever happens.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.folder = ""
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._validation: float | None = None

    def __enter__(self) -> RunDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begun(self, folder: str) -> None:
        """Show where the run is kept."""
        self.folder = folder
        self.stage(f"Run folder: {folder}")

    def stage(self, text: str) -> None:
        """Show one line."""
        # Labels and paths are the user's: brackets and colons in them are no markup, and a path stays on its line.
        self.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def progress(self, what: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Move the bar of ``what``; without a terminal, print a line when a validation score is new."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        if not self.console.is_terminal:
            if values.get("validation") != self._validation:
                self._validation = values.get("validation")
                self.stage(f"step {done}/{total}  {shown}")
            return
        if what not in self._tasks:
            self._bar.start()
            self._tasks[what] = self._bar.add_task(what, total=total, values="")
        self._bar.update(self._tasks[what], completed=done, values=shown)
