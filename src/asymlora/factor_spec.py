"""How one factor starts and whether it is trained: `FactorSpec`, the presets, the papers' shorthand. No torch in here.

The names of the inits live here; the functions that draw them live in `asymlora.init`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from asymlora.errors import UnknownNameError, nearest
from asymlora.schema import answers_wrong_names, refuse_values

InitName = Literal[
    "zeros",
    "kaiming_uniform",
    "gaussian",
    "peft_gaussian",
    "orthonormal",
    "top_singular",
    "bottom_singular",
    "random_singular",
    "custom",
]
ADDRESSED_INITS = ("zeros", "kaiming_uniform", "gaussian", "peft_gaussian", "orthonormal")
"""Inits whose values follow from (seed, site, factor) alone, so that a file may hold the address instead."""


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class FactorSpec:
    """How one factor starts, whether it is trained, and its share of the learning rate.

    Attributes:
        init: Name of the scheme that draws the start, a row of `asymlora.init.INITS`, or a function with the signature
            of those. ``custom`` stands in files for a function, which no file can hold.
        trainable: Whether the optimizer moves it. A frozen factor is a buffer, not a parameter.
        lr_ratio: Factor on the run's learning rate, greater than 0. LoRA+ sets ``B``'s to 2..16.
        gain: Factor on the variance of the draw, greater than 0 (the standard deviation is multiplied by its root).
        variance: Mean square of the entries that the start is scaled to; None: as drawn.
        component_norm: Euclidean norm that each of the ``rank`` components is scaled to (rows of ``A``, columns of
            ``B``); None: as drawn. A Kaiming ``B`` has columns 6.5 times those of an orthonormal one at 1024/8, so a
            comparison of the two needs this.
    """

    init: InitName | Callable[..., Any]
    trainable: bool = True
    lr_ratio: float = 1.0
    gain: float = 1.0
    variance: float | None = None
    component_norm: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        problems: list[str] = []
        for name in ("lr_ratio", "gain", "variance", "component_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                problems.append(f"{name}={value} must be a number above 0")
        if self.variance is not None and self.component_norm is not None:
            problems.append("variance and component_norm are both given, and each sets the size; give one")
        if self.starts_at_zero and (self.gain != 1 or self.variance is not None or self.component_norm is not None):
            problems.append("gain, variance and component_norm scale a start, and init='zeros' has nothing to scale")
        refuse_values(problems)

    @property
    def init_name(self) -> InitName:
        """Name of the scheme; ``custom`` for a function."""
        return "custom" if callable(self.init) else self.init

    @property
    def starts_at_zero(self) -> bool:
        """Whether every entry of the factor is zero before the first step."""
        return self.init == "zeros"


PRESETS: dict[str, dict[str, FactorSpec]] = {
    "lora": {"A": FactorSpec(init="kaiming_uniform"), "B": FactorSpec(init="zeros")},
    "init_a": {"A": FactorSpec(init="gaussian"), "B": FactorSpec(init="zeros")},
    "init_b": {"A": FactorSpec(init="zeros"), "B": FactorSpec(init="gaussian")},
    "b_only": {"A": FactorSpec(init="orthonormal", trainable=False), "B": FactorSpec(init="zeros")},
    "a_only": {"A": FactorSpec(init="zeros"), "B": FactorSpec(init="orthonormal", trainable=False)},
}

SHORTHAND: dict[str, InitName] = {
    "zero": "zeros",
    "0": "zeros",
    "rand": "orthonormal",
    "orth": "orthonormal",
    "km": "kaiming_uniform",
    "he": "kaiming_uniform",
    "gauss": "gaussian",
    "V": "top_singular",
    "U": "top_singular",
    "V_last": "bottom_singular",
    "U_last": "bottom_singular",
}
"""Words of the papers' strategy names, and the init each stands for. ``V`` is a start of ``A``, ``U`` one of ``B``."""


def factors_named(text: str) -> dict[str, FactorSpec]:
    """Return the two factors that a preset name or a shorthand stands for, as ``{"A": ..., "B": ...}``.

    Args:
        text: As for `AdapterSpec.parse`.

    Returns:
        Both factors.

    Raises:
        UnknownNameError: ``text`` is neither a preset nor a shorthand.
    """
    if text in PRESETS:
        return dict(PRESETS[text])
    word = "[A-Za-z0-9]+(?:_last)?"
    halves = re.fullmatch(rf"(h?)([AB])_({word})_(h?)([AB])_({word})", text)
    if not halves or halves[2] == halves[5]:
        raise UnknownNameError(
            f"{text!r} names no adapter.{nearest(text, PRESETS)} Presets: {', '.join(PRESETS)}. Or two halves in either"
            " order, h before the trained one, like hB_zero_A_rand."
        )
    factors: dict[str, FactorSpec] = {}
    for hat, letter, word in (halves.group(1, 2, 3), halves.group(4, 5, 6)):
        if word not in SHORTHAND:
            raise UnknownNameError(
                f"{word!r} in {text!r} names no start.{nearest(word, SHORTHAND)} Known words: {', '.join(SHORTHAND)}."
            )
        if word[0] in "UV" and letter != {"U": "B", "V": "A"}[word[0]]:
            raise UnknownNameError(
                f"{word!r} in {text!r} is no start of {letter}: V (right singular vectors) is one of A, U (left) of B."
            )
        factors[letter] = FactorSpec(init=SHORTHAND[word], trainable=bool(hat))
    return factors
