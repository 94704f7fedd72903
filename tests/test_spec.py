from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import peft
import pytest
import torch
from hypothesis import assume, given, strategies

from asymlora.errors import (
    BothFrozenError,
    BothZeroError,
    NonZeroStartError,
    SpecError,
    UnknownKeyError,
    UnknownNameError,
)
from asymlora.init import draw
from asymlora.spec import (
    ALL_LINEAR,
    PEFT_NAMES,
    PRESETS,
    SHORTHAND,
    AdapterSpec,
    FactorSpec,
    InitName,
    factors_named,
)
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


def _factor(start: str, trainable: bool) -> FactorSpec:
    return FactorSpec(init=start, trainable=trainable)  # pyright: ignore[reportArgumentType]


def test_both_zero_is_refused_as_unable_to_learn() -> None:
    with pytest.raises(BothZeroError, match=r"both start at zero.*nothing could ever learn.*Give one of them another"):
        AdapterSpec(A=_factor("zeros", True), B=_factor("zeros", True))


def test_both_frozen_is_refused_and_names_the_field_to_set() -> None:
    with pytest.raises(BothFrozenError, match=r"both frozen: nothing is trained\. Set trainable=True"):
        AdapterSpec(A=_factor("orthonormal", False), B=_factor("zeros", False))


@pytest.mark.parametrize("name", ["A", "B"])
def test_frozen_at_zero_is_refused_by_the_factors_name(name: str) -> None:
    other = "B" if name == "A" else "A"
    with pytest.raises(BothFrozenError, match=f"^{name} is frozen at zero.*Train {name}, or start it from"):
        AdapterSpec(**{name: _factor("zeros", False), other: _factor("gaussian", True)})


def test_both_non_zero_is_refused_as_changing_the_model() -> None:
    with pytest.raises(NonZeroStartError, match=r"A \(gaussian\) and B \(orthonormal\).*change the model.*'zeros'"):
        AdapterSpec(A=_factor("gaussian", True), B=_factor("orthonormal", True))


def test_exactly_the_combinations_that_start_at_the_base_and_can_learn_are_allowed() -> None:
    # The rule, written out: one factor zero and trained (its gradient is a product with the other), the other not zero.
    for start_A in get_args(InitName):
        for start_B in get_args(InitName):
            for trains_A in (True, False):
                for trains_B in (True, False):
                    zero_A, zero_B = start_A == "zeros", start_B == "zeros"
                    allowed = zero_A != zero_B and (trains_A if zero_A else trains_B)
                    A, B = _factor(start_A, trains_A), _factor(start_B, trains_B)
                    if allowed:
                        assert AdapterSpec(A=A, B=B).A == A
                    else:
                        with pytest.raises(SpecError):
                            AdapterSpec(A=A, B=B)


# --- numbers and names ---------------------------------------------------------------------------------------------


def test_all_wrong_numbers_are_named_together() -> None:
    with pytest.raises(SpecError) as caught:
        AdapterSpec(rank=0, alpha=-1, dropout=1.0, seed=-1, targets=())
    message = str(caught.value)
    assert "rank=0 must be a whole number of at least 1" in message
    assert "alpha=-1.0 must be above 0, or None for twice the rank" in message
    assert "dropout=1.0 must lie in [0, 1)" in message
    assert "seed=-1" in message
    assert "targets=() must be 'all-linear' or endings of module names" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 8.0),
        ("rank", True),
        ("rank", "8"),
        ("alpha", float("nan")),
        ("alpha", float("inf")),
        ("alpha", True),
        ("alpha", "much"),
        ("dropout", float("nan")),
        ("dropout", -0.1),
        ("dropout", None),
        ("targets", None),
        ("targets", ""),
        ("targets", ["query", ""]),
        ("targets", [3]),
        ("seed", 1.5),
        ("A", "orthonormal"),
    ],
)
def test_wrong_value_is_refused_by_the_fields_name(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"\b{field}\b"):
        AdapterSpec(**{field: value})


