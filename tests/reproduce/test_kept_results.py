from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asymlora.atomic import held_folder
from asymlora.errors import DataError, RunExistsError, RunFolderError
from asymlora.papers import catalogue
from asymlora.reproduce.artefact import Artefact
from asymlora.reproduce.artefact_folder import read_evidence
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.kept_results import KEPT, judge_again, keep, kept_findings, read_kept
from asymlora.reproduce.kept_rows import places_in, texts_of
from asymlora.reproduce.looks import judge
from asymlora.reproduce.measured_store import point_id
from asymlora.reproduce.plain_findings import described, exact_finding
from asymlora.sweep.sweep_folder import read_sweep
from reproduce.made_artefact import ARTEFACT, CLAIMS, ENVIRONMENT, NAME, TYPED, run_folder

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
KEPT_HERE = sorted(path.parent for path in RESULTS.glob(f"*/{KEPT}"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("once") / "run")


@pytest.fixture
def run(tmp_path: Path, once: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "run"))


def _kept(run: Path, artefact: Artefact = ARTEFACT, *, command: str = TYPED) -> Path:
    target = run.parent / "results" / NAME
    keep(artefact, "small", run, target, command=command)
    return target


def _with_claim(judge: Any) -> Artefact:
    claim = Claim(key="x", says="x", kind="derived", source="x", test="x", parts=("toy",), judge=judge)
    return replace(ARTEFACT, claims=(claim,))


def test_judging_kept_records_gives_the_kept_findings_and_the_verdicts_of_the_run(run: Path) -> None:
    kept = read_kept(_kept(run))
    again = {claim.key: claim.finding(kept.evidence) for claim in CLAIMS}
    assert kept.findings == again
    whole = read_evidence(run)
    verdicts = {key: found.verdict for key, found in kept.findings.items()}
    assert verdicts == {claim.key: claim.finding(whole).verdict for claim in CLAIMS}
    assert verdicts == {"ahead": "holds", "smaller": "holds", "shown": "undecided", "large": "not testable here"}


def test_records_say_what_was_typed_on_what_and_how_long(run: Path) -> None:
    kept = read_kept(_kept(run, command=f"{TYPED} --keep experiments/results"))
    assert (kept.artefact, kept.scale, kept.environment) == (NAME, "small", ENVIRONMENT)
    assert kept.commands == [TYPED, f"{TYPED} --keep experiments/results"]
    assert kept.changes == ["cpus: 2 / 4"]
    task, toy = kept.parts["task"], kept.parts["toy"]
    assert (task["kind"], task["runs"], task["threads"], task["memory_gib"]) == ("sweep", 24, [1], 1.0)
    assert task["seconds"] == pytest.approx(24 * 2.75)
    assert toy == {"kind": "measured", "points": 2, "records": 6, "seconds": 2.46912, "ended": ["2026-11-30"]}
    assert kept.seconds == pytest.approx(24 * 2.75 + 2.46912)


def _first_look(run: Path, *, seeds: int) -> None:
    """Let the run have had a first look at so many closing seeds, and at the first point."""
    task = read_sweep(run / "task")
    rows = [row.id for row in task.rows if row.phase == "tuning" or row.seed < seeds]
    plan = {**task.plan, "closing_seeds": list(range(seeds))}
    records = {"task": {"plan": plan, "rows": rows}, "toy": {"plan": None, "rows": [point_id("toy", {"width": 8})]}}
    content = {"findings": {}, "second": ["task", "toy"], "protocols": {}, "records": records}
    (run / "first_look.json").write_text(json.dumps(content))


def _counting(*, first: int) -> Artefact:
    """Return an artefact whose claims see how many closing seeds and records they are judged on."""

    def seen(evidence: Evidence) -> str:
        seeds = {row.seed for row in evidence.sweep("task").rows if row.phase == "closing"}
        planned = evidence.sweep("task").plan["closing_seeds"]
        return f"{len(seeds)} of {len(planned)} seeds, {len(evidence.records('toy'))} records"

    def early(evidence: Evidence) -> Finding:
        return exact_finding(seen(evidence).startswith(f"{first} of"), seen(evidence))

    (claim,) = _with_claim(early).claims
    late = replace(claim, key="late", judge=lambda evidence: described(seen(evidence)))
    return replace(ARTEFACT, claims=(replace(claim, key="early"), late))


