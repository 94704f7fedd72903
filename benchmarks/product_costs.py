"""Measure the thin products of an adapted layer, each layout, and fit the costs that `asymlora.orders` chooses by.

Prints microseconds by layout, then for each product the cost model ``call + entries * (entry + rank * r)`` fitted by
least squares of relative errors, beside what `CPU_COSTS` holds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymlora import cpu_kernel
from asymlora.orders import KERNEL_COSTS, TORCH_COSTS
from side_by_side import environment, in_turn, median, write

SHAPES = tuple(itertools.product((384, 768, 1024), (128, 512, 1024, 4096), (4, 8, 16, 32, 64)))


def products(width: int, tokens: int, rank: int) -> dict[str, Callable[[], Tensor]]:
    """Return the products of a square layer, by name and layout."""
    x, W = torch.randn(tokens, width), torch.randn(width, width)
    A, B = torch.randn(rank, width), torch.randn(width, rank)
    narrow, tokens_first, along_rows = torch.randn(rank, tokens), torch.randn(tokens, rank), B.t().contiguous()
    out = torch.randn(tokens, width)
    kernel = cpu_kernel.kernel()
    assert kernel is not None, cpu_kernel.status()
    return {
        "kernel: code": lambda: kernel.code(x, A),
        "kernel: update": lambda: kernel.add(out, x, A, along_rows, 1e-3, code=tokens_first),
        "base": lambda: torch.mm(x, W.t()),
        "fold": lambda: torch.addmm(W, B, A, alpha=2.0),
        "expand": lambda: out.addmm_(tokens_first, along_rows, alpha=1e-3),
        "expand, from (r, T)": lambda: out.addmm_(narrow.t(), along_rows, alpha=1e-3),
        "expand, B as (m, r)": lambda: out.addmm_(tokens_first, B.t(), alpha=1e-3),
        "reduce to (r, T)": lambda: torch.mm(A, x.t()),
        "reduce to (T, r)": lambda: torch.mm(x, A.t()),
        "gradient as (r, m)": lambda: torch.mm(tokens_first.t(), x),
        "gradient as (m, r)": lambda: torch.mm(x.t(), tokens_first),
        "add": lambda: x + out,
    }


def fitted(rows: list[dict[str, Any]], name: str, entries: Callable[[dict[str, Any]], int]) -> tuple[float, ...]:
    """Return ``call``, ``entry`` and ``rank`` of a product, by least squares of the relative error."""
    seconds = np.array([row["seconds"][name] for row in rows])
    terms = np.array([(1.0, entries(row), entries(row) * row["rank"]) for row in rows])
    found, *_ = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(rows)), rcond=None)
    return tuple(float(value) for value in found)


def main() -> None:
    """Measure, fit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for each shape")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    names = list(products(8, 8, 1))
    print(f"| width | tokens | rank | {' | '.join(names)} |\n|---|---|---|{'---|' * len(names)}")
    for width, tokens, rank in SHAPES:
        taken = in_turn(products(width, tokens, rank), seconds=arguments.seconds)
        seconds = {name: median(values) for name, values in taken.items()}
        rows.append({"width": width, "tokens": tokens, "rank": rank, "seconds": seconds})
        print(f"| {width} | {tokens} | {rank} | {' | '.join(f'{1e6 * s:.0f}' for s in seconds.values())} |", flush=True)
    of_tokens, of_weight = (lambda row: row["tokens"] * row["width"]), (lambda row: row["width"] ** 2)
    models = {
        "fold": fitted(rows, "fold", of_weight),
        "expand": fitted(rows, "expand", of_tokens),
        "reduce": fitted(rows, "reduce to (T, r)", of_tokens),
        "add": fitted(rows, "add", of_tokens),
        "kernel expand": fitted(rows, "kernel: update", of_tokens),
        "kernel reduce": fitted(rows, "kernel: code", of_tokens),
    }
    held = TORCH_COSTS._asdict() | {f"kernel {name}": cost for name, cost in KERNEL_COSTS._asdict().items()}
    for name, found in models.items():
        print(name, "measured", [f"{value:.3g}" for value in found], "held", [f"{v:.3g}" for v in held[name]])
    write("product_costs", rows, fitted=models)
    print(environment())


if __name__ == "__main__":
    main()
