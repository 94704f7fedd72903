"""How large each part of a LoRA step grows with the width: exponents, in exact arithmetic. No tensors in here.

``n`` width, ``r`` rank. A quantity of order ``n^gamma`` is written as its exponent ``gamma``; rank, depth, batch and
the number of steps are fixed. `SCHEMES` also gives the simulators of this package their draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import total_ordering
from types import MappingProxyType
from typing import Literal

from asymlora.errors import SpecError, UnknownNameError, nearest


@total_ordering
@dataclass(frozen=True)
class Exponent:
    """The exponent of a quantity ``Theta(n^gamma)``: products add, sums take the larger.

    Attributes:
        value: ``gamma``; None stands for minus infinity, the exponent of an exact zero.

    Example:
        >>> rate, entry = Exponent.of("-1/2"), Exponent.of(0)
        >>> (rate * entry).aligned() + Exponent.of(0)
        Exponent(1/2)
        >>> rate * ZERO
        Exponent(-inf)

    Source:
        Hayou, Ghosh, Yu 2024, "The Impact of Initialization on LoRA Finetuning Dynamics", arXiv 2406.08447: the gamma
        operator (its rules second-hand).
    """

    value: Fraction | None

    @classmethod
    def of(cls, power: Exponent | Fraction | int | float | str) -> Exponent:
        """Return the exponent that a number or a text such as ``"-1/2"`` or ``"-inf"`` stands for.

        Args:
            power: The number, finite or minus infinity. A float is taken at its exact binary value.

        Raises:
            SpecError: It is no such number.
        """
        if isinstance(power, Exponent):
            return power
        if power in (float("-inf"), "-inf"):
            return ZERO
        try:
            return cls(Fraction(power))
        except (ValueError, OverflowError, ZeroDivisionError, TypeError):
            raise SpecError(
                f"{power!r} is no exponent of the width: give a finite number, a fraction such as '-1/2', or '-inf' for"
                " an exact zero."
            ) from None

    @property
    def is_zero(self) -> bool:
        """Whether the quantity is exactly zero."""
        return self.value is None

    def __mul__(self, other: Exponent) -> Exponent:
        """Return the exponent of a product."""
        if self.value is None or other.value is None:
            return ZERO
        return Exponent(self.value + other.value)

    def __truediv__(self, other: Exponent) -> Exponent:
        """Return the exponent of a ratio.

        Raises:
            ZeroDivisionError: The divisor is an exact zero.
        """
        if other.value is None:
            raise ZeroDivisionError("a ratio to an exact zero has no exponent")
        return ZERO if self.value is None else Exponent(self.value - other.value)

    def __add__(self, other: Exponent) -> Exponent:
        """Return the exponent of a sum in which nothing cancels."""
        return max(self, other)

    def __lt__(self, other: Exponent) -> bool:
        if other.value is None:
            return False
        return self.value is None or self.value < other.value

    def __float__(self) -> float:
        return float("-inf") if self.value is None else float(self.value)

    def __repr__(self) -> str:
        return f"Exponent({'-inf' if self.value is None else self.value})"

    def aligned(self) -> Exponent:
        """Return the exponent of a sum over the width of terms of one sign."""
        return self * Exponent(Fraction(1))

    def independent(self) -> Exponent:
        """Return the exponent of a sum over the width of independent terms of mean zero."""
        return self * Exponent(Fraction(1, 2))

    def over_rank(self) -> Exponent:
        """Return the exponent of a sum over the rank, which does not grow: the same."""
        return self


ZERO = Exponent(None)
"""Of an exact zero."""
CONSTANT = Exponent(Fraction(0))
"""Of what does not depend on the width."""


@dataclass(frozen=True, kw_only=True)
class FactorStart:
    """How large the independent entries of a factor start.

    Attributes:
        width: Exponent in the width of their standard deviation; `ZERO` for a factor of zeros.
        rank: Exponent in the rank of the same.
        variance: What is left of the variance, greater than 0: 1, or 1/3 for PEFT's uniform draws.
    """

    width: Exponent = ZERO
    rank: Fraction = Fraction(0)
    variance: float = 1.0

    def std(self, width: int, rank: int) -> float:
        """Return the standard deviation of the entries at one width and rank.

        Example:
            >>> FactorStart(width=Exponent.of("-1/2")).std(64, 4)
            0.125
        """
        if self.width.is_zero:
            return 0.0
        return self.variance**0.5 * width ** float(self.width) * rank ** float(self.rank)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How both factors start, and which of them are trained.

    Attributes:
        A: Start of the down factor, ``(r, n)``.
        B: Start of the up factor, ``(n, r)``.
        trains_A: Whether the optimizer moves ``A``.
        trains_B: Whether the optimizer moves ``B``.
    """

    A: FactorStart
    B: FactorStart
    trains_A: bool = True
    trains_B: bool = True

    @property
    def code(self) -> Exponent:
        """Exponent of ``Z_A = A x`` at the start: a sum of independent terms over the width."""
        return self.A.width.independent()


