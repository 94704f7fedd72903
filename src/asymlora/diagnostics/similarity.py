r"""How alike two factors are as subspaces: what an ``r x r`` mixing of an adapter cannot change.

``B A = (B C)(C^{-1} A)`` for any invertible ``C``, so only the column space of ``B`` and the row space of ``A`` mean
anything. A shared start alone makes two ``A`` similar, and a low-rank gradient makes two ``B`` similar after one
step: read a similarity beside `chance_similarity` and beside how far the factor has moved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asymlora.diagnostics.product_spectrum import finite_float64, product_svd, rounding_tolerance
from asymlora.errors import SpecError


def subspace_similarity(first: Tensor, second: Tensor, *, tolerance: float | None = None) -> float:
    r"""Return the CCA goodness of fit of two column spaces.

    .. math:: \mathrm{sim}(X, Y) = ||U_Y^\top U_X||_F^2 / \min(r_1, r_2)

    with ``U`` orthonormal bases of the column spaces and ``r`` their dimensions: the mean squared cosine of the
    principal angles. It is symmetric, and 1 where one space holds the other.

    Args:
        first: First matrix, shape ``(d, r1)``.
        second: Second matrix, shape ``(d, r2)``.
        tolerance: Singular values up to this fraction of the largest are dropped; they are rounding, and their
            directions would be arbitrary. None takes the precision of the dtype.

    Returns:
        A fraction in [0, 1], or NaN if a matrix is all zero: then there is no subspace to compare.

    Raises:
        SpecError: The matrices have other heights, are not floating or hold NaN or infinity.

    Example:
        >>> plane = torch.eye(4)[:, :2]
        >>> round(subspace_similarity(plane, plane @ torch.tensor([[1.0, 5.0], [0.0, 3.0]])), 6)
        1.0
        >>> subspace_similarity(plane, torch.eye(4)[:, 1:3]), chance_similarity(2, 4)
        (0.5, 0.5)

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Fig. 1 and App. A. Dropping small singular values: ours.
    """
    left, right = _bases(first, second, tolerance)
    smaller = min(left.shape[1], right.shape[1])
    if not smaller:
        return math.nan
    return min((left.mT @ right).square().sum().item() / smaller, 1.0)


def principal_angles(first: Tensor, second: Tensor, *, tolerance: float | None = None) -> Tensor:
    """Return the angles between two column spaces, smallest first.

    Args:
        first: First matrix, shape ``(d, r1)``.
        second: Second matrix, shape ``(d, r2)``.
        tolerance: As for `subspace_similarity`.

    Returns:
        Angles in radians, float64, one for each dimension of the smaller space; empty if a matrix is all zero. Small
        angles are as exact as large ones.

    Raises:
        SpecError: As for `subspace_similarity`.

    Example:
        >>> principal_angles(torch.eye(3)[:, :1], torch.tensor([[1.0], [1.0], [0.0]])) * 4 / torch.pi
        tensor([1.0000], dtype=torch.float64)

    Source:
        Bjoerck and Golub, 1973: cosines for large angles, sines for small ones.
    """
    return angles_between(*_bases(first, second, tolerance))


def angles_between(first: Tensor, second: Tensor) -> Tensor:
    """Return what `principal_angles` does, of spaces whose bases are known.

    Args:
        first: Orthonormal columns, shape ``(d, k1)``, float64.
        second: Orthonormal columns, shape ``(d, k2)``, float64.

    Returns:
        Angles in radians, smallest first, shape ``(min(k1, k2),)``.
    """
    wide, narrow = sorted((first, second), key=lambda basis: -basis.shape[1])
    if not narrow.shape[1]:
        return torch.zeros(0, dtype=torch.float64, device=wide.device)
    cosines = torch.linalg.svdvals(wide.mT @ narrow).clamp(max=1.0)
    sines = torch.linalg.svdvals(narrow - wide @ (wide.mT @ narrow)).clamp(max=1.0).flip(-1)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())


def A_similarity(first: Tensor, second: Tensor, *, tolerance: float | None = None) -> float:
    """Return how alike two down factors are: the similarity of their row spaces.

    Args:
        first: An ``A``, shape ``(rank, in)``; of a convolution ``(rank, in, kernel...)``.
        second: Another of the same layer, of any rank.
        tolerance: As for `subspace_similarity`.

    Returns:
        A fraction in [0, 1], or NaN if one is all zero.

    Raises:
        SpecError: As for `subspace_similarity`.

    Example:
        >>> A_similarity(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        1.0

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Fig. 1; rows for ``A`` is the only reading whose shapes fit (inferred).
    """
    return subspace_similarity(first.flatten(1).mT, second.flatten(1).mT, tolerance=tolerance)


def B_similarity(first: Tensor, second: Tensor, *, tolerance: float | None = None) -> float:
    """Return how alike two up factors are: the similarity of their column spaces.

    Args:
        first: A ``B``, shape ``(out, rank)``; of a convolution ``(out, rank/groups, 1...)``.
        second: Another of the same layer, of any rank.
        tolerance: As for `subspace_similarity`.

    Returns:
        A fraction in [0, 1], or NaN if one is all zero, as every ``B`` is at the standard start.

    Raises:
        SpecError: As for `subspace_similarity`.

    Example:
        >>> B_similarity(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [2.0]]))
        0.0

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Fig. 1.
    """
    return subspace_similarity(first.flatten(1), second.flatten(1), tolerance=tolerance)


def chance_similarity(rank: int, width: int, other_rank: int | None = None) -> float:
    """Return the mean similarity of two independent uniform subspaces.

    Args:
        rank: Dimension of the first.
        width: Dimension of the space: ``in`` for two ``A``, ``out`` for two ``B``.
        other_rank: Dimension of the second; None for the same.

    Returns:
        ``max(rank, other_rank) / width``, exactly.

    Raises:
        SpecError: A rank is not in 1 to ``width``.

    Example:
        >>> chance_similarity(8, 1024)
        0.0078125

    Source:
        ``E ||U_Y^T U_X||_F^2 = r1 r2 / d``: derived here.
    """
    larger = rank if other_rank is None else max(rank, other_rank)
    smaller = rank if other_rank is None else min(rank, other_rank)
    if not 1 <= smaller <= larger <= width:
        raise SpecError(f"Ranks {smaller} and {larger} do not fit width={width}. Give ranks of 1 to {width}.")
    return larger / width


def linear_cka(first: Tensor, second: Tensor) -> float:
    r"""Return the linear CKA of two sets of columns, without centring.

    .. math:: ||Y^\top X||_F^2 / (||X^\top X||_F ||Y^\top Y||_F)

    It does not change under a rotation of the columns or a common factor, and does under other mixings of them. To
    compare adapters, give it `balanced_factors`, which no mixing of an adapter changes.

    Args:
        first: First matrix, shape ``(d, r1)``.
        second: Second matrix, shape ``(d, r2)``.

    Returns:
        A fraction in [0, 1]; NaN if a matrix is all zero. Its level by chance is `chance_cka`.

    Raises:
        SpecError: The matrices have other heights, are not floating or hold NaN or infinity.

    Example:
        >>> plane = torch.eye(4)[:, :2]
        >>> round(linear_cka(plane, 3 * plane.flip(-1)), 6), round(linear_cka(plane, torch.eye(4)[:, 1:3]), 6)
        (1.0, 0.5)

    Source:
        Kornblith et al., 2019, "Similarity of Neural Network Representations Revisited", Eq. 5 and App. on linear CKA
        (recalled). There rows are samples, and columns are centred over them; the rows of a weight are coordinates,
        no sample, and taking their mean off would change the subspace that is compared. So nothing is centred.
    """
    left, right = _checked_pair(first, second)
    size = _gram_norm(left) * _gram_norm(right)
    return min((right.mT @ left).square().sum().item() / size, 1.0) if size else math.nan


def balanced_factors(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of ``B A`` that share its singular values evenly: those of its column and of its row space.

    Each direction has the size of the root of its singular value, so a similarity of them weighs a direction by how
    much the adapter uses it. They depend on the product alone, so no mixing ``B C``, ``C^-1 A`` changes them (but for
    signs, and for rotations among equal singular values).

    Args:
        A: Down factor, shape ``(rank, in)``.
        B: Up factor, shape ``(out, rank)``.

    Returns:
        ``V sqrt(S)``, shape ``(in, k)``, for ``A``; ``U sqrt(S)``, shape ``(out, k)``, for ``B``; float64.

    Raises:
        SpecError: The factors do not fit each other, are not floating, or hold NaN or infinity.

    Example:
        >>> down, up = balanced_factors(torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0]]))
        >>> down.abs().T, up.abs()
        (tensor([[0., 2.]], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
    """
    found = product_svd(A, B)
    size = found.values.sqrt()
    return found.right * size, found.left * size


