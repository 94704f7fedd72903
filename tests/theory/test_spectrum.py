from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.theory.covariance import participation_ratio
from asymlora.theory.spectrum import EXACT_WIDTH, InputMoment
from frozen_draws import FLOAT, frame, gaussian, power_law

WIDTH = 48
KINDS = pytest.mark.parametrize("sketch", [0, 16], ids=["whole", "sketch"])
CENTRED = pytest.mark.parametrize("centred", [False, True], ids=["moment", "covariance"])


def _rows(count: int = 300, seed: int = 0, width: int = WIDTH) -> Tensor:
    return gaussian(count, width, seed=seed) * power_law(width, 1.0).sqrt() + torch.linspace(-1, 1, width, dtype=FLOAT)


def _of(x: Tensor, *, sketch: int, seed: int = 0) -> InputMoment:
    moment = InputMoment(x.shape[-1], sketch=sketch, seed=seed)
    moment.update(x)
    return moment


def _dense(x: Tensor, centred: bool) -> Tensor:
    x = x - x.mean(dim=0) if centred else x
    return x.T @ x / len(x)


def _with_spectrum(variances: Tensor) -> Tensor:
    """Rows whose second moment is exactly diagonal with these entries."""
    return torch.diag((variances * len(variances)).sqrt())


def _assert_same(first: InputMoment, second: InputMoment, tolerance: float) -> None:
    assert first.count == second.count
    assert torch.allclose(first.mean, second.mean, rtol=tolerance, atol=tolerance)
    for centred in (False, True):
        assert first.trace(centred=centred) == pytest.approx(second.trace(centred=centred), rel=tolerance)
        ratios = first.participation_ratio(centred=centred), second.participation_ratio(centred=centred)
        assert ratios[0] == pytest.approx(ratios[1], rel=1e3 * tolerance)
        top = second.eigenvalues(centred=centred)
        assert torch.allclose(first.eigenvalues(centred=centred), top, rtol=0, atol=1e3 * tolerance * top[0].item())


@CENTRED
def test_the_whole_moment_is_that_of_the_rows(centred: bool) -> None:
    x = _rows()
    moment, wanted = _of(x, sketch=0), _dense(x, centred)
    assert torch.allclose(moment.matrix(centred=centred), wanted, rtol=0, atol=1e-12)
    assert torch.allclose(moment.mean, x.mean(dim=0), rtol=0, atol=1e-12)
    assert moment.trace(centred=centred) == pytest.approx(wanted.trace().item(), rel=1e-12)
    assert moment.participation_ratio(centred=centred) == pytest.approx(participation_ratio(wanted), rel=1e-10)
    assert torch.allclose(moment.eigenvalues(centred=centred), torch.linalg.eigvalsh(wanted).flip(-1), atol=1e-12)
    assert moment.missed_trace(centred=centred) == 0.0


@KINDS
@pytest.mark.parametrize("chunks", [(1,) * 300, (299, 1), (100, 7, 193), (0, 150, 150)])
def test_chunks_of_any_size_give_the_same_moment(sketch: int, chunks: tuple[int, ...]) -> None:
    # Sums of 300 terms about a running mean: 1e-12 is 5000 roundings.
    x = _rows()
    moment = InputMoment(WIDTH, sketch=sketch)
    for chunk in x.split(list(chunks)):
        moment.update(chunk)
    _assert_same(moment, _of(x, sketch=sketch), 1e-12)


@KINDS
def test_leading_axes_and_order_do_not_matter(sketch: int) -> None:
    x = _rows()
    moment = InputMoment(WIDTH, sketch=sketch)
    moment.update(x.flip(0)[:180].reshape(3, 4, 15, WIDTH))
    moment.update(x[:120].reshape(120, 1, WIDTH))
    _assert_same(moment, _of(x, sketch=sketch), 1e-12)


@KINDS
def test_merged_parts_are_the_moment_of_all_rows_and_keep_the_parts(sketch: int) -> None:
    x = _rows()
    parts = [_of(part, sketch=sketch) for part in x.split([10, 200, 90])]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    _assert_same(merged, _of(x, sketch=sketch), 1e-12)
    _assert_same(parts[0], _of(x[:10], sketch=sketch), 1e-12)
    _assert_same(InputMoment(WIDTH, sketch=sketch).merge(merged), merged, 1e-12)


@KINDS
def test_a_far_mean_does_not_drown_the_covariance(sketch: int) -> None:
    # Mean 1e6 times the spread: sums of raw squares would lose 12 of 16 digits.
    x = _rows()
    near, far = _of(x, sketch=sketch), InputMoment(WIDTH, sketch=sketch)
    for chunk in (x + 1e6).split(37):
        far.update(chunk)
    assert far.trace(centred=True) == pytest.approx(near.trace(centred=True), rel=1e-8)
    assert far.participation_ratio(centred=True) == pytest.approx(near.participation_ratio(centred=True), rel=1e-6)
    assert far.participation_ratio() == pytest.approx(1.0, abs=1e-6)


