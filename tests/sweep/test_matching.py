"""Budgets of arms made equal: the rules on made-up costs, and the costs on a small model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymlora.errors import RankError, SpecError
from asymlora.spec import AdapterSpec
from asymlora.sweep.axes import parse_arm, parse_axis
from asymlora.sweep.grid import Cell, SweepPlan, cells
from asymlora.sweep.matching import ModelCosts, matched, nearest_rank, row_length, scaled_steps, step_flops
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.train.recipe import Recipe, TrainRecipe

IN, OUT, CAP = 30, 50, 40
STEP_COSTS = {"adapter": 2.0, "full": 3.0, "head": 1.0}


def _plan(*arms: str, match: Any = "parameters", axes: tuple[str, ...] = (), **recipe: Any) -> SweepPlan:
    return SweepPlan(
        recipe=Recipe.from_dict(recipe), rates=(1e-3, 1e-2), arms=tuple(map(parse_arm, arms)),
        axes=tuple(map(parse_axis, axes)), match=match,
    )  # fmt: skip


def _values(recipe: Recipe) -> int:
    # One layer of 30 in and 50 out.
    spec = recipe.adapter
    if spec.rank > CAP:
        raise RankError("too large")
    return spec.rank * (IN * spec.trains["A"] + OUT * spec.trains["B"])


def _flops(recipe: Recipe) -> float | None:
    cost = STEP_COSTS.get(recipe.method)
    return None if cost is None else cost * recipe.train.batch_size


def _matched(plan: SweepPlan) -> list[Cell]:
    return matched(plan, factor_values=_values, flops=_flops)


# Steps


def test_equal_steps_change_nothing_and_ask_nothing() -> None:
    def never(recipe: Recipe) -> int:
        raise AssertionError("asked")

    plan = _plan("init_a", "full", match="steps")
    assert matched(plan, factor_values=never, flops=never) == cells(plan)


# Parameters


def test_ranks_give_the_nearest_number_of_trained_values() -> None:
    first, b_only, a_only = _matched(_plan("init_a", "b_only", "a_only"))
    assert (first.recipe.adapter.rank, first.notes) == (8, ())  # 8 * 80 = 640
    assert b_only.recipe.adapter == AdapterSpec.b_only(rank=13)  # 13 * 50 = 650, 12 * 50 = 600
    assert a_only.recipe.adapter.rank == 21  # 21 * 30 = 630, 22 * 30 = 660
    assert b_only.notes == ("b_only: rank 13, 650 trained factor values, 1.6 % above init_a (640).",)
    assert a_only.notes == ("a_only: rank 21, 630 trained factor values, 1.6 % below init_a (640).",)


def test_nothing_but_the_rank_is_changed_and_an_exact_match_is_told() -> None:
    before = cells(plan := _plan("x=init_a:rank=10", "b_only"))[1]
    after = _matched(plan)[1]
    assert after.recipe == replace(before.recipe, adapter=replace(before.recipe.adapter, rank=16))
    assert (after.label, after.arm, after.axes) == (before.label, before.arm, before.axes)
    assert after.notes == ("b_only: rank 16, 800 trained factor values, exactly as in x (800).",)


def test_an_alpha_that_stays_is_told_with_what_it_does() -> None:
    after = _matched(_plan("init_a:rank=10", "b_only", adapter={"alpha": 16}))[1]
    assert after.notes[1:] == ("b_only: with the rank its scaling factor goes from 2 to 1.",)  # 16/8 and 16/16


def test_a_rank_that_no_layer_allows_is_not_taken() -> None:
    after = _matched(_plan("init_a:rank=40", "a_only"))[1]  # 3200 values would need rank 107
    assert after.recipe.adapter.rank == CAP
    assert "62 % below" in after.notes[0]  # 1200 of 3200


def test_each_point_of_an_axis_has_a_budget_of_its_own() -> None:
    plan = _plan("init_a", "b_only", axes=('adapter.rank_pattern={},{"value": 4}',))

    def values(recipe: Recipe) -> int:
        return _values(recipe) + (400 if recipe.adapter.rank_pattern else 0)

    found = matched(plan, factor_values=values, flops=_flops)
    # 640 of 50 a rank, and 640 + 400 of 400 + 50 a rank.
    assert [cell.recipe.adapter.rank for cell in found] == [8, 8, 13, 13]
    assert "(640)" in found[2].notes[0]
    assert "(1,040)" in found[3].notes[0]


@pytest.mark.parametrize("arm", ["full", "head", "peft:ia3", "peft:adalora"])
def test_an_arm_without_a_rank_is_refused(arm: str) -> None:
    with pytest.raises(SpecError, match=f"Arm {arm}: method='{arm}' has no rank.*match=compute"):
        _matched(_plan("init_a", arm))
    with pytest.raises(SpecError, match=f"Arm {arm}: method='{arm}' has no rank"):
        _matched(_plan(arm, "init_a"))


def test_all_arms_without_a_rank_are_named_at_once() -> None:
    with pytest.raises(SpecError, match=r"Arm full: .*Arm head: "):
        _matched(_plan("init_a", "full", "head"))


def test_a_rank_that_changes_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Arm b_only: its rank does not change what it trains \(7 values\)"):
        matched(_plan("init_a", "b_only"), factor_values=lambda recipe: 7, flops=_flops)


@given(st.integers(1, 500), st.integers(0, 3000), st.integers(1, 60), st.integers(0, 20_000))
def test_no_rank_is_nearer_than_the_nearest(each: int, fixed: int, cap: int, wanted: int) -> None:
    def values(rank: int) -> int:
        if rank > max(2, cap):
            raise RankError("too large")
        return fixed + each * rank

    every = {rank: abs(values(rank) - wanted) for rank in range(1, max(2, cap) + 1)}
    assert nearest_rank(values, wanted) == min(every, key=lambda rank: (every[rank], rank))


# Compute


def test_steps_give_the_nearest_compute() -> None:
    plan = _plan("init_a", "full", "head", match="compute", train={"steps": 80, "evaluate_every": 20})
    first, full, head = _matched(plan)
    assert (first.recipe.train.steps, first.recipe.train.evaluate_every, first.notes) == (80, 20, ())
    assert (full.recipe.train.steps, full.recipe.train.evaluate_every) == (53, 13)  # 160 / 3
    assert (head.recipe.train.steps, head.recipe.train.evaluate_every) == (160, 40)
    assert full.notes == ("full: 53 steps, whose compute is 0.62 % below init_a.",)  # 159 of 160
    assert head.notes == ("head: 160 steps, whose compute is exactly as in init_a.",)


def test_compute_counts_the_batch_of_each_arm() -> None:
    plan = _plan("init_a", "x=b_only:train.batch_size=8", match="compute", train={"steps": 80, "batch_size": 32})
    assert [cell.recipe.train.steps for cell in _matched(plan)] == [80, 320]


@given(st.integers(1, 400), st.integers(1, 500), st.floats(0.05, 20))
def test_scaled_steps_are_scored_as_often_and_never_not_at_all(steps: int, every: int, factor: float) -> None:
    scaled, apart = scaled_steps(steps, every, factor=factor)
    assert scaled == max(1, round(steps * factor))
    assert apart >= 1
    if scaled >= steps // every:  # else there are fewer steps than there were scores
        assert scaled // apart >= steps // every


def test_unknown_compute_is_refused_with_the_arm() -> None:
    with pytest.raises(SpecError, match="Arm peft:ia3: its compute is not known"):
        _matched(_plan("init_a", "peft:ia3", match="compute"))
    with pytest.raises(SpecError, match="Arm init_a: the compute of peft:ia3 is not known"):
        _matched(_plan("peft:ia3", "init_a", match="compute"))


# Costs of a small model: 2 blocks, width 16, feed-forward 24, and a pooler of 16 to 16.

WIDTH, FORWARD_WIDTH, BLOCKS = 16, 24, 2
LINEAR = BLOCKS * 2 * (4 * WIDTH**2 + 2 * WIDTH * FORWARD_WIDTH)
"""Products of the blocks' linear layers for one token."""


