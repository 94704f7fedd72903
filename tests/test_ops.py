from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asymlora.ops
from asymlora.cpu_kernel import kernel
from asymlora.ops import (
    adapted_linear,
    add_low_rank,
    add_low_rank_plain,
    code_of,
    laid_out,
    merged_weight,
    rounding_error,
)
from asymlora.orders import KERNEL_COSTS, TORCH_COSTS, Order
from kept_bytes import kept_for_backward

ORDERS = tuple(Order(*flags) for flags in itertools.product((False, True), repeat=2))
EVERY_ORDER = pytest.mark.parametrize("order", ORDERS, ids=lambda o: "-".join(n for n, on in o._asdict().items() if on))
T, N, M, R = 15, 6, 7, 2
SCALING = 0.5


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Order], None]:
    """Make the layers use one order, whatever the shapes."""

    def fix(order: Order) -> None:
        monkeypatch.setattr(asymlora.ops, "choose_order", lambda *shape: order)

    return fix


def _draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _case(dtype: torch.dtype = torch.float64, *, lead: tuple[int, ...] = (3, 5)) -> tuple[Tensor, ...]:
    return (
        _draw(*lead, N, dtype=dtype),
        _draw(M, N, dtype=dtype, seed=1),
        _draw(M, dtype=dtype, seed=2),
        _draw(R, N, dtype=dtype, seed=3),
        laid_out(_draw(M, R, dtype=dtype, seed=4)),
    )


def _dense(x: Tensor, W0: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    return nn.functional.linear(x, W0 + SCALING * B @ A, bias)


def _train(trained: str, *, x: Tensor, A: Tensor, B: Tensor) -> None:
    for letter, tensor in (("x", x), ("A", A), ("B", B)):
        tensor.requires_grad_(letter in trained)


# Sums of at most N + R + 1 = 9 products of numbers below 5 in float64: 9 * 25 * 1.1e-16, with room.
EXACT = {"rtol": 0.0, "atol": 1e-13}


@EVERY_ORDER
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("trained", ["A", "B", "AB", "xA", "xB", "xAB", "x"])
def test_gradients_of_every_order_are_those_of_finite_differences(
    use: Callable[[Order], None], order: Order, bias: bool, trained: str
) -> None:
    use(order)
    x, W0, b, A, B = _case(lead=(3,))
    _train(trained, x=x, A=A, B=B)
    offset = b if bias else None
    moved = [t for t in (x, A, B) if t.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: adapted_linear(x, W0, offset, A, B, scaling=SCALING), moved)
    gradients = torch.autograd.grad(adapted_linear(x, W0, offset, A, B, scaling=SCALING).sin().sum(), moved)
    wanted = torch.autograd.grad(_dense(x, W0, offset, A, B).sin().sum(), moved)
    for gradient, dense in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, dense, **EXACT)


@pytest.mark.parametrize("trained", ["A", "B", "AB", "xA", "xB", "xAB", "x"])
@pytest.mark.parametrize("own_base", [True, False], ids=["dense base", "given output"])
def test_gradients_under_dropout_are_those_of_finite_differences(trained: str, own_base: bool) -> None:
    x, W0, bias, A, B = _case(lead=(3,))
    out = _draw(3, M).requires_grad_()
    _train(trained, x=x, A=A, B=B)

    def product(*_: Tensor) -> Tensor:
        torch.manual_seed(7)  # one mask for every evaluation
        if own_base:
            return adapted_linear(x, W0, bias, A, B, scaling=SCALING, dropout=0.4)
        return add_low_rank(out, x, A, B, scaling=SCALING, dropout=0.4)

    moved = [t for t in (x, A, B) if t.requires_grad] + ([] if own_base else [out])
    assert torch.autograd.gradcheck(product, moved)


@pytest.mark.parametrize("trained", ["A", "B", "xAB"])
def test_gradients_with_a_given_output_are_those_of_finite_differences(trained: str) -> None:
    x, _, _, A, B = _case(lead=(2, 3))
    out = _draw(2, 3, M).requires_grad_()
    _train(trained, x=x, A=A, B=B)
    moved = [out, *(t for t in (x, A, B) if t.requires_grad)]
    assert torch.autograd.gradcheck(lambda *_: add_low_rank(out, x, A, B, scaling=SCALING), moved)


