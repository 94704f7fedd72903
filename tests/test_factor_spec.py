from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, strategies

from asymlora.errors import (
    BothFrozenError,
    BothZeroError,
    NonZeroStartError,
    SpecError,
    UnknownNameError,
)
from asymlora.factor_spec import PRESETS, SHORTHAND, FactorSpec, factors_named
from asymlora.init import draw
from asymlora.spec import AdapterSpec
from cases import PRESET_NAMES

# What each preset is, as the issue states it: (start of A, A trained, start of B, B trained).
STATED = {
    "lora": ("kaiming_uniform", True, "zeros", True),
    "init_a": ("gaussian", True, "zeros", True),
    "init_b": ("zeros", True, "gaussian", True),
    "b_only": ("orthonormal", False, "zeros", True),
    "a_only": ("zeros", True, "orthonormal", False),
}


def _factors(spec: AdapterSpec) -> tuple[str, bool, str, bool]:
    return (spec.A.init, spec.A.trainable, spec.B.init, spec.B.trainable)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_preset_has_the_stated_factors(name: str) -> None:
    assert _factors(getattr(AdapterSpec, name)()) == STATED[name]
    assert _factors(AdapterSpec.parse(name)) == STATED[name]


def test_no_preset_is_left_unstated() -> None:
    assert set(PRESETS) == set(STATED) == set(PRESET_NAMES)


@pytest.mark.parametrize(
    ("name", "factor", "variance"),
    [("lora", "A", 1 / (3 * 512)), ("init_a", "A", 1 / 512), ("init_b", "B", 1 / 64)],
)
def test_preset_draws_the_variance_that_its_source_states(name: str, factor: Any, variance: float) -> None:
    shape = (64, 512) if factor == "A" else (512, 64)
    start = draw(getattr(AdapterSpec.parse(name), factor).init, shape, seed=0, site="s", factor=factor)
    # 32,768 draws: the standard error of a Gaussian's variance is sqrt(2/32768) = 0.8 %; 5 % is six of them.
    assert start.double().var().item() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(("name", "factor", "shape"), [("b_only", "A", (4, 9)), ("a_only", "B", (9, 4))])
def test_frozen_factor_of_a_preset_is_orthonormal(name: str, factor: Any, shape: tuple[int, int]) -> None:
    start = draw(getattr(AdapterSpec.parse(name), factor).init, shape, seed=0, site="s", factor=factor)
    gram = start @ start.T if factor == "A" else start.T @ start
    # Float32: 9 products of entries below 1, each rounded to 6e-8.
    torch.testing.assert_close(gram, torch.eye(4), atol=1e-6, rtol=0)


def test_default_is_b_only_at_rank_8_and_scale_2() -> None:
    # Scale 2 in every run of Zhu et al. 2024.
    assert AdapterSpec() == AdapterSpec.b_only(rank=8)
    assert AdapterSpec().scaling_factor == 2.0


def test_preset_passes_the_open_fields_on() -> None:
    spec = AdapterSpec.init_b(rank=3, alpha=6, dropout=0.5, targets="query", modules_to_save=["pooler"], seed=7)
    assert (spec.rank, spec.alpha, spec.dropout, spec.seed) == (3, 6.0, 0.5, 7)
    assert (spec.targets, spec.modules_to_save) == (("query",), ("pooler",))


# --- the shorthand -------------------------------------------------------------------------------------------------

SHORTHANDS = [
    # The string of the README of the released AsymmetryLoRA, whose own parser runs the other arm for it.
    ("A_rand_hB_zero", ("orthonormal", False, "zeros", True)),
    ("hB_zero_A_rand", ("orthonormal", False, "zeros", True)),
    ("hB_zero_A_km", ("kaiming_uniform", False, "zeros", True)),
    ("A_he_hB_0", ("kaiming_uniform", False, "zeros", True)),
    ("hB_zero_A_gauss", ("gaussian", False, "zeros", True)),
    ("B_rand_hA_zero", ("zeros", True, "orthonormal", False)),
    ("hA_zero_B_orth", ("zeros", True, "orthonormal", False)),
    ("hB_zero_hA_rand", ("orthonormal", True, "zeros", True)),
    ("hA_zero_hB_gauss", ("zeros", True, "gaussian", True)),
]


