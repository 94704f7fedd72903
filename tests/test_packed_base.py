from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.packed_base import keep_trainable


def _packed(width: int) -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(width, width, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(width, width), requires_grad=False, quant_type="nf4").to("cpu")
    return layer


def _input_gradient(model: nn.Module) -> torch.Tensor:
    given = torch.ones(4, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(given).square().sum(), given)
    return gradient


def test_a_model_that_was_evaluated_has_the_gradients_of_one_that_was_not() -> None:
    model = nn.Sequential(_packed(64), nn.Tanh(), _packed(64))
    expected = _input_gradient(model.train())
    weights = [model[0].weight.clone(), model[2].weight.clone()]
    with torch.no_grad():
        model.eval()(torch.ones(4, 64))  # where the processor has AVX-512 BF16, the layers are laid out anew here
    keep_trainable(model)
    found = _input_gradient(model)
    # The other layout holds its scales in bfloat16, which are not got back.
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01 * expected.abs().max().item())
    assert all(torch.equal(model[i].weight, weight) for i, weight in zip((0, 2), weights, strict=True))
    with torch.no_grad():
        model(torch.ones(4, 64))
    assert torch.equal(_input_gradient(model.train()), found)


def test_a_model_that_is_kept_from_it_before_is_the_same_bit_for_bit() -> None:
    model = nn.Sequential(_packed(64), nn.Tanh(), _packed(64))
    expected = _input_gradient(model.train())
    keep_trainable(model)
    with torch.no_grad():
        model.eval()(torch.ones(4, 64))
    assert torch.equal(_input_gradient(model), expected)


def test_an_adapter_put_on_an_evaluated_model_trains_through_it() -> None:
    model = nn.Sequential(_packed(64), nn.Tanh(), _packed(64))
    with torch.no_grad():
        model.eval()(torch.ones(4, 64))
    al.attach(model, al.AdapterSpec.b_only(rank=4, targets=("0",)))
    model(torch.ones(4, 64)).square().sum().backward()
    (site,) = al.sites(model)
    assert site.B.grad is not None
    assert site.B.grad.abs().sum() > 0


def test_other_layers_are_left_alone() -> None:
    model = nn.Linear(4, 4)
    before = dict(model.__dict__)
    keep_trainable(model)
    assert dict(model.__dict__) == before
