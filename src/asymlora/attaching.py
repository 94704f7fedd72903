"""Put an adapter on a model, take it off, switch it off, fold it in. Loops over layer-level verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from asymlora.adapter_reading import read_adapter
from asymlora.checkpoint import AdapterSaver, PartSaveRefusal
from asymlora.errors import AdapterFileError, AlreadyAttachedError
from asymlora.fitting import fill, match_spec, refuse_differing, refuse_unfit
from asymlora.installing import Factors, InputGradient, drawn_factors, install, starts_nonzero
from asymlora.layers import AdapterLayer, set_flag
from asymlora.packed_base import keep_trainable
from asymlora.sharding import refuse_sharded
from asymlora.site_view import attached, find_attached, refuse_folded, set_attachment, sites
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules, match_targets
from asymlora.untrusted_files import inner_folder

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
        AttachError: A target layer stands in several places of the model, or the model is sharded already.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> attach(model, AdapterSpec.b_only(rank=2, targets="0"))[0]
        LinearAdapter(
          rank=2, scaling=2, frozen=A
          (base_layer): Linear(in_features=6, out_features=4, bias=True)
        )
    """
    return attach_drawn(model, spec, drawn_factors)


def attach_drawn(model: M, spec: AdapterSpec, draw: Callable[[Mapping[str, nn.Module], AdapterSpec], Factors]) -> M:
    """Do what `attach` does, with factors from elsewhere.

    Args:
        model: As for `attach`.
        spec: The adapter.
        draw: Gives what `asymlora.installing.drawn_factors` does, and keeps none of the tensors: they are trained.

    Returns:
        The same model.

    Raises:
        AlreadyAttachedError: The model carries an adapter.
    """
    if find_attached(model) is not None:
        raise AlreadyAttachedError(
            f"This {type(model).__name__} carries an adapter already. Call asymlora.detach(model) or"
            " asymlora.merge(model) first."
        )
    refuse_sharded(model)
    keep_trainable(model)
    saved = match_saved_modules(model, spec.modules_to_save)
    bases = match_targets(model, spec, saved)
    nonzero = starts_nonzero(bases, spec, model)
    factors = draw(bases, spec)
    return install(model, spec, factors, saved, starts={name: factors[name] for name in nonzero})


def load_adapter(
    model: M, folder: str | Path, *, name: str | None = None, modules_to_save: Sequence[str] | None = None
) -> M:
    """Put the adapter of a folder on a model, in place.

    Everything that the file's shapes show is checked before a value is read, and all before the model is touched.

    Args:
        model: The base model, without an adapter.
        folder: Written by `save_adapter`, in either form, or by PEFT.
        name: Name of the adapter, if ``folder`` holds several in sub-folders as PEFT writes them.
        modules_to_save: Endings of the paths of modules that the file may overwrite; None: the modules that its
            configuration lists, by whole parts of their paths.

    Returns:
        The same model. Of a folder that PEFT wrote, both factors are trained.

    Raises:
        AdapterFileError: The folder cannot be read or does not fit; all problems are listed.
        AlreadyAttachedError: The model carries an adapter.
        NonZeroStartError: The adapter started non-zero, and the base cannot be corrected for it.
        AttachError: The model is sharded already.
    """
    if find_attached(model) is not None:
        raise AlreadyAttachedError("This model carries an adapter already. Call asymlora.detach(model) first.")
    refuse_sharded(model)
    keep_trainable(model)
    folder = Path(folder)
    if name is not None:
        taken = {part for path, _ in model.named_modules() for part in path.split(".")}
        folder = inner_folder(folder, name, taken=taken)
    file = read_adapter(folder, check=lambda file: refuse_unfit(model, file, match_spec(model, file, modules_to_save)))
    spec = match_spec(model, file, modules_to_save)
    saved = match_saved_modules(model, spec.modules_to_save)
    bases = {name: module for name, module in model.named_modules() if name in file.factors}
    if file.starts:
        starts_nonzero(bases, spec, model)
    # Float32, whatever the file's type; `fill` gives the values.
    factors = {name: tuple(torch.zeros(t.shape) for t in file.factors[name]) for name in bases}
    installed = install(model, spec, factors, saved, starts=file.starts)  # pyright: ignore[reportArgumentType]
    try:
        fill(model, file)
    except Exception:
        detach(model)
        raise
    return installed


