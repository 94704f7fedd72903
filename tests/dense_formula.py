"""What an adapter layer must give: its base called with the sum as its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from asymlora.layers import AdapterLayer


def dense_output(layer: AdapterLayer, x: Tensor) -> Tensor:
    """The base called with ``W0 + s B A``: autograd's own way through the sum."""
    base = layer.base_layer
    matrix = layer.matrix_of(base, base.weight)  # pyright: ignore[reportArgumentType]
    update = layer.scaling * layer.lora_B.flatten(1) @ layer.lora_A.flatten(1)
    return functional_call(base, {"weight": layer.weight_from(base, matrix + update)}, x)


def assert_rounding_only(ours: Any, dense: Any) -> None:
    """Float64, sums of at most some hundred products of order one."""
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
