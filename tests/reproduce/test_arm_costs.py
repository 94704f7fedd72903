"""Costs of arms, from the shapes of models without weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import small_artefact as small
from asymlora.reproduce.arm_costs import ArmCosts
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.printed_count import MILLION, PrintedCount
from asymlora.sweep.axes import Arm
from asymlora.sweep.grid import SweepPlan, cells
from asymlora.sweep.matching import ModelCosts
from asymlora.train.recipe import Recipe

ROBERTA = {"name": "FacebookAI/roberta-large", "config": "asymlora:papers/recipes/configs/roberta-large.json"}
WIDTH, LAYERS = 1024, 24


def _plan(**recipe: object) -> SweepPlan:
    given = {"model": ROBERTA, "adapter": {"rank": 8, "targets": ["query", "value"]}, **recipe}
    return replace(small.PLAN, recipe=Recipe.from_dict({**given, "train": {"steps": 10, "batch_size": 4}}))


def _printed(text: str) -> PrintedCount:
    return PrintedCount(text=text, unit=MILLION, where="Table 1")


def test_values_operations_file_and_peak_of_a_large_model_without_its_weights() -> None:
    wanted = LAYERS * 2 * 8 * (WIDTH + WIDTH)
    printed = {"init_a": _printed("0.8 M"), "init_b": _printed("0.9 M")}
    part = SweepPart(name="mnli", plan=_plan(), printed=printed)
    first, second = ArmCosts().of(part)
    assert (first.values, second.values) == (wanted, wanted)
    assert (first.agreement, second.agreement) == ("equal", "differs")
    assert (first.printed, second.printed) == (printed["init_a"], printed["init_b"])
    assert (first.part, first.arm, first.rank, first.runs, first.steps) == ("mnli", "init_a", 8, 5, 10)
    # Four bytes a value, and the header.
    assert first.file_bytes is not None
    assert 4 * wanted < first.file_bytes < 4 * wanted + 20_000
    of_step = ModelCosts().flops(cells(part.plan)[0].recipe)
    assert of_step is not None
    assert first.flops == of_step * 10 * first.runs
    # A forward pass alone is two operations a weight and token.
    assert first.flops is not None
    assert first.flops > 2 * 300e6 * 4 * 128 * 10 * first.runs
    # The frozen weights take four bytes each.
    assert first.peak_bytes is not None
    assert 4 * 350e6 < first.peak_bytes < 4 * 350e6 + 4e9


def test_the_peak_is_that_of_the_base_in_its_type(small_encoder: Path) -> None:
    plain, packed = (
        ArmCosts().of(SweepPart(name="swept", plan=_plan(model={"name": str(small_encoder), "base": base})))[0]
        for base in ("float32", "bfloat16")
    )
    assert plain.peak_bytes is not None
    assert packed.peak_bytes is not None
    assert packed.peak_bytes < plain.peak_bytes
    assert packed.file_bytes == plain.file_bytes


def test_of_full_fine_tuning_the_whole_model_is_told_and_of_a_method_without_a_rank_nothing() -> None:
    plan = replace(_plan(), arms=(Arm(name="full", word="full"), Arm(name="ia3", word="peft:ia3")))
    printed = {"full": _printed("354.3 M"), "ia3": _printed("0.2 M")}
    full, ia3 = ArmCosts().of(SweepPart(name="mnli", plan=plan, printed=printed))
    # Of RoBERTa-large without its head, by hand.
    embedded, layer = (50_265 + 514 + 1 + 2) * WIDTH, 12 * WIDTH**2 + 13 * WIDTH
    assert (full.values, full.agreement) == (embedded + LAYERS * layer, "equal")
    assert (full.file_bytes, full.peak_bytes) == (None, None)
    assert full.flops is not None
    assert (ia3.values, ia3.agreement, ia3.file_bytes, ia3.peak_bytes) == (None, None, None, None)


def test_arms_of_equal_budgets_are_told_with_what_they_were_made() -> None:
    plan = replace(_plan(), arms=tuple(Arm(name=word, word=word) for word in ("init_a", "b_only")), match="parameters")
    both, one = ArmCosts().of(SweepPart(name="mnli", plan=plan))
    assert (one.rank, one.values) == (2 * both.rank, both.values)
    plan = replace(plan, arms=(plan.arms[0], Arm(name="full", word="full")), match="compute")
    both, full = ArmCosts().of(SweepPart(name="mnli", plan=plan))
    assert full.steps < both.steps == 10  # a step of every weight computes half as much again


def test_a_model_is_built_once(small_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asymlora.tasks import empty_models

    built: list[str] = []
    whole = empty_models.empty_model

    def counted(name: str, **options: object) -> object:
        built.append(name)
        return whole(name, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(empty_models, "empty_model", counted)
    recipe = replace(small.RECIPE, model=replace(small.RECIPE.model, name=str(small_encoder)))
    costs = ArmCosts()
    for _ in range(2):
        assert len(costs.of(SweepPart(name="swept", plan=replace(small.PLAN, recipe=recipe)))) == 2
    assert built == [str(small_encoder)] * 2  # once for values and operations, once for the file and the peak
