"""What a learning rate depends on, and the laws of it: by scheme, each with what stands behind it.

``m`` features in, the fan-in of ``A`` and the width that counts, ``r`` rank, ``s`` the whole factor on ``B A``, ``g``
the size of the random factor's start over that of variance 1 / fan-in. Laws for Adam (and sign descent), with the rates

================  ==============  ==============  ===========  =========================================================
scheme            rate            width           rank         why
================  ==============  ==============  ===========  =========================================================
full fine-tuning  1/m             paper           --           muA, Chen, Villar, Hayou 2026, arXiv 2602.06204
Init[A]           (s r m)^-1/2    paper           paper        muA; optimum of a toy n^-0.45, about r^-0.39
Init[B]           1/(s g m)       paper           unconfirmed  muA; stable rate n^-1.0 (one layer), toy n^-0.29, r^-0.67
LoRA+, ``A``      1/m             paper           unconfirmed  Hayou, Ghosh, Yu 2024, arXiv 2402.12354; in m alone
LoRA+, ``B``      1/(s r)         paper           unconfirmed  as B-only: the sum over the rank
B-only            1/(s g r^1/2)   derived         unconfirmed  toy n^-0.05; r^-1 coherent, r^-1/2 not, toy r^-0.17
A-only            1/(s g m)       measured here   unconfirmed  the limit of Init[B]; stable rate n^-1.0 (one layer)
================  ==============  ==============  ===========  =========================================================

The law in ``s`` is muA's for Init[A] (*paper*), an exact symmetry of Adam without epsilon and decay for B-only, A-only
and the ``B`` of LoRA+ (*derived*), and *measured here* for Init[B]. Between schemes, at equal sizes:

======================  ================  ==============  ==============================================================
pair                    factor            status          why
======================  ================  ==============  ==============================================================
Init[A] to B-only       (m/(s r))^1/2/g   derived         toy 9.2 for 11.3 (n 1024, r 8), 2.8 for 2.8 (n 64)
Init[B] to full         s g               paper           muA at s g = 1, else with the law in s (derived)
Init[B] to A-only       1                 measured here   the outputs differ by a share that falls as 1/n
Init[A] to Init[B]      (r/(s m))^1/2/g   unconfirmed     RoBERTa-large 1/8 where the width alone says 1/32
Init[A] to LoRA+        ratio m/(s r)     unconfirmed     best ratios reported are 2 to 16
SGD: full to B-only     m/(s^2 r g^2)     derived         the expected step on the weight is the same
======================  ================  ==============  ==============================================================

An orthonormal ``B`` has entries of size ``out^-1/2``, so its ``g`` is ``(r/out)^1/2``: the width of the output counts
there. All laws leave out momentum's transient, epsilon and weight decay, and constants: try half and double as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from asymlora.errors import SpecError
from asymlora.schema import refuse_values

Method = Literal["full", "init_a", "init_b", "lora_plus", "b_only", "a_only"]
Status = Literal["paper", "derived", "measured here"]
RandomStart = Literal["gaussian", "uniform", "orthonormal"]


class Rates(NamedTuple):
    """Learning rates of the two factors, per step; None for a factor that is not trained."""

    A: float | None
    B: float | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a learning rate depends on.

    Attributes:
        method: What starts how and is trained: ``full``, ``init_a``, ``init_b``, ``lora_plus`` (Init[A] or Init[B] with
            two rates), ``b_only`` (``A`` random and frozen) or ``a_only`` (``B`` random and frozen).
        width_in: Features in, the fan-in of ``A``; not the hidden size of the model, where the two differ.
        width_out: Features out; None for as many as in.
        rank: ``r``; None for full fine-tuning.
        scaling: ``s``, the whole factor on ``B A``: alpha/r, or alpha/sqrt(r) for rsLoRA.
        start: Of the random factor: ``gaussian`` of variance 1/fan-in, ``uniform`` of a third of it (PEFT's), or
            ``orthonormal`` rows of ``A`` or columns of ``B``.
        optimizer: ``adam`` for Adam and AdamW, or ``sgd``.
    """

    method: Method
    width_in: int
    width_out: int | None = None
    rank: int | None = None
    scaling: float = 1.0
    start: RandomStart = "gaussian"
    optimizer: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        """Check the values."""
        problems = [
            f"{name}={value!r} must be one of {', '.join(allowed)}"
            for name, value, allowed in (
                ("method", self.method, ("full", *LAWS)),
                ("start", self.start, ("gaussian", "uniform", "orthonormal")),
                ("optimizer", self.optimizer, ("adam", "sgd")),
            )
            if value not in allowed
        ]
        for name in ("width_in", "width_out", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}={value!r} must be at least 1")
        if (self.rank is None) != (self.method == "full"):
            problems.append(f"rank={self.rank!r} does not go with method={self.method!r}: give one to all but 'full'")
        if not 0 < self.scaling < math.inf:
            problems.append(f"scaling={self.scaling!r} must be greater than 0: it is the whole factor on B A")
        if self.method == "full" and self.scaling != 1:
            problems.append(f"scaling={self.scaling!r} does not go with method='full', which has no B A: leave it out")
        if self.method == "init_b" and self.start == "orthonormal":
            problems.append(
                "start='orthonormal' does not go with method='init_b': entries of B of variance 1/out make it behave as"
                " Init[A], so name that one"
            )
        refuse_values(problems)

    @property
    def gain(self) -> float:
        """Standard deviation of the random factor over that of variance 1 / fan-in, ``g``."""
        if self.start == "uniform":
            return 3**-0.5
        if self.start == "orthonormal" and self.method == "a_only":
            return math.sqrt((self.rank or 1) / (self.width_out or self.width_in))
        return 1.0


