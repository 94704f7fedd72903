"""Adapter layers: a held base layer plus one low-rank branch, one class per kind of base layer.

What a whole model is made of is not known here. A new kind is a new class and its row in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules import module as torch_module

from asymlora.autocasting import autocasts
from asymlora.ops import (
    adapted_linear,
    add_low_rank,
    add_low_rank_plain,
    laid_out,
    merged_weight,
)
from asymlora.shared_code import SharedCode

Shape = tuple[int, ...]


class Corrected(NamedTuple):
    """What a non-zero start took from the base.

    Attributes:
        A: Down factor at the start.
        B: Up factor at the start.
        weight: Base weight before ``s * B A`` was subtracted.
    """

    A: Tensor
    B: Tensor
    weight: Tensor


class AdapterLayer(nn.Module):
    """A held base layer plus ``s * B A``; each factor is a parameter if trained and a buffer if frozen.

    A frozen factor is no parameter, so no optimizer, wrapper or context manager can thaw it, and it has no gradient.

    Args:
        base_layer: The layer to adapt. It is held, not copied, and its weights are not touched.
        A: Down factor, of the first shape that `factor_shapes` gives.
        B: Up factor, of the second.
        scaling: The whole multiplier ``s`` on ``B A``.
        dropout: Fraction of the entries of the branch's input dropped in training, in [0, 1).
        trains_A: Whether ``A`` is a parameter.
        trains_B: Whether ``B`` is a parameter.
    """

    lora_A: Tensor
    lora_B: Tensor
    KIND: ClassVar[str]
    """Name of the kind, in messages and files."""
    corrected: Corrected | None = None
    folded: Tensor | None = None
    """The base weight of before, while `asymlora.merged` holds the update in the base."""

    def __init__(
        self,
        base_layer: nn.Module,
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
        self.fused = True
        for name, factor, trained in (("lora_A", A, trains_A), ("lora_B", B, trains_B)):
            if trained:
                # FSDP takes contiguous parameters only.
                rows = name == "lora_B" and not (distributed.is_available() and distributed.is_initialized())
                self.register_parameter(name, nn.Parameter(laid_out(factor) if rows else factor))
            else:
                self.register_buffer(name, factor)

    @classmethod
    def takes(cls, base: nn.Module) -> bool:
        """Whether ``base`` is a layer of this kind."""
        raise NotImplementedError

    @classmethod
    def factor_shapes(cls, base: nn.Module, rank: int) -> tuple[Shape, Shape]:
        """Return the shapes of ``A`` and ``B`` as PEFT's files have them."""
        raise NotImplementedError

    @classmethod
    def why_not(cls, base: nn.Module, rank: int) -> str | None:
        """Return why this very layer cannot take an adapter of this rank, or None."""
        if why := cls.why_never(base):
            return why
        A, B = cls.matrix_shapes(base, rank)
        if rank > min(A[1], B[0]):
            return f"is {A[1]} -> {B[0]}, and the rank may be at most {min(A[1], B[0])}"
        return None

    @classmethod
    def why_never(cls, base: nn.Module) -> str | None:
        """Return why this very layer cannot take an adapter of any rank, or None."""
        return None

    @classmethod
    def matrix_shapes(cls, base: nn.Module, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of ``A`` and ``B`` as matrices, ``(rank, fan in)`` and ``(out, fan in)``."""
        A, B = (torch.empty(shape, device="meta").flatten(1).shape for shape in cls.factor_shapes(base, rank))
        return (A[0], A[1]), (B[0], B[1])

    @classmethod
    def matrix_of(cls, base: nn.Module, weight: Tensor) -> Tensor:
        """Return a weight of the base layer as ``(out, in)``, the form of ``B A``."""
        return weight

    @classmethod
    def weight_from(cls, base: nn.Module, matrix: Tensor) -> Tensor:
        """Return a matrix ``(out, in)`` in the base layer's own form, the inverse of `matrix_of`."""
        return matrix

    def update(self) -> tuple[Tensor, Tensor]:
        """Return ``A`` and ``B`` as matrices whose product times the scale is the change to the original base weight.

        Where the base was corrected for a non-zero start they are twice as wide: ``[A; A_0]`` and ``[B, -B_0]``.
        """
        A, B = self.lora_A.detach().flatten(1), self.lora_B.detach().flatten(1)
        if self.corrected is None:
            return A, B
        A_0, B_0 = self.corrected.A.flatten(1).to(A), self.corrected.B.flatten(1).to(B)
        return torch.cat([A, A_0]), torch.cat([B, -B_0], dim=1)

    def original_weight(self) -> Tensor:
        """Return the base weight as it was before `correct_base`."""
        return self.base_layer.weight if self.corrected is None else self.corrected.weight  # pyright: ignore[reportReturnType]

    def correct_base(self, A: Tensor, B: Tensor) -> None:
        """Subtract ``s * B A`` from the base weight, once rounded; the original is kept for `restore_base`."""
        weight: Any = self.base_layer.weight
        original = weight.data
        matrix = self.matrix_of(self.base_layer, original)
        corrected = merged_weight(matrix, A.flatten(1).to(matrix), B.flatten(1).to(matrix), scaling=-self.scaling)
        weight.data = self.weight_from(self.base_layer, corrected).contiguous()
        self.corrected = Corrected(A=A, B=B, weight=original)

    def restore_base(self) -> None:
        """Put the original base weight back: the very tensor, unless the model was moved or cast meanwhile."""
        if self.corrected is not None:
            weight: Any = self.base_layer.weight
            weight.data = self.corrected.weight.to(weight)
            self.corrected = None

    def why_not_merge(self) -> str | None:
        """Return why the update cannot be added to the base weight, or None."""
        weight = getattr(self.base_layer, "weight", None)
        plain = isinstance(weight, Tensor) and type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
        return None if plain else f"holds a {type(weight).__name__} and not a plain weight"

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

    # Model code reads attributes of the layer that it thinks it has (T5 the weight's dtype, Gemma the scale of an
    # embedding): what this class lacks is answered by the base.
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.lora_A.shape[0]

    @property
    def active_dropout(self) -> float:
        """Fraction dropped in this mode."""
        return self.dropout if self.training else 0.0

    def extra_repr(self) -> str:
        """Return rank, scale and what is frozen, for printing the model."""
        frozen = [name[-1] for name, _ in self.named_buffers(recurse=False)]
        return f"rank={self.rank}, scaling={self.scaling:g}" + (f", frozen={'+'.join(frozen)}" if frozen else "")


class LinearAdapter(AdapterLayer):
    """An adapter on `nn.Linear`, transformers' `Conv1D`, or any layer with a forward and known in and out features.

    A plain dense layer without hooks takes the fused path: its product runs together with the update. Any other base
    (quantised, hooked, of another class) is called as it is, and its output is not written to.
    """

    KIND = "linear"
    shared: SharedCode | None = None

    def share(self, group: SharedCode) -> None:
        """Read the input through the ``A`` of a group, which becomes this layer's own frozen factor."""
        group.A = self.lora_A if group.A is None else group.A
        self.lora_A, self.shared = group.A, group

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``base_layer(x) + s * dropout(x) A^T B^T``, shape ``(..., out)``."""
        # Straight from the dictionaries: the attributes of a module go through Python, and at few tokens that is seen.
        base, parameters, buffers = self._modules["base_layer"], self._parameters, self._buffers
        assert base is not None
        if not self.enabled:
            return base(x, *args, **kwargs)
        A: Any = parameters["lora_A"] if "lora_A" in parameters else buffers["lora_A"]
        B: Any = parameters["lora_B"] if "lora_B" in parameters else buffers["lora_B"]
        p = self.dropout if self.training else 0.0
        if not self.fused:
            return add_low_rank_plain(base(x, *args, **kwargs), x, A, B, scaling=self.scaling, dropout=p)
        code = None
        if self.shared is not None and x.dtype is A.dtype is B.dtype and not autocasts(x.device.type):
            code = None if torch.compiler.is_compiling() else self.shared.code(x, A, p)
        call = (lambda x: base(x, *args, **kwargs)) if args or kwargs else base
        return run_adapted(call, x, A, B, scaling=self.scaling, dropout=p, code=code)

    @classmethod
    def takes(cls, base: nn.Module) -> bool:
        """Whether ``base`` has whole numbers of in and out features, or is transformers' `Conv1D`."""
        features = getattr(base, "in_features", 0), getattr(base, "out_features", 0)
        return _is_conv1d(base) or all(isinstance(width, int) and width > 0 for width in features)

    @classmethod
    def factor_shapes(cls, base: Any, rank: int) -> tuple[Shape, Shape]:
        """Return ``(rank, in)`` and ``(out, rank)``."""
        if _is_conv1d(base):
            n, m = base.weight.shape
            return (rank, n), (m, rank)
        return (rank, base.in_features), (base.out_features, rank)

    @classmethod
    def matrix_of(cls, base: nn.Module, weight: Tensor) -> Tensor:
        """Return the weight; `Conv1D` stores it the other way round."""
        return weight.t() if _is_conv1d(base) else weight

    @classmethod
    def weight_from(cls, base: nn.Module, matrix: Tensor) -> Tensor:
        """Return the matrix; `Conv1D` stores it the other way round."""
        return matrix.t() if _is_conv1d(base) else matrix


def _is_conv1d(base: nn.Module) -> bool:
    return type(base).__name__ == "Conv1D" and hasattr(base, "nf")


def run_adapted(
    base: Callable[[Tensor], Tensor],
    x: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    scaling: float,
    dropout: float,
    code: Tensor | None = None,
) -> Tensor:
    """Return ``base(x) + s * dropout(x) A^T B^T``: in one pass where the base is plain, by its own forward elsewhere.

    Args:
        base: A layer, or another function of an input ``(..., n)`` with an output ``(..., m)``.
        x: Input, shape ``(..., n)``.
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
        scaling: The whole multiplier ``s``.
        dropout: Fraction of the entries of ``x`` that is dropped, in [0, 1).
        code: As for `asymlora.ops.adapted_linear`.

    Returns:
        Shape ``(..., m)``.
    """
    if torch.compiler.is_compiling():
        return add_low_rank_plain(base(x), x, A, B, scaling=scaling, dropout=dropout)
    weight = plain_weight(base, x)
    if weight is None:
        return add_low_rank(base(x), x, A, B, scaling=scaling, dropout=dropout, code=code)
    bias = cast(nn.Module, base)._parameters["bias"]
    return adapted_linear(x, weight, bias, A, B, scaling=scaling, dropout=dropout, code=code)


def plain_weight(base: Any, x: Tensor) -> Tensor | None:
    """Return the weight of a plain dense layer as ``(out, in)``, or None if the layer has to be called itself.

    Plain is an `nn.Linear` or `Conv1D` itself (no subclass), frozen, with ordinary tensors of the input's dtype, no
    hook, no replaced forward, and no autocast.
    """
    if type(base) is not nn.Linear and not _is_conv1d(base):
        return None
    weight, bias = base._parameters.get("weight"), base._parameters.get("bias")
    hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    if hooked or "forward" in base.__dict__ or torch_module._has_any_global_hook():
        return None
    if (
        weight is None
        or type(weight) not in (nn.Parameter, Tensor)
        or weight.dtype is not x.dtype
        or weight.requires_grad
    ):
        return None
    if (bias is not None and bias.requires_grad) or autocasts(x.device.type):
        return None
    return weight if type(base) is nn.Linear else weight.t()


@contextmanager
def set_flag(layers: list[AdapterLayer], flag: str, value: bool) -> Iterator[None]:
    """Set ``enabled`` or ``fused`` of layers for a while, and put back what each had.

    Args:
        layers: The layers.
        flag: Name of the attribute.
        value: What it is set to.

    Yields:
        Nothing.
    """
    before = [getattr(layer, flag) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, flag, value)
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            setattr(layer, flag, was)
