"""Time of a small sweep in one process beside the same runs as separate processes of PEFT and the stock Trainer.

MiniLM on TREC-6, Init[A] and Init[B], rank 8 on all linear layers, 32 rows a step: three rates on two seeds each, then
two fresh seeds at each arm's best rate, 16 runs of 100 steps, scored four times, of which the best step is kept. Both
sides have the same recipes, rows, heads by chance, AdamW, schedule, groups of similar length and scores; the starts are
drawn by hand in PEFT, which has no name for Init[B] and other variances for Init[A]. The rates are a decade apart, and
such that the arms' best means lie 9 points apart (in experiments/results/trec6_sweep): whether early stopping keeps
the winner can only be seen where there is one. Times are of whole processes, imports included. Three parts: ``sweep``
against ``processes``; ``pruned``: the same sweep with early stopping, against the same processes; ``overhead``: a run
in a session, without its scores, against the bare steps (same batches, forward, backward, clip, optimizer step), in
turn. Writes the rows of these parts into ``results/sweep_time.json`` in place of earlier ones, or beside them with
``--again``, which is how ratios of sweeps, minutes each, get their spread.

The data are not part of this project (``--data-root``: a folder with ``text/trec6``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import side_by_side
from asymlora.optim import param_groups
from asymlora.sweep.axes import parse_arm, parse_rates
from asymlora.sweep.grid import SweepPlan
from asymlora.sweep.loaded_base import LoadedBase
from asymlora.sweep.run_record import RunJob
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.task import Prepared
from asymlora.train.batching import LengthGroupedSampler
from asymlora.train.callbacks import quiet_transformers
from asymlora.train.recipe import Recipe

DATA_ROOT = Path(__file__).parents[2] / "shared" / "data"
ARMS = ("init_a", "init_b")
PARTS = ("overhead", "sweep", "pruned")


def recipe(root: Path, steps: int) -> Recipe:
    """Return what all runs have in common."""
    return Recipe.from_dict(
        {
            "data": {"name": str(root / "text" / "trec6" / "train.jsonl")},
            "adapter": {"preset": "lora", "rank": 8},
            "train": {
                "steps": steps,
                "evaluate_every": max(1, steps // 4),
                "head_start": "random",
                "memory_check": False,
            },
        }
    )


def plan(options: argparse.Namespace, *, prune: bool) -> SweepPlan:
    """Return the sweep."""
    return SweepPlan(
        recipe=recipe(options.data_root, options.steps),
        arms=tuple(map(parse_arm, ARMS)),
        rates=parse_rates(options.rates),
        grow=False,
        tuning_seeds=tuple(range(100, 100 + options.tuning_seeds)),
        closing_seeds=tuple(range(options.closing_seeds)),
        prune=prune,
        threads=options.threads,
    )


# A sweep of ours, in a process of its own ----------------------------------------------------------------------------


def sweep_here(options: argparse.Namespace, *, prune: bool) -> None:
    """Do the sweep in this process."""
    from asymlora.sweep.cell_checks import ready_cells
    from asymlora.sweep.engine import run_sweep
    from asymlora.sweep.executors import InProcess
    from asymlora.sweep.sweep_folder import claim

    chosen = plan(options, prune=prune)
    folder = claim(options.folder, resume=False, overwrite=False)
    with InProcess(folder.path, threads=options.threads) as executor:
        run_sweep(chosen, ready_cells(chosen), folder, executor=executor)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a sweep, without the store's first line."""
    lines = (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return [json.loads(line) for line in lines]


# A run of PEFT's and the stock Trainer's, in a process of its own ----------------------------------------------------


def peft_here(row: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Do the run of a row with PEFT and the stock Trainer, and return its figures."""
    import numpy as np
    import peft
    from transformers import Trainer, TrainingArguments

    torch.set_num_threads(threads)
    quiet_transformers()
    chosen = Recipe.from_dict(row["recipe"])
    prepared = prepare_task(chosen.task, chosen.model, chosen.data, head_seed=chosen.train.seed)
    places = [name for name, layer in prepared.model.base_model.named_modules() if isinstance(layer, torch.nn.Linear)]
    config = peft.LoraConfig(
        r=chosen.adapter.rank,
        lora_alpha=round(chosen.adapter.effective_alpha),
        target_modules=[f"{prepared.model.base_model_prefix}.{name}" for name in places],
        modules_to_save=list(prepared.heads),
        lora_dropout=0.0,
    )
    network: Any = peft.get_peft_model(prepared.model, config)  # pyright: ignore[reportArgumentType]
    drawn, zero = (".lora_B.", ".lora_A.") if row["arm"] == "init_b" else (".lora_A.", ".lora_B.")
    torch.manual_seed(chosen.train.seed)
    for name, factor in network.named_parameters():
        if drawn in name:  # the variance of our arms: 1 over the fan-in
            torch.nn.init.normal_(factor, std=factor.shape[1] ** -0.5)
        elif zero in name:
            torch.nn.init.zeros_(factor)
    train = chosen.train
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=train.steps,
            per_device_train_batch_size=train.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=train.lr,
            weight_decay=train.weight_decay,
            lr_scheduler_type="linear",
            warmup_steps=round(train.warmup_fraction * train.steps),
            max_grad_norm=train.max_grad_norm,
            seed=train.seed,
            train_sampling_strategy="group_by_length",
            eval_strategy="steps",
            eval_steps=train.evaluate_every,
            save_strategy="steps",
            save_steps=train.evaluate_every,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        trainer = Trainer(
            network,
            arguments,
            train_dataset=prepared.train,  # pyright: ignore[reportArgumentType]
            eval_dataset=prepared.validation,  # pyright: ignore[reportArgumentType]
            data_collator=prepared.collator,
            compute_metrics=lambda scored: {
                "accuracy": float(np.mean(np.argmax(scored.predictions, -1) == scored.label_ids))
            },
        )
        trainer.train()
        figures: dict[str, Any] = {"validation": trainer.state.best_metric, "test": None}
        if row["phase"] == "closing":
            figures["test"] = trainer.evaluate(prepared.test)["eval_accuracy"]  # pyright: ignore[reportArgumentType]
            network.save_pretrained(folder)
    return figures


# Both sides ----------------------------------------------------------------------------------------------------------


def timed(options: argparse.Namespace, *words: str) -> tuple[float, str]:
    """Run this script as a process, and return its seconds and what it printed last."""
    shared = ["--data-root", str(options.data_root), "--steps", str(options.steps), "--threads", str(options.threads)]
    shared += ["--rates", options.rates, "--tuning-seeds", str(options.tuning_seeds)]
    shared += ["--closing-seeds", str(options.closing_seeds)]
    started = time.monotonic()
    done = subprocess.run([sys.executable, __file__, *words, *shared], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return seconds, (done.stdout.strip().splitlines() or [""])[-1]


def compare_times(options: argparse.Namespace, scratch: Path, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Time the sweep, its pruned form and the separate processes."""
    whole = scratch / "sweep"
    seconds, _ = timed(options, "--one-sweep", "whole", "--folder", str(whole))
    rows = rows_of(whole)
    if bad := [row["error"] for row in rows if row["status"] != "finished"]:
        print(f"{len(bad)} runs of the sweep did not finish: {bad[0]}")
    found: list[dict[str, Any]] = [{"part": "sweep", "seconds": seconds, "runs": len(rows), "best": best_of(whole)}]
    others: list[dict[str, Any]] = []
    pruned: dict[str, Any] = {}
    for i, row in enumerate(rows):
        if i == len(rows) // 2 and "pruned" in parts:  # amid the processes: machines drift by a fifth in half an hour
            seconds, _ = timed(options, "--one-sweep", "pruned", "--folder", str(scratch / "pruned"))
            pruned = {"part": "pruned", "seconds": seconds}
        (scratch / "row.json").write_text(json.dumps(row), encoding="utf-8")
        took, printed = timed(options, "--one-peft", str(scratch / "row.json"))
        print(f"separate run {i + 1} of {len(rows)}: {took:.1f} s", flush=True)
        others.append({"seconds": took, **json.loads(printed)})
    total = sum(other["seconds"] for other in others)
    found[0] |= {"ratio": found[0]["seconds"] / total, "figures": beside(rows, others)}
    found.append({"part": "processes", "seconds": total, "runs": len(others)})
    if pruned:
        best, ended = best_of(scratch / "pruned"), rows_of(scratch / "pruned")
        pruned |= {"ratio": pruned["seconds"] / total, "stopped": sum(row["status"] == "pruned" for row in ended)}
        found.append({**pruned, "best": best, "same_best": best == best_of(whole)})
    return found


def best_of(folder: Path) -> dict[str, Any]:
    """Return each arm's best rate and the best arm, by validation of the runs that chose them."""
    cells = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["cells"]
    rates = {cell["label"]: cell["closing_rate"] for cell in cells}
    reached = {cell["label"]: cell["mean"] for cell in cells if cell["mean"] is not None}
    return {"rates": rates, "arm": max(sorted(reached), key=lambda label: reached[label]) if reached else None}


def beside(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the end metrics of both sides, run by run, and their mean difference with its standard error."""
    pairs = [
        {
            "arm": row["arm"],
            "lr": row["lr"],
            "seed": row["seed"],
            "ours": row["validation"],
            "peft": other["validation"],
            "ours_test": (row["test"] or {}).get("accuracy"),
            "peft_test": other["test"],
        }
        for row, other in zip(rows, others, strict=True)
    ]
    differences = [pair["ours"] - pair["peft"] for pair in pairs if pair["ours"] is not None]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return {"pairs": pairs, "mean_difference": statistics.fmean(differences or [math.nan]), "standard_error": error}


# The engine beside the bare steps ------------------------------------------------------------------------------------


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Time whole runs in a session and the bare steps in turn, in one process; scoring is of 32 rows alone.

    Seconds of the clock and of the processor: on a machine that does other things the second tell more.
    """
    from asymlora.sweep.session import Session

    torch.set_num_threads(options.threads)
    quiet_transformers()
    chosen = recipe(options.data_root, options.steps)
    train = replace(chosen.train, evaluate_every=options.steps)
    chosen = replace(chosen, data=replace(chosen.data, max_scored_rows=32), train=train)
    bare_of, used = LoadedBase(chosen), Session(threads=options.threads)
    ways: dict[str, Callable[[], object]] = {"bare": lambda: bare_steps(chosen, bare_of)}
    for name, every in (("run", 0), ("measuring", 20)):
        asked = job(replace(chosen, train=replace(chosen.train, dynamics_every=every)))
        ways[name] = partial(used.run, asked)
    used.run(job(replace(chosen, train=replace(chosen.train, steps=2, evaluate_every=2))))
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in ways} for clock in clocks}
    for turn in range(options.rounds):
        for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            started = {clock: now() for clock, now in clocks.items()}
            ways[name]()
            for clock, now in clocks.items():
                taken[clock][name].append(now() - started[clock])
    ratios = {
        clock: {name: side_by_side.time_ratio(seconds, name, "bare") for name in ("run", "measuring")}
        for clock, seconds in taken.items()
    }
    return {"part": "overhead", "steps": options.steps, "seconds": taken, "ratios": ratios}


def job(chosen: Recipe) -> RunJob:
    """Return a tuning run of a recipe."""
    return RunJob(recipe=chosen, phase="tuning", arm="init_a", seed=chosen.train.seed)


def bare_steps(chosen: Recipe, base: LoadedBase) -> None:
    """Do the plain loop: batches, forward, backward, clip, step and schedule."""
    from asymlora.attaching import detach

    network = base.method(chosen).put_on(base.prepared.model, chosen, base.prepared.heads)
    try:
        _bare(network, chosen, base.prepared)
    finally:
        detach(network)
        base.draw_heads(chosen)


def _bare(network: Any, chosen: Recipe, prepared: Prepared) -> None:
    train, rows = chosen.train, prepared.train
    sampler = LengthGroupedSampler(rows.lengths, batch_size=train.batch_size, seed=train.seed)
    loader: Any = torch.utils.data.DataLoader(
        rows,  # pyright: ignore[reportArgumentType]
        batch_size=train.batch_size,
        sampler=sampler,
        collate_fn=prepared.collator,
    )
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(param_groups(network, lr=train.lr))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (train.steps + 1))
    torch.manual_seed(train.seed)
    network.train()
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), train.steps):
        network(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def main() -> None:
    """Read the command line, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=DATA_ROOT)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rates", default="3.16e-4,3.16e-3,3.16e-2")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tuning-seeds", type=int, default=2)
    parser.add_argument("--closing-seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="of the overhead")
    parser.add_argument("--again", action="store_true", help="keep what earlier runs of these parts measured")
    parser.add_argument("--dry", action="store_true", help="print and do not store")
    parser.add_argument("--one-sweep", choices=["whole", "pruned"], help=argparse.SUPPRESS)
    parser.add_argument("--one-peft", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_sweep:
        sweep_here(options, prune=options.one_sweep == "pruned")
        return
    if options.one_peft:
        print(json.dumps(peft_here(json.loads(options.one_peft.read_text(encoding="utf-8")), options.threads)))
        return
    rows = [overhead(options)] if "overhead" in options.parts else []
    if {"sweep", "pruned"} & set(options.parts):
        with tempfile.TemporaryDirectory() as scratch:
            rows += compare_times(options, Path(scratch), options.parts)
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "figures"}))
    if not options.dry:
        store(rows, options)


def store(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Write the rows beside the stored ones of other parts, and of these with ``--again``."""
    asked = {name: getattr(options, name) for name in ("rates", "steps", "tuning_seeds", "closing_seeds")}
    stored = side_by_side.RESULTS / "sweep_time.json"
    earlier = json.loads(stored.read_text(encoding="utf-8"))["rows"] if stored.exists() else []
    new = {row["part"] for row in rows}
    kept = [row for row in earlier if options.again or row["part"] not in new]
    side_by_side.write("sweep_time", [*kept, *({**row, "asked": asked} for row in rows)])


if __name__ == "__main__":
    main()
