"""What zhu_least_squares measures on one linear layer: closed forms, random draws, exact cases, growth with the rank.

Each function takes one point of a `asymlora.reproduce.artefact.MeasuredPart` and gives plain records. Torch is imported
in the functions, as artefacts are listed without it. All of it in float64 but where a point says otherwise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asymlora.reproduce.evidence import Record

if TYPE_CHECKING:
    from torch import Generator, Tensor

Point = Mapping[str, Any]
SEEDS = (0, 1, 2, 3, 4, 5)
SURE, ROUGH = 400, 100
"""Draws of a case whose share of wins is claimed to be next to 1 or 0, and of the others: 400 wins of 400 put the 95 %
interval of the share above 0.99."""
_DESCENT_STEPS, _FROZEN_DRAWS = 2500, 20


def measure_closed_forms(point: Point) -> list[Record]:
    """Compare the closed forms of both lemmas with the data: losses, least squares, gradients, descent, noise.

    Args:
        point: ``seed``, ``inputs``, ``outputs``, ``rank``, ``rows``, ``noise`` (its variance), ``noisy_rows``.

    Returns:
        One record a trained factor (``trained``): relative errors by what was compared.
    """
    import torch

    from asymlora.theory.least_squares import best_A_given_B, best_B_given_A, loss_given_A, loss_given_B

    generator = torch.Generator().manual_seed(point["seed"])
    n, m, r = point["inputs"], point["outputs"], point["rank"]
    # Variances 1/i along random directions: unequal, and few enough apart for plain descent.
    roots = torch.arange(1, n + 1, dtype=torch.float64).pow(-0.5)
    x = (_normal(point["rows"], n, generator) * roots) @ torch.linalg.qr(_normal(n, n, generator))[0]
    cov, delta = x.mT @ x / len(x), _normal(m, n, generator)
    down, up = _normal(r, n, generator), _normal(m, r, generator)
    best_B, best_A = best_B_given_A(down, cov=cov, delta=delta), best_A_given_B(up, delta=delta)
    solved = torch.linalg.lstsq(x @ down.mT, x @ delta.mT).solution.mT
    noise = point["noise"]
    compared = {
        "B": (down, best_B, loss_given_A, _off(best_B, solved)),
        "A": (best_A, up, loss_given_B, _off(up @ best_A, up @ torch.linalg.lstsq(up, delta).solution)),
    }
    records: list[Record] = []
    for trained, (A, B, loss, solved_error) in compared.items():
        held = down if trained == "B" else up
        expected = loss(held, cov=cov, delta=delta)
        on_data = (x @ (delta - B @ A).mT).square().sum(dim=1).mean().item()
        noisy = loss(held, cov=cov, delta=delta, noise_variance=noise)
        records.append(
            {
                "seed": point["seed"],
                "trained": trained,
                "loss_error": abs(on_data / expected - 1),
                "solution_error": solved_error,
                "gradient": _gradient_left(A, B, cov, delta, trained),
                "descent_error": _descent_error(held, cov, delta, trained, expected),
                "noise_error": abs(_noisy_loss(A, B, cov, delta, point, generator) / noisy - 1),
            }
        )
    return records


def _normal(rows: int, columns: int, generator: Generator) -> Tensor:
    import torch

    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _off(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def _gradient_left(A: Tensor, B: Tensor, cov: Tensor, delta: Tensor, trained: str) -> float:
    """Gradient of the trained factor at the optimum over that at zero."""
    from asymlora.theory.least_squares import factor_gradients

    at_best = factor_gradients(2 * (B @ A - delta) @ cov, A, B)[trained == "B"]
    at_zero = factor_gradients(-2 * delta @ cov, A, B)[trained == "B"]
    return (at_best.norm() / at_zero.norm()).item()


def _descent_error(held: Tensor, cov: Tensor, delta: Tensor, trained: str, expected: float) -> float:
    """Loss that plain gradient descent on one factor ends at, relative to the closed form."""
    import torch

    from asymlora.theory.least_squares import expected_loss, factor_gradients

    # The step is 1 over the largest curvature of the trained factor.
    curvature = held @ cov @ held.mT if trained == "B" else held.mT @ held * torch.linalg.eigvalsh(cov)[-1]
    step = 0.5 / torch.linalg.eigvalsh(curvature)[-1].item()
    shape = (len(delta), len(held)) if trained == "B" else (held.shape[1], delta.shape[1])
    moving = torch.zeros(*shape, dtype=delta.dtype)
    for _ in range(_DESCENT_STEPS):
        A, B = (held, moving) if trained == "B" else (moving, held)
        moving = moving - step * factor_gradients(2 * (B @ A - delta) @ cov, A, B)[trained == "B"]
    A, B = (held, moving) if trained == "B" else (moving, held)
    return abs(expected_loss(A, B, cov=cov, delta=delta) / expected - 1)


def _noisy_loss(A: Tensor, B: Tensor, cov: Tensor, delta: Tensor, point: Point, generator: Generator) -> float:
    """Mean squared error on fresh rows of the same covariance, noise on each output."""
    import torch

    rows = _normal(point["noisy_rows"], len(cov), generator) @ torch.linalg.cholesky(cov).mT
    noise = math.sqrt(point["noise"]) * _normal(point["noisy_rows"], len(delta), generator)
    return (rows @ (delta - B @ A).mT + noise).square().sum(dim=1).mean().item()


def measure_gradients(point: Point) -> list[Record]:
    """Compare the gradients of both factors of a small net with the projections of the layer's own gradient.

    Args:
        point: ``seed``, ``dtype``, ``width``, ``classes``, ``rank``, ``rows``, ``scaling``.

    Returns:
        One record: relative errors ``error_A`` and ``error_B`` of the adapted middle layer, tanh before and after it,
        under a cross-entropy.
    """
    import torch

    from asymlora.theory.least_squares import factor_gradients

    generator = torch.Generator().manual_seed(point["seed"])
    dtype = getattr(torch, point["dtype"])
    n, r, s = point["width"], point["rank"], point["scaling"]
    first, W0, x = (_normal(rows, n, generator).to(dtype) / math.sqrt(n) for rows in (n, n, point["rows"]))
    last = _normal(point["classes"], n, generator).to(dtype)
    labels = torch.randint(point["classes"], (point["rows"],), generator=generator)
    A, B = ((_normal(*shape, generator).to(dtype) / math.sqrt(n)).requires_grad_() for shape in ((r, n), (n, r)))
    weight = (W0 + s * B @ A).detach().requires_grad_()

    def loss(middle: Callable[[Tensor], Tensor]) -> Tensor:
        hidden = torch.tanh(middle(torch.tanh(x @ first.mT)))
        return torch.nn.functional.cross_entropy(hidden @ last.mT, labels)

    (dense,) = torch.autograd.grad(loss(lambda h: h @ weight.mT), weight)
    # Through the factors, as an adapter computes it, and not through their product.
    by_autograd = torch.autograd.grad(loss(lambda h: h @ W0.mT + s * (h @ A.mT) @ B.mT), (A, B))
    projected = factor_gradients(dense, A.detach(), B.detach(), scaling=s)
    errors = [_off(found, wanted) for found, wanted in zip(by_autograd, projected, strict=True)]
    return [{"seed": point["seed"], "dtype": point["dtype"], "error_A": errors[0], "error_B": errors[1]}]


def measure_draws(point: Point) -> list[Record]:
    """Draw frozen factors at one layer, train the other one in closed form, and count which of both ends lower.

    Args:
        point: ``inputs``, ``outputs``, ``decay``, ``rank``, ``wanted`` (as `asymlora.theory.gap_draws.GapCase` has
            them) and ``draws``.

    Returns:
        One record: the point; ``wins`` of B alone; means of both explained parts; their ratio and its relative standard
        error; the prediction at the rank; and the criterion, outputs over the participation ratio of the inputs.
    """
    import torch

    from asymlora.theory.factor_advantage import participation_ratio
    from asymlora.theory.gap_draws import GapCase, gap_draws

    case = GapCase(**{name: value for name, value in point.items() if name != "draws"})
    found = list(gap_draws([case], draws=point["draws"]))
    mean_A, mean_B = (statistics.fmean(record[name] for record in found) for name in ("explained_A", "explained_B"))
    ratio = mean_A / mean_B
    off = [record["explained_A"] - ratio * record["explained_B"] for record in found]
    variances = torch.arange(1, case.inputs + 1, dtype=torch.float64).pow(-case.decay)
    return [
        {
            **point,
            "wins": sum(record["B_only_wins"] for record in found),
            "explained_A": mean_A,
            "explained_B": mean_B,
            "ratio": ratio,
            "ratio_error": statistics.stdev(off) / math.sqrt(len(off)) / mean_A,
            "predicted": statistics.fmean(record["predicted_ratio"] for record in found),
            "criterion": case.outputs / participation_ratio(torch.diag(variances)),
        }
    ]


def measure_gap_formula(point: Point) -> list[Record]:
    """Draw factors over inputs that fill as many dimensions as the rank, all with one variance.

    Args:
        point: ``seed``, ``width``, ``rank``, ``variance``, ``draws``.

    Returns:
        One record: mean and standard error of III_A - III_B over draws of B, ``formula`` for it, both over the whole;
        and how far III_A is from the whole for any of 20 draws of A, at most.
    """
    import torch

    from asymlora.theory.least_squares import explained_given_A, explained_given_B
    from asymlora.theory.low_dimensional import expected_gap

    generator = torch.Generator().manual_seed(point["seed"])
    d, r = point["width"], point["rank"]
    basis = torch.linalg.qr(_normal(d, r, generator))[0]
    cov, delta = point["variance"] * basis @ basis.mT, _normal(d, d, generator)
    whole = point["variance"] * (delta @ basis).square().sum().item()
    by_B = [explained_given_A(_normal(r, d, generator), cov=cov, delta=delta) / whole for _ in range(_FROZEN_DRAWS)]
    gaps = [
        1 - explained_given_B(_normal(d, r, generator), cov=cov, delta=delta) / whole for _ in range(point["draws"])
    ]
    return [
        {
            "width": d,
            "rank": r,
            "draws": point["draws"],
            "gap": statistics.fmean(gaps),
            "error": statistics.stdev(gaps) / math.sqrt(len(gaps)),
            "formula": 1 - r / d,
            "expected": expected_gap(r, cov=cov, delta=delta) / whole,
            "not_recovered": max(abs(share - 1) for share in by_B),
        }
    ]


def measure_reparameterisation(point: Point) -> list[Record]:
    """Move an update onto another down factor, and say by how much it then does something else to an input.

    Args:
        point: ``seed``, ``width``, ``rank``, ``dimensions`` that the inputs fill.

    Returns:
        One record: the largest error of ``B' Q x`` over the largest ``B A x``, ``B'`` the closest that there is.
    """
    import torch

    from asymlora.theory.least_squares import best_B_given_A
    from asymlora.theory.low_dimensional import reparameterised_B

    generator = torch.Generator().manual_seed(point["seed"])
    d, r, filled = point["width"], point["rank"], point["dimensions"]
    root = _normal(d, filled, generator)
    cov = root @ root.mT / filled
    A, onto, B = (_normal(*shape, generator) for shape in ((r, d), (r, d), (d, r)))
    exact = filled <= r
    moved = reparameterised_B(A, B, onto=onto, cov=cov) if exact else best_B_given_A(onto, cov=cov, delta=B @ A)
    x = _normal(200, filled, generator) @ root.mT
    wanted, got = x @ (B @ A).mT, x @ (moved @ onto).mT
    error = ((wanted - got).abs().max() / wanted.abs().max()).item()
    return [{"seed": point["seed"], "rank": r, "dimensions": filled, "error": error}]


def measure_nested(point: Point) -> list[Record]:
    """Explain more and more of one update, by the first rows of one A, the first columns of one B, and freely.

    Args:
        point: ``seed``, ``width``, ``decay``, ``ranks``.

    Returns:
        One record a rank: the explained parts over the whole.
    """
    import torch

    from asymlora.theory.least_squares import (
        best_low_rank,
        explained_given_A,
        explained_given_B,
        total_variance,
    )

    generator = torch.Generator().manual_seed(point["seed"])
    d = point["width"]
    cov = torch.diag(torch.arange(1, d + 1, dtype=torch.float64).pow(-point["decay"]))
    delta, down, up = (_normal(d, d, generator) for _ in range(3))
    whole = total_variance(cov=cov, delta=delta)
    return [
        {
            "seed": point["seed"],
            "decay": point["decay"],
            "rank": r,
            "explained_A": explained_given_A(down[:r], cov=cov, delta=delta) / whole,
            "explained_B": explained_given_B(up[:, :r], cov=cov, delta=delta) / whole,
            "best": best_low_rank(r, cov=cov, delta=delta).explained / whole,
        }
        for r in point["ranks"]
    ]


# Points --------------------------------------------------------------------------------------------------------------


def closed_form_points() -> tuple[Point, ...]:
    """Return six layers with data of their own."""
    sizes = {"inputs": 16, "outputs": 12, "rank": 4, "rows": 500, "noise": 0.5, "noisy_rows": 200_000}
    return tuple({"seed": seed, **sizes} for seed in SEEDS)


def gradient_points() -> tuple[Point, ...]:
    """Return three small nets in both precisions."""
    sizes = {"width": 24, "classes": 5, "rank": 3, "rows": 64, "scaling": 2.0}
    return tuple({"seed": seed, "dtype": dtype, **sizes} for dtype in ("float64", "float32") for seed in SEEDS[:3])


def draw_points(width: int) -> tuple[Point, ...]:
    """Return the cases of theorem 4.3: its regime, its tie, its reversals, and those that the criterion is read from.

    Args:
        width: Of a square layer; layers of few inputs or outputs have a quarter of it there.
    """

    def cases(ranks: Sequence[int], draws: int = SURE, **changes: Any) -> list[Point]:
        base = {"inputs": width, "outputs": width, "decay": 1.0, "wanted": "generic", **changes}
        return [{**base, "rank": rank, "draws": draws} for rank in ranks]

    few = width // 4
    return (
        *cases((4, 16, 64)),
        *cases((4, 16, 64), draws=SURE, decay=0.0),
        *cases((4,), draws=ROUGH, decay=0.0, inputs=few, outputs=few),
        *cases((4, 16, 64), wanted="low variance"),
        *cases((4, 16), draws=ROUGH, wanted="high variance"),
        *cases((8,), decay=0.0, outputs=few),
        *cases((8,), decay=0.0, inputs=few),
        *cases((8,), outputs=few),
        *(point for decay in (0.1, 0.25, 0.5, 1.0, 2.0) for point in cases((8,), draws=ROUGH, decay=decay)),
    )


def gap_points() -> tuple[Point, ...]:
    """Return inputs of exactly as many dimensions as the rank."""
    return tuple({"seed": 0, "width": 128, "rank": rank, "variance": 0.7, "draws": 400} for rank in (4, 16, 64))


def reparameterisation_points() -> tuple[Point, ...]:
    """Return inputs of half the rank's dimensions, of as many, and of twice as many."""
    return tuple(
        {"seed": seed, "width": 64, "rank": 8, "dimensions": filled} for filled in (4, 8, 16) for seed in SEEDS
    )


def nested_points() -> tuple[Point, ...]:
    """Return updates of square layers, isotropic inputs and a power law."""
    ranks = [1, 2, 4, 8, 16, 32, 64]
    return tuple({"seed": seed, "width": 64, "decay": decay, "ranks": ranks} for decay in (0.0, 1.0) for seed in SEEDS)
