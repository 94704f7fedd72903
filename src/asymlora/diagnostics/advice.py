r"""Which factor to train at each site, at which rank and rate, from measurements alone; and the reasons.

No model and no tensor in here: `asymlora.diagnostics.captured_gradient` measures, and a command composes the two. The
rules, all ours but for the criterion (`asymlora.theory.factor_advantage`):

* *Factor.* At the reference rank, what a random held ``A`` leaves in reach of ``B`` against what a random held ``B``
  leaves in reach of ``A``; the larger wins. Within 5 % the factor with fewer values is trained. Where neither reaches
  `REACH` of what the best update of that rank holds, both are, unless the gradient may be mostly chance. Without a
  gradient the generic criterion decides.
* *Rank.* One for all. Where ranks by layer are asked for, the budget is divided greedily by what a trained value gains
  (`asymlora.diagnostics.rank_budget`), each site counting alike, and they are advised only where they gain `RANK_GAIN`
  in the mean. That they train better has not been shown (`asymlora reproduce advice`), so they are not the default.
* *Start of A.* Orthonormal, unless another reaches `START_GAIN` more at the advised rank.
* *Confidence.* High if every check is met, medium if one is not, else low. The checks: there is a gradient; the
  generic criterion names the same factor, for the inputs as they are and about their mean; the two shares differ by a
  factor 2 or more; there are 10 rows or more for each effective input (``T`` rows make ``1/PR`` too large by about
  ``1/T``); less than half of the gradient's energy is chance of the batches, and that is known; a sketch misses at most
  5 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from asymlora.diagnostics.advised_rate import Confidence, RateAdvice, RateMeasures, advise_rate
from asymlora.diagnostics.captured_gradient import Shares, SiteMeasures
from asymlora.diagnostics.rank_budget import Curve, cost_of, divide, mean_share
from asymlora.errors import SpecError
from asymlora.spec import AdapterFields, AdapterSpec, matching_value
from asymlora.targets import ends_with
from asymlora.theory.factor_advantage import TIE_MARGIN
from asymlora.theory.rate_laws import Method, Setting

__all__ = ["Advice", "Confidence", "RateAdvice", "RateMeasures", "SiteAdvice", "advise", "advise_rate"]

Trained = Literal["A", "B", "both"]
AStart = Literal["", "orthonormal", "activation_pca", "top_singular"]

REACH = 0.25
"""Fraction of the best update of the rank that a held factor must leave in reach."""
RANK_GAIN = 0.02
"""Mean share that ranks by site must gain over one rank for all."""
START_GAIN = 0.1
"""Share that an informed start of A must gain over a random one."""
CLEAR = 2.0
ROWS_PER_DIMENSION = 10
LARGEST_NOISE = 0.5
LARGEST_MISS = 0.05

PRESETS: Mapping[Trained, Method] = {"B": "b_only", "A": "a_only", "both": "init_a"}
"""What trains that, as a preset of `AdapterSpec` and a scheme of the rate laws."""

_REACHED: Mapping[Trained, str] = {"B": "random_A", "A": "random_B", "both": "best"}
"""Which share says what is in reach of that."""

CAVEATS = (
    "This is a first look: the update is the first gradient, and what a longer training wants may lie elsewhere. That"
    " its reach tells which factor ends lower was not shown (asymlora reproduce zhu_inputs).",
    "This advice has been held against plain defaults on two small tasks (asymlora reproduce advice): it was not shown"
    " to beat them.",
    "Sites count alike; that one site may matter more for the task than another is not measured.",
)
INFORMED = (
    "A start of A from activations or singular vectors reaches more of the first gradient, judged on the rows that it"
    " was made from; Zhu et al. 2024 found informed starts no better than random ones once trained."
)


@dataclass(frozen=True, kw_only=True)
class SiteAdvice:
    """What is advised at one site.

    Attributes:
        name: Path of the layer.
        kind: ``linear``, ``embedding`` or ``convolution``.
        train: ``B`` (``A`` random and held), ``A`` (``B`` random and held) or ``both``.
        rank: Rank.
        values: Trained values at that rank.
        share: What of the first update's energy is in reach at that rank; for ``both`` the most that could be. None
            without a gradient.
        A_start: What the held ``A`` had best be: ``orthonormal`` (random), ``activation_pca`` or ``top_singular``;
            empty where ``A`` is trained.
        reason: Why, with the numbers.
        confidence: How much to rely on it.
    """

    name: str
    kind: str
    train: Trained
    rank: int
    values: int
    share: float | None
    A_start: AStart
    reason: str
    confidence: Confidence


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What is advised for a model.

    Attributes:
        sites: By site, in the order of the measures.
        uniform_rank: The one rank for all that costs no more.
        per_site_ranks: Whether ranks that differ are advised; else every site has the uniform rank, cut at its limit.
        by_site_mean_share: What ranks by site reach for as many values, in the mean; None without gradients, and where
            they gain less than `RANK_GAIN`.
        values: Trained values of the advised adapter.
        mean_share: Mean over sites of what is in reach with the advised ranks; None without gradients.
        uniform_mean_share: The same with one rank for all.
        rate: Learning rate to start from; None if none was measured.
        caveats: What to keep in mind of all of it.
    """

    sites: tuple[SiteAdvice, ...]
    uniform_rank: int
    per_site_ranks: bool
    by_site_mean_share: float | None
    values: int
    mean_share: float | None
    uniform_mean_share: float | None
    rate: RateAdvice | None
    caveats: tuple[str, ...]

    def to_spec(self, *, targets: str | Sequence[str] | None = None, **fields: Any) -> AdapterSpec:
        """Return the advised adapter.

        ``A`` starts orthonormal where it is held: a file cannot hold the directions of activations.

        Args:
            targets: None: the sites (a target is an ending, so ``fc`` brings ``h.0.fc`` along). With more than those,
                ``"all-linear"`` for instance, a site that was not measured gets what the measured ones of its ending
                have, or what most have.
            **fields: Other fields of `AdapterSpec`. Sites under ``modules_to_save`` are left out.

        Returns:
            The adapter; scaling is the default, ``s = 2`` at every rank.

        Raises:
            SpecError: No site is left, or a field is wrong.
        """
        saved = fields.get("modules_to_save", ())
        saved = (saved,) if isinstance(saved, str) else tuple(saved)
        kept = [site for site in self.sites if not any(_inside(site.name, ending) for ending in saved)]
        if not kept:
            raise SpecError(f"modules_to_save={saved} leaves no site to adapt. Leave one of them out of it.")
        trained, rank = (_most_common(values) for values in ([s.train for s in kept], [s.rank for s in kept]))
        names = [site.name for site in kept]
        ranks = _pattern(dict(zip(names, (s.rank for s in kept), strict=True)), rank)
        factors = _pattern(dict(zip(names, (PRESETS[s.train] for s in kept), strict=True)), PRESETS[trained])
        given = {"rank": rank, "rank_pattern": ranks, "factor_pattern": factors, **fields}
        given["targets"] = tuple(names) if targets is None else targets
        return AdapterSpec.parse(PRESETS[trained], **cast(AdapterFields, given))

    def to_records(self) -> list[dict[str, Any]]:
        """Return one flat row per site, and one of the rate where there is one."""
        rows = [_flat({"site": site.name, **asdict(site)}, site.confidence) for site in self.sites]
        if self.rate is not None:
            rows.append(_flat({"kind": "rate", **asdict(self.rate)}, self.rate.confidence))
        return rows