def test_unknown_scaling_rule_lists_the_rules() -> None:
    with pytest.raises(UnknownNameError, match="'scaling' is 'rslora'; allowed are 'standard', 'rank_stabilized'"):
        AdapterSpec(scaling="rslora")  # pyright: ignore[reportArgumentType]


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


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"rank": 8}, 2.0),
        ({"rank": 16}, 2.0),
        ({"rank": 8, "alpha": 16}, 2.0),
        ({"rank": 8, "alpha": 4}, 0.5),
        ({"rank": 16, "alpha": 8, "scaling": "rank_stabilized"}, 2.0),  # 8 / sqrt(16)
        ({"rank": 16, "scaling": "rank_stabilized"}, 8.0),  # 32 / sqrt(16)
    ],
)
def test_scaling_is_alpha_over_rank_or_over_its_root(fields: dict[str, Any], scale: float) -> None:
    assert AdapterSpec(**fields).scaling_factor == scale


def test_one_target_may_be_text_and_lists_become_tuples() -> None:
    assert AdapterSpec(targets="query").targets == ("query",)
    assert AdapterSpec(targets=["query", "value"]).targets == ("query", "value")  # pyright: ignore[reportArgumentType]
    assert AdapterSpec(modules_to_save="norm").modules_to_save == ("norm",)  # pyright: ignore[reportArgumentType]
    assert AdapterSpec(targets=ALL_LINEAR).targets == ALL_LINEAR


