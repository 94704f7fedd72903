from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

import small_sweep
from asymlora.cli import main
from small_run import write_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _sweep() -> None:
    small_sweep.write_folder(Path("sweep"), small_sweep.rows(arms=("init_a",)), arms=("init_a",))


@pytest.mark.usefixtures("_sweep")
def test_by_default_a_page_stands_in_the_folder_and_may_be_made_anew(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "sweep"]) == 0
    page = Path("sweep/report.html")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out == f"Report: {page}\n"
    page.write_text(page.read_text(encoding="utf-8").replace("init_a", "old"), encoding="utf-8")
    assert main(["report", "sweep"]) == 0
    assert "init_a" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("_sweep")
@pytest.mark.parametrize("form", ["md", "csv", "json"])
def test_a_report_of_each_format_is_known_as_our_own(form: str) -> None:
    for _ in range(2):
        assert main(["report", "sweep", "--format", form]) == 0
    text = Path(f"sweep/report.{form}").read_text(encoding="utf-8")
    if form == "json":
        assert json.loads(text)["results"][0]["name"] == "sweep"
    elif form == "csv":
        assert len(list(csv.DictReader(text.splitlines()))) == len(small_sweep.rows(arms=("init_a",)))
    else:
        assert "with `asymlora report sweep --format md`" in text


@pytest.mark.usefixtures("_sweep")
def test_several_folders_are_reported_where_one_stands() -> None:
    write_run(Path("run"))
    assert main(["report", "sweep", "run", "--format=csv"]) == 0
    with Path("report.csv").open(encoding="utf-8", newline="") as file:
        assert {line["folder"] for line in csv.DictReader(file)} == {"sweep", "run"}


@pytest.mark.usefixtures("_sweep")
def test_the_ending_of_out_tells_the_format() -> None:
    assert main(["report", "sweep", "--out", "mine.json"]) == 0
    assert (
        json.loads(Path("mine.json").read_text(encoding="utf-8"))["command"] == "asymlora report sweep --out mine.json"
    )


@pytest.mark.usefixtures("_sweep")
@pytest.mark.parametrize("out", ["sweep/report.md", "mine.md"])
def test_a_file_of_others_is_left_alone_unless_overwrite_is_given(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(out).write_text("years of work", encoding="utf-8")
    argv = ["report", "sweep", "--format", "md", *(["--out", out] if out == "mine.md" else [])]
    assert main(argv) == 2
    assert f"{out} exists. Choose another name with --out, or replace it with --overwrite." in capsys.readouterr().err
    assert Path(out).read_text(encoding="utf-8") == "years of work"
    assert main([*argv, "--overwrite"]) == 0
    assert Path(out).read_text(encoding="utf-8").startswith("# sweep")


@pytest.mark.usefixtures("_sweep")
def test_a_report_that_was_named_is_not_replaced_even_if_it_is_ours() -> None:
    argv = ["report", "sweep", "--out", "mine.md"]
    assert [main(argv), main(argv), main([*argv, "--overwrite"])] == [0, 2, 0]


@pytest.mark.usefixtures("_sweep")
def test_the_summary_is_written_anew_from_the_rows() -> None:
    Path("sweep/summary.json").write_text('{"answer": "of before"}', encoding="utf-8")
    assert main(["report", "sweep", "--format", "md"]) == 0
    summary = json.loads(Path("sweep/summary.json").read_text(encoding="utf-8"))
    assert summary["cells"][0]["label"] == "init_a"
    assert "of before" not in Path("sweep/report.md").read_text(encoding="utf-8")


def test_a_table_of_a_sweep_without_runs_may_be_made_anew() -> None:
    small_sweep.write_folder(Path("begun"), [])
    argv = ["report", "begun", "--format", "csv"]
    assert [main(argv), main(argv)] == [0, 0]


def test_a_run_gets_no_summary() -> None:
    write_run(Path("run"))
    before = set(os.listdir("run"))
    assert main(["report", "run", "--format", "md"]) == 0
    assert set(os.listdir("run")) == before | {"report.md"}


def test_what_has_not_ended_is_reported_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    small_sweep.write_folder(Path("begun"), small_sweep.rows()[:3])
    write_run(Path("run"), score=None)
    assert main(["report", "begun", "run", "--format", "md"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "The sweep in begun has not ended; the report goes as far as it went.",
        "The run in run has not ended; its curves go as far as it went.",
        "Report: report.md",
    ]


@pytest.mark.usefixtures("_sweep")
def test_metrics_of_two_kinds_stand_in_one_report() -> None:
    lower = {"metrics": {"before": {"perplexity": 20.0}, "after": {"perplexity": 11.0}}}
    write_run(Path("run"), metric="perplexity", greater_is_better=False, **lower)
    assert main(["report", "sweep", "run", "--format", "md"]) == 0
    text = Path("report.md").read_text(encoding="utf-8")
    assert "## Accuracy on test" in text
    assert "## Perplexity on test" in text


MISTAKES = {
    "absent": (["report", "absent"], "absent is not there. Give the folder of a sweep or of a run."),
    "file": (["report", "sweep/runs.jsonl"], "runs.jsonl is a file"),
    "no results": (["report", "."], "holds no results"),
    "newer store": (["report", "newer"], "99"),
    "no format": (["report", "sweep", "--format", "pdf"], "--format pdf is none. Allowed: html, md, csv, json."),
    "no ending": (
        ["report", "sweep", "--out", "a.txt"],
        "--out a.txt has no ending that is known. Allowed: .html, .md, .csv, .json",
    ),
    "other ending": (["report", "sweep", "--format=md", "--out", "a.html"], "Allowed: .md"),
    "no place": (["report", "sweep", "--out", "no/a.html"], "there is no folder no"),
}


@pytest.mark.usefixtures("_sweep")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    newer = small_sweep.write_folder(Path("newer"), [])
    (newer / "runs.jsonl").write_text('{"kind": "store", "version": 99}\n')
    before = {path for path in Path().rglob("*")}
    argv, words = MISTAKES[mistake]
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert {path for path in Path().rglob("*")} == before
