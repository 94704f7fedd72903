"""Parameters, bytes and FLOPs of adapted layers, exactly and from their sizes alone.

``n`` features in, ``m`` features out, ``r`` rank. What depends on the order of the ops in a model, the activations kept
for backward, stands in `asymlora.theory.block_cost`; files stand in `asymlora.theory.file_size`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from asymlora.errors import SpecError, UnknownNameError, nearest

Branch = Literal["ours", "peft"]


@dataclass(frozen=True, kw_only=True)
class AdaptedLayer:
    """One linear layer: its sizes, what is trained of it, and the adapter that it carries.

    Attributes:
        fan_in: Features in, ``n``.
        fan_out: Features out, ``m``.
        rank: Width of the bottleneck; 0: no adapter.
        trains_A: Whether ``A`` is trained.
        trains_B: Whether ``B`` is trained.
        trains_weight: Whether the base weight (and bias) is trained in full.
        bias: Whether the base has a bias.
        dropout: Fraction of the branch's input that is dropped in training, in [0, 1).
        shared_A: Name of the group that reads this input through one frozen ``A``; None: an ``A`` of its own.
        selects: Whether ``A`` picks ``r`` of the ``n`` features instead of multiplying.
        factor_itemsize: Bytes of one entry of a factor.
        branch: Whose code runs: asymlora's layers, or PEFT's, which cast and mask the input in full width.
        B_along_rows: Whether ``B`` lies in memory as its transpose, as a trained ``B`` of asymlora does.

    Example:
        >>> AdaptedLayer(fan_in=1024, fan_out=1024, rank=8).trained_factor_values
        16384
    """

    fan_in: int
    fan_out: int
    rank: int = 0
    trains_A: bool = True
    trains_B: bool = True
    trains_weight: bool = False
    bias: bool = False
    dropout: float = 0.0
    shared_A: str | None = None
    selects: bool = False
    factor_itemsize: int = 4
    branch: Branch = "ours"
    B_along_rows: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SpecError: A value is not allowed; all such are named.
        """
        problems = [
            f"{name}={value} must be at least {least}"
            for name, value, least in (
                ("fan_in", self.fan_in, 1),
                ("fan_out", self.fan_out, 1),
                ("rank", self.rank, 0),
                ("factor_itemsize", self.factor_itemsize, 1),
            )
            if value < least
        ]
        if self.rank > min(self.fan_in, self.fan_out):
            problems.append(f"rank={self.rank} must be at most {min(self.fan_in, self.fan_out)}, the smaller width")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must be in [0, 1)")
        if (self.shared_A is not None or self.selects) and self.trains_A and self.rank:
            problems.append("shared_A and selects are for a frozen A; set trains_A=False")
        if problems:
            raise SpecError(f"This layer cannot be: {'; '.join(problems)}. Correct these values.")

    @property
    def base_values(self) -> int:
        """Entries of the base weight and bias."""
        return self.fan_in * self.fan_out + self.bias * self.fan_out

    @property
    def trained_factor_values(self) -> int:
        """Entries of the factors that are trained."""
        return self.rank * (self.trains_A * self.fan_in + self.trains_B * self.fan_out)

    @property
    def trained_values(self) -> int:
        """Entries that are trained, the base's included."""
        return self.trained_factor_values + self.trains_weight * self.base_values

    @property
    def trained_shapes(self) -> tuple[int, ...]:
        """Entries of each trained tensor."""
        base = (self.fan_in * self.fan_out, *((self.fan_out,) if self.bias else ())) if self.trains_weight else ()
        down = (self.rank * self.fan_in,) if self.rank and self.trains_A else ()
        up = (self.rank * self.fan_out,) if self.rank and self.trains_B else ()
        return (*base, *down, *up)


def trained_parameters(layers: Iterable[AdaptedLayer]) -> int:
    """Return how many values are trained.

    Args:
        layers: The layers.

    Returns:
        Number of entries of all trained tensors.

    Example:
        >>> query = AdaptedLayer(fan_in=1024, fan_out=1024, rank=8)
        >>> trained_parameters([query] * 48)
        786432
    """
    return sum(layer.trained_values for layer in layers)


