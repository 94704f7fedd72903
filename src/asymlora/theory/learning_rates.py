"""How a learning rate that was found in one setting carries over to another, and where no law says so.

The laws themselves, with what stands behind each, are in `asymlora.theory.rate_laws`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from asymlora.errors import SpecError
from asymlora.theory.rate_laws import FULL, HERE, LAWS, LORA_PLUS, MU_A, Method, Rates, Setting, Status

BRACKET = (0.5, 1.0, 2.0)
"""Factors around a transferred rate that should be tried: no law gives a constant."""


class Step(NamedTuple):
    """One law that a transfer uses.

    Attributes:
        law: What it says, in words and with its factor.
        factor: What it multiplies the rates of ``A`` and ``B`` by.
        status: What stands behind it; of an unconfirmed one, where it would come from.
        confirmed: Whether something does.
        source: Where it is from.
    """

    law: str
    factor: tuple[float, float]
    status: Status
    confirmed: bool
    source: str


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A learning rate that was carried over.

    Attributes:
        rates: The new learning rates, per step.
        steps: The laws that were used, in order; none where nothing differs that the law depends on.
        status: Of the weakest step: ``paper`` if all are a paper's, ``derived`` if any is, else ``measured here``.
        confirmed: Whether each step is.
    """

    rates: Rates
    steps: tuple[Step, ...]
    status: Status
    confirmed: bool

    @property
    def rate(self) -> float:
        """The new learning rate, where there is one for all that is trained.

        Raises:
            SpecError: The factors have different rates.
        """
        held = {rate for rate in self.rates if rate is not None}
        if len(held) > 1:
            raise SpecError(f"the factors have different rates, {self.rates}: read `rates` instead of `rate`.")
        return held.pop()

    @property
    def law(self) -> str:
        """The steps as one text."""
        return "; ".join(step.law for step in self.steps) or "nothing differs that the law depends on"

    @property
    def bracket(self) -> tuple[Rates, ...]:
        """Half the rates, the rates, and their double: what to try."""
        return tuple(Rates(*(None if rate is None else rate * factor for rate in self.rates)) for factor in BRACKET)


_TREE: Mapping[tuple[str, str], bool] = {
    ("init_a", "b_only"): True,
    ("init_b", "full"): True,
    ("init_b", "a_only"): True,
    ("init_a", "init_b"): False,
    ("init_a", "lora_plus"): False,
}
"""Pairs of schemes with a law between them, and whether it is confirmed. One path joins any two."""


def transfer(lr: float | Rates, from_: Setting, to: Setting, *, unconfirmed: bool = False) -> Transfer:
    """Carry a learning rate over from the setting in which it was found to another one.

    The table of the laws stands in `asymlora.theory.rate_laws`. A change of several sizes uses one law for each; a
    change of scheme is made at the sizes of ``to``, and its path may lead over another scheme.

    Args:
        lr: The rate that was found, per step; both `Rates` for LoRA+.
        from_: Where it was found.
        to: Where it is wanted.
        unconfirmed: Whether to use laws that nothing confirms, or that a measurement contradicts.

    Returns:
        The new rates, with the laws that were used.

    Raises:
        SpecError: A law on the way is not confirmed, or there is none; or ``lr`` is not greater than 0 or does not fit
            the scheme.

    Example:
        >>> found = Setting(method="init_a", width_in=1024, rank=8)
        >>> transfer(1e-3, found, replace(found, width_in=4096)).rate
        0.0005
        >>> moved = transfer(1e-3, found, replace(found, method="b_only"))
        >>> round(moved.rate, 4), moved.status
        (0.0113, 'derived')

    Source:
        As the table says, law by law.
    """
    rates = _given(lr, from_)
    if from_.optimizer != to.optimizer:
        raise SpecError(
            f"no law carries a learning rate from {from_.optimizer} to {to.optimizer}: sweep it anew for the other"
            " optimizer."
        )
    steps = tuple(_sgd_steps(from_, to) if to.optimizer == "sgd" else _adam_steps(from_, to))
    doubtful = [step for step in steps if not step.confirmed]
    if doubtful and not unconfirmed:
        raise SpecError(
            f"no confirmed law carries a learning rate from {from_} to {to}:"
            f" {'; '.join(step.law for step in doubtful)}. Sweep the rate there, or pass"
            " unconfirmed=True to use the law as a guess."
        )
    for step in steps:
        rates = (rates[0] * step.factor[0], rates[1] * step.factor[1])
    if from_.method == "lora_plus" != to.method:
        # Two rates cannot be kept in one; their product is what a stable output fixes.
        rates = (math.sqrt(rates[0] * rates[1]),) * 2
    statuses = {step.status for step in steps}
    return Transfer(
        rates=Rates(None if to.method == "b_only" else rates[0], None if to.method == "a_only" else rates[1]),
        steps=steps,
        status="derived" if "derived" in statuses else "measured here" if "measured here" in statuses else "paper",
        confirmed=not doubtful,
    )


