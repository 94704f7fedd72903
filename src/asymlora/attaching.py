"""Put an adapter on a model, take it off, switch it off, fold it in. Loops over layer-level verbs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from asymlora.checkpoint import AdapterSaver, PartSaveRefusal, fill, match_spec, read_adapter
from asymlora.errors import AlreadyAttachedError, AttachError
from asymlora.init import draw
from asymlora.layers import LinearAdapter
from asymlora.ops import merged_weight
from asymlora.site_view import Attachment, attached, find_attached, set_attachment, sites
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules, match_targets

M = TypeVar("M", bound=nn.Module)


def attach(model: M, spec: AdapterSpec) -> M:
    """Put an adapter on a model, in place; the model stays of its class and gives the same output as before.

    Every base parameter stops requiring a gradient; trained factors and ``spec.modules_to_save`` require one. All is
    checked before the first layer is touched. Attach to the model that you will save, not to a part of it: a parent
    that is not attached saves as a whole model.

    Args:
        model: Any module with `nn.Linear` layers.
        spec: The adapter.

    Returns:
        The same model.

    Raises:
        AlreadyAttachedError: The model carries an adapter.
        NoTargetError: A target or module to save matches nothing; what could match is listed.
        RankError: The rank is larger than a target layer allows.
        AttachError: A target layer stands in several places of the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> attach(model, AdapterSpec.b_only(rank=2, targets="0"))[0]
        LinearAdapter(
          rank=2, scaling=2, frozen=A
          (base_layer): Linear(in_features=6, out_features=4, bias=True)
        )
    """
    if find_attached(model) is not None:
        raise AlreadyAttachedError(
            f"This {type(model).__name__} carries an adapter already. Call asymlora.detach(model) or"
            " asymlora.merge(model) first."
        )
    saved = match_saved_modules(model, spec.modules_to_save)
    bases = match_targets(model, spec, saved)
    factors = {name: _drawn(base, spec, name) for name, base in bases.items()}
    return _install(model, spec, factors, saved)


def load_adapter(model: M, folder: str | Path, *, modules_to_save: Sequence[str] | None = None) -> M:
    """Put the adapter of a folder on a model, in place.

    Args:
        model: The base model, without an adapter.
        folder: Written by `save_adapter` or by PEFT.
        modules_to_save: Endings of the paths of modules that the file may overwrite; None: the modules that its
            configuration lists, by whole parts of their paths.

    Returns:
        The same model. Of a folder that PEFT wrote, both factors are trained.

    Raises:
        AdapterFileError: The folder cannot be read or does not fit; all problems are listed.
        AlreadyAttachedError: The model carries an adapter.
    """
    file = read_adapter(folder)
    if find_attached(model) is not None:
        raise AlreadyAttachedError("This model carries an adapter already. Call asymlora.detach(model) first.")
    spec = match_spec(model, file, modules_to_save)
    saved = match_saved_modules(model, spec.modules_to_save)
    named = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n in file.factors}
    # Of the model's own shapes, so that `fill` sees where the file's differ.
    factors = {
        name: (torch.zeros(spec.rank, base.in_features), torch.zeros(base.out_features, spec.rank))
        for name, base in named.items()
    }
    installed = _install(model, spec, factors, saved)
    try:
        fill(model, file)
    except Exception:
        detach(model)
        raise
    return installed


def _drawn(base: nn.Linear, spec: AdapterSpec, name: str) -> tuple[Tensor, Tensor]:
    A = draw(spec.A.init, (spec.rank, base.in_features), seed=spec.seed, site=name, factor="A")
    B = draw(spec.B.init, (base.out_features, spec.rank), seed=spec.seed, site=name, factor="B")
    return A, B


def _install(model: M, spec: AdapterSpec, factors: Mapping[str, tuple[Tensor, Tensor]], saved: tuple[str, ...]) -> M:
    trained_before = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    model.requires_grad_(False)
    for path in saved:
        model.get_submodule(path).requires_grad_(True)
    for name, (A, B) in factors.items():
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        layer = LinearAdapter(
            base,
            A=A.to(base.weight.device),
            B=B.to(base.weight.device),
            scaling=spec.scaling_factor,
            dropout=spec.dropout,
            trains_A=spec.A.trainable,
            trains_B=spec.B.trainable,
        )
        model.set_submodule(name, layer.train(base.training))
    record = Attachment(spec=spec, sites=tuple(factors), saved_modules=saved, trained_before=trained_before)
    set_attachment(model, record)
    _guard_saving(model, record.sites)
    return model


def _guard_saving(model: nn.Module, adapted: Iterable[str]) -> None:
    for name, part in model.named_modules():
        if not callable(getattr(part, "save_pretrained", None)):
            continue
        # In the instance's own dictionary, past nn.Module's bookkeeping: copies and pickles take it along.
        if part is model:
            part.__dict__["save_pretrained"] = AdapterSaver(model)
        elif any(site.startswith(name + ".") for site in adapted):
            part.__dict__["save_pretrained"] = PartSaveRefusal(name, type(model).__name__)


def detach(model: M) -> M:
    """Take the adapter off a model, in place: the base layers stand where they stood.

    Modules that were trained in full beside the adapter keep their trained values.

    Args:
        model: An attached model.

    Returns:
        The same model; parameters that required a gradient before `attach` require one again.
    """
    root, record = attached(model)
    for site in list(sites(root)):
        root.set_submodule(site.name, site.layer.base_layer)
    for part in root.modules():
        if isinstance(part.__dict__.get("save_pretrained"), AdapterSaver | PartSaveRefusal):
            del part.__dict__["save_pretrained"]
    set_attachment(root, None)
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(name in record.trained_before)
    return model


def merge(model: M) -> M:
    """Fold the adapter into the base weights, in place, and take it off.

    Each weight becomes the float64 value of ``W0 + s*B*A`` rounded once to the base's dtype.

    Args:
        model: An attached model.

    Returns:
        The same model, plain: no adapter layer is left.

    Raises:
        AttachError: A base weight is shared with another module, which the merge would change too, or a merged weight
            would not be finite in the base's dtype.
    """
    root, _ = attached(model)
    owners: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    tied = [names for s in sites(root) if len(names := owners[id(s.layer.base_layer.weight)]) > 1]
    if tied:
        listed = "; ".join(" = ".join(names) for names in tied)
        raise AttachError(f"Merging would change a weight that other modules share: {listed}. Untie it first.")
    # Formed twice, one site at a time, rather than kept: a second copy of the model would cost more.
    merged = ((s, merged_weight(s.weight, s.A, s.B, scaling=s.scaling)) for s in sites(root))
    if bad := [f"{s.name} ({weight.dtype})" for s, weight in merged if not torch.isfinite(weight).all()]:
        raise AttachError(
            f"Merged weights are not finite at {', '.join(bad[:3])}: the sum overflows the base's type, or a factor"
            " holds NaN. Load the base in a wider type; nothing was changed."
        )
    with torch.no_grad():
        for s in sites(root):
            s.weight.copy_(merged_weight(s.weight, s.A, s.B, scaling=s.scaling))
    return detach(model)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off for a while: the model gives the base's own output. Nothing is thawed or moved.

    Modules that are trained in full beside the adapter stay as they are.

    Args:
        model: An attached model.

    Yields:
        Nothing.
    """
    layers = [site.layer for site in sites(model)]
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.enabled = was


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many values are trained, and how many there are, frozen factors included.

    Args:
        model: Any model.

    Returns:
        Trained values, all values.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen_factors = sum(
        buffer.numel()
        for layer in model.modules()
        if isinstance(layer, LinearAdapter)
        for buffer in layer.buffers(recurse=False)
    )
    return trained, sum(p.numel() for p in model.parameters()) + frozen_factors


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how much of a model is trained, in the line that PEFT prints.

    Args:
        model: Any model.

    Example:
        >>> print_trainable_parameters(attach(nn.Sequential(nn.Linear(6, 4)), AdapterSpec.b_only(rank=2)))
        trainable params: 8 || all params: 48 || trainable%: 16.6667
    """
    trained, total = count_parameters(model)
    print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")


__all__ = ["attach", "count_parameters", "detach", "disabled", "load_adapter", "merge", "print_trainable_parameters"]
