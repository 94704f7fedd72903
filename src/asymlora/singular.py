"""Singular vectors of a layer's own weight: the largest, the smallest, or a random choice, without a full SVD.

All work is float64 on CPU, whatever the weight's type and device. These are not addressed draws: products, Cholesky
factors and eigenvectors come from BLAS and LAPACK, so the last bits may differ between machines and thread counts, and
a file always stores the values.

Letters: ``tall`` is the weight with its longer axis first, shape ``(q, p)``, ``p <= q``; ``M = tall^T tall``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from asymlora.draws import Draws
from asymlora.errors import RankError, SpecError

TOP_ACCURACY = 1e-8
BOTTOM_ACCURACY = 1e-11
"""Bounds on the residual of each vector ``v`` of singular value ``s``: ``|M v - s**2 v| <= ACCURACY * |M|``.

That of the smallest is tighter because their ``s**2`` are small against ``|M|``, and so are the gaps between them.
"""

_OVERSAMPLING = 8
_KRYLOV_DEPTH = 4
_CYCLES = 40
_DENSE_BELOW = 1024
_GRAM_BELOW = 2048

Product = Callable[[Tensor], Tensor]


def top_singular_vectors(weight: Tensor, rank: int, *, which: Literal["A", "B"], draws: Draws) -> Tensor:
    """Return the singular vectors of the ``rank`` largest singular values: rows for ``A``, columns for ``B``.

    A randomised block Krylov iteration, restarted until every vector ``v`` of the shorter axis meets
    ``|M v - s**2 v| <= TOP_ACCURACY * |M|``, where ``|M| = s_1**2``. With a gap, the sine of the largest angle to the
    true space is then at most ``sqrt(rank) * TOP_ACCURACY * s_1**2 / (s_r**2 - s_(r+1)**2)``. Without one it bounds no
    angle: it says that each ``s**2`` is a true one to that accuracy, so vectors as large as those left out may have
    been taken in their place. Weights of a short axis up to 1024, those for which ``rank`` is a quarter of it or more,
    and those that do not get there take the eigenvectors of ``M`` instead, ``O(p**3)``.

    Args:
        weight: The layer's weight, shape ``(out, in)``, any floating type.
        rank: How many vectors, at most ``min(out, in)``.
        which: ``A``: right singular vectors; ``B``: left ones.
        draws: Where the random start comes from.

    Returns:
        Float64 on CPU, ``(rank, in)`` or ``(out, rank)``, by falling singular value; the largest entry of each is
        positive.

    Source:
        Halko, Martinsson and Tropp 2011, "Finding structure with randomness"; Musco and Musco 2015, "Randomized block
        Krylov methods". The angle is Davis and Kahan's theorem. Restart and stopping rule are ours.
    """
    tall = _tall(weight, rank)
    # Where M is cheap to form, one product with it is faster than two with a weight that may be much taller.
    gram = tall.T @ tall if tall.shape[1] <= _GRAM_BELOW else None

    def multiplied(vectors: Tensor) -> Tensor:
        return tall.T @ (tall @ vectors) if gram is None else gram @ vectors

    found = None
    if not _is_small(tall.shape[1], rank):
        start = _start(tall.shape[1], rank, draws)
        found = _extreme_space(multiplied, multiplied, start, rank=rank, scale=0.0, largest=True)
    if found is None:
        found = torch.linalg.eigh(tall.T @ tall if gram is None else gram).eigenvectors[:, -rank:]
    return _on_side(weight, tall, found, which, draws)


def bottom_singular_vectors(weight: Tensor, rank: int, *, which: Literal["A", "B"], draws: Draws) -> Tensor:
    """Return the last ``rank`` singular vectors of the thin SVD: rows for ``A``, columns for ``B``.

    The same iteration with ``(M + shift)^-1``, through one Cholesky factor of ``M``; the shift is of the size of M's
    rounding. Cost ``O(q*p**2 + p**3/3)``. Accuracy as for `top_singular_vectors`, with `BOTTOM_ACCURACY` and the gap
    between the kept ``s**2`` and the next larger one. Where the weight has rank below ``p``, vectors of singular value
    0 are any orthonormal ones orthogonal to the weight's row space (``A``) or column space (``B``).

    Args:
        weight: The layer's weight, shape ``(out, in)``, any floating type.
        rank: How many vectors, at most ``min(out, in)``.
        which: ``A``: right singular vectors; ``B``: left ones.
        draws: Where the random start comes from.

    Returns:
        As `top_singular_vectors`.

    Source:
        Inverse iteration on the Gram matrix is textbook matter (Golub and Van Loan 2013, section 8.2); the blocks as
        for `top_singular_vectors`.
    """
    tall = _tall(weight, rank)
    gram = tall.T @ tall
    found = None
    if not _is_small(len(gram), rank):
        factor = _cholesky(gram)
        found = _extreme_space(
            lambda vectors: torch.cholesky_solve(vectors, factor),
            lambda vectors: gram @ vectors,
            _start(len(gram), rank, draws),
            rank=rank,
            scale=float(gram.norm(dim=0).max()),
            largest=False,
        )
    if found is None:
        found = torch.linalg.eigh(gram).eigenvectors[:, :rank]
    return _on_side(weight, tall, found, which, draws)


def random_singular_vectors(weight: Tensor, rank: int, *, which: Literal["A", "B"], draws: Draws) -> Tensor:
    """Return ``rank`` singular vectors chosen at random: rows for ``A``, columns for ``B``.

    Interior vectors need the whole spectrum: all eigenvectors of ``M``, about ``2*q*p**2 + 9*p**3``
    operations and ``2*p**2`` numbers of 8 bytes.

    Args:
        weight: The layer's weight, shape ``(out, in)``, any floating type.
        rank: How many vectors, at most ``min(out, in)``.
        which: ``A``: right singular vectors; ``B``: left ones.
        draws: Where the choice comes from.

    Returns:
        As `top_singular_vectors`.
    """
    tall = _tall(weight, rank)
    chosen = draws.subset(rank, tall.shape[1])
    return _on_side(weight, tall, torch.linalg.eigh(tall.T @ tall).eigenvectors[:, chosen], which, draws)


def _tall(weight: Tensor, rank: int) -> Tensor:
    """Return the checked weight in float64 on CPU, its longer axis first.

    Raises:
        SpecError: The weight has no values, is quantised, has not two axes, or holds NaN.
        RankError: The rank is more than the weight has singular vectors.
    """
    if weight.is_meta:
        raise SpecError("The weight is on the meta device and has no values to decompose. Load the weights first.")
    if not weight.is_floating_point():
        raise SpecError(
            f"A weight of type {weight.dtype} is quantised: its numbers are codes, and their singular vectors mean"
            " nothing. Pass the dequantised weight, or start from init='orthonormal', which needs none."
        )
    if weight.ndim != 2:
        raise SpecError(f"Singular vectors need a weight of two axes, (out, in); this one is {tuple(weight.shape)}.")
    if not 0 < rank <= min(weight.shape):
        raise RankError(
            f"A weight of shape {tuple(weight.shape)} has {min(weight.shape)} singular vectors, and rank={rank} were"
            f" asked for. The rank must be at least 1 and at most {min(weight.shape)} here; lower it."
        )
    tall = weight.detach().to(device="cpu", dtype=torch.float64)
    if not torch.isfinite(tall).all():
        raise SpecError("The weight holds NaN or infinite numbers, so it has no singular vectors. Check its file.")
    return tall if len(tall) >= tall.shape[1] else tall.T


def _is_small(size: int, rank: int) -> bool:
    """Whether all eigenvectors of ``M`` cost no more than the iteration's own basis."""
    return size <= _DENSE_BELOW or 4 * rank >= size or (_KRYLOV_DEPTH + 1) * (rank + _OVERSAMPLING) >= size