def swap_adapter(model: M, folder: str | Path) -> M:
    """Put the adapter of a folder in the place of the one that a model carries, in place and without re-attaching.

    Factors keep their tensors, so optimizers and compiled code go on; which factor is trained stays as it is.

    Args:
        model: An attached model.
        folder: An adapter of the same sites, shapes and modules trained in full.

    Returns:
        The same model.

    Raises:
        AdapterFileError: The folder cannot be read, or its adapter does not fit; nothing was changed.
        NotAttachedError: The model carries no adapter.
    """
    root, record = attached(model)
    refuse_folded(root, "swap it")
    file = read_adapter(folder, check=lambda file: (match_spec(root, file), refuse_differing(root, file)))
    spec = match_spec(root, file)
    if spec.nonzero_start != "refuse" or record.spec.nonzero_start != "refuse":
        raise AdapterFileError(
            f"{folder}: an adapter that started non-zero has its own corrected base, which cannot be swapped. Call"
            " asymlora.detach(model) and asymlora.load_adapter(model, folder)."
        )
    fill(root, file)
    for site in sites(root):
        site.layer.scaling, site.layer.dropout = spec.at(site.name).scaling_factor, spec.dropout
    set_attachment(root, replace(record, spec=spec))
    return model


def detach(model: M) -> M:
    """Take the adapter off a model, in place: the base layers stand where they stood.

    Modules that were trained in full beside the adapter keep their trained values.

    Args:
        model: An attached model.

    Returns:
        The same model; parameters that required a gradient before `attach` require one again.
    """
    root, record = attached(model)
    refuse_folded(root, "detach it")
    for site in list(sites(root)):
        site.layer.restore_base()
        root.set_submodule(site.name, site.layer.base_layer)
    for part in root.modules():
        if isinstance(part.__dict__.get("save_pretrained"), AdapterSaver | PartSaveRefusal):
            del part.__dict__["save_pretrained"]
        for key in [key for key, hook in part._forward_hooks.items() if isinstance(hook, InputGradient)]:
            del part._forward_hooks[key]
    set_attachment(root, None)
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(name in record.trained_before)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off for a while: the model gives the base's own output. Nothing is thawed or moved.

    Modules that are trained in full beside the adapter stay as they are.

    Args:
        model: An attached model.

    Yields:
        Nothing.

    Raises:
        AttachError: `asymlora.merged` holds the adapter in the base.
    """
    refuse_folded(model, "disable it")
    with set_flag([site.layer for site in sites(model)], "enabled", value=False):
        yield


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Let the adapter use torch's own operations for a while: slower, and differentiable to any order.

    Args:
        model: An attached model.

    Yields:
        Nothing.
    """
    with set_flag([site.layer for site in sites(model)], "fused", value=False):
        yield


def make_contiguous(model: M) -> M:
    """Lay the trained factors out contiguously, as FSDP demands of parameters; call it before `fully_shard`.

    A narrow ``B`` is stored as its transpose, which the products read faster, unless a process group stands when the
    adapter is attached.

    Args:
        model: An attached model.

    Returns:
        The same model; the parameters are the same objects.
    """
    for site in sites(model):
        for parameter in site.layer.parameters(recurse=False):
            parameter.data = parameter.data.contiguous()
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many values are trained, and how many there are, frozen factors included.

    Args:
        model: Any model.

    Returns:
        Trained values, all values.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen_factors = {
        id(buffer): buffer.numel()  # a shared A counts once
        for layer in model.modules()
        if isinstance(layer, AdapterLayer)
        for buffer in layer.buffers(recurse=False)
    }
    return trained, sum(p.numel() for p in model.parameters()) + sum(frozen_factors.values())


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