def chance_cka(first: Tensor, second: Tensor) -> float:
    r"""Return the mean linear CKA of two matrices with these singular values in independent uniform directions.

    .. math:: \sqrt{\mathrm{PR}_X \mathrm{PR}_Y} / d, \quad
        \mathrm{PR} = (\textstyle\sum_i \sigma_i^2)^2 / \sum_i \sigma_i^4

    Args:
        first: First matrix, shape ``(d, r1)``; only its singular values matter.
        second: Second matrix, shape ``(d, r2)``.

    Returns:
        A fraction; NaN if a matrix is all zero. Equal singular values give ``sqrt(r1 r2) / d``.

    Raises:
        SpecError: As for `linear_cka`.

    Example:
        >>> round(chance_cka(torch.eye(8)[:, :2], torch.eye(8)[:, :2]), 6)
        0.25

    Source:
        Derived here: with ``X = U diag(sigma)`` and one frame uniform, ``E (u_i . v_j)^2 = 1/d``, so the expected
        numerator of `linear_cka` is ``||X||_F^2 ||Y||_F^2 / d``, and its denominator does not depend on directions.
    """
    left, right = _checked_pair(first, second)
    size = _gram_norm(left) * _gram_norm(right)
    energy = left.square().sum().item() * right.square().sum().item()
    return energy / size / left.shape[0] if size else math.nan


