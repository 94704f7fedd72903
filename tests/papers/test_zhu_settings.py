from __future__ import annotations

from asymlora.papers.zhu_settings import A_ONLY, B_ONLY, BOTH, SOURCE
from asymlora.sweep.grid import SweepPlan, cells


def test_each_arm_trains_what_its_name_says_from_a_start_that_changes_nothing() -> None:
    plan = SweepPlan(arms=(BOTH, B_ONLY, A_ONLY), rates=(1e-3,))
    by_name = {cell.arm: cell.recipe.adapter for cell in cells(plan)}
    assert {name: spec.trains for name, spec in by_name.items()} == {
        "both": {"A": True, "B": True},
        "b_only": {"A": False, "B": True},
        "a_only": {"A": True, "B": False},
    }
    assert all(spec.A.starts_at_zero != spec.B.starts_at_zero for spec in by_name.values())
    assert by_name["b_only"].A.init == by_name["a_only"].B.init == "orthonormal"


def test_the_paper_is_named_by_its_authors_and_number() -> None:
    assert SOURCE.startswith("Zhu et al., ")
    assert SOURCE.endswith(", 2024, arXiv:2402.16842")
