"""The kinds of adapter layers besides the linear one, and which kind a base layer is.

A new kind is a new class and its row in `KINDS`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor, nn

from asymlora.dropout import dropped
from asymlora.layers import AdapterLayer, LinearAdapter, Shape


class EmbeddingAdapter(AdapterLayer):
    """An adapter on `nn.Embedding`: ``A`` holds a code for each entry. Dropout has no input to act on here."""

    KIND = "embedding"

    def forward(self, x: Tensor) -> Tensor:
        """Return ``base_layer(x) + s * A[:, x]^T B^T``, shape ``(..., dim)``."""
        base = self.base_layer
        out = base(x)
        if not self.enabled:
            return out
        assert isinstance(base, nn.Embedding)
        # Never sparse: torch cannot transpose a sparse gradient back into the layout of A.
        code = F.embedding(x, self.lora_A.t(), base.padding_idx, scale_grad_by_freq=base.scale_grad_by_freq)
        # Gemma's embedding multiplies what it looked up.
        scale = self.scaling * float(getattr(base, "embed_scale", 1.0))
        dtype = torch.promote_types(code.dtype, out.dtype)
        return out + (F.linear(code.to(dtype), self.lora_B.to(dtype)) * scale).to(out.dtype)

    @classmethod
    def takes(cls, base: nn.Module) -> bool:
        """Whether ``base`` is an `nn.Embedding`."""
        return isinstance(base, nn.Embedding)

    @classmethod
    def factor_shapes(cls, base: nn.Module, rank: int) -> tuple[Shape, Shape]:
        """Return ``(rank, entries)`` and ``(dim, rank)``."""
        assert isinstance(base, nn.Embedding)
        return (rank, base.num_embeddings), (base.embedding_dim, rank)

    @classmethod
    def why_never(cls, base: nn.Module) -> str | None:
        """Refuse `max_norm`, which rewrites the weight in the forward pass."""
        max_norm = getattr(base, "max_norm", None)
        return None if max_norm is None else "has max_norm, which rewrites its weight as it is read"

    @classmethod
    def matrix_of(cls, base: nn.Module, weight: Tensor) -> Tensor:
        """Return the table ``(entries, dim)`` as ``(dim, entries)``."""
        return weight.t()

    @classmethod
    def weight_from(cls, base: nn.Module, matrix: Tensor) -> Tensor:
        """Return ``(dim, entries)`` as the table."""
        return matrix.t()


class ConvAdapter(AdapterLayer):
    """An adapter on `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.

    ``A`` is a convolution of the base's kernel, stride, padding and dilation over all input channels, ``B`` a pointwise
    one in the base's groups (PEFT's layout). With groups the update is no grouped convolution, so it cannot be merged.
    """

    KIND = "convolution"

    def forward(self, x: Tensor) -> Tensor:
        """Return ``base_layer(x) + s * B * (A * dropout(x))``, of the base's output shape."""
        base: Any = self.base_layer
        out = base(x)
        if not self.enabled:
            return out
        convolve = _CONVOLUTIONS[base.weight.dim() - 2]
        kept = dropped(x, self.active_dropout) if self.active_dropout else x
        code = convolve(kept, self.lora_A.to(x.dtype), None, base.stride, base.padding, base.dilation)
        return out + convolve(code * self.scaling, self.lora_B.to(code.dtype), groups=base.groups).to(out.dtype)

    @classmethod
    def takes(cls, base: nn.Module) -> bool:
        """Whether ``base`` is a convolution that is not transposed."""
        return isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    @classmethod
    def factor_shapes(cls, base: nn.Module, rank: int) -> tuple[Shape, Shape]:
        """Return ``(rank, in, kernel...)`` and ``(out, rank/groups, 1...)``."""
        assert isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        pointwise = (1,) * len(base.kernel_size)
        return (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank // base.groups, *pointwise)

    @classmethod
    def why_not(cls, base: nn.Module, rank: int) -> str | None:
        """Refuse ranks that the groups do not divide."""
        assert isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if rank % base.groups:
            return f"has {base.groups} groups, which must divide the rank"
        return super().why_not(base, rank)

    @classmethod
    def why_never(cls, base: nn.Module) -> str | None:
        """Refuse padding with anything but zeros."""
        assert isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if base.padding_mode != "zeros":
            return f"pads by {base.padding_mode!r}, which the adapter's own convolution does not"
        return None

    @classmethod
    def matrix_of(cls, base: nn.Module, weight: Tensor) -> Tensor:
        """Return the kernel as ``(out, in * kernel...)``."""
        return weight.flatten(1)

    @classmethod
    def weight_from(cls, base: Any, matrix: Tensor) -> Tensor:
        """Return ``(out, in * kernel...)`` as the kernel."""
        return matrix.reshape(base.weight.shape)

    def why_not_merge(self) -> str | None:
        """Refuse groups besides what every kind refuses."""
        if (groups := int(self.base_layer.groups)) > 1:  # pyright: ignore[reportArgumentType]
            return f"has {groups} groups, and the update reads every channel"
        return super().why_not_merge()


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

KINDS: tuple[type[AdapterLayer], ...] = (EmbeddingAdapter, ConvAdapter, LinearAdapter)
"""Kinds of layers, asked in this order."""


def kind_of(base: nn.Module) -> type[AdapterLayer] | None:
    """Return the adapter class for a layer, or None."""
    return next((kind for kind in KINDS if kind.takes(base)), None)
