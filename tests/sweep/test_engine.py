"""The engine on runs whose results are known: what is run, in which order it does not matter, and nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import DiskSpaceError, SpecError, SweepFailedError
from asymlora.sweep.axes import parse_arm, parse_axis, parse_rates
from asymlora.sweep.engine import FIRST_FAILURES, run_sweep
from asymlora.sweep.executors import InProcess
from asymlora.sweep.grid import SweepPlan, cells
from asymlora.sweep.observer import SilentObserver, SweepObserver
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.sweep.searching import Search, parse_searched
from asymlora.sweep.summary import Summary
from asymlora.sweep.sweep_folder import claim, read_sweep
from asymlora.train.recipe import Recipe
from sweep.bowl import Bowl, work_of

RECIPE = Recipe.from_dict({"train": {"steps": 40, "evaluate_every": 10}})
ARMS = ("b_only", "init_a")
SEARCH = Search(space=(parse_searched("train.lr=1e-4..1e-1"),), trials=12)


def _plan(**values: Any) -> SweepPlan:
    given: dict[str, Any] = {
        "recipe": RECIPE,
        "arms": tuple(map(parse_arm, ARMS)),
        "rates": parse_rates("1e-4..1e-2:2"),
        "closing_seeds": (0, 1, 2),
        **values,
    }
    return SweepPlan(**given)


def _run(
    plan: SweepPlan, bowl: Bowl, path: Path, *, resume: bool = False, observer: SweepObserver | None = None
) -> Summary:
    folder = claim(path, resume=resume, overwrite=False)
    with InProcess(path, work=partial(work_of, bowl)) as executor:
        return run_sweep(plan, cells(plan), folder, executor=executor, observer=observer)


def _results(path: Path) -> Counter[str]:
    return Counter(json.dumps(row.result(), sort_keys=True) for row in read_sweep(path).rows)


def test_each_arm_closes_at_its_own_best_rate(tmp_path: Path) -> None:
    bowl = Bowl(best={"b_only": 3.16228e-3, "init_a": 3.16228e-4})
    summary = _run(_plan(), bowl, tmp_path / "sweep")
    assert {cell.label: cell.best_rate for cell in summary.cells} == {"b_only": 3.16228e-3, "init_a": 3.16228e-4}
    rows = read_sweep(tmp_path / "sweep").rows
    assert Counter((row.arm, row.phase) for row in rows) == {
        **{(arm, "tuning"): 5 * 2 for arm in ARMS},
        **{(arm, "closing"): 3 for arm in ARMS},
    }
    assert all((row.test is not None) == (row.phase == "closing") for row in rows)
    assert {row.seed for row in rows if row.phase == "closing"} == {0, 1, 2}
    assert json.loads((tmp_path / "sweep" / "summary.json").read_text()) == summary.to_dict()


def test_runs_of_one_seed_are_paired(tmp_path: Path) -> None:
    _run(_plan(), Bowl(best=dict.fromkeys(ARMS, 1e-3)), tmp_path / "sweep")
    for row in read_sweep(tmp_path / "sweep").rows:
        assert row.recipe["train"]["seed"] == row.recipe["adapter"]["seed"] == row.seed
        assert row.recipe["data"]["seed"] == RECIPE.data.seed


@pytest.mark.parametrize("best", [1e-5, 1e-1])
def test_a_grid_grows_until_its_best_rate_is_interior(tmp_path: Path, best: float) -> None:
    summary = _run(_plan(), Bowl(best={"b_only": best, "init_a": 1e-3}), tmp_path / "sweep")
    far, near = summary.cells
    assert (far.best_at, near.best_at) == ("interior", "interior")
    assert far.best_rate == pytest.approx(best, rel=1e-5)
    assert len(near.rates) == 5
    assert not far.at_bound


def test_growth_ends_at_the_bound_and_says_so(tmp_path: Path) -> None:
    plan = _plan(bounds=(1e-5, 1e-1))
    cell, _ = _run(plan, Bowl(best={"b_only": 10.0, "init_a": 1e-3}), tmp_path / "sweep").cells
    assert cell.at_bound
    assert (cell.best_rate, cell.best_at) == (1e-1, "upper end")


def test_without_growth_the_best_rate_stays_at_the_end(tmp_path: Path) -> None:
    cell, _ = _run(_plan(grow=False), Bowl(best={"b_only": 1.0, "init_a": 1e-3}), tmp_path / "sweep").cells
    assert (cell.best_rate, cell.best_at, len(cell.rates)) == (1e-2, "upper end", 5)


def test_rates_that_diverge_bound_the_grid(tmp_path: Path) -> None:
    bowl = Bowl(best={"b_only": 1.0, "init_a": 1e-3}, edge=5e-3)
    cell, _ = _run(_plan(), bowl, tmp_path / "sweep").cells
    assert (cell.best_rate, cell.divergence_edge, cell.best_at) == (3.16228e-3, 1e-2, "interior")


class _Killed(SilentObserver):
    """Interrupts the sweep after so many runs of a session."""

    def __init__(self, after: int) -> None:
        self.left = after

    def started(self, job: RunJob) -> None:
        """Count down."""
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("each", "prune", "search"), [(3, True, None), (7, False, None), (5, True, SEARCH)])
def test_an_interrupted_sweep_ends_with_the_runs_of_a_whole_one(
    tmp_path: Path, *, each: int, prune: bool, search: Search | None
) -> None:
    plan = _plan(prune=prune, repeats=1, search=search)
    bowl = Bowl(best={"b_only": 0.1, "init_a": 1e-4}, noise=0.01)
    _run(plan, bowl, tmp_path / "whole")
    whole, count = _results(tmp_path / "whole"), len(bowl.done)
    bowl.done.clear()
    for _ in range(count + 1):
        try:
            _run(plan, bowl, tmp_path / "parts", resume=True, observer=_Killed(each))
            break
        except KeyboardInterrupt:
            continue
    assert _results(tmp_path / "parts") == whole
    assert max(Counter(bowl.done).values()) == 1


class _Reversed(InProcess):
    """Ends its runs in the reverse order, as several workers might."""

    def run(self, jobs: Sequence[RunJob], *, told: SweepObserver | None = None) -> Generator[RunRow]:
        """Do the runs from the last to the first."""
        return super().run(list(reversed(jobs)), told=told)


@pytest.mark.parametrize("search", [None, SEARCH])
def test_the_order_in_which_runs_end_does_not_matter(tmp_path: Path, search: Search | None) -> None:
    plan = _plan(prune=True, search=search)
    bowl = Bowl(best={"b_only": 0.1, "init_a": 1e-4}, noise=0.02)
    summary = _run(plan, bowl, tmp_path / "one")
    folder = claim(tmp_path / "other", resume=False, overwrite=False)
    with _Reversed(folder.path, work=partial(work_of, bowl)) as executor:
        other = run_sweep(plan, cells(plan), folder, executor=executor)
    assert _results(tmp_path / "one") == _results(tmp_path / "other")
    assert {cell.label: cell.best_rate for cell in summary.cells} == {c.label: c.best_rate for c in other.cells}


def test_pruning_takes_fewer_steps_and_finds_the_same_rates(tmp_path: Path) -> None:
    bowl = Bowl(best={"b_only": 3.16228e-3, "init_a": 3.16228e-4}, noise=0.001)
    rates = parse_rates("1e-5..1e-1:2")
    whole = _run(_plan(rates=rates), bowl, tmp_path / "whole")
    pruned = _run(_plan(rates=rates, prune=True), bowl, tmp_path / "pruned")
    assert [cell.best_rate for cell in pruned.cells] == [cell.best_rate for cell in whole.cells]
    taken = [summary.cost["tuning"].steps for summary in (whole, pruned)]
    assert taken[1] < 0.6 * taken[0]
    assert pruned.cost["tuning"].saved_steps == taken[0] - taken[1]


def test_a_sweep_goes_on_with_more_seeds_arms_and_rates(tmp_path: Path) -> None:
    bowl = Bowl(best=dict.fromkeys((*ARMS, "init_b"), 1e-3))
    _run(_plan(), bowl, tmp_path / "sweep")
    first = len(bowl.done)
    more = _plan(arms=tuple(map(parse_arm, (*ARMS, "init_b"))), closing_seeds=(0, 1, 2, 3))
    _run(more, bowl, tmp_path / "sweep", resume=True)
    assert len(bowl.done) - first == 2 * 1 + (5 * 2 + 4)
    assert max(Counter(bowl.done).values()) == 1


def test_a_seed_that_chose_the_rate_is_not_quoted_later(tmp_path: Path) -> None:
    bowl = Bowl(best=dict.fromkeys(ARMS, 1e-3))
    _run(_plan(), bowl, tmp_path / "sweep")
    swapped = _plan(tuning_seeds=(7, 8), closing_seeds=(100, 101))
    with pytest.raises(SpecError, match=r"Seed 100 of b_only .* was a tuning run"):
        _run(swapped, bowl, tmp_path / "sweep", resume=True)


def test_failed_runs_are_done_again_and_the_others_are_not(tmp_path: Path) -> None:
    bowl = Bowl(best=dict.fromkeys(ARMS, 1e-3), broken=("init_a",))
    summary = _run(_plan(), bowl, tmp_path / "sweep")
    assert summary.runs["failed"] == 5 * 2
    assert [cell.best_rate for cell in summary.cells] == [1e-3, None]
    bowl.broken = ()
    bowl.done.clear()
    assert [cell.best_rate for cell in _run(_plan(), bowl, tmp_path / "sweep", resume=True).cells] == [1e-3, 1e-3]
    assert len(bowl.done) == 5 * 2 + 3


def test_a_sweep_whose_first_runs_all_fail_is_stopped(tmp_path: Path) -> None:
    bowl = Bowl(best={}, broken=ARMS)
    with pytest.raises(SweepFailedError, match=r"first 3 runs .* It is broken\. Mend that"):
        _run(_plan(), bowl, tmp_path / "sweep")
    assert len(bowl.done) == FIRST_FAILURES


def test_what_is_left_of_a_sweep_may_all_fail(tmp_path: Path) -> None:
    bowl = Bowl(best=dict.fromkeys(ARMS, 1e-3), broken=("init_a",))
    with pytest.raises(KeyboardInterrupt):
        _run(_plan(), bowl, tmp_path / "sweep", observer=_Killed(5 * 2 + 4))
    assert [cell.best_rate for cell in _run(_plan(), bowl, tmp_path / "sweep", resume=True).cells] == [1e-3, None]
    assert Counter(row.phase for row in read_sweep(tmp_path / "sweep").rows if row.arm == "b_only")["closing"] == 3


def test_a_run_keeps_the_name_and_the_part_that_it_had(tmp_path: Path) -> None:
    bowl = Bowl(best=dict.fromkeys((*ARMS, "mine"), 1e-3))
    _run(_plan(), bowl, tmp_path / "sweep")
    with pytest.raises(SpecError, match=r"'mine' is what this sweep has run as 'b_only'"):
        _run(_plan(arms=(parse_arm("mine=b_only"),)), bowl, tmp_path / "sweep", resume=True)
    with pytest.raises(SpecError, match=r"Seed 0 of b_only at rate 0\.001 was a closing run"):
        _run(_plan(tuning_seeds=(0,), closing_seeds=(7,)), bowl, tmp_path / "sweep", resume=True)


def test_leaving_ends_the_runs_that_go_on_at_once(tmp_path: Path) -> None:
    ended: list[str] = []

    class Noting(InProcess):
        def run(self, jobs: Sequence[RunJob], *, told: SweepObserver | None = None) -> Generator[RunRow]:
            try:
                yield from super().run(jobs, told=told)
            finally:
                ended.append("runs")

        def close(self) -> None:
            ended.append("executor")

    class Full(SilentObserver):
        def ended(self, row: RunRow) -> None:
            raise DiskSpaceError("It is full.")

    folder = claim(tmp_path / "sweep", resume=False, overwrite=False)
    with (
        pytest.raises(DiskSpaceError),
        Noting(folder.path, work=partial(work_of, Bowl(best=dict.fromkeys(ARMS, 1e-3)))) as executor,
    ):
        run_sweep(_plan(), cells(_plan()), folder, executor=executor, observer=Full())
    assert ended == ["runs", "executor"]


def test_one_rate_alone_is_not_tuned(tmp_path: Path) -> None:
    summary = _run(_plan(rates=(1e-3,)), Bowl(best=dict.fromkeys(ARMS, 1e-3)), tmp_path / "sweep")
    assert {row.phase for row in read_sweep(tmp_path / "sweep").rows} == {"closing"}
    assert [cell.closing_rate for cell in summary.cells] == [1e-3, 1e-3]


def test_axes_have_rates_of_their_own(tmp_path: Path) -> None:
    plan = _plan(axes=(parse_axis("train.batch_size=16,32"),), arms=(parse_arm("b_only"),))
    summary = _run(plan, Bowl(best={"b_only": 1e-3}), tmp_path / "sweep")
    assert [cell.label for cell in summary.cells] == ["b_only, train.batch_size 16", "b_only, train.batch_size 32"]
    assert Counter(dict(row.axes)["train.batch_size"] for row in read_sweep(tmp_path / "sweep").rows) == {
        16: 13,
        32: 13,
    }


def test_a_search_closes_at_its_best_point(tmp_path: Path) -> None:
    search = Search(space=(parse_searched("train.lr=1e-4..1e-1"), parse_searched("adapter.rank=4,8")), trials=16)
    plan = _plan(search=search, arms=(parse_arm("b_only"),))
    _run(plan, Bowl(best={"b_only": 3e-3}), tmp_path / "sweep")
    rows = read_sweep(tmp_path / "sweep").rows
    found = [row for row in rows if row.phase == "search"]
    assert len({row.lr for row in found}) == 16
    best = max(found, key=lambda row: row.validation or 0.0)
    closing = [row for row in rows if row.phase == "closing"]
    assert {row.lr for row in closing} == {best.lr}
    assert {row.rank for row in closing} == {best.rank}
    assert {tuple(row.axes.items()) for row in closing} == {(("adapter.rank", best.rank),)}


def test_a_point_that_is_proposed_twice_is_run_once(tmp_path: Path) -> None:
    search = Search(space=(parse_searched("adapter.rank=4,8"),), trials=8, sampler="random")
    bowl = Bowl(best={"b_only": 1e-3})
    _run(_plan(search=search, arms=(parse_arm("b_only"),), tuning_seeds=(100,)), bowl, tmp_path / "sweep")
    assert max(Counter(bowl.done).values()) == 1
    assert Counter(row.phase for row in read_sweep(tmp_path / "sweep").rows) == {"search": 2, "closing": 3}


def test_points_of_a_search_that_are_behind_stop_early(tmp_path: Path) -> None:
    search = Search(space=(parse_searched("train.lr=1e-5..1e-1"),), trials=12, sampler="random")
    plan = _plan(search=search, arms=(parse_arm("b_only"),), prune=True)
    _run(plan, Bowl(best={"b_only": 3e-3}), tmp_path / "sweep")
    found = [row for row in read_sweep(tmp_path / "sweep").rows if row.phase == "search"]
    first = search.batch * 2
    assert {row.status for row in found[:first]} == {"finished"}  # with nobody to be behind
    assert "pruned" in {row.status for row in found[first:]}
