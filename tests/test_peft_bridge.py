from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import (
    AttachError,
    BothFrozenError,
    BothZeroError,
    NonZeroStartError,
    NotAttachedError,
    RankError,
    SpecError,
    UnknownNameError,
)
from asymlora.peft_sites import lora_layers, place_of
from peft_models import BERT, CASES, IDS, WORDS, PeftCase, factors, trained


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda m: al.freeze(m, "B"), BothFrozenError, r"B is zero at 1 of 2 sites \(dense\).*Freeze A"),
        (lambda m: al.freeze(m, "A"), BothFrozenError, r"A is zero at 1 of 2 sites \(words\).*initialize"),
        (lambda m: al.freeze(al.initialize(m, "b_only"), "B"), BothFrozenError, r"A is frozen already.*unfreeze"),
        (lambda m: al.freeze(m, "C"), SpecError, r"factor='C' is neither 'A' nor 'B'"),
        (lambda m: al.unfreeze(m, "a"), SpecError, r"factor='a' is neither 'A' nor 'B'"),
        (
            lambda m: al.freeze(m, "A", adapter="x"),
            UnknownNameError,
            r"no adapter 'x'\. Adapters of this model: default",
        ),
        (lambda m: al.freeze(WORDS.build(), "A"), NotAttachedError, r"no LoRA layer of PEFT.*get_peft_model"),
        (lambda m: al.freeze(_own(), "A"), NotAttachedError, r"asymlora's own.*b_only\(\)"),
        (lambda m: al.speed_up(WORDS.build()), NotAttachedError, "no LoRA layer of PEFT"),
        (lambda m: al.restore_forward(_own()), NotAttachedError, "asymlora's own"),
        (lambda m: al.initialize(m, "b_onlee"), UnknownNameError, "Did you mean 'b_only'"),
        (lambda m: al.initialize(m, al.AdapterSpec.lora(rank=4)), RankError, "spec has rank 4, but words has 2"),
    ],
)
def test_mistakes_are_answered(act: Callable[[Any], object], error: type[Exception], words: str) -> None:
    # As PEFT starts it: B of the dense layer and A of the embedding are zero.
    with pytest.raises(error, match=words):
        act(WORDS.peft(fill=False))


def _own() -> nn.Module:
    return al.attach(WORDS.build(), al.AdapterSpec.lora(rank=2, targets="dense"))


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("start", ["lora", "init_a", "init_b", "hB_zero_A_rand", "hB_zero_A_V"])
def test_initialize_gives_the_bits_of_attach(start: str, case: PeftCase) -> None:
    own = al.attach(case.build(), al.AdapterSpec.parse(start, rank=2, seed=5, targets=case.targets))
    model = al.initialize(case.peft(), start, seed=5)
    for ours, theirs in zip(al.sites(own), al.sites(model), strict=True):
        assert torch.equal(ours.A, theirs.A)
        assert torch.equal(ours.B, theirs.B)
    with torch.no_grad():
        assert torch.equal(case.output(model.eval()), case.output(case.build().eval()))
    assert bool(trained(model)) is (start in ("lora", "init_a", "init_b"))
    other = al.initialize(case.peft(), start, seed=6)
    assert start.endswith("V") or any(
        not torch.equal(one.A, two.A) or not torch.equal(one.B, two.B)
        for one, two in zip(al.sites(model), al.sites(other), strict=True)
    )


def test_initialize_takes_a_spec_and_its_seed() -> None:
    spec = al.AdapterSpec.init_b(rank=2, seed=3, targets=WORDS.targets)
    one, two = al.initialize(WORDS.peft(), spec), al.initialize(WORDS.peft(), "init_b", seed=3)
    three = al.initialize(WORDS.peft(), spec, seed=4)
    assert all(torch.equal(a.B, b.B) for a, b in zip(al.sites(one), al.sites(two), strict=True))
    assert not any(torch.equal(a.B, b.B) for a, b in zip(al.sites(one), al.sites(three), strict=True))


def test_initialize_follows_the_ranks_of_the_model() -> None:
    model = BERT.peft(rank_pattern={"query": 3})
    own = al.attach(BERT.build(), al.AdapterSpec.lora(rank=2, rank_pattern={"query": 3}, targets=BERT.targets, seed=1))
    al.initialize(model, "lora", seed=1)
    assert all(torch.equal(a.A, b.A) for a, b in zip(al.sites(own), al.sites(model), strict=True))


def test_initialize_keeps_the_tensors_and_draws_nothing_from_the_global_generator() -> None:
    model = WORDS.peft()
    before, state = {name: id(p) for name, p in model.named_parameters()}, torch.get_rng_state()
    al.initialize(model, "init_b")
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_initialize_also_clears_a_bias_on_B() -> None:
    model = BERT.peft(lora_bias=True)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B["default"].bias.fill_(1.0)
        al.initialize(model, "lora")
        assert torch.equal(BERT.output(model.eval()), BERT.output(BERT.build().eval()))


def test_initialize_keeps_a_frozen_factor_frozen() -> None:
    model = al.initialize(al.freeze(WORDS.peft(), "A"), "init_a", seed=2)
    assert not trained(model)
    with pytest.raises(BothFrozenError, match=r"words: A is frozen and would start at zero.*unfreeze"):
        al.initialize(model, "init_b")
    with pytest.raises(BothFrozenError, match="A and B would both be frozen at 2 of 2 sites"):
        al.initialize(model, "a_only")


def test_a_start_that_could_not_learn_or_would_change_the_model_is_refused() -> None:
    model = WORDS.peft()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def nothing(factor: Tensor, **_: Any) -> Tensor:
        return factor.zero_()

    dead = al.AdapterSpec(A=al.FactorSpec(init=nothing), B=al.FactorSpec(init="zeros"), rank=2)
    with pytest.raises(BothZeroError, match="A and B both start at zero"):
        al.initialize(model, dead)
    both = {"A": al.FactorSpec(init="gaussian"), "B": al.FactorSpec(init="gaussian"), "rank": 2}
    with pytest.raises(NonZeroStartError, match="nonzero_start='correct_base' would change base weights"):
        al.initialize(model, al.AdapterSpec(**both, nonzero_start="correct_base"))  # pyright: ignore[reportArgumentType]
    model.merge_adapter()
    with pytest.raises(AttachError, match=r"merged into the base \(2 sites\).*unmerge_adapter"):
        al.initialize(model, "lora")
    model.unmerge_adapter()
    assert all(torch.allclose(before[key], value, atol=1e-6) for key, value in model.state_dict().items())


def test_initialize_works_on_layers_put_into_a_plain_model() -> None:
    injected = inject_adapter_in_model(WORDS.config(), WORDS.build())
    al.initialize(injected, "init_b", seed=7)
    expected = al.initialize(WORDS.peft(), "init_b", seed=7)
    for name, value in factors(injected, "B").items():
        assert torch.equal(value, place_of(lora_layers(expected)[name], "B", "default").tensor)
