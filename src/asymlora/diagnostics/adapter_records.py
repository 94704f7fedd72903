"""One adapter, site by site: sizes of its factors, spectrum of its update, what cutting or merging it would lose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asymlora.diagnostics.product_spectrum import (
    effective_rank,
    product_svd,
    rounding_tolerance,
    stable_rank,
    truncation_error,
)
from asymlora.diagnostics.site_factors import SiteFactors, site_factors
from asymlora.errors import AttachError
from asymlora.ops import merged_weight, rounding_error

Record = dict[str, Any]
MERGE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types in which merged weights are served."""
MOST_MERGED = 2**20
"""Entries of a weight that a merge is tried on; of a larger one evenly spaced rows stand for all."""


def adapter_records(
    adapter: str | Path | nn.Module | Iterable[SiteFactors], *, weights: Mapping[str, Tensor] | None = None
) -> list[Record]:
    """Return what an adapter holds: one row for each site.

    Args:
        adapter: A folder, a model that carries an adapter, or the sites themselves.
        weights: Base weights by site as matrices ``(out, in)``; with them the rows say what merging would lose.

    Returns:
        Rows with these fields; None stands for what is not known or not defined:

        * ``site``, ``kind``, ``group`` (the path without its numbers), ``layer`` (its first number), ``rank``,
          ``fan_in`` (columns of A), ``outputs`` (rows of B), ``scaling``, ``trains_A``, ``trains_B``, ``finite``.
        * ``norm_A``, ``norm_B``, ``norm_update`` (Frobenius; the last of ``s B A``), ``spectral_norm``; ``rms_A``,
          ``max_A`` and so for B, of the entries.
        * ``singular_values`` of ``s B A``, ``effective_rank``, ``stable_rank``, ``largest_share`` (of the squared norm,
          that of the largest), ``directions`` (singular values that are more than rounding).
        * ``truncation_ranks`` (the rank in halves) and ``truncation_errors``: relative Frobenius error of ``s B A`` cut
          to each.
        * ``moved_A``, ``moved_B``: ``|A - A_0| / |A_0|``, where the start is known and not zero.
        * ``relative_update`` (``|s B A| / |W0|``) and, for each of `MERGE_DTYPES`, ``merge_error_...`` and
          ``merge_lost_...``, as `merge_loss` gives them: with ``weights`` alone, and not of a convolution in groups,
          which cannot be merged.

    Raises:
        AdapterFileError: The folder cannot be read.
        NotAttachedError: The model carries no adapter.
        AttachError: A base weight is missing or has another shape than the update.
    """
    sites = tuple(site_factors(adapter) if isinstance(adapter, str | Path | nn.Module) else adapter)
    if weights is not None:
        _refuse_unfit(sites, weights)
    return [_record(site, None if weights is None else weights[site.name]) for site in sites]


