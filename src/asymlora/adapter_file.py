"""What an adapter folder holds, as tensors and plain values, and how either form of it is written. No model in here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from asymlora.atomic import staged_folder
from asymlora.draws import digest
from asymlora.factor_spec import ADDRESSED_INITS, FactorSpec
from asymlora.own_file import FACTORS_FILE, OWN_FILE, Draw, Form, Letter, OwnFile
from asymlora.peft_format import CONFIG_FILE, PREFIX, WEIGHTS_FILE, factor_key, site_of
from asymlora.spec import AdapterSpec

CARD_FILE = "README.md"
Pair = tuple[Tensor, Tensor]
_START = ".start_"


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """What an adapter folder holds, checked in itself but not yet against a model.

    Attributes:
        folder: Where it was read.
        spec: The adapter. Of a folder that PEFT wrote: both factors trained.
        factors: ``A`` and ``B`` by module path.
        kinds: ``linear``, ``embedding`` or ``convolution`` by module path.
        modules: Tensors of the modules trained in full, by path and name.
        modules_to_save: Endings of module paths that ``modules`` may belong to.
        starts: ``A`` and ``B`` as they started, of sites whose base was corrected for it.
        config: PEFT's configuration.
        draws: Addresses of the factors that were drawn and frozen, by tensor key.
        own: Our own file, or None.
    """

    folder: Path
    spec: AdapterSpec
    factors: dict[str, Pair]
    kinds: dict[str, str]
    modules: dict[str, Tensor]
    modules_to_save: tuple[str, ...]
    starts: dict[str, Pair] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    draws: Mapping[str, Draw] = field(default_factory=dict)
    own: OwnFile | None = None

    def parts(self) -> dict[str, Tensor]:
        """Return every tensor by key, a corrected site's start beside its factors."""
        tensors: dict[str, Tensor] = {}
        for site, pair in self.factors.items():
            for letter, factor in zip("AB", pair, strict=True):
                tensors[factor_key(site, letter, embedding=self.kinds[site] == "embedding")] = factor
            for letter, start in zip("AB", self.starts.get(site, ()), strict=False):
                tensors[start_key(site, letter)] = start
        return tensors | {f"{PREFIX}{key}": value for key, value in self.modules.items()}

    def peft_tensors(self) -> dict[str, Tensor]:
        """Return every tensor by PEFT's keys, for the base as it was before it was corrected.

        There the factors are ``[A; A_0]`` and ``[B, -B_0]``.
        """
        tensors = {key: value for key, value in self.parts().items() if start_of(key) is None}
        for site, (A_0, B_0) in self.starts.items():
            embedding = self.kinds[site] == "embedding"
            keys = [factor_key(site, letter, embedding=embedding) for letter in "AB"]
            A, B = (tensors[key] for key in keys)
            tensors[keys[0]], tensors[keys[1]] = torch.cat([A, A_0.to(A)]), torch.cat([B, -B_0.to(B)], dim=1)
        return tensors


def start_key(site: str, letter: str) -> str:
    """Return the key, in our own form, of what a factor of a corrected site started as."""
    return f"{PREFIX}{site}{_START}{letter}"


def start_of(key: str) -> tuple[str, Letter] | None:
    """Return site and factor of a start, the inverse of `start_key`; None for other keys."""
    site, mark, letter = key.removeprefix(PREFIX).rpartition(_START)
    return (site, letter) if site and mark and letter in ("A", "B") and key.startswith(PREFIX) else None


def factor_of(key: str) -> tuple[str, Letter] | None:
    """Return site and letter of a factor or of its start; None for the key of another tensor."""
    found = site_of(key)
    return start_of(key) if found is None else (found[0], cast("Letter", found[1]))


def is_corrected(spec: AdapterSpec, site: str) -> bool:
    """Whether both factors of a site start non-zero, so that the base was corrected."""
    if spec.nonzero_start == "refuse":
        return False
    factors = spec.at(site)
    return not (factors.A.starts_at_zero or factors.B.starts_at_zero)


