"""Adapters on quantised bases: torchao's int8 weights and bitsandbytes' NF4, both on a CPU."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import AttachError, NonZeroStartError
from asymlora.layers import plain_weight
from asymlora.packed_base import keep_trainable
from cases import fill_factors
from kept_bytes import kept_for_backward

TARGETS = ("query", "value")


def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    # 64 is the block of NF4.
    shape = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
    return BertForSequenceClassification(
        BertConfig(**shape, vocab_size=32, max_position_embeddings=16, initializer_range=0.2)
    ).eval()


def _each_target(model: nn.Module, replaced: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in TARGETS and type(module) is nn.Linear:
            model.set_submodule(name, replaced(module))
    return model


def _int8() -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def quantised(layer: nn.Linear) -> nn.Module:
        quantize_(layer, Int8WeightOnlyConfig())
        return layer

    return _each_target(_bert(), quantised)


def _nf4() -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    def quantised(layer: nn.Linear) -> nn.Module:
        narrow = Linear4bit(layer.in_features, layer.out_features, compute_dtype=torch.float32, quant_type="nf4")
        narrow.load_state_dict(layer.state_dict())
        return narrow.to("cpu")  # quantises

    return _each_target(_bert(), quantised)


QUANTISED = pytest.mark.parametrize("build", [_int8, _nf4], ids=["torchao int8", "bitsandbytes nf4"])


@pytest.fixture(autouse=True)
def _quiet_imports() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the two packages' own imports
        import bitsandbytes  # noqa: F401
        import torchao.quantization  # noqa: F401


def _logits(model: Any) -> Tensor:
    ids = torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids).logits


def _attached(build: Callable[[], nn.Module], preset: str = "b_only", **fields: Any) -> Any:
    model = al.attach(build(), al.AdapterSpec.parse(preset, rank=2, targets=TARGETS, **fields)).eval()
    fill_factors(model)
    return model


@QUANTISED
def test_the_base_is_quantised_and_none_of_ours(build: Callable[[], nn.Module]) -> None:
    # The control of all that follows: the weights are packed, and the outputs differ from the float32 ones.
    site: Any = next(iter(al.sites(_attached(build))))
    assert type(site.weight) is not nn.Parameter
    assert plain_weight(site.layer.base_layer, torch.zeros(1, 64)) is None
    gap = (_logits(build()) - _logits(_bert())).abs().max()
    assert 1e-5 < gap < 1.0


@QUANTISED
@pytest.mark.parametrize("preset", ["lora", "init_b", "b_only", "a_only"])
def test_starts_as_its_quantised_base(build: Callable[[], nn.Module], preset: str) -> None:
    model = al.attach(build(), al.AdapterSpec.parse(preset, rank=2, targets=TARGETS))
    assert torch.equal(_logits(model), _logits(build()))
    assert {t.dtype for site in al.sites(model) for t in (site.A, site.B)} == {torch.float32}


@QUANTISED
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_is_the_quantised_base_plus_the_update(build: Callable[[], nn.Module], dropout: float) -> None:
    site = next(iter(al.sites(_attached(build, "lora", dropout=dropout))))
    layer, x = site.layer, torch.randn(5, 64, requires_grad=True)
    wanted = layer.base_layer(x) + site.scaling * x @ (site.B @ site.A).T
    # Float32 sums of 66 terms.
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(layer(x).square().sum(), (x, site.A, site.B))
    dense = torch.autograd.grad(wanted.square().sum(), (x, site.A, site.B))
    for gradient, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-3)


@QUANTISED
@pytest.mark.parametrize("preset", ["lora", "b_only", "a_only"])
def test_trains_the_factors_and_nothing_else(build: Callable[[], nn.Module], preset: str) -> None:
    model = _attached(build, preset)
    frozen = {site.name: site.A.clone() for site in al.sites(model)}
    with al.disabled(model):
        base = _logits(model).detach()
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.01))
    losses: list[float] = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = _logits(model).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with al.disabled(model):
        assert torch.equal(_logits(model), base)
    assert all(torch.equal(site.A, frozen[site.name]) == (preset == "b_only") for site in al.sites(model))


@QUANTISED
def test_keeps_the_code_alone_beyond_what_its_base_keeps(build: Callable[[], nn.Module]) -> None:
    layer = next(iter(al.sites(_attached(build)))).layer
    owned = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    kept: list[int] = []
    for run in (layer.base_layer, layer):
        x = torch.randn(5, 64, requires_grad=True)
        kept.append(kept_for_backward(lambda run=run, x=x: run(x), owned=owned, named={"x": x}).get("other", 0))
    assert kept[1] - kept[0] == 5 * 2 * 4


@QUANTISED
def test_merging_is_refused_with_the_kind_of_the_weight_and_changes_nothing(build: Callable[[], nn.Module]) -> None:
    model = _attached(build)
    before = _logits(model)
    name = type(next(iter(al.sites(model))).weight).__name__
    for verb in (al.merge, al.merge_errors, lambda m: al.merged(m).__enter__()):
        with pytest.raises(
            AttachError, match=f"query holds a {name} and not a plain weight.*load the base unquantised"
        ):
            verb(model)
    assert torch.equal(_logits(model), before)


@QUANTISED
def test_a_start_that_would_have_to_correct_the_base_is_refused(build: Callable[[], nn.Module]) -> None:
    spec = al.AdapterSpec(
        A=al.FactorSpec(init="orthonormal"),
        B=al.FactorSpec(init="gaussian"),
        nonzero_start="correct_base",
        rank=2,
        targets=TARGETS,
    )
    with pytest.raises(NonZeroStartError, match="query: both factors start non-zero"):
        al.attach(build(), spec)


@QUANTISED
def test_detaching_gives_the_quantised_base_back(build: Callable[[], nn.Module]) -> None:
    model = build()
    layers = [id(module) for module in model.modules()]
    al.attach(model, al.AdapterSpec.b_only(rank=2, targets=TARGETS))
    fill_factors(model)
    al.detach(model)
    assert [id(module) for module in model.modules()] == layers
    assert torch.equal(_logits(model), _logits(build()))


@QUANTISED
def test_copies(build: Callable[[], nn.Module]) -> None:
    model = _attached(build)
    assert torch.equal(_logits(copy.deepcopy(model)), _logits(model))


def test_pickles_where_the_base_does() -> None:
    model = _attached(_nf4)
    assert torch.equal(_logits(pickle.loads(pickle.dumps(model))), _logits(model))
    with pytest.raises(AttributeError, match="partial"):  # torchao 0.18 puts a partial in the place of extra_repr
        pickle.dumps(_int8())


@QUANTISED
def test_peft_gives_the_same_logits_with_the_same_factors(build: Callable[[], nn.Module], tmp_path: Any) -> None:
    import peft

    model = _attached(build, "lora")
    ours = _logits(model)
    assert (ours - _logits(build())).abs().max() > 0.1
    al.save_adapter(model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
        base = build()
        keep_trainable(base)  # at inference bitsandbytes would multiply in bfloat16 where the processor does
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(_logits(theirs), ours, rtol=1e-5, atol=1e-5)


@QUANTISED
def test_an_adapter_moves_between_a_quantised_and_a_plain_base(build: Callable[[], nn.Module], tmp_path: Any) -> None:
    model = _attached(build)
    al.save_adapter(model, tmp_path / "adapter")
    again = al.load_adapter(build(), tmp_path / "adapter").eval()
    assert torch.equal(_logits(again), _logits(model))
    plain = al.load_adapter(_bert(), tmp_path / "adapter").eval()
    adapted = _logits(plain)
    torch.testing.assert_close(_logits(al.merge(plain)), adapted, rtol=1e-4, atol=1e-4)
