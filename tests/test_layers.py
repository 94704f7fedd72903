from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from asymlora.kinds import ConvAdapter, EmbeddingAdapter, kind_of
from asymlora.layers import AdapterLayer, LinearAdapter, plain_weight
from dense_formula import assert_rounding_only, dense_output
from kept_bytes import kept_for_backward


class Special(nn.Linear):
    """A subclass, whose forward may be anything."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3


class Unknown(nn.Module):
    """A layer of another library: known widths, a forward, and no weight that could be read."""

    def __init__(self, n: int = 6, m: int = 4) -> None:
        super().__init__()
        self.in_features, self.out_features = n, m
        self.table = nn.Parameter(torch.randn(n, m), requires_grad=False)
        self.answered: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.answered.append((x @ self.table).view((*x.shape[:-1], -1)))
        return self.answered[-1]


def _conv1d() -> nn.Module:
    layer = Conv1D(4, 6)
    nn.init.normal_(layer.bias)
    return layer


def _dense_input() -> Tensor:
    return torch.randn(3, 5, 6, dtype=torch.float64)


def _ids() -> Tensor:
    return torch.tensor([[1, 4, 1, 7], [8, 8, 2, 0]])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A base layer and an input for it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    adapter: type[AdapterLayer] = LinearAdapter


def _image(channels: int, *size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, *size, dtype=torch.float64)


def _conv(name: str, build: Callable[[], nn.Module], inputs: Callable[[], Tensor]) -> Kind:
    return Kind(name=name, build=build, inputs=inputs, adapter=ConvAdapter)


LAYERS = (
    Kind(name="linear", build=lambda: nn.Linear(6, 4), inputs=_dense_input),
    Kind(name="linear without bias", build=lambda: nn.Linear(6, 4, bias=False), inputs=_dense_input),
    Kind(name="Conv1D of transformers", build=_conv1d, inputs=_dense_input),
    Kind(name="embedding", build=lambda: nn.Embedding(9, 5), inputs=_ids, adapter=EmbeddingAdapter),
    _conv("conv1d", lambda: nn.Conv1d(3, 5, 3), _image(3, 9)),
    _conv("conv2d", lambda: nn.Conv2d(3, 5, (3, 2), stride=2, padding=(1, 2), dilation=(2, 1)), _image(3, 9, 8)),
    _conv("conv2d same", lambda: nn.Conv2d(3, 5, 3, padding="same", bias=False), _image(3, 6, 6)),
    _conv("conv2d channels last", lambda: nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), _image(3, 6, 6)),
    _conv("conv3d", lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1)), _image(2, 3, 4, 3)),
)
EVERY_KIND = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.name)
TRAINED = pytest.mark.parametrize("trained", ["A", "B", "AB"])


def _adapter(base: nn.Module, *, rank: int = 2, trained: str = "AB", dtype: Any = torch.float64, **fields: Any) -> Any:
    cls = kind_of(base)
    assert cls is not None
    shapes = cls.factor_shapes(base, rank)
    A, B = (torch.randn(shape) for shape in shapes)
    layer = cls(base, A=A, B=B, scaling=0.5, trains_A="A" in trained, trains_B="B" in trained, **fields)
    layer.base_layer.requires_grad_(False)
    return layer.to(dtype)


def _of_linear(**fields: Any) -> LinearAdapter:
    torch.manual_seed(0)
    return _adapter(nn.Linear(6, 4), **fields)


def _gradients(loss: Tensor, layer: nn.Module, x: Tensor) -> list[Tensor]:
    moved = [p for p in layer.parameters() if p.requires_grad] + ([x] if x.requires_grad else [])
    return list(torch.autograd.grad(loss, moved))


@EVERY_KIND
@TRAINED
@pytest.mark.parametrize("fused", [True, False])
def test_every_kind_is_its_base_with_the_sum_as_weight(kind: Kind, trained: str, fused: bool) -> None:
    torch.manual_seed(0)
    layer, x = _adapter(kind.build(), trained=trained), kind.inputs()
    assert type(layer) is kind.adapter
    layer.fused = fused
    if x.is_floating_point():
        x.requires_grad_()
    out, dense = layer(x), dense_output(layer, x)
    assert_rounding_only(out, dense)
    weights = torch.randn_like(dense)
    assert_rounding_only(_gradients((out * weights).sum(), layer, x), _gradients((dense * weights).sum(), layer, x))


@EVERY_KIND
def test_every_kind_switched_off_is_its_base_bit_for_bit(kind: Kind) -> None:
    layer, x = _adapter(kind.build()), kind.inputs()
    layer.enabled = False
    assert torch.equal(layer(x), layer.base_layer(x))


@EVERY_KIND
def test_every_kind_does_not_write_to_what_its_base_returns(kind: Kind) -> None:
    layer, x = _adapter(kind.build()), kind.inputs()
    held: list[tuple[Tensor, Tensor, int]] = []
    layer.base_layer.register_forward_hook(lambda module, args, out: held.append((out, out.clone(), out._version)))
    layer(x)
    assert [(torch.equal(out, before), out._version == version) for out, before, version in held] == [(True, True)]


@EVERY_KIND
def test_every_kind_takes_an_empty_batch(kind: Kind) -> None:
    layer, x = _adapter(kind.build()), kind.inputs()[:0]
    out = layer(x)
    assert out.shape == layer.base_layer(x).shape
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in layer.parameters() if p.requires_grad)


@EVERY_KIND
def test_every_kind_called_twice_in_one_pass_has_the_gradients_of_both(kind: Kind) -> None:
    layer = _adapter(kind.build())
    one, two = kind.inputs(), kind.inputs().flip(0)
    loss = layer(one).square().sum() + layer(two).sin().sum()
    dense = dense_output(layer, one).square().sum() + dense_output(layer, two).sin().sum()
    assert_rounding_only(_gradients(loss, layer, one), _gradients(dense, layer, one))


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_kind_gives_the_dtype_of_its_base_with_float32_factors(kind: Kind, dtype: torch.dtype) -> None:
    layer, x = _adapter(kind.build(), dtype=torch.float32), kind.inputs()
    layer.base_layer.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    out = layer(x)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32
    exact = dense_output(copy.deepcopy(layer).double(), x.double() if x.is_floating_point() else x)
    # Sums of a hundred terms and three roundings in the base's type; entries are below 30.
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=3 * 30 * torch.finfo(dtype).eps)


@EVERY_KIND
def test_every_kind_says_its_factors_as_matrices(kind: Kind) -> None:
    base = kind.build()
    (r, n), (m, r_too) = kind.adapter.matrix_shapes(base, 2)
    weight: Any = base.weight
    assert (r, r_too) == (2, 2)
    matrix = kind.adapter.matrix_of(base, weight)
    assert matrix.shape == (m, n)
    assert torch.equal(kind.adapter.weight_from(base, matrix), weight)


@EVERY_KIND
def test_every_kind_copies_and_pickles(kind: Kind) -> None:
    layer, x = _adapter(kind.build(), trained="B"), kind.inputs()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert other.lora_A.data_ptr() != layer.lora_A.data_ptr()
        assert other.lora_B.stride() == layer.lora_B.stride()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", [k for k in LAYERS if k.adapter is not EmbeddingAdapter], ids=lambda kind: kind.name)
def test_dropout_acts_in_training_only_and_on_the_branch_only(kind: Kind, dropout: float) -> None:
    layer, x = _adapter(kind.build(), dropout=dropout), kind.inputs()
    base = layer.base_layer(x)
    assert torch.equal(layer.eval()(x), layer(x))
    plain = layer(x)
    torch.manual_seed(0)
    mean = sum(layer.train()(x) - base for _ in range(400)) / 400
    differs = not torch.allclose(layer(x), plain, rtol=0, atol=1e-3)
    assert differs == bool(dropout)
    # Unbiased: 400 masks, deviation of a sum of up to 36 terms of order 3 below 20/sqrt(400); six of them.
    torch.testing.assert_close(mean, plain - base, rtol=0, atol=6.0 if dropout else 1e-12)


# Embeddings.


def test_padding_gives_its_code_no_gradient_and_reads_the_merged_row() -> None:
    layer, ids = _adapter(nn.Embedding(9, 5, padding_idx=8)), _ids()
    assert_rounding_only(layer(ids), dense_output(layer, ids))
    ours, dense = (
        torch.autograd.grad(f(ids).sin().sum(), layer.lora_A)[0] for f in (layer, lambda i: dense_output(layer, i))
    )
    assert_rounding_only(ours, dense)
    assert ours[:, 8].abs().max() == 0
    assert ours[:, 1].abs().max() > 0


def test_gradients_scaled_by_frequency_are_those_of_the_dense_table() -> None:
    layer, ids = _adapter(nn.Embedding(9, 5, scale_grad_by_freq=True)), _ids()
    ours, dense = (
        torch.autograd.grad(f(ids).sin().sum(), layer.lora_A)[0] for f in (layer, lambda i: dense_output(layer, i))
    )
    assert_rounding_only(ours, dense)
    plain = _adapter(nn.Embedding(9, 5))
    plain.load_state_dict(layer.state_dict())
    unscaled = torch.autograd.grad(plain(ids).sin().sum(), plain.lora_A)[0]
    assert_rounding_only(ours[:, 1] * 2, unscaled[:, 1])  # entry 1 is read twice


def test_a_base_with_sparse_gradients_trains_with_dense_factors() -> None:
    layer, ids = _adapter(nn.Embedding(9, 5, sparse=True)), _ids()
    loss = layer(ids).sin().sum()
    plain = _adapter(nn.Embedding(9, 5))
    plain.load_state_dict(layer.state_dict())
    assert_rounding_only(_gradients(loss, layer, ids), _gradients(plain(ids).sin().sum(), plain, ids))


def test_an_embedding_that_scales_what_it_looked_up_scales_the_update_too() -> None:
    class Scaled(nn.Embedding):
        embed_scale = torch.tensor(4.0)

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * self.embed_scale

    layer = _adapter(Scaled(9, 5))
    assert_rounding_only(layer(_ids()), dense_output(layer, _ids()))


@pytest.mark.parametrize("trained", ["A", "B"])
def test_an_embedding_keeps_codes_only_for_B(trained: str) -> None:
    layer, ids = _adapter(nn.Embedding(9, 5), trained=trained), _ids()
    kept = kept_for_backward(lambda: layer(ids), owned=[*layer.parameters(), *layer.buffers()], named={"ids": ids})
    assert kept == ({"ids": ids.nbytes} if trained == "A" else {"other": ids.numel() * 2 * 8})


# Convolutions with groups.


@TRAINED
def test_in_groups_the_update_reads_every_channel_through_its_own_codes(trained: str) -> None:
    torch.manual_seed(0)
    base = nn.Conv2d(4, 6, 3, groups=2, padding=1)
    layer, x = _adapter(base, rank=4, trained=trained), _image(4, 5, 5)().requires_grad_()
    assert layer.lora_B.shape == (6, 2, 1, 1)
    # Group g of the output sees the codes 2g and 2g + 1.
    blocks = torch.zeros(6, 4, dtype=torch.float64)
    B = layer.lora_B.flatten(1)
    whole = torch.cat([torch.cat([B[:3], blocks[:3, 2:]], 1), torch.cat([blocks[3:, :2], B[3:]], 1)])
    update = (whole @ layer.lora_A.flatten(1)).view(6, 4, 3, 3)
    dense = base(x) + 0.5 * nn.functional.conv2d(x, update, padding=1)
    assert_rounding_only(layer(x), dense)
    weights = torch.randn_like(dense)
    assert_rounding_only(
        _gradients((layer(x) * weights).sum(), layer, x), _gradients((dense * weights).sum(), layer, x)
    )
    assert "groups" in str(layer.why_not_merge())


# What cannot take an adapter.


@TRAINED
def test_a_base_of_another_library_is_called_and_its_answer_left_alone(trained: str) -> None:
    torch.manual_seed(0)
    base = Unknown()
    layer, x = _adapter(base, trained=trained), _dense_input().requires_grad_()
    out = layer(x)
    assert len(base.answered) == 1
    wanted = x @ base.table + 0.5 * x @ (layer.lora_B @ layer.lora_A).T
    assert torch.equal(base.answered[0], x @ base.table)
    assert_rounding_only(out, wanted)
    assert_rounding_only(_gradients(out.sin().sum(), layer, x), _gradients(wanted.sin().sum(), layer, x))
    assert "holds a NoneType" in str(layer.why_not_merge())


def test_a_base_takes_the_further_arguments_of_its_call() -> None:
    class Gated(nn.Linear):
        def forward(self, input: Tensor, gate: float = 1.0, *, shift: float = 0.0) -> Tensor:
            return super().forward(input) * gate + shift

    layer, x = _adapter(Gated(6, 4)), _dense_input()
    branch = layer(x) - layer.base_layer(x)
    assert_rounding_only(layer(x, 3.0, shift=2.0), layer.base_layer(x, 3.0, shift=2.0) + branch)


def _hook(base: nn.Module) -> None:
    base.register_forward_hook(lambda module, args, out: out * 3)


def _pre_hook(base: nn.Module) -> None:
    base.register_forward_pre_hook(lambda module, args: (args[0] * 3,))


def _replaced(base: nn.Module) -> None:
    forward = base.forward
    base.forward = lambda *args: forward(*args) * 3  # as accelerate does


def _parametrized(base: nn.Module) -> None:
    class Triple(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 3

    nn.utils.parametrize.register_parametrization(base, "weight", Triple())


def _pruned(base: nn.Module) -> None:
    prune.random_unstructured(base, "weight", amount=0.5)


SPECIAL = {"hook": _hook, "pre-hook": _pre_hook, "replaced forward": _replaced, "parametrized": _parametrized}


@pytest.mark.parametrize("change", [*SPECIAL, "pruned", "subclass", "backward hook"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_base_that_is_more_than_its_weight_is_called(change: str, dropout: float) -> None:
    base = Special(6, 4) if change == "subclass" else nn.Linear(6, 4)
    x, called = _dense_input().requires_grad_(), []
    {**SPECIAL, "pruned": _pruned}.get(change, lambda base: None)(base)
    if change == "backward hook":
        base.register_full_backward_hook(lambda module, *gradients: called.append(module))
    layer = _adapter(base, dropout=dropout)
    assert plain_weight(base, x) is None
    torch.manual_seed(0)
    out = layer(x)
    layer.base_layer = nn.Linear(6, 4).double()
    torch.manual_seed(0)
    branch = layer(x) - layer.base_layer(x)
    assert_rounding_only(out, base(x) + branch)
    assert not torch.allclose(base(x), nn.functional.linear(x, base.weight, base.bias)) or change in (
        "parametrized",
        "pruned",
        "backward hook",
    )
    out.sum().backward()
    assert len(called) == (change == "backward hook")


def test_a_hook_on_every_module_sees_the_base() -> None:
    layer, seen = _of_linear(), []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        layer(_dense_input())
    finally:
        handle.remove()
    assert layer.base_layer in seen
    seen.clear()
    layer(_dense_input())  # the control: without the hook the base is not called
    assert not seen


def test_only_a_plain_frozen_dense_layer_of_the_inputs_dtype_is_read() -> None:
    x, base = _dense_input(), nn.Linear(6, 4).double().requires_grad_(False)
    assert plain_weight(base, x) is base.weight
    conv = _conv1d().double().requires_grad_(False)
    assert torch.equal(plain_weight(conv, x), conv.weight.t())  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert plain_weight(base, x.float()) is None
    with torch.autocast("cpu"):
        assert plain_weight(base, x) is None
    for parameter in (base.weight, base.bias):
        parameter.requires_grad_()
        assert plain_weight(base, x) is None
        parameter.requires_grad_(False)
    assert plain_weight(Unknown(), x) is None
    assert plain_weight(base.to("meta"), x.to("meta")) is base.weight


def test_a_base_that_is_trained_too_has_its_own_gradient() -> None:
    layer, x = _of_linear(), _dense_input()
    layer.base_layer.requires_grad_()
    dense = nn.Linear(6, 4).double()
    dense.load_state_dict(layer.base_layer.state_dict())
    layer(x).sum().backward()
    dense(x).sum().backward()
    assert_rounding_only(layer.base_layer.weight.grad, dense.weight.grad)
    assert_rounding_only(layer.base_layer.bias.grad, dense.bias.grad)


def test_the_input_is_not_kept_where_A_is_frozen() -> None:
    for dropout in (0.0, 0.3):
        layer, x = _of_linear(trained="B", dropout=dropout), _dense_input()
        owned = [*layer.parameters(), *layer.buffers()]
        kept = kept_for_backward(lambda layer=layer, x=x: layer(x), owned=owned, named={"x": x})
        assert kept == {"other": 15 * 2 * 8}
    trained = _of_linear(trained="AB")
    assert "x" in kept_for_backward(lambda: trained(x), owned=trained.parameters(), named={"x": x})


# Factors.


def test_a_frozen_factor_is_a_buffer_and_no_parameter() -> None:
    layer = _of_linear(trained="B")
    assert [n for n, _ in layer.named_parameters(recurse=False)] == ["lora_B"]
    assert [n for n, _ in layer.named_buffers(recurse=False)] == ["lora_A"]
    assert "lora_A" in layer.state_dict()


@pytest.mark.parametrize("call", [nn.Module.train, nn.Module.eval, lambda m: m.requires_grad_(True), nn.Module.half])
def test_no_call_on_the_module_thaws_a_frozen_factor(call: Any) -> None:
    layer = _of_linear(trained="B")
    call(layer)
    assert not layer.lora_A.requires_grad
    assert "lora_A" not in dict(layer.named_parameters())


def test_a_narrow_B_stays_its_transpose_through_casts_loading_and_steps() -> None:
    layer = _of_linear(trained="AB")
    assert layer.lora_B.stride() == (1, 4)
    layer.float()
    layer.load_state_dict(_of_linear(dtype=torch.float32).state_dict())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(_dense_input().float()).sum().backward()
    optimizer.step()
    assert layer.lora_B.stride() == (1, 4)
    assert copy.deepcopy(layer).lora_B.stride() == (1, 4)


def test_what_the_layer_lacks_is_answered_by_the_base() -> None:
    layer = _of_linear()
    assert layer.weight is layer.base_layer.weight
    assert (layer.in_features, layer.out_features) == (6, 4)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = layer.nothing


def test_shows_what_is_frozen() -> None:
    assert "rank=2, scaling=0.5, frozen=A" in repr(_of_linear(trained="B"))
    assert "frozen" not in repr(_of_linear())


def test_state_dict_has_the_names_of_the_base_and_loads_back_also_under_the_held_ones() -> None:
    layer = _of_linear(trained="B")
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    assert set(state) == {"weight", "bias", "lora_A", "lora_B"}
    held = {f"base_layer.{n}" if n in ("weight", "bias") else n: value for n, value in state.items()}
    for given in (state, held):
        other = _of_linear()
        other.load_state_dict(given, strict=True)
        assert torch.equal(other.base_layer.weight, state["weight"])
        assert torch.equal(other.lora_A, state["lora_A"])
    nested: Any = nn.Sequential(nn.Sequential(_of_linear()))
    assert set(nested.state_dict()) == {f"0.0.{name}" for name in state}
    nested.load_state_dict({f"0.0.{name}": value for name, value in state.items()}, strict=True)
    assert torch.equal(nested[0][0].base_layer.bias, state["bias"])


def test_a_state_dict_with_a_missing_or_a_strange_key_is_refused() -> None:
    layer = _of_linear()
    for change in (lambda s: s.pop("weight"), lambda s: s.pop("lora_B"), lambda s: s.update(strange=torch.zeros(1))):
        state = dict(layer.state_dict())
        change(state)
        with pytest.raises(RuntimeError, match="key"):
            layer.load_state_dict(state)


# A base that was corrected for a start that is not zero.


def _corrected() -> tuple[LinearAdapter, Tensor, Tensor]:
    layer = _of_linear(dtype=torch.float32)
    before = layer.base_layer.weight.data
    layer.correct_base(layer.lora_A.detach().clone(), layer.lora_B.detach().clone())
    return layer, before, before.clone()


def test_a_corrected_base_starts_at_its_own_output_and_comes_back_as_the_very_tensor() -> None:
    layer, before, bits = _corrected()
    x = _dense_input().float()
    exact = before.double() - 0.5 * layer.lora_B.double() @ layer.lora_A.double()
    assert torch.equal(layer.base_layer.weight.data, exact.float())
    # Rounding of the corrected weight, of both products and of their sum: 6 + 2 + 3 roundings of terms below 20.
    wanted = nn.functional.linear(x, before, layer.base_layer.bias)
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=11 * 20 * 2**-24)
    layer.restore_base()
    assert layer.base_layer.weight.data is before or layer.base_layer.weight.data_ptr() == before.data_ptr()
    assert torch.equal(layer.base_layer.weight, bits)
    layer.restore_base()
    assert torch.equal(layer.base_layer.weight, bits)


def test_the_update_of_a_corrected_base_is_what_the_factors_moved() -> None:
    layer, _, bits = _corrected()
    A_0, B_0 = layer.lora_A.detach().double(), layer.lora_B.detach().double()
    with torch.no_grad():
        layer.lora_A.add_(0.1), layer.lora_B.mul_(2)
    A, B = layer.update()
    moved = layer.lora_B.double() @ layer.lora_A.double() - B_0 @ A_0
    assert_rounding_only(B.double() @ A.double(), moved)
    assert torch.equal(layer.original_weight(), bits)


def test_a_corrected_base_that_was_cast_comes_back_in_the_new_type() -> None:
    layer, _, bits = _corrected()
    layer.double()
    layer.restore_base()
    assert layer.base_layer.weight.dtype == torch.float64
    assert torch.equal(layer.base_layer.weight.float(), bits)
