"""Two or many adapters, site by site: how alike their A (row spaces) and their B (column spaces) are, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asymlora.diagnostics.adapter_records import moved
from asymlora.diagnostics.health import Factor, named
from asymlora.diagnostics.similarity import (
    angles_between,
    balanced_factors,
    chance_cka,
    chance_similarity,
    column_basis,
    linear_cka,
)
from asymlora.diagnostics.site_factors import SiteFactors, site_factors
from asymlora.errors import AdapterFileError

Record = dict[str, Any]
Adapters = Mapping[str, "str | Path | nn.Module | Iterable[SiteFactors]"]


class Comparison(NamedTuple):
    """How alike adapters are.

    Attributes:
        records: One row for each site, factor and pair.
        alone: Sites that not every adapter has, by adapter.
    """

    records: list[Record]
    alone: dict[str, list[str]]


def compare_adapters(adapters: Adapters) -> Comparison:
    """Return how alike the factors of several adapters of one base model are, for every pair of them.

    Args:
        adapters: Two or more by name: folders, models that carry an adapter, or sites themselves. Their ranks may
            differ, from site to site too.

    Returns:
        Rows of the sites that both of a pair have, by the paths of the first adapter (one of a model that was wrapped
        in another class differs in leading parts alone), with these fields; None stands for what is not known:

        * ``site``, ``kind``, ``group``, ``layer``, ``factor`` (A or B), ``pair`` (both names), ``first``, ``second``,
          ``width`` (of the space: ``in`` for A, ``out`` for B), ``rank_first``, ``rank_second`` (dimensions of the
          subspaces, beyond rounding).
        * ``cca``: mean squared cosine of the principal angles; ``cca_chance``: its mean for independent subspaces.
        * ``smallest_angle``, ``largest_angle``: in radians.
        * ``cka``, ``cka_chance``: of the balanced factors of ``B A``, which weigh a direction by how much it is used.
        * ``moved_first``, ``moved_second``: ``|A - A_0| / |A_0|`` where the start is known. A start that two adapters
          share makes them alike by itself.
        * ``zero``: names of the two whose factor is all zero, so that nothing can be compared.

    Raises:
        AdapterFileError: A folder cannot be read, fewer than two adapters are given, they have no site in common, the
            widths of a site differ (then they are of different models), or a factor holds NaN or infinity.
        NotAttachedError: A model carries no adapter.
    """
    if len(adapters) < 2:
        raise AdapterFileError("One adapter cannot be compared. Give two or more of the same base model.")
    prepared: dict[str, dict[str, _Prepared]] = {}
    sites = {
        name: tuple(site_factors(a) if isinstance(a, str | Path | nn.Module) else a) for name, a in adapters.items()
    }
    sites = _renamed(sites)
    _refuse_other_models(sites)
    for name, of in sites.items():
        _refuse_not_finite(name, of)
        prepared[name] = {site.name: _prepared(site) for site in of}
    shared = set.intersection(*(set(of) for of in prepared.values()))
    alone = {name: [site for site in of if site not in shared] for name, of in prepared.items()}
    records = [
        row
        for first, second in combinations(prepared, 2)
        for site in prepared[first]
        if site in prepared[second]
        for row in _rows(first, second, prepared[first][site], prepared[second][site])
    ]
    return Comparison(records, {name: absent for name, absent in alone.items() if absent})


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One factor, as a comparison needs it: columns of A's row space or of B's column space."""

    basis: Tensor
    balanced: Tensor
    moved: float | None


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    site: SiteFactors
    sides: dict[Factor, _Side]


def _prepared(site: SiteFactors) -> _Prepared:
    down, up = balanced_factors(site.A, site.B)
    sides: dict[Factor, _Side] = {
        "A": _Side(basis=column_basis(site.A.mT), balanced=down, moved=moved(site.A, site.starts[0])),
        "B": _Side(basis=column_basis(site.B), balanced=up, moved=moved(site.B, site.starts[1])),
    }
    return _Prepared(site=site, sides=sides)


