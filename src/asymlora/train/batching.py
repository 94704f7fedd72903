"""The order in which training texts are seen: batches of similar length, shuffled, the same in every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

_BATCHES_PER_POOL = 50


class LengthGroupedSampler(Sampler[int]):
    """Indices such that consecutive ``batch_size`` of them have similar lengths, in an order of its own each epoch.

    The rows are shuffled, cut into pools of 50 batches, sorted by length within a pool, and the batches of all pools
    shuffled. The order depends on the seed and the epoch only, so a resumed run sees what the first would have seen,
    and so do several processes that take a share of each batch. For their sake the rows that fill no batch are left
    out of an epoch; the next one shuffles anew. (The sampler of transformers draws from the global generator, and
    leaves each pool running from long to short.)

    Args:
        lengths: Length of each row, in tokens.
        batch_size: Rows per batch, of all processes together.
        seed: Seed of the order.
        told: Called with each epoch: rows that are augmented change with it.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: int, told: Callable[[int], None] | None = None
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.told = told
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; called by the Trainer at the start of each epoch."""
        self.epoch = epoch
        if self.told is not None:
            self.told(epoch)

    def __len__(self) -> int:
        rows = len(self.lengths)
        return rows - rows % self.batch_size or rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        full = len(order) - len(order) % self.batch_size
        pool = _BATCHES_PER_POOL * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, full, pool):
            rows = sorted(order[start : min(start + pool, full)], key=lambda i: -self.lengths[i])
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[i]
        if not full:
            yield from order
