"""The covariance of a layer's inputs as the theory takes it: checked, its range, its effective dimension.

Nothing in here knows of factors; estimating a covariance from activations is `asymlora.theory.spectrum`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asymlora.errors import SpecError


def checked_matrix(matrix: Tensor, name: str, shape: str) -> Tensor:
    """Return a matrix in float64.

    Args:
        matrix: Any floating matrix.
        name: What the message calls it.
        shape: What its two axes are, for the message: ``(out, in)``.

    Returns:
        The same values.

    Raises:
        SpecError: It has another number of axes, an axis of length 0, is not floating or holds NaN or infinity.
    """
    if matrix.ndim != 2 or not matrix.is_floating_point() or matrix.numel() == 0:
        raise SpecError(
            f"{name} is {matrix.dtype} of shape {tuple(matrix.shape)}. Give a floating matrix of shape {shape}."
        )
    if not torch.isfinite(matrix).all():
        raise SpecError(f"{name} of shape {tuple(matrix.shape)} holds NaN or infinity. Give finite entries.")
    return matrix.detach().double()


def checked_cov(cov: Tensor) -> Tensor:
    """Return a covariance in float64, made exactly symmetric.

    Args:
        cov: Covariance or second moment, shape ``(n, n)``, symmetric to the root of its dtype's precision.

    Returns:
        The matrix, shape ``(n, n)``. That it has no negative eigenvalue is checked where eigenvalues are at hand.

    Raises:
        SpecError: It is not square, not symmetric, not finite, all zero, or has a negative entry on the diagonal.
    """
    inputs = checked_matrix(cov, "cov", "(in, in)")
    if cov.shape[0] != cov.shape[1]:
        raise SpecError(f"cov has shape {tuple(cov.shape)}. A covariance is square: (in, in).")
    largest = inputs.abs().max()
    skew = (inputs - inputs.mT).abs().max()
    if skew > torch.finfo(cov.dtype).eps ** 0.5 * largest:
        raise SpecError(
            f"cov is not symmetric: entries differ by up to {skew.item():.3g} from their mirrors, the largest is"
            f" {largest.item():.3g}. Pass X.T @ X / n, or (cov + cov.T) / 2 if the difference means nothing."
        )
    if inputs.diagonal().min() < 0:
        raise SpecError(
            f"cov has the negative variance {inputs.diagonal().min().item():.3g} on its diagonal. A covariance is"
            " positive semidefinite: pass X.T @ X / n."
        )
    if largest == 0:
        raise SpecError("cov is all zero: there are no inputs. Pass the covariance of inputs that vary.")
    return symmetric(inputs)


def checked_eigenvalues(values: Tensor, cov: Tensor, *, size: float) -> Tensor:
    """Return which eigenvalues are more than rounding.

    Args:
        values: Eigenvalues of the covariance, or of a compression of it.
        cov: The covariance as it was given; its dtype says how far its entries are rounded.
        size: Its Frobenius norm, the size that rounding is relative to.

    Returns:
        A bool tensor in the shape of ``values``.

    Raises:
        SpecError: One is negative by more than rounding.
    """
    rounding = 10 * torch.finfo(cov.dtype).eps * size
    if values.min() < -rounding:
        raise SpecError(
            f"cov has the negative eigenvalue {values.min().item():.3g} (largest {values.max().item():.3g}). A"
            " covariance is positive semidefinite: pass X.T @ X / n."
        )
    return values > rounding


def eigen(cov: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances and directions of the inputs, largest first.

    Args:
        cov: Covariance, shape ``(n, n)``.

    Returns:
        Variances, shape ``(k,)``, and orthonormal directions, shape ``(n, k)``, for the ``k`` directions whose variance
        is more than rounding; float64.

    Raises:
        SpecError: As for `checked_cov`, or an eigenvalue is negative.

    Example:
        >>> variances, directions = eigen(torch.diag(torch.tensor([1.0, 0.0, 4.0])))
        >>> variances.tolist(), directions.abs().argmax(dim=0).tolist()
        ([4.0, 1.0], [2, 0])
    """
    inputs = checked_cov(cov)
    values, vectors = torch.linalg.eigh(inputs)
    kept = checked_eigenvalues(values, cov, size=torch.linalg.matrix_norm(inputs).item())
    return values[kept].flip(-1), vectors[:, kept].flip(-1)


def participation_ratio(cov: Tensor) -> float:
    r"""Return the effective number of input dimensions.

    .. math:: PR = (\mathrm{Tr}\, \Sigma)^2 / \mathrm{Tr}\, \Sigma^2

    Args:
        cov: Covariance or second moment, shape ``(n, n)``.

    Returns:
        A number in ``[1, n]``: ``n`` if all directions vary alike, 1 if only one varies.

    Raises:
        SpecError: As for `checked_cov`.

    Example:
        >>> participation_ratio(torch.diag(torch.tensor([1.0, 1.0, 0.0])))
        2.0
    """
    inputs = checked_cov(cov)
    inputs = inputs / inputs.trace()  # the squares of small variances would underflow
    return 1.0 / inputs.square().sum().item()


def symmetric(matrix: Tensor) -> Tensor:
    """Return the symmetric part of a square matrix."""
    return (matrix + matrix.mT) / 2


def checked_delta(delta: Tensor) -> Tensor:
    """Return a wanted update in float64, or refuse it as `checked_matrix` does."""
    return checked_matrix(delta, "delta", "(out, in)")


def check_fits(name: str, left: Tensor, axis: int, right: Tensor, other: int) -> None:
    """Refuse two matrices of which one axis each should be equally long.

    Args:
        name: What the message calls the first.
        left: First matrix.
        axis: Its axis.
        right: Second matrix.
        other: Axis of the second.

    Raises:
        SpecError: The lengths differ, or one is no matrix.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[axis] != right.shape[other]:
        raise SpecError(
            f"{name} of shape {tuple(left.shape)} does not fit a matrix of shape {tuple(right.shape)}: axis {axis} must"
            f" be as long as axis {other} there. Give A as (rank, in), B as (out, rank), delta as (out, in)."
        )


def check_rank(rank: int, largest: int) -> None:
    """Refuse a rank that is not in 1 to ``largest``.

    Args:
        rank: Rank of a factor.
        largest: The largest that fits.

    Raises:
        SpecError: It does not fit.
    """
    if not 1 <= rank <= largest:
        raise SpecError(f"rank={rank} does not fit. Take a rank of 1 to {largest}, which the layer's sides allow.")
