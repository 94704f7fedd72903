"""Time several ways of doing the same step in one run, in turn, and put the figures down with their spread.

Ways take turns round by round, so that a drift of the machine meets all of them. Quoted are medians; the spread of a
ratio of medians is its 5 % to 95 % interval over resampled rounds.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_RESAMPLES = 400


def in_turn(steps: Mapping[str, Callable[[], object]], *, seconds: float, least: int = 7) -> dict[str, list[float]]:
    """Run the steps in turn until the time is up and return the seconds of each, round by round."""
    order = list(steps)
    for name in order:
        steps[name]()
    started = time.perf_counter()
    for name in order:
        steps[name]()
    once = time.perf_counter() - started
    rounds = max(least, min(400, math.ceil(seconds / once)))
    taken: dict[str, list[float]] = {name: [] for name in order}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            # Another one goes first in each round: who comes after whom matters to the caches.
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                started = time.perf_counter()
                steps[name]()
                taken[name].append(time.perf_counter() - started)
    finally:
        gc.enable()
    return taken


def median(taken: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(taken)


def overhead_ratio(
    taken: Mapping[str, Sequence[float]], ours: str, theirs: str, floor: str = "floor"
) -> tuple[float, float, float]:
    """Return ``(ours - floor) / (theirs - floor)`` of the medians, and its 5 % and 95 % bounds over resampling."""

    def of(rows: Mapping[str, Sequence[float]]) -> float:
        base = median(rows[floor])
        return (median(rows[ours]) - base) / max(median(rows[theirs]) - base, 1e-9)

    return (of(taken), *_interval(taken, of))


def time_ratio(taken: Mapping[str, Sequence[float]], ours: str, theirs: str) -> tuple[float, float, float]:
    """Return ``ours / theirs`` of the medians, and its 5 % and 95 % bounds over resampled rounds."""

    def of(rows: Mapping[str, Sequence[float]]) -> float:
        return median(rows[ours]) / median(rows[theirs])

    return (of(taken), *_interval(taken, of))


def _interval(
    taken: Mapping[str, Sequence[float]], of: Callable[[Mapping[str, Sequence[float]]], float]
) -> tuple[float, float]:
    draw = random.Random(0)
    rounds = len(next(iter(taken.values())))
    found: list[float] = []
    for _ in range(_RESAMPLES):
        chosen = [draw.randrange(rounds) for _ in range(rounds)]  # whole rounds, as they were run side by side
        found.append(of({name: [rows[i] for i in chosen] for name, rows in taken.items()}))
    found.sort()
    return found[len(found) // 20], found[-1 - len(found) // 20]


def geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean; a ratio at or below nothing counts as one hundredth."""
    return math.exp(sum(math.log(max(ratio, 0.01)) for ratio in ratios) / len(ratios))


def shown(ratio: tuple[float, float, float]) -> str:
    """Return a ratio with its spread, ``0.31 (0.28-0.35)``."""
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"


def environment() -> dict[str, Any]:
    """Return versions, threads and kind of machine, for the results file."""
    packages = ("asymlora", "torch", "peft", "transformers", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def write(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Write the rows and what they were measured on as ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": environment(), **facts, "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
