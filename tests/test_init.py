from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asymlora.draws import DRAWS_VERSION, Draws, digest
from asymlora.errors import RankError, SpecError
from asymlora.factor_spec import ADDRESSED_INITS, FactorSpec, InitName
from asymlora.init import INITS, draw

SITE = "encoder.layer.3.attention.self.query"

# Of version 1, by our own code: what files with seeds rely on. tests/test_draws.py holds the numbers beneath to an
# independent computation. A change here makes every such file unreadable and needs a new DRAWS_VERSION.
STORED = {
    "kaiming_uniform A 1x3": "b8875d1158b3bafb",
    "kaiming_uniform A 4x10": "2abd2753185d65f8",
    "kaiming_uniform A 8x1024": "c942494c573727b1",
    "kaiming_uniform A 12x12": "354d75265631d5b6",
    "kaiming_uniform B 3x1": "0414b4f250f666e5",
    "kaiming_uniform B 10x4": "ab6db62572b9a5fb",
    "kaiming_uniform B 1024x8": "eb11bca9bf13f954",
    "kaiming_uniform B 12x12": "85ab75ea56c727dd",
    "gaussian A 1x3": "3bd00625c0f99157",
    "gaussian A 4x10": "ef332d83cb778f70",
    "gaussian A 8x1024": "f1975ff7b1c88817",
    "gaussian A 12x12": "e6321910a168940a",
    "gaussian B 3x1": "d957af5aa7579891",
    "gaussian B 10x4": "0414f92fc45b5c06",
    "gaussian B 1024x8": "ab65b40eeccae993",
    "gaussian B 12x12": "3ceb2813efe86a2e",
    "peft_gaussian A 1x3": "352b4fd10ea1b2bc",
    "peft_gaussian A 4x10": "bdeca9df9f098aa1",
    "peft_gaussian A 8x1024": "5f759fce8b43ea72",
    "peft_gaussian A 12x12": "c70b644ccb0a389c",
    "peft_gaussian B 3x1": "d957af5aa7579891",
    "peft_gaussian B 10x4": "d4093ed5651f895a",
    "peft_gaussian B 1024x8": "6ba4c028c9fe68fc",
    "peft_gaussian B 12x12": "8bc55609dc41b4fa",
    "orthonormal A 1x3": "5224c36eb481c20d",
    "orthonormal A 4x10": "8bd1bace89ee1d06",
    "orthonormal A 8x1024": "22f0bffa1412f33e",
    "orthonormal A 12x12": "1f388b19ba17a0cf",
    "orthonormal B 3x1": "baaa782d688b6199",
    "orthonormal B 10x4": "d68b4d71cb559b90",
    "orthonormal B 1024x8": "7b8ad8c1344387e0",
    "orthonormal B 12x12": "c55698aaa20e1601",
}


def _start(init: Any, shape: tuple[int, int], factor: Any = "A", **options: Any) -> Tensor:
    return draw(init, shape, seed=0, site=SITE, factor=factor, **options)


def _digests() -> dict[str, str]:
    found: dict[str, str] = {}
    for init in [name for name in ADDRESSED_INITS if name != "zeros"]:
        for factor in ("A", "B"):
            for rank, width in ((1, 3), (4, 10), (8, 1024), (12, 12)):
                shape = (rank, width) if factor == "A" else (width, rank)
                start = draw(init, shape, seed=11, site=SITE, factor=factor)  # pyright: ignore[reportArgumentType]
                found[f"{init} {factor} {shape[0]}x{shape[1]}"] = digest(start)[:16]
    return found


def test_every_named_init_has_a_function_and_no_function_lacks_a_name() -> None:
    assert set(INITS) == set(get_args(InitName)) - {"custom"}
    assert set(ADDRESSED_INITS) <= set(INITS)


def test_addressed_draws_are_the_stored_ones() -> None:
    assert DRAWS_VERSION == 1
    assert _digests() == STORED


