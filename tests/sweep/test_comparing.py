from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small_sweep
from asymlora.errors import SpecError, UnknownNameError
from asymlora.sweep.analysis import analyse
from asymlora.sweep.comparing import Compared, compare_results
from asymlora.sweep.run_folders import read_results
from small_run import write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return small_sweep.write_folder(tmp_path / "sweep")


def compared(*paths: Path, **options: Any) -> Compared:
    return compare_results(read_results(paths), **options)


def labels(found: Compared) -> list[str]:
    return [cell.label for cell in found.cells]


def test_cells_of_one_sweep_are_compared_as_the_sweep_does(sweep: Path) -> None:
    found = compared(sweep)
    wanted = analyse(small_sweep.plan(), small_sweep.rows())
    assert labels(found) == ["init_a", "init_b", "b_only"]
    assert found.comparisons == wanted.comparisons
    assert found.verdicts == wanted.verdicts
    assert (found.descriptions, found.differences, found.notes) == ((), (), ())


def test_choosing_arms_shows_less_and_corrects_for_all(sweep: Path) -> None:
    (pair,) = compared(sweep, arms=["init_b", "b_only"]).comparisons
    assert {pair.first, pair.second} == {"init_b", "b_only"}
    assert pair.comparisons == 3
    assert pair in compared(sweep).comparisons


def test_doubt_about_the_rates_counts_between_folders_as_in_one(sweep: Path, tmp_path: Path) -> None:
    # All rates are alike on validation but for noise, so any of them could be the best one.
    rows = [
        replace(row, validation=0.9 + 0.01 * small_sweep.wobble(row.id)) if row.status == "finished" else row
        for row in small_sweep.rows(arms=("init_b", "b_only"))
    ]
    inside = compared(small_sweep.write_folder(tmp_path / "both", rows, arms=("init_b", "b_only"))).comparisons
    paths = [
        small_sweep.write_folder(tmp_path / arm, [row for row in rows if row.arm == arm], arms=(arm,))
        for arm in ("init_b", "b_only")
    ]
    (between,) = compared(*paths).comparisons
    (within,) = inside
    assert within.allowance > 0
    # The noise that it comes from is that of each folder.
    assert 0 < between.allowance < 3 * within.allowance
    assert [between.mean, between.p] == [within.mean, within.p]


def test_sweeps_with_equal_conditions_are_paired_by_seed(sweep: Path, tmp_path: Path) -> None:
    other = small_sweep.write_folder(tmp_path / "other", small_sweep.rows(arms=("init_b",)), arms=("init_b",))
    found = compared(sweep, other, arms=["sweep: init_b", "other: init_b"])
    assert labels(found) == ["sweep: init_b", "other: init_b"]
    (pair,) = found.comparisons
    # The same runs in both.
    assert [difference.value for difference in pair.differences] == [0.0] * 6
    assert found.descriptions == ()
    assert found.differences == (
        "sweep: init_b and other: init_b differ in no key of the recipe but learning rate and seeds.",
    )


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"data": {"name": "other.csv"}}, "data.name: 'embedded:reviews' / 'other.csv'"),
        ({"data": {"seed": 3}}, "data.seed: 0 / 3"),
        ({"train": {"steps": 80}}, "train.steps: 40 / 80"),
        ({"train": {"batch_size": 16}}, "train.batch_size: 32 / 16"),
    ],
)
def test_other_data_or_budgets_are_described_and_not_tested(recipe: dict[str, Any], words: str, tmp_path: Path) -> None:
    found = compared(write_run(tmp_path / "one"), write_run(tmp_path / "two", score=0.8, recipe=recipe))
    assert found.comparisons == ()
    (said,) = found.descriptions
    assert f"nothing is tested ({words})" in said
    assert "one: 90.00 points of accuracy on test, 1 seed. two: 80.00 points of accuracy on test, 1 seed." in said
    assert f"one / two differ in {words}" in found.differences[0]


def test_another_metric_is_described_and_not_tested(tmp_path: Path) -> None:
    worse = {"metrics": {"baseline": {}, "before": {"perplexity": 20.0}, "after": {"perplexity": 11.0}}}
    two = write_run(tmp_path / "two", metric="perplexity", greater_is_better=False, **worse)
    found = compared(write_run(tmp_path / "one"), two)
    assert "metric: 'accuracy' / 'perplexity'" in found.descriptions[0]
    assert "two: 11 of perplexity on test" in found.descriptions[0]


def test_what_is_compared_may_differ_and_is_listed(tmp_path: Path) -> None:
    both = {"adapter": {"preset": "lora"}, "train": {"lr": 1e-3}}
    found = compared(write_run(tmp_path / "one"), write_run(tmp_path / "two", score=0.8, recipe=both))
    (pair,) = found.comparisons
    assert [tuple(difference) for difference in pair.differences] == [(0, pytest.approx(0.1))]
    assert pair.outcome == "not testable"
    (said,) = found.differences
    assert "adapter.A.trainable: False / True" in said
    assert "train.lr" not in said


