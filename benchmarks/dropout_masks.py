"""What dropout costs that keeps one bit a value, against drawing the mask again from a seed, and torch's own.

For each shape: drawing, dropping and what is kept (forward), and dropping again (backward).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from asymlora.dropout import drop, drop_again
from side_by_side import environment, in_turn, median, write

SHAPES = ((128, 384), (1024, 768), (4096, 1024))
P = 0.1


def by_seed(x: Tensor, seed: int) -> Tensor:
    """Drop by a mask that is drawn from a seed by torch's Bernoulli generator."""
    kept = torch.empty_like(x).bernoulli_(1 - P, generator=torch.Generator().manual_seed(seed))
    return kept.mul_(x).mul_(1 / (1 - P))


def by_seeded_words(x: Tensor, seed: int) -> Tensor:
    """Drop by the 16-bit draws of `asymlora.dropout`, drawn again from a seed."""
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None, generator=torch.Generator().manual_seed(seed))
    kept = words.view(torch.int16)[: x.numel()] >= round(P * 65536) - 32768
    return kept.view(torch.uint8).view(x.shape).to(x.dtype).mul_(x).mul_(1 / (1 - P))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    print(
        "| tokens x width | torch, mask kept | bits: forward | bits: backward | seed, Bernoulli | seed, 16-bit words |"
    )
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        x = torch.randn(shape)
        _, bits = drop(x, P)
        ways = {
            "torch": lambda x=x: F.dropout(x, P, True),
            "bits_forward": lambda x=x: drop(x, P),
            "bits_backward": lambda x=x, bits=bits: drop_again(x, bits, P),
            "seed": lambda x=x: by_seed(x, 1),
            "seeded_words": lambda x=x: by_seeded_words(x, 1),
        }
        seconds = {name: median(values) for name, values in in_turn(ways, seconds=3.0).items()}
        rows.append(
            {"shape": shape, "p": P, "bytes_kept": bits.numel(), "bytes_of_x": 4 * x.numel(), "seconds": seconds}
        )
        print(f"| {shape[0]} x {shape[1]} | {' | '.join(f'{1e3 * s:.2f} ms' for s in seconds.values())} |", flush=True)
    write("dropout_masks", rows)
    print(environment())


if __name__ == "__main__":
    main()
