from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

import asymlora as al
from asymlora.errors import AttachError, NotAttachedError, SpecError, UnknownNameError
from asymlora.peft_sites import parameter_roles, trained_in_full
from cases import MODELS
from peft_models import BERT, CASES, GPT2, IDS, IMAGES, WORDS, PeftCase, add_second


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_sites_are_peft_layers_by_their_paths_in_the_base_model(case: PeftCase) -> None:
    base = case.build()
    expected = [n for n, _ in base.named_modules() if n.rpartition(".")[2] in case.targets]
    weights = {name: base.get_submodule(name).weight for name in expected}
    model = get_peft_model(base, case.config())
    found = list(al.sites(model))
    assert [site.name for site in found] == expected
    for site in found:
        layer = base.get_submodule(site.name)
        assert site.layer is layer
        assert site.weight is weights[site.name]
        held = layer.lora_embedding_A if site.kind == "embedding" else layer.lora_A
        assert site.A is (held["default"] if site.kind == "embedding" else held["default"].weight)
        assert site.A.shape[0] == site.B.shape[1] == 2
        assert site.scaling == 1.5


def test_the_kinds_are_those_of_our_own_layers() -> None:
    assert [site.kind for site in al.sites(WORDS.peft())] == ["embedding", "linear"]
    assert {site.kind for site in al.sites(IMAGES.peft())} == {"convolution"}
    assert {site.kind for site in al.sites(GPT2.peft())} == {"linear"}


def test_peft_and_own_sites_of_one_model_look_alike() -> None:
    own = al.attach(BERT.build(), al.AdapterSpec.lora(rank=2, alpha=3.0, targets=BERT.targets))
    for ours, theirs in zip(al.sites(own), al.sites(BERT.peft()), strict=True):
        assert (ours.name, ours.kind, ours.scaling) == (theirs.name, theirs.kind, theirs.scaling)
        assert (ours.A.shape, ours.B.shape) == (theirs.A.shape, theirs.B.shape)
        assert torch.equal(ours.weight, theirs.weight)


def test_the_scale_is_read_when_it_is_asked_for() -> None:
    model = WORDS.peft()
    model.base_model.model.dense.scaling["default"] = 7.0
    assert [site.scaling for site in al.sites(model)] == [1.5, 7.0]


def test_the_active_adapter_is_the_default_and_another_can_be_named() -> None:
    model = WORDS.peft()
    add_second(WORDS, model)
    default, second = list(al.sites(model)), list(al.sites(model, "second"))
    assert not any(torch.equal(one.A, other.A) for one, other in zip(default, second, strict=True))
    model.set_adapter("second")
    assert [site.A.data_ptr() for site in al.sites(model)] == [site.A.data_ptr() for site in second]


def test_several_active_adapters_have_to_be_told_apart() -> None:
    model = WORDS.peft()
    add_second(WORDS, model)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UnknownNameError, match=r"2 adapters are active .*adapter= one of default, second"):
        al.sites(model)
    assert len(list(al.sites(model, adapter="second"))) == 2


def test_an_unknown_adapter_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no adapter 'defualt'\. Adapters of this model: default"):
        al.sites(WORDS.peft(), adapter="defualt")


def test_layers_put_into_a_plain_model_are_found() -> None:
    injected = inject_adapter_in_model(WORDS.config(), WORDS.build())
    assert [site.name for site in al.sites(injected)] == ["words", "dense"]
    added = MODELS[0].build()
    added.add_adapter(BERT.config())
    assert [site.name for site in al.sites(added)] == [site.name for site in al.sites(BERT.peft())]


def test_wrappers_are_looked_through() -> None:
    model = WORDS.peft()
    injected = inject_adapter_in_model(WORDS.config(), WORDS.build())
    for wrapped in (torch.compile(model), nn.ModuleDict({"module": model}), nn.ModuleDict({"module": injected})):
        assert [site.name for site in al.sites(wrapped)] == ["words", "dense"]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"use_dora": True}, r"not plain LoRA.*dense is DoraLinear"),
        ({"init_lora_weights": "mica"}, "dense is MiCALinear"),
        ({"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, "dense is ALoraLinear"),
    ],
)
def test_variants_are_refused_by_name(given: dict[str, object], words: str) -> None:
    model = inject_adapter_in_model(LoraConfig(target_modules=["dense"], r=2, **given), WORDS.build())  # pyright: ignore
    with pytest.raises(AttachError, match=words):
        al.sites(model)


def test_layers_of_another_make_are_refused_by_name() -> None:
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    model = get_peft_model(attention, LoraConfig(target_modules=["attention"], r=2))  # pyright: ignore
    with pytest.raises(AttachError, match="attention is PEFT's MultiheadAttention"):
        al.sites(model)
    ada = AdaLoraConfig(target_modules=["dense"], init_r=2, target_r=1, total_step=10, tinit=1, tfinal=1)
    with pytest.raises(AttachError, match="dense is PEFT's SVDLinear"):
        al.sites(get_peft_model(WORDS.build(), ada))  # pyright: ignore[reportArgumentType]


def test_a_model_without_lora_layers_says_what_to_call() -> None:
    other = get_peft_model(WORDS.build(), IA3Config(target_modules=["dense"], feedforward_modules=[]))  # pyright: ignore
    for model in (WORDS.build(), other):
        with pytest.raises(NotAttachedError, match=r"attach.*load_adapter"):
            list(al.sites(model))


def test_a_model_of_our_own_has_one_adapter_without_a_name() -> None:
    model = al.attach(WORDS.build(), al.AdapterSpec.lora(rank=2, targets="dense"))
    with pytest.raises(SpecError, match="carries one adapter without a name"):
        al.sites(model, adapter="default")


def test_roles_know_every_adapter_and_variant() -> None:
    model = WORDS.peft(modules_to_save=["head"])
    model.add_adapter("second", LoraConfig(target_modules=["dense"], r=2, use_dora=True))
    roles = [role for role, _ in parameter_roles(model)]
    counts = {"embedding_A": 1, "embedding_B": 1, "A": 2, "B": 2, "vector": 1, "trained_in_full": 2}
    assert {role: roles.count(role) for role in roles} == counts
    assert set(trained_in_full(model)) == {"head"}


def test_looking_at_our_own_models_loads_no_peft() -> None:
    code = (
        "import sys, torch, asymlora as al\n"
        "model = al.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), al.AdapterSpec.b_only(rank=2))\n"
        "list(al.sites(model)); al.param_groups(model, lr=0.1)\n"
        "sys.exit('peft' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
