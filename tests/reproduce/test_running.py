"""An artefact is run as its first look decides, whatever interrupts it; nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small_artefact as small
from asymlora.errors import RunExistsError, SpecError, SweepFailedError, UnknownNameError
from asymlora.reproduce.artefact import MeasuredPart, SweepPart
from asymlora.reproduce.artefact_folder import claim_artefact, read_evidence, read_findings, read_stated
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.measured_store import MeasuredStore
from asymlora.reproduce.running import SilentWatcher
from asymlora.sweep.observer import SilentObserver
from asymlora.sweep.run_record import RunJob

FIRST_RUNS, SECOND_RUNS = 2 * (3 + 2), 2 * (2 * 3 + 3)


def _records(path: Path) -> tuple[Counter[str], dict[str, Any]]:
    """Return all that a run leaves but times: rows of its sweep, what was measured by point, findings."""
    evidence = read_evidence(path)
    rows = Counter(json.dumps(row.result(), sort_keys=True) for row in evidence.sweeps["swept"].rows)
    stores = {part: MeasuredStore(path / part / "measured.jsonl").rows() for part in evidence.measured}
    measured = {part: {row.id: (row.point, row.records) for row in stored} for part, stored in stores.items()}
    return rows, {"measured": measured, "findings": read_findings(path)}


def test_a_claim_of_the_abstract_that_is_decided_gets_no_second_look(tmp_path: Path) -> None:
    meter, bowl = small.Meter(), small.bowl()
    outcome = small.run(tmp_path / "run", small.artefact(meter, claims=[small.count_claim("few", needed=6)]), bowl)
    assert outcome.findings["few"] == Finding(verdict="holds", ours="6 in all", estimate=6)
    assert (outcome.finished, outcome.second, len(bowl.done)) == (True, (), FIRST_RUNS)
    assert meter.measured == [*small.POINTS, {"width": 4}]


def test_one_that_is_undecided_gets_it_in_the_parts_that_it_reads(tmp_path: Path) -> None:
    meter, bowl = small.Meter(), small.bowl()
    outcome = small.run(tmp_path / "run", small.artefact(meter), bowl)
    assert (outcome.second, outcome.finished) == (("swept", "toy"), True)
    assert outcome.findings["enough"].estimate == 3 + 2 * 3
    assert len(bowl.done) == SECOND_RUNS
    assert meter.measured == [*small.POINTS, {"width": 4}, {"width": 32}]
    kept = read_findings(tmp_path / "run")
    assert kept is not None
    assert kept["first_look"]["enough"]["estimate"] == 2 + 2 * 2
    assert (kept["second"], kept["finished"]) == (["swept", "toy"], True)
    assert Finding.from_dict(kept["findings"]["enough"]) == outcome.findings["enough"]


@pytest.mark.parametrize("kind", ["paper", "derived", "question"])
def test_other_claims_may_stay_undecided(tmp_path: Path, kind: Any) -> None:
    bowl = small.bowl()
    what = small.artefact(claims=[small.count_claim("enough", needed=9, kind=kind)])
    outcome = small.run(tmp_path / "run", what, bowl)
    assert outcome.findings["enough"].verdict == "undecided"
    assert (outcome.second, len(bowl.done)) == ((), FIRST_RUNS)


class _Interrupted(SilentWatcher):
    """Ends a session after so many runs of its sweeps."""

    def __init__(self, after: int, how: Callable[[], None]) -> None:
        self.left, self.how = after, how

    @contextmanager
    def sweeping(self, part: str) -> Any:
        watcher = self

        class Observer(SilentObserver):
            def started(self, job: RunJob) -> None:
                watcher.left -= 1
                if watcher.left < 0:
                    watcher.how()

        yield Observer()


def _raise() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("runs", "points"), [(2, 1), (7, 2)])
def test_an_interrupted_artefact_ends_with_the_records_of_a_whole_one(tmp_path: Path, runs: int, points: int) -> None:
    meter, bowl = small.Meter(), small.bowl()
    small.run(tmp_path / "whole", small.artefact(meter), bowl)
    bowl.done.clear()
    sessions = 0
    while True:
        measured = small.Meter(after=lambda count: _raise() if count > points else None)
        try:
            what, watcher = small.artefact(measured), _Interrupted(runs, _raise)
            small.run(tmp_path / "parts", what, bowl, watcher=watcher)
            break
        except KeyboardInterrupt:
            sessions += 1
    assert sessions >= SECOND_RUNS // runs - 2
    assert _records(tmp_path / "parts") == _records(tmp_path / "whole")
    assert max(Counter(bowl.done).values()) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import small_artefact as small
from reproduce.test_running import _Interrupted

watcher = _Interrupted(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
small.run(Path(sys.argv[1]), small.artefact(), small.bowl(), watcher=watcher)
"""


