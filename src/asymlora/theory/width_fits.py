"""Powers of the width, measured on the one-layer simulation: slopes of every quantity, and the largest stable rate.

The simulation itself is in `asymlora.theory.one_layer`, what it should show in `asymlora.theory.width_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.theory.one_layer import (
    QUANTITIES,
    WIDTHS,
    OneLayerSettings,
    basis_length,
    draw_layer,
    largest_output,
    simulate,
)
from asymlora.theory.width_scaling import find_scheme


class PowerLaw(NamedTuple):
    """A learning rate that depends on the width: ``coefficient * width ** exponent``."""

    exponent: float
    coefficient: float = 1.0

    def __call__(self, width: int) -> float:
        """Return the learning rate at one width.

        Example:
            >>> PowerLaw(-0.5)(64)
            0.125
        """
        return self.coefficient * width**self.exponent


class Slope(NamedTuple):
    """A straight line through points in logarithms.

    Attributes:
        exponent: Its slope; minus infinity where every value is exactly zero.
        error: Standard error of the slope, from the points' distance to the line; 0 for fewer than three points.
    """

    exponent: float
    error: float


def fit_slope(sizes: Sequence[float], values: Sequence[float]) -> Slope:
    """Return the exponent of a power law by least squares of log value on log size.

    Args:
        sizes: Widths, ranks or the like, at least two different ones, greater than 0.
        values: One for each, all greater than 0, or all exactly 0.

    Raises:
        SpecError: The points allow no line.

    Example:
        >>> fit_slope([1, 4, 16], [3.0, 6.0, 12.0]).exponent
        0.5
    """
    if len(sizes) != len(values) or len(set(sizes)) < 2 or min(sizes) <= 0:
        raise SpecError(
            f"{len(sizes)} sizes and {len(values)} values allow no line: give one value for each of two or more"
            " different sizes, each greater than 0."
        )
    if not any(values):
        return Slope(-math.inf, 0.0)
    if not all(0 < value < math.inf for value in values):
        raise SpecError(
            f"values={tuple(values)} hold zeros beside others, or no finite numbers, and have no exponent: leave out"
            " the sizes at which the quantity vanishes or overflows."
        )
    x, y = (torch.tensor([math.log(number) for number in numbers], dtype=torch.float64) for numbers in (sizes, values))
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y / (x @ x)).item()
    degrees = len(sizes) - 2
    error = math.sqrt((y - slope * x).square().sum().item() / degrees / (x @ x).item()) if degrees else 0.0
    return Slope(slope, error)


@dataclass(frozen=True, kw_only=True)
class WidthFit:
    """Measured exponents in the width.

    Attributes:
        settings: All settings of the runs.
        widths: The widths that were run.
        rate_A: The rule of the learning rate of ``A``.
        rate_B: The rule of that of ``B``.
        step: The update that is looked at; 0 is the first.
        slopes: The exponent of each of `asymlora.theory.one_layer.QUANTITIES`.
        sizes: The quantities themselves at each width: root mean square over entries and seeds.
        flipped: Widths at which the residual of a seed had changed its sign: there the exponents need not hold.
    """

    settings: OneLayerSettings
    widths: tuple[int, ...]
    rate_A: PowerLaw
    rate_B: PowerLaw
    step: int
    slopes: Mapping[str, Slope]
    sizes: Mapping[str, tuple[float, ...]]
    flipped: tuple[int, ...]


def exponents(
    settings: OneLayerSettings,
    rate_A: PowerLaw,
    rate_B: PowerLaw | None = None,
    *,
    widths: Sequence[int] = WIDTHS,
    step: int = 3,
) -> WidthFit:
    """Measure the exponents in the width of one update.

    Args:
        settings: Of the runs.
        rate_A: Learning rate of ``A`` as a function of the width.
        rate_B: Of ``B``; None for the same.
        widths: Two or more widths.
        step: Which update; 0 is the first, and the exponents of `scaling_exponents` are those of ``step + 1`` updates.

    Returns:
        The slopes and what they were fitted to.

    Example:
        >>> fit = exponents(OneLayerSettings(), PowerLaw(-0.5), widths=(128, 512, 2048))
        >>> round(fit.slopes["Z_A"].exponent, 1), abs(round(fit.slopes["Z_B"].exponent, 1))
        (0.5, 0.0)

    Source:
        Hayou, Ghosh, Yu 2024, arXiv 2406.08447, whose exponents these are; the measurement is ours.
    """
    rate_B = rate_A if rate_B is None else rate_B
    sizes: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    flipped: list[int] = []
    for width in widths:
        run = simulate(settings, width, rate_A(width), rate_B(width), steps=step + 1)
        for name in QUANTITIES:
            sizes[name].append(_pooled(getattr(run, name)[-1]))
        if (run.residual.sign() != run.residual[0].sign()).any():
            flipped.append(width)
    return WidthFit(
        settings=settings,
        widths=tuple(widths),
        rate_A=rate_A,
        rate_B=rate_B,
        step=step,
        slopes={name: fit_slope(widths, values) for name, values in sizes.items()},
        sizes={name: tuple(values) for name, values in sizes.items()},
        flipped=tuple(flipped),
    )


def largest_stable_rate(
    settings: OneLayerSettings,
    width: int,
    *,
    bound: float = 10.0,
    steps: int = 5,
    ratio: float = 1.0,
    octaves: float = 0.001,
    bracket: tuple[float, float] = (2.0**-60, 2.0**20),
) -> float:
    """Return the largest learning rate at which the output stays bounded, by bisection.

    Args:
        settings: Of the runs.
        width: ``n``.
        bound: What the size of ``Z_B``, over entries and seeds, may reach.
        steps: Number of updates; ``Z_B`` is looked at after each.
        ratio: Learning rate of ``B`` over that of ``A``.
        octaves: How narrow the last interval is, in factors of two.
        bracket: A stable and an unstable rate.

    Returns:
        The learning rate of ``A``, per step; it is stable itself.

    Raises:
        SpecError: The bracket does not hold the edge, or the interval has no width.

    Example:
        >>> rates = [largest_stable_rate(OneLayerSettings(scheme="init_b"), n) for n in (256, 1024)]
        >>> round(math.log2(rates[0] / rates[1]), 1)
        2.0

    Source:
        Measured here, for the edges of `asymlora.theory.width_scaling.stability_edge`. It estimates a law where the
        best learning rate, on a flat and noisy valley, does not.
    """
    layer = draw_layer(settings, width)
    low, high = (math.log2(rate) for rate in bracket)
    if not 0 < octaves < high - low:
        raise SpecError(f"octaves={octaves} must be greater than 0 and less than the bracket's {high - low:g} octaves.")

    def is_stable(log_rate: float) -> bool:
        rate = 2.0**log_rate
        return largest_output(settings, layer, rate, ratio * rate, steps=steps) <= bound  # not a number is not

    if not is_stable(low) or is_stable(high):
        raise SpecError(
            f"the largest stable rate at width {width} is not between {bracket[0]:g} and {bracket[1]:g}: give a bracket"
            f" whose first rate keeps Z_B below bound={bound:g} for {steps} steps and whose second one does not."
        )
    while high - low > octaves:
        middle = (low + high) / 2
        low, high = (middle, high) if is_stable(middle) else (low, middle)
    return 2.0**low


def freezing_gap(
    settings: OneLayerSettings, frozen: Literal["A", "B"], width: int, rate: float, *, steps: int = 20
) -> float:
    """Return how far the output is off if one factor is not trained, over the output.

    Args:
        settings: Of the run in which both factors are trained as the scheme says.
        frozen: The factor that stays at its start in the other run, from the same draws.
        width: ``n``.
        rate: Learning rate of both factors, per step.
        steps: Number of updates.

    Returns:
        The size of the difference of ``Z_B`` after the last update over that of ``Z_B``, both over entries and seeds.
        It falls with the width where the factor is not needed.

    Example:
        >>> undertrained = OneLayerSettings(scheme="init_b")
        >>> freezing_gap(undertrained, "B", 4096, 1 / 4096) < 0.1 < freezing_gap(undertrained, "B", 64, 1 / 64)
        True

    Source:
        Hayou, Ghosh, Yu 2024, arXiv 2406.08447: "B is undertrained" (second-hand); the measure is ours.
    """
    scheme, layer = find_scheme(settings.scheme), draw_layer(settings, width)
    held = replace(scheme, trains_A=False) if frozen == "A" else replace(scheme, trains_B=False)
    full = simulate(settings, width, rate, steps=steps, layer=layer)
    part = simulate(replace(settings, scheme=held), width, rate, steps=steps, layer=layer)
    whole, gap = full.features[-1], full.features[-1] - part.features[-1]
    return _pooled(basis_length(layer.gram_B, gap)) / _pooled(basis_length(layer.gram_B, whole))


def _pooled(sizes: Tensor) -> float:
    return sizes.square().mean().sqrt().item()