def frozen_factor_bytes(layers: Iterable[AdaptedLayer]) -> int:
    """Return the bytes of the factors that are held and not trained.

    A shared ``A`` counts once for each name; a selecting ``A`` is ``r`` indices of 8 bytes.

    Args:
        layers: The layers.

    Returns:
        Bytes in memory.
    """
    total = 0
    seen: set[str] = set()
    for layer in layers:
        if not layer.trains_A and layer.shared_A not in seen:
            total += 8 * layer.rank if layer.selects else layer.rank * layer.fan_in * layer.factor_itemsize
        if layer.shared_A is not None:
            seen.add(layer.shared_A)
        if not layer.trains_B:
            total += layer.rank * layer.fan_out * layer.factor_itemsize
    return total


# Bytes that the training of one value needs --------------------------------------------------------------------------


class Optimizer(NamedTuple):
    """What an optimizer holds.

    Attributes:
        states: Tensors of the shape of each parameter.
        counter: Bytes of its step counter for each parameter tensor.
    """

    states: int
    counter: int


OPTIMIZERS = {"adamw": Optimizer(2, 4), "momentum": Optimizer(1, 0), "sgd": Optimizer(0, 0)}
"""By name; torch's AdamW holds a float32 step count for each tensor."""


class TrainingBytes(NamedTuple):
    """Bytes that the trained values take.

    Attributes:
        parameters: The values themselves.
        gradients: Their gradients.
        optimizer: State, step counters included.
        master: Float32 copies that the optimizer updates where the values are narrower.
    """

    parameters: int
    gradients: int
    optimizer: int
    master: int

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return sum(self)


def training_bytes(
    shapes: Sequence[int], *, itemsize: int = 4, optimizer: str = "adamw", master: bool = False
) -> TrainingBytes:
    """Return the bytes of trained tensors, their gradients and their optimizer state.

    Args:
        shapes: Entries of each trained tensor.
        itemsize: Bytes of one entry of a parameter and of its gradient.
        optimizer: A row of `OPTIMIZERS`.
        master: Whether a float32 copy of each value is kept and the state is float32 (mixed precision); without it
            the state has the parameter's own type, as torch's optimizers do.

    Returns:
        The parts in bytes.

    Raises:
        UnknownNameError: The optimizer has no row.

    Example:
        >>> training_bytes([100]).total, training_bytes([100], itemsize=2, master=True).total
        (1604, 1604)

    Source:
        The 16 bytes a value of both usual set-ups; the step counter read in torch 2.13's `AdamW`.
    """
    if optimizer not in OPTIMIZERS:
        raise UnknownNameError(
            f"optimizer={optimizer!r} is not known.{nearest(optimizer, OPTIMIZERS)} Known: {', '.join(OPTIMIZERS)}."
        )
    held, values = OPTIMIZERS[optimizer], sum(shapes)
    state = held.states * values * (4 if master else itemsize) + held.counter * len(shapes)
    return TrainingBytes(values * itemsize, values * itemsize, state, 4 * values if master else 0)


# Base weights --------------------------------------------------------------------------------------------------------

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
WeightType = Literal["float32", "bfloat16", "float16", "float64", "int8", "nf4"]


def weight_bytes(values: int, dtype: WeightType = "float32", *, rows: int = 0, double_quant: bool = True) -> int:
    """Return the bytes of one base weight.

    ``nf4`` packs two values a byte, with one scale for every 64 values: a float32, or with double quantisation a byte,
    with a float32 for every 256 scales, their float32 mean and the 256 float32 of their code. Either way there are the
    16 float32 of the code itself.

    Args:
        values: Entries of the weight.
        dtype: How it is stored.
        rows: Output features, which ``int8`` keeps a float32 scale for.
        double_quant: Whether the scales of ``nf4`` are quantised in turn.

    Returns:
        Bytes, constants included.

    Raises:
        UnknownNameError: The type is not known.

    Example:
        >>> round(weight_bytes(4096 * 4096, "nf4") / (4096 * 4096), 4)
        0.5159

    Source:
        bitsandbytes 0.50.2 (`Params4bit`, `Int8Params`), read in its code and counted in the tests.
    """
    if dtype in ITEMSIZES:
        return values * ITEMSIZES[dtype]
    if dtype == "int8":
        return values + 4 * rows
    if dtype != "nf4":
        known = (*ITEMSIZES, "int8", "nf4")
        raise UnknownNameError(f"dtype={dtype!r} is not known.{nearest(dtype, known)} Known: {', '.join(known)}.")
    scales = math.ceil(values / 64)
    constants = scales + 4 * math.ceil(scales / 256) + 4 + 4 * 256 if double_quant else 4 * scales
    return math.ceil(values / 2) + constants + 4 * 16