def test_both_looks_can_be_judged_from_what_is_kept(run: Path) -> None:
    _first_look(run, seeds=4)
    artefact = _counting(first=4)
    target = _kept(run, artefact)
    kept = read_kept(target)
    assert kept.second_look == ["task", "toy"]
    assert {key: found.ours for key, found in kept.findings.items()} == {
        "early": "4 of 4 seeds, 3 records", "late": "6 of 6 seeds, 6 records",
    }  # fmt: skip
    assert (kept.decided, kept.findings["early"].verdict) == ({"early": "first"}, "holds")
    assert judge(artefact.claims, kept.evidence, first=kept.first) == (kept.findings, kept.decided)
    before = (target / KEPT).read_bytes()
    judge_again(artefact, target)
    assert (target / KEPT).read_bytes() == before


def test_without_a_second_look_there_is_no_first_one_by_itself(run: Path) -> None:
    kept = read_kept(_kept(run, _counting(first=6)))
    assert (kept.second_look, kept.first) == ([], None)
    assert kept.findings["early"].ours == "6 of 6 seeds, 6 records"


def test_whether_the_run_was_finished_and_what_was_stated_before_it_is_kept(run: Path) -> None:
    kept = read_kept(_kept(run))
    assert kept.finished
    assert kept.stated == {"minutes": 3.0, "tests": {claim.key: "a test" for claim in CLAIMS}}
    for finished in ({"finished": False}, None):
        (run / "findings.json").unlink()
        if finished is not None:
            (run / "findings.json").write_text(json.dumps(finished))
        assert not read_kept(_kept(run)).finished


def test_a_run_that_lacks_a_kept_part_is_refused_and_what_is_kept_stays(run: Path) -> None:
    target = _kept(run)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    shutil.rmtree(run / "toy")
    with pytest.raises(DataError, match=r"keeps records of toy, and the run in .* has none.*without --part"):
        _kept(run)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before


def test_a_torn_line_of_the_sessions_is_left_out(run: Path) -> None:
    with (run / "sessions.jsonl").open("a") as file:
        file.write('{"command": "asymlora rep')
    assert read_kept(_kept(run)).commands == [TYPED]


def test_a_run_that_goes_on_is_not_kept(run: Path) -> None:
    with held_folder(run, doing="is reproducing in"), pytest.raises(RunExistsError, match="is reproducing in"):
        _kept(run)


def test_a_run_takes_less_than_a_kibibyte(run: Path) -> None:
    lines = (_kept(run) / "task.jsonl").read_bytes().splitlines()
    assert len(lines) == 24
    assert max(map(len, lines)) < 1024


def test_no_place_of_the_machine_is_kept(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", data="/home/somebody/data/text/trec6")
    target = _kept(run, command=f"asymlora reproduce made_up --data-root /home/somebody/data --out {run}")
    text = "".join(file.read_text() for file in target.iterdir())
    assert "somebody" not in text
    assert str(tmp_path) not in text
    kept = read_kept(target)
    assert kept.evidence.sweep("task").plan["recipe"]["data"]["name"] == ".../trec6"
    assert kept.commands[-1] == "asymlora reproduce made_up --data-root .../data --out .../run"


def test_a_finding_that_names_a_place_is_refused_and_nothing_is_written(run: Path) -> None:
    artefact = _with_claim(lambda _: exact_finding(True, "It stands in /home/somebody/x"))
    with pytest.raises(DataError, match=r"name places of this machine: /home/somebody/x\."):
        _kept(run, artefact)
    assert not (run.parent / "results").exists()


def test_a_verdict_on_digits_that_are_not_kept_is_refused(run: Path) -> None:
    def judge(evidence: Evidence) -> Finding:
        first = evidence.records("toy")[0]["rate"]
        return exact_finding(first == 1.23456789 * 8, "exact")

    with pytest.raises(DataError, match=r"x \(holds from all digits, fails from those that are kept\)"):
        _kept(run, _with_claim(judge))


def test_a_number_that_is_not_finite_is_refused(run: Path) -> None:
    artefact = _with_claim(lambda _: Finding(verdict="holds", ours="x", estimate=float("inf")))
    with pytest.raises(DataError, match="not finite"):
        _kept(run, artefact)


def test_newer_results_take_the_place_of_older_ones_and_remarks_stay(run: Path) -> None:
    target = _kept(run)
    (target / "remarks.yaml").write_text("{}")
    (target / "gone.jsonl").write_text("")
    _kept(run, replace(ARTEFACT, claims=CLAIMS[:1]))
    assert sorted(file.name for file in target.iterdir()) == [KEPT, "remarks.yaml", "task.jsonl", "toy.jsonl"]
    assert list(read_kept(target).findings) == ["ahead"]


def test_what_was_cut_while_it_was_written_counts_as_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = _kept(run)
    replaced: list[str] = []
    move = Path.replace

    def cut(self: Path, to: Path) -> Path:
        if to.parent == target:
            replaced.append(to.name)
            if len(replaced) > 1:
                raise KeyboardInterrupt
        return move(self, to)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        _kept(run)
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="holds no kept results"):
        read_kept(target)
    _kept(run)
    assert list(read_kept(target).findings) == [claim.key for claim in CLAIMS]


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records to keep"):
        keep(ARTEFACT, "small", tmp_path / "nowhere", tmp_path / "x", command="x")


