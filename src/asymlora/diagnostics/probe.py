"""What each site's layer reads in one forward pass over a fixed batch, captured once.

Later layers read what earlier adapters have changed, so the exact split of a step holds on captured inputs only.

Legend: ``k`` rows kept (tokens, output positions or ids), ``n`` fan in, ``m`` outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asymlora.diagnostics.padding import attention_mask
from asymlora.diagnostics.site_moments import patches
from asymlora.diagnostics.undisturbed import undisturbed
from asymlora.errors import AsymloraError, AttachError, DataError, EmptyDataError, SpecError
from asymlora.site_view import Site

ProbeBatch = Mapping[str, Any] | Tensor | tuple[Any, ...] | list[Any]
_FOR_PEFT = ("adapter_names", "alora_offsets")
"""Arguments that PEFT's layers take for themselves."""
_RECENT = 4
"""How many stored inputs a new one is compared with: layers that read the same follow each other."""


@dataclass(frozen=True, kw_only=True)
class SiteInput:
    """What one site's layer read.

    Attributes:
        x: Rows of the layer's input in its own dtype, shape ``(k, n)``; of a convolution the patches under ``k`` output
            positions, of an embedding the ids, shape ``(k,)``.
        rms_x: Root mean square of the entries of ``x``; 1 for ids.
        rms_base: Root mean square of the base layer's own output in the same rows; None if it gives no tensor of rows.
    """

    x: Tensor
    rms_x: float
    rms_base: float | None

    def to(self, device: torch.device) -> SiteInput:
        """Return the same on a device."""
        return replace(self, x=self.x.to(device))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The captured inputs of a model's sites.

    Attributes:
        inputs: By site. Sites that read the same hold the same tensor.
        uncalled: Sites whose layer the model did not call; they have no input.
        called_again: Sites whose layer was called more than once; the first call counts.
    """

    inputs: Mapping[str, SiteInput]
    uncalled: tuple[str, ...]
    called_again: tuple[str, ...]

    @property
    def kept_bytes(self) -> int:
        """Bytes of the kept inputs, shared ones counted once."""
        return sum(x.numel() * x.element_size() for x in {id(i.x): i.x for i in self.inputs.values()}.values())


def capture(model: nn.Module, batch: ProbeBatch, sites: Sequence[Site], *, max_rows: int) -> Probe:
    """Run a model once and keep some rows of what each site's layer reads.

    The model runs in eval mode without gradients, outside of DDP and `torch.compile`; nothing of its state changes.
    Rows are evenly spaced over those that count: all, or where the batch has an ``attention_mask`` of the shape of the
    layer's rows, those that it does not mask (`padding.attention_mask`: a decoder has its own).

    Args:
        model: The adapted model, or a wrapper around it.
        batch: What the model is called with: ``model(**mapping)``, ``model(*tuple)`` or ``model(tensor)``. Tensors are
            moved to the model's device.
        sites: Its sites.
        max_rows: Most rows kept for a site, at least 1.

    Returns:
        The inputs.

    Raises:
        SpecError: The batch is no mapping, tensor or tuple, or ``max_rows`` is below 1.
        EmptyDataError: The batch has no row, or its mask counts none.
        DataError: The model cannot be called with the batch.
        AttachError: The model calls none of the layers.
        AsymloraError: The model's own, as it is.
    """
    if isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1:
        raise SpecError(f"max_rows={max_rows!r} must be a whole number of at least 1; 256 is the default.")
    _refuse_empty(batch)
    inner = _unwrapped(model)
    given, named = _arguments(batch, inner)
    recorder = _Recorder(named, max_rows)
    hooks = [
        site.layer.register_forward_pre_hook(recorder.listen_at(site), with_kwargs=True, prepend=True) for site in sites
    ]
    try:
        with undisturbed(inner):
            inner(*given, **named)
    except AsymloraError:
        raise
    except Exception as error:
        raise DataError(
            f"The model ({type(inner).__name__}) cannot run on probe_batch, {_described(batch)}:"
            f" {type(error).__name__}: {error}. Give a batch as its training loop does: model(**mapping),"
            " model(*tuple) or model(tensor)."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.probe([site.name for site in sites])


class _Recorder:
    """Keeps rows of what layers read."""

    def __init__(self, batch: Mapping[str, Any], max_rows: int) -> None:
        self.batch, self.max_rows = batch, max_rows
        self.inputs: dict[str, SiteInput] = {}
        self.again: dict[str, None] = {}
        self.recent: list[Tensor] = []

    def listen_at(self, site: Site) -> Callable[..., None]:
        """Return a forward pre-hook for the site's layer."""

        def hear(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if site.name in self.inputs:
                self.again[site.name] = None
                return
            named = {key: value for key, value in kwargs.items() if key not in _FOR_PEFT}
            x, *others = args or (named.pop("x", None),)  # its name in adapter layers; bases have another
            if not isinstance(x, Tensor):
                raise DataError(f"{site.name} was called without a tensor, so there is no input to keep. Leave it out.")
            base = base_of(layer)
            out = base(x, *others, **named)
            self.inputs[site.name] = self._kept(site, base, x, out)

        return hear

    def _kept(self, site: Site, base: nn.Module, x: Tensor, out: Any) -> SiteInput:
        kind = site.kind
        rows, positions = self._embedding_or_dense(site, x) if kind != "convolution" else self._patches(base, x, out)
        read = _rows_of_output(kind, base, out)
        rms_base = None if read is None or positions[-1] >= len(read) else rms(read[positions.to(read.device)])
        rms_x = 1.0 if kind == "embedding" else rms(rows)
        return SiteInput(x=self._once(rows), rms_x=rms_x, rms_base=rms_base)

    def _embedding_or_dense(self, site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
        kind = site.kind
        leading = x.shape if kind == "embedding" else x.shape[:-1]
        flat = x.reshape(-1) if kind == "embedding" else x.reshape(-1, x.shape[-1])
        positions = evenly(math.prod(leading), self.max_rows, self._mask_for(site.name, leading))
        return flat[positions.to(x.device)], positions

    def _mask_for(self, name: str, leading: torch.Size) -> Tensor | None:
        mask = attention_mask(self.batch, name)
        if mask is None or leading not in (mask.shape, (mask.numel(),)):
            return None
        return mask.reshape(-1) != 0

    def _patches(self, base: Any, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        dims = base.weight.dim() - 2
        batched = x if x.dim() == dims + 2 else x[None]
        spatial = out.shape[-dims:]
        positions = evenly(len(batched) * math.prod(spatial), self.max_rows, None)
        return patches(base, batched)[positions.to(x.device)], positions

    def _once(self, rows: Tensor) -> Tensor:
        rows = rows.detach()
        for kept in self.recent:
            same_form = (kept.shape, kept.dtype, kept.device) == (rows.shape, rows.dtype, rows.device)
            if same_form and torch.equal(kept, rows):
                return kept
        rows = rows.clone()  # of its own memory, also where indexing gave a view
        self.recent = [rows, *self.recent[: _RECENT - 1]]
        return rows

    def probe(self, names: Sequence[str]) -> Probe:
        """Return what was heard.

        Raises:
            AttachError: Nothing was.
        """
        if not self.inputs:
            raise AttachError(
                f"The model calls none of its {len(names)} adapters on probe_batch ({', '.join(names[:3])}): nothing"
                " can be measured. Give a batch that runs through them, or adapt layers that the model calls."
            )
        uncalled = tuple(name for name in names if name not in self.inputs)
        return Probe(inputs=self.inputs, uncalled=uncalled, called_again=tuple(self.again))


def base_of(layer: Any) -> nn.Module:
    """Return the layer under an adapter layer, own or PEFT's."""
    return layer.get_base_layer() if hasattr(type(layer), "get_base_layer") else layer.base_layer


def evenly(count: int, most: int, mask: Tensor | None) -> Tensor:
    """Return up to ``most`` positions, evenly spaced over ``count``, or over those that a mask counts.

    Args:
        count: How many there are, at least 1.
        most: How many are taken at most.
        mask: Which of them count, shape ``(count,)``; None: all.

    Returns:
        Ascending positions.

    Example:
        >>> evenly(10, 3, None).tolist(), evenly(4, 9, torch.tensor([True, False, True, True])).tolist()
        ([0, 3, 6], [0, 2, 3])
    """
    counted = torch.arange(count) if mask is None else mask.nonzero()[:, 0].cpu()
    kept = min(most, len(counted))
    return counted[torch.arange(kept) * len(counted) // kept]


def _rows_of_output(kind: str, base: Any, out: Any) -> Tensor | None:
    if not isinstance(out, Tensor):
        return None
    if kind != "convolution":
        return out.reshape(-1, out.shape[-1])
    batched = out if out.dim() == base.weight.dim() else out[None]
    return batched.movedim(1, -1).reshape(-1, batched.shape[1])


def rms(values: Tensor) -> float:
    """Return the root mean square of the entries.

    Example:
        >>> rms(torch.tensor([3.0, -3.0]))
        3.0
    """
    wide = values if values.dtype == torch.float64 else values.float()
    return (torch.linalg.vector_norm(wide) / math.sqrt(values.numel())).item()


def _refuse_empty(batch: Any) -> None:
    if not isinstance(batch, Mapping | Tensor | tuple | list):
        raise SpecError(
            f"probe_batch is a {type(batch).__name__}. It must be a mapping of arguments, a tensor, or a tuple of"
            " arguments: what the model is called with."
        )
    values: list[Any] = [batch] if isinstance(batch, Tensor) else list(_values(batch))
    tensors = [value for value in values if isinstance(value, Tensor)]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not values or any(value.numel() == 0 for value in tensors):
        raise EmptyDataError(
            f"probe_batch has no row: {_described(batch)}. Give at least one, as the model is trained."
        )
    if isinstance(mask, Tensor) and not mask.any():
        raise EmptyDataError("The attention_mask of probe_batch counts no token. Give a batch with some.")


def _values(batch: Any) -> Any:
    return batch.values() if isinstance(batch, Mapping) else batch


def _described(batch: ProbeBatch) -> str:
    def one(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {one(value)}" for key, value in batch.items()) + "}"
    return one(batch) if isinstance(batch, Tensor) else "(" + ", ".join(map(one, batch)) + ")"


def _arguments(batch: ProbeBatch, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        return (), {str(key): moved(value) for key, value in batch.items()}
    return ((moved(batch),) if isinstance(batch, Tensor) else tuple(map(moved, batch))), {}


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model under DDP, DataParallel and `torch.compile`, which would synchronise or compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # pyright: ignore[reportAssignmentType]
        else:
            return model