@pytest.fixture
def small(small_encoder: Path) -> Recipe:
    return Recipe(
        model=ModelRecipe(name=str(small_encoder)), data=DataRecipe(max_tokens=10),
        train=TrainRecipe(batch_size=3, gradient_accumulation=2),
    )  # fmt: skip


def test_factor_values_are_those_that_would_be_trained(small: Recipe) -> None:
    costs = ModelCosts()

    def values(arm: str) -> int:
        return costs.factor_values(parse_arm(f"{arm}:rank=2,targets=[query,intermediate.dense]").laid_over(small))

    down = BLOCKS * 2 * (WIDTH + WIDTH)
    up = BLOCKS * 2 * (WIDTH + FORWARD_WIDTH)
    assert (values("b_only"), values("a_only")) == (up, down)
    assert values("init_a") == values("init_b") == values("peft:lora") == up + down
    assert values("peft:lora_fa") == up


def test_a_pooler_counts_only_where_the_model_has_one(small: Recipe) -> None:
    costs, blocks = ModelCosts(), BLOCKS * (4 * WIDTH + WIDTH + FORWARD_WIDTH)
    for pooling, up in (("native", blocks + WIDTH), ("mean", blocks), ("auto", blocks + WIDTH)):
        recipe = replace(small, model=replace(small.model, pooling=pooling), adapter=AdapterSpec(rank=2))
        assert costs.factor_values(recipe) == 2 * up