class Law(NamedTuple):
    """The rate of one scheme as powers of its sizes, and what stands behind each; None for nothing that does.

    Attributes:
        A: Exponents of ``m``, ``r`` and ``s`` in the rate of ``A``.
        B: The same for ``B``.
        width: Status in ``m``.
        rank: Status in ``r``.
        scaling: Status in ``s``, and in ``g`` where the start counts.
        start_counts: Whether ``g`` acts as a part of ``s``.
        source: Where the law is from.
        width_caveat: Where it is known to be off in ``m``.
        rank_caveat: Where it is known to be off, or doubtful, in ``r``.
    """

    A: tuple[float, float, float]
    B: tuple[float, float, float]
    width: Status
    rank: Status | None
    scaling: Status
    start_counts: bool
    source: str
    width_caveat: str = ""
    rank_caveat: str = ""


MU_A = "Chen, Villar, Hayou 2026, arXiv 2602.06204 (second-hand)"
LORA_PLUS = "Hayou, Ghosh, Yu 2024, arXiv 2402.12354"
HERE = "derived here"
FULL = Law((-1, 0, 0), (-1, 0, 0), "paper", "paper", "paper", False, MU_A)
LAWS: Mapping[str, Law] = {
    "init_a": Law((-0.5, -0.5, -0.5), (-0.5, -0.5, -0.5), "paper", "paper", "paper", False, MU_A),
    "init_b": Law(
        (-1, 0, -1),
        (-1, 0, -1),
        "paper",
        None,
        "measured here",
        True,
        MU_A,
        "the best rate of a linear Adam toy went as n^-0.29",
        "the best rate of a linear Adam toy went as r^-0.67",
    ),
    "lora_plus": Law(
        (-1, 0, 0),
        (0, -1, -1),
        "paper",
        None,
        "derived",
        False,
        LORA_PLUS,
        "the best ratios reported are 2 to 16",
        "the sum over the rank is that of B-only",
    ),
    "b_only": Law(
        (0, -0.5, -1),
        (0, -0.5, -1),
        "derived",
        None,
        "derived",
        True,
        HERE,
        "",
        "r^-1 if the parts of the sum over the rank agree, r^-1/2 if not; the best rate of a toy went as r^-0.17",
    ),
    "a_only": Law(
        (-1, 0, -1), (-1, 0, -1), "measured here", None, "derived", True, HERE, "", "as Init[B], whose limit it is"
    ),
}
"""Of each scheme that has factors, for Adam; the rank exponents without a status are used only on request."""


def loraplus_ratio(width: int, rank: int, scaling: float = 1.0) -> float:
    """Return the rate of ``B`` over that of ``A`` at which both learn, up to a constant.

    Args:
        width: Features in.
        rank: ``r``.
        scaling: ``s``.

    Returns:
        ``width / (scaling rank)``. The best ratios reported are far smaller, 2 to 16, and differ by task: take this one
        for how the ratio grows, not for its size.

    Raises:
        SpecError: An argument is not greater than 0.

    Example:
        >>> loraplus_ratio(1024, 8, scaling=2.0)
        64.0

    Source:
        Hayou, Ghosh, Yu 2024, "LoRA+", arXiv 2402.12354, for ``Theta(n)`` (abstract); rank and scaling derived here.
    """
    if min(width, rank, scaling) <= 0:
        raise SpecError(f"width={width}, rank={rank} and scaling={scaling} must each be greater than 0.")
    return width / (scaling * rank)
