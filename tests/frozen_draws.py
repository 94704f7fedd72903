"""Random frozen factors, input spectra and updates for the tests of the theory, all in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from asymlora.theory.least_squares import explained_given_A, explained_given_B

FLOAT = torch.float64


def gaussian(*shape: int, seed: int | torch.Generator) -> Tensor:
    """Independent standard normal entries."""
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return torch.randn(*shape, generator=generator, dtype=FLOAT)


def frame(length: int, rank: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns that span a uniform subspace, shape ``(length, rank)``."""
    return torch.linalg.qr(gaussian(length, rank, seed=generator))[0]


def power_law(width: int, exponent: float) -> Tensor:
    """Variances ``i^-exponent``, shape ``(width,)``."""
    return torch.arange(1, width + 1, dtype=FLOAT) ** -exponent


def explained(cov: Tensor, delta: Tensor, rank: int, *, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """III_A and III_B of independent uniform frozen factors, shape ``(draws,)`` each."""
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = delta.shape
    by_b, by_a = [], []
    for _ in range(draws):
        by_b.append(explained_given_A(frame(inputs, rank, generator).T, cov=cov, delta=delta))
        by_a.append(explained_given_B(frame(outputs, rank, generator), cov=cov, delta=delta))
    return torch.tensor(by_b, dtype=FLOAT), torch.tensor(by_a, dtype=FLOAT)


def mean_explained_given_A(
    variances: Tensor, delta: Tensor, rank: int, *, draws: int, generator: torch.Generator
) -> tuple[float, float]:
    """Mean of III_A over uniform ``A`` for a diagonal covariance, and its standard error; all draws at once."""
    down = gaussian(draws, rank, len(variances), seed=generator)
    inner = (down * variances) @ down.mT
    moved = (down * variances) @ delta.T
    each = (torch.linalg.solve(inner, moved) * moved).sum(dim=(1, 2))
    return each.mean().item(), each.std().item() / draws**0.5
