"""What holds exactly when a layer's inputs fill at most as many dimensions as the adapter's rank.

Then a frozen random ``A`` loses nothing. Inputs of more dimensions: `asymlora.theory.factor_advantage`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.theory.covariance import check_fits, check_rank, checked_matrix, eigen
from asymlora.theory.least_squares import total_variance


def expected_gap(rank: int, *, cov: Tensor, delta: Tensor) -> float:
    r"""Return the mean of III_A - III_B when the inputs are at most r-dimensional.

    .. math:: E[III_A - III_B] = (1 - r / d_{out})\, \mathrm{Tr}[\Delta \Sigma \Delta^\top]

    A random ``A`` then loses nothing, whichever it is, and a random ``B`` sees ``r`` of ``d_out`` outputs. For inputs
    of more dimensions see `asymlora.theory.factor_advantage.factor_advantage`.

    Args:
        rank: Rank of both frozen factors, at most the number of outputs.
        cov: Input covariance, shape ``(n, n)``, of rank at most ``rank``.
        delta: Wanted update, shape ``(m, n)``.

    Returns:
        The expected loss of training only ``A`` less that of training only ``B``, over uniform frozen factors.

    Raises:
        SpecError: The inputs have more than ``rank`` dimensions, ``rank`` does not fit, or as for `total_variance`.

    Example:
        >>> expected_gap(1, cov=torch.diag(torch.tensor([1.0, 0.0])), delta=torch.eye(2))
        0.5

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Section 4.1.1 (equal variances, as d grows). Exact at every size and for any
        variances, since ``E[U U^T] = (r / d_out) I``: derived here.
    """
    total = total_variance(cov=cov, delta=delta)
    check_rank(rank, delta.shape[0])
    dimensions = eigen(cov)[1].shape[1]
    if dimensions > rank:
        raise SpecError(
            f"The inputs have {dimensions} dimensions, more than rank={rank}, so a frozen A loses some. The gap holds"
            f" up to {rank} dimensions; use factor_advantage(cov, delta, rank={rank}) for these inputs."
        )
    return (1.0 - rank / delta.shape[0]) * total


def reparameterised_B(A: Tensor, B: Tensor, *, onto: Tensor, cov: Tensor) -> Tensor:
    r"""Return the B' for which B' Q does to every input what B A does.

    .. math:: B' = B A\, U_X (Q U_X)^+

    with ``U_X`` a basis of the space that the inputs fill. A random ``A`` costs nothing exactly here.

    Args:
        A: Down factor, shape ``(r, n)``.
        B: Up factor, shape ``(m, r)``.
        onto: The other down factor Q, shape ``(r', n)``, full row rank.
        cov: Input covariance, shape ``(n, n)``, of rank at most ``r'``. Only its range counts.

    Returns:
        Up factor for ``Q``, shape ``(m, r')``, in the dtype of ``B``.

    Raises:
        SpecError: The inputs have more dimensions than ``Q`` reads, ``Q`` is blind to one of them, or a shape does
            not fit.

    Example:
        >>> line = torch.diag(torch.tensor([1.0, 0.0]))
        >>> reparameterised_B(torch.ones(1, 2), torch.ones(1, 1), onto=torch.tensor([[2.0, 5.0]]), cov=line)
        tensor([[0.5000]])

    Source:
        Zhu et al., 2024, arXiv:2402.16842, Section 4.1.1; fewer dimensions than ``r'`` by the pseudo-inverse: ours.
    """
    check_fits("A", A, 0, B, 1)
    check_fits("A", A, 1, onto, 1)
    check_fits("cov", cov, 0, onto, 1)
    _, basis = eigen(cov)
    read = checked_matrix(onto, "Q (onto)", "(rank, in)") @ basis
    dimensions = basis.shape[1]
    strengths = torch.linalg.svdvals(read)
    seen = int((strengths > max(onto.shape) * torch.finfo(onto.dtype).eps * strengths.max()).sum())
    if dimensions > seen:
        raise SpecError(
            f"The inputs have {dimensions} dimensions and Q (onto) of shape {tuple(onto.shape)} tells {seen} of them"
            f" apart, so no B' does what B A does. Give a Q of rank {dimensions} or more that reads all of them, or"
            " take best_B_given_A(Q, cov=cov, delta=B @ A) for the closest."
        )
    update = checked_matrix(B, "B", "(out, rank)") @ (checked_matrix(A, "A", "(rank, in)") @ basis)
    return torch.linalg.lstsq(read.mT, update.mT, driver="gelsd").solution.mT.to(B.dtype)
