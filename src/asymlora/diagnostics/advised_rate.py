"""A starting learning rate from a measured stability edge, carried to the advised adapter by the theory's laws.

Numbers in, numbers and a sentence out; the edge itself is measured by `asymlora.train.range_test`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from asymlora.errors import SpecError
from asymlora.schema import refuse_values
from asymlora.theory.learning_rates import BRACKET, transfer
from asymlora.theory.rate_laws import Setting

BELOW_EDGE = 4.0
"""The start is the edge over this, two octaves below: ours. A long run meets rarer batches than a short test."""
_FAR = 4.0
"""Factor between the start and the test's own suggestion from which the two are said to disagree."""


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """How much to rely on an advice: high if every check is met, medium if one is not, else low.

    Attributes:
        failed: A sentence on each check that is not met.
    """

    failed: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """``high``, ``medium`` or ``low``."""
        return ("high", "medium", "low")[min(len(self.failed), 2)]


@dataclass(frozen=True, kw_only=True)
class RateMeasures:
    """What a learning-rate range test found.

    Attributes:
        rates: Rates that were tested, per step, ascending.
        losses: Loss at each, NaN or infinity where it left the numbers.
        edge: Largest rate that was stable; None if none of them was unstable, or none was stable.
        suggested: The rate that the test itself would take; None if it has none.
        scheme: What was tested.
        none_stable: Whether each rate that was run alone was unstable; there is no edge then.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    edge: float | None
    suggested: float | None
    scheme: Setting
    none_stable: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        problems = [
            f"{name}={value!r} must be a rate above 0, or None"
            for name, value in (("edge", self.edge), ("suggested", self.suggested))
            if value is not None and not 0 < value < math.inf
        ]
        if self.edge is None and self.suggested is None:
            problems.append("edge and suggested are both None: the test found nothing to start from")
        if self.none_stable and self.edge is not None:
            problems.append(f"edge={self.edge:g} is given with none_stable, but an edge is a rate that was stable")
        if len(self.rates) != len(self.losses):
            problems.append(f"{len(self.rates)} rates with {len(self.losses)} losses; give one loss for each rate")
        if list(self.rates) != sorted(self.rates) or not all(rate > 0 for rate in self.rates):
            problems.append(f"rates={self.rates!r} must be above 0 and ascend")
        refuse_values(problems)


@dataclass(frozen=True, kw_only=True)
class RateAdvice:
    """A learning rate to start from.

    Attributes:
        start: The rate, per step.
        bracket: Half of it, itself, its double: what to try.
        edge: The stability edge, carried over; None if none was found.
        law: How it was carried over, in words.
        status: What stands behind the weakest law: ``paper``, ``derived`` or ``measured here``.
        confirmed: Whether each law is.
        confidence: How much to rely on it.
        reason: All of that in a sentence or two.
    """

    start: float
    bracket: tuple[float, ...]
    edge: float | None
    law: str
    status: str
    confirmed: bool
    confidence: Confidence
    reason: str


def advise_rate(measured: RateMeasures, to: Setting) -> RateAdvice:
    """Return the rate to start the advised adapter at.

    Two octaves below the edge (`BELOW_EDGE`); where no rate was unstable, what the test suggests. The laws of
    `asymlora.theory.learning_rates` carry it from what was tested to what is advised, unconfirmed ones included: each
    that is used is named, and lowers the confidence.

    Args:
        measured: The range test.
        to: What is advised.

    Returns:
        The rate with its reasons.

    Raises:
        SpecError: No law, confirmed or not, leads from one to the other.

    Example:
        >>> tested = Setting(method="b_only", width_in=64, rank=8, scaling=2.0)
        >>> losses = (1.0, float("nan"))
        >>> found = RateMeasures(rates=(0.01, 0.02), losses=losses, edge=0.01, suggested=0.003, scheme=tested)
        >>> advice = advise_rate(found, tested)
        >>> advice.start, advice.bracket, advice.confidence.level
        (0.0025, (0.00125, 0.0025, 0.005), 'high')

    Source:
        The laws: `asymlora.theory.rate_laws`. The distance from the edge: ours, not fitted to anything.
    """
    found = measured.edge / BELOW_EDGE if measured.edge is not None else measured.suggested
    assert found is not None
    if measured.scheme.method == "lora_plus":
        raise SpecError("the range test of LoRA+ has two rates. Test the scheme with one rate, for instance b_only.")
    carried = transfer(found, measured.scheme, to, unconfirmed=True)
    start = carried.rate
    edge = None if measured.edge is None else measured.edge * start / found
    law = carried.law
    status = carried.status if carried.steps else "measured here"
    where = "two octaves below the edge"
    if edge is None:
        met = "no stable rate" if measured.none_stable else "no unstable rate"
        where = f"what the test suggests, as it met {met}"
    reason = f"The range test gives {found:.2g}, {where} of {_named(measured.scheme)}."
    if carried.steps:
        doubt = "" if carried.confirmed else "; not confirmed, so a guess"
        reason += f" Carried to {_named(to)}: {start:.2g} ({law}; {status}{doubt})."
    return RateAdvice(
        start=start,
        bracket=tuple(start * factor for factor in BRACKET),
        edge=edge,
        law=law,
        status=status,
        confirmed=carried.confirmed,
        confidence=Confidence(failed=_doubts(measured, found, carried.confirmed, law)),
        reason=reason,
    )


def _named(setting: Setting) -> str:
    return f"{setting.method} at rank {setting.rank}" if setting.rank else setting.method


def _doubts(measured: RateMeasures, found: float, confirmed: bool, law: str) -> tuple[str, ...]:
    doubts: list[str] = []
    if measured.none_stable:
        doubts.append(
            "Each rate that was run alone was unstable, so the edge lies below them: try smaller rates first."
        )
    elif measured.edge is None:
        doubts.append("No tested rate was unstable, so the edge is not known: test larger rates.")
    elif measured.suggested is not None and not 1 / _FAR <= found / measured.suggested <= _FAR:
        doubts.append(
            f"The start by the edge, {found:.2g}, and the test's own suggestion, {measured.suggested:.2g}, differ by"
            f" more than a factor {_FAR:g}."
        )
    if any(above / below > 2.01 for below, above in pairwise(measured.rates)):
        doubts.append("The tested rates lie more than an octave apart, so the edge is as coarse.")
    if not confirmed:
        doubts.append(f"A law that was used is not confirmed: {law}.")
    return tuple(doubts)
