from __future__ import annotations

import hashlib
import math
import pickle
import struct
from decimal import Decimal, localcontext
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from asymlora.draws import (
    FRAME_BOUND,
    Draws,
    digest,
    natural_log,
    normal_quantile,
    orthonormalised,
    philox_words,
    tree_sum,
)
from asymlora.errors import RankError, SpecError

SITE = Draws(seed=0, site="encoder.layer.0.query", factor="A")

# Random123, tests/kat_vectors, philox4x64 with 10 rounds: counter, key, result, each with the low word first.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    (
        (2**64 - 1,) * 4,
        (2**64 - 1,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def _joined(words: tuple[int, ...]) -> int:
    return sum(word << (64 * place) for place, word in enumerate(words))


@pytest.mark.parametrize(("counter", "key", "result"), PUBLISHED)
def test_words_are_those_of_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], result: tuple[int, ...]
) -> None:
    assert tuple(philox_words(_joined(key), counter=_joined(counter), count=4).tolist()) == result


def _philox_block(counter: int, key: int) -> list[int]:
    """Return one block by plain integers, after the definition in Salmon et al. 2011."""
    low = 2**64 - 1
    c0, c1, c2, c3 = (counter >> (64 * place) & low for place in range(4))
    k0, k1 = key & low, key >> 64
    for _ in range(10):
        p0, p2 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (p2 >> 64) ^ c1 ^ k0, p2 & low, (p0 >> 64) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & low, (k1 + 0xBB67AE8584CAA73B) & low
    return [c0, c1, c2, c3]


