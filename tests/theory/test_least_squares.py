from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from asymlora.errors import SpecError
from asymlora.theory.least_squares import (
    best_A_given_B,
    best_B_given_A,
    best_low_rank,
    expected_loss,
    explained_given_A,
    explained_given_B,
    factor_gradients,
    loss_given_A,
    loss_given_B,
    total_variance,
)
from frozen_draws import FLOAT, explained, frame, gaussian, power_law

OUT, IN, RANK, ROWS = 12, 16, 4, 500
SCALINGS = pytest.mark.parametrize("scaling", [1.0, 2.0, -0.25])
FROZEN = pytest.mark.parametrize("orthonormal", [True, False], ids=["orthonormal", "any"])


def _problem(seed: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with correlated features, their second moment, and an update."""
    generator = torch.Generator().manual_seed(seed)
    x = gaussian(rows, IN, seed=generator) @ gaussian(IN, IN, seed=generator)
    return x, x.T @ x / rows, gaussian(OUT, IN, seed=generator)


def _frozen(length: int, orthonormal: bool, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = frame(length, RANK, generator)
    return columns if orthonormal else columns @ gaussian(RANK, RANK, seed=generator)


def _relative(found: Tensor | float, wanted: Tensor | float) -> float:
    found, wanted = torch.as_tensor(found, dtype=FLOAT), torch.as_tensor(wanted, dtype=FLOAT)
    return ((found - wanted).norm() / wanted.norm()).item()


def _data_loss(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    return (x @ (delta - scaling * B @ A).T).square().sum(dim=1).mean()


@SCALINGS
@FROZEN
def test_best_factors_reach_the_predicted_loss_of_the_data(orthonormal: bool, scaling: float) -> None:
    # Z1: relative error 1e-10.
    x, cov, delta = _problem()
    A, B = _frozen(IN, orthonormal).T, _frozen(OUT, orthonormal)
    best_B = best_B_given_A(A, cov=cov, delta=delta, scaling=scaling)
    best_A = best_A_given_B(B, delta=delta, scaling=scaling)
    assert _relative(_data_loss(x, delta, A, best_B, scaling), loss_given_A(A, cov=cov, delta=delta)) <= 1e-10
    assert _relative(_data_loss(x, delta, best_A, B, scaling), loss_given_B(B, cov=cov, delta=delta)) <= 1e-10
    found = expected_loss(A, best_B, cov=cov, delta=delta, scaling=scaling, noise_variance=0.5)
    assert _relative(found, loss_given_A(A, cov=cov, delta=delta, noise_variance=0.5)) <= 1e-10


@FROZEN
def test_best_factors_are_those_of_a_least_squares_solver(orthonormal: bool) -> None:
    # Z1: 1e-8.
    x, cov, delta = _problem()
    A, B = _frozen(IN, orthonormal).T, _frozen(OUT, orthonormal)
    solved_B = torch.linalg.lstsq(x @ A.T, x @ delta.T, driver="gelsd").solution.T
    assert _relative(best_B_given_A(A, cov=cov, delta=delta), solved_B) <= 1e-8
    solved_A = torch.linalg.lstsq(B, delta, driver="gelsd").solution
    assert _relative(best_A_given_B(B, delta=delta), solved_A) <= 1e-8


@SCALINGS
@FROZEN
def test_the_gradient_vanishes_at_the_best_factors(orthonormal: bool, scaling: float) -> None:
    # Z1: 1e-8 of the gradient at zero.
    x, cov, delta = _problem()
    A, B = _frozen(IN, orthonormal).T, _frozen(OUT, orthonormal)

    def gradients(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        down, up = down.clone().requires_grad_(), up.clone().requires_grad_()
        return torch.autograd.grad(_data_loss(x, delta, down, up, scaling), (down, up))

    at_zero_A, _ = gradients(torch.zeros_like(A), B)
    _, at_zero_B = gradients(A, torch.zeros_like(B))
    _, of_B = gradients(A, best_B_given_A(A, cov=cov, delta=delta, scaling=scaling))
    of_A, _ = gradients(best_A_given_B(B, delta=delta, scaling=scaling), B)
    assert of_B.norm() <= 1e-8 * at_zero_B.norm()
    assert of_A.norm() <= 1e-8 * at_zero_A.norm()


def test_noise_raises_the_loss_by_its_variance_for_each_output() -> None:
    # Z1 with noise: 2e5 rows, 2 %.
    x, _, delta = _problem(rows=200_000)
    cov = x.T @ x / len(x)
    A, B = _frozen(IN, orthonormal=True).T, _frozen(OUT, orthonormal=True)
    variance = 0.3 * total_variance(cov=cov, delta=delta) / OUT
    y = x @ delta.T + variance**0.5 * gaussian(len(x), OUT, seed=9)
    for predicted, down, up in (
        (loss_given_A(A, cov=cov, delta=delta, noise_variance=variance), A, best_B_given_A(A, cov=cov, delta=delta)),
        (loss_given_B(B, cov=cov, delta=delta, noise_variance=variance), best_A_given_B(B, delta=delta), B),
    ):
        measured = (y - x @ (up @ down).T).square().sum(dim=1).mean()
        assert _relative(measured, predicted) <= 0.02
        # The noise is a part of it that the tolerance could not swallow.
        assert OUT * variance > 0.1 * predicted


def test_gradient_descent_on_B_alone_reaches_the_closed_form() -> None:
    # Z1: 1e-6 of the best B. Steps of 1/largest curvature of a quadratic.
    _, cov, delta = _problem()
    A = _frozen(IN, orthonormal=True).T
    inner, wanted = A @ cov @ A.T, delta @ cov @ A.T
    B = torch.zeros(OUT, RANK, dtype=FLOAT)
    step = 1.0 / torch.linalg.matrix_norm(inner, 2)
    for _ in range(2000):
        B -= step * (B @ inner - wanted)
    assert _relative(B, best_B_given_A(A, cov=cov, delta=delta)) <= 1e-6


@pytest.mark.parametrize("dimensions", [1, 3, 6])
def test_inputs_of_fewer_dimensions_leave_a_finite_best_B(dimensions: int) -> None:
    # Q Sigma Q^T is singular for fewer dimensions than the rank; the plain inverse of Lemma 4.1 would be noise.
    x, _, delta = _problem()
    x = x @ frame(IN, dimensions, torch.Generator().manual_seed(5)) @ gaussian(dimensions, IN, seed=6)
    cov = x.T @ x / len(x)
    A = _frozen(IN, orthonormal=False).T
    best_B = best_B_given_A(A, cov=cov, delta=delta)
    solved = torch.linalg.lstsq(x @ A.T, x @ delta.T, driver="gelsd", rcond=1e-10).solution.T
    assert _relative((x @ (best_B @ A).T), x @ (solved @ A).T) <= 1e-7
    assert (best_B @ A).norm() <= (solved @ A).norm() * (1 + 1e-7)
    total = total_variance(cov=cov, delta=delta)
    explained_by_B = explained_given_A(A, cov=cov, delta=delta)
    assert abs(_data_loss(x, delta, A, best_B, 1.0).item() - (total - explained_by_B)) <= 1e-9 * total
    assert (abs(explained_by_B - total) <= 1e-9 * total) is (dimensions <= RANK)


def test_directions_that_inputs_never_take_explain_nothing() -> None:
    cov = torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=FLOAT))
    blind = torch.eye(4, dtype=FLOAT)[2:]
    assert explained_given_A(blind, cov=cov, delta=torch.ones(3, 4, dtype=FLOAT)) == 0.0
    assert torch.equal(
        best_B_given_A(blind, cov=cov, delta=torch.ones(3, 4, dtype=FLOAT)), torch.zeros(3, 2, dtype=FLOAT)
    )


def test_what_a_frozen_factor_explains_depends_on_its_subspace_alone() -> None:
    _, cov, delta = _problem()
    A, B = _frozen(IN, orthonormal=True).T, _frozen(OUT, orthonormal=True)
    mixing = gaussian(RANK, RANK, seed=3)
    by_B, by_A = explained_given_A(A, cov=cov, delta=delta), explained_given_B(B, cov=cov, delta=delta)
    assert _relative(explained_given_A(mixing @ A, cov=cov, delta=delta), by_B) <= 1e-10
    assert _relative(explained_given_B(B @ mixing, cov=cov, delta=delta), by_A) <= 1e-10
    update = best_B_given_A(A, cov=cov, delta=delta) @ A
    assert _relative(best_B_given_A(mixing @ A, cov=cov, delta=delta) @ (mixing @ A), update) <= 1e-10


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_training_B_beats_training_A_on_inputs_of_a_power_law(rank: int) -> None:
    # Z2: Theorem 4.3 in its regime; at least 99 of 100 draws.
    cov, delta = torch.diag(power_law(256, 1.0)), gaussian(256, 256, seed=10)
    by_B, by_A = explained(cov, delta, rank, draws=100, seed=rank)
    assert (by_B >= by_A).double().mean() >= 0.99


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_isotropic_inputs_of_a_square_layer_are_a_tie(rank: int) -> None:
    # Z3: 200 draws. The update is drawn anew now and then: a fixed one favours one side by a little.
    by_B, by_A = zip(
        *(
            explained(torch.eye(256, dtype=FLOAT), gaussian(256, 256, seed=s), rank, draws=20, seed=s)
            for s in range(10)
        ),
        strict=True,
    )
    by_B, by_A = torch.cat(by_B), torch.cat(by_A)
    assert 0.3 <= (by_B >= by_A).double().mean() <= 0.7
    assert abs(by_B.mean() / by_A.mean() - 1) < 0.02


def _on_the_low_variance_half() -> tuple[Tensor, Tensor]:
    delta = gaussian(256, 256, seed=11)
    delta[:, :128] = 0.0
    return torch.diag(power_law(256, 1.0)), delta


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_an_update_on_the_low_variance_half_reverses_the_order(rank: int) -> None:
    # Z3: at most 1 of 100 draws.
    cov, delta = _on_the_low_variance_half()
    by_B, by_A = explained(cov, delta, rank, draws=100, seed=rank)
    assert (by_B >= by_A).double().mean() <= 0.01


def test_few_outputs_on_isotropic_inputs_reverse_the_order_and_few_inputs_do_not() -> None:
    # Z3, and its mirror.
    by_B, by_A = explained(torch.eye(256, dtype=FLOAT), gaussian(64, 256, seed=12), 8, draws=100, seed=0)
    assert (by_B >= by_A).double().mean() <= 0.01
    by_B, by_A = explained(torch.eye(64, dtype=FLOAT), gaussian(256, 64, seed=12), 8, draws=100, seed=0)
    assert (by_B >= by_A).double().mean() >= 0.99


def test_more_rows_of_A_never_explain_less_and_the_joint_optimum_is_best() -> None:
    # Z7.
    _, cov, delta = _problem()
    nested_A, nested_B = frame(IN, IN, torch.Generator().manual_seed(2)).T, frame(OUT, OUT, torch.Generator())
    losses: list[tuple[float, float]] = []
    for rank in range(1, OUT + 1):
        frozen_A = loss_given_A(nested_A[:rank], cov=cov, delta=delta)
        frozen_B = loss_given_B(nested_B[:, :rank], cov=cov, delta=delta)
        best = best_low_rank(rank, cov=cov, delta=delta, scaling=2.0)
        joint = expected_loss(best.A, best.B, cov=cov, delta=delta, scaling=2.0)
        slack = 1e-10 * total_variance(cov=cov, delta=delta)
        assert joint <= min(frozen_A, frozen_B) + slack
        assert not losses or (frozen_A <= losses[-1][0] + slack and frozen_B <= losses[-1][1] + slack)
        losses.append((frozen_A, frozen_B))
    assert losses[0][0] > 2 * losses[-1][0]


def test_the_joint_optimum_is_the_truncated_svd_in_the_metric_of_the_inputs() -> None:
    _, cov, delta = _problem()
    values, vectors = torch.linalg.eigh(cov)
    root = (vectors * values.sqrt()) @ vectors.T
    left, strengths, right = torch.linalg.svd(delta @ root, full_matrices=False)
    best = best_low_rank(RANK, cov=cov, delta=delta)
    wanted = (left[:, :RANK] * strengths[:RANK]) @ right[:RANK] @ torch.linalg.inv(root)
    assert _relative(best.B @ best.A, wanted) <= 1e-8
    assert _relative(best.explained, strengths[:RANK].square().sum()) <= 1e-10
    assert _relative(best_B_given_A(best.A, cov=cov, delta=delta), best.B) <= 1e-8


class _Net(nn.Module):
    """Three layers, tanh between, softmax at the end; the middle one is adapted."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.first, self.W0, self.last, self.A, self.B = (
            (gaussian(*shape, seed=generator) / shape[-1] ** 0.5).to(dtype)
            for shape in ((IN, 10), (OUT, IN), (5, OUT), (RANK, IN), (OUT, RANK))
        )

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.tanh(hidden) @ self.last.T, labels)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("scaling", [1.0, 3.0, -0.3])
def test_factor_gradients_are_projections_of_the_weights(dtype: torch.dtype, tolerance: float, scaling: float) -> None:
    # Z8. The factors' gradients come by the low-rank path, the weight's by the dense one.
    net = _Net(dtype)
    x, labels = torch.tanh(gaussian(64, 10, seed=7).to(dtype) @ net.first.T), torch.arange(64) % 5
    A, B = net.A.clone().requires_grad_(), net.B.clone().requires_grad_()
    adapted = x @ net.W0.T + scaling * (x @ A.T) @ B.T
    of_A, of_B = torch.autograd.grad(net.loss(adapted, labels), (A, B))
    weight = (net.W0 + scaling * net.B @ net.A).requires_grad_()
    (gradient,) = torch.autograd.grad(net.loss(x @ weight.T, labels), weight)
    predicted_A, predicted_B = factor_gradients(gradient, net.A, net.B, scaling=scaling)
    assert _relative(predicted_A.double(), of_A.double()) <= tolerance
    assert _relative(predicted_B.double(), of_B.double()) <= tolerance
    assert min(of_A.norm(), of_B.norm()) > 1e-3