def test_zeros_are_zeros() -> None:
    assert torch.equal(_start("zeros", (3, 5)), torch.zeros(3, 5))


def test_addressed_draws_do_not_depend_on_the_thread_count() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert _digests() == STORED
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_addressed_draws_are_the_same_in_a_process_without_vector_instructions(threads: str) -> None:
    extensions: Any = np.show_config(mode="dicts")
    switched_off = " ".join(extensions["SIMD Extensions"].get("found", []))
    code = (
        "import json, sys; sys.path.insert(0, 'tests'); import test_init;"
        "from numpy._core._multiarray_umath import __cpu_features__ as on;"
        "print(json.dumps([test_init._digests(), [f for f in sys.argv[1].split() if on[f]]]))"
    )
    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": switched_off,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "ATEN_CPU_CAPABILITY": "default",
        "PYTHONHASHSEED": threads,
    }
    root = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-c", code, switched_off]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    found, still_on = json.loads(run.stdout)
    assert still_on == []
    assert found == STORED


def test_a_draw_depends_on_its_address_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    first = draw("gaussian", (2, 6), seed=3, site="layer.0.query", factor="A")
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(first, draw("gaussian", (2, 6), seed=3, site="layer.0.query", factor="A"))
    others = [
        draw("gaussian", (2, 6), seed=4, site="layer.0.query", factor="A"),
        draw("gaussian", (2, 6), seed=3, site="layer.0.value", factor="A"),
        draw("gaussian", (2, 6), seed=3, site="layer.0.query", factor="B"),
    ]
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("init", ADDRESSED_INITS)
def test_draws_are_the_same_in_any_order_of_sites(init: InitName) -> None:
    sites = [f"layer.{i}" for i in range(5)]

    def drawn(order: list[str]) -> dict[str, str]:
        return {site: digest(draw(init, (2, 7), seed=0, site=site, factor="A")) for site in order}

    assert drawn(sites) == drawn(sites[::-1])


@pytest.mark.parametrize("init", INITS)
def test_drawing_leaves_the_global_generator_alone(init: InitName) -> None:
    before = torch.random.get_rng_state()
    _start(init, (2, 6), weight=torch.eye(9, 6))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("factor", "shape"), [("A", (2, 6)), ("B", (9, 2))])
def test_every_start_is_an_own_float32_tensor_on_cpu_under_any_default(
    init: InitName, factor: str, shape: tuple[int, int]
) -> None:
    weight = torch.eye(9, 6)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            start = _start(init, shape, factor, weight=weight)
    finally:
        torch.set_default_dtype(before)
    assert (start.shape, start.dtype, start.device.type) == (shape, torch.float32, "cpu")
    assert not start.requires_grad
    assert start.is_contiguous()


@pytest.mark.parametrize(
    ("init", "factor", "shape", "variance"),
    [
        ("gaussian", "A", (64, 512), 1 / 512),
        ("gaussian", "B", (512, 64), 1 / 64),
        ("kaiming_uniform", "A", (64, 512), 1 / (3 * 512)),
        ("kaiming_uniform", "B", (512, 64), 1 / (3 * 64)),
        ("peft_gaussian", "A", (64, 512), 1 / 64**2),
        ("peft_gaussian", "B", (512, 64), 1 / 64**2),
        ("orthonormal", "A", (64, 512), 1 / 512),
        ("orthonormal", "B", (512, 64), 1 / 512),
    ],
)
@pytest.mark.parametrize("gain", [1.0, 2.0, 0.25])
def test_variance_is_that_of_the_source_times_the_gain(
    init: InitName, factor: str, shape: tuple[int, int], variance: float, gain: float
) -> None:
    values = _start(FactorSpec(init=init, gain=gain), shape, factor).double()
    # 32,768 entries: the relative standard error of a variance is below sqrt(2/32768) = 0.8 %; 5 % is six of them.
    assert values.var().item() == pytest.approx(gain * variance, rel=0.05)
    assert abs(values.mean().item()) < 5 * math.sqrt(gain * variance / values.numel())


