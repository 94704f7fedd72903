from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from asymlora.layers import LinearAdapter


def _layer(*, trains_A: bool = True, trains_B: bool = True, dropout: float = 0.0) -> LinearAdapter:
    torch.manual_seed(0)
    A, B = torch.randn(2, 6), torch.randn(4, 2)
    return LinearAdapter(nn.Linear(6, 4), A=A, B=B, scaling=0.5, dropout=dropout, trains_A=trains_A, trains_B=trains_B)


def test_frozen_factor_is_a_buffer_and_no_parameter() -> None:
    layer = _layer(trains_A=False)
    assert [n for n, _ in layer.named_parameters(recurse=False)] == ["lora_B"]
    assert [n for n, _ in layer.named_buffers(recurse=False)] == ["lora_A"]
    assert "lora_A" in layer.state_dict()


@pytest.mark.parametrize("call", [nn.Module.train, nn.Module.eval, lambda m: m.requires_grad_(True), nn.Module.half])
def test_no_call_on_the_module_thaws_a_frozen_factor(call: object) -> None:
    layer = _layer(trains_A=False)
    call(layer)  # pyright: ignore[reportCallIssue]
    assert not layer.lora_A.requires_grad
    assert "lora_A" not in dict(layer.named_parameters())


def test_adds_the_scaled_product_to_the_base() -> None:
    layer, x = _layer().double(), torch.randn(3, 6, dtype=torch.float64)
    expected = layer.base_layer(x) + 0.5 * x @ (layer.lora_B @ layer.lora_A).T
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-14)


def test_switched_off_gives_the_base_bit_for_bit() -> None:
    layer, x = _layer(), torch.randn(3, 6)
    layer.enabled = False
    assert torch.equal(layer(x), layer.base_layer(x))


def test_dropout_acts_in_training_only_and_on_the_branch_only() -> None:
    layer, x = _layer(dropout=0.5), torch.randn(64, 6)
    assert torch.equal(layer.eval()(x), layer(x))
    torch.manual_seed(1)
    dropped = layer.train()(x)
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones_like(x), 0.5, True)
    expected = layer.base_layer(x) + 0.5 * (x * mask) @ (layer.lora_B @ layer.lora_A).T
    assert torch.allclose(dropped, expected, atol=1e-5)
    assert not torch.allclose(dropped, layer.eval()(x), atol=1e-3)


def test_copies_and_pickles_compute_the_same() -> None:
    layer, x = _layer(trains_A=False), torch.randn(3, 6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert other.lora_A.data_ptr() != layer.lora_A.data_ptr()


def test_shows_what_is_frozen() -> None:
    assert "rank=2, scaling=0.5, frozen=A" in repr(_layer(trains_A=False))
    assert "frozen" not in repr(_layer())


def test_state_dict_has_the_names_of_the_base_and_loads_back_also_under_the_held_ones() -> None:
    layer, other = _layer(trains_A=False), _layer()
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    assert set(state) == {"weight", "bias", "lora_A", "lora_B"}
    held = {f"base_layer.{n}" if n in ("weight", "bias") else n: value for n, value in state.items()}
    for given in (state, held):
        other = _layer()
        other.load_state_dict(given, strict=True)
        assert torch.equal(other.base_layer.weight, state["weight"])
        assert torch.equal(other.lora_A, state["lora_A"])
    nested = nn.Sequential(nn.Sequential(_layer()))
    assert set(nested.state_dict()) == {f"0.0.{name}" for name in state}
    nested.load_state_dict({f"0.0.{name}": value for name, value in state.items()}, strict=True)
    assert torch.equal(nested[0][0].base_layer.bias, state["bias"])