def merge_loss(site: SiteFactors, weight: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return what rounding costs when an update is merged into a base of some type.

    The base is rounded to that type first, as a base that is served in it is: what is counted is what the merge loses
    beside an adapter that stays apart. Of a weight of more than `MOST_MERGED` entries every k-th row is measured.

    Args:
        site: The factors.
        weight: Base weight, shape ``(out, in)``.
        dtype: Type of the base and of the merged weight.

    Returns:
        Frobenius norm of the rounding error over that of the update (infinite where the sum overflows the type), and
        the fraction of all entries that the update should move and does not.
    """
    A, B = site.update()
    every = -(-weight.numel() // MOST_MERGED)
    base, B = weight.detach()[::every].to(dtype), B[::every]
    merged = merged_weight(base, A, B, scaling=site.scaling)
    if not torch.isfinite(merged).all():
        return math.inf, math.nan
    _, relative, lost = rounding_error(base, merged, A, B, scaling=site.scaling)
    return relative, lost


def _record(site: SiteFactors, weight: Tensor | None) -> Record:
    trained = site.trained or (None, None)
    finite = all(bool(torch.isfinite(factor).all()) for factor in (site.A, site.B))
    record: Record = {
        "site": site.name,
        "kind": site.kind,
        "group": site.group,
        "layer": site.layer,
        "rank": site.A.shape[0],
        "fan_in": site.A.shape[1],
        "outputs": site.B.shape[0],
        "scaling": site.scaling,
        "trains_A": trained[0],
        "trains_B": trained[1],
        "finite": finite,
    }
    if not finite:
        return record | dict.fromkeys(_NUMBERS)
    record |= dict(_sizes(site)) | _spectrum(site)
    return record | _merging(site, weight, record["norm_update"])


_FACTOR_NUMBERS = tuple(f"{name}_{letter}" for letter in "AB" for name in ("norm", "rms", "max", "moved"))
_MERGE_NUMBERS = ("relative_update", *(f"merge_{what}_{dtype}" for dtype in MERGE_DTYPES for what in ("error", "lost")))
_NUMBERS = (
    *_FACTOR_NUMBERS,
    *("norm_update", "spectral_norm", "singular_values", "effective_rank", "stable_rank", "largest_share"),
    *("directions", "truncation_ranks", "truncation_errors"),
    *_MERGE_NUMBERS,
)
"""Fields that a site without finite factors has as None."""


def _sizes(site: SiteFactors) -> Iterator[tuple[str, float | None]]:
    for letter, factor, start in zip("AB", (site.A, site.B), site.starts, strict=True):
        wide = factor.detach().double()
        norm = wide.norm().item()
        yield f"norm_{letter}", norm
        yield f"rms_{letter}", norm / math.sqrt(wide.numel())
        yield f"max_{letter}", wide.abs().max().item()
        yield f"moved_{letter}", moved(factor, start)


def moved(factor: Tensor, start: Tensor | None) -> float | None:
    """Return how far a factor is from its start: ``|A - A_0| / |A_0|``, or None where that is unknown or zero."""
    if start is None:
        return None
    # A start is drawn in float32; what rounding to the factor's own type does is no movement.
    drawn = start.to(factor).double()
    size = drawn.norm().item()
    return (factor.detach().double() - drawn).norm().item() / size if size else None


def _spectrum(site: SiteFactors) -> Record:
    A, B = site.update()
    values = product_svd(A, B, scaling=site.scaling).values
    largest = values.max().item()
    energy = values.square().sum().item()
    ranks = _halves(site.A.shape[0])
    return {
        "norm_update": math.sqrt(energy),
        "spectral_norm": largest,
        "singular_values": values.tolist(),
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        "largest_share": largest**2 / energy if energy else None,
        "directions": int((values > rounding_tolerance(A, B) * largest).sum()),
        "truncation_ranks": ranks,
        "truncation_errors": [truncation_error(values, rank) for rank in ranks],
    }


def _halves(rank: int) -> list[int]:
    return [] if rank < 2 else [rank // 2, *_halves(rank // 2)]


def _merging(site: SiteFactors, weight: Tensor | None, norm_update: float) -> Record:
    if weight is None or _is_grouped(site, weight):
        return dict.fromkeys(_MERGE_NUMBERS)
    size = weight.detach().double().norm().item()
    record: Record = {"relative_update": norm_update / size if size else None}
    for name, dtype in MERGE_DTYPES.items():
        record[f"merge_error_{name}"], record[f"merge_lost_{name}"] = merge_loss(site, weight, dtype)
    return record


def _is_grouped(site: SiteFactors, weight: Tensor) -> bool:
    """Whether the base is a convolution in groups: the update reads every channel, so it is no update of its weight."""
    groups, rest = divmod(site.A.shape[1], weight.shape[1])
    return site.kind == "convolution" and len(site.B) == len(weight) and groups > 1 and not rest


def _refuse_unfit(sites: Iterable[SiteFactors], weights: Mapping[str, Tensor]) -> None:
    problems: list[str] = []
    for site in sites:
        wanted = site.B.shape[0], site.A.shape[1]
        if site.name not in weights:
            problems.append(f"{site.name} is not in it")
        elif tuple(weights[site.name].shape) != wanted and not _is_grouped(site, weights[site.name]):
            problems.append(f"{site.name} is {tuple(weights[site.name].shape)}, and its update {wanted}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise AttachError(
            f"The base is not the one that this adapter was trained on: {'; '.join(problems[:3])}{more}. Name the model"
            " that it was trained on."
        )
