"""Layers that read one input through one frozen A: computed once, and never given to a wrong reader."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import asymlora.shared_code
from asymlora.layers import LinearAdapter
from asymlora.shared_code import SharedCode
from dense_formula import assert_rounding_only, dense_output


class Attention(nn.Module):
    """Three projections of one input, put together so that each has gradients of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1) @ self.v(x)


def _attention(*, shared: bool, dropout: float = 0.0) -> Attention:
    model = Attention().double().requires_grad_(False)
    torch.manual_seed(1)
    A = torch.randn(2, 6, dtype=torch.float64)
    group = SharedCode(("q", "k", "v"))
    for name, base in list(model.named_children()):
        B = torch.randn(base.out_features, 2, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
        layer = LinearAdapter(base, A=A if shared else A.clone(), B=B, scaling=0.5, dropout=dropout, trains_A=False)
        if shared:
            layer.share(group)
        model.set_submodule(name, layer)
    return model


class CodeProducts(TorchDispatchMode):
    """Counts the products that give a code of two columns."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and out.shape[-1] == 2:
            self.count += 1
        return out


@contextmanager
def _counted() -> Iterator[CodeProducts]:
    with CodeProducts() as mode:
        yield mode


def _step(model: nn.Module, x: Tensor, *, reentrant: bool | None = None) -> list[Tensor]:
    out = model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant)
    model.zero_grad()
    x.grad = None
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]  # pyright: ignore[reportReturnType]


def _free() -> Tensor:
    return torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()


@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
def test_a_shared_A_gives_what_three_equal_ones_give(reentrant: bool | None) -> None:
    x = _free()
    wanted = _step(_attention(shared=False), x)
    model = _attention(shared=True)
    for _ in range(2):
        assert_rounding_only(_step(model, x, reentrant=reentrant), wanted)
    assert model.q.shared._last is None  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_shared_product_is_computed_once(dropout: float) -> None:
    x = _free()
    for shared, products in ((True, 1), (False, 3)):
        model = _attention(shared=shared)
        for call in (model.train(), model.eval()):
            with torch.no_grad(), _counted() as counted:
                call(x)
                assert counted.count == products
            with _counted() as counted:
                call(x)
                assert counted.count == products


def test_layers_that_share_draw_one_mask_and_draw_it_again_when_recomputed() -> None:
    model, x = _attention(shared=True, dropout=0.4), _free()
    results = []
    for reentrant in (None, True, False):
        torch.manual_seed(5)
        results.append(_step(model, x, reentrant=reentrant))
    assert_rounding_only(results[1], results[0])
    assert_rounding_only(results[2], results[0])
    # One mask: with q and k equal layers, their products are equal too.
    layer = model.q
    model.set_submodule(
        "k",
        layer.__class__(
            layer.base_layer, A=layer.lora_A, B=layer.lora_B.detach(), scaling=0.5, dropout=0.4, trains_A=False
        ),
    )
    model.k.share(layer.shared)
    assert torch.equal(model.q(x), model.k(x))


def test_an_input_that_was_changed_in_place_is_read_anew() -> None:
    model, x = _attention(shared=True), _free().detach()
    with torch.no_grad():
        model.q(x)
        x.mul_(2)
        assert_rounding_only(model.k(x), dense_output(model.k, x))  # pyright: ignore[reportArgumentType]
        other = x.clone()
        assert_rounding_only(model.v(other), dense_output(model.v, other))  # pyright: ignore[reportArgumentType]
        model.q(x)
        model.q.lora_A.mul_(3)  # pyright: ignore[reportCallIssue]
        assert_rounding_only(model.k(x), dense_output(model.k, x))  # pyright: ignore[reportArgumentType]


def test_a_code_without_a_graph_is_not_given_to_a_pass_with_one() -> None:
    model, x = _attention(shared=True), _free()
    with torch.no_grad():
        model.q(x)
    assert model.k(x).grad_fn is not None
    (gradient,) = torch.autograd.grad(model.v(x).sum(), x)
    assert gradient.abs().max() > 0


def test_inference_mode_has_no_versions_and_computes_each_code() -> None:
    model, x = _attention(shared=True), _free().detach()
    wanted = model(x).detach()
    with torch.inference_mode():
        assert_rounding_only(model(x.clone()), wanted)
        assert_rounding_only(model(x), wanted)
        inside = x.clone()
        model.q(inside)
        inside.mul_(2)
        assert_rounding_only(model.k(inside), dense_output(model.k, inside))  # pyright: ignore[reportArgumentType]


def test_no_code_outlives_its_readers_or_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[weakref.ref[Tensor]] = []
    original = asymlora.shared_code.code_of

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        code = original(*args, **kwargs)
        codes.append(weakref.ref(code))
        return code

    monkeypatch.setattr(asymlora.shared_code, "code_of", watched)
    model = _attention(shared=True)
    _step(model, _free())
    gc.collect()
    assert [code() for code in codes] == [None]
    x = _free() * 1  # a leaf would be held by the code's own graph
    model.q(x)  # k and v never read it
    assert codes[1]() is not None
    del x
    gc.collect()
    assert codes[1]() is None


def test_copies_share_among_themselves() -> None:
    model, x = _attention(shared=True), _free()
    model.q(x)  # a code waits for its readers
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.q.lora_A is other.k.lora_A is other.v.lora_A
        assert other.q.shared is other.k.shared is other.v.shared is not model.q.shared
        assert other.q.lora_A is not model.q.lora_A
        with _counted() as counted:
            out = other(x)
        assert counted.count == 1
        assert_rounding_only(out, model(x))


def test_a_shared_A_reads_another_dtype_and_a_special_base_alike() -> None:
    model = _attention(shared=True).float()
    model.q.base_layer.register_forward_hook(lambda module, args, out: out * 2)
    x = _free().detach().float()
    wanted = model.q.base_layer(x) + 0.5 * x @ (model.q.lora_B @ model.q.lora_A).T  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(model.q(x), wanted)
    model.bfloat16()
    for layer in (model.q, model.k, model.v):
        layer.lora_B.data = layer.lora_B.data.float()
    assert model(x.bfloat16()).dtype == torch.bfloat16


def test_switched_off_layers_leave_no_code_to_a_wrong_reader() -> None:
    model, x = _attention(shared=True), _free()
    model.q.enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    wanted = _attention(shared=False)
    wanted.q.enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(3):
        assert_rounding_only(model(x), wanted(x))
