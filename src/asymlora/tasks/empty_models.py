"""A model's modules and shapes without its weights, from its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PreTrainedModel

from asymlora.errors import AsymloraError, DataNotFoundError, nearest
from asymlora.tasks.sources import find_model

SHIPPED = "asymlora:"
"""Begins the name of a ``config.json`` that stands in this package, wherever it is installed: a recipe with it is the
same on every machine."""


def empty_model(name: str, *, revision: str | None = None, attention: str | None = None) -> PreTrainedModel:
    """Build a model on the device ``meta``: every module and shape, no value, whatever its size.

    Args:
        name: ``embedded:...``, a folder, a hub id, a ``config.json``, or ``asymlora:`` with the place of one below this
            package's folder.
        revision: Branch, tag or commit on the hub.
        attention: Kernel of the attention, ``sdpa`` or ``eager``; None takes the one that transformers would.

    Returns:
        The model of the class that the configuration names, or the plain network where it names none.

    Raises:
        DataNotFoundError: There is no such configuration, or transformers does not know the architecture.
        AsymloraError: The name leads nowhere, as `find_model` says.
    """
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    try:
        config = _config(name, revision)
        named = [getattr(transformers, known, None) for known in list(config.architectures or ())[:1]]
        with torch.device("meta"):
            if named and isinstance(named[0], type) and issubclass(named[0], PreTrainedModel):
                return named[0]._from_config(config, **options)
            return AutoModel.from_config(config, **options)
    except AsymloraError:
        raise
    # A configuration is a user's file: what transformers makes of a wrong one is any kind of error.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        first = first if len(first) <= 200 else f"{first[:200]}..."
        raise DataNotFoundError(
            f"The configuration of {name!r} could not be read ({first}). Give a folder that transformers saved, a"
            " config.json with its model_type, or an id on the hub that this machine can reach."
        ) from error


def fresh_heads(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the paths of what stands beside a model's base and has weights: what a classifier's head is made of.

    Args:
        model: A model; of a base alone nothing is its head.

    Returns:
        The paths.
    """
    base = model.base_model
    if base is model:
        return ()
    return tuple(n for n, m in model.named_children() if m is not base and any(True for _ in m.parameters()))


def _config(name: str, revision: str | None) -> Any:
    path = _own_file(name) if name.startswith(SHIPPED) else Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "model_type" not in content:
            raise ValueError("it has no model_type")
        return AutoConfig.for_model(content.pop("model_type"), **content)
    where, folder = find_model(name, revision=revision)
    return AutoConfig.from_pretrained(where, **({"local_files_only": True} if folder else {"revision": revision}))


def _own_file(name: str) -> Path:
    package = Path(__file__).parents[1]
    path = package / name.removeprefix(SHIPPED)
    if not path.is_file():
        there = sorted(f"{SHIPPED}{file.relative_to(package).as_posix()}" for file in package.rglob("configs/*.json"))
        raise DataNotFoundError(f"asymlora ships no {name!r}.{nearest(name, there)} There are: {', '.join(there)}.")
    return path