@KINDS
def test_masked_rows_do_not_count(sketch: int) -> None:
    x = _rows().reshape(10, 30, WIDTH)
    mask = torch.arange(30).expand(10, 30) < torch.arange(3, 13)[:, None]
    padded = torch.where(mask[..., None], x, float("nan"))
    moment = InputMoment(WIDTH, sketch=sketch)
    moment.update(padded, mask)
    _assert_same(moment, _of(x[mask], sketch=sketch), 1e-12)


def test_half_precision_rows_are_summed_in_double() -> None:
    x = _rows(2000).bfloat16()
    moment = InputMoment(WIDTH)
    for chunk in x.split(11):
        moment.update(chunk)
    assert torch.allclose(moment.matrix(), _dense(x.double(), centred=False), rtol=0, atol=1e-12)


@CENTRED
def test_a_sketch_never_exceeds_the_moment_and_knows_what_it_misses(centred: bool) -> None:
    x = _rows()
    moment, wanted = _of(x, sketch=16), torch.linalg.eigvalsh(_dense(x, centred)).flip(-1)
    found = moment.eigenvalues(centred=centred)
    assert found.shape == (16,)
    assert (found <= wanted[:16] + 1e-10).all()
    assert found[0] >= 0.8 * wanted[0]  # the long tail of a power law blurs a sketch of a third of the width
    missed = 1 - found.sum().item() / wanted.sum().item()
    assert moment.missed_trace(centred=centred) == pytest.approx(missed, abs=1e-12)
    assert moment.trace(centred=centred) == pytest.approx(wanted.sum().item(), rel=1e-12)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_missed_trace_keeps_its_guarantee(exponent: float) -> None:
    # Mean over 40 sketches against (1 + k / (l - k - 1)) * tail, at the k for which it is smallest.
    variances, columns = power_law(96, exponent), 24
    x = _with_spectrum(variances)
    missed = torch.tensor([_of(x, sketch=columns, seed=s).missed_trace() for s in range(40)], dtype=FLOAT)
    share = variances / variances.sum()
    bound = min((1 + k / (columns - k - 1)) * share[k:].sum().item() for k in range(2, columns - 1))
    assert missed.mean() - 3 * missed.std() / 40**0.5 <= bound
    # And the best approximation of that rank misses less: the guarantee is not met by being exact.
    assert missed.mean() >= share[columns:].sum()


def test_a_moment_of_few_dimensions_is_sketched_exactly() -> None:
    x = gaussian(200, 6, seed=0) @ gaussian(6, WIDTH, seed=1)
    moment, wanted = _of(x, sketch=16), _dense(x, centred=False)
    assert torch.allclose(moment.eigenvalues()[:6], torch.linalg.eigvalsh(wanted).flip(-1)[:6], rtol=1e-8)
    assert moment.missed_trace() <= 1e-10
    assert moment.participation_ratio() == pytest.approx(participation_ratio(wanted), rel=1e-8)


@pytest.mark.parametrize(("columns", "tolerance"), [(64, 0.05), (128, 0.03)])
@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
def test_the_participation_ratio_of_a_sketch(exponent: float, columns: int, tolerance: float) -> None:
    variances = power_law(512, exponent)
    wanted = (variances.sum() ** 2 / variances.square().sum()).item()
    x = _with_spectrum(variances)
    errors = [_of(x, sketch=columns, seed=s).participation_ratio() / wanted - 1 for s in range(6)]
    assert max(abs(error) for error in errors) <= tolerance
    assert abs(sum(errors) / len(errors)) <= 0.01


def test_the_accuracy_of_a_sketch_does_not_depend_on_the_basis() -> None:
    variances = power_law(128, 1.0)
    turned = _with_spectrum(variances) @ frame(128, 128, torch.Generator().manual_seed(0)).T
    wanted = (variances.sum() ** 2 / variances.square().sum()).item()
    errors = [_of(turned, sketch=64, seed=s).participation_ratio() / wanted - 1 for s in range(6)]
    assert 0 < max(abs(error) for error in errors) <= 0.05


@KINDS
def test_few_rows_look_more_concentrated_by_one_over_their_number(sketch: int) -> None:
    # Gaussian rows of 48 equal directions: E[1/PR] = 1/48 + 1/T to first order.
    for count in (48, 480):
        inverse = [1 / _of(gaussian(count, WIDTH, seed=s), sketch=sketch).participation_ratio() for s in range(20)]
        assert sum(inverse) / 20 == pytest.approx(1 / WIDTH + 1 / count, rel=0.03)


