from __future__ import annotations

import dataclasses
from typing import Any

import peft
import pytest

from asymlora.errors import SpecError
from asymlora.peft_format import (
    _CHOICES,
    _VARIANTS,
    PLAIN,
    factor_key,
    file_fields,
    site_of,
    spec_fields,
    why_no_module,
    written_config,
)
from asymlora.spec import AdapterSpec


def _written(**fields: Any) -> dict[str, Any]:
    return written_config(**{"r": 8, "lora_alpha": 16.0, "target_modules": ["q"], **fields})


def test_every_field_of_the_installed_pefts_config_has_been_considered() -> None:
    # A key that a newer PEFT adds may change what is computed: decide on it in peft_format, or list it here.
    translated = {"r", "lora_alpha", "target_modules", "lora_dropout", "use_rslora", "modules_to_save"}
    translated |= {"rank_pattern", "alpha_pattern", "init_lora_weights", "peft_type"}
    bookkeeping = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    # Read by a variant only; or (weight tying) no question where the saved modules are trained in full; or answered by
    # the base layer itself.
    without_effect = {"megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "fan_in_fan_out"}
    considered = translated | bookkeeping | without_effect | set(_VARIANTS) | set(_CHOICES)
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} <= considered


def test_what_is_written_is_what_peft_reads_as_plain() -> None:
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q"])
    theirs = {key: getattr(value, "value", value) for key, value in config.to_dict().items()}
    assert set(PLAIN) | {"r", "lora_alpha", "target_modules"} == set(theirs)
    differ = {key for key, value in _written().items() if value != theirs[key]}
    assert differ <= {"inference_mode", "target_modules", "peft_version"}


def test_patterns_of_a_config_become_patterns_of_a_spec() -> None:
    config = peft.LoraConfig(target_modules=["q", "v"], rank_pattern={"q": 2}, alpha_pattern={r"^layers\.0\.v": 3})
    spec = AdapterSpec.from_peft(config)
    assert spec.rank_pattern == {"q": 2}
    assert spec.alpha_pattern == {"layers.0.v": 3.0}
    assert AdapterSpec.from_peft({"target_modules": ["q"], "fan_in_fan_out": True}).targets == ("q",)


def test_a_key_behind_a_shorter_one_is_left_out_as_peft_never_reaches_it() -> None:
    fields = spec_fields({"target_modules": ["q"], "rank_pattern": {"q": 2, "layers.0.q": 4}})
    assert fields["rank_pattern"] == {"q": 2}


def test_an_expression_in_the_pattern_of_a_config_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"rank_pattern\['.\*q'\] \(a regular expression; write module names\)"):
        spec_fields({"target_modules": ["q"], "rank_pattern": {".*q": 2}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"r": 0}, "r=0"),
        ({"r": True}, "r=True"),
        ({"r": 2**20}, "r=1048576"),
        ({"lora_alpha": -1}, "lora_alpha=-1"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0"),
        ({"use_rslora": "yes"}, "use_rslora='yes'"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0"),
        ({"alpha_pattern": {"q": "x"}}, r"alpha_pattern\['q'\]='x'"),
        ({"alpha_pattern": [1]}, r"alpha_pattern=\[1\]"),
        ({"use_new_variant": True}, r"use_new_variant=True \(unknown here\)"),
        *(({key: True}, f"{key}=True") for key in _VARIANTS),
        *(
            ({"init_lora_weights": start}, f"init_lora_weights='{start}'.*changes the base weights")
            for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
        ),
    ],
)
def test_a_files_config_is_refused_by_key(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        file_fields(_written(**values), {"layers.q": 8})


def test_every_problem_of_a_config_is_named_at_once() -> None:
    with pytest.raises(SpecError, match=r"(?s)use_dora=True.*r=0.*init_lora_weights='pissa'"):
        file_fields(_written(use_dora=True, r=0, init_lora_weights="pissa"), {"q": 8})


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_keys_and_sites_undo_each_other(factor: str, embedding: bool) -> None:
    assert site_of(factor_key("a.b", factor, embedding=embedding)) == ("a.b", factor, embedding)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("a.lora_A.weight", "does not start with"),
        ("base_model.model.a.lora_magnitude_vector", "is of DoRA"),
        ("base_model.model.a.lora_B.bias", "is not a factor"),
        ("base_model.model.a.base_layer.weight", "a weight of the base model"),
        ("base_model.model.a.base_layer.out_proj.lora_A.weight", "a weight of the base model"),
        ("base_model.model.a.lora_A.default.weight", "is not a factor"),
        ("base_model.model.weight", "is no tensor of a module"),
        ("base_model.model..weight", "is no tensor of a module"),
        ("base_model.model.head.weight", None),
    ],
)
def test_a_key_of_no_factor_says_why(key: str, words: str | None) -> None:
    assert site_of(key) is None
    assert (why_no_module(key) or "").find(words or "") >= 0
    assert (why_no_module(key) is None) == (words is None)