def _words_by_hand(draws: Draws, count: int, stream: int) -> list[int]:
    address = hashlib.sha256(f"{draws.seed}\x1f{draws.site}\x1f{draws.factor}".encode()).digest()
    key = int.from_bytes(address[:16], "little")
    blocks = [_philox_block((stream << 192) + block, key) for block in range(-(-count // 4))]
    return [word for block in blocks for word in block][:count]


@pytest.mark.parametrize("stream", [0, 1, 31])
def test_words_of_an_address_are_its_philox_blocks_in_order(stream: int) -> None:
    assert SITE.words(11, stream=stream).tolist() == _words_by_hand(SITE, 11, stream)


def test_uniform_numbers_are_odd_multiples_of_the_finest_step() -> None:
    by_hand = [((word >> 10 | 1) - 2**53) / 2**53 for word in _words_by_hand(SITE, 9, 0)]
    assert SITE.uniform(9).tolist() == by_hand


def _frame_by_hand(rank: int, length: int) -> list[list[float]]:
    """Return the frame by plain Python numbers: integers, then one rounded operation at a time, nothing vectorised."""
    words = _words_by_hand(SITE, rank * length, 0)
    rows = [[word.bit_count() - 32 for word in words[i * length : (i + 1) * length]] for i in range(rank)]
    table = [[float(sum(x * y for x, y in zip(row, other, strict=True))) for other in rows] for row in rows]
    values = [[float(x) for x in row] for row in rows]
    for i in range(rank):
        for j in range(i + 1, rank):
            ratio = table[j][i] / table[i][i]
            table[j] = [x - ratio * y for x, y in zip(table[j], table[i], strict=True)]
            values[j] = [x - ratio * y for x, y in zip(values[j], values[i], strict=True)]
        values[i] = [x / math.sqrt(table[i][i]) for x in values[i]]
    return values


@pytest.mark.parametrize(("rank", "length"), [(1, 3), (2, 17), (8, 40), (12, 100)])
def test_a_frame_has_the_bits_that_plain_python_numbers_give(rank: int, length: int) -> None:
    assert SITE.frame(rank, length).tolist() == _frame_by_hand(rank, length)


@pytest.mark.parametrize(
    ("rank", "length"), [(1, 1), (2, 2), (3, 3), (8, 8), (8, 1024), (16, 4096), (40, 41), (64, 64), (64, 200)]
)
def test_frames_are_orthonormal_to_the_stated_bound(rank: int, length: int) -> None:
    frame = SITE.frame(rank, length)
    # The check's own sums round by at most 4096 * 1.1e-16, half of the bound of 9e-13.
    assert np.abs(frame @ frame.T - np.eye(rank)).max() <= FRAME_BOUND


def test_dependent_integers_are_drawn_again() -> None:
    # A word has 32 bits set with probability 0.099: at 1 x 1 one draw in ten is zero. Among 200, none: p < 1e-8.
    signs = [Draws(seed=i, site="s", factor="A").frame(1, 1).item() for i in range(200)]
    assert set(signs) == {-1.0, 1.0}
    assert any(Draws(seed=i, site="s", factor="A").words(1)[0].item().bit_count() == 32 for i in range(200))


def test_a_frame_that_stays_dependent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "words", lambda *_, **__: np.zeros(10, dtype=np.uint64))
    with pytest.raises(RankError, match="another seed or a lower rank"):
        SITE.frame(2, 5)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_frame_of_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(RankError, match="at most 5"):
        SITE.frame(rank, 5)


def test_nearly_dependent_rows_get_a_second_pass_and_dependent_ones_are_given_up() -> None:
    near = np.full((2, 400), 31, dtype=np.int32)
    near[1, 7] = 32
    frame = orthonormalised(near)
    assert frame is not None
    # Squared condition number 1e6 or more: one pass would leave up to 1e-10; the second leaves rounding.
    assert np.abs(frame @ frame.T - np.eye(2)).max() <= FRAME_BOUND
    assert orthonormalised(np.full((2, 400), 31, dtype=np.int32)) is None


def test_the_long_gram_of_large_integers_does_not_overflow() -> None:
    # 2**22 products of 32 * 32 sum to 2**32, beyond 32 bits.
    rows = np.full((1, 2**22), 32, dtype=np.int32)
    frame = orthonormalised(rows)
    assert frame is not None
    assert set(frame[0].tolist()) == {2.0**-11}


def test_first_rows_are_those_of_a_smaller_rank() -> None:
    assert np.array_equal(SITE.frame(8, 300)[:3], SITE.frame(3, 300))


FRAMES = 1500


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.stack([Draws(seed=i, site="s", factor="A").frame(4, 16) for i in range(FRAMES)])


def test_frame_has_no_preferred_sign_or_direction(frames: np.ndarray) -> None:
    # Each coordinate has variance 1/16: 64 means, 5 standard errors each, p < 4e-5 in all.
    assert np.abs(frames.mean(0)).max() < 5 / math.sqrt(16 * FRAMES)
    # A sign is a fair coin (zeros count as half).
    assert np.abs(np.sign(frames).mean(0)).max() < 5 / math.sqrt(FRAMES)


@pytest.mark.parametrize("gradient", ["axis", "spread"])
def test_frame_keeps_r_over_n_of_any_direction_on_average(frames: np.ndarray, gradient: str) -> None:
    g = np.eye(16)[3] if gradient == "axis" else np.ones(16) / 4
    kept = ((frames @ g) ** 2).sum(1)
    # Variance of a Beta(r/2, (n-r)/2) variable, 2r(n-r)/(n^2 (n+2)) = 0.0208; 5 standard errors.
    assert abs(kept.mean() - 4 / 16) < 5 * math.sqrt(2 * 4 * 12 / (16**2 * 18) / FRAMES)


def test_second_moments_are_those_of_the_uniform_frame(frames: np.ndarray) -> None:
    projections = frames.transpose(0, 2, 1) @ frames
    # Entries of P have variance at most 0.0208 (above): 256 means at 6 standard errors, p < 1e-6.
    assert np.abs(projections.mean(0) - np.eye(16) / 4).max() < 6 * math.sqrt(0.0208 / FRAMES)


def test_fourth_moment_is_the_binomial_one_as_documented() -> None:
    entries = np.stack([Draws(seed=i, site="s", factor="A").frame(8, 4096) for i in range(16)])
    kurtosis = (entries**4).mean() / (entries**2).mean() ** 2
    # 524,288 entries: standard error sqrt(24/N) = 0.0068. Binomial: 3 - 1/32; uniform on the sphere: 3 - 0.0015.
    assert abs(kurtosis - (3 - 1 / 32)) < 4 * math.sqrt(24 / entries.size)


def test_logarithm_is_right_to_two_roundings() -> None:
    x = np.concatenate([np.exp(np.linspace(-700, 700, 400)), np.linspace(0.4, 2.1, 300), [2.0**-54, 0.5, 2.0]])
    with localcontext() as context:
        context.prec = 40
        for value, ours in zip(x.tolist(), natural_log(x).tolist(), strict=True):
            truth = Decimal(value).ln()
            # Some 20 roundings of terms that shrink by 0.03 each: 5e-16, 2.3 units of the last place.
            assert abs(Decimal(ours) - truth) <= Decimal("5e-16") * abs(truth)


def test_logarithm_of_one_is_zero() -> None:
    assert natural_log(np.ones(1)).tolist() == [0.0]


def _probes() -> np.ndarray:
    """Return numbers whose lower tail (1 - |u|)/2 is exact in float64: centre, tail, and far tail."""
    grid = np.arange(1, 2**10) / 2**10
    far = 1 - 2.0 ** -np.arange(11, 54)
    return np.concatenate([grid, -grid, far, -far, 2.0 ** -np.arange(1, 50)])


def test_quantile_agrees_with_scipy_and_the_standard_library() -> None:
    u = _probes()
    ours, lower = normal_quantile(u), (1 - np.abs(u)) / 2
    # Of scipy's ndtri and AS 241 each states about 1e-16; the sum of some 40 roundings stays below 2e-15.
    np.testing.assert_allclose(ours, -np.sign(u) * ndtri(lower), rtol=2e-15, atol=0)
    # Where 0.5 - p loses nothing in the library's own first step.
    expected = [math.copysign(NormalDist().inv_cdf(p), s) for p, s in zip(lower, u, strict=True) if p < 0.5]
    np.testing.assert_allclose(ours[lower < 0.5], expected, rtol=2e-15, atol=0)


def test_quantile_does_not_depend_on_its_neighbours() -> None:
    u = SITE.uniform(40_000)
    single = [normal_quantile(u[i : i + 1])[0] for i in range(0, 40_000, 400)]
    assert normal_quantile(u)[::400].tolist() == single
    assert np.array_equal(normal_quantile(-u), -normal_quantile(u))


def test_normal_numbers_are_normal() -> None:
    values = SITE.normal(200_000)
    # Standard errors of mean, variance and kurtosis: sqrt(1/N), sqrt(2/N), sqrt(24/N); 5 of each.
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.size)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / values.size)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 1000])
def test_tree_sum_of_integers_is_exact(length: int) -> None:
    terms = np.arange(2.0 * length).reshape(2, length)
    expected = [sum(range(length)), sum(range(length, 2 * length))]
    assert tree_sum(terms).tolist() == expected


