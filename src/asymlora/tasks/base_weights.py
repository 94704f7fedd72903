"""The weights of a base model at the sites of an adapter, as matrices. The model itself is not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from asymlora.errors import AttachError, DataNotFoundError
from asymlora.kinds import kind_of
from asymlora.tasks.empty_models import empty_model
from asymlora.tasks.sources import find_model

_WRAPPERS = 2
"""Leading parts that the path of a site may have beside those of the model: of a class that holds it."""


def base_weights(name: str, sites: Iterable[str], *, revision: str | None = None) -> dict[str, Tensor]:
    """Read a model's weights at some sites.

    The model may have been wrapped when the adapter was trained, or be the inside of what was: leading parts of the
    paths may differ, for all sites alike.

    Args:
        name: ``embedded:...``, a folder, or a hub id.
        sites: Paths of modules.
        revision: Branch, tag or commit on the hub.

    Returns:
        Matrices ``(out, in)`` by path, in the type that they are stored in.

    Raises:
        AttachError: The model has no such modules.
        DataNotFoundError: The model cannot be found or read.
        UnknownNameError: No package gives a model of this name.
    """
    wanted = list(sites)
    kind = type(empty_model(name, revision=revision))
    where, folder = find_model(name, revision=revision)
    options: dict[str, Any] = {"local_files_only": True} if folder else {"revision": revision or "main"}
    try:
        model: nn.Module = kind.from_pretrained(where, dtype="auto", **options)
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataNotFoundError(
            f"The weights of {name!r} could not be read ({first}). Give a folder that transformers saved, or an id on"
            " the hub that this machine can reach."
        ) from error
    return weights_at(model, wanted, name=name)


def weights_at(model: nn.Module, sites: Iterable[str], *, name: str) -> dict[str, Tensor]:
    """Return a model's weights at some sites.

    Args:
        model: The model.
        sites: Paths of modules; leading parts may differ from the model's, for all alike.
        name: What messages call the model.

    Returns:
        Matrices ``(out, in)`` by path.

    Raises:
        AttachError: The model has no such modules.
    """
    wanted = list(sites)
    modules = {path: module for path, module in model.named_modules() if kind_of(module) is not None}
    best: list[str] = wanted
    for paths in _namings(wanted, modules):
        missing = [site for site, path in zip(wanted, paths, strict=True) if path not in modules]
        if not missing:
            return {site: _matrix(modules[path]) for site, path in zip(wanted, paths, strict=True)}
        best = min(best, missing, key=len)
    more = f" and {len(best) - 2} more" if len(best) > 2 else ""
    raise AttachError(
        f"{name} has no {', '.join(best[:2])}{more}, where the adapter has factors. Name the model that the adapter was"
        " trained on."
    )


def _namings(sites: list[str], modules: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Yield what the paths of the sites may be in the model, the likeliest first."""
    yield sites
    parts = sites[0].split(".") if sites else []
    for dropped in range(min(_WRAPPERS, len(parts) - 1) + 1):
        inner = ".".join(parts[dropped:])
        head = sites[0][: len(sites[0]) - len(inner)]
        for path in modules:
            if (path == inner or path.endswith(f".{inner}")) and all(site.startswith(head) for site in sites):
                prefix = path[: len(path) - len(inner)]
                yield [prefix + site[len(head) :] for site in sites]


def _matrix(module: nn.Module) -> Tensor:
    kind: Any = kind_of(module)
    weight: Any = module.weight
    return kind.matrix_of(module, weight.detach()) if weight.is_floating_point() else _packed(module)


def _packed(module: nn.Module) -> Tensor:
    raise AttachError(
        f"A {type(module).__name__} of this model is stored packed, so nothing can be merged into it. Name the"
        " unquantised model."
    )
