r"""What share of a layer's first update a held factor leaves in reach, by its start and rank.

``G`` is the first gradient ``(m, n)``, which stands for the wanted update to first order; ``S`` the second moment of
the inputs; ``s_i``, ``v_i`` its eigenvalues and eigenvectors. The update's energy at the outputs is
``Tr[G S G^T] = |X|_F^2`` with ``X = G V s^1/2``. Holding ``A`` and training ``B`` reaches the part of ``X`` whose
inputs ``A`` reads; holding ``B`` reaches the part whose outputs it writes (``III_A`` and ``III_B`` of
`asymlora.theory.least_squares`). The same of ``|G|_F^2`` says what of the gradient itself reaches the trained factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from asymlora.diagnostics.site_moments import EntryCounts, SiteMoments
from asymlora.draws import Draws
from asymlora.errors import SpecError
from asymlora.singular import top_singular_vectors
from asymlora.theory.factor_advantage import explained_shares, shares_of_one_row
from asymlora.theory.spectrum import InputMoment

LARGEST_RANK = 64
"""Largest rank of the curve."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What can be reached at one rank, as fractions in [0, 1]; None where it is not known.

    The first eight are of the energy at the outputs, ``Tr[G S G^T]``; those that begin with ``weight`` of
    ``|G|_F^2``, in which the inputs do not count.

    Attributes:
        rank: ``r``.
        random_A: ``A`` uniform and held, ``B`` trained; the mean over ``A`` (exact at rank 1 and at full rank, else the
            deterministic equivalent, see `asymlora.theory.factor_advantage`).
        activation_A: ``A`` the leading eigenvectors of ``S``.
        singular_A: ``A`` the leading right singular vectors of ``W0``.
        random_B: ``B`` uniform and held, ``A`` trained; the mean, ``r / m`` exactly.
        gradient_B: ``B`` the leading eigenvectors of the second moment of the output gradients.
        singular_B: ``B`` the leading left singular vectors of ``W0``.
        best: The best product of that rank, which either held factor could allow.
        weight_random_A: ``r / n`` exactly.
        weight_activation_A: As above.
        weight_singular_A: As above.
        weight_random_B: ``r / m`` exactly.
        weight_gradient_B: As above.
        weight_singular_B: As above.
        weight_best: The best product of that rank.
    """

    rank: int
    random_A: float
    activation_A: float
    singular_A: float | None
    random_B: float
    gradient_B: float
    singular_B: float | None
    best: float
    weight_random_A: float
    weight_activation_A: float
    weight_singular_A: float | None
    weight_random_B: float
    weight_gradient_B: float
    weight_singular_B: float | None
    weight_best: float


@dataclass(frozen=True, kw_only=True)
class SiteMeasures:
    """The measurements of one layer, as plain numbers.

    Attributes:
        name: Path of the layer.
        kind: ``linear``, ``embedding`` or ``convolution``.
        fan_in: ``n``.
        outputs: ``m``.
        rows: Input rows seen.
        batches: Batches seen.
        input_ratio: Participation ratio of the inputs' second moment, in ``[1, n]``.
        output_ratio: Participation ratio of the output gradients' second moment, in ``[1, m]``; None without gradients.
        centred_ratio: Participation ratio of the inputs' covariance: far above `input_ratio` where a large mean is most
            of the inputs, so that an update of it acts as a bias. None for embeddings and inputs that do not vary.
        noise: Fraction of ``|G|_F^2`` that is chance of the batches; None if it cannot be told.
        missed: Fraction of the trace of ``S`` that a sketch leaves out; the shares are of the rest.
        shares: By rank, ascending; empty where no gradient was kept.
        why_no_shares: Why there are none, or empty.
    """

    name: str
    kind: str
    fan_in: int
    outputs: int
    rows: int
    batches: int
    input_ratio: float
    output_ratio: float | None = None
    centred_ratio: float | None = None
    noise: float | None = None
    missed: float = 0.0
    shares: tuple[Shares, ...] = ()
    why_no_shares: str = ""

    @property
    def generic_ratio(self) -> float:
        """``m`` over the inputs' participation ratio: above 1, training ``B`` reaches more of a generic update."""
        return self.outputs / self.input_ratio

    @property
    def limit(self) -> int:
        """Largest rank of an adapter here."""
        return min(self.fan_in, self.outputs)

    def to_records(self) -> list[dict[str, Any]]:
        """Return one flat row per rank; one without shares where there are none."""
        site = {key: value for key, value in vars(self).items() if key != "shares"}
        site = {"site": site.pop("name"), **site, "generic_ratio": self.generic_ratio}
        return [{**site, **asdict(shares)} for shares in self.shares] or [site]


