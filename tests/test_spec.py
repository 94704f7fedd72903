from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import peft
import pytest

from asymlora.errors import (
    BothFrozenError,
    BothZeroError,
    NonZeroStartError,
    SpecError,
    UnknownKeyError,
    UnknownNameError,
)
from asymlora.factor_spec import FactorSpec, InitName
from asymlora.spec import ALL_LINEAR, PEFT_NAMES, AdapterSpec
from cases import PRESET_NAMES


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
    **{preset: getattr(AdapterSpec, preset) for preset in PRESET_NAMES},
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
