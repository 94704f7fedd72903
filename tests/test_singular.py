from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from asymlora import singular
from asymlora.draws import Draws
from asymlora.errors import RankError, SpecError
from asymlora.singular import (
    BOTTOM_ACCURACY,
    TOP_ACCURACY,
    bottom_singular_vectors,
    random_singular_vectors,
    top_singular_vectors,
)

Scheme = Callable[..., Tensor]
Which = Literal["A", "B"]
DRAWS = Draws(seed=0, site="layer", factor="A")
SCHEMES = [top_singular_vectors, bottom_singular_vectors, random_singular_vectors]


@pytest.fixture(autouse=True)
def _iterate_on_small_weights_too(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    # So that weights of width 100, fast to check by a full SVD, take the path of those of width 1000.
    if "dense" not in request.node.name:
        monkeypatch.setattr(singular, "_DENSE_BELOW", 0)
        monkeypatch.setattr(singular, "_GRAM_BELOW", 0)


def _weight(out: int, fan_in: int, values: Tensor) -> Tensor:
    """Return a weight with these singular values and random singular vectors."""
    generator = _generator(out, fan_in)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64)).Q
        for size in (out, fan_in)
    )
    return (left * values) @ right.T


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(numbers) % 2**31)


def _gapped(size: int, rank: int) -> Tensor:
    """Return a flat spectrum with gaps of 1 in s**2 below the first and above the last ``rank``."""
    squares = torch.linspace(3.0, 2.9, size, dtype=torch.float64)
    squares[:rank] += 1 + torch.arange(rank, 0, -1) / 10
    squares[-rank:] = 1.9 - torch.arange(rank) / 10
    return squares.sqrt()


def _svd_vectors(weight: Tensor, part: slice, which: Which) -> Tensor:
    left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return right[part] if which == "A" else left[:, part]


def _rows(vectors: Tensor, which: Which) -> Tensor:
    return vectors if which == "A" else vectors.T


def _largest_sine(vectors: Tensor, truth: Tensor, which: Which) -> float:
    found, wanted = _rows(vectors, which), _rows(truth, which)
    return torch.linalg.matrix_norm(wanted - (wanted @ found.T) @ found, ord=2).item()


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (150, 150)])
@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize(
    ("scheme", "part", "accuracy"),
    [
        (top_singular_vectors, slice(0, 4), TOP_ACCURACY),
        (bottom_singular_vectors, slice(-4, None), BOTTOM_ACCURACY),
    ],
)
def test_angle_to_the_true_space_is_within_the_stated_bound_where_there_is_a_gap(
    scheme: Scheme, part: slice, accuracy: float, which: Which, shape: tuple[int, int]
) -> None:
    weight = _weight(*shape, _gapped(min(shape), 4))
    found = scheme(weight, 4, which=which, draws=DRAWS)
    # The gap of s**2 is 1 and |M| = 4.4; s_1/s_r on top for the longer axis, whose vectors are W v / s.
    bound = math.sqrt(4) * accuracy * 4.4 * math.sqrt(4.4 / 1.6)
    # The full SVD it is compared with rounds too: some 200 terms of 1.1e-16.
    assert _largest_sine(found, _svd_vectors(weight, part, which), which) <= bound + 200 * 1.1e-16


