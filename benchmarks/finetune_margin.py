"""What the first command buys: the embedded default over seeds, adapter against the head alone.

Each seed divides the films anew, draws another frozen ``A``, and another order and dropout. The gain is paired by test
row. With ``--rates`` it runs one seed at several learning rates instead and reports validation figures only: that is
how the default rate was chosen. Prints a table and writes JSON beside this file, in ``results/``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from asymlora import Recipe, finetune
from asymlora.train.callbacks import quiet_transformers
from asymlora.train.run_folder import environment

RESULTS = Path(__file__).parent / "results"
_STORED = {"baseline": "head_alone_accuracy", "score": "accuracy", "validation": "validation_accuracy"}
"""Names of the figures as they are stored: the metric of this run is accuracy."""


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the default recipe with some settings changed and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        return finetune(Recipe.from_dict(settings), output=Path(folder) / "run").to_dict()


def seeds(chosen: Iterable[int]) -> list[dict[str, Any]]:
    """Return one result a seed."""
    rows: list[dict[str, Any]] = []
    for seed in chosen:
        result = measure({"data": {"seed": seed}, "adapter": {"seed": seed}, "train": {"seed": seed}})
        rows.append({"seed": seed, **{_STORED.get(key, key): value for key, value in result.items()}})
        print(
            f"| {seed} | {result['baseline']:.1%} | {result['score']:.1%} |"
            f" {100 * result['gain']:+.1f} ± {100 * result['gain_standard_error']:.1f} |"
            f" {result['train_seconds']:.0f} | {result['total_seconds']:.0f} |",
            flush=True,
        )
    return rows


def rates(values: list[float]) -> list[dict[str, Any]]:
    """Return one result a learning rate, at seed 0."""
    rows: list[dict[str, Any]] = []
    for rate in values:
        result = measure({"train": {"lr": rate}})
        kept = {_STORED.get(key, key): result[key] for key in ("validation", "best_step", "steps", "train_seconds")}
        rows.append({"lr": rate, **kept})
        print(f"| {rate:g} | {result['validation']:.1%} | {result['best_step']} |", flush=True)
    return rows


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", type=int, help="measure this seed anew and replace its stored row")
    parser.add_argument("--rates", type=float, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet_transformers()
    if arguments.rates:
        print("| learning rate | validation accuracy | best step |\n|---|---|---|")
        name, rows = "finetune_rates", rates(arguments.rates)
    else:
        print("| seed | head alone | adapter | gain, points | training, s | command, s |\n|---|---|---|---|---|---|")
        name = "finetune_margin"
        rows = seeds(range(arguments.seeds) if arguments.again is None else [arguments.again])
        if arguments.again is not None:
            stored = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
            rows = sorted([row for row in stored if row["seed"] != arguments.again] + rows, key=lambda row: row["seed"])
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": environment(), "recipe": Recipe().to_dict(), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