@EVERY_ORDER
@pytest.mark.parametrize("lead", [(), (5,), (3, 5), (2, 3, 5), (0,), (2, 0), (1,)], ids=str)
def test_inputs_of_any_number_of_axes_and_empty_batches(
    use: Callable[[Order], None], order: Order, lead: tuple[int, ...]
) -> None:
    use(order)
    x, W0, bias, A, B = _case(lead=lead)
    _train("xAB", x=x, A=A, B=B)
    for out in (
        adapted_linear(x, W0, bias, A, B, scaling=SCALING),
        add_low_rank(nn.functional.linear(x, W0, bias), x, A, B, scaling=SCALING),
    ):
        assert out.shape == (*lead, M)
        torch.testing.assert_close(out, _dense(x, W0, bias, A, B), **EXACT)
        gradients = torch.autograd.grad(out.sum(), (x, A, B))
        wanted = torch.autograd.grad(_dense(x, W0, bias, A, B).sum(), (x, A, B))
        for gradient, dense in zip(gradients, wanted, strict=True):
            assert gradient.shape == dense.shape
            torch.testing.assert_close(gradient, dense, **EXACT)


@EVERY_ORDER
def test_tensors_that_are_not_contiguous(use: Callable[[Order], None], order: Order) -> None:
    use(order)
    x, W0, bias, A, B = _case(lead=(4, 6))
    views = (
        x[::2, 1::2],
        x.transpose(0, 1),
        x.unsqueeze(2).expand(4, 6, 3, N),
        x.flip(0).as_strided((3, 4, N), (N, 3 * N, 1)),
    )
    for view in views:
        for weight in (W0, W0.t().contiguous().t(), W0.repeat(2, 2)[::2, :N]):  # the second is Conv1D's
            for up in (B, B.contiguous()):
                A.requires_grad_(), up.requires_grad_()
                out = adapted_linear(view, weight, bias, A, up, scaling=SCALING)
                torch.testing.assert_close(out, _dense(view, weight, bias, A, up), **EXACT)
                gradients = torch.autograd.grad(out.sin().sum(), (A, up))
                wanted = torch.autograd.grad(_dense(view, weight, bias, A, up).sin().sum(), (A, up))
                for gradient, dense in zip(gradients, wanted, strict=True):
                    torch.testing.assert_close(gradient, dense, rtol=0, atol=1e-12)  # 72 tokens


@EVERY_ORDER
@pytest.mark.parametrize("trained", ["B", "AB"])
def test_gradients_that_are_broadcast_views(use: Callable[[Order], None], order: Order, trained: str) -> None:
    # sum() hands a gradient of stride 0 down.
    use(order)
    x, W0, bias, A, B = _case()
    _train("x" + trained, x=x, A=A, B=B)
    moved = [t for t in (x, A, B) if t.requires_grad]
    gradients = torch.autograd.grad(adapted_linear(x, W0, bias, A, B, scaling=SCALING).sum(), moved)
    wanted = torch.autograd.grad(_dense(x, W0, bias, A, B).sum(), moved)
    for gradient, dense in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, dense, **EXACT)


@EVERY_ORDER
def test_first_derivatives_by_autograd_grad_and_twice_over_one_graph(
    use: Callable[[Order], None], order: Order
) -> None:
    use(order)
    x, W0, bias, A, B = _case()
    _train("xAB", x=x, A=A, B=B)
    loss = adapted_linear(x, W0, bias, A, B, scaling=SCALING).square().sum()
    first = torch.autograd.grad(loss, (x, A, B), retain_graph=True)
    again = torch.autograd.grad(loss, (x, A, B))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_product_on_a_given_output_is_the_dense_formula() -> None:
    x, W0, bias, A, B = _case()
    out = nn.functional.linear(x, W0, bias)
    wanted = _dense(x, W0, bias, A, B)
    code = code_of(x, A)
    for given in (
        add_low_rank(out, x, A, B, scaling=SCALING),
        add_low_rank(out, x, A, B, scaling=SCALING, code=code),
        add_low_rank_plain(out, x, A, B, scaling=SCALING),
        adapted_linear(x, W0, bias, A, B, scaling=SCALING, code=code),
    ):
        torch.testing.assert_close(given, wanted, **EXACT)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_given_output_is_not_written_to(dtype: torch.dtype, dropout: float) -> None:
    x, W0, bias, A, B = _case(dtype)
    out = nn.functional.linear(x, W0, bias)
    before, version = out.clone(), out._version
    for factors in ((A, B), (A.float(), laid_out(B.float()))):
        factors[1].requires_grad_()
        result = add_low_rank(out, x, *factors, scaling=SCALING, dropout=dropout)
        result.detach().zero_()
        assert torch.equal(out, before)
        assert out._version == version