def test_findings_alone_are_read_without_the_rows(run: Path) -> None:
    target = _kept(run)
    whole = read_kept(target).findings
    for file in target.glob("*.jsonl"):
        file.unlink()
    assert kept_findings(target) == whole
    assert kept_findings(run.parent) == {}
    with pytest.raises(RunFolderError, match=r"task\.jsonl is not there or damaged"):
        read_kept(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "holds no kept results"),
        ({"version": 2}, "version 2; this asymlora reads up to version 1"),
        ({"findings": {"ahead": {"verdict": "holds"}}}, "is damaged"),
        ({"scale": None, "parts": []}, "holds no kept results"),
    ],
)
def test_what_is_damaged_or_newer_is_told(run: Path, change: dict[str, Any], message: str) -> None:
    target = _kept(run)
    content = json.loads((target / KEPT).read_text())
    (target / KEPT).write_text(json.dumps({**content, **change}))
    with pytest.raises(RunFolderError, match=message):
        read_kept(target)


def test_records_are_judged_again_by_the_claims_as_they_are_now(run: Path) -> None:
    target = _kept(run)
    digest = read_kept(target).digest
    changed = _with_claim(lambda evidence: exact_finding(bool(evidence.records("toy")), "now"))
    judge_again(changed, target)
    kept = read_kept(target)
    assert {key: found.ours for key, found in kept.findings.items()} == {"x": "now"}
    assert (kept.digest, kept.commands) == (digest, [TYPED])


def test_the_digest_is_of_the_records_and_not_of_times_or_words(run: Path) -> None:
    first = read_kept(_kept(run)).digest
    assert read_kept(_kept(run, command="another")).digest == first
    text = (_kept(run) / "toy.jsonl").read_text()
    assert text.count('"seconds":1.23') == 2
    (_kept(run) / "toy.jsonl").write_text(text.replace('"seconds":1.23', '"seconds":9.87'))
    assert read_kept(run.parent / "results" / NAME).digest == first
    lines = (_kept(run) / "task.jsonl").read_text().splitlines()
    (_kept(run) / "task.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert read_kept(run.parent / "results" / NAME).digest != first


# What the repository keeps -------------------------------------------------------------------------------------------


def test_only_known_artefacts_are_kept_here() -> None:
    assert {path.name for path in KEPT_HERE} <= set(catalogue.NAMES)


def test_kept_records_of_the_repository_give_its_findings() -> None:
    for folder in KEPT_HERE:
        kept = read_kept(folder)
        claims = catalogue.find(folder.name).claims
        judged = judge(claims, kept.evidence, first=kept.first)
        assert judged.decided == kept.decided
        for claim in claims:
            again, stored = judged.findings[claim.key], kept.findings[claim.key]
            assert (again.verdict, again.ours, again.pairs) == (stored.verdict, stored.ours, stored.pairs), claim.key
            # Another processor's library of statistics may differ in the last digits.
            for name in ("estimate", "p", "detectable", "interval"):
                value = getattr(stored, name)
                expected = None if value is None else pytest.approx(value, rel=1e-6)
                assert getattr(again, name) == expected, (claim.key, name)


def test_kept_records_of_the_repository_are_small_and_name_no_place() -> None:
    """256 KiB an artefact on the average; a run is 1 KiB beside its curve of factor dynamics, a figure's own data."""
    runs: list[int] = []
    for folder in KEPT_HERE:
        content = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        assert not places_in(texts_of(content))
        for name, head in content["parts"].items():
            rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            assert not places_in(text for row in rows for text in texts_of(row)), (folder, name)
            if head["kind"] == "sweep":
                runs += (len(json.dumps({key: row[key] for key in row if key != "dynamics"})) for row in rows)
    assert sum(runs) <= 1024 * len(runs)
    assert sum(path.stat().st_size for folder in KEPT_HERE for path in folder.iterdir()) <= 256 * 1024 * len(KEPT_HERE)
