"""Adapting a frozen base, sweeping the learning rate in octaves, comparing arms by seed, and records on disk."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from asymlora import AdapterSpec, attach, param_groups
from asymlora.atomic import write_file
from asymlora.errors import SpecError
from asymlora.theory.best_rates import best_rate
from asymlora.train.run_folder import environment
from small_nets import Parts, Training, evaluate, train_steps

RESULTS = Path(__file__).parent / "results"


def adapt(
    base: nn.Module,
    spec: AdapterSpec,
    parts: Parts,
    training: Training,
    *,
    seed: int,
    rate: float | Callable[[nn.Module], float],
) -> dict[str, Any]:
    """Adapt a copy of a frozen base and return what came out.

    Args:
        base: The pretrained net; left as it is.
        spec: The adapter.
        parts: The downstream task.
        training: The settings.
        seed: Seed of the batches.
        rate: Learning rate of every trained factor per step, or a function of the attached model that gives it.

    Returns:
        A record: rate, digest of the batches, losses and accuracies after the last step.
    """
    net = attach(copy.deepcopy(base), spec)
    lr = rate(net) if callable(rate) else rate
    order = train_steps(net, torch.optim.AdamW(param_groups(net, lr=lr)), parts.train, training, seed=seed)
    record: dict[str, Any] = {"seed": seed, "rate": lr, "batches": order}
    for part, rows in parts._asdict().items():
        record[f"{part}_loss"], record[f"{part}_accuracy"] = evaluate(net, rows)
    return record


def sweep_octaves(
    run: Callable[[float], Iterable[dict[str, Any]]], exponents: Sequence[int], *, most: int
) -> list[dict[str, Any]]:
    """Run octaves of rates, and more, until the best by validation loss is interior.

    Args:
        run: Gives the records of one rate, one a seed.
        exponents: Neighbouring whole numbers ``e``, rising; the rates are ``2^e``.
        most: Rates after which to stop all the same.

    Returns:
        All records, by rising rate.
    """
    found = {exponent: list(run(2.0**exponent)) for exponent in exponents}
    while len(found) < most:
        records = [record for exponent in sorted(found) for record in found[exponent]]
        best = best_rate(records, loss="validation_loss")
        if not best.at_edge:
            break
        more = min(found) - 1 if best.argmin == 2.0 ** min(found) else max(found) + 1
        found[more] = list(run(2.0**more))
    return [record for exponent in sorted(found) for record in found[exponent]]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (not a number for one value)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return float(tensor.mean()), float(tensor.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


def paired(records: Iterable[Mapping[str, Any]], first: str, second: str, column: str) -> tuple[float, float]:
    """Return mean and standard error over seeds of ``first - second``, two schemes among the records.

    Args:
        records: Rows with ``scheme``, ``seed`` and the column, each pair once.
        first: A scheme.
        second: Another one, with the same seeds.
        column: What to compare.

    Returns:
        Both numbers.

    Raises:
        SpecError: The seeds of the two differ.
    """
    values: dict[str, dict[int, float]] = {first: {}, second: {}}
    for record in records:
        if record["scheme"] in values:
            values[record["scheme"]][record["seed"]] = record[column]
    if set(values[first]) != set(values[second]):
        raise SpecError(
            f"{first} ran with seeds {sorted(values[first])}, {second} with {sorted(values[second])}: a paired"
            " difference needs the same ones. Run what is missing."
        )
    return mean_and_error([values[first][seed] - values[second][seed] for seed in sorted(values[first])])


def write_records(path: Path, settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write the settings and what they ran on as the first line, then one record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {**environment(), "processor": torch.backends.cpu.get_cpu_capability()}
    first = {"kind": "settings", **settings, "environment": machine}
    write_file(path, "".join(json.dumps(record) + "\n" for record in (first, *records)))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, the settings first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_command(
    name: str,
    words: str | None,
    ways: Mapping[str, Any],
    *,
    measure: Callable[[Any], Sequence[Mapping[str, Any]]],
    table: Callable[[Sequence[Mapping[str, Any]]], object],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse the arguments of an experiment, run it, print its table and write its records.

    Args:
        name: Of the records file.
        words: What the experiment is.
        ways: Settings of the whole run (``full``) and of a short one (``quick``), dataclasses with ``seeds``.
        measure: Returns the records of some settings.
        table: Returns what is printed of records.
        arguments: Those of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help=f"number of paired seeds (default {len(ways['full'].seeds)})")
    parser.add_argument("--quick", action="store_true", help="small net, two rates: shows that the script runs")
    parser.add_argument("--threads", type=int, default=1, help="one is fastest for nets this small (default)")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.jsonl")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    settings = ways["quick" if given.quick else "full"]
    if given.seeds is not None:
        if given.seeds < 1:
            parser.error(f"--seeds {given.seeds} must be at least 1")
        settings = replace(settings, seeds=tuple(range(given.seeds)))
    records = measure(settings)
    write_records(given.output, asdict(settings), records)
    Console().print(table(records))