def _gram_norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix.mT @ matrix).item()


def _checked_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return both matrices in float64.

    Raises:
        SpecError: As for `subspace_similarity`.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise SpecError(
            f"Matrices of shapes {tuple(first.shape)} and {tuple(second.shape)} span no subspaces of one space. Give"
            " matrices with the same number of rows: (d, r1) and (d, r2); factors of the same layer."
        )
    return finite_float64(first), finite_float64(second)


def _bases(first: Tensor, second: Tensor, tolerance: float | None) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases of both column spaces, in float64.

    Raises:
        SpecError: As for `subspace_similarity`.
    """
    _checked_pair(first, second)
    if tolerance is not None and not 0 <= tolerance < 1:
        raise SpecError(f"tolerance={tolerance} is no fraction of the largest singular value. Give one in [0, 1).")
    return column_basis(first, tolerance=tolerance), column_basis(second, tolerance=tolerance)


def column_basis(matrix: Tensor, *, tolerance: float | None = None) -> Tensor:
    """Return an orthonormal basis of a column space: the left singular vectors that are more than rounding.

    Args:
        matrix: Shape ``(d, r)``.
        tolerance: As for `subspace_similarity`.

    Returns:
        Columns, shape ``(d, k)``, float64; none if the matrix is all zero.

    Raises:
        SpecError: The matrix is not floating, or holds NaN or infinity.
    """
    fraction = rounding_tolerance(matrix) if tolerance is None else tolerance
    vectors, values, _ = torch.linalg.svd(finite_float64(matrix), full_matrices=False)
    return vectors[:, values > fraction * values.max()] if values.numel() else vectors