@pytest.mark.parametrize(("text", "stated"), SHORTHANDS)
def test_shorthand_names_both_starts_and_the_trained_factor(text: str, stated: tuple[str, bool, str, bool]) -> None:
    assert _factors(AdapterSpec.parse(text)) == stated


def test_readme_string_of_the_released_code_trains_B_only() -> None:
    spec = AdapterSpec.parse("A_rand_hB_zero")
    assert (spec.A.trainable, spec.B.trainable) == (False, True)
    assert spec == AdapterSpec.b_only()


@given(
    strategies.sampled_from(["A", "hA"]),
    strategies.sampled_from(sorted(SHORTHAND)),
    strategies.sampled_from(["B", "hB"]),
    strategies.sampled_from(sorted(SHORTHAND)),
)
def test_order_of_the_halves_changes_nothing(down: str, start_A: str, up: str, start_B: str) -> None:
    assume(start_A[0] != "U" and start_B[0] != "V")
    one, other = f"{down}_{start_A}_{up}_{start_B}", f"{up}_{start_B}_{down}_{start_A}"
    assert factors_named(one) == factors_named(other)
    assert factors_named(one)["A"] == FactorSpec(init=SHORTHAND[start_A], trainable=down == "hA")


def test_shorthand_takes_the_open_fields_too() -> None:
    assert AdapterSpec.parse("A_rand_hB_zero", rank=16, seed=3) == AdapterSpec.b_only(rank=16, seed=3)


def test_unknown_word_lists_the_known_words_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        AdapterSpec.parse("hB_zero_A_rnd")
    message = str(caught.value)
    assert "'rnd' in 'hB_zero_A_rnd' names no start. Did you mean 'rand'?" in message
    assert all(word in message.partition("Known words:")[2] for word in SHORTHAND)


@pytest.mark.parametrize(
    "text", ["bonly", "hB_zero", "hA_zero_A_rand", "hC_zero_A_rand", "zero_rand", "", "A_rand-hB_0"]
)
def test_text_that_is_no_adapter_lists_presets_and_the_form_of_a_shorthand(text: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        AdapterSpec.parse(text)
    message = str(caught.value)
    assert f"{text!r} names no adapter." in message
    assert all(preset in message for preset in STATED)
    assert "hB_zero_A_rand" in message


def test_misspelt_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'b_only'"):
        AdapterSpec.parse("bonly")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hA_zero_hB_zero", BothZeroError),
        ("A_rand_B_zero", BothFrozenError),
        ("hA_rand_B_zero", BothFrozenError),
        ("hA_rand_hB_rand", NonZeroStartError),
    ],
)
def test_shorthand_of_an_adapter_that_cannot_be_is_refused_like_the_spec(text: str, error: type[SpecError]) -> None:
    with pytest.raises(error):
        AdapterSpec.parse(text)


# --- combinations of factors ---------------------------------------------------------------------------------------


def test_unknown_init_lists_the_inits() -> None:
    with pytest.raises(
        UnknownNameError, match=r"'gausian'.*'zeros', 'kaiming_uniform', 'gaussian', 'peft_gaussian', 'orthonormal'"
    ):
        FactorSpec(init="gausian")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), float("inf"), "fast"])
def test_learning_rate_ratio_must_be_a_positive_number(ratio: Any) -> None:
    with pytest.raises(SpecError, match="lr_ratio"):
        FactorSpec(init="zeros", lr_ratio=ratio)


def test_text_is_no_answer_to_whether_a_factor_is_trained() -> None:
    # bool("no") is True: taken as it is, it would train what was to be frozen.
    with pytest.raises(SpecError, match="'trainable' is 'no'; true or false is needed"):
        FactorSpec(init="zeros", trainable="no")  # pyright: ignore[reportArgumentType]
