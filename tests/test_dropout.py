from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asymlora.dropout import drop, drop_again, drop_by_bits, dropout_bits, dropped, kept_fraction
from devices import DEVICES
from kept_bytes import kept_for_backward

SIZES = pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 7), (3, 5), (8, 8), (37, 11)], ids=str)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _mask(count: int, p: float, *, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return drop(torch.ones(1, count), p)[0].flatten() != 0


@pytest.mark.parametrize("p", [2**-17 + 1e-9, 2**-16, 0.1, 1 / 3, 0.5, 0.9, 1 - 2**-16, 0.9999999])
def test_the_rate_is_exact_to_a_65536th(monkeypatch: pytest.MonkeyPatch, p: float) -> None:
    # Every one of the 2**16 equally likely words once.
    words = torch.arange(-(2**15), 2**15).to(torch.int16)
    monkeypatch.setattr(Tensor, "random_", lambda self, *_: self.view(torch.int16).copy_(words).view(torch.int64))
    kept = int((drop(torch.ones(256, 256), p)[0] != 0).sum())
    assert kept == 65536 * kept_fraction(p)
    assert abs(kept / 65536 - (1 - p)) <= 2**-16
    assert kept >= 1


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_draw_has_the_rate(p: float) -> None:
    # 2**20 independent values: 5 standard deviations, failure probability 6e-7.
    count, q = 2**20, kept_fraction(p)
    assert abs(int(_mask(count, p).sum()) - count * q) <= 5 * math.sqrt(count * q * (1 - q))


def test_values_are_dropped_independently_of_their_neighbours() -> None:
    # Four values come from one word of 64 bits, eight go into a byte. The product of centred masks has mean 0 and
    # deviation 1/sqrt(count); 5 of them, at ten distances: failure probability 6e-6.
    mask = _mask(2**20, 0.5).double() * 2 - 1
    for distance in (1, 2, 3, 4, 5, 7, 8, 16, 64, 1024):
        assert (mask[distance:] * mask[:-distance]).mean().abs() <= 5 / math.sqrt(len(mask) - distance)


def test_the_expectation_is_the_input() -> None:
    x = torch.linspace(-2, 2, 16, dtype=torch.float64).expand(1, -1)
    torch.manual_seed(0)
    mean = drop(x.expand(2**15, -1), 0.3)[0].mean(0)
    # Deviation |x| sqrt(p/(1-p)/draws) <= 2 * 0.0036; 6 of them.
    torch.testing.assert_close(mean, x[0], rtol=0, atol=6 * 2 * math.sqrt(0.3 / 0.7 / 2**15))
    scale = drop(torch.ones(64, 64, dtype=torch.float64), 0.3)[0].max().item()
    assert scale * kept_fraction(0.3) == pytest.approx(1.0, abs=1e-15)


@SIZES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_state_drops_the_same_entries_again_exactly(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    first, state = drop(x, 0.4)
    assert first.dtype == dtype
    assert torch.equal(drop_again(x, state, 0.4), first)
    assert (state.dtype, state.numel()) == (torch.uint8, math.ceil(x.numel() / 8))
    # Entries that are kept are scaled, the others are zero.
    kept = first != 0
    torch.testing.assert_close(first[kept], x[kept] / kept_fraction(0.4), rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_torchs_seed_decides_the_mask() -> None:
    assert torch.equal(_mask(1000, 0.3, seed=5), _mask(1000, 0.3, seed=5))
    assert not torch.equal(_mask(1000, 0.3, seed=5), _mask(1000, 0.3, seed=6))
    torch.manual_seed(5)
    drop(torch.ones(1, 1000), 0.3)
    assert not torch.equal(drop(torch.ones(1, 1000), 0.3)[0].flatten() != 0, _mask(1000, 0.3, seed=5))


def test_the_input_is_neither_changed_nor_returned() -> None:
    x = torch.randn(4, 6)
    before = x.clone()
    result, state = drop(x, 1e-9)  # rounds to no dropout at all
    assert torch.equal(result, before)
    result.zero_()
    drop_again(x, state, 1e-9).zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_dropped_as_torch_drops_it(bad: float) -> None:
    x = torch.full((1, 512), bad)
    ours, torchs = drop(x, 0.5)[0], torch.nn.functional.dropout(x, 0.5)
    assert not ours.isfinite().any()
    assert not torchs.isfinite().any()


@SIZES
def test_the_differentiable_form_keeps_the_bits_alone(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, requires_grad=True)
    assert kept_for_backward(lambda: dropped(x, 0.4), named={"x": x}).get("other", 0) == math.ceil(x.numel() / 8)
    assert "x" not in kept_for_backward(lambda: dropped(x, 0.4), named={"x": x})
    torch.manual_seed(1)
    out = dropped(x, 0.4)
    torch.manual_seed(1)
    assert torch.equal(out, drop(x.detach(), 0.4)[0])
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.manual_seed(1)
    assert torch.equal(gradient, drop(torch.ones(shape), 0.4)[0])


def test_the_differentiable_form_takes_any_shape_and_layout() -> None:
    for x in (torch.randn(7), torch.randn(2, 3, 4, 5), torch.randn(4, 6).t(), torch.randn(3, 1).expand(3, 5)):
        torch.manual_seed(0)
        out = dropped(x, 0.5)
        assert out.shape == x.shape
        kept = out != 0
        assert torch.equal(out[kept], (x * 2)[kept])


def test_the_operators_keep_torchs_rules() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    # The other checks compare two runs, and this one draws.
    torch.library.opcheck(dropout_bits, (x, 0.3), test_utils=("test_schema", "test_faketensor"))
    for layout in (x, torch.randn(4, 6).t().requires_grad_()):
        torch.library.opcheck(drop_by_bits, (layout, dropout_bits(layout, 0.3), 0.3))


@pytest.mark.parametrize("device", DEVICES)
def test_on_every_device_the_state_drops_the_same_entries_again(device: str) -> None:
    x = torch.randn(33, 65, device=device)
    torch.manual_seed(0)
    first, state = drop(x, 0.4)
    assert first.device.type == device
    assert torch.equal(drop_again(x, state, 0.4), first)
    torch.manual_seed(0)
    assert torch.equal(drop(x, 0.4)[0], first)
    assert 0.5 < (first != 0).float().mean().item() < 0.7
    assert state.nbytes <= max(8, math.ceil(x.numel() / 8))


def test_without_values_the_shape_is_kept() -> None:
    x = torch.empty(3, 5, device="meta")
    result, state = drop(x, 0.5)
    assert (result.shape, result.device.type) == ((3, 5), "meta")
    assert drop_again(x, state, 0.5).shape == (3, 5)
    assert dropped(x, 0.5).shape == (3, 5)