def draws_of(spec: AdapterSpec, parts: Mapping[str, Tensor], *, groups: Mapping[str, str]) -> dict[str, Draw]:
    """Return the addresses of all factors that were drawn and not trained since.

    Args:
        spec: The adapter.
        parts: Tensors, as `AdapterFile.parts` gives them.
        groups: Common address of the sites that share an ``A``, by path.

    Returns:
        Addresses by key; that the values are still those is not checked.
    """
    draws: dict[str, Draw] = {}
    for key, value in parts.items():
        if (found := factor_of(key)) is None:
            continue
        site, letter = found
        factor: FactorSpec = getattr(spec.at(site), letter)
        kept = start_of(key) is not None or not factor.trainable
        dtype: Any = str(value.dtype).removeprefix("torch.")
        if kept and factor.init_name in ADDRESSED_INITS:
            address = groups.get(site, site) if letter == "A" else site
            draws[key] = Draw(
                seed=spec.seed,
                site=address,
                factor=letter,
                init=factor.init_name,
                shape=tuple(value.shape),
                dtype=dtype,
            )
    return draws


def redrawn(file: AdapterFile) -> set[str]:
    """Return the keys of the tensors whose values are, bit for bit, what stands at their address."""
    parts = file.parts()
    same: set[str] = set()
    known: dict[tuple[Draw, FactorSpec], str] = {}
    for key, drawn in file.draws.items():
        site, letter = cast("tuple[str, Letter]", factor_of(key))
        address = drawn, cast(FactorSpec, getattr(file.spec.at(site), letter))
        if address not in known:
            known[address] = digest(drawn.values(address[1]))
        if known[address] == digest(parts[key]):
            same.add(key)
    return same


def write_adapter(file: AdapterFile, folder: Path, *, form: Form, card: bytes) -> set[str]:
    """Write an adapter folder; it appears whole or not at all.

    In an existing folder the files are replaced one by one, the one without which nothing loads at the end.

    Args:
        file: The adapter.
        folder: Where to write.
        form: PEFT's, or ours with seeds in the place of drawn values.
        card: Content of the model card.

    Returns:
        Keys of the tensors that were left out.
    """
    dropped = redrawn(file) if form == "seed" else set[str]()
    tensors = file.parts() if form == "seed" else file.peft_tensors()
    own = OwnFile(
        spec=file.spec,
        form=form,
        draws=file.draws,
        digests={key: digest(value) for key, value in tensors.items()},
        peft_config=file.config if form == "seed" else None,
    )
    names = (WEIGHTS_FILE, CONFIG_FILE) if form == "peft" else (FACTORS_FILE, OWN_FILE)
    stale = (FACTORS_FILE,) if form == "peft" else (WEIGHTS_FILE,)
    with staged_folder(folder, last=names[1]) as staging:
        (staging / CARD_FILE).write_bytes(card)
        stored = _apart({key: value for key, value in tensors.items() if key not in dropped})
        save_file(stored, staging / names[0], metadata={"format": "pt"})
        shutil.copymode(staging / CARD_FILE, staging / names[0])  # safetensors writes for the owner alone
        (staging / OWN_FILE).write_bytes(json_bytes(own.to_dict(), indent=2 if form == "peft" else None))
        if form == "peft":
            (staging / CONFIG_FILE).write_bytes(json_bytes(file.config, indent=2))
        else:
            (folder / CONFIG_FILE).unlink(missing_ok=True)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    return dropped


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # The format has no two names for one storage: a shared factor is written once for each site.
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        kept = value.contiguous()
        apart[key] = kept.clone() if kept.data_ptr() in seen else kept
        seen.add(kept.data_ptr())
    return apart


def json_bytes(content: Mapping[str, Any], *, indent: int | None) -> bytes:
    """Return the content of a JSON file, the same bytes for the same values; without ``indent`` in one line."""
    separators = None if indent else (",", ":")
    text = json.dumps(content, indent=indent, separators=separators, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()