@pytest.mark.parametrize("init", ["gaussian", "orthonormal"])
def test_a_gain_of_four_doubles_every_entry_exactly(init: InitName) -> None:
    assert torch.equal(_start(FactorSpec(init=init, gain=4.0), (3, 50)), 2 * _start(init, (3, 50)))


def test_kaiming_uniform_fills_pefts_interval() -> None:
    values = _start("kaiming_uniform", (64, 512))
    bound = 1 / math.sqrt(512)
    assert values.abs().max().item() <= torch.tensor(bound).item()
    # Of 32,768 uniform numbers none beyond 0.999 of the bound: p = 0.999**32768 < 1e-14 for either sign together.
    assert values.abs().max().item() > 0.999 * bound
    theirs = nn.init.kaiming_uniform_(torch.empty(64, 512), a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    # Two samples of one law: 5 standard errors of the difference, sqrt(2 * 0.8/N) of the variance each.
    assert values.var().item() == pytest.approx(theirs.var().item(), rel=5 * math.sqrt(1.6 / 32768))


@pytest.mark.parametrize(
    ("factor", "shape"), [("A", (8, 200)), ("A", (16, 16)), ("B", (200, 8)), ("A", (1, 5)), ("B", (1, 1))]
)
def test_orthonormal_factors_are_orthonormal(factor: str, shape: tuple[int, int]) -> None:
    frame = _start("orthonormal", shape, factor).double()
    gram = frame @ frame.T if factor == "A" else frame.T @ frame
    # A float64 frame rounded to float32, 6e-8 of each entry: an inner product of unit vectors is off by 1.2e-7 at most.
    assert (gram - torch.eye(len(gram), dtype=torch.float64)).abs().max() < 1.2e-7 + 1e-12


def test_more_orthonormal_rows_than_their_length_are_refused() -> None:
    with pytest.raises(RankError, match="at most 5"):
        _start("orthonormal", (6, 5))
    with pytest.raises(RankError, match="at most 5"):
        _start("orthonormal", (5, 6), "B")


def test_an_addressed_draw_uses_no_linear_algebra_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in ((torch.linalg, ("qr", "svd", "eigh", "cholesky_ex")), (np.linalg, ("qr", "svd", "cholesky"))):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("a library's linear algebra"))
    for init in ADDRESSED_INITS:
        _start(init, (12, 12))


@pytest.mark.parametrize(("factor", "shape"), [("A", (8, 1024)), ("B", (1024, 8))])
@pytest.mark.parametrize("init", [name for name in INITS if name != "zeros"])
def test_component_norm_is_that_of_every_row_of_A_and_column_of_B(
    init: InitName, factor: str, shape: tuple[int, int]
) -> None:
    weight = torch.eye(1024) if "singular" in init else None
    start = _start(FactorSpec(init=init, component_norm=0.5), shape, factor, weight=weight).double()
    norms = start.norm(dim=1 if factor == "A" else 0)
    # Each entry is rounded to float32 once, by 6e-8 of itself.
    torch.testing.assert_close(norms, torch.full((8,), 0.5, dtype=torch.float64), rtol=6e-8, atol=0)


