"""Which factor to train at one layer, drawn at random: the theorem's regime, its tie and its reversals.

One frozen factor is drawn for each training, both closed forms are evaluated, and what the criterion predicts stands
beside them. Zhu et al. 2024, arXiv:2402.16842, Theorem 4.3; the cases are those of our notes on where it stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.schema import refuse_values
from asymlora.theory.factor_advantage import factor_advantage
from asymlora.theory.least_squares import explained_given_A, explained_given_B, total_variance

Wanted = Literal["generic", "high variance", "low variance"]


@dataclass(frozen=True, kw_only=True)
class GapCase:
    """One layer and the update that is wanted of it.

    Attributes:
        inputs: Features in.
        outputs: Features out.
        decay: Exponent of the power law of the input variances; 0 is isotropic.
        rank: Rank of the frozen factor.
        wanted: Which inputs the update reads: all, or the half of high or low variance.
    """

    inputs: int = 256
    outputs: int = 256
    decay: float = 1.0
    rank: int = 8
    wanted: Wanted = "generic"

    def __post_init__(self) -> None:
        """Check the values."""
        problems = [f"{n}={getattr(self, n)} must be at least 1" for n in ("inputs", "outputs", "rank")]
        problems = [
            problem for problem, n in zip(problems, (self.inputs, self.outputs, self.rank), strict=True) if n < 1
        ]
        if self.rank > min(self.inputs, self.outputs):
            problems.append(f"rank={self.rank} must be at most {min(self.inputs, self.outputs)}, the smaller width")
        if not self.decay >= 0:
            problems.append(f"decay={self.decay} must be at least 0")
        if self.wanted not in ("generic", "high variance", "low variance"):
            problems.append(f"wanted={self.wanted!r} must be 'generic', 'high variance' or 'low variance'")
        refuse_values(problems)

    def draw(self, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the input covariance, the wanted update, and a frozen ``A`` and ``B``, float64."""
        generator = torch.Generator().manual_seed(seed)
        variances = torch.arange(1, self.inputs + 1, dtype=torch.float64).pow(-self.decay)
        delta = torch.randn(self.outputs, self.inputs, generator=generator, dtype=torch.float64)
        half = self.inputs // 2
        if self.wanted == "low variance":
            delta[:, :half] = 0
        elif self.wanted == "high variance":
            delta[:, half:] = 0
        down = torch.randn(self.rank, self.inputs, generator=generator, dtype=torch.float64)
        up = torch.randn(self.outputs, self.rank, generator=generator, dtype=torch.float64)
        # The row space of a Gaussian matrix is uniform, and the closed forms depend on nothing else.
        return torch.diag(variances), delta, down, up


THEOREM_CASES = (
    *(GapCase(decay=decay, rank=rank) for decay in (0.0, 0.25, 0.5, 1.0, 2.0) for rank in (4, 16, 64)),
    *(GapCase(rank=rank, wanted=wanted) for wanted in ("high variance", "low variance") for rank in (4, 16)),
    GapCase(decay=0.0, outputs=64),
    GapCase(decay=0.0, inputs=64),
    GapCase(decay=1.0, outputs=64),
)
"""Where the theorem holds (decaying variances), ties (isotropic, square) and reverses (few outputs, low variance)."""


def gap_draws(
    cases: Sequence[GapCase] = THEOREM_CASES,
    *,
    draws: int = 40,
    progress: Callable[[int, int, Mapping[str, Any]], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Draw both frozen factors and give one record a draw.

    Args:
        cases: Layers.
        draws: Draws of each.
        progress: Called after each draw with the number made, that of all, and the record.

    Yields:
        The fields of the case; ``seed``; ``explained_A`` and ``explained_B``, what training ``B`` over the frozen ``A``
        and ``A`` under the frozen ``B`` removes, as fractions of what is there; ``B_only_wins``; ``ratio`` of the two;
        ``predicted_ratio`` of the criterion at this rank, and ``simple_ratio``, its limit ``d_out / PR``-like form.

    Raises:
        SpecError: ``draws`` is below 1.
    """
    if draws < 1:
        raise SpecError(f"draws={draws} must be at least 1.")
    made, total = 0, draws * len(cases)
    for case in cases:
        for seed in range(draws):
            cov, delta, down, up = case.draw(seed)
            whole = total_variance(cov=cov, delta=delta)
            by_B = explained_given_A(down, cov=cov, delta=delta) / whole
            by_A = explained_given_B(up, cov=cov, delta=delta) / whole
            predicted = factor_advantage(cov, delta, rank=case.rank)
            record = {
                **asdict(case),
                "seed": seed,
                "explained_A": by_B,
                "explained_B": by_A,
                "B_only_wins": by_B > by_A,
                "ratio": by_B / by_A,
                "predicted_ratio": predicted.ratio,
                "simple_ratio": predicted.alignment / predicted.threshold,
            }
            made += 1
            if progress is not None:
                progress(made, total, record)
            yield record
