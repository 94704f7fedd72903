from __future__ import annotations

import math

import pytest
from torch import nn

import asymlora as al
from asymlora.errors import SpecError
from asymlora.theory.bounds import GapBounds, gap_bounds, gap_bounds_of_sites

SQUARE = [(1024, 1024)] * 48
"""Query and value of RoBERTa-large."""
UP = [(256, 64)] * 3
DOWN = [(64, 256)] * 3


def _gaps(bounds: GapBounds) -> tuple[float, float, float]:
    return bounds.both.gap, bounds.B_only.gap, bounds.A_only.gap


@pytest.mark.parametrize("shapes", [SQUARE, UP, DOWN, [(7, 3), (2, 11)]])
def test_the_bound_of_both_is_the_root_of_the_sum_of_squares(shapes: list[tuple[int, int]]) -> None:
    # Z9: 1e-12.
    both, only_B, only_A = _gaps(gap_bounds(shapes, rank=4, samples=1000))
    assert abs(both**2 / (only_A**2 + only_B**2) - 1) <= 1e-12
    assert both > max(only_A, only_B)


def test_square_layers_do_not_tell_the_factors_apart() -> None:
    # Z9: square ratio, and B-only at 2r against both at r.
    both, only_B, only_A = _gaps(gap_bounds(SQUARE, rank=8, samples=2490))
    assert only_A == only_B
    assert abs(both / only_B - math.sqrt(2)) <= 1e-12
    assert abs(gap_bounds(SQUARE, rank=16, samples=2490).B_only.gap / both - 1) <= 1e-12


def test_the_bound_prefers_the_factor_on_the_narrower_side() -> None:
    # Z9: an up-projection is bounded lower with A alone trained, the other way round with B alone.
    up, down = gap_bounds(UP, rank=4, samples=1000), gap_bounds(DOWN, rank=4, samples=1000)
    assert up.A_only.gap < up.B_only.gap
    assert down.B_only.gap < down.A_only.gap
    assert up.B_only.gap / up.A_only.gap == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("arm", ["both", "B_only", "A_only"])
def test_the_bound_grows_with_the_root_of_rank_and_bits_and_falls_with_the_root_of_samples(arm: str) -> None:
    def gap(**change: float) -> float:
        arguments = {"rank": 4, "samples": 1000, "bits": 32.0, "sub_gaussian": 0.5} | change
        return getattr(gap_bounds(UP, **arguments), arm).gap  # pyright: ignore[reportArgumentType]

    assert gap(rank=36) / gap() == pytest.approx(3.0, rel=1e-12)
    assert gap(bits=8.0) / gap() == pytest.approx(0.5, rel=1e-12)
    assert gap(samples=100_000) / gap() == pytest.approx(0.1, rel=1e-12)
    assert gap(sub_gaussian=1.5) / gap() == pytest.approx(3.0, rel=1e-12)


def test_hand_values_at_the_size_of_a_real_run() -> None:
    # Z9: 59.2 and 41.8 (section 4), and the same by hand: 48 layers x 8 x 2048 values x 32 bits.
    both, only_B, only_A = _gaps(gap_bounds(SQUARE, rank=8, samples=2490))
    assert both == pytest.approx(59.2, abs=0.1)
    assert only_B == pytest.approx(41.8, abs=0.1)
    assert only_A == pytest.approx(41.8, abs=0.1)
    nats = 786_432 * 32 * math.log(2)
    assert gap_bounds(SQUARE, rank=8, samples=2490).both.nats == pytest.approx(nats, rel=1e-12)
    assert both == pytest.approx(math.sqrt(2 * 0.25 * nats / 2490), rel=1e-12)


@pytest.mark.parametrize("sub_gaussian", [0.5, 3.0])
def test_a_bound_says_something_from_the_samples_that_it_names(sub_gaussian: float) -> None:
    needed = gap_bounds([(4, 6)], rank=1, samples=1, sub_gaussian=sub_gaussian).both.samples_needed
    assert needed == math.floor(10 * 32 * math.log(2) / 2) + 1
    for samples, vacuous in ((needed - 1, True), (needed, False)):
        bound = gap_bounds([(4, 6)], rank=1, samples=samples, sub_gaussian=sub_gaussian).both
        assert bound.vacuous is vacuous
        assert (bound.gap >= 2 * sub_gaussian) is vacuous
    assert gap_bounds(SQUARE, rank=8, samples=2490).B_only.vacuous


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)
        self.convolution = nn.Conv2d(4, 8, 3)


@pytest.mark.parametrize("preset", ["lora", "b_only", "a_only"])
def test_the_sites_of_a_model_give_the_bounds_of_their_shapes(preset: str) -> None:
    spec = getattr(al.AdapterSpec, preset)(rank=2, targets=("up", "down"))
    model = al.attach(_Model(), spec)
    assert gap_bounds_of_sites(al.sites(model), samples=50) == gap_bounds([(24, 6), (6, 24)], rank=2, samples=50)


def test_a_convolution_counts_its_kernel() -> None:
    model = al.attach(_Model(), al.AdapterSpec.lora(rank=2, targets=("convolution",)))
    bounds = gap_bounds_of_sites(al.sites(model), samples=50)
    assert (bounds.A_only.parameters, bounds.B_only.parameters) == (2 * 4 * 3 * 3, 8 * 2)
    assert bounds.both.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapes": []}, "no adapted layer"),
        ({"shapes": [(4, 6), (0, 3)]}, r"\(0, 3\) is no shape"),
        ({"rank": 0}, "rank=0"),
        ({"samples": 0}, "samples=0 is out of range"),
        ({"bits": 0}, "bits=0 is out of range"),
        ({"bits": math.inf}, "bits=inf is out of range"),
        ({"sub_gaussian": -1.0}, "sub_gaussian=-1.0 is out of range"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"shapes": UP, "rank": 2, "samples": 10} | change
    with pytest.raises(SpecError, match=words):
        gap_bounds(arguments.pop("shapes"), **arguments)  # pyright: ignore[reportArgumentType]


def test_a_model_without_sites_has_nothing_to_bound() -> None:
    with pytest.raises(SpecError, match="no adapted layer"):
        gap_bounds_of_sites([], samples=10)