def test_component_norm_takes_away_the_scale_of_a_kaiming_B() -> None:
    kaiming = _start("kaiming_uniform", (1024, 8), "B")
    # sqrt(1024/(3*8)) = 6.53 against 1; the mean of 8 norms of 1024 entries is within 1 % (5 standard errors 0.9 %).
    assert kaiming.norm(dim=0).mean().item() == pytest.approx(math.sqrt(1024 / 24), rel=0.01)
    assert _start("orthonormal", (1024, 8), "B").norm(dim=0).mean().item() == pytest.approx(1, rel=1e-6)
    scaled = _start(FactorSpec(init="kaiming_uniform", component_norm=1.0), (1024, 8), "B")
    torch.testing.assert_close(scaled.norm(dim=0), torch.ones(8), rtol=1e-6, atol=0)
    # The direction of each column is the same.
    torch.testing.assert_close(scaled, kaiming / kaiming.norm(dim=0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("init", ["kaiming_uniform", "gaussian", "peft_gaussian", "orthonormal"])
@pytest.mark.parametrize("variance", [1.0, 1e-4])
def test_variance_is_the_mean_square_of_the_entries(init: InitName, variance: float) -> None:
    start = _start(FactorSpec(init=init, variance=variance), (8, 300)).double()
    # Each entry is rounded to float32 once, so a square by 1.2e-7 of itself.
    assert start.pow(2).mean().item() == pytest.approx(variance, rel=1.2e-7)


def test_a_gain_before_a_fixed_size_changes_nothing() -> None:
    fixed = [_start(FactorSpec(init="gaussian", gain=gain, variance=0.1), (8, 300)) for gain in (1.0, 3.0)]
    assert torch.equal(*fixed)


@pytest.mark.parametrize("size", [{"variance": 1.0}, {"component_norm": 1.0}])
def test_a_start_of_zeros_cannot_be_scaled_to_a_size(size: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=f"{next(iter(size))}=1.0 scales the start of A at '{SITE}'.*all zero"):
        _start(FactorSpec(init=lambda factor, **_: factor.zero_(), **size), (2, 6))  # pyright: ignore


def test_a_users_function_gets_what_the_named_ones_get() -> None:
    weight = torch.randn(9, 6)

    def init(factor: Tensor, *, which: Literal["A", "B"], draws: Draws, weight: Tensor | None) -> Tensor:
        assert (which, draws) == ("A", Draws(seed=0, site=SITE, factor="A"))
        assert weight is not None
        return factor.normal_(generator=draws.generator()).add_(weight[:2])

    start = _start(FactorSpec(init=init), (2, 6), weight=weight)
    assert torch.equal(start, _start(init, (2, 6), weight=lambda: weight))
    noise = torch.randn(2, 6, generator=Draws(seed=0, site=SITE, factor="A").generator())
    assert torch.equal(start, noise + weight[:2])


def test_a_users_result_is_copied_into_float32_and_detached() -> None:
    held = torch.ones(2, 6, dtype=torch.float64, requires_grad=True)
    start = _start(FactorSpec(init=lambda factor, **_: held, gain=4.0), (2, 6))
    assert start.dtype == torch.float32
    assert start.eq(2).all()
    assert held.eq(1).all()
    assert not start.requires_grad


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned NoneType.*return factor"),
        (torch.zeros(6, 2), r"shape \(6, 2\).*shape \(2, 6\)"),
        (torch.zeros(2, 6, dtype=torch.int64), "torch.int64.*floating"),
        (torch.zeros(2, 6, device="meta"), "on meta"),
        (torch.full((2, 6), float("inf")), "infinite entries"),
        (torch.full((2, 6), 1e300, dtype=torch.float64), "too large for float32"),
    ],
)
def test_a_users_result_that_cannot_be_a_factor_is_refused(result: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        _start(FactorSpec(init=lambda factor, **_: result), (2, 6))


def test_custom_without_its_function_asks_for_it() -> None:
    with pytest.raises(SpecError, match="Give the function again"):
        _start("custom", (2, 6))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"'orthonormel'.*'kaiming_uniform'"):
        _start("orthonormel", (2, 6))


def test_a_weight_is_fetched_only_by_an_init_that_may_need_it() -> None:
    fetched: list[str] = []

    def weight() -> Tensor:
        fetched.append("weight")
        return torch.eye(6)

    for init in ADDRESSED_INITS:
        _start(init, (2, 6), weight=weight)
    assert fetched == []
    _start("top_singular", (2, 6), weight=weight)
    assert fetched == ["weight"]