def advise(
    sites: Sequence[SiteMeasures],
    *,
    rank: int = 8,
    values: int | None = None,
    rate: RateMeasures | None = None,
    ranks_by_layer: bool = False,
) -> Advice:
    """Return which factor to train at each site, at which rank, and the learning rate to start from.

    Args:
        sites: Measures of the sites.
        rank: The reference rank, at which factors are compared.
        values: Most trained values; None: what the advised factors cost at the reference rank.
        rate: A range test, for the learning rate.
        ranks_by_layer: Whether ranks may differ from site to site.

    Returns:
        The advice, with reasons, confidence and caveats. The rules are the module's.

    Raises:
        SpecError: There is no site, two have one name, the rank is below 1, or the budget is less than the smallest
            ranks cost.

    Example:
        >>> seen = {"kind": "linear", "fan_in": 64, "rows": 900, "batches": 2}
        >>> up = SiteMeasures(name="up", outputs=256, input_ratio=5.0, **seen)
        >>> head = SiteMeasures(name="head", outputs=3, input_ratio=40.0, **seen)
        >>> [(site.train, site.rank) for site in advise([up, head]).sites]
        [('B', 8), ('A', 3)]
    """
    if not sites or len({site.name for site in sites}) < len(sites) or rank < 1:
        raise SpecError(
            f"{len(sites)} sites of {len({site.name for site in sites})} names at rank={rank}. Give one or more sites,"
            " each once, and a rank of 1 or more."
        )
    trained: list[Trained] = [_factor(site, rank) for site in sites]
    curves = [_curve(site, factor, rank) for site, factor in zip(sites, trained, strict=True)]
    uniform_rank, uniform = _uniform(curves, rank, values)
    budget = cost_of(curves, uniform) if values is None else values
    ranks = divide(curves, budget)
    known = [i for i, site in enumerate(sites) if site.shares]
    means = [
        mean_share([curves[i] for i in known], [chosen[i] for i in known]) if known else None
        for chosen in (ranks, uniform)
    ]
    gains = means[0] is not None and means[1] is not None and means[0] - means[1] >= RANK_GAIN
    per_site = ranks_by_layer and gains
    chosen = ranks if per_site else uniform
    advised = tuple(_advised(site, factor, r, rank) for site, factor, r in zip(sites, trained, chosen, strict=True))
    informed = any(site.A_start not in ("", "orthonormal") for site in advised)
    return Advice(
        sites=advised,
        uniform_rank=uniform_rank,
        per_site_ranks=per_site,
        by_site_mean_share=means[0] if gains else None,
        values=cost_of(curves, chosen),
        mean_share=means[0] if per_site else means[1],
        uniform_mean_share=means[1],
        rate=None if rate is None else advise_rate(rate, _setting(advised, rate.scheme)),
        caveats=(*CAVEATS, INFORMED) if informed else CAVEATS,
    )