def test_results_have_the_dtype_of_the_update() -> None:
    _, cov, delta = (tensor.float() for tensor in _problem())
    A = _frozen(IN, orthonormal=True).T.float()
    assert best_B_given_A(A, cov=cov, delta=delta).dtype == torch.float32
    exact = best_B_given_A(A.double(), cov=cov.double(), delta=delta.double())
    assert _relative(best_B_given_A(A, cov=cov, delta=delta).double(), exact) <= 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": torch.ones(2, IN, dtype=FLOAT)}, "A has 2 rows and row rank 1"),
        ({"A": torch.ones(1, IN + 1, dtype=FLOAT)}, "A reads 17 inputs and cov has 16"),
        ({"A": torch.full((1, IN), float("nan"), dtype=FLOAT)}, "A of shape .* holds NaN"),
        ({"cov": torch.eye(IN - 1, dtype=FLOAT)}, r"cov of shape \(15, 15\) does not fit .*\(12, 16\)"),
        ({"cov": torch.eye(IN, dtype=FLOAT).roll(1, 0)}, "cov is not symmetric"),
        ({"cov": -torch.eye(IN, dtype=FLOAT)}, "negative variance -1"),
        ({"delta": torch.ones(OUT, IN, dtype=torch.int64)}, r"delta is torch.int64 of shape \(12, 16\)"),
        ({"scaling": 0.0}, "switches the adapter off"),
    ],
)
def test_bad_input_is_refused_with_what_is_wrong(change: dict[str, Tensor | float], words: str) -> None:
    _, cov, delta = _problem()
    arguments = {"A": _frozen(IN, orthonormal=True).T, "cov": cov, "delta": delta} | change
    with pytest.raises(SpecError, match=words):
        best_B_given_A(arguments.pop("A"), **arguments)  # pyright: ignore[reportArgumentType]


def test_an_indefinite_covariance_is_refused_where_its_negative_direction_is_read() -> None:
    cov = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=FLOAT)
    with pytest.raises(SpecError, match="negative eigenvalue -1"):
        explained_given_A(torch.eye(2, dtype=FLOAT), cov=cov, delta=torch.eye(2, dtype=FLOAT))


def test_dependent_columns_and_wrong_ranks_and_noise_are_refused() -> None:
    _, cov, delta = _problem()
    with pytest.raises(SpecError, match="B has 2 columns and column rank 1"):
        best_A_given_B(torch.ones(OUT, 2, dtype=FLOAT), delta=delta)
    with pytest.raises(SpecError, match="rank=13 does not fit"):
        best_low_rank(13, cov=cov, delta=delta)
    with pytest.raises(SpecError, match="noise_variance=-1"):
        loss_given_A(_frozen(IN, True).T, cov=cov, delta=delta, noise_variance=-1.0)
    with pytest.raises(SpecError, match="A of shape"):
        expected_loss(torch.ones(1, 3), torch.ones(OUT, 1), cov=cov, delta=delta)
    with pytest.raises(SpecError, match="A of shape"):
        factor_gradients(torch.ones(3, 4), torch.ones(1, 3), torch.ones(3, 1))