def test_wide_inputs_are_sketched_by_default_and_narrow_ones_are_not() -> None:
    wide, narrow = InputMoment(EXACT_WIDTH + 1), InputMoment(EXACT_WIDTH)
    assert (wide.sketch, narrow.sketch) == (128, 0)
    wide.update(torch.ones(1, EXACT_WIDTH + 1))
    assert wide.participation_ratio() == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(SpecError, match="Only a sketch of 128 columns"):
        wide.matrix()


def test_the_same_seed_is_the_same_sketch() -> None:
    x = _rows()
    first, again, other = (_of(x, sketch=16, seed=s).participation_ratio() for s in (3, 3, 4))
    assert first == again != other


def test_moments_that_cannot_be_merged_are_refused() -> None:
    whole, sketch = InputMoment(8), InputMoment(8, sketch=4)
    for other in (InputMoment(9, sketch=4), whole, InputMoment(8, sketch=4, seed=1)):
        with pytest.raises(SpecError, match="cannot be merged"):
            sketch.merge(other)
    assert whole.merge(InputMoment(8, seed=1)).count == 0  # the seed of a whole moment means nothing


@pytest.mark.parametrize(
    ("x", "mask", "words"),
    [
        (torch.ones(3, 5), None, r"shape \(3, 5\) for a moment of width 4"),
        (torch.tensor(1.0), None, r"shape \(\) for a moment"),
        (torch.ones(3, 4).long(), None, "torch.int64 inputs"),
        (torch.full((3, 4), float("nan")), None, "hold NaN or infinity"),
        (torch.ones(3, 4), torch.ones(4, dtype=torch.bool), r"mask of shape \(4,\)"),
        (torch.ones(3, 4), torch.ones(3), "torch.float32 mask"),
    ],
)
def test_bad_activations_are_refused_and_change_nothing(x: Tensor, mask: Tensor | None, words: str) -> None:
    moment = InputMoment(4)
    with pytest.raises(SpecError, match=words):
        moment.update(x, mask)
    assert moment.count == 0


@CENTRED
def test_principal_directions_are_those_of_the_moment(centred: bool) -> None:
    x = _rows()
    variances, directions = _of(x, sketch=0).principal(centred=centred)
    values, vectors = torch.linalg.eigh(_dense(x, centred))
    assert torch.allclose(variances, values.flip(0), rtol=1e-9)
    # Up to sign; the gaps of this spectrum are wide against rounding.
    assert torch.allclose((directions.mT @ vectors.flip(1)).abs(), torch.eye(WIDTH, dtype=FLOAT), atol=1e-6)


@CENTRED
def test_principal_directions_of_a_sketch_are_those_of_its_approximation(centred: bool) -> None:
    moment = _of(_rows(), sketch=16)
    variances, directions = moment.principal(centred=centred)
    assert torch.allclose(variances, moment.eigenvalues(centred=centred)[: len(variances)], rtol=1e-12)
    assert torch.allclose(directions.mT @ directions, torch.eye(len(variances), dtype=FLOAT), atol=1e-12)
    # A moment of few dimensions is sketched exactly.
    few = gaussian(100, 5, seed=0) @ frame(WIDTH, 5, torch.Generator().manual_seed(0)).mT
    variances, directions = _of(few, sketch=16).principal()
    assert len(variances) == 5
    assert torch.allclose((directions * variances) @ directions.mT, _dense(few, False), atol=1e-10)


@KINDS
def test_rows_of_zeros_have_no_directions(sketch: int) -> None:
    with pytest.raises(SpecError, match="all zero"):
        _of(torch.zeros(3, WIDTH), sketch=sketch).principal()


def test_reading_before_there_is_anything_to_read_is_refused() -> None:
    moment = InputMoment(4)
    for read in (moment.trace, moment.matrix, moment.eigenvalues, moment.participation_ratio):
        with pytest.raises(SpecError, match="No row has been seen"):
            read()
    moment.update(torch.ones(2, 4))
    with pytest.raises(SpecError, match="do not vary"):
        moment.participation_ratio(centred=True)
    zero = InputMoment(4)
    zero.update(torch.zeros(2, 4))
    with pytest.raises(SpecError, match="are all zero"):
        zero.participation_ratio()


@pytest.mark.parametrize(("width", "sketch"), [(0, None), (8, 2), (8, 5), (8, 10), (8, -4)])
def test_sizes_out_of_range_are_refused(width: int, sketch: int | None) -> None:
    with pytest.raises(SpecError, match=r"width=0|sketch=-?\d+ does not fit width=8"):
        InputMoment(width, sketch=sketch)