def _given(lr: float | Rates, setting: Setting) -> tuple[float, float]:
    given = lr if isinstance(lr, Rates) else Rates(lr, lr)
    held = [rate for rate in given if rate is not None]
    if not held or not all(0 < rate < math.inf for rate in held):
        raise SpecError(f"lr={lr!r} must be greater than 0 and finite: give the learning rate that was found.")
    if setting.method == "lora_plus":
        if not isinstance(lr, Rates) or None in lr:
            raise SpecError(f"lr={lr!r} does not fit LoRA+, which has two rates: give Rates(A=..., B=...).")
    elif len(set(held)) > 1:
        raise SpecError(f"lr={lr!r} does not fit method={setting.method!r}, which has one rate: give that one.")
    return (held[0], held[-1])


def _sgd_steps(from_: Setting, to: Setting) -> list[Step]:
    methods, law = {from_.method, to.method}, f"SGD: from {from_.method} to {to.method}"
    if not methods <= {"full", "b_only"}:
        raise SpecError(f"{law} has no law: under SGD only 'full' and 'b_only' have one. Sweep the rate there.")
    if from_.width_in != to.width_in:
        raise SpecError(
            f"{law}, and from {from_.width_in} to {to.width_in} features in, has no law: under SGD the layer must be"
            " the same. Sweep the rate there."
        )

    def over_full(setting: Setting) -> float:
        return setting.width_in / (setting.scaling**2 * (setting.rank or setting.width_in) * setting.gain**2)

    factor = over_full(to) / over_full(from_)
    if factor == 1:
        return []
    return [Step(f"{law} multiplies by {factor:.4g}", (factor, factor), "derived", True, HERE)]


def _adam_steps(from_: Setting, to: Setting) -> list[Step]:
    path = _path(from_.method, to.method)
    if len(path) == 1:
        return _size_steps(from_, to, to)
    here = replace(
        from_,
        width_in=to.width_in,
        width_out=to.width_out,
        rank=from_.rank and (to.rank or from_.rank),
        scaling=to.scaling if from_.rank and to.rank else from_.scaling,
        start="gaussian",
    )
    steps = _size_steps(from_, here, to)
    for method in path[1:]:
        there = replace(
            here,
            method=method,
            rank=None if method == "full" else here.rank or to.rank,
            scaling=1.0 if method == "full" else here.scaling if here.rank else to.scaling,
        )
        steps.append(_bridge(here, there))
        here = there
    return steps + _size_steps(here, to, to)


def _path(start: str, end: str) -> list[Method]:
    """Return the schemes from one to the other along the tree."""
    paths: dict[str, list[Method]] = {start: [start]}  # pyright: ignore[reportAssignmentType]
    while end not in paths:
        for pair in _TREE:
            for known, new in (pair, pair[::-1]):
                if known in paths and new not in paths:
                    paths[new] = [*paths[known], new]  # pyright: ignore[reportArgumentType]
    return paths[end]


def _size_steps(here: Setting, there: Setting, to: Setting) -> list[Step]:
    """Return one step for each size in which two settings of one scheme differ."""
    law, last = LAWS.get(here.method, FULL), LAWS.get(to.method, FULL)
    sizes = [
        ("width", here.width_in, there.width_in, 0, law.width, True),
        # The rank law must hold where the rate goes, too: else a path over another scheme would go round it.
        ("rank", here.rank or 1, there.rank or 1, 1, law.rank, None not in (law.rank, last.rank)),
    ]
    acting = [s.scaling * (s.gain if law.start_counts else 1.0) for s in (here, there)]
    sizes.append(("acting scaling s g", acting[0], acting[1], 2, law.scaling, True))
    steps: list[Step] = []
    for name, before, after, axis, status, confirmed in sizes:
        if before == after:
            continue
        factors = ((after / before) ** law.A[axis], (after / before) ** law.B[axis])
        text = f"{here.method}: {name} {before:g} to {after:g} multiplies by {_in_words(factors)}"
        caveat = (law.width_caveat, law.rank_caveat or last.rank_caveat, "")[axis]
        text += f" ({caveat})" if caveat else ""
        steps.append(Step(text, factors, status or "derived", confirmed, law.source))
    return steps


def _bridge(here: Setting, there: Setting) -> Step:
    """Return the step between two schemes of one size, both with the start of variance 1 / fan-in."""
    pair = (here.method, there.method)
    forward = pair in _TREE
    first = pair if forward else (there.method, here.method)
    held = here if here.rank else there
    s, r, m = held.scaling, held.rank or 1, held.width_in
    factors, status, source = {
        ("init_a", "b_only"): ((math.sqrt(m / (s * r)),) * 2, "derived", HERE),
        ("init_b", "full"): ((s, s), "paper" if s == 1 else "derived", MU_A),
        ("init_b", "a_only"): ((1.0, 1.0), "measured here", HERE),
        ("init_a", "init_b"): ((math.sqrt(r / (s * m)),) * 2, "derived", HERE),
        ("init_a", "lora_plus"): ((math.sqrt(s * r / m), math.sqrt(m / (s * r))), "derived", LORA_PLUS),
    }[first]
    if not forward:
        factors = (1 / factors[0], 1 / factors[1])
    law = f"{here.method} to {there.method} multiplies by {_in_words(factors)}"
    return Step(law, factors, status, _TREE[first], source)


def _in_words(factors: tuple[float, float]) -> str:
    return f"{factors[0]:.4g}" if factors[0] == factors[1] else f"{factors[0]:.4g} for A and {factors[1]:.4g} for B"