def _cholesky(gram: Tensor) -> Tensor:
    size = len(gram)
    # Of the size of the rounding of M, so that a singular M has a factor too; an M of zeros gets the identity's.
    shift = float(gram.diagonal().sum()) * torch.finfo(torch.float64).eps or 1.0
    factor, failed = torch.linalg.cholesky_ex(gram + shift * torch.eye(size, dtype=gram.dtype))
    while failed:
        shift *= 16
        factor, failed = torch.linalg.cholesky_ex(gram + shift * torch.eye(size, dtype=gram.dtype))
    return factor


def _start(size: int, rank: int, draws: Draws) -> Tensor:
    width = rank + _OVERSAMPLING
    return _orthonormal(torch.from_numpy(draws.normal(size * width)).reshape(size, width))


def _extreme_space(
    expand: Product, measure: Product, start: Tensor, *, rank: int, scale: float, largest: bool
) -> Tensor | None:
    """Return ``rank`` extreme eigenvectors of ``M`` as columns, or None where the accuracy was not reached.

    Args:
        expand: Product that builds the Krylov blocks: with M for its largest eigenvalues, else with its inverse.
        measure: Product with M itself, for Rayleigh-Ritz and the residual.
        start: The first block, orthonormal columns.
        rank: How many vectors.
        scale: A lower bound of ``|M|``; the largest Ritz value is another.
        largest: Whether the largest eigenvalues are wanted, or the smallest.
    """
    block, width, accuracy = start, start.shape[1], TOP_ACCURACY if largest else BOTTOM_ACCURACY
    for _ in range(_CYCLES):
        blocks = [block]
        for _ in range(_KRYLOV_DEPTH):
            blocks.append(_orthonormal(expand(blocks[-1])))
        block, _, _ = _ritz(torch.cat(blocks, dim=1), measure, width, largest)
        # Blocks of a singular M depend on each other, and then carry rounding that this product takes out again.
        block, values, residuals = _ritz(expand(block), measure, width, largest)
        scale = max(scale, float(values.abs().max()))
        if residuals[:rank].max() <= accuracy * scale:
            return block[:, :rank]
    return None


