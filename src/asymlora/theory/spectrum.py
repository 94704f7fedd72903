r"""The spectrum of a layer's inputs, gathered from activations as they pass, in one sweep and fixed memory.

``d`` features, ``T`` rows seen, ``l`` columns of the sketch. ``M = sum x x^T / T`` is the second moment, ``Sigma`` the
covariance. Sums are kept in float64 about the running mean, so that neither the order nor the size of the chunks
matters beyond rounding, and both ``M`` and ``Sigma`` can be read at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.theory.covariance import eigen, symmetric

EXACT_WIDTH = 2048
"""Widest input whose ``d x d`` moment is kept whole by default (32 MiB)."""
SKETCH_COLUMNS = 128
"""Columns of the sketch above that width."""


class InputMoment:
    r"""Running mean and second moment of activations, whole or as a sketch.

    The whole moment is exact. The sketch keeps ``M Omega`` for a fixed Gaussian ``Omega`` of ``l`` columns, ``d l``
    numbers in place of ``d^2``. From it:

    * count, mean and trace are exact;
    * `eigenvalues` are those of the Nystroem approximation, which never exceeds the moment: each is at most the true
      one. The trace that it misses is known (`missed_trace`), and in the mean over ``Omega`` at most
      ``1 + k / (l - k - 1)`` times the sum of the eigenvalues after the k-th, for every ``k < l - 1``;
    * `participation_ratio` rests on an estimate of ``||M||_F^2``: within 3 % at ``l`` = 128, 5 % at ``l`` = 64, for
      ``d`` = 512 and power-law spectra of exponent 0 to 2 (held by a test). Being a ratio, it is biased upwards, by
      less than 1 % there.

    Either way these are moments of the rows seen. Few rows make a spectrum look more concentrated than it is: for
    ``T`` independent Gaussian rows ``1/PR`` comes out too large by about ``1/T``.

    Args:
        width: Features ``d`` of an input.
        sketch: Columns ``l`` of the sketch, even, 4 or more; 0 keeps the whole moment; None decides by `EXACT_WIDTH`.
        seed: Seed of ``Omega``. Two moments can be merged if their seeds are the same.

    Raises:
        SpecError: The width or the sketch is out of range.

    Example:
        >>> moment = InputMoment(2)
        >>> moment.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> moment.update(torch.tensor([[[0.0, 1.0]], [[0.0, -1.0]]]))
        >>> moment.count, moment.matrix().tolist(), moment.participation_ratio()
        (4, [[0.5, 0.0], [0.0, 0.5]], 2.0)

    Source:
        Running mean: Chan, Golub and LeVeque, 1983. Nystroem sketch in one pass: Tropp, Yurtsever, Udell and Cevher,
        2017, arXiv:1706.05736; its error from Halko, Martinsson and Tropp, 2011, arXiv:0909.4061, Theorem 10.5, on
        the root of the moment: derived here. The estimate of the norm is ours, after Meyer, Musco, Musco and
        Woodruff, 2021, arXiv:2010.09649.
    """

    def __init__(self, width: int, *, sketch: int | None = None, seed: int = 0) -> None:
        if width < 1:
            raise SpecError(f"width={width} is no number of features. Give the input width of the layer, 1 or more.")
        if sketch is None:
            sketch = 0 if width <= EXACT_WIDTH else SKETCH_COLUMNS
        if sketch and not (4 <= sketch <= width and sketch % 2 == 0):
            raise SpecError(
                f"sketch={sketch} does not fit width={width}. Give an even number from 4 to {width}, or 0 for the whole"
                " moment."
            )
        self.width, self.sketch, self.seed = width, sketch, seed
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._scatter_trace = torch.zeros((), dtype=torch.float64)
        self._omega = _gaussian(width, sketch, seed) if sketch else None
        self._scatter = torch.zeros(width, sketch or width, dtype=torch.float64)

    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Take in activations.

        Args:
            x: Inputs of the layer, shape ``(..., d)``, any floating dtype. The sums move to its device.
            mask: True where a row counts, shape ``(...)``; None counts all. Leave padding out with it.

        Raises:
            SpecError: The last axis is not ``d``, the mask does not fit, or a counted row is not finite.
        """
        rows = self._checked_rows(x, mask)
        if not len(rows):
            return
        self._move(rows.device)
        mean = rows.mean(dim=0)
        centred = rows - mean
        projected = centred if self._omega is None else centred @ self._omega
        self._add(len(rows), mean, centred.mT @ projected, centred.square().sum())

    def merge(self, other: InputMoment) -> InputMoment:
        """Return the moment of the rows that either has seen.

        Args:
            other: A moment of the same width, sketch and seed, of another part of the data.

        Returns:
            A new moment, on this one's device.

        Raises:
            SpecError: Width, sketch or seed differ.
        """
        mine, others = (self.width, self.sketch, self.seed), (other.width, other.sketch, other.seed)
        if mine[:2] != others[:2] or (self.sketch and self.seed != other.seed):
            raise SpecError(
                f"Moments of (width, sketch, seed) {mine} and {others} cannot be merged. Gather both with the same."
            )
        merged = InputMoment(self.width, sketch=self.sketch, seed=self.seed)
        for part in (self, other):
            merged._move(self.mean.device)
            sums = (part.mean, part._scatter, part._scatter_trace)
            merged._add(part.count, *(value.to(self.mean.device) for value in sums))
        return merged

    def trace(self, *, centred: bool = False) -> float:
        """Return the trace, exact in either form.

        Args:
            centred: Of the covariance instead of the second moment.

        Returns:
            Mean squared norm of a row, about the mean if centred.

        Raises:
            SpecError: No row has been seen.
        """
        self._refuse_empty()
        around = self._scatter_trace / self.count
        return (around if centred else around + self.mean.square().sum()).item()

    def matrix(self, *, centred: bool = False) -> Tensor:
        """Return the second moment, or the covariance, as float64.

        Args:
            centred: The covariance about the mean instead. Take it where the layer's bias is trained too; where the
                bias is frozen the mean of the inputs counts, and the second moment is what the theory needs.

        Returns:
            The matrix, shape ``(d, d)``, normalised by ``T``.

        Raises:
            SpecError: No row has been seen, or only a sketch is kept.
        """
        if self._omega is not None:
            raise SpecError(
                f"Only a sketch of {self.sketch} columns is kept of this moment of width {self.width}. Read"
                " eigenvalues() or participation_ratio(), or gather with sketch=0."
            )
        return symmetric(self._product(centred))

    def eigenvalues(self, *, centred: bool = False) -> Tensor:
        """Return the variances along the principal directions, largest first.

        Args:
            centred: Of the covariance instead of the second moment.

        Returns:
            Shape ``(d,)``; of a sketch the ``l`` leading ones, none above the true one. Not negative.

        Raises:
            SpecError: No row has been seen.
        """
        if self._omega is None:
            return torch.linalg.eigvalsh(self.matrix(centred=centred)).flip(-1).clamp_min(0.0)
        root = _nystroem_root(self._product(centred), self._omega)
        found = torch.linalg.svdvals(root).square()
        return torch.nn.functional.pad(found, (0, self.sketch - len(found)))

    def principal(self, *, centred: bool = False) -> tuple[Tensor, Tensor]:
        """Return the variances with their directions, largest first.

        Args:
            centred: Of the covariance instead of the second moment.

        Returns:
            Variances, shape ``(k,)``, and orthonormal directions, shape ``(d, k)``, float64, for the ``k`` directions
            whose variance is more than rounding; of a sketch those of its approximation.

        Raises:
            SpecError: No row has been seen, or all rows are zero (equal, if centred).

        Example:
            >>> moment = InputMoment(2)
            >>> moment.update(torch.tensor([[0.0, 2.0]]))
            >>> [part.abs().tolist() for part in moment.principal()]
            [[4.0], [[0.0], [1.0]]]
        """
        self._positive_trace(centred)
        if self._omega is None:
            return eigen(self.matrix(centred=centred))
        root = _nystroem_root(self._product(centred), self._omega)
        directions, values, _ = torch.linalg.svd(root, full_matrices=False)
        kept = values > max(root.shape) * torch.finfo(root.dtype).eps * values.max()
        return values[kept].square(), directions[:, kept]

    def missed_trace(self, *, centred: bool = False) -> float:
        """Return which fraction of the trace the eigenvalues do not add up to: 0 without a sketch.

        Args:
            centred: Of the covariance instead of the second moment.

        Returns:
            A fraction in [0, 1].

        Raises:
            SpecError: No row has been seen.
        """
        trace = self.trace(centred=centred)
        if self._omega is None or trace == 0:
            return 0.0
        return max(0.0, 1.0 - self.eigenvalues(centred=centred).sum().item() / trace)

    def participation_ratio(self, *, centred: bool = False) -> float:
        r"""Return the effective number of input dimensions, exact without a sketch.

        .. math:: PR = (\mathrm{Tr}\, M)^2 / ||M||_F^2

        Args:
            centred: Of the covariance instead of the second moment.

        Returns:
            A number in ``[1, d]``.

        Raises:
            SpecError: No row has been seen, or all rows are zero (equal, if centred).
        """
        product = self._product(centred) / self._positive_trace(centred)
        squared = product.square().sum() if self._omega is None else _squared_norm(product, self._omega)
        return min(max(1.0 / squared.item(), 1.0), float(self.width)) if squared > 0 else float(self.width)

    def _positive_trace(self, centred: bool) -> float:
        trace = self.trace(centred=centred)
        if trace <= 0:
            raise SpecError(
                f"The {self.count} rows seen {'do not vary' if centred else 'are all zero'}, so they fill no dimension."
                " Update with inputs that vary."
            )
        return trace

    def _product(self, centred: bool) -> Tensor:
        """Return the moment times ``Omega``, or the moment itself."""
        self._refuse_empty()
        around = self._scatter / self.count
        if centred:
            return around
        along = self.mean if self._omega is None else self.mean @ self._omega
        return around + torch.outer(self.mean, along)

    def _add(self, count: int, mean: Tensor, scatter: Tensor, scatter_trace: Tensor) -> None:
        """Add the sums of ``count`` further rows, each about their own mean."""
        total = self.count + count
        if not total:
            return
        shift = mean - self.mean
        weight = self.count * count / total
        along = shift if self._omega is None else shift @ self._omega
        self._scatter += scatter + weight * torch.outer(shift, along)
        self._scatter_trace += scatter_trace + weight * shift.square().sum()
        self.mean += shift * (count / total)
        self.count = total

    def _checked_rows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the rows that count, in float64.

        Raises:
            SpecError: As for `update`.
        """
        if x.ndim < 1 or x.shape[-1] != self.width or not x.is_floating_point():
            raise SpecError(
                f"Got {x.dtype} inputs of shape {tuple(x.shape)} for a moment of width {self.width}. Give floating"
                f" inputs of shape (..., {self.width})."
            )
        if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != torch.bool):
            raise SpecError(
                f"Got a {mask.dtype} mask of shape {tuple(mask.shape)} for inputs of shape {tuple(x.shape)}. Give a"
                f" bool mask of shape {tuple(x.shape[:-1])}: attention_mask.bool()."
            )
        kept = x.detach().reshape(-1, self.width) if mask is None else x.detach()[mask]
        rows = kept.double()
        if not torch.isfinite(rows).all():
            raise SpecError(
                f"Inputs of shape {tuple(x.shape)} hold NaN or infinity. Give finite inputs, and a mask for padding."
            )
        return rows

    def _move(self, device: torch.device) -> None:
        if self.mean.device != device:
            self.mean, self._scatter = self.mean.to(device), self._scatter.to(device)
            self._scatter_trace = self._scatter_trace.to(device)
            self._omega = None if self._omega is None else self._omega.to(device)

    def _refuse_empty(self) -> None:
        if not self.count:
            raise SpecError("No row has been seen yet. Call update(x) with the layer's inputs first.")


def _gaussian(width: int, columns: int, seed: int) -> Tensor:
    # Drawn on a CPU in float32 whatever the inputs are, so that the same seed is the same sketch.
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, columns, generator=generator, dtype=torch.float32).double()


def _nystroem_root(product: Tensor, omega: Tensor) -> Tensor:
    """Return ``F`` with ``F F^T = Y (Omega^T Y)^+ Y^T`` for ``Y = M Omega``."""
    values, vectors = torch.linalg.eigh(symmetric(omega.mT @ product))
    # Below this an eigenvalue is rounding of the product, which is as wide as the moment.
    kept = values > 10 * len(product) * torch.finfo(product.dtype).eps * values[-1].clamp_min(0.0)
    return product @ (vectors[:, kept] / values[kept].sqrt())


def _squared_norm(product: Tensor, omega: Tensor) -> Tensor:
    r"""Return an estimate of ``||M||_F^2`` for ``M`` of trace 1.

    One half of the sketch gives a Nystroem approximation ``N <= M``, whose norm is exact. The other half, independent
    of it, estimates what is left, ``E[|M w|^2 - |N w|^2] = Tr[M^2 - N^2]``, scaled by how well it estimates the trace
    of ``M - N``, which is known. Then the halves change places.
    """
    half = omega.shape[1] // 2
    estimates: list[Tensor] = []
    for near, far in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        root = _nystroem_root(product[:, near], omega[:, near])
        gram = root.mT @ root
        known, trace_left = gram.square().sum(), 1.0 - gram.trace()
        seen = root @ (root.mT @ omega[:, far])
        left = (product[:, far].square().sum() - seen.square().sum()) / half
        guessed = ((product[:, far] - seen) * omega[:, far]).sum() / half
        # With nothing left but rounding there is nothing to scale.
        estimates.append(known + (left * trace_left / guessed if min(trace_left, guessed) > 1e-9 else 0.0))
    return (estimates[0] + estimates[1]) / 2
