"""Which finished runs have learnt next to nothing, on both sides of each of the three numbers."""

from __future__ import annotations

import pytest

from asymlora.sweep.collapse import collapsed
from asymlora.sweep.rates import divergence_edge, largest_stable, rate_scores
from asymlora.sweep.run_record import RunRow, Status


def run(lr: float, losses: list[float], *, seed: int = 100, status: Status = "finished") -> RunRow:
    return RunRow(
        id=f"{lr} {seed}", phase="tuning", arm="a", axes={}, seed=seed, repeat=0, lr=lr, rank=8, recipe={},
        status=status, metric="accuracy", validation=0.5 if status == "finished" else None,
        losses={"step": list(range(len(losses))), "loss": losses},
    )  # fmt: skip


START = [run(1e-4, [2.0, 1.9]), run(1e-3, [1.9, 1.0])]
"""The loss starts at 2 and falls by 1 at best: a run above has collapsed where it ends above 2 - 0.25 * 1."""


@pytest.mark.parametrize(("end", "fallen"), [(1.74, False), (1.76, True), (5.0, True)])
def test_a_run_that_falls_by_less_than_a_quarter_of_the_best_has_collapsed(end: float, fallen: bool) -> None:
    assert collapsed([*START, run(1e-2, [3.0, end])]) == ({(1e-2, 100)} if fallen else set())


def test_a_rate_below_the_best_is_slow_and_not_collapsed() -> None:
    assert collapsed(START) == set()


@pytest.mark.parametrize(("end", "fallen"), [(3.5, False), (3.56, False), (3.58, True)])
def test_where_nothing_learns_much_only_a_loss_above_the_start_counts(end: float, fallen: bool) -> None:
    slight = [run(1e-4, [3.5, 3.45]), run(1e-3, [3.5, 3.3])]
    assert collapsed([*slight, run(1e-2, [3.5, end])]) == ({(1e-2, 100)} if fallen else set())


def test_each_seed_is_held_against_its_own_runs() -> None:
    other = [run(1e-4, [6.0, 5.9], seed=101), run(1e-3, [6.0, 1.0], seed=101), run(1e-2, [6.0, 4.0], seed=101)]
    assert collapsed([*START, run(1e-2, [3.0, 4.0]), *other]) == {(1e-2, 100)}


def test_runs_that_ended_otherwise_or_recorded_one_loss_are_passed_over() -> None:
    assert collapsed([*START, run(1e-2, [3.0, 4.0], status="diverged"), run(1e-1, [9.0])]) == set()
    assert collapsed([]) == set()


def test_a_collapsed_rate_is_an_edge_as_a_diverged_one_is() -> None:
    rows = [*START, run(1e-2, [3.0, 1.9]), run(1e-1, [], status="diverged")]
    scores = rate_scores(rows, seeds=[100])
    assert [score.stable for score in scores] == [True, True, False, False]
    assert (largest_stable(scores), divergence_edge(scores)) == (1e-3, 1e-2)