def measure_sites(found: Mapping[str, SiteMoments], *, ranks: Sequence[int] | None = None) -> tuple[SiteMeasures, ...]:
    """Return what `measure_site` does for each layer that has seen an input, in order.

    Args:
        found: As `asymlora.diagnostics.covariance.gather_moments` gives them.
        ranks: As for `measure_site`.

    Returns:
        Measures of each layer that was run.
    """
    return tuple(measure_site(moments, ranks=ranks) for moments in found.values() if moments.rows)


def measure_site(moments: SiteMoments, *, ranks: Sequence[int] | None = None) -> SiteMeasures:
    """Return a layer's participation ratios, and what each held factor leaves in reach of its first update.

    Args:
        moments: Of the layer.
        ranks: Ranks of the curve, those above the layer's limit left out; None: 1, 2, 4 and so on to 64, and the limit
            where that is less.

    Returns:
        The measures; without shares where no gradient was kept or all of it is zero.

    Raises:
        SpecError: The layer has seen no input or none but zeros, or a rank is below 1.

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Lemmas 4.1 and 4.2, with the gradient in place of the update: as in
        `asymlora.theory.least_squares`. All in the inputs' eigenbasis: derived here.
    """
    if not moments.rows:
        raise SpecError(f"{moments.name} has seen no input, so there is nothing to measure. Run it on a batch.")
    known = {
        "name": moments.name,
        "kind": moments.kind,
        "fan_in": moments.fan_in,
        "outputs": moments.outputs,
        "rows": moments.rows,
        "batches": moments.batches,
        "input_ratio": moments.inputs.participation_ratio(),
        "centred_ratio": _centred_ratio(moments.inputs),
        "noise": moments.noise,
        "missed": moments.inputs.missed_trace(),
    }
    gradients = moments.output_gradients
    if not gradients.count or gradients.trace() == 0:
        return SiteMeasures(**known, why_no_shares=moments.why_no_gradient or "its gradient is zero")
    known["output_ratio"] = gradients.participation_ratio()
    if moments.gradient is None:
        return SiteMeasures(**known, why_no_shares=moments.why_no_gradient)
    ranks = _checked_ranks(ranks, min(moments.fan_in, moments.outputs))
    update = _Update(moments, max(ranks))
    if update.energy <= 0:
        return SiteMeasures(**known, why_no_shares="its gradient moves no output")
    return SiteMeasures(**known, shares=tuple(update.shares(rank) for rank in ranks))


def _centred_ratio(inputs: InputMoment | EntryCounts) -> float | None:
    if isinstance(inputs, EntryCounts) or inputs.trace(centred=True) <= 0:
        return None
    return inputs.participation_ratio(centred=True)


def _checked_ranks(ranks: Sequence[int] | None, limit: int) -> list[int]:
    if ranks is None:
        top = min(limit, LARGEST_RANK)
        return sorted({*(2**power for power in range(top.bit_length())), top})
    if not ranks or min(ranks) < 1:
        raise SpecError(f"ranks={tuple(ranks)} must hold ranks of 1 or more.")
    return sorted({min(rank, limit) for rank in ranks})


