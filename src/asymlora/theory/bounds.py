r"""Generalisation bounds of training both factors, ``B`` alone or ``A`` alone: what counting bits can say.

The bounds are vacuous at usual sizes: with rank 8, 32 bits, query and value of 24 layers of width 1024 and 2490
samples the expected gap of a loss in [0, 1] is bounded by 59 (both) or 42 (one factor). They count parameters and see
neither the data nor the optimizer. What they support is comparisons that hold whatever the samples and the loss: one
factor against both (smaller by the root of 2 for square layers), one factor at rank ``2r`` against both at ``r``
(equal for square layers), ``A`` against ``B`` (smaller for the factor on the narrower side, equal if square), growth
as the root of the rank and fall as ``1/sqrt(n)``. They do not say that ``B`` generalises better than ``A``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from asymlora.errors import SpecError


class HasFactors(Protocol):
    """Anything with the two factors of one adapted place, like `asymlora.site_view.Site`."""

    @property
    def A(self) -> Tensor:
        """Down factor."""
        ...

    @property
    def B(self) -> Tensor:
        """Up factor."""
        ...


@dataclass(frozen=True, kw_only=True)
class GapBound:
    """A bound on the expected gap between the test and the training loss.

    Attributes:
        parameters: Trained parameters.
        bits: Bits that training can set in each.
        samples: Training samples.
        sub_gaussian: Constant of the loss, in its units.
    """

    parameters: int
    bits: float
    samples: int
    sub_gaussian: float

    @property
    def nats(self) -> float:
        """Bound on the mutual information of the samples and the trained parameters, in nats."""
        return self.parameters * self.bits * math.log(2)

    @property
    def gap(self) -> float:
        """Bound on the expected gap, in units of the loss."""
        return math.sqrt(2 * self.sub_gaussian**2 * self.nats / self.samples)

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing of a bounded loss: it is at least the range, ``2 * sub_gaussian``."""
        return self.gap >= 2 * self.sub_gaussian

    @property
    def samples_needed(self) -> int:
        """Fewest training samples with which the bound would not be vacuous."""
        return math.floor(self.nats / 2) + 1


@dataclass(frozen=True, kw_only=True)
class GapBounds:
    """The bounds of the three ways to train the same adapter. ``both.gap**2 == A_only.gap**2 + B_only.gap**2``.

    Attributes:
        both: Both factors trained.
        B_only: ``A`` frozen.
        A_only: ``B`` frozen.
    """

    both: GapBound
    B_only: GapBound
    A_only: GapBound


def gap_bounds(
    shapes: Sequence[tuple[int, int]], *, rank: int, samples: int, bits: float = 32, sub_gaussian: float = 0.5
) -> GapBounds:
    r"""Return the bounds on the generalisation gap from the shapes of the adapted layers.

    .. math:: |gen| \le \sqrt{\frac{2 \sigma^2}{n}\, r q \ln 2 \sum_i d_i}, \qquad
        d_i = d_{in} + d_{out}, \; d_{out}, \; d_{in} \text{ for both, B-only, A-only}

    Args:
        shapes: ``(out, in)`` of each adapted layer.
        rank: Rank ``r`` of every adapter.
        samples: Training samples ``n``.
        bits: Bits ``q`` of a trained parameter.
        sub_gaussian: ``sigma`` of the loss; 0.5 holds for any loss in [0, 1].

    Returns:
        The three bounds; at usual sizes all are vacuous, and `GapBound.vacuous` says so.

    Raises:
        SpecError: There are no layers, or a number is out of range.

    Example:
        >>> roberta_large = [(1024, 1024)] * 48
        >>> bounds = gap_bounds(roberta_large, rank=8, samples=2490)
        >>> round(bounds.both.gap, 1), round(bounds.B_only.gap, 1), bounds.B_only.vacuous
        (59.2, 41.8, True)

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Lemma 4.5, on Xu and Raginsky, 2017, arXiv:1705.07809, Theorem 1.
    """
    if rank < 1:
        raise SpecError(f"rank={rank} is no rank. Give a rank of 1 or more.")
    wrong = [shape for shape in shapes if len(shape) != 2 or min(shape) < 1]
    if wrong:
        raise SpecError(f"{wrong[0]} is no shape of a layer. Give (out, in), both 1 or more, for each layer.")
    return _bounds(
        [rank * n for _, n in shapes], [rank * m for m, _ in shapes], samples=samples, bits=bits, sigma=sub_gaussian
    )


def gap_bounds_of_sites(
    sites: Iterable[HasFactors], *, samples: int, bits: float = 32, sub_gaussian: float = 0.5
) -> GapBounds:
    """Return the bounds on the generalisation gap of an adapted model.

    What is counted is the entries of the factors, so ranks and kinds of layers may differ. Modules that are trained in
    full beside the adapter (a classifier head) are not counted: the gap of a model that trains one is bounded higher.

    Args:
        sites: Its sites: ``asymlora.sites(model)``.
        samples: Training samples ``n``.
        bits: Bits ``q`` of a trained parameter.
        sub_gaussian: ``sigma`` of the loss; 0.5 holds for any loss in [0, 1].

    Returns:
        The three bounds, whichever factor the model trains.

    Raises:
        SpecError: There are no sites, or a number is out of range.

    Source:
        As for `gap_bounds`; layers that are not linear are counted by their entries: ours.
    """
    pairs = [(site.A.numel(), site.B.numel()) for site in sites]
    return _bounds([a for a, _ in pairs], [b for _, b in pairs], samples=samples, bits=bits, sigma=sub_gaussian)


def _bounds(down: list[int], up: list[int], *, samples: int, bits: float, sigma: float) -> GapBounds:
    """Return the bounds from the number of entries of every A and every B.

    Raises:
        SpecError: There are none, or a number is out of range.
    """
    if not down:
        raise SpecError("There is no adapted layer, so nothing to bound. Give at least one.")
    for name, number, least in (("samples", samples, 1), ("bits", bits, 0), ("sub_gaussian", sigma, 0)):
        if not (math.isfinite(number) and number >= least and number > 0):
            raise SpecError(f"{name}={number} is out of range. Give a finite number above 0.")

    def bound(parameters: int) -> GapBound:
        return GapBound(parameters=parameters, bits=bits, samples=samples, sub_gaussian=sigma)

    return GapBounds(both=bound(sum(down) + sum(up)), B_only=bound(sum(up)), A_only=bound(sum(down)))