def _at(site: SiteMeasures, rank: int) -> Shares | None:
    """Return the shares at the largest measured rank not above ``rank``."""
    fitting = [shares for shares in site.shares if shares.rank <= rank]
    return fitting[-1] if fitting else site.shares[0] if site.shares else None


def _reached(site: SiteMeasures, rank: int) -> tuple[float, float, float]:
    """Return what training B, training A and the best update reach; of a generic update without a gradient."""
    shares = _at(site, rank)
    if shares is not None:
        return shares.random_A, shares.random_B, shares.best
    rank = min(rank, site.limit)
    return min(1.0, rank / site.input_ratio), rank / site.outputs, 1.0


def _factor(site: SiteMeasures, rank: int) -> Trained:
    by_B, by_A, best = _reached(site, rank)
    if site.shares and _is_told(site) and max(by_B, by_A) < REACH * best:
        return "both"
    if abs(by_B - by_A) <= TIE_MARGIN * max(by_B, by_A):
        return "B" if site.outputs <= site.fan_in else "A"
    return "B" if by_B > by_A else "A"


def _is_told(site: SiteMeasures) -> bool:
    """Whether most of the gradient is known to be no chance of the batches."""
    return site.noise is not None and site.noise <= LARGEST_NOISE


def _cost(site: SiteMeasures, trained: Trained) -> int:
    return {"B": site.outputs, "A": site.fan_in, "both": site.outputs + site.fan_in}[trained]


def _curve(site: SiteMeasures, trained: Trained, rank: int) -> Curve:
    """Return what the site's ranks reach; without a gradient its rank is the reference rank.

    A reference rank that was not measured has the share of the largest one below it.
    """
    rank = min(rank, site.limit)
    if not site.shares:
        return Curve((rank,), (0.0,), _cost(site, trained))
    ranks = sorted({rank, *(shares.rank for shares in site.shares)})
    known = [shares for rank in ranks if (shares := _at(site, rank)) is not None]
    return Curve(tuple(ranks), tuple(getattr(s, _REACHED[trained]) for s in known), _cost(site, trained))


def _uniform(curves: Sequence[Curve], rank: int, values: int | None) -> tuple[int, tuple[int, ...]]:
    """Return the one rank, and what it is at each site: the largest of its curve not above it."""

    def cut(rank: int) -> tuple[int, ...]:
        return tuple(curve.ranks[curve.index_within(rank)] for curve in curves)

    if values is None:
        return rank, cut(rank)
    known = sorted({rank for curve in curves for rank in curve.ranks})
    fitting = [rank for rank in known if cost_of(curves, cut(rank)) <= values]
    chosen = fitting[-1] if fitting else known[0]
    return chosen, cut(chosen)


def _advised(site: SiteMeasures, trained: Trained, rank: int, reference: int) -> SiteAdvice:
    shares = _at(site, rank)
    return SiteAdvice(
        name=site.name,
        kind=site.kind,
        train=trained,
        rank=rank,
        values=_cost(site, trained) * rank,
        share=None if shares is None else getattr(shares, _REACHED[trained]),
        A_start=_start_of_A(shares) if trained == "B" else "",
        reason=_reason(site, trained, rank, reference),
        confidence=Confidence(failed=tuple(_doubts(site, trained, reference))),
    )


def _start_of_A(shares: Shares | None) -> AStart:
    if shares is None:
        return "orthonormal"
    singular = shares.singular_A or 0.0
    if shares.activation_A >= max(singular, shares.random_A) + START_GAIN:
        return "activation_pca"
    return "top_singular" if singular >= shares.random_A + START_GAIN else "orthonormal"


