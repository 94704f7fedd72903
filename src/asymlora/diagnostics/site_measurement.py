"""Measures the sites of a model around an optimizer step: copies before it, numbers after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from asymlora.autocasting import as_written
from asymlora.diagnostics.factor_state import (
    as_matrix,
    current,
    current_scaling,
    distances,
    own_scale,
    state_of,
)
from asymlora.diagnostics.feature_split import PARTS, Factors, checked_split
from asymlora.diagnostics.probe import SiteInput
from asymlora.diagnostics.product_spectrum import effective_rank, stable_rank
from asymlora.diagnostics.update_spectrum import singular_values
from asymlora.peft_sites import FACTORS, Factor
from asymlora.site_view import Site

Row = dict[str, Any]
_FIRST = 3
"""Steps at the start that are always measured: the second factor of a zero start begins to move in the second."""


@dataclass(kw_only=True)
class MeasuredSite:
    """One site, what it reads, and its factors at the start.

    Args:
        site: The site.
        adapter: Name of the adapter of a PEFT layer; None: a layer of our own.
        read: What its layer read in the probe.
    """

    site: Site
    adapter: str | None
    read: SiteInput
    start: Factors = field(init=False)
    dtype: torch.dtype = field(init=False)
    """What is computed in: float64 where the input or a factor is float64, else float32."""

    def __post_init__(self) -> None:
        dtypes = {self.read.x.dtype, self.tensor("A").dtype, self.tensor("B").dtype}
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.start = Factors(self.matrix("A"), self.matrix("B"))

    def tensor(self, factor: Factor) -> Tensor:
        """Return the factor's own tensor as it is now."""
        return current(self.site, factor, self.adapter)

    def matrix(self, factor: Factor) -> Tensor:
        """Return a copy of the factor as a matrix."""
        return as_matrix(self.site, factor, self.tensor(factor), self.dtype)

    def facts(self) -> Row:
        """Return what a row says besides measurements."""
        A, B = self.start
        return {
            "site": self.site.name,
            "kind": self.site.kind,
            "rank": A.shape[0],
            "fan_in": A.shape[1],
            "outputs": B.shape[0],
            "trains_A": self.tensor("A").requires_grad,
            "trains_B": self.tensor("B").requires_grad,
            "scaling": current_scaling(self.site, self.adapter),
            "rms_x": self.read.rms_x,
            "rms_base": self.read.rms_base,
        }


class SiteMeasurement:
    """The watcher of optimizer steps that measures sites.

    Args:
        sites: The sites.
        every: Steps from one measurement to the next.
        observe: Called with the new rows of each measured step.
    """

    def __init__(
        self,
        sites: Sequence[MeasuredSite],
        *,
        every: int,
        observe: Callable[[list[Row]], object] | None,
    ) -> None:
        self.sites = sites
        self.every = every
        self.observe = observe
        self.records: list[Row] = []
        self._before: dict[int, Tensor] = {}
        self._gradients: dict[int, Tensor] = {}

    def parameters(self) -> list[Tensor]:
        """Return the factors that are trained now."""
        factors = (site.tensor(factor) for site in self.sites for factor in FACTORS)
        return [tensor for tensor in factors if tensor.requires_grad]

    def wants(self, step: int) -> bool:
        """Whether a step is one that is measured."""
        return measures(step, self.every)

    def before(self, step: int) -> None:
        """Copy the trained factors."""
        self._gradients = {}
        self._before = {
            id(tensor): site.matrix(factor)
            for site in self.sites
            for factor in FACTORS
            if (tensor := site.tensor(factor)).requires_grad
        }

    def gradients(self, parameters: Iterable[Tensor], *, scale: float = 1.0) -> None:
        """Take the norms of the gradients as they stand, without the factor that a gradient scaler has put on them."""
        self._gradients |= {id(p): _gradient_norm(p.grad) / scale for p in parameters if p.grad is not None}

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Measure, and tell the observer.

        Raises:
            IdentityError: The exact split does not hold at a site.
        """
        rows = self._rows(step)
        self._before, self._gradients = {}, {}
        self.records += rows
        if self.observe is not None:
            self.observe(rows)

    def _rows(self, step: int) -> list[Row]:
        now = [Factors(site.matrix("A"), site.matrix("B")) for site in self.sites]
        before = [self._as_before(site, factors) for site, factors in zip(self.sites, now, strict=True)]
        rows: list[Row] = []
        spectra = singular_values(now, [current_scaling(site.site, site.adapter) for site in self.sites])
        for site, after, earlier, spectrum in zip(self.sites, now, before, spectra, strict=True):
            row = {"step": step, **site.facts(), **self._features(site, earlier, after, step)}
            rows.append(row | self._factors(site, earlier, after) | _spectrum(spectrum))
        return rows

    def _as_before(self, site: MeasuredSite, after: Factors) -> Factors:
        kept = (self._before.get(id(site.tensor(factor))) for factor in FACTORS)
        return Factors(*(matrix if was is None else was for was, matrix in zip(kept, after, strict=True)))

    def _features(self, site: MeasuredSite, before: Factors, after: Factors, step: int) -> Row:
        if site.read.x.device != after.A.device:
            site.read = site.read.to(after.A.device)  # the model was moved after the capture
        scaling = current_scaling(site.site, site.adapter) * own_scale(site.site)
        with as_written(after.A.device.type):
            found = checked_split(site.read.x, before, after, scaling=scaling, site=site.site.name, step=step)
        return dict(zip(PARTS, found, strict=True))

    def _factors(self, site: MeasuredSite, before: Factors, after: Factors) -> Row:
        measured = {
            factor: state_of(distances(now, was, start.to(now.device)).tolist())
            for factor, now, was, start in zip(FACTORS, after, before, site.start, strict=True)
        }
        gradients = {f"grad_{f}": self._gradients.get(id(site.tensor(f))) for f in FACTORS}
        row: Row = {key: None if norm is None else norm.item() for key, norm in gradients.items()}
        for name in measured["A"]:
            row |= {f"{name}_{factor}": measured[factor][name] for factor in FACTORS}
        return row


def measures(step: int, every: int) -> bool:
    """Whether a step is one that is measured.

    Args:
        step: Number of the step, from 1.
        every: Steps from one measurement to the next.

    Example:
        >>> [step for step in range(1, 50) if measures(step, 20)]
        [1, 2, 3, 20, 40]
    """
    return step <= _FIRST or step % every == 0


def _gradient_norm(gradient: Tensor) -> Tensor:
    dense = gradient.coalesce().values() if gradient.is_sparse else gradient
    wide = dense if dense.dtype == torch.float64 else dense.float()
    return torch.linalg.vector_norm(wide.detach())


def _spectrum(values: Sequence[float]) -> Row:
    found = torch.tensor(values, dtype=torch.float64)
    finite = bool(found.isfinite().all())
    return {
        "singular_values": list(values),
        "effective_rank": effective_rank(found) if finite else None,
        "stable_rank": stable_rank(found) if finite else None,
    }