def test_single_runs_are_told_what_a_test_needs(tmp_path: Path, sweep: Path) -> None:
    found = compared(write_run(tmp_path / "one"), write_run(tmp_path / "two"))
    assert any("A sweep with both as arms and --seeds 6" in note for note in found.notes)
    assert not any("--seeds 6" in note for note in compared(sweep).notes)


def test_runs_of_other_seeds_are_not_paired(tmp_path: Path) -> None:
    found = compared(write_run(tmp_path / "one"), write_run(tmp_path / "two", recipe={"train": {"seed": 1}}))
    (pair,) = found.comparisons
    assert (pair.differences, pair.p) == ((), None)
    assert "no closing runs of the same seed" in pair.sentence


def test_an_unfinished_run_is_shown_and_warned_of(tmp_path: Path) -> None:
    found = compared(write_run(tmp_path / "one"), write_run(tmp_path / "two", score=None))
    assert labels(found) == ["one", "two"]
    assert found.cells[1].found["mean"] is None
    assert any("two has not ended" in note for note in found.notes)


def test_which_way_is_better_is_not_taken_from_a_run_that_has_not_ended(tmp_path: Path) -> None:
    arms = ("init_a", "init_b")
    rows = [replace(row, greater_is_better=False) for row in small_sweep.rows(arms=arms)]
    folder = small_sweep.write_folder(tmp_path / "sweep", rows, arms=arms)
    going = write_run(tmp_path / "going", score=None, recipe={"train": {"steps": small_sweep.STEPS}})
    found = compared(going, folder)
    assert found.descriptions == ()
    (pair,) = [pair for pair in found.comparisons if pair.differences]
    # Fractions are shown in points only where more of them is better.
    assert "points" not in pair.sentence


def test_cost_of_a_cell_is_that_of_its_closing_runs(tmp_path: Path) -> None:
    one, two = compared(write_run(tmp_path / "one"), write_run(tmp_path / "two", score=None)).cells
    assert (one.seconds, one.adapter_bytes) == (15.0, 1234)
    assert (two.seconds, two.adapter_bytes) == (None, None)


def test_other_environments_are_noted(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    assert not any("environments" in note for note in compared(one, two).notes)
    environment = json.loads((two / "environment.json").read_text())
    environment["packages"]["torch"] = "2.7.0"
    (two / "environment.json").write_text(json.dumps(environment))
    assert any("packages.torch: '2.6.0' / '2.7.0'" in note for note in compared(one, two).notes)


def test_margin_is_the_plans_or_the_commands_and_that_is_said(tmp_path: Path) -> None:
    planned = small_sweep.write_folder(tmp_path / "planned", margin=0.5)
    found = compared(planned)
    assert {pair.margin for pair in found.comparisons} == {0.5}
    assert not any("margin" in note for note in found.notes)
    found = compared(planned, margin=0.25)
    assert {pair.margin for pair in found.comparisons} == {0.25}
    assert any("margin of 0.25 was given to this command" in note for note in found.notes)


def test_margins_that_differ_between_folders_are_none(tmp_path: Path) -> None:
    paths = [small_sweep.write_folder(tmp_path / f"with{margin}", margin=margin) for margin in (0.5, 0.25)]
    assert {pair.margin for pair in compared(*paths).comparisons} == {None}


def test_mistakes_name_what_is_there(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'inti_a'\. Did you mean 'init_a'\? Known: b_only, init_a, init_b\."):
        compared(sweep, arms=["inti_a", "init_b"])
    with pytest.raises(SpecError, match="only init_a is there to be compared; give a second folder"):
        compared(sweep, arms=["init_a"])
    with pytest.raises(SpecError, match="only one is there to be compared"):
        compared(write_run(tmp_path / "one"))
    for margin in (-1.0, 0.0, math.inf, math.nan):
        with pytest.raises(SpecError, match=rf"margin={margin:g} must be a number above 0"):
            compared(sweep, margin=margin)


def test_an_empty_sweep_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing is there to be compared"):
        compared(small_sweep.write_folder(tmp_path / "begun", []))


def test_plain_values_are_json_and_hold_everything(sweep: Path) -> None:
    found = json.loads(json.dumps(compared(sweep).to_dict(), allow_nan=False))
    assert set(found) == {"cells", "comparisons", "descriptions", "differences", "notes", "verdicts"}
    assert found["cells"][0]["found"]["label"] == "init_a"
    assert found["comparisons"][0]["differences"][0].keys() == {"seed", "value"}