def test_tree_sum_has_the_stated_order() -> None:
    a, b, c, d, e = terms = [1.0, 1e-16, 3e16, -3e16, 7e-17]
    assert tree_sum(np.array(terms)).item() == ((a + d) + c) + (b + e)


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    first = SITE.frame(3, 20)
    SITE.normal(100)
    SITE.generator()
    assert np.array_equal(SITE.frame(3, 20), first)
    assert np.array_equal(SITE.words(5), SITE.words(50)[:5])


def test_streams_and_addresses_differ() -> None:
    variants = [
        SITE.words(4),
        SITE.words(4, stream=1),
        Draws(seed=1, site=SITE.site, factor="A").words(4),
        Draws(seed=0, site=SITE.site, factor="B").words(4),
        Draws(seed=0, site="encoder.layer.1.query", factor="A").words(4),
    ]
    assert len({word for words in variants for word in words.tolist()}) == 20


def test_subset_is_a_sorted_choice_without_repeats_that_favours_none() -> None:
    counts = np.zeros(10)
    for seed in range(1000):
        chosen = Draws(seed=seed, site="s", factor="B").subset(3, 10)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == 3
        counts[chosen] += 1
    # Each number is chosen with probability 0.3: 5 standard errors of a binomial count.
    assert np.abs(counts - 300).max() < 5 * math.sqrt(1000 * 0.3 * 0.7)


def test_torch_generator_follows_from_the_address_and_leaves_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    first, again = (torch.rand(4, generator=SITE.generator()) for _ in range(2))
    other = torch.rand(4, generator=Draws(seed=0, site=SITE.site, factor="B").generator())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_numbers_leave_the_global_generators_alone() -> None:
    before = torch.random.get_rng_state(), pickle.dumps(np.random.get_state())
    SITE.frame(2, 9)
    SITE.normal(9)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == pickle.dumps(np.random.get_state())


def test_digest_is_the_hash_of_type_shape_and_little_endian_values() -> None:
    tensor = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = hashlib.sha256(b"float32 2x3\n" + struct.pack("<6f", 1, 2, 3, 4, 5, 6)).hexdigest()
    assert digest(tensor) == expected
    assert digest(tensor.T.contiguous().T) == expected
    assert digest(torch.nn.Parameter(tensor)) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int32])
def test_digest_tells_types_and_shapes_apart(dtype: torch.dtype) -> None:
    zeros = torch.zeros(2, 3, dtype=dtype)
    others = [torch.zeros(2, 3), zeros.reshape(3, 2), zeros.reshape(6), torch.zeros(0, dtype=dtype), zeros[0, 0]]
    assert len({digest(zeros), *map(digest, others)}) == 6


def test_digest_of_a_tensor_without_values_is_refused() -> None:
    with pytest.raises(SpecError, match="meta device"):
        digest(torch.empty(2, device="meta"))
