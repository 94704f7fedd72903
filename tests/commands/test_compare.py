from __future__ import annotations

import json
from pathlib import Path

import pytest

import small_sweep
from asymlora.cli import main
from small_run import write_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def _sweep() -> None:
    small_sweep.write_folder(Path("sweep"))


@pytest.mark.usefixtures("_sweep")
def test_arms_of_a_sweep_are_printed_with_their_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "sweep", "--arm", "init_a", "--arm", "b_only"]) == 0
    text = capsys.readouterr().out
    assert "- init_a and b_only: not decided." in text
    assert "init_b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("one"))
    write_run(Path("two"), score=0.8)
    assert main(["compare", "one", "two", "--json", "--margin=0.005"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [cell["label"] for cell in found["cells"]] == ["one", "two"]
    assert found["comparisons"][0]["margin"] == 0.005


MISTAKES = {
    "no folder": (["compare"], "required: compare.folders"),
    "absent": (["compare", "absent"], "absent is not there"),
    "one run": (["compare", "one"], "only one is there to be compared"),
    "no such arm": (["compare", "sweep", "--arm", "init_c"], "No arm is called 'init_c'. Did you mean 'init_"),
    "no number": (["compare", "sweep", "--margin", "small"], "margin"),
    "no margin": (["compare", "sweep", "--margin", "0"], "margin=0 must be a number above 0"),
    "no option": (["compare", "sweep", "--marging", "1"], "unrecognized arguments: --marging 1"),
}


@pytest.mark.usefixtures("_sweep")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("one"))
    argv, words = MISTAKES[mistake]
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert words in shown.err
