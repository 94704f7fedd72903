from __future__ import annotations

from asymlora.papers import hayou_settings
from asymlora.papers.hayou_settings import INIT_ARMS, SOURCE, closing_seeds, tuning_seeds
from asymlora.reproduce.artefact import MOST_SEEDS, DataSet
from asymlora.sweep.grid import SweepPlan, cells


def test_a_seed_that_chooses_a_rate_is_never_quoted() -> None:
    assert not set(closing_seeds(MOST_SEEDS)) & set(tuning_seeds(MOST_SEEDS))
    assert closing_seeds(6) == closing_seeds(MOST_SEEDS)[:6]
    assert tuning_seeds(2) == (200, 201) == tuning_seeds(MOST_SEEDS)[:2]


def test_the_arms_start_one_factor_at_zero_each_and_train_both() -> None:
    by_name = {cell.arm: cell.recipe.adapter for cell in cells(SweepPlan(arms=INIT_ARMS, rates=(1e-3,)))}
    assert {name: (spec.A.starts_at_zero, spec.B.starts_at_zero) for name, spec in by_name.items()} == {
        "init_a": (False, True),
        "init_b": (True, False),
    }
    assert all(spec.trains == {"A": True, "B": True} for spec in by_name.values())


def test_data_sets_name_the_commit_that_they_are_of() -> None:
    sets = [value for value in vars(hayou_settings).values() if isinstance(value, DataSet)]
    assert len({data.place for data in sets}) == len(sets) > 0
    assert all("github.com/" in data.source and "commit " in data.source for data in sets)


def test_the_paper_is_named_by_its_authors_and_number() -> None:
    assert SOURCE == "Hayou, Ghosh, Yu, 2024, arXiv:2406.08447"