# FLOPs ---------------------------------------------------------------------------------------------------------------


class Flops(NamedTuple):
    """Floating-point operations for one token; a multiplication with its addition counts as two.

    Attributes:
        forward: Of the forward pass.
        backward: Of the backward pass.
    """

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Of both passes."""
        return self.forward + self.backward

    def __add__(self, other: object) -> Flops:
        if not isinstance(other, Flops):
            return NotImplemented
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def checkpointed(self) -> Flops:
        """Return the same with the forward pass run again before backward."""
        return Flops(self.forward, self.backward + self.forward)


def layer_flops(layer: AdaptedLayer, *, input_grad: bool = True, computes_code: bool = True) -> Flops:
    r"""Return the FLOPs of one layer for one token.

    .. math::
        F = 2mn + 2r(m + n), \qquad
        G = 2mn\,[\nabla x] + 2mn\,[\nabla W] + 2mr\,[\nabla x \vee \nabla A] + 2nr\,([\nabla x] + [\nabla A])
            + 2mr\,[\nabla B]

    Args:
        layer: The layer.
        input_grad: Whether its input takes a gradient.
        computes_code: Whether it computes ``A x`` itself; another layer of its group may have done it.

    Returns:
        Products only; sums and scalings are linear in the widths and left out, as torch's counter does.

    Example:
        >>> lora, b_only = (AdaptedLayer(fan_in=64, fan_out=64, rank=4, trains_A=a) for a in (True, False))
        >>> layer_flops(lora).total - layer_flops(b_only).total == 2 * 4 * 64
        True

    Source:
        Derived here; held to torch's `FlopCounterMode` in the tests.
    """
    n, m, r = layer.fan_in, layer.fan_out, layer.rank
    down = 0 if layer.selects else 2 * r * n
    forward = 2 * m * n + (2 * r * m + down * computes_code if r else 0)
    backward = 2 * m * n * (input_grad + layer.trains_weight)
    if r:
        backward += 2 * r * m * (input_grad or layer.trains_A) + down * input_grad
        backward += 2 * r * n * layer.trains_A + 2 * r * m * layer.trains_B
    return Flops(forward, backward)


def flops_per_token(layers: Iterable[AdaptedLayer], *, input_grad: bool = True, checkpointing: bool = False) -> Flops:
    """Return the FLOPs of several layers for one token, the code of a shared ``A`` once.

    In a group, the gradient of a shared code still runs back through ``A`` once for all: the gradients of the codes
    are summed before it.

    Args:
        layers: The layers, in the order in which they run.
        input_grad: Whether their inputs take gradients.
        checkpointing: Whether forward runs again before backward.

    Returns:
        The sum.
    """
    total = Flops(0, 0)
    seen: set[str] = set()
    for layer in layers:
        again = layer.shared_A is not None and layer.shared_A in seen
        flops = layer_flops(layer, input_grad=input_grad, computes_code=not again)
        if again and input_grad and not layer.selects:
            flops = Flops(flops.forward, flops.backward - 2 * layer.rank * layer.fan_in)
        total = total + flops
        if layer.shared_A is not None:
            seen.add(layer.shared_A)
    return total.checkpointed() if checkpointing else total


def attention_flops(length: int, width: int, *, fused: bool = False) -> Flops:
    """Return the FLOPs of one layer's attention for one token: scores and weighted sum over ``length`` keys.

    Args:
        length: Keys that a token sees; causal attention is counted in full too, as torch's counter does.
        width: Query heads times their width.
        fused: Whether a kernel that does not keep the scores forms them again in backward.

    Returns:
        Forward two products; backward four, or five where fused.

    Example:
        >>> attention_flops(128, 768)
        Flops(forward=393216, backward=786432)
    """
    product = 2 * length * width
    return Flops(2 * product, (5 if fused else 4) * product)
