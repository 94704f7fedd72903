"""What each op keeps, held to torch's own op of the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor, nn
from transformers.activations import ACT2FN

from asymlora.cpu_kernel import kernel
from asymlora.ops import adapted_linear
from asymlora.theory.cost import AdaptedLayer
from asymlora.theory.tape import ACTIVATION_KEEPS, Storage, Tape
from kept_bytes import kept_for_backward

ROWS, WIDTH = 7, 12


def _kept(op: Callable[[Tensor], Any], dtype: torch.dtype = torch.float32, *, owned: tuple[Tensor, ...] = ()) -> int:
    x = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    return sum(kept_for_backward(lambda: op(x), owned=owned).values())


def _given(tape: Tape, itemsize: int = 4) -> Storage:
    return tape.given("x", ROWS * WIDTH, itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATION_KEEPS)
def test_activations_keep_what_torch_keeps(name: str, dtype: torch.dtype) -> None:
    tape = Tape()
    tape.activation(_given(tape, dtype.itemsize), name)
    assert tape.saved_bytes() == _kept(ACT2FN[name], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trains_gain", [False, True])
def test_layer_norm_keeps_what_torch_keeps(dtype: torch.dtype, trains_gain: bool) -> None:
    norm = nn.LayerNorm(WIDTH).to(dtype).requires_grad_(trains_gain)
    tape = Tape()
    tape.layer_norm(_given(tape, dtype.itemsize), rows=ROWS, trains_gain=trains_gain)
    assert tape.saved_bytes() == _kept(norm, dtype, owned=tuple(norm.parameters()))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_what_torch_keeps(p: float, dtype: torch.dtype) -> None:
    tape = Tape()
    tape.dropout(_given(tape, dtype.itemsize), p)
    assert tape.saved_bytes() == _kept(lambda x: F.dropout(x, p), dtype)


@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True), (False, False)])
def test_products_keep_what_the_other_side_needs(grads: tuple[bool, bool]) -> None:
    sides = [torch.randn(5, 5, requires_grad=grad) for grad in grads]
    tape = Tape()
    given = [tape.given("side", 25, 4, grad=grad) for grad in grads]
    tape.product("product", given[0], given[1])
    assert tape.saved_bytes() == sum(kept_for_backward(lambda: sides[0] @ sides[1]).values())


@pytest.mark.parametrize("trains_A", [True, False])
@pytest.mark.parametrize("trains_B", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("part", ["all", "half of each row", "one row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapted_layer_keeps_what_it_is_said_to(
    trains_A: bool, trains_B: bool, dropout: float, part: str, dtype: torch.dtype
) -> None:
    rows, width = {"all": (ROWS, WIDTH), "half of each row": (ROWS, WIDTH // 2), "one row": (1, WIDTH)}[part]
    weight, A = torch.randn(9, width, dtype=dtype), torch.randn(3, width).requires_grad_(trains_A)
    B = torch.randn(3, 9).t().requires_grad_(trains_B)  # laid out along its rows

    def run(x: Tensor) -> Tensor:
        return adapted_linear(x[:rows, :width], weight, None, A, B, scaling=2.0, dropout=dropout)

    tape = Tape(kernel=kernel() is not None)
    x = _given(tape, dtype.itemsize)
    read = x if part == "all" else tape.view("part", x, rows * width)
    layer = AdaptedLayer(fan_in=width, fan_out=9, rank=3, trains_A=trains_A, trains_B=trains_B, dropout=dropout)
    tape.linear(read, layer, rows=rows)
    assert tape.saved_bytes() == _kept(run, dtype, owned=(weight, A, B))


def test_other_devices_keep_masks_of_bytes_and_a_seed() -> None:
    tape = Tape(on_cpu=False)
    tape.dropout(_given(tape, 2), 0.1)
    assert tape.saved_bytes() == ROWS * WIDTH
    tape = Tape(on_cpu=False)
    layer = AdaptedLayer(fan_in=WIDTH, fan_out=9, rank=3, trains_A=False, dropout=0.1)
    tape.linear(_given(tape, 2), layer, rows=ROWS)
    assert tape.saved_bytes() == 8 + ROWS * 3 * 2


def test_a_storage_that_two_ops_keep_counts_once() -> None:
    tape = Tape()
    x = _given(tape)
    for _ in range(2):
        tape.op("y", (x,), kept=(x,))
    assert [str(storage) for storage in tape.saved()] == [f"x[{ROWS * WIDTH} x 4]"]
    assert tape.saved_bytes() == 4 * ROWS * WIDTH