def test_a_killed_artefact_is_gone_on_with(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(FIRST_RUNS + 3)]
    assert subprocess.run(words, env=environment, check=False).returncode == -signal.SIGKILL
    there = read_evidence(tmp_path / "killed").sweeps["swept"].rows
    assert len(there) == FIRST_RUNS + 3
    small.run(tmp_path / "killed", small.artefact(), small.bowl())
    small.run(tmp_path / "whole", small.artefact(), small.bowl())
    assert _records(tmp_path / "killed") == _records(tmp_path / "whole")


def test_what_the_first_look_decided_is_not_decided_anew(tmp_path: Path) -> None:
    # After the second look at the sweep the claim would hold, and the other part would be left as it is.
    claims = [small.count_claim("enough", needed=7)]
    bowl = small.bowl()
    meter = small.Meter(after=lambda count: _raise() if count > 3 else None)
    with pytest.raises(KeyboardInterrupt):
        small.run(tmp_path / "run", small.artefact(meter, claims=claims), bowl)
    again = small.Meter()
    outcome = small.run(tmp_path / "run", small.artefact(again, claims=claims), bowl)
    assert again.measured == [{"width": 32}]
    assert (outcome.second, outcome.findings["enough"].estimate) == (("swept", "toy"), 9)


def test_a_second_look_is_not_forgotten_with_the_record_of_its_decision(tmp_path: Path) -> None:
    bowl, path = small.bowl(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        small.run(path, small.artefact(), bowl, watcher=_Interrupted(FIRST_RUNS + 2, _raise))
    (path / "first_look.json").unlink()
    outcome = small.run(path, small.artefact(), bowl)
    assert "swept" in outcome.second
    assert len(bowl.done) == SECOND_RUNS
    assert len(read_evidence(path).sweeps["swept"].plan["closing_seeds"]) == 3


def test_parts_one_by_one_end_with_the_records_of_the_whole(tmp_path: Path) -> None:
    bowl, path = small.bowl(), tmp_path / "parts"
    first = small.run(path, small.artefact(), bowl, only=["swept"])
    assert (first.finished, first.second, len(bowl.done)) == (False, (), FIRST_RUNS)
    assert first.findings["enough"].ours == "Not run yet: toy."
    small.run(path, small.artefact(), bowl, only=["toy"])
    last = small.run(path, small.artefact(), bowl, only=["aside", "swept"])
    assert (last.finished, last.second, len(bowl.done)) == (False, ("swept", "toy"), SECOND_RUNS)
    assert small.run(path, small.artefact(), bowl).finished
    small.run(tmp_path / "whole", small.artefact(), small.bowl())
    assert _records(path) == _records(tmp_path / "whole")


def test_what_is_done_is_not_looked_at_again(tmp_path: Path) -> None:
    bowl, path = small.bowl(), tmp_path / "run"
    whole = small.run(path, small.artefact(), bowl)

    def refuse(plan: Any) -> Any:
        raise AssertionError(plan)

    meter = small.Meter()
    again = small.run(path, small.artefact(meter), bowl, ready=refuse)
    assert again == replace(whole, new=0)
    assert whole.new == SECOND_RUNS + 4
    assert meter.measured == []
    sessions = [json.loads(line) for line in (path / "sessions.jsonl").read_text().splitlines()]
    assert [session["command"] for session in sessions] == ["asymlora reproduce made_up"] * 2


def test_threads_are_no_part_of_the_protocol(tmp_path: Path) -> None:
    bowl, path = small.bowl(), tmp_path / "run"
    small.run(path, small.artefact(), bowl, threads=1)
    assert read_evidence(path).sweeps["swept"].plan["threads"] == 1
    assert small.run(path, small.artefact(), bowl, threads=2).finished
    assert len(bowl.done) == SECOND_RUNS


def test_what_the_first_look_decided_is_not_judged_again(tmp_path: Path) -> None:
    # After the second look, which another claim asks for, it would fail; a claim that was open is judged on all.
    def judge(evidence: Evidence) -> Finding:
        seeds = len({row.seed for row in small.closing(evidence)})
        return Finding(verdict="holds" if seeds == 2 else "fails", ours=f"{seeds} seeds")

    early = replace(small.count_claim("early", needed=0, kind="paper"), judge=judge)
    late = small.count_claim("late", needed=9, kind="paper")
    what = small.artefact(claims=[early, small.count_claim("enough", needed=99), late])
    outcome = small.run(tmp_path / "run", what, small.bowl())
    assert outcome.second == ("swept", "toy")
    assert outcome.findings["early"] == Finding(verdict="holds", ours="2 seeds")
    assert (outcome.findings["late"].verdict, outcome.findings["enough"].estimate) == ("holds", 9)
    kept = read_findings(tmp_path / "run")
    assert kept is not None
    assert kept["decided"] == {"early": "first", "late": "second"}
    assert small.run(tmp_path / "run", what, small.bowl()).findings == outcome.findings
    # Without its record the first look is found again by its seeds and points.
    (tmp_path / "run" / "first_look.json").unlink()
    assert small.run(tmp_path / "run", what, small.bowl()).findings == outcome.findings


def _cut(path: Path, lines: int) -> None:
    kept = path.read_text().splitlines(keepends=True)[:-lines]
    path.write_text("".join(kept))


def test_what_was_removed_from_a_part_that_was_done_is_done_again(tmp_path: Path) -> None:
    bowl, path = small.bowl(), tmp_path / "run"
    whole = small.run(path, small.artefact(), bowl)
    records = _records(path)
    bowl.done.clear()
    _cut(path / "swept" / "runs.jsonl", 2)
    with (path / "swept" / "runs.jsonl").open("a") as file:
        file.write("{damaged\n")
    _cut(path / "toy" / "measured.jsonl", 1)
    meter = small.Meter()
    again = small.run(path, small.artefact(meter), bowl)
    assert (len(bowl.done), meter.measured) == (2, [{"width": 32}])
    assert again == replace(whole, new=3)
    assert _records(path) == records


def test_a_part_whose_rows_are_gone_is_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "run"
    small.run(path, small.artefact(), small.bowl())
    _cut(path / "aside" / "measured.jsonl", 1)
    assert not small.run(path, small.artefact(), small.bowl(), only=["toy"]).finished
    assert small.run(path, small.artefact(), small.bowl()).finished


def test_a_failed_run_that_is_asked_for_no_more_keeps_no_part_open(tmp_path: Path) -> None:
    path, bowl = tmp_path / "run", small.bowl()
    broken = small.bowl(broken=("init_b",))
    small.run(path, small.artefact(), broken, only=["swept"])
    arm = replace(small.PLAN, arms=small.ARMS[:1])
    one = small.artefact(parts=[SweepPart(name="swept", plan=arm)], claims=[])
    outcome = small.run(path, one, bowl)
    assert (outcome.finished, dict(outcome.failed), bowl.done) == (True, {}, [])


def test_tests_and_minutes_are_noted_before_the_first_run_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "run"
    small.run(path, small.artefact(), small.bowl(), only=["aside"])
    other = replace(small.count_claim("enough", needed=1), test="Weighed.")
    small.run(path, small.artefact(claims=[other], minutes=9.0), small.bowl())
    assert read_stated(path) == {"minutes": 1.0, "tests": {"enough": "Counted."}}


def test_a_claim_on_parts_that_are_not_begun_is_noted_in_a_later_session(tmp_path: Path) -> None:
    path, bowl = tmp_path / "run", small.bowl()
    small.run(path, small.artefact(), bowl, only=["aside"])
    of_new, of_old = (
        replace(small.count_claim(key, needed=1), test=key, parts=(part,))
        for key, part in (("new", "swept"), ("old", "aside"))
    )
    small.run(path, small.artefact(claims=[of_new, of_old]), bowl)
    assert read_stated(path) == {"minutes": 1.0, "tests": {"enough": "Counted.", "new": "new"}}


def test_where_runs_have_failed_nothing_is_decided_and_they_are_done_again(tmp_path: Path) -> None:
    bowl, path = small.bowl(broken=("init_b",)), tmp_path / "run"
    outcome = small.run(path, small.artefact(), bowl)
    assert (outcome.finished, outcome.second, dict(outcome.failed)) == (False, (), {"swept": 3})
    mended = small.run(path, small.artefact(), small.bowl())
    assert (mended.finished, mended.second, dict(mended.failed)) == (True, ("swept", "toy"), {})


def test_a_sweep_that_fails_from_the_start_is_told_of_in_words_of_this_command(tmp_path: Path) -> None:
    bowl = small.bowl(broken=("init_a", "init_b"))
    with pytest.raises(SweepFailedError, match=r"Part swept: .* go on with the same command; failed runs"):
        small.run(tmp_path / "run", small.artefact(), bowl)


def test_a_sweep_with_another_recipe_is_not_gone_on_with(tmp_path: Path) -> None:
    small.run(tmp_path / "run", small.artefact(), small.bowl(), only=["swept"])
    longer = replace(small.PLAN, recipe=replace(small.RECIPE, train=replace(small.RECIPE.train, steps=40)))
    what = small.artefact(parts=[SweepPart(name="swept", plan=longer)], claims=[])
    with pytest.raises(SpecError, match=r"Part swept: .*recipe\.train\.steps: 20 / 40"):
        small.run(tmp_path / "run", what, small.bowl())


def test_more_points_are_added_and_others_refused(tmp_path: Path) -> None:
    def toy(*widths: int) -> Any:
        part = MeasuredPart(name="toy", points=tuple({"width": width} for width in widths), measure=meter)
        return small.artefact(parts=[part], claims=[])

    meter, path = small.Meter(), tmp_path / "run"
    small.run(path, toy(8), small.bowl())
    small.run(path, toy(4, 8), small.bowl())
    assert meter.measured == [{"width": 8}, {"width": 4}]
    with pytest.raises(SpecError, match=r"holds 1 points that are none of this part's, like \{'width': 8\}"):
        small.run(path, toy(4), small.bowl())


def test_numbers_that_are_not_finite_are_refused_where_they_are_measured(tmp_path: Path) -> None:
    part = MeasuredPart(name="toy", points=({"width": 8},), measure=lambda point: [{"loss": float("inf")}])
    with pytest.raises(SpecError, match=r"Part toy: .*records\[0\]\.loss is inf"):
        small.run(tmp_path / "run", small.artefact(parts=[part], claims=[]), small.bowl())


def test_an_unknown_part_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    bowl = small.bowl()
    with pytest.raises(UnknownNameError, match=r"'swep'\. Did you mean 'swept'\? Known: swept, toy, aside"):
        small.run(tmp_path / "run", small.artefact(), bowl, only=["swep"])
    assert bowl.done == []


def test_two_sessions_at_a_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with (
        claim_artefact(path, name="made_up", scale="small", overwrite=False).begun(command=""),
        pytest.raises(RunExistsError, match="Another process is reproducing in"),
    ):
        small.run(path, small.artefact(), small.bowl())


def test_a_claim_is_judged_on_all_that_there_is(tmp_path: Path) -> None:
    seen: list[Evidence] = []

    def judge(evidence: Evidence) -> Finding:
        seen.append(evidence)
        return Finding(verdict="holds", ours="seen")

    claim = replace(small.count_claim("seen", needed=0, kind="paper"), judge=judge)
    small.run(tmp_path / "run", small.artefact(claims=[claim]), small.bowl())
    assert len(seen[-1].sweep("swept").rows) == FIRST_RUNS
    assert [record["value"] for record in seen[-1].records("toy")] == [1 / 8, 2 / 8, 1 / 16, 2 / 16]
