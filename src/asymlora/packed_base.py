"""Four-bit base layers that stay trainable through: what bitsandbytes does to them at inference is undone."""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_trainable(model: nn.Module) -> None:
    """Keep the 4-bit layers of a model in the layout through which gradients flow, in place.

    On processors with AVX-512 BF16, bitsandbytes (0.50.2, read in its code) lays such a layer out anew at its first
    forward pass in evaluation mode, for a kernel that multiplies in bfloat16 and has no gradient: a model that was
    evaluated once could not be trained after that. The scales, which it has rounded to bfloat16 then, stay rounded.
    Elsewhere, and for other layers, nothing changes.

    Args:
        model: The model; every layer counts, as gradients flow through those without an adapter too.
    """
    for module in model.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        layer: Any = module
        layer.support_avx512bf16_for_cpu = False
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            layer.state_dict()  # lays it out for a file again, and in place
