"""How often a sweep of equal arms calls one better, and how often one finds an arm that is. No model.

Made-up rows go through the whole of `asymlora.sweep.analysis.analyse`: tuning runs at six rates with two seeds, the
best rate of each arm, closing runs there with fresh seeds. Every arm has the same curve over rates and the same noise:
a part that arms share by seed, and a part of its own. What differs by luck is the rate that each arm is given, and
that luck is in all of its closing runs. The verdicts must allow for it: without, equal arms are told apart too often.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asymlora.atomic import write_file
from asymlora.sweep.analysis import analyse
from asymlora.sweep.run_record import Phase, RunRow
from asymlora.sweep.summary import Summary
from asymlora.train.run_folder import environment

RESULTS = Path(__file__).parent / "results" / "null_sweeps.jsonl"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ROWS = 2000
SWEEPS = 400


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """How made-up runs come out.

    Attributes:
        arms: Their number.
        closing: Closing seeds.
        fall: What the metric loses one decade from the best rate; it falls with the square.
        own: Standard deviation of a run's own noise.
        shared: Standard deviation of the part that runs of one seed share.
        gain: What the first arm has above the others.
    """

    arms: int = 3
    closing: int = 8
    fall: float = 0.02
    own: float = 0.006
    shared: float = 0.006
    gain: float = 0.0


def sweep(world: MadeUp, *, seed: int) -> Summary:
    """Return what `analyse` finds in one made-up sweep.

    Args:
        world: How runs come out.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    names = [f"arm{number}" for number in range(world.arms)]
    tuning, closing = (100, 101), tuple(range(world.closing))
    common = {each: rng.normal(0, world.shared) for each in (*tuning, *closing)}
    plan = {"arms": names, "rates": RATES, "grow": False, "tuning_seeds": tuning, "closing_seeds": closing}

    def run(name: str, lr: float, each: int, phase: Phase) -> RunRow:
        decades = np.log10(lr) - np.log10(2e-3)
        level = 0.9 - world.fall * decades**2 + (world.gain if name == names[0] else 0.0) + common[each]
        validation, test = (round((level + rng.normal(0, world.own)) * ROWS) / ROWS for _ in range(2))
        return RunRow(
            id=f"{name} {lr} {each} {phase}",
            phase=phase,
            arm=name,
            axes={},
            seed=each,
            repeat=0,
            lr=lr,
            rank=8,
            recipe={},
            status="finished",
            metric="accuracy",
            validation=validation,
            test={"accuracy": test} if phase == "closing" else None,
        )

    rows = [run(name, lr, each, "tuning") for name in names for lr in RATES for each in tuning]
    best = {cell.arm: cell.best_rate for cell in analyse(plan, rows).cells}
    rows += [run(name, rate, each, "closing") for name, rate in best.items() if rate for each in closing]
    # The verdicts do not look at the intervals, so those may be coarse.
    return analyse(plan, rows, resamples=99)


def shares(world: MadeUp, seeds: Sequence[int]) -> dict[str, float]:
    """Return the shares of sweeps with a decided pair: by the verdicts, and by the corrected p alone."""
    found = [sweep(world, seed=seed).comparisons for seed in seeds]
    return {
        "verdicts": sum(any(pair.better for pair in pairs) for pairs in found) / len(found),
        "p alone": sum(any((pair.p_adjusted or 1.0) <= 0.05 for pair in pairs) for pairs in found) / len(found),
    }


def main() -> None:
    """Run the simulation, print its table and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=SWEEPS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    worlds = [
        MadeUp(arms=arms, closing=closing, fall=fall, shared=shared, gain=gain)
        for arms, closing in ((2, 6), (3, 8), (3, 12))
        for fall in (0.02, 0.1)
        for shared, gain in ((0.0, 0.0), (0.006, 0.0), (0.006, 0.02))
    ]
    records = [{**vars(world), **shares(world, range(options.sweeps))} for world in worlds]
    first = {"kind": "settings", "sweeps": options.sweeps, "environment": environment()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.output, "".join(json.dumps(record) + "\n" for record in (first, *records)))
    columns = ("arms", "closing", "fall", "shared", "gain", "verdicts", "p alone")
    table = Table(*columns)
    for record in records:
        table.add_row(*(f"{record[column]:g}" for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
