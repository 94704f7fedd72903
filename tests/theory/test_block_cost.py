from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

import asymlora as al
from asymlora.cpu_kernel import kernel
from asymlora.errors import SpecError, UnknownNameError
from asymlora.theory.block_cost import Batch, Block, attention_kernel, saved_by_name, saved_bytes
from asymlora.theory.cost import AdaptedLayer
from asymlora.theory.model_shapes import read_model
from kept_bytes import kept_for_backward

SIZE, LENGTH, RANK = 3, 10, 3
WIDTH, WIDE, HEADS = 24, 56, 4


class Case(NamedTuple):
    build: Callable[..., nn.Module]
    embedding: str
    last_norm: str | None
    targets: tuple[str, ...]
    images: bool = False


def _shape(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "intermediate_size": WIDE,
        "num_attention_heads": HEADS,
        **options,
    }


def _encoder(config: type, model: type) -> Callable[..., nn.Module]:
    def build(attention: str, p: float = 0.0) -> nn.Module:
        drop = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
        return model(config(**_shape(**drop), vocab_size=50, attn_implementation=attention), add_pooling_layer=False)

    return build


def _llama(attention: str, p: float = 0.0, kv_heads: int = HEADS) -> nn.Module:
    shape = _shape(attention_dropout=p, num_key_value_heads=kv_heads)
    return LlamaModel(LlamaConfig(**shape, vocab_size=50, attn_implementation=attention, use_cache=False))