_NOTHING = FactorStart()
_FAN_IN_A = FactorStart(width=Exponent(Fraction(-1, 2)))
_FAN_IN_B = FactorStart(width=CONSTANT, rank=Fraction(-1, 2))
SchemeName = Literal["init_a", "init_b", "init_b_small", "init_ab", "b_only", "a_only", "peft_gaussian", "both_zero"]
SCHEMES: Mapping[SchemeName, Scheme] = MappingProxyType(
    {
        "init_a": Scheme(A=_FAN_IN_A, B=_NOTHING),
        "init_b": Scheme(A=_NOTHING, B=_FAN_IN_B),
        "init_b_small": Scheme(A=_NOTHING, B=_FAN_IN_A),
        "init_ab": Scheme(A=_FAN_IN_A, B=_FAN_IN_A),
        "b_only": Scheme(A=_FAN_IN_A, B=_NOTHING, trains_A=False),
        "a_only": Scheme(A=_NOTHING, B=_FAN_IN_B, trains_B=False),
        "peft_gaussian": Scheme(A=FactorStart(width=CONSTANT, rank=Fraction(-1)), B=_NOTHING),
        "both_zero": Scheme(A=_NOTHING, B=_NOTHING),
    }
)
"""Init[A] and Init[B] with the variances of their fan-in, 1/n and 1/r; Init[B] and Init[AB] with 1/n; one factor
trained alone; PEFT's ``"gaussian"``, of standard deviation 1/r; and the start that never moves."""


