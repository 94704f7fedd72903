"""Read an adapter folder, of either form, and check it in itself: the configuration, then shapes, then values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from asymlora.adapter_file import AdapterFile, Pair, draws_of, factor_of, is_corrected, start_of
from asymlora.errors import AdapterFileError, SpecError
from asymlora.own_file import FACTORS_FILE, OWN_FILE, REMEDY, Draw, parse_own, refuse_other_draws
from asymlora.peft_format import CONFIG_FILE, MAX_RANK, PREFIX, WEIGHTS_FILE, file_fields, site_of, why_no_module
from asymlora.spec import AdapterSpec
from asymlora.untrusted_files import TensorFile, read_json, refuse

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_MOST_LOOKUPS = 50_000_000


def read_adapter(folder: str | Path, *, check: Callable[[AdapterFile], object] | None = None) -> AdapterFile:
    """Read an adapter folder written by `save_adapter` or by PEFT.

    Args:
        folder: The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``, or seed-compressed.
        check: Called before any value is read, with the content's shapes (tensors on the meta device).

    Returns:
        Its content.

    Raises:
        AdapterFileError: A file is missing, damaged or absurd; the configuration is not plain LoRA; factors are
            missing, do not fit each other or the configuration, hold NaN or infinity, or are not those that were
            saved. All such problems are listed.
    """
    source = _Source(Path(folder))
    described = source.assembled(source.shapes())
    if check is not None:
        check(described)
    tensors = source.values(described)
    problems = [f"{key} holds NaN or infinity" for key, value in tensors.items() if not torch.isfinite(value).all()]
    refuse(source.folder, problems)
    if source.own is not None:
        refuse(source.folder, source.own.problems(tensors), REMEDY[source.own.form])
    return source.assembled(tensors)


class _Source:
    """The files of one folder, opened and checked one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own, config = folder / OWN_FILE, folder / CONFIG_FILE
        self.own = parse_own(own, read_json(own)) if own.is_symlink() or own.exists() else None
        seed = self.own is not None and self.own.form == "seed"
        if seed and config.exists():
            raise AdapterFileError(
                f"{folder}: {OWN_FILE} is of a seed-compressed adapter, and {CONFIG_FILE} stands beside it. One of the"
                " two is of another adapter; remove it."
            )
        if self.own is not None:
            refuse_other_draws(own, self.own)
        self.config = dict((self.own.peft_config or {}) if seed and self.own else read_json(config))
        weights = folder / (FACTORS_FILE if seed else WEIGHTS_FILE)
        pickles = sorted(f.name for pattern in _PICKLES for f in folder.glob(pattern))
        if pickles and not weights.exists():
            raise AdapterFileError(
                f"{weights}: is not there, and {pickles[0]} is a pickle, which may run code as it is read. Only"
                " safetensors files are read. If you trust it, load it with PEFT and save it again from there:"
                " save_pretrained(folder, safe_serialization=True)."
            )
        bad = [key for key in self._draws() if factor_of(key) is None]
        refuse(own, [f"its draw of {key} is of no factor" for key in bad])
        self.tensors = TensorFile(weights)

    def shapes(self) -> dict[str, Tensor]:
        """Return every tensor without its values."""
        shapes = self.tensors.shapes()
        for key in self._drawn():
            drawn = self._draws()[key]
            shapes[key] = torch.empty(drawn.shape, dtype=getattr(torch, drawn.dtype), device="meta")
        return shapes

    def values(self, described: AdapterFile) -> dict[str, Tensor]:
        """Return every tensor with its values, those that are not stored drawn again.

        Args:
            described: The content's shapes, and its spec.

        Returns:
            Tensors by key.

        Raises:
            AdapterFileError: The values cannot be read or drawn.
        """
        tensors = self.tensors.load()
        for key in self._drawn():
            site, letter = cast("tuple[str, str]", factor_of(key))
            drawn, factor = self._draws()[key], getattr(described.spec.at(site), letter)
            if (drawn.init, drawn.factor) != (factor.init_name, letter):
                raise AdapterFileError(
                    f"{self.folder}: {key} is drawn as {drawn.init}, the spec says {factor.init_name}."
                )
            try:
                tensors[key] = drawn.values(factor)
            except SpecError as error:
                raise AdapterFileError(f"{self.folder}: {key} cannot be drawn: {error}") from None
        return tensors

    def _draws(self) -> Mapping[str, Draw]:
        return self.own.draws if self.own is not None else {}

    def _drawn(self) -> list[str]:
        seed = self.own is not None and self.own.form == "seed"
        return [key for key in self._draws() if key not in self.tensors.entries] if seed else []

    def assembled(self, tensors: Mapping[str, Tensor]) -> AdapterFile:
        """Return the folder's content, all checked that shapes show."""
        problems = self.tensors.wrong_types()
        sites: dict[str, dict[str, Tensor]] = {}
        starts: dict[str, dict[str, Tensor]] = {}
        kinds: dict[str, str] = {}
        modules: dict[str, Tensor] = {}
        for key, value in tensors.items():
            if found := site_of(key):
                site, letter, embedding = found
                if kinds.setdefault(site, "embedding" if embedding else "linear") != (
                    "embedding" if embedding else "linear"
                ):
                    problems.append(f"{key}: the site has factors of an embedding and of another layer")
                sites.setdefault(site, {})[letter] = value
            elif self.own is not None and self.own.form == "seed" and (start := start_of(key)):
                starts.setdefault(start[0], {})[start[1]] = value
            elif why := why_no_module(key):
                problems.append(f"{key} {why}")
            else:
                modules[key.removeprefix(PREFIX)] = value
        wide = self.own is not None and self.own.form == "peft" and self.own.spec.nonzero_start != "refuse"
        problems += _misshapen(sites, kinds, cap=2 if wide else 1) + _misshapen(starts, dict(kinds), cap=1)
        problems += [f"{site} has a start and no factors" for site in starts if site not in sites]
        if not sites:
            problems.append("no tensor is a LoRA factor")
        refuse(self.folder, problems)
        return self._with_spec({s: (t["A"], t["B"]) for s, t in sites.items()}, starts, kinds, modules)

    def _with_spec(
        self,
        factors: dict[str, Pair],
        starts: Mapping[str, Mapping[str, Tensor]],
        kinds: dict[str, str],
        modules: dict[str, Tensor],
    ) -> AdapterFile:
        heads = self._heads()
        spec = self._spec({site: A.shape[0] for site, (A, _) in factors.items()}, heads)
        pairs = {site: (t["A"], t["B"]) for site, t in starts.items()}
        corrected = {site for site in factors if is_corrected(spec, site)} if self.own is not None else set[str]()
        if self.own is not None and self.own.form == "peft":
            for site in corrected:
                factors[site], pairs[site] = _halves(*factors[site])
        refuse(self.folder, _start_problems(factors, pairs, corrected))
        file = AdapterFile(
            folder=self.folder,
            spec=spec,
            factors=factors,
            kinds=kinds,
            modules=modules,
            modules_to_save=tuple(heads),
            starts=pairs,
            config=self.config,
            draws=self._draws(),
            own=self.own,
        )
        if self.own is not None and self.own.format == 1:
            return replace(file, draws=draws_of(spec, file.parts(), groups={}))
        parts = file.parts()
        bad = [key for key, d in file.draws.items() if key not in parts or tuple(parts[key].shape) != d.shape]
        refuse(self.folder / OWN_FILE, [f"its draw of {key} is no factor here, or of another shape" for key in bad])
        return file

    def _heads(self) -> list[str]:
        heads: Any = self.config.get("modules_to_save") or []
        if not isinstance(heads, list) or not all(isinstance(head, str) and head for head in cast("list[Any]", heads)):
            raise AdapterFileError(
                f"{self.folder / CONFIG_FILE}: modules_to_save is {repr(heads)[:80]}; a list of names is needed."
            )
        return cast("list[str]", heads)

    def _refuse_long(self, *patterns: Mapping[str, Any], sites: int) -> None:
        # Each site is compared with each key.
        keys = sum(map(len, patterns))
        absurd = f"its patterns have {keys:,} keys for {sites:,} sites, which is more than is read"
        refuse(self.folder, [absurd] if keys * sites > _MOST_LOOKUPS else [])

    def _spec(self, ranks: Mapping[str, int], heads: list[str]) -> AdapterSpec:
        # `ranks` are those of the tensors: in PEFT's form twice the spec's where the base was corrected.
        targets = self.config.get("target_modules")
        if not isinstance(targets, list) or not targets or not all(isinstance(t, str) and t for t in targets):
            targets = sorted({site.rpartition(".")[2] for site in ranks})
        stated = self.own.spec if self.own is not None else None
        if stated is not None:
            self._refuse_long(stated.rank_pattern, stated.alpha_pattern, stated.factor_pattern, sites=len(ranks))
            if self.own is not None and self.own.form == "seed":
                ranks = {site: rank * (2 if is_corrected(stated, site) else 1) for site, rank in ranks.items()}
        try:
            fields = file_fields(self.config, ranks)
            plain = AdapterSpec.lora(**fields, targets=tuple(targets), modules_to_save=tuple(heads))
        except SpecError as error:
            raise AdapterFileError(f"{self.folder / CONFIG_FILE}: {error}") from None
        if stated is None:
            return plain
        self._refuse_long(plain.rank_pattern, plain.alpha_pattern, sites=len(ranks))
        for site, rank in ranks.items():
            ours, wanted = stated.at(site), plain.at(site).scaling_factor
            own_rank = ours.rank * (2 if is_corrected(stated, site) else 1)
            if rank != own_rank or not math.isclose(ours.scaling_factor, wanted, rel_tol=1e-9):
                raise AdapterFileError(
                    f"{self.folder}: for {site} {OWN_FILE} says rank {own_rank} and scale {ours.scaling_factor:g},"
                    f" the tensors rank {rank} and {CONFIG_FILE} scale {wanted:g}. Delete {OWN_FILE} if PEFT's"
                    " file is the right one."
                )
        return stated


