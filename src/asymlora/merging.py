"""Fold an adapter into the base weights: for good, for a while, and with what the rounding cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from asymlora.attaching import detach
from asymlora.errors import AttachError
from asymlora.layers import set_flag
from asymlora.ops import merged_weight, rounding_error
from asymlora.site_view import Site, attached, refuse_folded, sites

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class MergeError:
    """What rounding the merged weight to the base's dtype costs at one site.

    Attributes:
        site: Path of the module.
        max_error: Largest absolute difference between the merged weight and the float64 value of ``W0 + s*B*A``.
        relative_error: Frobenius norm of that difference over that of the update ``s*B*A``; 0 without an update.
        unmoved: Fraction of the entries that the update does not move, in [0, 1]: it is lost in the rounding there.
    """

    site: str
    max_error: float
    relative_error: float
    unmoved: float


def merge(model: M) -> M:
    """Fold the adapter into the base weights, in place, and take it off.

    Each weight becomes the float64 value of ``W0 + s*B*A`` rounded once to the base's dtype.

    Args:
        model: An attached model.

    Returns:
        The same model, plain: no adapter layer is left.

    Raises:
        AttachError: A base weight is shared with another module, which the merge would change too, is quantised or
            grouped, or a merged weight would not be finite in the base's dtype. Nothing was changed.
        NotAttachedError: The model carries no adapter, for instance because it was merged.
    """
    root, _ = attached(model)
    refuse_folded(root, "merge it")
    _refuse_unmergeable(root)
    # Formed twice, one site at a time, rather than kept: a second copy of the model would cost more.
    _refuse_overflow((site, _merged(site)) for site in sites(root))
    with torch.no_grad():
        for site in sites(root):
            merged = _merged(site)
            site.layer.restore_base()
            site.weight.copy_(merged)
    return detach(model)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Hold the update in the base weights for a while, so that the model runs at the base's speed.

    Afterwards the base weights are the very tensors of before, bit for bit. Do not train meanwhile: the adapter is
    switched off.

    Args:
        model: An attached model.

    Yields:
        Nothing.

    Raises:
        AttachError: As for `merge`, or the adapter is folded in already.
    """
    root, _ = attached(model)
    refuse_folded(root, "fold it in again")
    _refuse_unmergeable(root)
    layers = [site.layer for site in sites(root)]
    weights = {site.name: _merged(site) for site in sites(root)}
    _refuse_overflow((site, weights[site.name]) for site in sites(root))
    try:
        with set_flag(layers, "enabled", value=False):
            for site in sites(root):
                site.layer.folded, site.weight.data = site.weight.data, weights.pop(site.name)
            yield
    finally:
        for layer in layers:
            if layer.folded is not None:
                layer.base_layer.weight.data, layer.folded = layer.folded, None  # pyright: ignore[reportAttributeAccessIssue]


def merge_errors(model: nn.Module) -> tuple[MergeError, ...]:
    """Return what merging would cost at each site; nothing is changed.

    Args:
        model: An attached model.

    Returns:
        One `MergeError` for each site, in the model's order.

    Raises:
        AttachError: As for `merge`.
    """
    root, _ = attached(model)
    refuse_folded(root, "measure its merge")
    _refuse_unmergeable(root)
    found: list[MergeError] = []
    for site in sites(root):
        layer, base = site.layer, site.layer.base_layer
        A, B = layer.update()
        largest, relative, unmoved = rounding_error(
            layer.matrix_of(base, layer.original_weight().detach()),
            layer.matrix_of(base, _merged(site)),
            A,
            B,
            scaling=layer.scaling,
        )
        found.append(MergeError(site=site.name, max_error=largest, relative_error=relative, unmoved=unmoved))
    return tuple(found)


def _merged(site: Site) -> Tensor:
    layer, base = site.layer, site.layer.base_layer
    A, B = layer.update()
    matrix = layer.matrix_of(base, layer.original_weight().detach())
    whole = layer.weight_from(base, merged_weight(matrix, A, B, scaling=site.scaling))
    return torch.empty_like(site.weight.detach()).copy_(whole)


def _refuse_unmergeable(root: nn.Module) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    problems = [f"{site.name} {why}" for site in sites(root) if (why := site.layer.why_not_merge())]
    if problems:
        raise AttachError(
            f"These layers cannot take the update into their weight: {'; '.join(problems[:3])}. Keep the adapter on"
            " the model, or load the base unquantised and merge there."
        )
    tied = [names for s in sites(root) if len(names := owners.get(id(s.weight), [])) > 1]
    if tied:
        listed = "; ".join(" = ".join(names) for names in tied)
        raise AttachError(f"Merging would change a weight that other modules share: {listed}. Untie it first.")


def _refuse_overflow(merged: Iterator[tuple[Site, Tensor]]) -> None:
    if bad := [f"{s.name} ({weight.dtype})" for s, weight in merged if not torch.isfinite(weight).all()]:
        raise AttachError(
            f"Merged weights are not finite at {', '.join(bad[:3])}: the sum overflows the base's type, or a factor"
            " holds NaN. Load the base in a wider type; nothing was changed."
        )