@EVERY_ORDER
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_no_argument_is_written_to(use: Callable[[Order], None], order: Order, dropout: float) -> None:
    use(order)
    given = _case()
    before = [t.clone() for t in given]
    x, W0, bias, A, B = given
    _train("xAB", x=x, A=A, B=B)
    adapted_linear(x, W0, bias, A, B, scaling=SCALING, dropout=dropout).sum().backward()
    assert all(torch.equal(t, was) for t, was in zip(given, before, strict=True))


# What is kept for backward, in bytes.

CODE = {dtype: T * R * dtype.itemsize for dtype in (torch.float64, torch.float32, torch.bfloat16)}
BITS = math.ceil(T * N / 8)


def _kept(product: Callable[..., Tensor], given: tuple[Tensor, ...], trained: str, **fields: Any) -> dict[str, int]:
    x, W0, bias, A, B = given
    _train(trained, x=x, A=A, B=B)
    named = {"x": x, "W0": W0, "bias": bias, "A": A, "B": B}
    return kept_for_backward(lambda: product(*given, scaling=SCALING, **fields), owned=(W0, bias, A, B), named=named)


def _given_output(x: Tensor, W0: Tensor, bias: Tensor, A: Tensor, B: Tensor, **fields: Any) -> Tensor:
    with torch.no_grad():
        out = nn.functional.linear(x, W0, bias)
    return add_low_rank(out, x, A, B, **fields)


PRODUCTS = pytest.mark.parametrize("product", [adapted_linear, _given_output], ids=["dense base", "given output"])


@EVERY_ORDER
@PRODUCTS
@pytest.mark.parametrize("input_grad", ["x", ""], ids=["input with gradient", "without"])
def test_kept_without_dropout(
    use: Callable[[Order], None], order: Order, product: Callable[..., Tensor], input_grad: str
) -> None:
    use(order)
    for dtype in (torch.float32, torch.float64):
        whole_x = T * N * dtype.itemsize
        given = _case(dtype)
        assert _kept(product, given, input_grad + "B") == {"other": CODE[dtype]}
        assert _kept(product, given, input_grad + "A") == {"x": whole_x}
        assert _kept(product, given, input_grad + "AB") == {"x": whole_x, "other": CODE[dtype]}


@PRODUCTS
@pytest.mark.parametrize("input_grad", ["x", ""], ids=["input with gradient", "without"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_with_dropout_is_one_bit_a_value_more(
    product: Callable[..., Tensor], input_grad: str, dtype: torch.dtype
) -> None:
    x, W0, bias, A, B = _case(dtype)
    given = (x, W0, bias, A.float(), laid_out(B.float()))
    whole_x, code = T * N * dtype.itemsize, CODE[torch.float32]
    # The gradient of B alone needs no bits.
    bits = {"": 0, "x": BITS}[input_grad]
    assert _kept(product, given, input_grad + "B", dropout=0.3) == {"other": code + bits}
    assert _kept(product, given, input_grad + "A", dropout=0.3) == {"x": whole_x, "other": BITS}
    assert _kept(product, given, input_grad + "AB", dropout=0.3) == {"x": whole_x, "other": code + BITS}


@PRODUCTS
@pytest.mark.parametrize("input_grad", ["x", ""], ids=["input with gradient", "without"])
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16], ids=str)
def test_kept_with_a_bfloat16_base_holds_no_float32_copy_of_the_input(
    product: Callable[..., Tensor], input_grad: str, factors: torch.dtype
) -> None:
    x, W0, bias, A, B = _case(torch.bfloat16)
    given = (x, W0, bias, A.to(factors), laid_out(B.to(factors)))
    whole_x = T * N * 2
    assert _kept(product, given, input_grad + "B") == {"other": CODE[torch.float32]}
    assert _kept(product, given, input_grad + "A") == {"x": whole_x}
    assert _kept(product, given, input_grad + "AB") == {"x": whole_x, "other": CODE[torch.float32]}