@pytest.mark.parametrize("init", ["top_singular", "bottom_singular", "random_singular"])
def test_a_singular_start_without_a_fitting_weight_is_refused(init: InitName) -> None:
    with pytest.raises(SpecError, match=f"A at '{SITE}'.*Pass weight="):
        _start(init, (2, 6))
    with pytest.raises(SpecError, match=r"shape \(6, 9\), so A must have 9 columns"):
        _start(init, (2, 6), weight=torch.ones(6, 9))
    with pytest.raises(SpecError, match=r"shape \(6, 9\), so B must have 6 rows"):
        _start(init, (9, 2), "B", weight=torch.ones(6, 9))


def _pretrained(out: int, fan_in: int) -> Tensor:
    """Return a known weight with singular values 2, 1.98, ..., so that each vector is determined."""
    generator = torch.Generator().manual_seed(out)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q for n in (out, fan_in))
    size = min(out, fan_in)
    return (left[:, :size] * torch.linspace(2, 1, size).double()) @ right[:, :size].T


def _similarity(rows: Tensor, other: Tensor) -> float:
    """Return the share of one row space that lies in the other: 1 for equal spaces, r/d for random ones."""
    return ((rows.double() @ other.double().T) ** 2).sum().item() / len(rows)


@pytest.mark.parametrize("shape", [(64, 64), (48, 64), (96, 64)])
def test_R2_released_V_never_saw_the_trained_weight(shape: tuple[int, int]) -> None:
    W0 = _pretrained(*shape)
    left, _, right = torch.linalg.svd(W0)
    A = _start("top_singular", (8, shape[1]), weight=W0)
    B = _start("top_singular", (shape[0], 8), "B", weight=W0)
    # Rounding of 64 entries to float32.
    assert _similarity(A, right[:8]) == pytest.approx(1, abs=1e-6)
    assert _similarity(B.T, left[:, :8].T) == pytest.approx(1, abs=1e-6)
    # The released code decomposed a fresh Kaiming weight. Chance is r/d; the mean over 64 products is within 0.1.
    fresh = torch.randn(*shape, generator=torch.Generator().manual_seed(9))
    assert _similarity(torch.linalg.svd(fresh).Vh[:8], right[:8]) == pytest.approx(8 / 64, abs=0.1)


@pytest.mark.parametrize("shape", [(64, 64), (48, 64), (96, 64)])
def test_R3_released_V_took_columns_of_Vh_where_its_rows_are_the_singular_vectors(shape: tuple[int, int]) -> None:
    W0 = _pretrained(*shape)
    right = torch.linalg.svd(W0).Vh
    for init, rows in (("top_singular", right[:8]), ("bottom_singular", right[: min(shape)][-8:])):
        A = _start(init, (8, shape[1]), weight=W0)
        # Neighbouring s**2 differ by 0.02 or more of 4: float32 rounding of the entries, 6e-8, is what remains.
        torch.testing.assert_close(A.double().abs(), rows.abs(), rtol=0, atol=1e-6)
        signs = (A.double() * rows).sum(1)
        # Up to sign as a whole, not entry by entry.
        torch.testing.assert_close(signs.abs(), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-6)
    released = right[:, :8].T
    assert _similarity(released, right[:8]) == pytest.approx(8 / 64, abs=0.1)


@pytest.mark.parametrize("init", ["orthonormal", "top_singular", "bottom_singular", "random_singular"])
def test_R8_no_square_matrix_outlives_the_draw(init: InitName) -> None:
    W0 = _pretrained(64, 64)
    A = _start(init, (8, 64), weight=W0)
    B = _start(init, (64, 8), "B", weight=W0)
    # A view of a (64, 64) factor would hold its 16,384 bytes.
    assert A.untyped_storage().nbytes() == B.untyped_storage().nbytes() == 8 * 64 * 4
    assert vars(A) == vars(B) == {}