def test_factor_values_of_the_embedded_model_are_those_of_its_run() -> None:
    # 6 blocks of width 384 and 1536, pooled by the mean: B of rank 8 alone.
    assert ModelCosts().factor_values(Recipe()) == 8 * 6 * (4 * 384 + 1536 + 384)


def test_ranks_on_a_real_model_stop_at_its_width(small: Recipe) -> None:
    plan = SweepPlan(
        recipe=replace(small, adapter=AdapterSpec(targets=("query",))), rates=(1e-3,), match="parameters",
        arms=(parse_arm("init_a:rank=12"), parse_arm("b_only")),
    )  # fmt: skip
    costs = ModelCosts()
    found = matched(plan, factor_values=costs.factor_values, flops=costs.flops)
    assert [cell.recipe.adapter.rank for cell in found] == [12, WIDTH]  # 24 would be exact


def test_compute_of_a_step_is_that_of_its_products(small: Recipe) -> None:
    costs = ModelCosts()
    tokens, scores = 3 * 2 * 10, BLOCKS * 4 * 10 * WIDTH  # two products of attention over 10 tokens
    forward = LINEAR + scores

    def flops(arm: str, recipe: Recipe = small) -> float:
        found = costs.flops(parse_arm(arm).laid_over(recipe))
        assert found is not None
        return found / tokens

    assert flops("head") == forward
    assert flops("full") == 3 * forward
    sites = [(WIDTH, WIDTH)] * 4 + [(WIDTH, FORWARD_WIDTH), (FORWARD_WIDTH, WIDTH)]
    branch = BLOCKS * sum(2 * 8 * (n + m) for n, m in sites)  # of rank 8, forward; once more for the input's gradient
    up = BLOCKS * sum(2 * 8 * m for _, m in sites)
    down = BLOCKS * sum(2 * 8 * n for n, _ in sites)
    linear = LINEAR + scores + LINEAR + 2 * scores + 2 * branch
    assert flops("b_only") == flops("peft:lora_fa") == linear + up
    assert flops("init_a") == flops("peft:lora") == linear + up + down
    checkpointed = replace(small, train=replace(small.train, gradient_checkpointing=True))
    assert flops("full", checkpointed) == 4 * forward


def test_backward_goes_down_to_the_lowest_trained_block_only(small: Recipe) -> None:
    costs = ModelCosts()
    low, high = (
        costs.flops(parse_arm(f'init_a:targets=["{end}"]').laid_over(small))
        for end in ("layer.0.attention.self.query", "layer.1.attention.self.query")
    )
    assert low is not None
    assert high is not None
    assert low - high == 60 * (LINEAR + 2 * BLOCKS * 4 * 10 * WIDTH) / BLOCKS


def test_compute_equals_what_torch_counts(small: Recipe) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
                                 vocab_size=8, attn_implementation="eager"))  # fmt: skip
    hidden = torch.randn(6, 10, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counted:
        model.encoder(hidden).last_hidden_state.sum().backward()
    assert step_flops(model, replace(small, method="full"), rows=6, length=10) == counted.get_total_flops()


def test_compute_of_a_model_without_known_blocks_is_unknown(small: Recipe) -> None:
    from cases import small_net

    assert step_flops(small_net(), replace(small, method="full"), rows=1, length=1) is None


def test_rows_are_as_long_as_texts_are_cut_and_images_have_patches(small: Recipe) -> None:
    from types import SimpleNamespace

    model = SimpleNamespace(config=SimpleNamespace(patch_size=8))
    assert row_length(model, small) == 10
    images = Recipe(task="image_classification", data=DataRecipe(image_size=32))
    assert row_length(model, images) == 4 * 4 + 1


def test_every_pair_of_matched_arms_is_named_once() -> None:
    found = _matched(_plan("init_a", "b_only", "a_only", axes=("train.batch_size=16,32",)))
    assert len({cell.label for cell in found}) == len(found) == 6
    assert all(one.recipe != other.recipe for one, other in itertools.combinations(found, 2))


def test_what_a_run_keeps_is_the_model_or_two_factors_a_site() -> None:
    costs, adapter = ModelCosts(), Recipe()
    assert costs.kept_bytes(adapter) == 4 * 2 * costs.factor_values(adapter)
    whole = costs.kept_bytes(replace(adapter, method="full", adapter=AdapterSpec()))
    assert 4 * 20e6 < whole < 4 * 25e6  # MiniLM-L6 has 22.7 million weights, its pooler among them
    assert costs.kept_bytes(replace(adapter, method="head", adapter=AdapterSpec())) == 0
