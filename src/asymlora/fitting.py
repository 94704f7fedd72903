"""Whether a read adapter fits a model, and its values put in. Shapes are enough for every question but the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from asymlora.adapter_file import AdapterFile
from asymlora.errors import AdapterFileError, AttachError
from asymlora.kinds import kind_of
from asymlora.sharding import copy_whole_, reshard
from asymlora.site_view import attached, saved_modules, sites
from asymlora.spec import AdapterSpec
from asymlora.targets import shared_groups

_FACTORS = ("lora_A", "lora_B")


def match_spec(model: nn.Module, file: AdapterFile, allowed: Sequence[str] | None = None) -> AdapterSpec:
    """Return the spec of an adapter file with the trained modules that its tensors name and the model has.

    Args:
        model: The base model.
        file: What `read_adapter` returned.
        allowed: Endings of the module paths that the file may overwrite; None: those that it lists, by whole parts.

    Returns:
        The spec; PEFT lists heads that a model may lack, which are dropped.

    Raises:
        AdapterFileError: A tensor is neither a factor nor part of a module that the configuration lists.
    """
    # PEFT's own rule for these is a bare endswith ("r" is also "pooler"), so a file could reach any module: by whole
    # parts of the path, unless the caller names what the file may overwrite.
    endings = set(file.modules_to_save if allowed is None else allowed)
    paths = {
        name
        for name, _ in model.named_modules()
        if (name.endswith(tuple(endings)) if allowed is not None else not endings.isdisjoint(_endings(name)))
    }
    owners = {key: next((p for p in _beginnings(key) if p in paths), None) for key in file.modules}
    heads = sorted({owner for owner in owners.values() if owner is not None})
    if stray := [key for key, owner in owners.items() if owner is None]:
        listed = ", ".join(sorted(endings)[:8]) or "none"
        raise AdapterFileError(
            f"{file.folder}: {', '.join(stray[:5])} would overwrite the base model. Only factors, and the modules that"
            f" modules_to_save lists ({listed}), may be in an adapter file. If you trust it, name them:"
            " load_adapter(..., modules_to_save=[...])."
        )
    return replace(file.spec, modules_to_save=tuple(heads))


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _beginnings(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def refuse_unfit(model: nn.Module, file: AdapterFile, spec: AdapterSpec) -> None:
    """Refuse an adapter whose sites or shapes are not those of a base model; its values are not needed.

    Args:
        model: The base model.
        file: What `read_adapter` returned, or gave to its ``check``.
        spec: What `match_spec` returned.

    Raises:
        AdapterFileError: A site is no layer of the kind and size that the file says, or a module trained in full has
            other tensors; all are listed.
    """
    named = dict(model.named_modules())
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] = places.get(id(module), 0) + 1
    problems: list[str] = []
    for site, pair in file.factors.items():
        base = named.get(site)
        kind = None if base is None else kind_of(base)
        if base is None or kind is None or file.kinds[site] != kind.KIND:
            what = "" if base is None else f" as {file.kinds[site]}: it is a {type(base).__name__}"
            problems.append(f"{site} has no place in the model{what}")
            continue
        if why := kind.why_not(base, pair[0].shape[0]):
            problems.append(f"{site} {why}")
        shapes = kind.factor_shapes(base, pair[0].shape[0])
        problems += _other_shapes({f"{site}.{f}": s for f, s in zip(_FACTORS, shapes, strict=True)}, site, pair)
        if places[id(base)] > 1:
            problems.append(f"{site} is a layer that stands in several places")
    for path in spec.modules_to_save:
        own = {f"{path}.{name}": value for name, value in named[path].state_dict().items()}
        given = {key: value for key, value in file.modules.items() if key.startswith(f"{path}.")}
        problems += _differences({key: tuple(value.shape) for key, value in own.items()}, given)
    if not problems:
        try:
            shared_groups(spec, {site: named[site] for site in file.factors})
        except AttachError as error:
            problems.append(str(error))
    _refuse_misfit(model, file, problems)


def _other_shapes(wanted: Mapping[str, tuple[int, ...]], site: str, pair: tuple[Tensor, Tensor]) -> list[str]:
    return _differences(wanted, {f"{site}.{f}": t for f, t in zip(_FACTORS, pair, strict=True)})


def _differences(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> list[str]:
    problems = [f"{key} is missing" for key in wanted if key not in given]
    problems += [f"{key} has no place in the model" for key in given if key not in wanted]
    problems += [
        f"{key} is {tuple(given[key].shape)}, the model needs {tuple(shape)}"
        for key, shape in wanted.items()
        if key in given and tuple(given[key].shape) != tuple(shape)
    ]
    return problems


def _refuse_misfit(model: nn.Module, file: AdapterFile, problems: Sequence[str]) -> None:
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AdapterFileError(f"{file.folder} does not fit this {type(model).__name__}: {shown}.")


def refuse_differing(model: nn.Module, file: AdapterFile) -> None:
    """Refuse an adapter whose sites, trained modules or shapes are not those of an attached model.

    Args:
        model: An attached model.
        file: What `read_adapter` returned, or gave to its ``check``.

    Raises:
        AdapterFileError: They differ; all differences are listed.
    """
    root, _ = attached(model)
    _refuse_misfit(root, file, _differences({k: tuple(v.shape) for k, v in _places(root).items()}, _given(file)))


def _places(root: nn.Module) -> dict[str, Tensor]:
    wanted = {f"{s.name}.{f}": getattr(s.layer, f) for s in sites(root) for f in _FACTORS}
    for path, module in saved_modules(root).items():
        wanted |= {f"{path}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}
    return wanted


def _given(file: AdapterFile) -> dict[str, Tensor]:
    factors = {f"{site}.{f}": t for site, pair in file.factors.items() for f, t in zip(_FACTORS, pair, strict=True)}
    return factors | file.modules


def fill(model: nn.Module, file: AdapterFile) -> None:
    """Copy the tensors of an adapter file into an attached model of the same sites, or change nothing.

    Args:
        model: An attached model.
        file: What `read_adapter` returned.

    Raises:
        AdapterFileError: The file and the model differ in their sites, trained modules, shapes or starts; all are
            listed.
    """
    root, _ = attached(model)
    reshard(model)
    refuse_differing(root, file)
    wanted, given = _places(root), _given(file)
    problems = _other_starts(root, file)
    first: dict[int, str] = {}
    for key, value in wanted.items():
        if (twin := first.setdefault(id(value), key)) != key and not torch.equal(given[twin], given[key]):
            problems.append(f"{twin} and {key} are one tensor in the model and two in the file")
    _refuse_misfit(root, file, problems)
    for key, value in wanted.items():
        copy_whole_(value, given[key])


def _other_starts(root: nn.Module, file: AdapterFile) -> list[str]:
    problems: list[str] = []
    for site in sites(root):
        ours, theirs = site.layer.corrected, file.starts.get(site.name)
        pairs = zip(ours[:2], theirs, strict=True) if ours is not None and theirs is not None else ()
        if (ours is None) != (theirs is None) or not all(
            torch.equal(a.detach().cpu(), b.to(a.dtype)) for a, b in pairs
        ):
            problems.append(f"the base of {site.name} was corrected for another start than the file's")
    return problems