@pytest.mark.parametrize("scheme", [top_singular_vectors, bottom_singular_vectors])
@pytest.mark.parametrize("gram_below", [0, 1000])
def test_without_a_gap_the_residual_is_within_the_stated_bound(
    scheme: Scheme, gram_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(singular, "_GRAM_BELOW", gram_below)
    weight = torch.randn(300, 200, generator=_generator(1), dtype=torch.float64)
    found = scheme(weight, 5, which="A", draws=DRAWS)
    images = found @ (weight.T @ weight)
    squares = (images * found).sum(1)
    largest = torch.linalg.matrix_norm(weight, ord=2).item() ** 2
    accuracy = TOP_ACCURACY if scheme is top_singular_vectors else BOTTOM_ACCURACY
    # Half as much again for the rounding of the last sort, which is of the order of the residual itself.
    assert (images - squares[:, None] * found).norm(dim=1).max().item() <= 1.5 * accuracy * largest


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (150, 200)])
@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("kind", ["iterated", "dense"])
def test_each_vector_is_that_of_the_svd_with_its_largest_entry_positive(
    kind: str, which: Which, shape: tuple[int, int]
) -> None:
    weight = _weight(*shape, torch.linspace(4.0, 1.0, min(shape), dtype=torch.float64))
    for scheme, part in ((top_singular_vectors, slice(0, 3)), (bottom_singular_vectors, slice(-3, None))):
        found = scheme(weight, 3, which=which, draws=DRAWS)
        truth = _svd_vectors(weight, part, which)
        # Neighbours differ by 2 % of s**2 or more: 1e-8 of residual gives an angle of some 1e-6 at most.
        torch.testing.assert_close(found.abs(), truth.abs(), rtol=0, atol=2e-6)
        rows = _rows(found, which)
        assert (rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (3, 5), (1, 4)])
def test_result_has_the_shape_of_the_factor_and_is_orthonormal(
    scheme: Scheme, which: Which, shape: tuple[int, int]
) -> None:
    rank = min(3, *shape)
    found = scheme(torch.randn(*shape, generator=_generator(2)), rank, which=which, draws=DRAWS)
    assert found.shape == ((rank, shape[1]) if which == "A" else (shape[0], rank))
    rows = _rows(found, which)
    # Householder reflections in float64: a few roundings of 1.1e-16 per axis.
    torch.testing.assert_close(rows @ rows.T, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
@pytest.mark.parametrize("kind", ["iterated", "dense"])
def test_bottom_vectors_of_a_rank_deficient_weight_are_orthogonal_to_all_it_does(
    kind: str, which: Which, shape: tuple[int, int]
) -> None:
    values = torch.linspace(2.0, 1.0, 60, dtype=torch.float64)
    values[55:] = 0.0
    weight = _weight(*shape, values)
    rows = _rows(bottom_singular_vectors(weight, 3, which=which, draws=DRAWS), which)
    image = weight @ rows.T if which == "A" else weight.T @ rows.T
    # The residual in s**2 is 4e-11; for s = 0 and the next s = 1 that is the size of what remains.
    assert image.norm(dim=0).max().item() < 1e-10
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("scheme", [top_singular_vectors, bottom_singular_vectors])
def test_vectors_of_zero_and_non_zero_value_stay_orthonormal_together(scheme: Scheme, which: Which) -> None:
    # Two non-zero values on top; for the bottom, one zero value below others.
    values = torch.zeros(40, dtype=torch.float64)
    values[: 2 if scheme is top_singular_vectors else 39] = torch.tensor(1.5)
    weight = _weight(60, 40, values)
    rows = _rows(scheme(weight, 4, which=which, draws=DRAWS), which)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-13)
    norms = (rows @ (weight.T if which == "A" else weight)).norm(dim=1)
    expected = [1.5, 1.5, 0.0, 0.0] if scheme is top_singular_vectors else [1.5, 1.5, 1.5, 0.0]
    torch.testing.assert_close(norms, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_of_zeros_gives_some_orthonormal_vectors(scheme: Scheme) -> None:
    rows = scheme(torch.zeros(30, 50), 4, which="A", draws=DRAWS)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-13)


def test_random_vectors_are_singular_vectors_of_the_drawn_numbers() -> None:
    weight = _weight(50, 30, torch.linspace(4.0, 1.0, 30, dtype=torch.float64))
    found = random_singular_vectors(weight, 4, which="A", draws=DRAWS)
    truth = _svd_vectors(weight, slice(None), "A")
    # Eigenvalues ascend, singular values fall.
    chosen = sorted(29 - index for index in DRAWS.subset(4, 30))
    # Gaps of 0.2 or more in s**2 <= 16: an angle of a few 1e-14; 1e-10 is far from a wrong vector's 1.
    torch.testing.assert_close(found.abs(), truth[chosen].abs(), rtol=0, atol=1e-10)