class _Update:
    """The first update of one layer in the eigenbasis of its inputs, and what each subspace holds of it.

    Args:
        moments: Of the layer, with a gradient.
        largest: Largest rank asked for.
    """

    def __init__(self, moments: SiteMoments, largest: int) -> None:
        assert moments.gradient is not None
        self.outputs, self.fan_in = moments.outputs, moments.fan_in
        # The scale of a loss means nothing, and its square may underflow.
        gradient = moments.gradient.double()
        gradient = gradient / gradient.abs().max()
        self.variances, directions = moments.inputs.principal()
        self.variances = self.variances / self.variances[0]
        self._in_basis = _coordinates(gradient, directions)
        self._moved = self._in_basis * self.variances.sqrt()
        self._gradient = gradient
        self.energy = self._moved.square().sum().item()
        self._weight_energy = gradient.square().sum().item()
        self._by_direction = self._moved.square().sum(dim=0)
        _, principal = moments.output_gradients.principal()
        self._singular_A = self._singular_B = None
        if (weight := moments.weight) is not None:
            draws = Draws(seed=0, site=moments.name, factor="A")
            right = top_singular_vectors(weight, largest, which="A", draws=draws).to(gradient)
            left = top_singular_vectors(weight, largest, which="B", draws=draws).to(gradient)
            self._singular_A = (right, _coordinates(right, directions))
            self._singular_B = _cumulated(left.T @ self._moved), _cumulated(left.T @ gradient)
        self._gradient_B = _cumulated(principal.T @ self._moved), _cumulated(principal.T @ gradient)
        self._best = _spectrum(self._moved), _spectrum(gradient)

    def shares(self, rank: int) -> Shares:
        """Return what is reached at one rank."""
        inputs = self._in_basis.square().sum(dim=0)
        singular_A = self._by_singular_A(rank)
        return Shares(
            rank=rank,
            random_A=self._share((self._by_direction * self._mean_shares(rank)).sum()),
            activation_A=self._share(self._by_direction[:rank].sum()),
            singular_A=None if singular_A is None else self._share(singular_A[0]),
            random_B=rank / self.outputs,
            gradient_B=self._share(_first(self._gradient_B[0], rank)),
            singular_B=None if self._singular_B is None else self._share(_first(self._singular_B[0], rank)),
            best=self._share(_first(self._best[0], rank)),
            weight_random_A=rank / self.fan_in,
            weight_activation_A=self._weight_share(inputs[:rank].sum()),
            weight_singular_A=None if singular_A is None else self._weight_share(singular_A[1]),
            weight_random_B=rank / self.outputs,
            weight_gradient_B=self._weight_share(_first(self._gradient_B[1], rank)),
            weight_singular_B=None
            if self._singular_B is None
            else self._weight_share(_first(self._singular_B[1], rank)),
            weight_best=self._weight_share(_first(self._best[1], rank)),
        )

    def _mean_shares(self, rank: int) -> Tensor:
        """Return how much of each input direction a random A explains, as `factor_advantage` has it."""
        return shares_of_one_row(self.variances) if rank == 1 else explained_shares(self.variances, rank)

    def _by_singular_A(self, rank: int) -> tuple[Tensor, Tensor] | None:
        if self._singular_A is None:
            return None
        rows, coordinates = (part[:rank] for part in self._singular_A)
        # An orthonormal basis of what the rows read, in inputs of variance 1; III_A is X's part in it.
        read, strengths, _ = torch.linalg.svd(self.variances.sqrt()[:, None] * coordinates.T, full_matrices=False)
        read = read[:, strengths > len(read) * torch.finfo(read.dtype).eps * strengths.max()]
        return (self._moved @ read).square().sum(), (self._gradient @ rows.T).square().sum()

    def _share(self, energy: Tensor) -> float:
        return min(max(energy.item() / self.energy, 0.0), 1.0)

    def _weight_share(self, energy: Tensor) -> float:
        return min(max(energy.item() / self._weight_energy, 0.0), 1.0)


def _coordinates(rows: Tensor, directions: Tensor) -> Tensor:
    """Return rows ``(p, n)`` in a basis ``(n, k)``, or in entries ``(k,)`` of one-hot inputs."""
    return rows[:, directions] if directions.dim() == 1 else rows @ directions


def _cumulated(rows: Tensor) -> Tensor:
    return rows.square().sum(dim=1).cumsum(0)


def _spectrum(matrix: Tensor) -> Tensor:
    """Return the cumulated squared singular values, largest first."""
    short = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(short @ short.T).flip(0).clamp_min(0.0).cumsum(0)


def _first(cumulated: Tensor, rank: int) -> Tensor:
    """Return the sum of the first ``rank``, or of all where there are fewer."""
    return cumulated[min(rank, len(cumulated)) - 1]