def _gpt2(attention: str, p: float = 0.0) -> nn.Module:
    shape: dict[str, Any] = {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_inner": WIDE}
    drop = {"resid_pdrop": p, "embd_pdrop": 0.0, "attn_pdrop": p}
    return GPT2Model(GPT2Config(**shape, **drop, vocab_size=50, attn_implementation=attention, use_cache=False))


def _vit(attention: str, p: float = 0.0) -> nn.Module:
    drop = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
    config = ViTConfig(**_shape(**drop), image_size=12, patch_size=4, attn_implementation=attention)
    return ViTModel(config, add_pooling_layer=False)


POST_NORM = ("query", "key", "value", "dense")
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES = {
    "BERT": Case(_encoder(BertConfig, BertModel), "embeddings", None, POST_NORM),
    "RoBERTa": Case(_encoder(RobertaConfig, RobertaModel), "embeddings", None, POST_NORM),
    "Llama": Case(_llama, "embed_tokens", "norm", LLAMA),
    "Llama, 2 of 4 key heads": Case(
        lambda attention, p=0.0: _llama(attention, p, kv_heads=2), "embed_tokens", "norm", LLAMA
    ),
    "GPT-2": Case(_gpt2, "wte", "ln_f", ("c_attn", "c_proj", "c_fc")),
    "ViT": Case(_vit, "embeddings", "layernorm", ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"), images=True),
}
PRESETS = (al.AdapterSpec.lora, al.AdapterSpec.b_only, al.AdapterSpec.a_only)


@pytest.fixture(params=list(itertools.product(CASES, ("eager", "sdpa"))), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def case(request: pytest.FixtureRequest) -> tuple[Case, str]:
    name, attention = request.param
    return CASES[name], attention


def _model(case: Case, attention: str, p: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = case.build(attention, p).to(dtype).train()
    if case.last_norm is not None:
        setattr(model, case.last_norm, nn.Identity())  # the blocks alone
    return model.requires_grad_(False)


def _inputs(
    case: Case, dtype: torch.dtype = torch.float32, *, padded: bool = False, size: int = SIZE
) -> dict[str, Tensor]:
    if case.images:
        return {"pixel_values": torch.randn(size, 3, 12, 12, dtype=dtype)}  # 9 patches and one token for the class
    inputs = {"input_ids": torch.randint(5, 50, (size, LENGTH))}
    if padded:
        inputs["attention_mask"] = torch.ones(SIZE, LENGTH, dtype=torch.long)
        inputs["attention_mask"][0, LENGTH // 2 :] = 0
    return inputs


def _measured(model: nn.Module, case: Case, inputs: dict[str, Tensor], *, input_grad: bool = True) -> int:
    root = model.base_model.model if hasattr(model, "peft_config") else model
    hook = root.get_submodule(case.embedding).register_forward_hook(
        lambda module, given, output: output.detach().requires_grad_(input_grad)
    )
    owned = (*model.parameters(), *model.buffers())
    kept = kept_for_backward(lambda: model(**inputs), owned=owned)
    hook.remove()
    return sum(kept.values())


def _batch(model: Any, p: float = 0.0, **options: Any) -> Batch:
    attention = attention_kernel(model.config._attn_implementation, dropout=p)
    options = {"size": SIZE, "length": LENGTH, "kernel": kernel() is not None, **options}
    return Batch(attention=attention, **options)


def test_frozen_blocks_keep_what_is_predicted(case: tuple[Case, str]) -> None:
    model = _model(*case)
    assert saved_bytes(read_model(model).blocks, _batch(model)) == _measured(model, case[0], _inputs(case[0])) > 0


@pytest.mark.parametrize(("dropout", "input_grad"), [(0.0, True), (0.1, True), (0.1, False)])
def test_adapted_blocks_keep_what_is_predicted(case: tuple[Case, str], dropout: float, input_grad: bool) -> None:
    base = _model(*case)
    for preset in PRESETS:
        spec = preset(rank=RANK, targets=case[0].targets, dropout=dropout)
        model = al.attach(copy.deepcopy(base), spec)
        predicted = saved_bytes(read_model(base, spec).blocks, _batch(base, input_grad=input_grad))
        assert predicted == _measured(model, case[0], _inputs(case[0]), input_grad=input_grad)


def test_adapted_blocks_in_bfloat16_keep_what_is_predicted(case: tuple[Case, str]) -> None:
    base = _model(*case, dtype=torch.bfloat16)
    for preset, dropout in zip(PRESETS, (0.1, 0.1, 0.0), strict=True):
        spec = preset(rank=RANK, targets=case[0].targets, dropout=dropout)
        model = al.attach(copy.deepcopy(base), spec)
        predicted = saved_bytes(read_model(base, spec).blocks, _batch(base, itemsize=2))
        assert predicted == _measured(model, case[0], _inputs(case[0], torch.bfloat16))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("attention", "dtype"), [("sdpa", torch.float32), ("eager", torch.bfloat16)])
def test_blocks_under_peft_keep_what_is_predicted(name: str, attention: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    base = _model(case, attention, dtype=dtype)
    for preset, dropout in itertools.product((al.AdapterSpec.lora, al.AdapterSpec.b_only), (0.0, 0.1)):
        spec = preset(rank=RANK, targets=case.targets, dropout=dropout)
        config = LoraConfig(r=RANK, target_modules=list(case.targets), lora_dropout=dropout)
        config.fan_in_fan_out = isinstance(base, GPT2Model)
        theirs = get_peft_model(copy.deepcopy(base), config)  # pyright: ignore[reportArgumentType]
        for parameter, value in theirs.named_parameters():
            value.requires_grad_(("lora_A" in parameter and spec.A.trainable) or "lora_B" in parameter)
        predicted = saved_bytes(read_model(base, spec, branch="peft").blocks, _batch(base, itemsize=dtype.itemsize))
        assert predicted == _measured(theirs, case, _inputs(case, dtype))


def test_blocks_trained_in_full_keep_what_is_predicted(case: tuple[Case, str]) -> None:
    model = _model(*case)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in ("embed", "wte", "wpe")))  # the blocks alone
    predicted = saved_bytes(read_model(model, full=True).blocks, _batch(model))
    assert predicted == _measured(model, case[0], _inputs(case[0]))


def test_the_base_models_own_dropout_is_predicted(case: tuple[Case, str]) -> None:
    base = _model(*case, p=0.1)
    spec = al.AdapterSpec.lora(rank=RANK, targets=case[0].targets)
    model = al.attach(copy.deepcopy(base), spec)
    predicted = saved_bytes(read_model(base, spec).blocks, _batch(base, p=0.1))
    assert predicted == _measured(model, case[0], _inputs(case[0]))


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_one_sequence_keeps_views_where_a_batch_keeps_copies(case: tuple[Case, str], p: float) -> None:
    base = _model(*case, p=p)
    spec = al.AdapterSpec.lora(rank=RANK, targets=case[0].targets)
    model = al.attach(copy.deepcopy(base), spec)
    predicted = saved_bytes(read_model(base, spec).blocks, _batch(base, p=p, size=1))
    assert predicted == _measured(model, case[0], _inputs(case[0], size=1))


def test_products_of_torch_keep_what_is_predicted(case: tuple[Case, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymlora.ops.takes", lambda x, A, B: False)  # as on a machine without a C compiler
    base = _model(*case)
    for preset in PRESETS:
        spec = preset(rank=RANK, targets=case[0].targets)
        model = al.attach(copy.deepcopy(base), spec)
        predicted = saved_bytes(read_model(base, spec).blocks, _batch(base, kernel=False))
        assert predicted == _measured(model, case[0], _inputs(case[0]))


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "Llama", "GPT-2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_costs_what_is_predicted(name: str, attention: str) -> None:
    case = CASES[name]
    model = _model(case, attention)
    predicted = saved_bytes(read_model(model).blocks, _batch(model, padded=True))
    assert predicted == _measured(model, case, _inputs(case, padded=True))


def test_layers_that_share_A_keep_one_mask_and_a_code_each() -> None:
    case = CASES["Llama"]
    base = _model(case, "sdpa")
    shared = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    for dropout in (0.0, 0.1):
        spec = al.AdapterSpec.b_only(rank=RANK, targets=LLAMA, dropout=dropout, shared_A=shared)
        model = al.attach(copy.deepcopy(base), spec)
        predicted = saved_bytes(read_model(base, spec).blocks, _batch(base))
        assert predicted == _measured(model, case, _inputs(case))
        alone = al.AdapterSpec.b_only(rank=RANK, targets=LLAMA, dropout=dropout)
        masks_spared = 2 * 3 * SIZE * LENGTH * WIDTH // 8 if dropout else 0  # 2 of q, k, v and 1 of gate, up
        assert saved_bytes(read_model(base, alone).blocks, _batch(base)) - predicted == masks_spared


def test_a_checkpointed_model_keeps_the_arguments_of_its_blocks(case: tuple[Case, str]) -> None:
    base = _model(*case)
    spec = al.AdapterSpec.lora(rank=RANK, targets=case[0].targets)
    model: Any = al.attach(copy.deepcopy(base), spec)
    # The re-entrant kind shows what it keeps to the hooks; the other keeps the same arguments out of their sight.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    else:  # transformers before 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    embedding = model.get_submodule(case[0].embedding)
    embedding.forward = torch.no_grad()(embedding.forward)  # checkpointing makes its inner tensors require gradients
    # Images have no padding, and Llama's mask goes past the hooks: it is no argument by position.
    for padded in (False,) if case[0].images or case[0].embedding == "embed_tokens" else (False, True):
        predicted = saved_bytes(read_model(base, spec).blocks, _batch(base, padded=padded), checkpointing=True)
        assert predicted >= 2 * 4 * SIZE * LENGTH * WIDTH
        assert predicted == _measured(model, case[0], _inputs(case[0], padded=padded))


# The formulas of the literature, by hooks and by count --------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 5])
def test_a_llama_block_keeps_six_d_three_f_and_the_inputs_of_a_trained_A(rank: int) -> None:
    case = CASES["Llama"]
    base = _model(case, "sdpa")
    d, f, tokens = WIDTH, WIDE, SIZE * LENGTH
    tables = 2 * LENGTH * (WIDTH // HEADS)  # the angles' cosines and sines, once for all blocks
    floor = (_measured(base, case, _inputs(case)) // 4 - tables) // 2
    assert floor == tokens * (6 * d + 3 * f + HEADS + 2)
    kept: dict[str, int] = {}
    for preset in PRESETS:
        spec = preset(rank=rank, targets=LLAMA)
        model = al.attach(copy.deepcopy(base), spec)
        kept[preset.__name__] = (_measured(model, case, _inputs(case)) // 4 - tables) // 2 - floor
    assert kept == {
        "lora": tokens * (2 * d + f + 7 * rank),
        "b_only": tokens * 7 * rank,
        "a_only": tokens * (2 * d + f),
    }


def _llama_block(*, d: int, f: int, kv_heads: int = 32, **layer: Any) -> Block:
    kv = d // 32 * kv_heads
    sizes = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d), "gate": (d, f), "up": (d, f), "down": (f, d)}
    layers = {role: AdaptedLayer(fan_in=n, fan_out=m, **layer) for role, (n, m) in sizes.items()}
    return Block(kind="gated", layers=layers, heads=32, kv_heads=kv_heads, head_dim=d // 32, activation="silu")


def test_freezing_A_saves_a_quarter_of_a_llama_block_at_most() -> None:
    batch = Batch(size=1, length=2048, itemsize=2)
    d, f = 4096, 11008
    lora, b_only = (
        saved_bytes((_llama_block(d=d, f=f, rank=1, trains_A=trains_A),), batch) for trains_A in (True, False)
    )
    assert lora - b_only == 2048 * (2 * d + f) * 2 == 2048 * 38_400
    # In bf16 the norms keep their input in float32, which takes the saving below the quarter of a float32 block.
    assert (lora - b_only) / lora < 0.25
    wide = Batch(size=1, length=2048, itemsize=4)
    lora, b_only = (
        saved_bytes((_llama_block(d=d, f=f, rank=1, trains_A=trains_A),), wide) for trains_A in (True, False)
    )
    assert (
        lora - b_only == (lora - 4 * 2048 * (7 + 32 + 2 + 2 * 128)) / 4
    )  # a quarter but for codes, scalars and angles


def test_separate_casts_cost_six_d_and_f_floats() -> None:
    d, f, rank = 4096, 11008, 16
    batch = Batch(size=1, length=64, itemsize=2)
    frozen, peft = (
        saved_bytes((_llama_block(d=d, f=f, **options),), batch) for options in ({}, {"rank": rank, "branch": "peft"})
    )
    assert (peft - frozen) // 64 == 4 * (6 * d + f) + 4 * 7 * rank
    assert 4 * (6 * d + f) == 142_336  # bytes a token and block


def test_what_is_kept_is_told_by_name() -> None:
    named = saved_by_name((_llama_block(d=64, f=96, rank=2),), Batch(size=1, length=8))
    assert named["attention output"] == 8 * 64 * 4
    assert sum(named.values()) == saved_bytes((_llama_block(d=64, f=96, rank=2),), Batch(size=1, length=8))
    assert saved_by_name((), Batch(size=1, length=8)) == {}


def test_wrong_blocks_are_refused() -> None:
    layer = AdaptedLayer(fan_in=8, fan_out=8)
    options: dict[str, Any] = {"heads": 2, "kv_heads": 2, "head_dim": 4, "activation": "gelu"}
    with pytest.raises(UnknownNameError, match="Known: post_norm"):
        Block(kind="postnorm", layers={}, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="has layers q, k, v, o, up, down, not q"):
        Block(kind="pre_norm", layers={"q": layer}, **options)
    with pytest.raises(UnknownNameError, match="activation='swish9'"):
        Block(
            kind="pre_norm",
            layers=dict.fromkeys(("q", "k", "v", "o", "up", "down"), layer),
            **{**options, "activation": "swish9"},
        )
    with pytest.raises(SpecError, match="must divide heads=2"):
        Block(
            kind="pre_norm",
            layers=dict.fromkeys(("q", "k", "v", "o", "up", "down"), layer),
            **{**options, "kv_heads": 3},
        )
    with pytest.raises(UnknownNameError, match="Known: eager, flash, math"):
        Batch(size=1, length=1, attention="sdpa")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="size=0"):
        Batch(size=0, length=1)
    with pytest.raises(UnknownNameError, match="Known: eager, sdpa"):
        attention_kernel("flex")