def test_another_site_gets_other_random_vectors_and_the_same_top_ones() -> None:
    weight = _weight(50, 30, torch.linspace(4.0, 1.0, 30, dtype=torch.float64))
    other = Draws(seed=0, site="another", factor="A")
    random = [random_singular_vectors(weight, 4, which="A", draws=draws) for draws in (DRAWS, other)]
    assert not torch.allclose(*random)
    # Two starts of one iteration: neighbours' gaps of 5 % of s**2 give angles below 1e-6.
    top = [top_singular_vectors(weight, 4, which="A", draws=draws) for draws in (DRAWS, other)]
    torch.testing.assert_close(*top, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_half_precision_weights_are_decomposed_in_float64(scheme: Scheme, dtype: torch.dtype) -> None:
    weight = torch.randn(20, 30, generator=_generator(3)).to(dtype)
    found = scheme(weight, 2, which="A", draws=DRAWS)
    assert torch.equal(found, scheme(weight.double(), 2, which="A", draws=DRAWS))


def test_a_parameter_is_read_and_not_changed() -> None:
    weight = torch.nn.Parameter(torch.randn(20, 30, generator=_generator(4)))
    before = weight.detach().clone()
    found = top_singular_vectors(weight, 2, which="A", draws=DRAWS)
    assert torch.equal(weight, before)
    assert not found.requires_grad


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["iterated", "dense"])
def test_no_full_svd_is_taken(scheme: Scheme, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    svd = torch.linalg.svd

    def thin_only(matrix: Tensor, **options: Any) -> Any:
        assert min(matrix.shape) <= 4, f"a full SVD of {tuple(matrix.shape)}"
        return svd(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", thin_only)
    for name in ("svd", "svd_lowrank", "pca_lowrank"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("a full SVD"))
    scheme(torch.randn(90, 120, generator=_generator(5)), 4, which="B", draws=DRAWS)


def test_a_small_rank_of_a_wide_weight_needs_no_whole_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (sizes.append(len(matrix)), eigh(matrix))[1])
    weight = _weight(200, 250, _gapped(200, 2))
    for scheme in (top_singular_vectors, bottom_singular_vectors):
        scheme(weight, 2, which="A", draws=DRAWS)
    assert max(sizes) <= 60


def test_an_iteration_that_does_not_get_there_falls_back_on_all_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singular, "_CYCLES", 1)
    monkeypatch.setattr(singular, "TOP_ACCURACY", 0.0)
    weight = _weight(120, 100, torch.linspace(4.0, 1.0, 100, dtype=torch.float64))
    found = top_singular_vectors(weight, 3, which="A", draws=DRAWS)
    # Eigenvectors of M with gaps of 1 % of s**2: some 1e-13.
    torch.testing.assert_close(found.abs(), _svd_vectors(weight, slice(0, 3), "A").abs(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("weight", "rank", "error", "words"),
    [
        (torch.empty(4, 6, device="meta"), 2, SpecError, "meta device.*Load the weights"),
        (torch.zeros(4, 6, dtype=torch.uint8), 2, SpecError, "torch.uint8 is quantised.*orthonormal"),
        (torch.zeros(4, 6, 3), 2, SpecError, r"two axes.*\(4, 6, 3\)"),
        (torch.zeros(4, 6), 5, RankError, "at most 4"),
        (torch.zeros(4, 6), 0, RankError, "at least 1"),
        (torch.full((4, 6), float("nan")), 2, SpecError, "NaN or infinite"),
    ],
)
def test_a_weight_without_singular_vectors_is_refused(
    scheme: Scheme, weight: Tensor, rank: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        scheme(weight, rank, which="A", draws=DRAWS)
