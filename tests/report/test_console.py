from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from asymlora.report.console import RunDisplay


def _display(*, terminal: bool) -> tuple[RunDisplay, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, color_system=None, legacy_windows=False)
    return RunDisplay(console), written


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_without_a_terminal_each_new_validation_score_is_one_line() -> None:
    display, written = _display(terminal=False)
    with display:
        for step in range(1, 13):
            values = {"loss": 0.5} if step < 4 else {"loss": 0.25, "validation": 0.75 if step < 8 else 0.875}
            display.progress("training", step, 12, values)
    assert written.getvalue().splitlines() == [
        "step 4/12  loss 0.250  validation 0.750",
        "step 8/12  loss 0.250  validation 0.875",
    ]


def test_without_a_terminal_progress_without_a_score_is_silent() -> None:
    display, written = _display(terminal=False)
    with display:
        for rows in range(0, 640, 64):
            display.progress("features", rows, 640, {})
    assert written.getvalue() == ""


def test_stages_are_lines_and_the_folder_is_shown_and_kept() -> None:
    display, written = _display(terminal=False)
    assert display.folder == ""
    with display:
        display.stage("Reading rows.csv")
        display.begun("runs/one")
    assert written.getvalue().splitlines() == ["Reading rows.csv", "Run folder: runs/one"]
    assert display.folder == "runs/one"


@pytest.mark.parametrize("text", ["labels: [good], [bad]", "/a/[bold]/folder", "a [/] b", "a:smile:b"])
def test_words_in_brackets_are_shown_as_they_are(text: str) -> None:
    # Labels and paths come from the user: rich would take them for markup.
    display, written = _display(terminal=False)
    with display:
        display.stage(text)
    assert written.getvalue().splitlines() == [text]


def test_long_path_stays_on_one_line_to_be_copied() -> None:
    display, written = _display(terminal=False)
    with display:
        display.begun("/tmp/" + "long name/" * 20)
    assert len(written.getvalue().splitlines()) == 1


def test_on_a_terminal_the_bar_shows_what_how_far_and_the_newest_values() -> None:
    display, written = _display(terminal=True)
    with display:
        display.progress("training", 3, 12, {"loss": 0.5})
        display.progress("training", 12, 12, {"loss": 0.25, "validation": 0.75})
    shown = _plain(written.getvalue())
    assert "training" in shown
    assert "12/12" in shown
    assert "loss 0.250  validation 0.750" in shown
    assert "━" in shown


def test_on_a_terminal_each_stage_of_work_has_a_bar_of_its_own() -> None:
    display, written = _display(terminal=True)
    with display:
        display.progress("features", 64, 64, {})
        display.progress("training", 1, 2, {})
    last = _plain(written.getvalue()).splitlines()[-2:]
    assert any("features" in line and "64/64" in line for line in last)
    assert any("training" in line and "1/2" in line for line in last)


def test_on_a_terminal_no_line_is_printed_for_a_score() -> None:
    display, written = _display(terminal=True)
    with display:
        display.progress("training", 4, 12, {"validation": 0.75})
    assert "step 4/12" not in _plain(written.getvalue())


def test_bar_is_taken_down_when_the_run_breaks_off() -> None:
    display, written = _display(terminal=True)
    with pytest.raises(RuntimeError, match="broken"), display:
        display.progress("training", 1, 12, {})
        raise RuntimeError("broken")
    assert written.getvalue().count("\x1b[?25l") == written.getvalue().count("\x1b[?25h") == 1  # cursor hidden, shown
    before = written.getvalue()
    display.console.print("after")
    assert _plain(written.getvalue()[len(before) :]).splitlines() == ["after"]
