"""Bytes of adapter files, header and padding included, from the names and sizes of what they hold.

Only the tensor file is counted here: the JSON files beside it depend on the spec's own wording.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Literal

from asymlora.errors import UnknownNameError, nearest
from asymlora.peft_format import factor_key
from asymlora.theory.cost import AdaptedLayer

TYPES = {"float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
"""Name in the format's header and bytes of one entry, by torch's name of the type."""
_RANKS = ("F64", "F32", "BF16", "F16")


def safetensors_bytes(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> int:
    """Return the size of a safetensors file with metadata ``{"format": "pt"}``.

    Eight bytes of length, the JSON header padded to eight, then the values.

    Args:
        tensors: Shape and type (a row of `TYPES`) by key.

    Returns:
        Bytes of the whole file.

    Raises:
        UnknownNameError: A type has no row.

    Example:
        >>> safetensors_bytes({"w": ((2, 3), "float32")})
        120

    Source:
        The safetensors format; its writer's order read in its code, and held to written files in the tests.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    if unknown := sorted({dtype for _, dtype in tensors.values()} - set(TYPES)):
        raise UnknownNameError(
            f"dtype={unknown[0]!r} has no place in these files.{nearest(unknown[0], TYPES)} Known: {', '.join(TYPES)}."
        )
    # The writer puts wider types first and names in order within a type; offsets differ in their digits by that.
    order = sorted(
        tensors.items(), key=lambda item: (-TYPES[item[1][1]][1], _RANKS.index(TYPES[item[1][1]][0]), item[0])
    )
    for key, (shape, dtype) in order:
        name, itemsize = TYPES[dtype]
        size = math.prod(shape) * itemsize
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + math.ceil(length / 8) * 8 + at


def adapter_file_bytes(
    layers: Mapping[str, AdaptedLayer],
    *,
    form: Literal["peft", "seed"] = "peft",
    dtype: str = "float32",
    modules: Mapping[str, tuple[tuple[int, ...], str]] | None = None,
) -> int:
    """Return the size of an adapter's tensor file.

    Args:
        layers: Adapted linear layers by path.
        form: ``peft``: both factors of every layer, a shared ``A`` once for each; ``seed``: without the frozen ones,
            which are drawn again when the file is read.
        dtype: Type of the factors, a row of `TYPES`.
        modules: Shape and type of the tensors trained in full, by path and name.

    Returns:
        Bytes of ``adapter_model.safetensors``, or of ``factors.safetensors`` in the form ``seed``.

    Example:
        >>> site = AdaptedLayer(fan_in=8, fan_out=8, rank=2, trains_A=False)
        >>> adapter_file_bytes({"q": site}) - adapter_file_bytes({"q": site}, form="seed")
        152
    """
    tensors = {f"base_model.model.{name}": entry for name, entry in (modules or {}).items()}
    for site, layer in layers.items():
        shapes = {"A": (layer.rank, layer.fan_in), "B": (layer.fan_out, layer.rank)}
        for letter, trained in (("A", layer.trains_A), ("B", layer.trains_B)):
            if trained or form == "peft":
                tensors[factor_key(site, letter, embedding=False)] = (shapes[letter], dtype)
    return safetensors_bytes(tensors)