def find_scheme(scheme: Scheme | str) -> Scheme:
    """Return a scheme itself, or the one of that name.

    Args:
        scheme: A scheme, or a key of `SCHEMES`.

    Raises:
        UnknownNameError: No scheme has that name.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise UnknownNameError(
            f"there is no scheme {scheme!r}. The schemes are: {', '.join(SCHEMES)}.{nearest(scheme, SCHEMES)}"
            " Name one of them, or pass a Scheme of your own."
        )
    return SCHEMES[scheme]  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class StepExponents:
    """Exponents in the width after a number of updates, those of the deltas being of the last one.

    Attributes:
        updates: How many updates were made.
        rate_A: Of the learning rate of ``A``.
        rate_B: Of the learning rate of ``B``.
        A: Of the entries of ``A`` (their size, whatever their signs).
        B: Of the entries of ``B``.
        Z_A: Of ``A x``.
        Z_B: Of ``s B A x``.
        delta1: Of ``s B dA x``, with ``B`` held.
        delta2: Of ``s dB A x``, with ``A`` held.
        delta3: Of ``s dB dA x``.
        step_B: Of the last update of ``B`` over ``B``.
    """

    updates: int
    rate_A: Exponent
    rate_B: Exponent
    A: Exponent
    B: Exponent
    Z_A: Exponent
    Z_B: Exponent
    delta1: Exponent = ZERO
    delta2: Exponent = ZERO
    delta3: Exponent = ZERO
    step_B: Exponent = ZERO

    @property
    def is_stable(self) -> bool:
        """Whether ``Z_B`` does not grow with the width; it never shrinks in time, so the last update decides."""
        return self.Z_B <= CONSTANT

    @property
    def is_internally_stable(self) -> bool:
        """Whether neither ``Z_B`` nor ``Z_A`` grows with the width."""
        return self.is_stable and self.Z_A <= CONSTANT

    @property
    def learns(self) -> bool:
        """Whether the last update moved ``Z_B`` by something that neither vanishes nor grows with the width."""
        return self.delta1 + self.delta2 + self.delta3 == CONSTANT

    @property
    def is_efficient(self) -> bool:
        """Whether both factors do so: ``delta1`` and ``delta2`` both ``Theta(1)``."""
        return self.delta1 == self.delta2 == CONSTANT


def scaling_exponents(
    scheme: Scheme | str,
    rate_A: Exponent | Fraction | int | float | str,
    rate_B: Exponent | Fraction | int | float | str | None = None,
    *,
    updates: int = 4,
) -> StepExponents:
    r"""Return the exponents of a linear LoRA layer under a sign-like optimizer.

    .. math::
        \gamma[\Delta Z_A] = \gamma[\eta_A] + 1, \quad
        \gamma[\delta_1] = \gamma[B_{t-1}] + \gamma[\Delta Z_A], \quad
        \gamma[\delta_2] = \gamma[\eta_B] + \gamma[Z_A^{t-1}], \quad
        \gamma[\delta_3] = \gamma[\eta_B] + \gamma[\Delta Z_A]

    A factor whose gradient is exactly zero, because the other one is, does not move.

    Args:
        scheme: The start, or its name.
        rate_A: Exponent of the learning rate of ``A``.
        rate_B: Of that of ``B``; None for the same rate.
        updates: Number of updates. The verdicts of the result hold from the third on: of a factor that starts at zero,
            the first update only moves it, and the second only moves the other one for the first time.

    Returns:
        The exponents.

    Raises:
        SpecError: A rate is no exponent, or ``updates`` is negative.

    Example:
        >>> step = scaling_exponents("init_a", "-1/2")
        >>> step.Z_A, step.Z_B, step.is_efficient, step.is_internally_stable
        (Exponent(1/2), Exponent(0), True, False)
        >>> scaling_exponents("init_b", -1).delta2
        Exponent(-1)

    Source:
        Hayou, Ghosh, Yu 2024, arXiv 2406.08447; the recursions are derived here, and the simulation of
        `asymlora.theory.one_layer` shows them.
    """
    scheme = find_scheme(scheme)
    if updates < 0:
        raise SpecError(f"updates={updates} must be at least 0: it is how many steps the optimizer makes.")
    common = Exponent.of(rate_A)
    other = common if rate_B is None else Exponent.of(rate_B)
    now = StepExponents(
        updates=0,
        rate_A=common if scheme.trains_A else ZERO,
        rate_B=other if scheme.trains_B else ZERO,
        A=scheme.A.width,
        B=scheme.B.width,
        Z_A=scheme.code,
        Z_B=_start(scheme),
    )
    for _ in range(updates):
        now = _updated(now)
    return now


def _start(scheme: Scheme) -> Exponent:
    return (scheme.B.width * scheme.code).over_rank()


def _updated(before: StepExponents) -> StepExponents:
    # sign(g_A) = sign(B^T dZ) sign(x)^T, so that sign(g_A) x is a sum of |x| over the width.
    moved_A = ZERO if before.B.is_zero else before.rate_A
    moved_B = ZERO if before.Z_A.is_zero else before.rate_B
    moved_Z_A = moved_A.aligned()
    delta1 = (before.B * moved_Z_A).over_rank()
    delta2 = (moved_B * before.Z_A).over_rank()
    delta3 = (moved_B * moved_Z_A).over_rank()
    entry_B = before.B + moved_B
    return StepExponents(
        updates=before.updates + 1,
        rate_A=before.rate_A,
        rate_B=before.rate_B,
        A=before.A + moved_A,
        B=entry_B,
        Z_A=before.Z_A + moved_Z_A,
        Z_B=before.Z_B + delta1 + delta2 + delta3,
        delta1=delta1,
        delta2=delta2,
        delta3=delta3,
        step_B=ZERO if entry_B.is_zero else moved_B / entry_B,
    )


def stability_edge(scheme: Scheme | str, *, ratio: Exponent | Fraction | int | float | str = CONSTANT) -> Exponent:
    """Return the largest exponent of the learning rate at which ``Z_B`` never grows with the width.

    Args:
        scheme: The start, or its name.
        ratio: Exponent of the rate of ``B`` over that of ``A``: 0 for one rate, 1 for LoRA+.

    Returns:
        The exponent of the rate of ``A`` (of ``B`` over ``ratio``, where ``A`` is not trained).

    Raises:
        SpecError: ``s B_0 A_0 x`` grows with the width already, or no factor ever moves.

    Example:
        >>> stability_edge("init_a"), stability_edge("init_b"), stability_edge("b_only")
        (Exponent(-1/2), Exponent(-1), Exponent(0))

    Source:
        Hayou, Ghosh, Yu 2024, arXiv 2406.08447: -1/2 for Init[A] and -1 for Init[B] (second-hand); the general form is
        derived here.
    """
    scheme = find_scheme(scheme)
    ratio_value = Exponent.of(ratio).value
    if ratio_value is None:
        raise SpecError("ratio='-inf' would never move B: freeze it in the scheme instead (trains_B=False).")
    if _start(scheme) > CONSTANT:
        raise SpecError(
            f"B_0 A_0 x grows as n^{_start(scheme).value} before the first update, so no learning rate is stable. Give"
            " A or B a smaller start."
        )
    B, code = scheme.B.width.value, scheme.code.value
    moves = (B is not None or code is not None) and (scheme.trains_A or scheme.trains_B)
    limits: list[Fraction] = []
    if scheme.trains_A and B is not None:
        limits.append(-1 - B)
    if scheme.trains_B and code is not None:
        limits.append(-ratio_value - code)
    if moves and scheme.trains_A and scheme.trains_B:
        limits.append(-(1 + ratio_value) / 2)
    if not limits:
        raise SpecError(
            "no factor ever moves: each gradient is a product with the other factor, and that one is zero for ever."
            " Start one factor at random, and train the other."
        )
    return Exponent(min(limits))
