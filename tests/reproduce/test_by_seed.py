from __future__ import annotations

from asymlora.reproduce.by_seed import BySeed, asked_for


def test_values_know_of_seeds_that_were_asked_for_and_are_equal_to_a_plain_mapping() -> None:
    values = BySeed({2: 0.5}, planned=(1, 0))
    assert values == {2: 0.5}
    assert values.planned == (0, 1, 2)
    assert BySeed({2: 0.5}).planned == (2,)


def test_seeds_of_all_sides_were_asked_for() -> None:
    assert asked_for(BySeed({0: 0.5}, planned=(0, 3)), {2: 0.25}) == (0, 2, 3)
    assert asked_for({}) == ()
