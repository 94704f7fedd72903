"""Adapter layers: a held base layer plus one low-rank branch. What a whole model is made of is not known here."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor, nn

from asymlora.ops import add_low_rank


class LinearAdapter(nn.Module):
    """A held `nn.Linear` plus ``s * B A``; each factor is a parameter if trained and a buffer if frozen.

    A frozen factor is no parameter, so no optimizer, wrapper or context manager can thaw it, and it has no gradient.

    Args:
        base_layer: The layer to adapt, ``in -> out``. It is held, not copied, and its weights are not touched.
        A: Down factor, shape ``(rank, in)``.
        B: Up factor, shape ``(out, rank)``.
        scaling: The whole multiplier ``s`` on ``B A``.
        dropout: Fraction of the entries of the branch's input dropped in training, in [0, 1).
        trains_A: Whether ``A`` is a parameter.
        trains_B: Whether ``B`` is a parameter.
    """

    lora_A: Tensor
    lora_B: Tensor

    def __init__(
        self,
        base_layer: nn.Linear,
        *,
        A: Tensor,
        B: Tensor,
        scaling: float,
        dropout: float = 0.0,
        trains_A: bool = True,
        trains_B: bool = True,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaling = scaling
        self.dropout = dropout
        self.enabled = True
        for name, factor, trained in (("lora_A", A, trains_A), ("lora_B", B, trains_B)):
            if trained:
                self.register_parameter(name, nn.Parameter(factor))
            else:
                self.register_buffer(name, factor)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``base_layer(x) + s * dropout(x) A^T B^T``, shape ``(..., out)``."""
        out = self.base_layer(x)
        if not self.enabled:
            return out
        kept = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return add_low_rank(out, kept, self.lora_A, self.lora_B, scaling=self.scaling)

    # The base's tensors keep the names that they have without the adapter. A whole-model save of a parent that does not
    # know of the adapter then still loads as the base model, where `query.base_layer.weight` would leave
    # `query.weight` to be drawn at random.
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the tensors of base and factors, the base's under the names that they have without the adapter."""
        held = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for key in [key for key in held if key.startswith(f"{prefix}base_layer.")]:
            held[prefix + key.removeprefix(f"{prefix}base_layer.")] = held.pop(key)
        return held

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        own = tuple(prefix + name for name in ("lora_A", "lora_B", "base_layer."))
        for key in [key for key in state_dict if key.startswith(prefix) and not key.startswith(own)]:
            state_dict[f"{prefix}base_layer.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.lora_A.shape[0]

    # Model code reads these of the layer that it thinks it has (T5 the weight's dtype, for one).
    @property
    def weight(self) -> Tensor:
        """The base layer's weight, without the update, shape ``(out, in)``."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias, shape ``(out,)``, or None."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base_layer.out_features

    def extra_repr(self) -> str:
        """Return rank, scale and what is frozen, for printing the model."""
        frozen = [name[-1] for name, _ in self.named_buffers(recurse=False)]
        return f"rank={self.rank}, scaling={self.scaling:g}" + (f", frozen={'+'.join(frozen)}" if frozen else "")
