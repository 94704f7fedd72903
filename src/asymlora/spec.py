"""What an adapter is: `AdapterSpec`, and what it says of one site. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypedDict, Unpack, cast

from asymlora.errors import BothFrozenError, BothZeroError, NonZeroStartError, SpecError
from asymlora.factor_spec import PRESETS, FactorSpec, factors_named
from asymlora.peft_format import ALL_LINEAR, spec_fields
from asymlora.schema import answers_wrong_names, from_mapping, refuse_unknown_fields, refuse_values, to_mapping

ScalingRule = Literal["standard", "rank_stabilized"]
NonZeroStart = Literal["refuse", "correct_base"]

PEFT_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "lora_dropout": "dropout",
    "use_rslora": "scaling='rank_stabilized'",
    "init_lora_weights": "A=FactorSpec(init=...), B=FactorSpec(init=...)",
}
"""PEFT's `LoraConfig` fields that have another name here. The one place of the translation."""


class AdapterFields(TypedDict, total=False):
    """The fields that a preset leaves open, as keyword arguments."""

    rank: int
    alpha: float | None
    scaling: ScalingRule
    dropout: float
    targets: str | tuple[str, ...] | list[str]
    modules_to_save: tuple[str, ...] | list[str]
    seed: int
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    factor_pattern: Mapping[str, str]
    shared_A: tuple[tuple[str, ...], ...] | list[list[str]]
    nonzero_start: NonZeroStart


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """What an `AdapterSpec` says of one site.

    Attributes:
        A: Down factor.
        B: Up factor.
        rank: Width of the bottleneck.
        alpha: Numerator of the scaling.
        scaling_factor: The whole multiplier ``s`` on ``B*A``.
    """

    A: FactorSpec
    B: FactorSpec
    rank: int
    alpha: float
    scaling_factor: float


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """A low-rank adapter: ``W0 + s*B*A`` on every target layer, with each factor under its own control.

    Attributes:
        A: Down factor, shape ``(rank, in)``. Default: orthonormal rows, frozen (Zhu et al. 2024).
        B: Up factor, shape ``(out, rank)``. Default: zeros, trained.
        rank: Width of the bottleneck, at least 1 and at most ``min(in, out)`` of every target.
        alpha: Numerator of the scaling. None means ``2*rank``, so ``s = 2`` (every run of Zhu et al. 2024).
        scaling: ``standard``: ``s = alpha/rank``; ``rank_stabilized``: ``s = alpha/sqrt(rank)`` (rsLoRA).
        dropout: Fraction of the entries of the adapter's input that is dropped in training, in [0, 1).
        targets: ``"all-linear"`` (every linear layer but the output head), or endings of module names.
        modules_to_save: Endings of module names trained in full beside the adapter (heads, norms) and saved with it.
        seed: Seed of the draws; each factor's own draw depends on it, on the layer's name and on the factor only.
        rank_pattern: Rank by ending of the layer's name, where it differs from ``rank``. The longest ending wins.
        alpha_pattern: Alpha by ending of the layer's name.
        factor_pattern: Factors by ending of the layer's name, as a preset (``a_only``) or shorthand: which factor is
            trained is a choice for each layer.
        shared_A: Groups of endings, for instance ``(("q_proj", "k_proj", "v_proj"),)``: layers of one parent that read
            the same input and share one frozen ``A``, whose product with the input is then computed once.
        nonzero_start: What to do where both factors start non-zero: ``refuse``, or ``correct_base``: subtract
            ``s*B*A`` from the base weight on attachment, so that the model starts as it was.

    Example:
        >>> AdapterSpec.b_only(rank=16).scaling_factor
        2.0
        >>> AdapterSpec.parse("hB_zero_A_rand") == AdapterSpec.parse("A_rand_hB_zero") == AdapterSpec.b_only()
        True
    """

    OTHER_NAMES: ClassVar[Mapping[str, str]] = PEFT_NAMES

    A: FactorSpec = PRESETS["b_only"]["A"]
    B: FactorSpec = PRESETS["b_only"]["B"]
    rank: int = 8
    alpha: float | None = None
    scaling: ScalingRule = "standard"
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ALL_LINEAR
    modules_to_save: tuple[str, ...] = ()
    seed: int = 0
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    factor_pattern: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    shared_A: tuple[tuple[str, ...], ...] = ()
    nonzero_start: NonZeroStart = "refuse"

    def __post_init__(self) -> None:
        """Turn lists into tuples and refuse what could not be trained."""
        for name in ("targets", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, str):
                value = value if (name, value) == ("targets", ALL_LINEAR) else (value,)
            object.__setattr__(self, name, value if isinstance(value, str) else tuple(value))
        self._check_numbers()
        self._check_factors()
        self._check_patterns()

    def _check_numbers(self) -> None:
        problems: list[str] = []
        if self.rank < 1:
            problems.append(f"rank={self.rank!r} must be a whole number of at least 1")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            problems.append(f"alpha={self.alpha!r} must be above 0, or None for twice the rank")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout!r} must lie in [0, 1)")
        if not self.targets or not all(self.targets):
            problems.append(f"targets={self.targets!r} must be 'all-linear' or endings of module names")
        if self.seed < 0:
            problems.append(f"seed={self.seed!r} must be a whole number of at least 0")
        refuse_values(problems)

    def _check_factors(self) -> None:
        if self.A.starts_at_zero and self.B.starts_at_zero:
            raise BothZeroError(
                "A and B both start at zero: each one's gradient is a product with the other, so nothing could ever"
                " learn. Give one of them another init, for instance A=FactorSpec(init='orthonormal')."
            )
        if not (self.A.trainable or self.B.trainable):
            raise BothFrozenError("A and B are both frozen: nothing is trained. Set trainable=True on one of them.")
        for name, factor, other in (("A", self.A, self.B), ("B", self.B, self.A)):
            if factor.starts_at_zero and not factor.trainable:
                raise BothFrozenError(
                    f"{name} is frozen at zero, so B*A stays zero and no gradient reaches the other factor. Train"
                    f" {name}, or start it from another init ({other.init} is what the other factor has)."
                )
        if self.nonzero_start == "refuse" and not (self.A.starts_at_zero or self.B.starts_at_zero):
            raise NonZeroStartError(
                f"A ({self.A.init_name}) and B ({self.B.init_name}) both start non-zero, so B*A would change the model"
                " before the first step. Start one of them with init='zeros', or set nonzero_start='correct_base' to"
                " subtract the start from the base weight."
            )

    def _check_patterns(self) -> None:
        problems = [
            f"rank_pattern[{ending!r}]={rank!r} must be a whole number of at least 1"
            for ending, rank in self.rank_pattern.items()
            if rank < 1
        ]
        problems += [
            f"alpha_pattern[{ending!r}]={alpha!r} must be above 0"
            for ending, alpha in self.alpha_pattern.items()
            if not (math.isfinite(alpha) and alpha > 0)
        ]
        if not all(ending for pattern in self._patterns().values() for ending in pattern):
            problems.append("a pattern has an empty key; its keys are endings of module names")
        grouped = [ending for group in self.shared_A for ending in group]
        if any(len(group) < 2 for group in self.shared_A) or len(set(grouped)) < len(grouped):
            problems.append(f"shared_A={self.shared_A!r} must hold groups of two or more endings, each in one group")
        if self.shared_A and (self.A.trainable or self.A.starts_at_zero):
            problems.append("shared_A shares a frozen A, but A is trained; train B alone (b_only)")
        refuse_values(problems)
        for text in self.factor_pattern.values():
            # The same checks as for the factors of the whole, with the error's own class.
            replace(self, **factors_named(text), factor_pattern={}, shared_A=())

    def _patterns(self) -> dict[str, Mapping[str, Any]]:
        return {name: getattr(self, name) for name in ("rank_pattern", "alpha_pattern", "factor_pattern")}

    def at(self, site: str) -> SiteSpec:
        """Return what holds at one site, its patterns resolved.

        Args:
            site: Path of the module in the model.

        Returns:
            Factors, rank, alpha and scale of that site.

        Example:
            >>> spec = AdapterSpec.b_only(rank=8, rank_pattern={"v_proj": 2}, factor_pattern={"down_proj": "a_only"})
            >>> spec.at("layer.0.v_proj").rank, spec.at("layer.0.down_proj").A.trainable
            (2, True)
        """
        text = matching_value(self.factor_pattern, site)
        factors = factors_named(text) if text else {"A": self.A, "B": self.B}
        rank = matching_value(self.rank_pattern, site) or self.rank
        # A site of another rank keeps alpha, as in PEFT; only the default follows the rank.
        alpha = matching_value(self.alpha_pattern, site) or (float(2 * rank) if self.alpha is None else self.alpha)
        divisor = rank if self.scaling == "standard" else math.sqrt(rank)
        return SiteSpec(A=factors["A"], B=factors["B"], rank=rank, alpha=alpha, scaling_factor=alpha / divisor)

    @property
    def effective_alpha(self) -> float:
        """Alpha as a number: the given one, or twice the rank."""
        return float(2 * self.rank if self.alpha is None else self.alpha)

    @property
    def scaling_factor(self) -> float:
        """The whole multiplier ``s`` on ``B*A``."""
        divisor = self.rank if self.scaling == "standard" else math.sqrt(self.rank)
        return self.effective_alpha / divisor

    @property
    def trains(self) -> dict[str, bool]:
        """Whether any site may train ``A``, and ``B``, patterns included."""
        pairs = [{"A": self.A, "B": self.B}, *map(factors_named, self.factor_pattern.values())]
        return {letter: any(pair[letter].trainable for pair in pairs) for letter in ("A", "B")}

    @classmethod
    def lora(cls, **fields: Unpack[AdapterFields]) -> AdapterSpec:
        """Return LoRA as PEFT starts it: Kaiming-uniform ``A`` (variance 1/(3 in)), zero ``B``, both trained."""
        return cls._preset("lora", fields)

    @classmethod
    def init_a(cls, **fields: Unpack[AdapterFields]) -> AdapterSpec:
        """Return Init[A] of Hayou et al. 2024: Gaussian ``A`` of variance 1/in, zero ``B``, both trained."""
        return cls._preset("init_a", fields)

    @classmethod
    def init_b(cls, **fields: Unpack[AdapterFields]) -> AdapterSpec:
        """Return Init[B] of Hayou et al. 2024: zero ``A``, Gaussian ``B`` of variance 1/rank, both trained."""
        return cls._preset("init_b", fields)

    @classmethod
    def b_only(cls, **fields: Unpack[AdapterFields]) -> AdapterSpec:
        """Return ``B``-only of Zhu et al. 2024: frozen ``A`` with orthonormal rows, zero ``B``, ``B`` trained."""
        return cls._preset("b_only", fields)

    @classmethod
    def a_only(cls, **fields: Unpack[AdapterFields]) -> AdapterSpec:
        """Return the mirror of ``B``-only: zero ``A``, trained; frozen ``B`` with orthonormal columns."""
        return cls._preset("a_only", fields)

    @classmethod
    def _preset(cls, name: str, fields: Mapping[str, Any]) -> AdapterSpec:
        refuse_unknown_fields(cls, fields)
        return cls(**cast(Any, {**PRESETS[name], **fields}))

    @classmethod
    def parse(cls, text: str, **fields: Unpack[AdapterFields]) -> AdapterSpec:
        """Return the spec that a preset name or the shorthand of Zhu et al. stands for.

        Args:
            text: A preset (``b_only``) or two halves in either order, each ``A`` or ``B``, with ``h`` (hat) before it
                if it is trained, and its start: ``hB_zero_A_rand``.
            **fields: The other fields of the spec.

        Returns:
            The spec.

        Raises:
            UnknownNameError: ``text`` is neither; the known names and words are listed.

        Source:
            Zhu et al. 2024, "Asymmetry in Low-Rank Adapters of Foundation Models", strategy names. Their released
            parser reads only the order B first and silently runs the other arm for ``A_rand_hB_zero``.
        """
        refuse_unknown_fields(cls, fields)
        return cls(**cast(Any, {**factors_named(text), **fields}))

    @classmethod
    def from_peft(cls, config: object) -> AdapterSpec:
        """Return the spec of a PEFT `LoraConfig`, or of the mapping that an ``adapter_config.json`` holds.

        PEFT trains both factors; nothing in its configuration says otherwise.

        Args:
            config: A `LoraConfig`, or a mapping with its keys.

        Returns:
            The spec, with both factors trained.

        Raises:
            SpecError: The configuration asks for something that this library cannot honour; every such key is named.
        """
        given = cast(Any, config)
        if not (hasattr(given, "to_dict") or hasattr(given, "keys")):
            raise SpecError(f"from_peft takes a LoraConfig or a mapping of its keys, not {type(given).__name__}.")
        values = cast("dict[str, Any]", dict(given.to_dict() if hasattr(given, "to_dict") else given))
        return cls.lora(**cast(AdapterFields, spec_fields(values)))

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as nested plain values, the inverse of `from_dict`."""
        return to_mapping(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> AdapterSpec:
        """Build the spec from nested plain values; unknown keys are refused by name.

        Args:
            mapping: Fields by name, as `to_dict` gives them.

        Returns:
            The spec.
        """
        return from_mapping(cls, mapping, where="adapter")


def matching_value(pattern: Mapping[str, Any], site: str) -> Any:
    """Return the value of the longest ending of ``site`` in a pattern, or None.

    Example:
        >>> matching_value({"q": 2, "layer.1.q": 3}, "encoder.layer.1.q"), matching_value({"q": 2}, "layer.iq")
        (3, None)
    """
    endings = [ending for ending in pattern if site == ending or site.endswith("." + ending)]
    return pattern[max(endings, key=len)] if endings else None