def test_spec_is_frozen_and_equal_specs_hash_alike() -> None:
    spec = AdapterSpec.lora(rank=4, targets=["query"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.rank = 5  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(spec) == hash(AdapterSpec.lora(rank=4, targets=("query",)))


# --- PEFT's names --------------------------------------------------------------------------------------------------

PEFT_WORDS = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "lora_dropout": "dropout"}
DOORS = {
    "constructor": AdapterSpec,
    **{preset: getattr(AdapterSpec, preset) for preset in STATED},
    "parse": lambda **fields: AdapterSpec.parse("b_only", **fields),
    "from_dict": lambda **fields: AdapterSpec.from_dict(fields),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("theirs", PEFT_WORDS)
def test_pefts_name_is_answered_with_ours(door: str, theirs: str) -> None:
    with pytest.raises(UnknownKeyError, match=rf"{theirs}' is PEFT's name for {PEFT_WORDS[theirs]}\."):
        DOORS[door](**{theirs: 8})


@pytest.mark.parametrize("door", DOORS)
def test_several_of_pefts_names_are_answered_at_once(door: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        DOORS[door](r=8, lora_alpha=16, target_modules=["q"])
    assert all(f"PEFT's name for {ours}." in str(caught.value) for ours in ("rank", "alpha", "targets"))


def test_every_translated_name_is_a_field_of_pefts_config_and_leads_to_a_field_of_ours() -> None:
    ours = {field.name for field in dataclasses.fields(AdapterSpec)}
    theirs = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert set(PEFT_NAMES) <= theirs
    assert {meant.partition("=")[0] for meant in PEFT_NAMES.values()} <= ours
    assert not set(PEFT_NAMES) & ours


# --- from PEFT -----------------------------------------------------------------------------------------------------


def _peft(**fields: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"target_modules": ["value", "query"], **fields})


def test_plain_peft_config_becomes_lora_with_its_numbers() -> None:
    config = _peft(r=4, lora_alpha=12, lora_dropout=0.1, modules_to_save=["score", "norm"], task_type="SEQ_CLS")
    assert AdapterSpec.from_peft(config) == AdapterSpec.lora(
        rank=4, alpha=12, dropout=0.1, targets=("query", "value"), modules_to_save=("norm", "score")
    )


def test_pefts_defaults_are_kept_where_ours_differ() -> None:
    spec = AdapterSpec.from_peft(_peft())
    # PEFT's defaults: r=8 and lora_alpha=8, so a scale of 1; ours would be 2.
    assert (spec.rank, spec.scaling_factor) == (8, 1.0)
    assert spec.A.trainable
    assert spec.B.trainable


def test_numbers_that_a_saved_config_leaves_out_are_pefts_defaults() -> None:
    theirs = AdapterSpec.from_peft(peft.LoraConfig(target_modules=["query"]))
    assert AdapterSpec.from_peft({"target_modules": ["query"]}) == theirs


def test_pefts_rank_stabilised_scaling_is_kept() -> None:
    config = _peft(r=16, lora_alpha=8, use_rslora=True)
    assert AdapterSpec.from_peft(config).scaling_factor == 8 / 16**0.5


def test_all_linear_stays_all_linear() -> None:
    assert AdapterSpec.from_peft(_peft(target_modules="all-linear")).targets == ALL_LINEAR


def test_saved_config_reads_like_the_object(tmp_path: Any) -> None:
    config = _peft(r=4, lora_alpha=12)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert AdapterSpec.from_peft(saved) == AdapterSpec.from_peft(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", False),
        ("exclude_modules", ["value"]),
        ("layers_to_transform", [0]),
        ("layer_replication", [(0, 1)]),
        ("target_parameters", ["experts.weight"]),
        ("trainable_token_indices", [1]),
    ],
)
def test_peft_variant_is_refused_by_its_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        AdapterSpec.from_peft(_peft(**{key: value}))
    assert f"{key}=" in str(caught.value)
    assert "Change these keys, or train the variant with PEFT" in str(caught.value)


@pytest.mark.parametrize("targets", [None, "query", r".*\.query"])
def test_peft_config_without_a_list_of_targets_is_refused(targets: Any) -> None:
    with pytest.raises(SpecError, match=r"target_modules=.*a list of names or 'all-linear' is needed"):
        AdapterSpec.from_peft(_peft(target_modules=targets))


def test_all_refused_keys_of_a_peft_config_are_named_together() -> None:
    with pytest.raises(SpecError) as caught:
        AdapterSpec.from_peft(_peft(use_dora=True, bias="all", target_modules=None))
    assert all(key in str(caught.value) for key in ("use_dora=True", "bias='all'", "target_modules=None"))


def test_other_kind_of_peft_adapter_is_refused() -> None:
    with pytest.raises(SpecError, match="peft_type="):
        AdapterSpec.from_peft(peft.IA3Config(target_modules=["query"], feedforward_modules=[]))


@pytest.mark.parametrize(
    ("key", "value"), [("r", "x"), ("lora_alpha", "x"), ("lora_alpha", None), ("lora_dropout", [])]
)
def test_peft_number_that_is_none_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{key}=.*a number is needed"):
        AdapterSpec.from_peft({"target_modules": ["query"], key: value})


# --- plain values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESET_NAMES)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rank": 3, "alpha": 5, "dropout": 0.25, "targets": ["query", "value"], "seed": 9},
        {"scaling": "rank_stabilized", "modules_to_save": ("norm",), "targets": "dense"},
    ],
)
def test_from_dict_undoes_to_dict_also_through_json(name: str, fields: dict[str, Any]) -> None:
    spec = AdapterSpec.parse(name, **fields)
    plain = json.loads(json.dumps(spec.to_dict()))
    assert AdapterSpec.from_dict(plain) == spec
    assert AdapterSpec.from_dict(plain).to_dict() == plain


def test_equal_specs_give_the_same_bytes() -> None:
    one = AdapterSpec.lora(rank=4, alpha=8, targets=["query"])
    other = AdapterSpec.lora(targets=("query",), alpha=8.0, rank=4)
    assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())


def test_from_dict_names_every_unknown_key_by_its_path() -> None:
    with pytest.raises(UnknownKeyError, match=r"'adapter\.rnak' is unknown\. Did you mean 'rank'\?.*'adapter\.x'"):
        AdapterSpec.from_dict({"rnak": 4, "x": 1})
    with pytest.raises(UnknownKeyError, match=r"'adapter\.A\.initial' is unknown\. Did you mean 'init'\?"):
        AdapterSpec.from_dict({"A": {"initial": "zeros"}})


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_head_that_peft_would_train_by_task_type_must_be_named(task_type: str) -> None:
    with pytest.raises(SpecError, match=r"modules_to_save=\['classifier'\]"):
        AdapterSpec.from_peft({"r": 2, "target_modules": ["query"], "task_type": task_type})
    spec = AdapterSpec.from_peft(
        {"r": 2, "target_modules": ["query"], "task_type": task_type, "modules_to_save": ["classifier"]}
    )
    assert spec.modules_to_save == ("classifier",)
