"""How a factor starts: one function per scheme, one signature, one table.

Every function fills ``factor`` in place and returns it. ``A`` is ``(rank, in)`` and ``B`` is ``(out, rank)``, so the
fan-in of either is the length of its rows. Draws are float32 on CPU, from a generator addressed by
``(seed, site name, factor)``: the same numbers in any order of attachment and on any device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

Init = Callable[[Tensor, Generator], Tensor]


def zeros_(factor: Tensor, generator: Generator) -> Tensor:
    """Fill with zeros; the generator is not used."""
    return factor.zero_()


def kaiming_uniform_(factor: Tensor, generator: Generator) -> Tensor:
    """Fill with ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, variance ``1/(3 fan_in)``.

    Source:
        PEFT's and loralib's start of ``A``: ``kaiming_uniform_(a=sqrt(5))``, read in their code.
    """
    return nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)


def gaussian_(factor: Tensor, generator: Generator) -> Tensor:
    """Fill with a Gaussian of variance ``1/fan_in``: ``1/in`` for ``A``, ``1/rank`` for ``B``.

    Source:
        Hayou et al. 2024, "The Impact of Initialization on LoRA Finetuning Dynamics", Init[A] and Init[B]. PEFT's
        ``"gaussian"`` is another scheme: its standard deviation is ``1/rank``.
    """
    return factor.normal_(0.0, 1.0 / math.sqrt(factor.shape[1]), generator=generator)


def orthonormal_(factor: Tensor, generator: Generator) -> Tensor:
    """Fill with a uniformly random orthonormal frame: rows if the factor is wide, columns if it is tall.

    Draws ``max(shape) x min(shape)`` Gaussians and orthonormalises them, ``O(max(shape) * rank**2)``; the sign of each
    column is fixed by the diagonal of R, which makes the frame uniform on the Stiefel manifold.

    Source:
        Zhu et al. 2024, the frozen factor of ``B``-only. Their released code takes a full SVD of an (out, in) draw.
    """
    short, long = sorted(factor.shape)
    draw = torch.empty(long, short, dtype=torch.float64).normal_(generator=generator)
    frame, upper = torch.linalg.qr(draw)
    frame = frame * torch.where(torch.diagonal(upper) < 0, -1.0, 1.0)
    return factor.copy_(frame.T if factor.shape[0] < factor.shape[1] else frame)


INITS: dict[str, Init] = {
    "zeros": zeros_,
    "kaiming_uniform": kaiming_uniform_,
    "gaussian": gaussian_,
    "orthonormal": orthonormal_,
}


def draw(init: str, shape: tuple[int, int], *, seed: int, site: str, factor: Literal["A", "B"]) -> Tensor:
    """Return the start of one factor.

    Args:
        init: A row of `INITS`.
        shape: ``(rank, in)`` for ``A``, ``(out, rank)`` for ``B``.
        seed: The adapter's seed.
        site: Path of the adapted module in the model that it was attached to.
        factor: Which factor.

    Returns:
        A float32 tensor on CPU. The same arguments give the same values in any process and order.

    Example:
        >>> A = draw("orthonormal", (2, 5), seed=0, site="encoder.query", factor="A")
        >>> torch.allclose(A @ A.T, torch.eye(2), atol=1e-6)
        True
    """
    address = hashlib.sha256(f"{seed}\x1f{site}\x1f{factor}".encode()).digest()
    generator = Generator().manual_seed(int.from_bytes(address[:8], "big") >> 1)
    with torch.no_grad():
        return INITS[init](torch.empty(shape, dtype=torch.float32), generator)