def _start_problems(factors: Mapping[str, Pair], starts: Mapping[str, Pair], corrected: set[str]) -> list[str]:
    problems = [f"{site} has no start, and its base was corrected" for site in corrected if site not in starts]
    problems += [f"{site} has a start, and its base was not corrected" for site in starts if site not in corrected]
    for site, pair in starts.items():
        if any(start.shape != factor.shape for start, factor in zip(pair, factors[site], strict=True)):
            problems.append(f"{site}: its start has other shapes than its factors")
    return problems


def _halves(A: Tensor, B: Tensor) -> tuple[Pair, Pair]:
    """Return the factors and their start of ``[A; A_0]`` and ``[B, -B_0]``."""
    r = A.shape[0] // 2
    trained = A[:r].contiguous(), B[:, :r].contiguous()
    return trained, (A[r:].contiguous(), -B[:, r:].contiguous())


def _misshapen(sites: Mapping[str, Mapping[str, Tensor]], kinds: dict[str, str], *, cap: int) -> list[str]:
    """Return what is wrong with the shapes, and note which sites are convolutions."""
    problems: list[str] = []
    for site, half in sites.items():
        if len(half) == 1:
            problems.append(f"{site}: only lora_{next(iter(half))} is there")
            continue
        A, B = tuple(half["A"].shape), tuple(half["B"].shape)
        shown = f"{site}: A is {A} and B {B}"
        if len(A) != len(B) or not 2 <= len(A) <= 5 or min(*A, *B) < 1:
            problems.append(f"{shown}, which are no factors of one layer")
            continue
        rank, most = A[0], min(math.prod(A[1:]), B[0])
        if len(A) > 2 and kinds.get(site) == "linear":
            kinds[site] = "convolution"
        grouped = len(A) > 2 and rank % B[1] == 0 and set(B[2:]) == {1}
        if (B[1] != rank and not grouped) or (len(A) > 2 and (set(B[2:]) != {1} or kinds.get(site) == "embedding")):
            problems.append(f"{shown}, which do not fit each other")
        elif rank > min(MAX_RANK, cap * most):
            problems.append(f"{shown}: the rank is {rank}, and may be at most {min(MAX_RANK, cap * most)} here")
    return problems
