"""Trained weights of a model itself on disk: names and shapes in a list, values as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asymlora.atomic import staged_folder
from asymlora.peft_sites import WRAPPERS
from asymlora.sharding import copy_whole_, whole
from asymlora.untrusted_files import refuse

TRAINED_FILE, TRAINED_LIST = "trained.safetensors", "trained.json"
Shapes = dict[str, tuple[int, ...]]


def write_trained(network: nn.Module, folder: Path, *, method: str, base_model: str | None = None) -> None:
    """Write what of a network is trained; in an existing folder the values come last.

    Args:
        network: The network, or a wrapper around it.
        folder: Where to write.
        method: Name of the method, which a reader has to give again.
        base_model: Name of the base.
    """
    tensors = {path: whole(value).cpu().contiguous() for path, value in trained_tensors(network).items()}
    rows = {p: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for p, t in tensors.items()}
    content = {"method": method, "base_model": base_model, "tensors": rows}
    with staged_folder(folder, last=TRAINED_FILE) as staging:
        (staging / TRAINED_LIST).write_text(json.dumps(content, indent=1), encoding="utf-8")
        save_file(tensors, staging / TRAINED_FILE, metadata={"format": "pt"})


def check_trained(folder: Path, *, method: str) -> Shapes:
    """Refuse a folder that cannot be read, without reading a value.

    Args:
        folder: Written by `write_trained`.
        method: Name of the method.

    Returns:
        Shapes of the tensors, by path.
    """
    shapes, listed = header_of(folder / TRAINED_FILE), _listed(folder, method)
    refuse(folder, differences(shapes, listed), "The two files are not of one save; take an older checkpoint.")
    return shapes


def read_trained(network: nn.Module, folder: Path, *, method: str) -> None:
    """Load what `write_trained` wrote into a network that trains the same tensors; nothing is changed before.

    Args:
        network: The network, or a wrapper around it.
        folder: Where it is.
        method: Name of the method.
    """
    own = trained_tensors(network)
    problems = differences(check_trained(folder, method=method), {path: tuple(t.shape) for path, t in own.items()})
    refuse(folder, problems, "Give the recipe that the folder was written with.")
    stored = load_file(folder / TRAINED_FILE)
    for path, value in own.items():
        copy_whole_(value, stored[path])


def trained_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return trained parameters by path, each once, and what their modules keep beside them (running statistics).

    Args:
        network: Any network.

    Returns:
        The tensors themselves; paths are those without wrappers.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    persistent = network.state_dict().keys()
    for path, module in network.named_modules():
        trained = [(n, p) for n, p in module.named_parameters(path, recurse=False) if p.requires_grad]
        kept = [(n, b) for n, b in module.named_buffers(path, recurse=False) if n in persistent] if trained else []
        for name, tensor in (*trained, *kept):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[plain_path(name)] = tensor
    return found


def plain_path(path: str) -> str:
    """Return a path without the parts that wrappers put into it (DDP, compile, checkpointing).

    Example:
        >>> plain_path("module.encoder._orig_mod.weight")
        'encoder.weight'
    """
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def header_of(file: Path) -> Shapes:
    """Return the shapes in a tensor file, without reading a value; a missing or torn one is refused.

    Args:
        file: A safetensors file.

    Returns:
        Shapes by name.
    """
    shapes: Shapes = {}
    problems: list[str] = []
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        problems = [f"{file.name} is missing or torn ({type(error).__name__})"]
    refuse(file.parent, problems, "Take an older checkpoint.")
    return shapes


def _listed(folder: Path, method: str) -> Shapes:
    shapes: Shapes = {}
    problems: list[str] = []
    try:
        content: Any = json.loads((folder / TRAINED_LIST).read_text(encoding="utf-8"))
        if content["method"] != method:
            problems = [f"method={content['method']!r} wrote it, and method={method!r} is asked for"]
        shapes = {str(path): tuple(row["shape"]) for path, row in content["tensors"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems = [f"{TRAINED_LIST} is missing or no list of tensors ({type(error).__name__})"]
    refuse(folder, problems, "Give the recipe that the folder was written with.")
    return shapes


def differences(stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return how the tensors of a file differ from those that are needed, one sentence part each.

    Args:
        stored: Shapes in the file.
        wanted: Shapes that are needed.

    Example:
        >>> differences({"a": (2,), "b": (1,)}, {"a": (3,), "c": (1,)})
        ['c is missing', 'b has no place here', 'a is (2,), not (3,)']
    """
    problems = [f"{path} is missing" for path in wanted if path not in stored]
    problems += [f"{path} has no place here" for path in stored if path not in wanted]
    both = [path for path in wanted if path in stored]
    return problems + [f"{path} is {stored[path]}, not {wanted[path]}" for path in both if stored[path] != wanted[path]]
