from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import asymlora as al
from cases import fill_factors

WIDTHS = st.integers(1, 12)


class Case(NamedTuple):
    """A base layer, an input for it, and a rank that fits."""

    base: nn.Module
    x: Tensor
    rank: int


@st.composite
def dense(draw: st.DrawFn) -> Case:
    """A dense layer in either form."""
    n, m, bias = draw(WIDTHS), draw(WIDTHS), draw(st.booleans())
    base = Conv1D(m, n) if draw(st.booleans()) else nn.Linear(n, m, bias=bias)
    x = torch.randn(*draw(st.lists(st.integers(0, 4), max_size=3)), n, dtype=torch.float64)
    return Case(base, x, draw(st.integers(1, min(n, m))))


@st.composite
def embeddings(draw: st.DrawFn) -> Case:
    """An embedding and some of its entries."""
    entries, dim = draw(WIDTHS), draw(WIDTHS)
    padding = draw(st.none() | st.integers(0, entries - 1))
    ids = torch.tensor(draw(st.lists(st.integers(0, entries - 1), max_size=6)), dtype=torch.long)
    return Case(nn.Embedding(entries, dim, padding_idx=padding), ids, draw(st.integers(1, min(entries, dim))))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """A convolution of one to three axes, in one group."""
    axes, channels, m = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    fields = {name: draw(st.integers(*bounds)) for name, bounds in (("stride", (1, 3)), ("dilation", (1, 2)))}
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    base = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](channels, m, kernel, padding=draw(st.integers(0, 2)), **fields)  # pyright: ignore[reportArgumentType]
    fan_in = channels * torch.Size(kernel).numel()
    x = torch.randn(2, channels, *(draw(st.integers(5, 7)) for _ in range(axes)), dtype=torch.float64)
    return Case(base, x, draw(st.integers(1, min(fan_in, m))))


def _fields(rank: int) -> dict[str, Any]:
    return {"rank": rank, "targets": ("0",)}


@given(case=dense() | embeddings() | convolutions(), preset=st.sampled_from(["lora", "init_b", "b_only", "a_only"]))
def test_attach_merge_and_detach_agree_for_every_layer(case: Case, preset: str) -> None:
    model = nn.Sequential(case.base).double()
    before, bits = model(case.x), {name: value.clone() for name, value in model.state_dict().items()}
    al.attach(model, al.AdapterSpec.parse(preset, **_fields(case.rank)))
    assert torch.equal(model(case.x), before)
    fill_factors(model)
    adapted = model(case.x)
    with al.merged(model):
        # Float64, sums of at most 108 + 6 products of order one.
        torch.testing.assert_close(model(case.x), adapted, rtol=1e-12, atol=1e-12)
    assert torch.equal(model(case.x), adapted)
    al.detach(model)
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())
    al.attach(model, al.AdapterSpec.parse(preset, **_fields(case.rank)))
    fill_factors(model)
    torch.testing.assert_close(al.merge(model)(case.x), adapted, rtol=1e-12, atol=1e-12)
