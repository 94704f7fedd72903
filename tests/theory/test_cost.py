from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState, quantize_4bit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig, LlamaForCausalLM

import asymlora as al
from asymlora.errors import SpecError, UnknownNameError
from asymlora.theory.cost import (
    AdaptedLayer,
    Flops,
    attention_flops,
    flops_per_token,
    frozen_factor_bytes,
    layer_flops,
    trained_parameters,
    training_bytes,
    weight_bytes,
)
from asymlora.theory.model_shapes import read_model

TOKENS, IN, OUT, RANK = 13, 24, 40, 5


def _small_llama(**options: Any) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2, vocab_size=31, use_cache=False, **options))


PRESETS = (al.AdapterSpec.lora, al.AdapterSpec.b_only, al.AdapterSpec.a_only)


# Parameters and their training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_trained_parameters_are_those_of_the_attached_model(preset: Any) -> None:
    base = _small_llama()
    spec = preset(
        rank=3, rank_pattern={"v_proj": 2}, factor_pattern={"down_proj": "a_only"}, modules_to_save=("lm_head",)
    )
    shape = read_model(base, spec)
    model = al.attach(base, spec)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert shape.trained_values == sum(p.numel() for p in trained)
    assert sorted(shape.trained_shapes) == sorted(p.numel() for p in trained)
    frozen = [t for site in al.sites(model) for t in (site.A, site.B) if not t.requires_grad]
    assert frozen_factor_bytes(shape.adapted.values()) == sum(t.nbytes for t in frozen)
    assert shape.trained_values == trained_parameters(shape.adapted.values()) + 24 * 31