def _reason(site: SiteMeasures, trained: Trained, rank: int, reference: int) -> str:
    by_B, by_A, best = _reached(site, reference)
    at = _at(site, reference)
    compared = min(reference, site.limit) if at is None else at.rank
    what = "the first update's energy" if site.shares else "a generic update's energy"
    about = "" if site.centred_ratio is None else f"; {site.centred_ratio:.3g} about their mean"
    text = (
        f"Train {trained}: the inputs fill {site.input_ratio:.3g} of {site.fan_in} dimensions (participation ratio"
        f"{about}) and there are {site.outputs} outputs. At rank {compared} a random held A leaves {by_B:.2g} of {what}"
        f" in reach of B, a random held B leaves {by_A:.2g} in reach of A."
    )
    if trained == "both":
        text += f" Neither is {REACH:.0%} of the {best:.2g} that the best update of that rank holds."
    if trained == "A" and site.outputs < site.fan_in:
        text += f" Each rank of A trains {site.fan_in} values, of B {site.outputs}."
    if _cost(site, trained) * rank >= site.fan_in * site.outputs:
        text += (
            f" These are as many values as the layer's own {site.fan_in * site.outputs:,}: train it in full instead."
        )
    return text


def _doubts(site: SiteMeasures, trained: Trained, rank: int) -> list[str]:
    """Return a sentence on each check that is not met."""
    by_B, by_A, best = _reached(site, rank)
    larger, smaller = max(by_B, by_A), min(by_B, by_A)
    doubts: list[str] = []
    if not site.shares:
        doubts.append(f"No gradient was kept ({site.why_no_shares}), so only the generic criterion speaks.")
    elif trained != "both" and (site.generic_ratio > 1) != (by_B > by_A):
        doubts.append(f"The generic criterion, {site.generic_ratio:.2g}, names the other factor.")
    elif trained != "both" and site.centred_ratio and (site.outputs > site.centred_ratio) != (by_B > by_A):
        doubts.append(
            f"About their mean the inputs fill {site.centred_ratio:.3g} dimensions, and the generic criterion names the"
            " other factor."
        )
    above, below = (REACH * best, larger) if trained == "both" else (larger, smaller)
    if above < CLEAR * below:
        doubts.append(f"The decision was close: by a factor {above / below:.2g}, below {CLEAR:g}.")
    if site.rows < ROWS_PER_DIMENSION * site.input_ratio:
        doubts.append(
            f"{site.rows} rows are few for {site.input_ratio:.3g} dimensions, so the inputs look more concentrated than"
            " they are."
        )
    if site.shares and not _is_told(site):
        told = "not known" if site.noise is None else f"{min(site.noise, 1.0):.0%}"
        doubts.append(f"The part of the gradient's energy that is chance of the batches is {told}: give more batches.")
    if site.missed > LARGEST_MISS:
        doubts.append(f"The sketch of the inputs leaves out {site.missed:.0%} of them.")
    return doubts


def _setting(sites: Sequence[SiteAdvice], tested: Setting) -> Setting:
    """Return what most sites are advised, at the geometric mean of their ranks, on the layers of the test."""
    trained = _most_common([site.train for site in sites])
    ranks = [site.rank for site in sites if site.train == trained]
    mean = max(1, round(math.exp(sum(map(math.log, ranks)) / len(ranks))))
    return replace(
        tested,
        method=PRESETS[trained],
        rank=mean,
        scaling=AdapterSpec().scaling_factor,
        start="gaussian" if trained == "both" else "orthonormal",
    )


def _most_common(values: Sequence[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _inside(name: str, ending: str) -> bool:
    parts = name.split(".")
    return any(ends_with(".".join(parts[: i + 1]), ending) for i in range(len(parts)))


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return a pattern by ending that gives each site its value where that is not the default, with short endings.

    A whole path may be the ending of longer ones (``fc`` of ``h.0.fc``). It comes first and is used where no ending
    will do; the longer ones then get endings of their own, which win.
    """
    pattern: dict[str, Any] = {}
    for name, value in sorted(values.items(), key=lambda item: len(item[0])):
        given = matching_value(pattern, name)
        if value == (default if given is None else given):
            continue
        parts = name.split(".")
        endings = (".".join(parts[i:]) for i in reversed(range(len(parts))))
        pattern[next((e for e in endings if _all_have(values, e, value)), name)] = value
    return pattern


def _all_have(values: Mapping[str, Any], ending: str, value: Any) -> bool:
    return all(other == value for name, other in values.items() if ends_with(name, ending))


def _flat(row: dict[str, Any], confidence: Confidence) -> dict[str, Any]:
    row.pop("name", None)
    return {**row, "confidence": confidence.level, "doubts": list(confidence.failed)}