def _ritz(columns: Tensor, measure: Product, count: int, largest: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the extreme Ritz vectors of M in the span of the columns, their values and residual norms."""
    space = _orthonormal(columns)
    image = measure(space)
    values, vectors = torch.linalg.eigh(space.T @ image)
    # Ascending; what is sought goes first.
    values, vectors = (values.flip(0), vectors.flip(1)) if largest else (values, vectors)
    values, vectors = values[:count], vectors[:, :count]
    block = space @ vectors
    return block, values, (image @ vectors - block * values).norm(dim=0)


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def _on_side(weight: Tensor, tall: Tensor, found: Tensor, which: Literal["A", "B"], draws: Draws) -> Tensor:
    """Return the singular vectors on the wanted side, given those of the shorter axis as columns."""
    # Thin: (q, rank). Sorts the pairs by singular value and makes each as accurate as the space is.
    left, values, right = torch.linalg.svd(tall @ found, full_matrices=False)
    is_short_side = (which == "A") == (weight.shape[0] >= weight.shape[1])
    vectors = found @ right.T if is_short_side else _completed(tall, left, values, draws)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    return vectors.T.contiguous() if which == "A" else vectors.contiguous()


def _completed(tall: Tensor, left: Tensor, values: Tensor, draws: Draws) -> Tensor:
    """Replace the vectors of singular value 0 by orthonormal ones outside the weight's range.

    ``x - tall (M + shift)^-1 tall^T x`` is x less its part in the range, up to the shift.
    """
    null = values <= tall.norm() * (len(tall) * torch.finfo(torch.float64).eps)
    if not null.any():
        return left
    factor = _cholesky(tall.T @ tall)
    count = int(null.sum())
    outside = torch.from_numpy(draws.normal(len(tall) * count, stream=1)).reshape(len(tall), count)
    for _ in range(4):
        outside = outside - tall @ torch.cholesky_solve(tall.T @ outside, factor)
        outside = _orthonormal(outside)
    # Together: where a value is small but not 0, the shift hides its vector from the projection.
    return _orthonormal(torch.cat([left[:, ~null], outside], dim=1))