def test_a_shared_A_is_held_once() -> None:
    base = _small_llama()
    spec = al.AdapterSpec.b_only(rank=3, shared_A=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")))
    shape = read_model(base, spec)
    model = al.attach(base, spec)
    held = {site.A.data_ptr(): site.A.nbytes for site in al.sites(model)}
    assert frozen_factor_bytes(shape.adapted.values()) == sum(held.values())
    assert len(held) == 2 * 4  # q+k+v, o, gate+up, down


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("adamw", torch.optim.AdamW),
        ("momentum", lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
        ("sgd", lambda params: torch.optim.SGD(params, lr=0.1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_bytes_are_those_of_real_gradients_and_optimizer_state(
    preset: Any, name: str, build: Any, dtype: torch.dtype
) -> None:
    base = _small_llama()
    spec = preset(rank=3)
    shape = read_model(base, spec)
    model = al.attach(base, spec).to(dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build(trained)
    ids = torch.randint(0, 31, (2, 6))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    predicted = training_bytes(shape.trained_shapes, itemsize=dtype.itemsize, optimizer=name)
    states = [v for held in optimizer.state.values() for v in held.values() if isinstance(v, Tensor)]
    assert predicted.parameters == sum(p.nbytes for p in trained)
    assert predicted.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert predicted.optimizer == sum(state.nbytes for state in states)
    assert predicted.master == 0


def test_sixteen_bytes_a_value_either_way() -> None:
    values = [1000, 24]
    counters = 4 * len(values)
    assert training_bytes(values).total == 16 * 1024 + counters
    assert training_bytes(values, itemsize=2, master=True).total == 16 * 1024 + counters
    assert training_bytes(values, itemsize=2).total == 8 * 1024 + counters  # torch's AdamW on bf16 values alone


# Base weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (100, 300), (3, 7), (512, 512)])
@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_bytes_are_those_that_bitsandbytes_holds(shape: tuple[int, int], double_quant: bool) -> None:
    packed, state = quantize_4bit(torch.randn(shape), quant_type="nf4", compress_statistics=double_quant)
    held = packed.nbytes + sum(t.nbytes for t in _tensors(state))
    assert weight_bytes(shape[0] * shape[1], "nf4", double_quant=double_quant) == held


def _tensors(state: QuantState) -> list[Tensor]:
    own = [value for value in vars(state).values() if isinstance(value, Tensor)]
    nested = [value for value in vars(state.state2).values() if isinstance(value, Tensor)] if state.state2 else []
    return own + nested


def test_other_types_take_their_width() -> None:
    assert weight_bytes(10) == 40
    assert weight_bytes(10, "bfloat16") == 20
    assert weight_bytes(10, "int8", rows=2) == 18


# FLOPs ---------------------------------------------------------------------------------------------------------------


def _layer(**options: Any) -> AdaptedLayer:
    return AdaptedLayer(fan_in=IN, fan_out=OUT, **options)


VARIANTS = {
    "frozen": _layer(),
    "full": _layer(trains_weight=True),
    "lora": _layer(rank=RANK),
    "b_only": _layer(rank=RANK, trains_A=False),
    "a_only": _layer(rank=RANK, trains_B=False),
    "selector": _layer(rank=RANK, trains_A=False, selects=True),
}


def _counted(layer: AdaptedLayer, *, input_grad: bool) -> Flops:
    x = torch.randn(TOKENS, IN, requires_grad=input_grad)
    weight = torch.randn(OUT, IN, requires_grad=layer.trains_weight)
    A = torch.randn(RANK, IN, requires_grad=layer.trains_A)
    B = torch.randn(OUT, RANK, requires_grad=layer.trains_B)
    with FlopCounterMode(display=False) as forward:
        out = x @ weight.t()
        if layer.rank:
            out = out + (x[:, :RANK] if layer.selects else x @ A.t()) @ B.t()
    with FlopCounterMode(display=False) as backward:
        if out.requires_grad:
            out.sum().backward()
    return Flops(forward.get_total_flops(), backward.get_total_flops())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("input_grad", [True, False])
def test_flops_of_a_layer_are_those_that_torch_counts(name: str, input_grad: bool) -> None:
    counted = _counted(VARIANTS[name], input_grad=input_grad)
    flops = layer_flops(VARIANTS[name], input_grad=input_grad)
    assert (TOKENS * flops.forward, TOKENS * flops.backward) == counted


def test_flops_are_those_of_the_literature() -> None:
    n, m, r = IN, OUT, RANK
    totals = {name: layer_flops(layer).total for name, layer in VARIANTS.items()}
    assert totals == {
        "frozen": 4 * m * n,
        "full": 6 * m * n,
        "lora": 4 * m * n + 6 * r * (m + n),
        "b_only": 4 * m * n + 6 * r * m + 4 * r * n,
        "a_only": 4 * m * n + 4 * r * m + 6 * r * n,
        "selector": 4 * m * n + 6 * r * m,
    }
    # What freezing A spares is 2 r n, a fifth of a percent of the whole at r = 16 and 4096 features: no FLOP win.
    wide = {"fan_in": 4096, "fan_out": 4096, "rank": 16}
    lora, b_only = (layer_flops(AdaptedLayer(**wide, trains_A=trains_A)).total for trains_A in (True, False))
    assert lora - b_only == 2 * 16 * 4096
    assert (lora - b_only) / lora == pytest.approx(0.0019, abs=5e-5)
    full = layer_flops(AdaptedLayer(fan_in=4096, fan_out=4096, trains_weight=True)).total
    assert lora / full == pytest.approx(2 / 3 + 16 * (1 / 4096 + 1 / 4096), rel=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_of_a_model_are_those_that_torch_counts(preset: Any, attention: str) -> None:
    base = _small_llama(attn_implementation=attention)
    spec = preset(rank=3)
    size, length = 2, 7
    layers = list(read_model(base, spec).adapted.values())
    model = al.attach(base, spec)
    ids = torch.randint(0, 31, (size, length))
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: out.detach().requires_grad_())
    with al.unfused(model):  # the counter sees torch's products, not those of asymlora's kernel
        with FlopCounterMode(display=False) as forward:
            loss = model(input_ids=ids, labels=ids).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    # Of the CPU's fused attention torch's counter counts nothing; its formulas for other devices are tested below.
    attended = attention_flops(length, 24) if attention == "eager" else Flops(0, 0)
    head = layer_flops(AdaptedLayer(fan_in=24, fan_out=31))
    per_token = flops_per_token(layers) + attended + attended + head
    counted = forward.get_total_flops(), backward.get_total_flops()
    assert (size * length * per_token.forward, size * length * per_token.backward) == counted


def test_fused_attention_forms_the_scores_again() -> None:
    size, heads, length, width = 2, 3, 7, 8
    shape = (size, heads, length, width)
    per_token = attention_flops(length, heads * width, fused=True)
    assert size * length * per_token.forward == sdpa_flop_count(shape, shape, shape)
    assert size * length * per_token.backward == sdpa_backward_flop_count(shape, shape, shape, shape)


def test_a_shared_A_is_multiplied_once() -> None:
    group = [_layer(rank=RANK, trains_A=False, shared_A="qkv") for _ in range(3)]
    x = torch.randn(TOKENS, IN, requires_grad=True)
    weights = [torch.randn(OUT, IN) for _ in group]
    A, ups = torch.randn(RANK, IN), [torch.randn(OUT, RANK, requires_grad=True) for _ in group]
    with FlopCounterMode(display=False) as forward:
        code = x @ A.t()
        out = sum(x @ weight.t() + code @ B.t() for weight, B in zip(weights, ups, strict=True))
    with FlopCounterMode(display=False) as backward:
        assert isinstance(out, Tensor)
        out.sum().backward()
    flops = flops_per_token(group)
    counted = forward.get_total_flops(), backward.get_total_flops()
    assert (TOKENS * flops.forward, TOKENS * flops.backward) == counted


def test_checkpointing_runs_forward_again() -> None:
    layers = [_layer(rank=RANK)] * 2
    plain, again = flops_per_token(layers), flops_per_token(layers, checkpointing=True)
    assert again == Flops(plain.forward, plain.backward + plain.forward)
    with pytest.raises(TypeError):
        _ = plain + 1


# Errors --------------------------------------------------------------------------------------------------------------


def test_wrong_layers_are_refused() -> None:
    with pytest.raises(SpecError, match=r"rank=9 must be at most 4.*dropout=1.0 must be in"):
        AdaptedLayer(fan_in=4, fan_out=8, rank=9, dropout=1.0)
    with pytest.raises(SpecError, match="set trains_A=False"):
        _layer(rank=2, shared_A="qkv")
    with pytest.raises(SpecError, match="fan_in=0 must be at least 1"):
        AdaptedLayer(fan_in=0, fan_out=8)


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'adamw'"):
        training_bytes([1], optimizer="adam")
    with pytest.raises(UnknownNameError, match="Known: float32"):
        weight_bytes(1, "int4")  # pyright: ignore[reportArgumentType]


def test_a_linear_of_torch_agrees_with_the_base_count() -> None:
    linear = nn.Linear(IN, OUT)
    assert _layer(bias=True, trains_weight=True).trained_values == sum(p.numel() for p in linear.parameters())
    assert _layer(bias=True, trains_weight=True).trained_shapes == (IN * OUT, OUT)