def _rows(first: str, second: str, one: _Prepared, other: _Prepared) -> Iterator[Record]:
    for factor in one.sides:
        left, right = one.sides[factor], other.sides[factor]
        yield {
            "site": one.site.name,
            "kind": one.site.kind,
            "group": one.site.group,
            "layer": one.site.layer,
            "factor": factor,
            "pair": f"{first} ~ {second}",
            "first": first,
            "second": second,
            "width": left.basis.shape[0],
            "rank_first": left.basis.shape[1],
            "rank_second": right.basis.shape[1],
            **_alike(left, right),
            "moved_first": left.moved,
            "moved_second": right.moved,
            "zero": [name for name, side in ((first, left), (second, right)) if not side.basis.shape[1]],
        }


def _alike(left: _Side, right: _Side) -> Record:
    cka, chance = linear_cka(left.balanced, right.balanced), chance_cka(left.balanced, right.balanced)
    found: Record = {"cka": None if math.isnan(cka) else cka, "cka_chance": None if math.isnan(chance) else chance}
    angles = angles_between(left.basis, right.basis)
    if not len(angles):
        return found | dict.fromkeys(("cca", "cca_chance", "smallest_angle", "largest_angle"))
    return found | {
        "cca": angles.cos().square().mean().item(),
        "cca_chance": chance_similarity(left.basis.shape[1], left.basis.shape[0], right.basis.shape[1]),
        "smallest_angle": angles[0].item(),
        "largest_angle": angles[-1].item(),
    }


def _renamed(sites: Mapping[str, tuple[SiteFactors, ...]]) -> dict[str, tuple[SiteFactors, ...]]:
    """Give the sites of every adapter the paths that the first one's have, where only leading parts differ."""
    (first, reference), *others = sites.items()
    known = {site.name for site in reference}
    heads = _heads(reference)
    found = {first: reference}
    for name, of in others:
        best = of
        if not any(site.name in known for site in of):
            trials = [
                tuple(replace(site, name=head + site.name.removeprefix(own)) for site in of)
                for own in _heads(of)
                if all(site.name.startswith(own) for site in of)
                for head in heads
            ]
            best = max(trials, key=lambda trial: sum(site.name in known for site in trial), default=of)
        found[name] = best
    return found


def _heads(of: Sequence[SiteFactors]) -> list[str]:
    # A model may have been wrapped, for instance in a class that adds a head: at most two parts more.
    parts = of[0].name.split(".") if of else []
    return ["".join(f"{part}." for part in parts[:count]) for count in range(min(3, len(parts)))]


def _refuse_not_finite(name: str, of: Sequence[SiteFactors]) -> None:
    broken = [s.name for s in of if not all(bool(torch.isfinite(factor).all()) for factor in (s.A, s.B))]
    if broken:
        raise AdapterFileError(
            f"{name} cannot be compared: its factors hold NaN or infinity at {named(broken, len(of))}. Leave it out, or"
            " take an earlier checkpoint; alone it can be looked at."
        )


def _refuse_other_models(sites: Mapping[str, tuple[SiteFactors, ...]]) -> None:
    shapes = {name: {s.name: (s.B.shape[0], s.A.shape[1]) for s in of} for name, of in sites.items()}
    for first, second in combinations(shapes, 2):
        one, other = shapes[first], shapes[second]
        common = [site for site in one if site in other]
        if not common:
            raise AdapterFileError(
                f"{first} and {second} have no site in common: {first} has {named(list(one))}, {second}"
                f" {named(list(other))}. Only adapters of the same model, by the same paths, can be compared."
            )
        differing = [site for site in common if one[site] != other[site]]
        if differing:
            site, more = differing[0], len(differing) - 1
            raise AdapterFileError(
                f"{first} and {second} are adapters of different models: {site} is {one[site]} (out, in) in the one and"
                f" {other[site]} in the other{f', as are {more} sites more' if more else ''}. Only adapters of the same"
                " base model can be compared."
            )