def test_the_count_sees_a_copy_of_the_input() -> None:
    # The control: what PEFT does with a bfloat16 base.
    x, _, _, A, _ = _case(torch.bfloat16)
    A = A.float().requires_grad_()
    kept = kept_for_backward(lambda: nn.functional.linear(x.float(), A), owned=(A,), named={"x": x})
    assert kept == {"other": T * N * 4}


@EVERY_ORDER
def test_without_a_gradient_nothing_is_kept(use: Callable[[Order], None], order: Order) -> None:
    use(order)
    given = _case()
    for dropout in (0.0, 0.3):
        with torch.no_grad():
            assert _kept(adapted_linear, given, "xAB", dropout=dropout) == {}
        assert _kept(adapted_linear, given, "", dropout=dropout) == {}


def test_B_is_laid_out_as_its_transpose_and_not_copied_for_the_product() -> None:
    x, W0, bias, A, B = _case(torch.float32)
    assert B.stride() == (1, M)
    assert laid_out(B.contiguous()).equal(B)
    _train("xB", x=x, A=A, B=B)
    out = adapted_linear(x, W0, bias, A, B, scaling=SCALING)
    out.sum().backward()
    assert B.grad is not None
    assert B.grad.stride() == B.stride()


# Second derivatives.


@pytest.mark.parametrize("product", [adapted_linear, _given_output], ids=["dense base", "given output"])
def test_second_derivatives_of_the_low_rank_path_are_right(
    use: Callable[[Order], None], product: Callable[..., Tensor]
) -> None:
    use(Order())
    given = _case(lead=(3,))
    x, _, _, A, B = given
    _train("xAB" if product is adapted_linear else "AB", x=x, A=A, B=B)
    moved = [t for t in (x, A, B) if t.requires_grad]
    assert torch.autograd.gradgradcheck(lambda *_: product(*given, scaling=SCALING), moved)


@pytest.mark.parametrize("order", [o for o in ORDERS if o.folds_forward or o.folds_backward], ids=str)
def test_second_derivatives_of_the_folded_product_say_what_to_do(use: Callable[[Order], None], order: Order) -> None:
    use(order)
    x, W0, bias, A, B = _case()
    _train("xAB", x=x, A=A, B=B)
    loss = adapted_linear(x, W0, bias, A, B, scaling=SCALING).square().sum()
    with pytest.raises(RuntimeError, match=r"no second derivative.*asymlora\.unfused\(model\)"):
        torch.autograd.grad(loss, (x, A, B), create_graph=True)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_plain_product_is_differentiable_twice(dropout: float) -> None:
    x, W0, bias, A, B = _case(lead=(3,))
    _train("xAB", x=x, A=A, B=B)

    def plain(*_: Tensor) -> Tensor:
        torch.manual_seed(3)
        out = nn.functional.linear(x, W0, bias)
        return add_low_rank_plain(out, x, A, B, scaling=SCALING, dropout=dropout)

    assert torch.autograd.gradcheck(plain, (x, A, B))
    assert torch.autograd.gradgradcheck(plain, (x, A, B))


# Types.


@pytest.mark.parametrize("base", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factors", [torch.float16, torch.bfloat16, torch.float32])
@PRODUCTS
def test_the_output_has_the_dtype_of_the_base_and_gradients_that_of_their_factor(
    product: Callable[..., Tensor], base: torch.dtype, factors: torch.dtype
) -> None:
    x, W0, bias, A, B = _case(base)
    A, B = A.to(factors), laid_out(B.to(factors))
    _train("xAB", x=x, A=A, B=B)
    out = product(x, W0, bias, A, B, scaling=2.0)
    assert out.dtype == base
    out.float().sum().backward()
    assert [t.grad.dtype for t in (x, A, B) if t.grad is not None] == [base, factors, factors]


@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 1100])
def test_a_cast_input_is_read_in_tiles_and_none_is_left_out(tokens: int) -> None:
    x, W0, bias, A, B = _case(torch.bfloat16, lead=(tokens,))
    A, B = A.float(), laid_out(B.float())
    _train("xAB", x=x, A=A, B=B)
    out = adapted_linear(x, W0, bias, A, B, scaling=SCALING)
    wide = [t.detach().double().requires_grad_() for t in (x, A, B)]
    wanted = _dense(wide[0], W0.double(), bias.double(), wide[1], wide[2])
    # Two roundings to bfloat16 (the base product, the sum), values below 40: 2 * 40 * 2**-9.
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=0.16)
    weights = _draw(tokens, M).bfloat16()
    out.backward(weights)
    wanted.backward(weights.double())
    # Sums in float32 over the tokens: 1100 * 2**-24 of sums of absolute values below 1100 * 20.
    for gradient, dense in ((A.grad, wide[1].grad), (B.grad, wide[2].grad)):
        assert gradient is not None
        assert dense is not None
        torch.testing.assert_close(gradient.double(), dense, rtol=1e-4, atol=1e-3 * tokens**0.5)


