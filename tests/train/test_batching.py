from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from asymlora.train.batching import LengthGroupedSampler


def _lengths(count: int, *, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(5, 64) for _ in range(count)]


def _order(lengths: list[int], *, batch_size: int = 8, seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = LengthGroupedSampler(lengths, batch_size=batch_size, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def _batches(order: list[int], lengths: list[int], batch_size: int) -> list[list[int]]:
    """Lengths of each batch."""
    return [[lengths[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]


def _padding(order: list[int], lengths: list[int], batch_size: int) -> int:
    return sum(len(batch) * max(batch) - sum(batch) for batch in _batches(order, lengths, batch_size))


@pytest.mark.parametrize(("rows", "batch_size"), [(1000, 8), (1003, 8), (401, 1), (7, 8), (8, 8), (1, 4), (900, 2)])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_sees_its_rows_once_and_leaves_out_fewer_than_a_batch(
    rows: int, batch_size: int, epoch: int
) -> None:
    order = _order(_lengths(rows), batch_size=batch_size, epoch=epoch)
    assert len(set(order)) == len(order) == (rows - rows % batch_size or rows)
    assert set(order) <= set(range(rows))


def test_length_is_the_number_of_rows() -> None:
    assert len(LengthGroupedSampler(_lengths(37), batch_size=8, seed=0)) == 32


def test_epoch_and_seed_decide_the_order_and_nothing_else_does() -> None:
    lengths = _lengths(200)
    orders = {(seed, epoch): _order(lengths, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 9
    for (seed, epoch), order in orders.items():
        assert _order(lengths, seed=seed, epoch=epoch) == order


def test_order_of_an_epoch_does_not_depend_on_the_epochs_before() -> None:
    # A resumed run begins at its epoch, without having walked through the earlier ones.
    lengths = _lengths(200)
    walked = LengthGroupedSampler(lengths, batch_size=8, seed=0)
    for epoch in range(3):
        walked.set_epoch(epoch)
        seen = list(walked)
        assert seen == list(walked)
    assert seen == _order(lengths, epoch=2)


def test_global_generators_are_neither_read_nor_moved() -> None:
    lengths = _lengths(200)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _order(lengths)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    random.seed(2)
    assert _order(lengths) == first


@pytest.mark.parametrize(("rows", "batch_size"), [(4000, 8), (4000, 32), (1605, 8)])
def test_padding_is_a_tenth_of_a_random_orders(rows: int, batch_size: int) -> None:
    # A pool of 50 batches sorted over 60 lengths spans about one length a batch; a random batch of 8 or 32 carries
    # the distance from its longest to its mean, about 23 to 28 tokens a row.
    lengths = _lengths(rows)
    shuffled = random.Random(1).sample(range(rows), rows)
    assert _padding(_order(lengths, batch_size=batch_size), lengths, batch_size) < 0.1 * _padding(
        shuffled, lengths, batch_size
    )


def test_rows_of_a_full_batch_have_nearly_the_same_length() -> None:
    lengths = _lengths(1605)
    spans = [max(batch) - min(batch) for batch in _batches(_order(lengths), lengths, 8)[:200]]
    # 400 rows over 60 lengths: 8 sorted neighbours span 1.2 lengths on average.
    assert sum(spans) / len(spans) < 3
    assert max(spans) < 15


def test_batches_do_not_run_from_long_to_short() -> None:
    lengths = _lengths(1600)
    means = [sum(batch) / 8 for batch in _batches(_order(lengths), lengths, 8)]
    falls = sum(one > other for one, other in pairwise(means))
    # Of 199 pairs of a random order half fall, with a standard deviation below 7: five of them either side.
    assert 65 < falls < 135
    # Nor do long batches stand in one half: the difference of two means of 100 uniform draws is 2.4 at one sigma.
    assert abs(sum(means[:100]) - sum(means[100:])) / 100 < 12


@pytest.mark.parametrize(("rows", "batch_size"), [(1605, 8), (83, 8), (81, 16)])
def test_every_batch_is_whole_so_that_processes_can_share_it(rows: int, batch_size: int) -> None:
    lengths = _lengths(rows)
    for epoch in range(3):
        order = _order(lengths, batch_size=batch_size, epoch=epoch)
        batches = _batches(order, lengths, batch_size)
        assert [len(batch) for batch in batches] == [batch_size] * (rows // batch_size)
        # Each batch is one sorted run, from its longest row to its shortest: none straddles a border.
        for batch in batches:
            assert batch == sorted(batch, reverse=True)


def test_rows_that_fill_no_batch_change_from_epoch_to_epoch() -> None:
    lengths = _lengths(83)
    left = {frozenset(range(83)) - frozenset(_order(lengths, epoch=epoch)) for epoch in range(5)}
    assert len(left) == 5
    assert {len(rows) for rows in left} == {3}


def test_each_epoch_is_told() -> None:
    told: list[int] = []
    sampler = LengthGroupedSampler(_lengths(9), batch_size=2, seed=0, told=told.append)
    sampler.set_epoch(4)
    assert told == [4]


def test_who_shares_a_batch_changes_from_epoch_to_epoch() -> None:
    lengths = [10] * 160
    batches = [
        {frozenset(order[i : i + 8]) for i in range(0, 160, 8)} for order in (_order(lengths), _order(lengths, epoch=1))
    ]
    assert not batches[0] & batches[1]
