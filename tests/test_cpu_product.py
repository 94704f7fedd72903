from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

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