def test_the_order_is_asked_for_by_shape_and_only_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(asymlora.ops, "choose_order", lambda *shape: (asked.append(shape), Order(True))[1])
    x, W0, bias, A, B = _case(torch.float32)
    A.requires_grad_()
    adapted_linear(x, W0, bias, A, B, scaling=SCALING)
    costs = TORCH_COSTS if kernel() is None else KERNEL_COSTS
    assert asked == [(T, N, M, R, True, False, costs)]
    narrow = _case(torch.bfloat16)
    adapted_linear(*narrow, scaling=SCALING)
    adapted_linear(narrow[0], narrow[1], narrow[2], A, B, scaling=SCALING)
    adapted_linear(x, W0, bias, A, B, scaling=SCALING, dropout=0.1)
    adapted_linear(*(t.to("meta") for t in (x, W0, bias, A, B)), scaling=SCALING)
    assert len(asked) == 1


@PRODUCTS
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_shapes_without_values(product: Callable[..., Tensor], dropout: float, factors: torch.dtype) -> None:
    x, W0, bias, A, B = (t.to("meta") for t in _case(torch.float32))
    A, B = A.to(factors), B.to(factors)
    _train("xAB", x=x, A=A, B=B)
    out = product(x, W0, bias, A, B, scaling=SCALING, dropout=dropout)
    assert (out.shape, out.device.type) == ((3, 5, M), "meta")
    out.sum().backward()
    assert [t.grad.shape for t in (x, A, B) if t.grad is not None] == [x.shape, A.shape, B.shape]


# Merging.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_merged_weight_is_the_float64_value_rounded_once(dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    W0 = torch.randn(2500, 33, generator=generator, dtype=torch.float64).to(dtype)
    A = torch.randn(5, 33, generator=generator) * size
    B = torch.randn(2500, 5, generator=generator)
    exact = W0.double() + 0.7 * (B.double() @ A.double())
    merged = merged_weight(W0, A, B, scaling=0.7)
    assert merged.dtype == dtype
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    assert ((merged.double() - exact).abs() <= unit).all()


def test_a_float32_product_would_not_be_within_one_unit() -> None:
    # The control: the same bound fails where the sum is formed in float32 (cancelling terms).
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(64, 33, generator=generator)
    B = torch.randn(2500, 64, generator=generator)
    W0 = -(B @ A) * 0.7 + 1e-3 * torch.randn(2500, 33, generator=generator)
    exact = W0.double() + 0.7 * (B.double() @ A.double())
    unit = torch.finfo(torch.float32).eps * exact.abs()
    assert ((W0 + 0.7 * (B @ A)).double() - exact).abs().gt(unit).any()
    assert (merged_weight(W0, A, B, scaling=0.7).double() - exact).abs().le(unit).all()


def test_the_rounding_error_is_that_of_the_whole_matrices() -> None:
    W0, A, B = _draw(2500, 8, dtype=torch.bfloat16), _draw(2, 8) * 1e-3, _draw(2500, 2)
    B[:700] = 0
    merged = merged_weight(W0, A, B, scaling=0.7)
    delta_W = 0.7 * B @ A
    gap = merged.double() - (W0.double() + delta_W)
    lost = ((merged == W0) & (delta_W != 0)).double().mean().item()
    assert lost > 0.3
    wanted = (gap.abs().max().item(), (gap.norm() / delta_W.norm()).item(), lost)
    assert rounding_error(W0, merged, A, B, scaling=0.7) == pytest.approx(wanted, rel=1e-12)
    nothing = torch.zeros_like(B)
    assert rounding_error(W0, W0, A, nothing, scaling=0.7) == (0.0, 0.0, 0.0)
