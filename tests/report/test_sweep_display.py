from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

import small_sweep
from asymlora.report.sweep_display import SweepDisplay
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.train.recipe import Recipe

CELLS = ["init_a", "b_only, adapter.rank 4"]


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def job_of(row: RunRow) -> RunJob:
    return RunJob(recipe=Recipe.from_dict(row.recipe), phase=row.phase, arm=row.arm, axes=row.axes, seed=row.seed)


def display(width: int = 80, *, terminal: bool = False, height: int = 25, clock: Clock | None = None) -> SweepDisplay:
    console = Console(
        file=io.StringIO(), record=True, width=width, height=height, force_terminal=terminal, color_system=None
    )
    return SweepDisplay(console, clock=clock or Clock())


def screen(shown: SweepDisplay) -> str:
    """What stands on the screen now, as text."""
    console = Console(file=io.StringIO(), width=shown.console.width, height=shown.console.height, color_system=None)
    with console.capture() as captured:
        console.print(shown.table())
    return captured.get()


@pytest.fixture
def lively() -> Iterator[SweepDisplay]:
    """A display on a terminal, with one run ended and one going on."""
    clock = Clock()
    made = display(terminal=True, clock=clock)
    with made:
        made.planned(CELLS, 12, each=dict.fromkeys(CELLS, 6))
        ended, running = (small_sweep.row("init_a", lr=3e-3, seed=seed) for seed in (100, 101))
        made.started(job_of(ended))
        made.progress(job_of(ended), 1, 80, {"loss": 1.0})
        clock.now += 79
        made.ended(ended_as(ended))
        made.started(job_of(running))
        made.progress(job_of(running), 20, 80, {"loss": 0.5})
        yield made


def ended_as(row: RunRow) -> RunRow:
    return replace(row, id=job_of(row).id)


def lines(shown: SweepDisplay) -> list[str]:
    return shown.console.export_text().splitlines()


def test_a_cell_shows_its_counts_and_its_best_so_far(lively: SweepDisplay) -> None:
    text = screen(lively)
    # accuracy of small_sweep at its best rate, of one seed
    best = f"{small_sweep.quality('init_a', 3e-3, 100):.1%}"
    assert re.search(rf"^init_a +1 +1 +4 +3e-3 +{re.escape(best)} \(1\) +-", text, re.MULTILINE)
    assert re.search(r"^b_only, adapter.rank 4 +0 +- +6 +- +- +-", text, re.MULTILINE)


def test_what_has_not_happened_has_no_column_and_then_one(lively: SweepDisplay) -> None:
    assert not re.search(r"pruned|div\.|failed", screen(lively))
    lively.ended(small_sweep.row("init_a", lr=1e-4, seed=100, status="pruned"))
    lively.ended(small_sweep.row("init_a", lr=1e-1, seed=100, status="diverged"))
    assert re.search(r"done +running +pruned +div\. +waiting", screen(lively))
    assert re.search(r"^init_a +1 +1 +1 +1 +2 ", screen(lively), re.MULTILINE)


def test_the_bar_counts_runs_and_says_about_how_long(lively: SweepDisplay) -> None:
    # 79 steps took 79 s until the second run began, whose 20 steps took none; 11 runs of 80 less 20 are left.
    seconds = (11 * 80 - 20) * 79 / 99
    assert f"1/12 runs, about {seconds / 60:.0f} min left" in screen(lively)


def test_the_current_run_shows_its_step_and_loss(lively: SweepDisplay) -> None:
    assert "init_a, rate 3e-3, seed 101: step 20/80  loss 0.500\n" in screen(lively)
    lively.started(job_of(small_sweep.row("b_only", lr=1e-3, seed=100)))
    assert "b_only, rate 1e-3, seed 100: starting and 1 more" in screen(lively)


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_fold_and_nothing_is_cut(width: int) -> None:
    shown = display(width, terminal=True)
    label = "hB_zero_A_kaiming_uniform, train.batch_size 16, train.weight_decay 0.01"
    with shown:
        shown.planned(["[red]a[/red]", label], 6, each={"[red]a[/red]": 3, label: 3})
        text = screen(shown)
    assert max(map(len, text.splitlines())) <= width
    assert "[red]a[/red]" in text
    first_column = "".join(re.split(r" {2,}", line)[0] for line in text.splitlines())
    assert label.replace(" ", "") in first_column.replace(" ", "")


