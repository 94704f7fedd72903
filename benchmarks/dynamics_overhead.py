"""What `FeatureDynamics` adds to the time of a training loop, and the memory that it keeps.

MiniLM (16 texts of 128 tokens, 36 adapted layers, rank 8, AdamW) in a plain loop. Everything that is done in
training is done inside ``optimizer.step()``, so forward and backward passes, whose times vary by more than is
looked for, are timed by themselves: each round has one pass before a plain step, one before a step that the hooks
only count, one before a step that is measured. Quoted is the time of an interval, ``(pass + (measured + (every - 1)
* counted) / every) / (pass + plain) - 1``, with the median pass of all, from medians over the rounds, with the 5-95
% interval over resampled rounds. Steps 1, 2 and 3 of a run are measured besides. Writes
``results/dynamics_overhead.json``.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.tasks.classifiers import load_classifier
from asymlora.tasks.inputs import ModelRecipe
from side_by_side import environment, in_turn, median, time_ratio, write

ARMS = {"B-only": "b_only", "LoRA": "lora"}
LIMIT = 0.03
"""What the interval may add."""


def probe_batch(rows: int, tokens: int) -> dict[str, Tensor]:
    """Return texts of random words, all of full length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (rows, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 2}


class Loop:
    """A loop of AdamW around one model, which tells the times of its passes and of its steps."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor], dynamics: al.FeatureDynamics | None) -> None:
        self.model, self.batch, self.dynamics = model, batch, dynamics
        self.optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-3))
        self.passes: list[float] = []
        self.steps: list[float] = []

    def step(self) -> None:
        """Take one step, as any loop does."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(**self.batch).loss.backward()
        between = time.perf_counter()
        if self.dynamics is None:
            self.optimizer.step()
        else:
            self.dynamics.records.clear()
            with self.dynamics:  # the hooks are global: they hang for this loop's steps only
                self.optimizer.step()
        self.passes.append(between - started)
        self.steps.append(time.perf_counter() - between)


def measure(base: nn.Module, preset: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one way to train."""
    batch = probe_batch(options.rows, options.tokens)
    models = {
        way: al.attach(copy.deepcopy(base), al.AdapterSpec.parse(preset, rank=8)).train()
        for way in ("plain", "counted", "measured")
    }
    started = time.perf_counter()
    measured = al.FeatureDynamics(models["measured"], batch, every=1)
    construction_s = time.perf_counter() - started
    counted = al.FeatureDynamics(models["counted"], batch, every=10**9)
    counted.step = 10
    given = {"plain": None, "counted": counted, "measured": measured}
    loops = {way: Loop(models[way], batch, given[way]) for way in given}
    in_turn({way: loop.step for way, loop in loops.items()}, seconds=options.seconds, least=15)
    # The first round warms up: caches, and what is allocated once.
    steps = {way: loop.steps[1:] for way, loop in loops.items()}
    passing = median([value for loop in loops.values() for value in loop.passes[1:]])
    rest = options.every - 1
    interval = [(m + rest * c) / (rest + 1) for m, c in zip(steps["measured"], steps["counted"], strict=True)]
    taken = {way: [passing + value for value in values] for way, values in (*steps.items(), ("interval", interval))}
    times = {way: time_ratio(taken, way, "plain") for way in ("counted", "measured", "interval")}
    return {
        "sites": len(list(al.sites(models["plain"]))),
        "rounds": len(steps["plain"]),
        "plain_ms": 1e3 * median(taken["plain"]),
        "measuring_ms": 1e3 * (median(steps["measured"]) - median(steps["plain"])),
        "construction_ms": 1e3 * construction_s,
        **{f"{way}_adds": tuple(ratio - 1 for ratio in times[way]) for way in times},
        "probe_bytes": measured.probe.kept_bytes,
        "kept_bytes": measured.kept_bytes,
    }


def main() -> None:
    """Parse the arguments, measure, print and write."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=90.0, help="seconds of measurement for each row")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    base, _ = load_classifier(ModelRecipe(name="embedded:minilm-l6"), label_names=("x", "y"))
    rows: list[dict[str, Any]] = []
    print(f"| trained | step, ms | counting adds | measuring takes, ms | every {options.every} adds (5-95 %) | kept |")
    print("|---|---|---|---|---|---|")
    for name, preset in ARMS.items():
        row = measure(base, preset, options)
        rows.append({"trained": name, **row})
        adds = row["interval_adds"]
        print(
            f"| {name} | {row['plain_ms']:.0f} | {row['counted_adds'][0]:.2%} | {row['measuring_ms']:.1f} |"
            f" {adds[0]:.2%} ({adds[1]:.2%} to {adds[2]:.2%}) | {row['kept_bytes'] / 2**20:.1f} MiB |",
            flush=True,
        )
    worst = max(row["interval_adds"][0] for row in rows)
    print(f"\nlargest: {worst:.2%}, {'within' if worst <= LIMIT else 'above'} the limit of {LIMIT:.0%}")
    facts = {"every": options.every, "rows_of_text": options.rows, "tokens": options.tokens, "limit": LIMIT}
    if not options.no_write:
        write("dynamics_overhead", rows, **facts)


if __name__ == "__main__":
    main()
