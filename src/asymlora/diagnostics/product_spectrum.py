"""The singular values of ``s*B*A`` and what they say, from the factors alone: the product is never formed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from asymlora.errors import SpecError


class ProductSVD(NamedTuple):
    """A thin singular value decomposition of ``s*B*A``, ``left @ diag(values) @ right.T``, float64.

    Attributes:
        left: Singular vectors in the output space, shape ``(out, k)`` with ``k = min(rank, out, in)``.
        values: Singular values, descending, shape ``(k,)``.
        right: Singular vectors in the input space, shape ``(in, k)``.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def product_svd(A: Tensor, B: Tensor, *, scaling: float = 1.0) -> ProductSVD:
    """Return the singular value decomposition of ``scaling * B A``, by QR of both factors.

    Takes ``O((in + out) rank^2)`` operations in float64.

    Args:
        A: Down factor, shape ``(rank, in)``.
        B: Up factor, shape ``(out, rank)``.
        scaling: The whole multiplier ``s``, above 0.

    Returns:
        The decomposition.

    Raises:
        SpecError: The factors do not fit each other, are not floating, or hold NaN or infinity.

    Example:
        >>> product_svd(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]), scaling=0.5).values
        tensor([5.], dtype=torch.float64)

    Source:
        ``B A = Q_B (R_B R_A^T) Q_A^T`` with ``B = Q_B R_B`` and ``A^T = Q_A R_A``; the middle is small.
    """
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
        raise SpecError(
            f"A {tuple(A.shape)} and B {tuple(B.shape)} are no factors of one matrix. Give A of shape (rank, in) and B"
            " of shape (out, rank)."
        )
    up_frame, up = torch.linalg.qr(finite_float64(B))
    down_frame, down = torch.linalg.qr(finite_float64(A).mT)
    left, values, right = torch.linalg.svd(scaling * (up @ down.mT), full_matrices=False)
    return ProductSVD(up_frame @ left, values, down_frame @ right.mT)


def finite_float64(matrix: Tensor) -> Tensor:
    """Return a matrix in float64, without its history.

    Args:
        matrix: Any floating tensor.

    Returns:
        The same values.

    Raises:
        SpecError: It is not floating, or holds NaN or infinity.
    """
    if not matrix.is_floating_point() or not torch.isfinite(matrix).all():
        raise SpecError(
            f"A {matrix.dtype} matrix of shape {tuple(matrix.shape)} is not floating, or holds NaN or infinity. Give"
            " finite floating entries."
        )
    return matrix.detach().double()


def rounding_tolerance(*factors: Tensor) -> float:
    """Return up to which fraction of the largest singular value another one is rounding.

    Args:
        *factors: The matrices as they are stored, or the factors of a product; the least exact one decides.

    Returns:
        A fraction. For float32 and float64 that of `torch.linalg.matrix_rank`. Entries that are only stored in a half
        precision are off by random rounding, whose singular values are about a tenth of the type's epsilon at any rank
        (measured here: ranks 4 to 256); the fraction is that epsilon.
    """
    fractions: list[float] = []
    for factor in factors:
        eps = torch.finfo(factor.dtype).eps
        fractions.append(eps * (max(factor.shape) if eps < 1e-6 else 1))
    return max(fractions)


def effective_rank(values: Tensor) -> float | None:
    """Return the exponential of the entropy of the singular values, each divided by their sum.

    Args:
        values: Singular values, shape ``(k,)``.

    Returns:
        A number in [1, k], or None if all are zero.

    Example:
        >>> round(effective_rank(torch.tensor([3.0, 3.0, 0.0])), 6)
        2.0

    Source:
        Roy and Vetterli, 2007, "The Effective Rank: A Measure of Effective Dimensionality".
    """
    shares = values[values > 0].double()
    if not len(shares):
        return None
    shares = shares / shares.sum()
    return math.exp(-(shares * shares.log()).sum().item())


def stable_rank(values: Tensor) -> float | None:
    """Return the squared Frobenius norm over the squared spectral norm.

    Args:
        values: Singular values, shape ``(k,)``.

    Returns:
        A number in [1, k], or None if all are zero.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0]))
        1.25
    """
    largest = values.max().item() if len(values) else 0.0
    return (values.double() / largest).square().sum().item() if largest else None


def truncation_error(values: Tensor, rank: int) -> float | None:
    r"""Return what cutting a matrix to a smaller rank loses: the relative Frobenius error of the best cut.

    .. math:: \sqrt{\sum_{i > r'} \sigma_i^2 / \sum_i \sigma_i^2}

    Args:
        values: Singular values, descending, shape ``(k,)``.
        rank: How many are kept, ``r'``, at least 0.

    Returns:
        A fraction in [0, 1], or None if all values are zero.

    Example:
        >>> truncation_error(torch.tensor([4.0, 3.0]), 1)
        0.6

    Source:
        Eckart and Young, 1936.
    """
    largest = values.max().item() if len(values) else 0.0
    if not largest:
        return None
    energy = (values.double() / largest).square()
    return math.sqrt((energy[rank:].sum() / energy.sum()).item())
