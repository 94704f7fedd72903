from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import asymlora.ops
from asymlora.cpu_kernel import kernel
from asymlora.cpu_product import Frozen, KernelProduct
from asymlora.ops import adapted_linear, add_low_rank
from asymlora.orders import Order

needs_kernel = pytest.mark.skipif(kernel() is None, reason="no C compiler here")
SCALING = 0.75


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_kernel
@pytest.mark.parametrize("trained", ["x", "A", "B", "AB", "xA", "xB", "xAB"])
@pytest.mark.parametrize("laid_out", [True, False], ids=["B as its transpose", "B as PEFT has it"])
@pytest.mark.parametrize(
    ("own_base", "order"),
    [(False, Order()), *((True, Order(*folds)) for folds in itertools.product((False, True), repeat=2))],
    ids=str,
)
def test_gradients_are_those_of_the_dense_formula_in_float64(
    trained: str, order: Order, laid_out: bool, own_base: bool
) -> None:
    x, W0, bias, A, B = _draw(3, 5, 11), _draw(13, 11, seed=1), _draw(13, seed=2), _draw(4, 11, seed=3), _draw(13, 4)
    B = B.t().contiguous().t() if laid_out else B
    given = {"x": x, "A": A, "B": B}
    for name, tensor in given.items():
        tensor.requires_grad_(name in trained)
    base = None if own_base else nn.functional.linear(x.detach(), W0, bias).requires_grad_()
    frozen = Frozen(W0, bias, SCALING, order) if own_base else Frozen(None, None, SCALING)
    out = KernelProduct.apply(x, base, A, B, frozen)
    grad = _draw(3, 5, 13, seed=7)
    got = torch.autograd.grad(out, [t for t in (base, *given.values()) if t is not None and t.requires_grad], grad)
    wide = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in given.items()}
    update = SCALING * wide["x"] @ wide["A"].t() @ wide["B"].t()
    wide_base = None if base is None else base.detach().double().requires_grad_()
    dense = update + (nn.functional.linear(wide["x"], W0.double(), bias.double()) if wide_base is None else wide_base)
    leaves = [t for t in (wide_base, *wide.values()) if t is not None and t.requires_grad]
    wanted = torch.autograd.grad(dense, leaves, grad.double())
    torch.testing.assert_close(out.double(), dense, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@needs_kernel
def test_layers_take_it_and_give_what_torch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W0, bias, A, B = _draw(40, 24), _draw(16, 24, seed=1), None, _draw(4, 24, seed=3), _draw(16, 4, seed=4)
    asked: list[str] = []
    original = KernelProduct.apply
    monkeypatch.setattr(KernelProduct, "apply", lambda *given: (asked.append("kernel"), original(*given))[1])
    ours = adapted_linear(x, W0, bias, A, B, scaling=SCALING), add_low_rank(x @ W0.t(), x, A, B, scaling=SCALING)
    assert asked == ["kernel", "kernel"]
    monkeypatch.setattr(asymlora.ops, "takes", lambda *_: False)
    plain = adapted_linear(x, W0, bias, A, B, scaling=SCALING)
    assert len(asked) == 2
    for out in ours:
        torch.testing.assert_close(out, plain)


@needs_kernel
def test_inputs_with_gaps_and_expanded_gradients() -> None:
    x, W0, A, B = _draw(6, 10).t(), _draw(4, 6, seed=1), _draw(2, 6, seed=2).requires_grad_(), _draw(4, 2, seed=3)
    adapted_linear(x, W0, None, A, B, scaling=SCALING).sum().backward()
    assert A.grad is not None
    wanted = SCALING * torch.ones(10, 4) @ B
    torch.testing.assert_close(A.grad, wanted.t() @ x)


@needs_kernel
def test_second_derivatives_say_what_to_do() -> None:
    x, W0, A, B = _draw(5, 6).requires_grad_(), _draw(7, 6), _draw(2, 6), _draw(7, 2)
    loss = adapted_linear(x, W0, None, A, B, scaling=SCALING).square().sum()
    with pytest.raises(RuntimeError, match=r"no second derivative.*asymlora\.unfused\(model\)"):
        torch.autograd.grad(loss, x, create_graph=True)


@needs_kernel
def test_a_gradient_that_says_it_is_negated_is_read_so() -> None:
    x, W0, A, B = _draw(5, 6).requires_grad_(), _draw(7, 6), _draw(2, 6), _draw(7, 2)
    grad = _draw(5, 7, seed=9)
    negated = torch.complex(grad, -grad).conj().imag
    assert negated.is_neg()
    out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
    (found,) = torch.autograd.grad(out, x, negated)
    torch.testing.assert_close(found, grad @ (W0 + SCALING * B @ A))


def _case() -> tuple[Tensor, ...]:
    x, W0, A, B = _draw(65, 6), _draw(7, 6, seed=1), _draw(2, 6, seed=2), _draw(7, 2, seed=3)
    return x.requires_grad_(), W0, A.requires_grad_(), B.t().contiguous().t().requires_grad_()


def _gradients(x: Tensor, W0: Tensor, A: Tensor, B: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return those of the dense formula."""
    wide = [t.detach().double().requires_grad_() for t in (x, A, B)]
    out = wide[0] @ (W0.double() + SCALING * wide[2] @ wide[1]).t()
    return torch.autograd.grad(out, wide, grad.double())


def _assert_gradients(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_of_the_user_changes_nothing(dtype: torch.dtype) -> None:
    x, W0, A, B = _case()
    grad = _draw(65, 7, seed=9)
    wanted = _gradients(x, W0, A, B, grad)
    torch.set_default_dtype(dtype)
    try:
        out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
        found = torch.autograd.grad(out, (x, A, B), grad)
    finally:
        torch.set_default_dtype(torch.float32)
    _assert_gradients(found, wanted)


@needs_kernel
def test_the_default_device_of_the_user_changes_nothing() -> None:
    x, W0, A, B = _case()
    grad = _draw(65, 7, seed=9)
    with torch.device("meta"):
        found = torch.autograd.grad(adapted_linear(x, W0, None, A, B, scaling=SCALING), (x, A, B), grad)
    _assert_gradients(found, _gradients(x, W0, A, B, grad))


@needs_kernel
@pytest.mark.parametrize("tokens", [64, 4096])
def test_backward_inside_autocast_is_float32_as_forward_was(tokens: int) -> None:
    x, W0, A, B = _case()
    x = _draw(tokens, 6).requires_grad_()
    out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
    grad = _draw(tokens, 7, seed=9)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out, (x, A, B), grad)
    _assert_gradients(found, _gradients(x, W0, A, B, grad))


@needs_kernel
def test_selective_checkpointing_of_the_base_product() -> None:
    x, W0, A, B = _case()
    grad = _draw(65, 7, seed=9)

    def policy(_context: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        kept = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def run(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return adapted_linear(x, W0, None, A, B, scaling=SCALING)

    contexts = partial(create_selective_checkpoint_contexts, policy)
    # By torch the update is added in place too, and torch says so; what must not be is a wrong gradient.
    with pytest.raises(RuntimeError, match="has been mutated"):
        out = checkpoint(run, x, A, B, use_reentrant=False, context_fn=contexts)
        torch.autograd.grad(out, (x, A, B), grad)


@needs_kernel
def test_gradients_that_hold_no_values() -> None:
    x, W0, A, B = _case()
    out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
    found = torch.autograd.grad(out, (x, A, B), torch._efficientzerotensor(65, 7))
    assert not any(grad.any() for grad in found)


@needs_kernel
def test_batched_gradients() -> None:
    x, W0, A, B = _case()
    out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
    grads = torch.stack([_draw(65, 7, seed=9), _draw(65, 7, seed=10)])
    found = torch.autograd.grad(out, (x, A, B), grads, is_grads_batched=True)
    for i in range(2):
        _assert_gradients(tuple(grad[i] for grad in found), _gradients(x, W0, A, B, grads[i]))


@needs_kernel
def test_hooks_that_bring_saved_tensors_back_in_another_layout() -> None:
    x, W0, A, B = _case()
    grad = _draw(65, 7, seed=9)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.t().contiguous(), lambda t: t.t()):
        out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
    _assert_gradients(torch.autograd.grad(out, (x, A, B), grad), _gradients(x, W0, A, B, grad))


@needs_kernel
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_derivatives_and_traces() -> None:
    x, W0, A, B = (t.detach() for t in _case())
    folded = W0 + SCALING * B @ A
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        moved = forward_ad.unpack_dual(adapted_linear(dual, W0, None, A, B, scaling=SCALING)).tangent
        torch.testing.assert_close(moved, torch.ones_like(x) @ folded.t())
    seen = make_fx(lambda x: adapted_linear(x, W0, None, A, B, scaling=SCALING))(x)
    torch.testing.assert_close(seen(2 * x), 2 * x @ folded.t(), rtol=1e-5, atol=1e-5)


@needs_kernel
def test_shapes_that_do_not_fit_are_refused_before_anything_is_read() -> None:
    x, W0, A, B = (t.detach() for t in _case())
    out = x @ W0.t()
    for given in ((out[:1], x, A, B), (out, x, A[:, :3].contiguous(), B), (out, x, A[:1], B), (out[:, :4], x, A, B)):
        with pytest.raises(RuntimeError, match="do not fit"):
            KernelProduct.apply(given[1], given[0], given[2], given[3], Frozen(None, None, SCALING))


@needs_kernel
def test_a_sparse_base_weight() -> None:
    x, W0, A, B = (t.detach() for t in _case())
    out = adapted_linear(x, W0.to_sparse(), None, A, B, scaling=SCALING)
    torch.testing.assert_close(out, x @ (W0 + SCALING * B @ A).t(), rtol=1e-5, atol=1e-5)


@needs_kernel
def test_a_frozen_A_that_is_not_needed_is_not_kept() -> None:
    x, W0, A, B = _case()
    x, A = x.detach(), A.detach()
    out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
    A.add_(1)  # torch would object if it were
    out.sum().backward()
    assert B.grad is not None
