"""The whole command on a made-up artefact with a small model: what it runs, says, keeps, compares and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small_artefact as small
from asymlora.cli import EXIT_ERROR, EXIT_INTERRUPTED, main
from asymlora.errors import SpecError
from asymlora.papers import catalogue
from asymlora.reproduce.artefact import Artefact, DataSet, MeasuredPart, SweepPart
from asymlora.reproduce.artefact_folder import read_evidence, read_findings
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.printed_count import MILLION, PrintedCount
from asymlora.sweep.grid import SweepPlan
from asymlora.train.recipe import Recipe

TREC = DataSet(name="TREC-6", source="github.com/owner/trec", place="text/trec6")


def _known(monkeypatch: pytest.MonkeyPatch, what: Artefact) -> None:
    monkeypatch.setattr(catalogue, "find", lambda name: what)
    monkeypatch.setattr(catalogue, "every", lambda: iter([what]))


def _reproduce(*words: str) -> int:
    return main(["reproduce", *words])


def _accuracy(evidence: Evidence) -> Finding:
    tested = [row.test["accuracy"] for row in small.closing(evidence, "reviews") if row.test]
    mean = sum(tested) / len(tested)
    return Finding(verdict="holds", ours=f"{mean:.1%}", estimate=mean, interval=(mean - 0.05, mean + 0.05), pairs=2)


@pytest.fixture
def tiny(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Artefact:
    """An artefact whose runs take half a second, in the working directory of the test."""
    small_recipe["train"] |= {"steps": 4, "evaluate_every": 4}
    plan = SweepPlan(
        recipe=Recipe.from_dict(small_recipe), arms=small.ARMS, rates=(1e-2,), tuning_seeds=(200,), closing_seeds=(0, 1)
    )  # fmt: skip
    claim = replace(
        small.count_claim("accurate", needed=0, kind="paper", parts=["reviews"]), judge=_accuracy, says="It learns.",
        paper="90 %",
    )  # fmt: skip
    toy = MeasuredPart(name="toy", points=({"width": 8},), measure=small.Meter())
    what = small.artefact(
        claims=[claim, small.count_claim("measured", needed=1, parts=["toy"])],
        parts=[
            SweepPart(
                name="reviews", plan=plan, printed={"init_a": PrintedCount(text="1 M", unit=MILLION, where="Table 3")}
            ),
            toy,
        ],
    )
    monkeypatch.chdir(tmp_path)
    _known(monkeypatch, what)
    return what


def test_an_artefact_is_run_judged_kept_and_compared(
    tiny: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _reproduce("made_up", "--keep", "kept") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "It learns." in said
    assert "Records: reproductions/made_up" in said
    path = tmp_path / "reproductions" / "made_up"
    assert (path / "report.html").stat().st_size > 10**6
    found = read_findings(path)
    assert found is not None
    assert (found["finished"], found["findings"]["accurate"]["verdict"]) == (True, "holds")
    rows = read_evidence(path).sweep("reviews").rows
    assert [(row.arm, row.seed, row.status) for row in rows] == [
        (arm, seed, "finished") for arm in ("init_a", "init_b") for seed in (0, 1)
    ]
    session = json.loads((path / "sessions.jsonl").read_text().splitlines()[0])
    assert session["command"] == "asymlora reproduce made_up --keep kept"

    # Typed again, it repeats nothing and agrees; with other results it says so by its exit code.
    assert _reproduce("made_up", "--against", "kept", "--no-page") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "accurate" in said
    assert "Nothing was run now: these are the records that reproductions/made_up held before." in said
    assert len(read_evidence(path).sweep("reviews").rows) == 4
    file = tmp_path / "kept" / "made_up" / "artefact.json"
    content = json.loads(file.read_text())
    content["findings"]["accurate"] |= {"estimate": 2.0, "interval": [1.9, 2.1]}
    file.write_text(json.dumps(content))
    assert _reproduce("made_up", "--against", "kept", "--no-page") == 1
    assert "Not as kept: accurate." in capsys.readouterr().out

    assert _reproduce("--list", "--keep", "kept") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "done" in said
    assert "2 holds" in said


@pytest.mark.parametrize(("scale", "said"), [("small", "reviews sweep init_a, init_b 4 "), ("paper", "1 M, differs")])
def test_a_forecast_writes_nothing(
    tiny: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    scale: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "160")
    before = sorted(tmp_path.rglob("*"))
    assert _reproduce("made_up", "--scale", scale, "--dry-run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown
    assert "about 1 minutes of two cores, 0.5 GiB" in shown
    assert "toy measured - 1 " in shown
    assert "All that it reads is here" in shown
    assert all(claim.says in shown and " ".join(claim.test.split()) in shown for claim in tiny.claims)
    assert ("Printed, 1 M for init_a: Table 3." in shown) == (scale == "paper")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_list_says_what_is_kept_and_how_far_runs_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    _known(monkeypatch, small.artefact())
    assert _reproduce("--list") == 0
    assert "made_up 1 0.5 not begun - Made up" in " ".join(capsys.readouterr().out.split())
    small.run(Path("reproductions/made_up"), small.artefact(), small.bowl(), only=["toy"])
    assert _reproduce("--list") == 0
    assert "2 of 13 runs" in " ".join(capsys.readouterr().out.split())


def test_data_that_are_not_there_are_told_with_their_sources_before_any_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = MeasuredPart(name="toy", points=({"width": 8},), measure=small.Meter())
    _known(monkeypatch, small.artefact(parts=[toy], claims=[], data=[TREC]))
    assert _reproduce("made_up") == EXIT_ERROR
    said = capsys.readouterr().err
    assert "TREC-6 at ../shared/data/text/trec6 (public source: github.com/owner/trec)" in said
    assert "--data-root" in said
    assert not (tmp_path / "reproductions").exists()
    assert _reproduce("made_up", "--dry-run") == 0
    assert "Missing here: the data set TREC-6" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "mine" / "text" / "trec6").mkdir(parents=True)
    assert _reproduce("made_up", "--data-root", "mine") == 0


def test_a_comparison_of_nothing_is_no_agreement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy, aside = (MeasuredPart(name=name, points=({"width": 8},), measure=small.Meter()) for name in ("toy", "aside"))
    claim = small.count_claim("measured", needed=1, parts=["toy"], kind="paper")
    _known(monkeypatch, small.artefact(parts=[toy, aside], claims=[claim]))
    assert _reproduce("made_up", "--keep", "kept") == 0
    assert _reproduce("made_up", "--out", "again", "--part", "aside", "--against", "kept") == 1
    assert "No claim was compared" in capsys.readouterr().out
    assert _reproduce("made_up", "--out", "again", "--against", "kept") == 0
    said = capsys.readouterr().out
    assert "No claim was compared" not in said
    assert "Nothing was run now" not in said
    # A part that is kept and was not run here would be lost.
    assert _reproduce("made_up", "--out", "other", "--part", "aside", "--keep", "kept") == EXIT_ERROR
    assert "keeps records of toy" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_loses_nothing_else(
    tiny: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asymlora.commands import report

    def refuse(options: Any) -> int:
        raise SpecError("no page")

    monkeypatch.setattr(report, "run", refuse)
    assert _reproduce("made_up", "--keep", "kept") == EXIT_ERROR
    assert (tmp_path / "kept" / "made_up" / "artefact.json").is_file()


def test_what_is_finished_is_kept_without_its_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = MeasuredPart(name="toy", points=({"width": 8},), measure=small.Meter())
    _known(monkeypatch, small.artefact(parts=[toy], claims=[], data=[TREC]))
    place = tmp_path / "mine" / "text" / "trec6"
    place.mkdir(parents=True)
    assert _reproduce("made_up", "--data-root", "mine") == 0
    place.rmdir()
    assert _reproduce("made_up", "--data-root", "mine", "--keep", "kept") == 0
    assert (tmp_path / "kept" / "made_up" / "toy.jsonl").is_file()
    assert _reproduce("made_up", "--data-root", "mine", "--overwrite") == EXIT_ERROR
    assert "TREC-6" in capsys.readouterr().err
    assert (tmp_path / "reproductions" / "made_up" / "toy" / "measured.jsonl").is_file()


def test_an_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    toy = MeasuredPart(name="toy", points=({"width": 8},), measure=small.Meter(after=stop))
    _known(monkeypatch, small.artefact(parts=[toy], claims=[]))
    assert _reproduce("made_up", "--threads", "1", "--overwrite") == EXIT_INTERRUPTED
    assert "Go on with: asymlora reproduce made_up --threads 1\n" in capsys.readouterr().err


def test_the_paper_scale_has_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = MeasuredPart(name="toy", points=({"width": 8},), measure=small.Meter())
    _known(monkeypatch, small.artefact(parts=[toy], claims=[]))
    assert _reproduce("made_up", "--scale", "paper") == 0
    assert [path.name for path in (tmp_path / "reproductions").iterdir()] == ["made_up-paper"]
    assert _reproduce("made_up", "--out", "reproductions/made_up-paper") == EXIT_ERROR
    assert "made_up at the paper scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Which artefact? Name one of: hayou_toy, "),
        (("hayou_tyo",), "Did you mean 'hayou_toy'?"),
        (("hayou_toy", "--scale", "smal"), "--scale smal is none. Did you mean 'small'?"),
        (("hayou_toy", "--list"), "--list lists all artefacts; leave hayou_toy out"),
        (("--list", "--part", "a", "--scale", "small"), "--list does nothing with --part, --scale"),
        (("hayou_toy", "--dry-run", "--no-page", "--keep", "x"), "--dry-run does nothing with --keep, --no-page"),
        (("hayou_toy", "--overwrite", "--part", "a"), "give one of them"),
        (("hayou_toy", "--colour", "3"), "--colour"),
    ],
)
def test_words_that_say_nothing_are_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _reproduce(*words) == EXIT_ERROR
    assert said in capsys.readouterr().err


def test_places_that_an_executor_does_not_read_are_refused_before_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _known(monkeypatch, small.artefact(parts=[], claims=[]))
    assert _reproduce("made_up", "--workers", "2") == EXIT_ERROR
    assert "--executor inline does not read --workers" in capsys.readouterr().err
    assert _reproduce("made_up", "--against", "nowhere") == EXIT_ERROR
    assert "holds no kept results" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
