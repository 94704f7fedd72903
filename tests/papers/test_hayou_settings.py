from __future__ import annotations

from asymlora.papers.hayou_settings import INIT_ARMS, SOURCE
from asymlora.sweep.grid import SweepPlan, cells


def test_the_arms_start_one_factor_at_zero_each_and_train_both() -> None:
    by_name = {cell.arm: cell.recipe.adapter for cell in cells(SweepPlan(arms=INIT_ARMS, rates=(1e-3,)))}
    assert {name: (spec.A.starts_at_zero, spec.B.starts_at_zero) for name, spec in by_name.items()} == {
        "init_a": (False, True),
        "init_b": (True, False),
    }
    assert all(spec.trains == {"A": True, "B": True} for spec in by_name.values())


def test_the_paper_is_named_by_its_authors_and_number() -> None:
    assert SOURCE == "Hayou, Ghosh, Yu, 2024, arXiv:2406.08447"
