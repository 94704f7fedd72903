"""The factors of a site as they are now, as matrices; and how far a factor is from where it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asymlora.diagnostics.probe import base_of
from asymlora.errors import AttachError
from asymlora.peft_sites import Factor, adapters_of, place_of
from asymlora.site_view import Site


def current(site: Site, factor: Factor, adapter: str | None) -> Tensor:
    """Return a factor's own tensor as the layer has it now.

    Args:
        site: The site.
        factor: Which factor.
        adapter: Name of the adapter of a PEFT layer; None: a layer of our own.

    Raises:
        AttachError: The adapter was deleted.
    """
    if adapter is None:
        return site.layer.lora_A if factor == "A" else site.layer.lora_B
    if adapter not in adapters_of(site.layer):
        raise AttachError(
            f"The adapter {adapter!r} was deleted from {site.name} while it is measured. Leave FeatureDynamics before"
            " that, and make a new one for another adapter."
        )
    return place_of(site.layer, factor, adapter).tensor


def current_scaling(site: Site, adapter: str | None) -> float:
    """Return the multiplier ``s`` as it is now."""
    held: Any = site.layer.scaling
    return float(held if adapter is None else held[adapter])


def own_scale(site: Site) -> float:
    """Return what the base layer multiplies its output with, and the update's with it: Gemma's embedding does."""
    return float(getattr(base_of(site.layer), "embed_scale", 1.0)) if site.kind == "embedding" else 1.0


def as_matrix(site: Site, factor: Factor, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of a factor as a matrix.

    Args:
        site: The site.
        factor: Which factor.
        tensor: The factor's tensor.
        dtype: Of the copy.

    Returns:
        Shape ``(r, n)`` of ``A``, ``(m, r)`` of ``B``. With groups ``B`` is block diagonal, as the convolution applies
        it.
    """
    wide = tensor.detach().to(dtype, copy=True).flatten(1)
    groups = getattr(base_of(site.layer), "groups", 1) if site.kind == "convolution" and factor == "B" else 1
    # In rows: own layers keep B in columns and PEFT in rows, and products of the two differ in the last bit.
    return torch.block_diag(*wide.chunk(groups)) if groups > 1 else wide.contiguous()


def refuse_divided(site: Site, *factors: Tensor) -> None:
    """Refuse factors that this process does not hold whole, or at all.

    Args:
        site: The site, for the message.
        *factors: Its factors.

    Raises:
        AttachError: One is divided over processes, or on no device.
    """
    for tensor in factors:
        divided = hasattr(tensor, "full_tensor") or tensor.dim() < 2 or not tensor.numel()
        if divided or tensor.device.type == "meta":
            where = "divided over processes (FSDP, DeepSpeed)" if divided else "on the meta device"
            raise AttachError(
                f"The factors of {site.name} are {where}, so no process can measure them alone. Measure in a run"
                " on one device or under DDP; small runs of the same model show the same dynamics."
            )


def distances(now: Tensor, before: Tensor, start: Tensor) -> Tensor:
    r"""Return a factor's size, its last update, and how far it is from its start.

    The angle is :math:`2 \operatorname{atan2}(|u - v|, |u + v|)` with ``u``, ``v`` both factors at length one: exact
    for small angles, where the arc cosine is not.

    Args:
        now: The factor after the step.
        before: The factor before it; the very same tensor if it did not move.
        start: The factor at the start.

    Returns:
        Shape ``(6,)``: the norms of ``now``, of the update, of ``before``, of the whole way, of ``start``, and the
        angle in radians.

    Source:
        Kahan's form of the angle, from his notes "How Futile are Mindless Assessments of Roundoff", 2006.
    """
    norm = torch.linalg.vector_norm
    size, first = norm(now), norm(start)
    update = size.new_zeros(()) if now is before else norm(now - before)
    last = size if now is before else norm(before)
    u, v = now / size, start / first
    angle = 2 * torch.atan2(norm(u - v), norm(u + v))
    return torch.stack([size, update, last, norm(now - start), first, angle])


def state_of(measured: Sequence[float]) -> dict[str, float | None]:
    """Return what `distances` measured by name; None where a factor of zero leaves no ratio or no angle.

    Args:
        measured: The six numbers.

    Returns:
        ``norm``, ``update``, ``relative_update``, ``moved``, ``angle``.

    Example:
        >>> state_of([2.0, 1.0, 1.0, 2.0, 0.0, 0.5])
        {'norm': 2.0, 'update': 1.0, 'relative_update': 1.0, 'moved': None, 'angle': None}
    """
    size, update, last, way, first, angle = measured
    return {
        "norm": size,
        "update": update,
        "relative_update": update / last if last else None,
        "moved": way / first if first else None,
        "angle": angle if size and first else None,
    }
