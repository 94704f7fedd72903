"""The factors of an adapter site by site, from a folder or a model, as every measure of adapters takes them.

What a folder holds is read and checked by `asymlora.adapter_reading`; here it only becomes matrices.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from asymlora.adapter_file import AdapterFile
from asymlora.adapter_reading import read_adapter
from asymlora.errors import AdapterFileError
from asymlora.factor_spec import ADDRESSED_INITS, FactorSpec
from asymlora.init import draw
from asymlora.layers import AdapterLayer
from asymlora.peft_format import factor_key
from asymlora.peft_sites import sites

Letter = Literal["A", "B"]
_DEVIATIONS = 5.0


@dataclass(frozen=True, kw_only=True)
class SiteFactors:
    """One adapted place, its factors as matrices.

    Attributes:
        name: Path of the module in the model.
        kind: ``linear``, ``embedding`` or ``convolution``.
        A: Down factor, shape ``(rank, in)``; of a convolution ``in`` counts the kernel's places too.
        B: Up factor, shape ``(out, rank)``; of a grouped convolution with a block for each group.
        scaling: The whole multiplier ``s`` on ``B A``.
        trained: Whether A and whether B is trained; None where nothing says so.
        starts: What A and what B started as, in their shapes; None where that is not known.
        corrected: Whether the product of the starts was taken off the base, so that the update is
            ``s * (B A - B_0 A_0)``.
    """

    name: str
    kind: str
    A: Tensor
    B: Tensor
    scaling: float
    trained: tuple[bool, bool] | None = None
    starts: tuple[Tensor | None, Tensor | None] = (None, None)
    corrected: bool = False

    def update(self) -> tuple[Tensor, Tensor]:
        """Return the matrices whose product times the scale is added to the base weight."""
        down, up = self.starts
        if not self.corrected or down is None or up is None:
            return self.A, self.B
        return torch.cat([self.A, down.to(self.A)]), torch.cat([self.B, -up.to(self.B)], dim=1)

    @property
    def group(self) -> str:
        """The path without its numbers: sites of one group do the same in other layers.

        Example:
            >>> SiteFactors(name="h.3.attn.q", kind="linear", A=torch.eye(2), B=torch.eye(2), scaling=1.0).group
            'h.*.attn.q'
        """
        return ".".join("*" if re.fullmatch(r"[0-9]+", part) else part for part in self.name.split("."))

    @property
    def layer(self) -> int | None:
        """The first number of the path, or None."""
        found = re.search(r"(?:^|\.)(\d{1,9})(?=\.|$)", self.name)
        return int(found[1]) if found else None


def site_factors(adapter: str | Path | nn.Module) -> tuple[SiteFactors, ...]:
    """Return the sites of an adapter.

    Args:
        adapter: A folder that `asymlora.save_adapter` or PEFT wrote, or a model that carries an adapter, ours or
            PEFT's (its active one). Starts are known of folders of ours alone.

    Returns:
        One entry for each site, in the order of the model; of a folder in the order of paths, numbers by size.

    Raises:
        AdapterFileError: The folder cannot be read, as `asymlora.adapter_reading.read_adapter` says.
        NotAttachedError: The model carries no adapter.
        AttachError: A layer of PEFT is not plain LoRA.
    """
    return _live(adapter) if isinstance(adapter, nn.Module) else _saved(read_adapter(adapter))


def _live(model: nn.Module) -> tuple[SiteFactors, ...]:
    found: list[SiteFactors] = []
    for site in sites(model):
        corrected = site.layer.corrected if isinstance(site.layer, AdapterLayer) else None
        starts = (None, None) if corrected is None else (corrected.A.flatten(1), corrected.B.flatten(1))
        found.append(
            SiteFactors(
                name=site.name,
                kind=site.kind,
                A=site.A.detach().flatten(1),
                B=_up(site.B.detach(), site.A.shape[0], site.name),
                scaling=float(site.scaling),
                trained=(site.A.requires_grad, site.B.requires_grad),
                starts=starts,
                corrected=corrected is not None,
            )
        )
    return tuple(found)


def _saved(file: AdapterFile) -> tuple[SiteFactors, ...]:
    found: list[SiteFactors] = []
    for name, (A, B) in sorted(file.factors.items(), key=lambda item: natural_order(item[0])):
        spec = file.spec.at(name)
        down, up = _start(file, name, "A", A), _start(file, name, "B", B)
        found.append(
            SiteFactors(
                name=name,
                kind=file.kinds[name],
                A=A.flatten(1),
                B=_up(B, A.shape[0], name),
                scaling=spec.scaling_factor,
                trained=None if file.own is None else (spec.A.trainable, spec.B.trainable),
                starts=(down, None if up is None else _up(up, A.shape[0], name)),
                corrected=name in file.starts,
            )
        )
    return tuple(found)


def natural_order(path: str) -> list[tuple[int, str]]:
    """Return a key that sorts paths with their numbers by size: layer 10 after layer 9.

    Example:
        >>> sorted(["h.10.q", "h.9.q"], key=natural_order)
        ['h.9.q', 'h.10.q']
    """
    return [(int(part), "") if re.fullmatch(r"[0-9]{1,9}", part) else (-1, part) for part in path.split(".")]


def _start(file: AdapterFile, name: str, letter: Letter, factor: Tensor) -> Tensor | None:
    """Return what a factor started as, where the folder says so and the factor does not belie it."""
    if name in file.starts:
        return file.starts[name]["AB".index(letter)].flatten(1)
    spec: FactorSpec = getattr(file.spec.at(name), letter)
    if file.own is None or spec.init_name not in ADDRESSED_INITS:
        return None
    key = factor_key(name, letter, embedding=file.kinds[name] == "embedding")
    address = file.draws[key].site if key in file.draws else name
    shape = (factor.shape[0], math.prod(factor.shape[1:]))
    start = draw(spec, shape, seed=file.spec.seed, site=address, factor=letter)
    return start if spec.starts_at_zero or _comes_from(factor.flatten(1), start) else None


def _comes_from(factor: Tensor, start: Tensor) -> bool:
    # A folder that PEFT wrote, loaded and saved by us, has a spec with a start that was never drawn. The cosine c of
    # unrelated Gaussian values follows Student's t = c sqrt(n - 1) / sqrt(1 - c^2): in factors of a thousand values or
    # more it is above 5 once in 3 million.
    ours, drawn = factor.double(), start.double()
    cosine = (ours * drawn).sum() / (ours.norm() * drawn.norm()).clamp(min=1e-300)
    return cosine.item() > _DEVIATIONS / math.sqrt(_DEVIATIONS**2 + factor.numel() - 1)


def _up(B: Tensor, rank: int, name: str) -> Tensor:
    """Return ``B`` as a matrix, shape ``(out, rank)``; that of a grouped convolution is block diagonal.

    Raises:
        AdapterFileError: The groups do not divide the outputs.
    """
    matrix = B.flatten(1)
    groups = rank // matrix.shape[1]
    if groups == 1:
        return matrix
    if matrix.shape[0] % groups:
        raise AdapterFileError(
            f"{name}: B is {tuple(B.shape)} at rank {rank}, so it has {groups} groups, which do not divide its"
            f" {matrix.shape[0]} outputs. Save the adapter again."
        )
    return torch.block_diag(*matrix.chunk(groups))
