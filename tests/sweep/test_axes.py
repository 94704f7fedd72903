"""What users type of a sweep: rates, arms and axes, right and wrong."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymlora.errors import SpecError, UnknownKeyError, UnknownNameError
from asymlora.factor_spec import PRESETS
from asymlora.spec import AdapterSpec
from asymlora.sweep.axes import ADAPTER_FIELDS_READ, Arm, Axis, parse_arm, parse_axis, parse_rates, rates_text
from asymlora.train.recipe import METHODS, Recipe

THIRDS = (0.0001, 0.000215443, 0.000464159, 0.001, 0.00215443, 0.00464159, 0.01)


# Rates


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("1e-4..1e-2", THIRDS),
        ("0.0001 .. 0.01", THIRDS),
        ("1e-4..1e-2:1", (1e-4, 1e-3, 1e-2)),
        ("1e-4..1e-2:2", (1e-4, 0.000316228, 1e-3, 0.00316228, 1e-2)),
        ("1e-3..1e-3", (1e-3,)),
        ("1e-3", (1e-3,)),
        ("1e-3,1e-4,3e-4", (1e-4, 3e-4, 1e-3)),
        ("2.15e-4,1e-3", (2.15e-4, 1e-3)),  # in a list every rate is as typed
    ],
)
def test_rates_are_read(text: str, rates: tuple[float, ...]) -> None:
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1e-2..1e-4", r"empty range. Give the smaller rate first: 1e-4\.\.1e-2"),
        ("1e-2..1e-4:2", r"first: 1e-4\.\.1e-2:2"),
        ("0..1e-2", "'0' is no learning rate"),
        ("-1e-3", "'-1e-3' is no learning rate"),
        ("nan..1e-2", "'nan' is no learning rate"),
        ("1e-4..inf", "'inf' is no learning rate"),
        ("1e-4,,1e-3", "'' is no learning rate"),
        ("", "'' is no learning rate"),
        ("fast", "'fast' is no learning rate"),
        ("1e-4..", "'' is no learning rate"),
        ("1e-4..1e-2:0", "'0' is no number of rates a decade"),
        ("1e-4..1e-2:x", "'x' is no number of rates a decade"),
        ("1e-4..1e-2:", "'' is no number of rates a decade"),
        ("1e-3,3e-3,0.001", "1e-3 is given twice"),
    ],
)
def test_what_is_no_list_of_rates_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as raised:
        parse_rates(text)
    assert str(raised.value).startswith(f"--lr {text}")


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=8, unique=True))
def test_any_list_of_rates_survives_being_written(rates: list[float]) -> None:
    assert parse_rates(rates_text(rates)) == tuple(sorted(rates))


@given(st.integers(-20, 3), st.integers(1, 20), st.integers(1, 6))
def test_any_range_survives_being_written(first: int, steps: int, per_decade: int) -> None:
    ends = (f"{10 ** (place / per_decade):.3g}" for place in (first, first + steps))
    rates = parse_rates(f"{'..'.join(ends)}:{per_decade}")
    assert len(rates) == steps + 1
    assert parse_rates(rates_text(rates)) == rates


# Arms


@pytest.mark.parametrize(
    ("text", "name", "word", "options"),
    [
        ("init_a", "init_a", "init_a", {}),
        ("hB_zero_A_V", "hB_zero_A_V", "hB_zero_A_V", {}),
        ("b_only:rank=16", "b_only:rank=16", "b_only", {"adapter.rank": 16}),
        ("wide=b_only:rank=16, alpha=32", "wide", "b_only", {"adapter.rank": 16, "adapter.alpha": 32.0}),
        ("a-1=full", "a-1", "full", {}),
        ("peft:lora", "peft:lora", "peft:lora", {}),
        ("peft:lora:rank=4", "peft:lora:rank=4", "peft:lora", {"adapter.rank": 4}),
        ("fa=peft:lora_fa:train.weight_decay=0.1", "fa", "peft:lora_fa", {"train.weight_decay": 0.1}),
        ("recipe", "recipe", "recipe", {}),
        ("x=init_a:targets=[q,v],dropout=0", "x", "init_a", {"adapter.targets": ["q", "v"], "adapter.dropout": 0.0}),
        ("x=init_a:adapter.A.gain=2", "x", "init_a", {"adapter.A.gain": 2.0}),
    ],
)
def test_arms_are_read(text: str, name: str, word: str, options: dict[str, Any]) -> None:
    assert parse_arm(text) == Arm(name=name, word=word, options=options)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("bonly", UnknownNameError, "Did you mean 'b_only'.*Methods: adapter, full"),
        ("peft:lor", UnknownNameError, "Did you mean 'peft:lora'"),
        ("", UnknownNameError, "'' names no arm"),
        ("a=b=c", UnknownNameError, "'b=c' names no arm"),
        ("hB_foo_A_rand", UnknownNameError, "'foo' in 'hB_foo_A_rand' names no start"),
        ("b_only:", SpecError, "'' is no setting. Write KEY=VALUE"),
        ("b_only:rank", SpecError, "'rank' is no setting"),
        ("b_only:=3", SpecError, "'=3' is no setting"),
        ("b_only:rank=4,rank=8", SpecError, "rank is given twice"),
        ("b_only:rnk=4", UnknownKeyError, "Did you mean 'adapter.rank'"),
        ("b_only:r=4", UnknownKeyError, "PEFT's name for rank"),
        ("init_a:A.gain=2", UnknownKeyError, "'A.gain' names no field.*Did you mean 'adapter.A.gain'"),
        ("b_only:rank=x", SpecError, "'adapter.rank' is 'x'; a whole number is needed"),
        ("b_only:rank=0", SpecError, "rank=0 must be"),
        ("b_only:train.lr=1", SpecError, "Use --lr"),
        ("b_only:seed=1", SpecError, "Use --seeds"),
        ("b_only:method=full", SpecError, "Use --arm full"),
        ("full:rank=4", SpecError, "adapter.rank is nothing that full reads"),
        ("peft:ia3:rank=4,alpha=2", SpecError, "adapter.rank is nothing.*adapter.alpha is nothing"),
    ],
)
def test_what_is_no_arm_is_refused_with_what_was_typed(text: str, kind: type[SpecError], words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        parse_arm(text)
    assert str(raised.value).startswith(f"--arm {text}: ")


def test_a_nameless_arm_is_refused() -> None:
    with pytest.raises(SpecError, match="has no name"):
        Arm(name=" ", word="b_only")


def test_a_preset_replaces_the_factors_and_keeps_the_rest() -> None:
    base = Recipe.from_dict({"adapter": {"preset": "lora", "rank": 4, "dropout": 0.1}, "train": {"steps": 7}})
    laid = parse_arm("init_b:alpha=3").laid_over(base)
    assert laid.adapter == AdapterSpec.init_b(rank=4, dropout=0.1, alpha=3)
    assert (laid.train, laid.data, laid.method) == (base.train, base.data, "adapter")


def test_a_preset_over_a_recipe_of_another_method_trains_an_adapter() -> None:
    assert parse_arm("b_only").laid_over(Recipe(method="full")).method == "adapter"


def test_the_recipe_itself_is_an_arm() -> None:
    base = Recipe.from_dict({"adapter": "init_a", "method": "peft:ia3"})
    assert parse_arm("recipe").laid_over(base) == base


RICH = AdapterSpec.lora(
    rank=3, alpha=5, scaling="rank_stabilized", dropout=0.1, targets=["query"], modules_to_save=["norm"], seed=4,
    rank_pattern={"q": 2}, alpha_pattern={"q": 3.0}, factor_pattern={"q": "a_only"}, nonzero_start="correct_base",
)  # fmt: skip
"""An adapter every field of which but one (``shared_A``, which goes with a frozen ``A``) is not the default."""


@pytest.mark.parametrize("method", ADAPTER_FIELDS_READ)
def test_a_method_keeps_the_fields_that_it_reads_and_no_others(method: str) -> None:
    from asymlora.train.methods import METHODS as ROWS

    recipe = parse_arm(method).laid_over(Recipe(adapter=RICH))
    ROWS[method].refuse_unused(recipe)  # nothing is left that it does not read
    plain = AdapterSpec()
    for name in (f.name for f in fields(AdapterSpec)):
        kept = name in ADAPTER_FIELDS_READ[method]
        assert getattr(recipe.adapter, name) == getattr(RICH if kept else plain, name)
        if not kept and name not in ("A", "B", "shared_A"):  # and it would indeed be refused
            with pytest.raises(SpecError, match=f"adapter.{name}"):
                ROWS[method].refuse_unused(Recipe(method=method, adapter=_with(name)))


def _with(name: str) -> AdapterSpec:
    return AdapterSpec.from_dict({"A": RICH.to_dict()["A"], "B": RICH.to_dict()["B"], name: RICH.to_dict()[name]})


def test_every_method_but_ours_has_a_row() -> None:
    assert set(ADAPTER_FIELDS_READ) == set(METHODS) - {"adapter"}


@pytest.mark.parametrize("word", PRESETS)
def test_every_preset_is_an_arm(word: str) -> None:
    assert parse_arm(word).laid_over(Recipe()).adapter == AdapterSpec.parse(word)


# Axes


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("train.batch_size=16,32", "train.batch_size", (16, 32)),
        ("train.patience=null,3", "train.patience", (None, 3)),
        ("adapter.targets=[query],[query,value]", "adapter.targets", (["query"], ["query", "value"])),
        ("data.name=a.csv,b.csv", "data.name", ("a.csv", "b.csv")),
        (" train.weight_decay = 0, 1e-2", "train.weight_decay", (0.0, 0.01)),
    ],
)
def test_axes_are_read(text: str, name: str, values: tuple[Any, ...]) -> None:
    assert parse_axis(text) == Axis(field=name, values=values)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("train.batch_size", SpecError, "No values"),
        ("train.batchsize=16", UnknownKeyError, "Did you mean 'train.batch_size'"),
        ("train.batch_size=16,many", SpecError, "'train.batch_size' is 'many'; a whole number"),
        ("train.batch_size=16,0", SpecError, "train.batch_size=0 must be at least 1"),
        ("train.batch_size=", SpecError, "'train.batch_size' is ''"),
        ("train.batch_size=16,16", SpecError, "holds 16 twice"),
        ("train.lr=1e-3,1e-2", SpecError, "Use --lr"),
        ("train.seed=1,2", SpecError, "Use --seeds"),
        ("adapter.seed=1,2", SpecError, "Use --seeds"),
        ("adapter.preset=b_only", SpecError, "Use --arm"),
        ("task=seq2seq", SpecError, "a sweep of its own"),
    ],
)
def test_what_is_no_axis_is_refused_with_what_was_typed(text: str, kind: type[SpecError], words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        parse_axis(text)
    assert str(raised.value).startswith(f"--axis {text}: ")


def test_an_axis_without_values_is_refused() -> None:
    with pytest.raises(SpecError, match="has no values"):
        Axis(field="train.steps", values=())
