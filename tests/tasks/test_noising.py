from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymlora.tasks.noising import infill, noise, span_lengths

MASK = -1


def _random(*address: int) -> np.random.Generator:
    return np.random.default_rng(list(address))


@given(total=st.integers(0, 60), mean=st.floats(0.1, 9), seed=st.integers(0, 99))
def test_spans_cover_as_many_tokens_as_asked_for(total: int, mean: float, seed: int) -> None:
    lengths = span_lengths(total, mean=mean, random=_random(seed))
    assert sum(lengths) == total
    assert min(lengths, default=0) >= 0


def test_span_lengths_are_those_of_a_poisson_distribution() -> None:
    # All but the last, which is cut. A mean and a variance of 3: five standard errors, failure below 1e-5.
    lengths = np.array(span_lengths(60_000, mean=3.0, random=_random(1))[:-1])
    assert abs(lengths.mean() - 3) < 5 * math.sqrt(3 / len(lengths))
    assert abs((lengths == 0).mean() - math.exp(-3)) < 5 * math.sqrt(math.exp(-3) / len(lengths))
    # Var of a sample variance of Poisson(3): (mu4 - var^2) / n with mu4 = 3 + 3 * 9.
    assert abs(lengths.var() - 3) < 5 * math.sqrt((30 - 9) / len(lengths))


@given(length=st.integers(1, 50), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_infilling_hides_the_share_and_keeps_the_rest_in_order(length: int, share: float, seed: int) -> None:
    tokens = list(range(length))
    source, hidden = infill(tokens, mask=MASK, random=_random(seed), share=share, mean_span=3.0)
    spans = span_lengths(math.ceil(share * length), mean=3.0, random=_random(seed))
    assert sum(hidden) == math.ceil(share * length)
    assert len(hidden) == length
    assert source.count(MASK) == len(spans)
    assert [token for token in source if token != MASK] == [
        t for t, gone in zip(tokens, hidden, strict=True) if not gone
    ]


@given(length=st.integers(1, 30), seed=st.integers(0, 99))
def test_each_span_is_one_mask_where_it_was(length: int, seed: int) -> None:
    tokens = list(range(length))
    source, hidden = infill(tokens, mask=MASK, random=_random(seed), share=0.3, mean_span=3.0)
    for before, after in pairwise(source):
        if MASK not in (before, after):
            assert after == before + 1  # nothing is hidden without a mask in its place
    assert all(hidden) or source[0] in (0, MASK)


@pytest.mark.parametrize(("share", "source"), [(0.0, [0, 1, 2, 3]), (1.0, None)])
def test_nothing_or_everything_can_be_hidden(share: float, source: list[int] | None) -> None:
    made, hidden = infill([0, 1, 2, 3], mask=MASK, random=_random(2), share=share, mean_span=3.0)
    assert made == source if source else set(made) == {MASK}
    assert set(hidden) == {bool(share)}


def test_every_place_of_a_span_is_equally_likely() -> None:
    # One span of one token (a mean of 50 is cut to it) among 4: 4 places, 4,000 draws, five standard errors.
    places = Counter(
        infill([0, 1, 2, 3], mask=MASK, random=_random(seed), share=0.25, mean_span=50.0)[1].index(True)
        for seed in range(4000)
    )
    assert set(places) == {0, 1, 2, 3}
    assert all(abs(count - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75) for count in places.values())


def test_every_order_of_the_sentences_is_equally_likely() -> None:
    orders = Counter(tuple(noise([[1, 2], [3], [4]], mask=MASK, address=(i,), share=0).source) for i in range(3000))
    assert len(orders) == 6
    assert {o.index(2) - o.index(1) for o in orders} == {1}
    assert all(abs(count - 500) < 5 * math.sqrt(3000 / 6 * 5 / 6) for count in orders.values())


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), row=st.integers(0, 99))
def test_hidden_tokens_are_marked_in_the_order_of_the_target(lengths: list[int], row: int) -> None:
    ends = np.cumsum([0, *lengths]).tolist()
    sentences = [list(range(a, b)) for a, b in pairwise(ends)]
    noised = noise(sentences, mask=MASK, address=(0, 0, row))
    assert noised.target == list(range(ends[-1]))
    gone = {token for token, hidden in zip(noised.target, noised.hidden, strict=True) if hidden}
    assert gone == set(noised.target) - set(noised.source)
    assert len(gone) == math.ceil(0.3 * ends[-1])


def test_noise_follows_from_its_address_alone() -> None:
    sentences = [list(range(20)), list(range(20, 45))]
    first = noise(sentences, mask=MASK, address=(0, 1, 2))
    noise(sentences, mask=MASK, address=(0, 1, 3))
    assert noise(sentences, mask=MASK, address=(0, 1, 2)) == first
    others = [noise(sentences, mask=MASK, address=address) for address in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1))]
    assert len({tuple(noised.source) for noised in (first, *others)}) == 5


def test_the_source_is_shorter_by_what_is_hidden_and_longer_by_the_masks() -> None:
    noised = noise([list(range(50))], mask=MASK, address=(3,))
    assert len(noised.source) == 50 - 15 + noised.source.count(MASK)
