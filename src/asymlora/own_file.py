"""``asymlora.json``: what PEFT's format cannot say of an adapter, and what stands in for values that can be redrawn.

Format 2. It holds the spec, the address of each frozen draw, and a digest of every tensor beside it. Format 1 held the
spec alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from asymlora import __version__
from asymlora.draws import DRAWS_VERSION, digest
from asymlora.errors import AdapterFileError, SpecError
from asymlora.factor_spec import ADDRESSED_INITS, FactorSpec, InitName
from asymlora.init import draw
from asymlora.schema import from_mapping, to_mapping
from asymlora.spec import AdapterSpec
from asymlora.untrusted_files import MAX_KEY, refuse

OWN_FILE, FACTORS_FILE = "asymlora.json", "factors.safetensors"
FORMAT = 2
_READ = (1, 2)
_MOST_DRAWN, _LARGEST_DRAWN, _MOST_DRAWN_RANK = 2**31, 2**28, 2**12
Form = Literal["peft", "seed"]
Letter = Literal["A", "B"]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The address of a factor's values, and what is drawn there.

    Attributes:
        seed: The adapter's seed.
        site: Path of the module, or the common address of a group that shares its ``A``.
        factor: Which factor.
        init: Name of the scheme.
        shape: Shape of the factor.
        dtype: Type that the float32 draw was cast to.
    """

    seed: int
    site: str
    factor: Letter
    init: InitName
    shape: tuple[int, ...]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def values(self, spec: FactorSpec) -> Tensor:
        """Return what stands at the address.

        Args:
            spec: The factor, with its sizes.

        Returns:
            The factor as it was drawn, on CPU.
        """
        matrix = (self.shape[0], math.prod(self.shape[1:]))
        drawn = draw(spec, matrix, seed=self.seed, site=self.site, factor=self.factor)
        return drawn.reshape(self.shape).to(getattr(torch, self.dtype))


@dataclass(frozen=True, kw_only=True)
class OwnFile:
    """The content of ``asymlora.json``.

    Attributes:
        spec: The adapter.
        form: ``peft``: the factors stand in PEFT's file; ``seed``: in ours, without what `draws` gives.
        draws: Address of each frozen factor by its tensor key; in the form ``seed`` those without a tensor are drawn.
        digests: SHA-256 of each tensor by its key, redrawn ones included.
        draws_version: Version of the map from addresses to values.
        asymlora_version: Version that wrote the file.
        format: Version of the file's own form.
        peft_config: In the form ``seed``, PEFT's configuration.
    """

    spec: AdapterSpec
    form: Form = "peft"
    draws: Mapping[str, Draw] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    draws_version: int = DRAWS_VERSION
    asymlora_version: str = __version__
    format: int = FORMAT
    peft_config: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the file's content as plain values."""
        content = to_mapping(self)
        if self.peft_config is None:
            del content["peft_config"]
        return content

    def problems(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Return what differs between the digests and the tensors, one sentence part each."""
        if self.format == 1:
            return []
        changed = [key for key, value in tensors.items() if key in self.digests and digest(value) != self.digests[key]]
        found = [f"{key} has other values than when {OWN_FILE} was written" for key in changed]
        found += [f"{key} is missing, and {OWN_FILE} has its digest" for key in self.digests if key not in tensors]
        found += [f"{key} has no digest in {OWN_FILE}" for key in tensors if key not in self.digests]
        return found


REMEDY = {
    "peft": (
        f"If adapter_model.safetensors is the right one, delete {OWN_FILE}: the folder is complete without it (then"
        " nothing says which factor is frozen)."
    ),
    "seed": (
        "The drawn values differ from those that were trained over. On the machine that made the folder, export it"
        " with all its values: asymlora convert SRC DST --to peft."
    ),
}
"""What to do about a wrong digest, by form."""


def parse_own(path: Path, content: Mapping[str, Any]) -> OwnFile:
    """Return ``asymlora.json`` from its plain values.

    Args:
        path: Where it was read, for messages.
        content: What it holds.

    Returns:
        The file; of format 1 without draws and digests.

    Raises:
        AdapterFileError: It is of another format, holds unknown keys or wrong values, or states draws that differ from
            its spec.
    """
    if content.get("format") not in _READ:
        raise AdapterFileError(
            f"{path} is of format {content.get('format')!r}; this version reads {' and '.join(map(str, _READ))}. Update"
            " asymlora, or delete the file: a folder with adapter_config.json is complete without it."
        )
    values = dict(content)
    config = values.pop("peft_config", None)
    known = {"format", "spec", "asymlora_version"}
    if content["format"] == 1:
        refuse(path, [f"{key[:80]!r} is unknown in format 1" for key in content if key not in known])
    # The keys whose absence a default would hide.
    needed = ("spec",) if content["format"] == 1 else ("spec", "form", "draws", "digests", "draws_version")
    refuse(path, [f"{key!r} is missing" for key in needed if key not in content])
    try:
        own = from_mapping(OwnFile, values)
    except SpecError as error:
        raise AdapterFileError(f"{path}: {str(error)[:2000]}") from None
    problems = _draw_problems(own)
    if config is not None and not isinstance(config, dict):
        problems.append("peft_config is no object")
    if (own.form == "seed") != (config is not None):
        problems.append(f"its form is {own.form!r}, and peft_config is {'there' if config else 'missing'}")
    refuse(path, problems, "Copy the folder again from where it was made.")
    return OwnFile(**{**vars(own), "peft_config": config})


def _draw_problems(own: OwnFile) -> list[str]:
    problems: list[str] = []
    for key, drawn in own.draws.items():
        rank = drawn.shape[0] if drawn.factor == "A" and drawn.shape else (*drawn.shape, 0, 0)[1]
        if len(key) > MAX_KEY:
            problems.append(f"{key[:80]}... has a name of more than {MAX_KEY} letters")
        if (
            len(drawn.shape) < 2
            or min(drawn.shape) < 1
            or rank > _MOST_DRAWN_RANK
            or math.prod(drawn.shape) > _LARGEST_DRAWN
        ):
            problems.append(f"{key} is drawn in the shape {list(drawn.shape)}, which no factor has")
        if drawn.seed != own.spec.seed or drawn.init not in ADDRESSED_INITS:
            problems.append(
                f"{key} is drawn as {drawn.init} of seed {drawn.seed}, and the spec's seed is {own.spec.seed}"
            )
    if sum(math.prod(drawn.shape) for drawn in own.draws.values()) > _MOST_DRAWN:
        problems.append(f"its draws have more than {_MOST_DRAWN:,} values")
    return problems


def refuse_other_draws(path: Path, own: OwnFile) -> None:
    """Refuse a file whose values were drawn by another version of the draws.

    Args:
        path: Where it was read.
        own: The file.

    Raises:
        AdapterFileError: The version is another.
    """
    if own.form == "seed" and own.draws and own.draws_version != DRAWS_VERSION:
        raise AdapterFileError(
            f"{path} has draws of version {own.draws_version}; this asymlora makes version {DRAWS_VERSION}."
            f" {REMEDY['seed']}"
        )
