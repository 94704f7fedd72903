r"""What one factor can reach in least squares while the other is held: best factors, losses, explained variance.

The model: ``y = (W0 + Delta) x + b + noise``, predicted by ``(W0 + s B A) x + b``. ``n`` features in, ``m`` features
out, ``r`` rank, ``cov`` the covariance Sigma of ``x``. If the bias is frozen, so that the mean of ``x`` counts, put
the second moment ``E[x x^T]`` in its place: every formula stays as it is. All of it runs in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.theory.covariance import (
    check_fits,
    check_rank,
    checked_cov,
    checked_delta,
    checked_eigenvalues,
    checked_matrix,
    symmetric,
)


class LowRankOptimum(NamedTuple):
    """The update of a given rank with the smallest expected squared error.

    Attributes:
        A: Down factor, shape ``(r, n)``.
        B: Up factor with orthonormal columns, shape ``(m, r)``.
        explained: Part of ``Tr[Delta Sigma Delta^T]`` that the update removes.
    """

    A: Tensor
    B: Tensor
    explained: float


def best_B_given_A(A: Tensor, *, cov: Tensor, delta: Tensor, scaling: float = 1.0) -> Tensor:
    r"""Return the B that minimises the expected squared error for a fixed A.

    .. math:: B^\star = \Delta\, \Sigma A^\top (A \Sigma A^\top)^{-1} / s

    Where inputs have no variance in some direction that ``A`` reads, many ``B`` are best; this is the one with the
    smallest update ``B A``.

    Args:
        A: Down factor, shape ``(r, n)``, full row rank; its rows need not be orthonormal.
        cov: Input covariance Sigma, shape ``(n, n)``, positive semidefinite.
        delta: Wanted update Delta = W* - W0, shape ``(m, n)``.
        scaling: Multiplier ``s`` on ``B A``.

    Returns:
        Up factor, shape ``(m, r)``, in the dtype of ``delta``.

    Raises:
        SpecError: A shape does not fit, an entry is not finite, ``A`` lacks full row rank, ``cov`` is no covariance,
            or ``scaling`` is zero.

    Example:
        >>> best_B_given_A(torch.eye(2, 3), cov=torch.eye(3), delta=torch.ones(1, 3))
        tensor([[1., 1.]])

    Source:
        Zhu et al., 2024, "Asymmetry in Low-Rank Adapters of Foundation Models", arXiv:2402.16842, Lemma 4.1, stated
        there for orthonormal rows and ``s = 1``. Any rows, ``s`` and a singular Sigma: derived here.
    """
    rows, mixing = _orthonormal(A.mT, "A", "row")
    moved, root = _whitened(rows, cov, delta)
    best = moved @ root.mT
    return _unmixed(best, mixing, _checked_scaling(scaling)).to(delta.dtype)


def best_A_given_B(B: Tensor, *, delta: Tensor, scaling: float = 1.0) -> Tensor:
    r"""Return the A that minimises the expected squared error for a fixed B.

    .. math:: A^\star = (B^\top B)^{-1} B^\top \Delta / s

    It does not depend on the inputs: a frozen ``B`` limits the outputs alone.

    Args:
        B: Up factor, shape ``(m, r)``, full column rank; its columns need not be orthonormal.
        delta: Wanted update Delta = W* - W0, shape ``(m, n)``.
        scaling: Multiplier ``s`` on ``B A``.

    Returns:
        Down factor, shape ``(r, n)``, in the dtype of ``delta``.

    Raises:
        SpecError: A shape does not fit, an entry is not finite, ``B`` lacks full column rank, or ``scaling`` is zero.

    Example:
        >>> best_A_given_B(torch.tensor([[2.0], [0.0]]), delta=torch.tensor([[1.0, 4.0], [5.0, 6.0]]))
        tensor([[0.5000, 2.0000]])

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Lemma 4.2, stated there for orthonormal columns; the rest derived here.
    """
    columns, mixing = _orthonormal(B, "B", "column")
    wanted = checked_delta(delta)
    check_fits("B", B, 0, delta, 0)
    code = columns.mT @ wanted / _checked_scaling(scaling)
    return torch.linalg.solve_triangular(mixing, code, upper=True).to(delta.dtype)


def expected_loss(
    A: Tensor, B: Tensor, *, cov: Tensor, delta: Tensor, scaling: float = 1.0, noise_variance: float = 0.0
) -> float:
    r"""Return the expected squared error of an update, summed over the outputs.

    .. math:: L(A, B) = d_{out} \sigma^2 + \mathrm{Tr}[(\Delta - s B A)\, \Sigma\, (\Delta - s B A)^\top]

    Args:
        A: Down factor, shape ``(r, n)``, of any rank.
        B: Up factor, shape ``(m, r)``, of any rank.
        cov: Input covariance, shape ``(n, n)``.
        delta: Wanted update, shape ``(m, n)``.
        scaling: Multiplier ``s`` on ``B A``.
        noise_variance: Variance ``sigma^2`` of the noise on each output.

    Returns:
        The loss.

    Raises:
        SpecError: A shape does not fit, an entry is not finite, or ``noise_variance`` is negative.

    Example:
        >>> expected_loss(torch.eye(1, 2), torch.ones(1, 1), cov=torch.eye(2), delta=torch.ones(1, 2))
        1.0
    """
    floor = _noise_floor(delta, noise_variance)
    check_fits("A", A, 1, delta, 1)
    check_fits("B", B, 0, delta, 0)
    check_fits("A", A, 0, B, 1)
    left = checked_delta(delta) - scaling * B.double() @ A.double()
    return floor + total_variance(cov=cov, delta=left)


def loss_given_A(A: Tensor, *, cov: Tensor, delta: Tensor, noise_variance: float = 0.0) -> float:
    """Return the expected loss at the best B for a fixed A, on any scaling.

    Args:
        A: Down factor, shape ``(r, n)``, full row rank.
        cov: Input covariance, shape ``(n, n)``.
        delta: Wanted update, shape ``(m, n)``.
        noise_variance: Variance of the noise on each output.

    Returns:
        ``m sigma^2 + Tr[Delta Sigma Delta^T] - III_A``.

    Raises:
        SpecError: As for `best_B_given_A`, or ``noise_variance`` is negative.

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Lemma 4.1.
    """
    explained = explained_given_A(A, cov=cov, delta=delta)
    return _noise_floor(delta, noise_variance) + total_variance(cov=cov, delta=delta) - explained


def loss_given_B(B: Tensor, *, cov: Tensor, delta: Tensor, noise_variance: float = 0.0) -> float:
    """Return the expected loss at the best A for a fixed B, on any scaling.

    Args:
        B: Up factor, shape ``(m, r)``, full column rank.
        cov: Input covariance, shape ``(n, n)``.
        delta: Wanted update, shape ``(m, n)``.
        noise_variance: Variance of the noise on each output.

    Returns:
        ``m sigma^2 + Tr[Delta Sigma Delta^T] - III_B``.

    Raises:
        SpecError: As for `best_A_given_B`, ``cov`` is no covariance, or ``noise_variance`` is negative.

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Lemma 4.2.
    """
    explained = explained_given_B(B, cov=cov, delta=delta)
    return _noise_floor(delta, noise_variance) + total_variance(cov=cov, delta=delta) - explained


def explained_given_A(A: Tensor, *, cov: Tensor, delta: Tensor) -> float:
    r"""Return III_A: what the best B removes from the loss while A is held.

    .. math:: III_A = \mathrm{Tr}[\Delta \Sigma A^\top (A \Sigma A^\top)^+ A \Sigma \Delta^\top]

    It depends on the row space of ``A`` alone. Directions in which the inputs have no variance explain nothing.

    Args:
        A: Down factor, shape ``(r, n)``, full row rank.
        cov: Input covariance, shape ``(n, n)``.
        delta: Wanted update, shape ``(m, n)``.

    Returns:
        The explained part of ``Tr[Delta Sigma Delta^T]``.

    Raises:
        SpecError: As for `best_B_given_A`.

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Lemma 4.1; the pseudo-inverse is ours.
    """
    rows, _ = _orthonormal(A.mT, "A", "row")
    moved, _ = _whitened(rows, cov, delta)
    return moved.square().sum().item()


def explained_given_B(B: Tensor, *, cov: Tensor, delta: Tensor) -> float:
    r"""Return III_B: what the best A removes from the loss while B is held.

    .. math:: III_B = \mathrm{Tr}[U^\top \Delta \Sigma \Delta^\top U], \quad U \text{ a basis of B's column space}

    Args:
        B: Up factor, shape ``(m, r)``, full column rank.
        cov: Input covariance, shape ``(n, n)``.
        delta: Wanted update, shape ``(m, n)``.

    Returns:
        The explained part of ``Tr[Delta Sigma Delta^T]``.

    Raises:
        SpecError: As for `best_A_given_B`, or ``cov`` is no covariance.

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Lemma 4.2.
    """
    columns, _ = _orthonormal(B, "B", "column")
    check_fits("B", B, 0, delta, 0)
    return total_variance(cov=cov, delta=columns.mT @ checked_delta(delta))


def total_variance(*, cov: Tensor, delta: Tensor) -> float:
    """Return ``Tr[Delta Sigma Delta^T]``, the loss of no update at all, without the noise.

    Args:
        cov: Input covariance, shape ``(n, n)``.
        delta: Wanted update, shape ``(m, n)``.

    Returns:
        The variance of ``Delta x``, summed over the outputs.

    Raises:
        SpecError: A shape does not fit, an entry is not finite, or ``cov`` is no covariance.
    """
    inputs, wanted = checked_cov(cov), checked_delta(delta)
    check_fits("cov", cov, 0, delta, 1)
    return ((wanted @ inputs) * wanted).sum().item()


def best_low_rank(rank: int, *, cov: Tensor, delta: Tensor, scaling: float = 1.0) -> LowRankOptimum:
    r"""Return the best update of a rank when both factors are free.

    With ``U`` the leading left singular vectors of ``Delta Sigma^{1/2}``: ``B = U`` and ``A = U^T Delta / s``. So the
    joint optimum is what training ``A`` alone reaches from the best frozen ``B``.

    Args:
        rank: Rank of the update, at most the number of outputs.
        cov: Input covariance, shape ``(n, n)``.
        delta: Wanted update, shape ``(m, n)``.
        scaling: Multiplier ``s`` on ``B A``.

    Returns:
        Factors in the dtype of ``delta``, and the explained part of ``Tr[Delta Sigma Delta^T]``.

    Raises:
        SpecError: As for `total_variance`, or ``rank`` does not fit.

    Example:
        >>> best = best_low_rank(1, cov=torch.eye(2), delta=torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        >>> round(best.explained, 6)
        9.0

    Source:
        Eckart and Young, 1936, in the metric of the inputs; the form without a root of Sigma is derived here.
    """
    inputs, wanted = checked_cov(cov), checked_delta(delta)
    check_fits("cov", cov, 0, delta, 1)
    check_rank(rank, delta.shape[0])
    # The left singular vectors of Delta Sigma^{1/2} are the eigenvectors of its Gram matrix, ascending.
    values, vectors = torch.linalg.eigh(symmetric(wanted @ inputs @ wanted.mT))
    columns = vectors[:, -rank:].flip(-1)
    down = columns.mT @ wanted / _checked_scaling(scaling)
    return LowRankOptimum(down.to(delta.dtype), columns.to(delta.dtype), values[-rank:].clamp_min(0).sum().item())


def factor_gradients(gradient: Tensor, A: Tensor, B: Tensor, *, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Return the gradients of the factors from that of the layer's weight, for any loss.

    .. math:: \nabla_A L = s B^\top G, \qquad \nabla_B L = s\, G A^\top

    So a frozen ``A`` projects the inputs and leaves the error at the outputs whole; a frozen ``B`` projects that error.

    Args:
        gradient: ``G``, the loss's gradient in ``W0 + s B A``, shape ``(m, n)``.
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
        scaling: Multiplier ``s`` on ``B A``.

    Returns:
        Gradients of ``A``, shape ``(r, n)``, and of ``B``, shape ``(m, r)``.

    Raises:
        SpecError: A shape does not fit.

    Example:
        >>> grad_A, grad_B = factor_gradients(torch.ones(2, 3), torch.eye(1, 3), torch.eye(2, 1), scaling=2.0)
        >>> grad_A.tolist(), grad_B.tolist()
        ([[2.0, 2.0, 2.0]], [[2.0], [2.0]])

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Section 4.1.2; the chain rule with ``s``: derived here.
    """
    check_fits("A", A, 1, gradient, 1)
    check_fits("B", B, 0, gradient, 0)
    return scaling * B.mT @ gradient, scaling * gradient @ A.mT


def _whitened(rows: Tensor, cov: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``Delta Sigma Q^T K`` and ``K``, where ``K K^T`` is the pseudo-inverse of ``Q Sigma Q^T``.

    Raises:
        SpecError: The shapes do not fit.
    """
    inputs, wanted = checked_cov(cov), checked_delta(delta)
    check_fits("cov", cov, 0, delta, 1)
    if rows.shape[0] != cov.shape[0]:
        raise SpecError(f"A reads {rows.shape[0]} inputs and cov has {cov.shape[0]}. Give both the same inputs.")
    coded = inputs @ rows
    values, vectors = torch.linalg.eigh(symmetric(rows.mT @ coded))
    kept = checked_eigenvalues(values, cov, size=torch.linalg.matrix_norm(inputs).item())
    root = vectors[:, kept] / values[kept].sqrt()
    return wanted @ coded @ root, root


def _unmixed(best: Tensor, mixing: Tensor, scaling: float) -> Tensor:
    """Return the B for rows ``mixing^T Q`` from the best one for orthonormal rows ``Q``."""
    return torch.linalg.solve_triangular(mixing.mT, best / scaling, upper=False, left=False)


def _orthonormal(columns: Tensor, name: str, kind: str) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of the columns and their coordinates in it.

    Raises:
        SpecError: They are dependent.
    """
    matrix = checked_matrix(columns, name, "(rank, in)" if kind == "row" else "(out, rank)")
    length, rank = matrix.shape
    basis, mixing = torch.linalg.qr(matrix)
    strengths = torch.linalg.svdvals(mixing)
    full = int((strengths > max(length, rank) * torch.finfo(columns.dtype).eps * strengths[0]).sum())
    if full < rank:
        raise SpecError(
            f"{name} has {rank} {kind}s and {kind} rank {full}, so the best other factor is not determined. Give a"
            f" factor with independent {kind}s; one that is drawn at random with rank <= {length} has them."
        )
    return basis, mixing


def _checked_scaling(scaling: float) -> float:
    if scaling == 0:
        raise SpecError("scaling=0.0 switches the adapter off, so no factor is best. Give a scaling other than 0.")
    return scaling


def _noise_floor(delta: Tensor, noise_variance: float) -> float:
    if noise_variance < 0:
        raise SpecError(f"noise_variance={noise_variance} is negative. Give a variance of 0 or more.")
    return delta.shape[0] * noise_variance
