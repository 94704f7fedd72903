from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from asymlora.diagnostics import feature_split
from asymlora.diagnostics.feature_split import PARTS, Factors, checked_split, read, split
from asymlora.errors import IdentityError

K, N, M, R, S = 11, 13, 7, 3, 1.7


def _draw(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Factors, Factors]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal(K, N), Factors(normal(R, N), normal(M, R)), Factors(normal(R, N), normal(M, R))


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def test_the_sizes_are_those_of_the_dense_formula() -> None:
    x, before, after = _draw(0)
    found = dict(zip(PARTS, split(x, before, after, scaling=S).tolist(), strict=True))
    step_A, step_B = after.A - before.A, after.B - before.B
    # By the dense products with the weight, in the other order of evaluation.
    wanted = {
        "Z_A": x @ after.A.T,
        "Z_B": x @ (S * after.B @ after.A).T,
        "delta1": x @ (S * before.B @ step_A).T,
        "delta2": x @ (S * step_B @ before.A).T,
        "delta3": x @ (S * step_B @ step_A).T,
        "delta_Z_B": x @ (S * after.B @ after.A - S * before.B @ before.A).T,
    }
    assert found.pop("identity_error") < 1e-13
    assert found == pytest.approx({name: _rms(value) for name, value in wanted.items()}, rel=1e-12)


def test_a_factor_that_did_not_move_has_parts_of_exactly_zero() -> None:
    x, before, after = _draw(1)
    only_B = dict(zip(PARTS, split(x, before, Factors(before.A, after.B), scaling=S).tolist(), strict=True))
    only_A = dict(zip(PARTS, split(x, before, Factors(after.A, before.B), scaling=S).tolist(), strict=True))
    none = dict(zip(PARTS, split(x, before, before, scaling=S).tolist(), strict=True))
    assert (only_B["delta1"], only_B["delta3"]) == (0.0, 0.0)
    assert only_B["delta2"] == pytest.approx(only_B["delta_Z_B"])
    assert (only_A["delta2"], only_A["delta3"]) == (0.0, 0.0)
    assert only_A["delta1"] == pytest.approx(only_A["delta_Z_B"])
    assert [none[name] for name in PARTS[2:]] == [0.0] * 5
    # Equal values in another tensor are as good as the same one.
    copied = split(x, before, Factors(before.A.clone(), before.B.clone()), scaling=S).tolist()
    assert copied[2:] == [0.0] * 5


def test_a_zero_start_has_no_error() -> None:
    x, before, after = _draw(2)
    zero = Factors(before.A, torch.zeros_like(before.B))
    assert split(x, zero, zero, scaling=S).tolist()[1:] == [0.0] * 6
    assert split(x, zero, Factors(after.A, zero.B.clone()), scaling=S).tolist()[1:] == [0.0] * 6
    # Onto zero: the error is over what was there before.
    assert split(x, before, Factors(after.A, torch.zeros_like(after.B)), scaling=S)[-1] < 1e-13


def test_ids_read_codes_as_one_hot_rows_would() -> None:
    _, before, after = _draw(3)
    ids = torch.tensor([0, 5, 5, 12])
    rows = torch.nn.functional.one_hot(ids, N).double()
    assert torch.equal(read(ids, after.A), rows @ after.A.T)
    codes, products = (split(given, before, after, scaling=S) for given in (ids, rows))
    assert torch.allclose(codes[:-1], products[:-1], rtol=1e-13)


def test_the_identity_holds_in_float32_also_for_steps_far_below_the_weights() -> None:
    x, before, after = _draw(4, torch.float32)
    for size in (1.0, 1e-3, 1e-7):
        near = Factors(before.A + size * after.A, before.B + size * after.B)
        assert split(x, before, near, scaling=S)[-1] < 1e-5


def test_half_precision_inputs_are_computed_in_the_factors_dtype() -> None:
    x, before, after = _draw(5, torch.float32)
    short = x.bfloat16()
    assert torch.equal(split(short, before, after, scaling=S), split(short.float(), before, after, scaling=S))


def test_products_in_a_shorter_format_are_done_again_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x, before, after = _draw(6, torch.float32)
    near = Factors(before.A + 1e-3 * after.A, before.B + 1e-3 * after.B)

    def shorter(x: Tensor, A: Tensor) -> Tensor:  # what TF32 and bfloat16 products do
        return read(x, A) if A.dtype == torch.float64 else (x.bfloat16() @ A.bfloat16().T).float()

    right = split(x.double(), Factors(*(t.double() for t in before)), Factors(*(t.double() for t in near)), scaling=S)
    monkeypatch.setattr(feature_split, "read", shorter)
    assert split(x, before, near, scaling=S)[-1] > 1e-5
    found = checked_split(x, before, near, scaling=S, site="q", step=1)
    assert found[:-1] == pytest.approx(right.tolist()[:-1], rel=1e-12)
    assert found[-1] < 1e-12


def test_a_machine_that_computes_wrongly_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    x, before, after = _draw(7)
    calls: list[int] = []

    def wrong(x: Tensor, A: Tensor) -> Tensor:
        calls.append(1)
        return read(x, A) * (1 + 1e-3 * len(calls))

    monkeypatch.setattr(feature_split, "read", wrong)
    words = re.compile(r"block\.q, step 4: .* differ by .* at most 1e-05.* another device")
    with pytest.raises(IdentityError, match=words):
        checked_split(x, before, after, scaling=S, site="block.q", step=4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_passed_on(value: float) -> None:
    x, before, after = _draw(8)
    after.A[0, 0] = value
    found = checked_split(x, before, after, scaling=S, site="q", step=1)
    assert not math.isfinite(found[0])
    assert not math.isfinite(found[1])