def test_many_cells_leave_room_for_the_bar_and_show_what_runs() -> None:
    shown = display(terminal=True, height=14)
    cells = [f"arm_{n:02}" for n in range(30)]
    with shown:
        shown.planned(cells, 60)
        shown.started(job_of(small_sweep.row("arm_27", lr=1e-3, seed=100)))
        text = screen(shown)
    assert len(text.splitlines()) <= 14
    assert "arm_27" in text
    assert "and 25 more" in text
    assert "0/60 runs" in text


def test_without_a_terminal_each_run_is_a_line_and_nothing_else() -> None:
    shown = display(120)
    with shown:
        shown.planned(["init_a"], 5)
        for status in ("finished", "pruned", "diverged", "failed"):
            row = small_sweep.row("init_a", lr=3e-3, seed=100, status=status)
            shown.started(job_of(row))
            shown.progress(job_of(row), 1, 80, {"loss": 1.0})
            shown.ended(row)
        shown.ended(small_sweep.row("init_a", lr=3e-3, seed=0, phase="closing"))
        shown.finished({})
    words = [
        f"tuning: accuracy {small_sweep.quality('init_a', 3e-3, 100):.3f} on validation (",
        "tuning: stopped early at step 40 of 80, accuracy",
        "tuning: diverged at step 20 (",
        "tuning: failed: No space left. (",
        "on test (",
    ]
    printed = lines(shown)
    assert len(printed) == 5
    for number, (line, wanted) in enumerate(zip(printed, words, strict=True), 1):
        # All rows of one seed and rate have one id here, so the count stays until the closing run.
        assert line.startswith(f"[{min(number, 1) if number < 5 else 2}/5] init_a, rate 3e-3, seed ")
        assert wanted in line


def test_rows_of_an_earlier_session_are_counted_in_one_line() -> None:
    shown = display()
    rows = [small_sweep.row("init_a", lr=3e-3, seed=seed) for seed in (100, 101, 102)]
    with shown:
        shown.planned(["init_a"], 5)
        for row in rows[:2]:
            shown.ended(row)
        shown.started(job_of(rows[2]))
    assert lines(shown) == ["2 of 5 runs ended in an earlier session and are not repeated"]


def test_a_sweep_that_had_ended_says_so_without_a_run() -> None:
    shown = display()
    with shown:
        shown.planned(["init_a"], 1)
        shown.ended(small_sweep.row("init_a", lr=3e-3, seed=100))
        shown.finished({})
    assert lines(shown) == ["1 of 1 runs ended in an earlier session and are not repeated"]


def test_growth_and_losses_are_said_and_names_are_no_markup() -> None:
    shown = display()
    with shown:
        shown.planned(["[b]a[/b]"], 5)
        shown.grown("[b]a[/b]", 0.0316228)
        shown.lost(job_of(small_sweep.row("init_a", lr=3e-3, seed=100)), "Its worker was killed by signal 9.")
    assert lines(shown) == [
        "[b]a[/b]: the best rate is the last that was tried; trying 3.16e-2 too",
        "Lost, and done again: init_a, rate 3e-3, seed 100. Its worker was killed by signal 9.",
    ]


def test_the_table_is_gone_after_the_end_and_stays_after_an_interruption() -> None:
    for ends in (True, False):
        shown = display(terminal=True)
        with shown:
            shown.planned(["init_a"], 5)
            if ends:
                shown.finished({})
        assert shown._live.transient is ends
        assert not shown._live.is_started


def test_slow_drawing_takes_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    shown = display(terminal=True, clock=clock)
    job = job_of(small_sweep.row("init_a", lr=3e-3, seed=100))
    drawn: list[float] = []

    def slowly() -> None:
        drawn.append(clock.now)
        clock.now += 0.25

    with shown:
        shown.planned(["init_a"], 5)
        monkeypatch.setattr(shown._live, "refresh", slowly)
        while clock.now < 60:
            clock.now += 0.5
            shown.progress(job, 1, 100, {"loss": 1.0})
        taken = list(drawn)
    # The first after the pause of a fast drawing, then each 25 s after the end of the one before.
    assert taken == [1.0, 26.25, 51.5]


def test_drawing_is_limited_to_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    shown = display(terminal=True, clock=clock)
    job = job_of(small_sweep.row("init_a", lr=3e-3, seed=100))
    drawn: list[float] = []
    with shown:
        shown.planned(["init_a"], 5)
        monkeypatch.setattr(shown._live, "refresh", lambda: drawn.append(clock.now))
        for step in range(100):
            clock.now += 0.0625
            shown.progress(job, step, 100, {"loss": 1.0})
        taken = list(drawn)
    assert taken == [1, 2, 3, 4, 5, 6]  # of 6.25 seconds
