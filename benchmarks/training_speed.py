"""Rows a second and peak memory of training: a run of ours beside PEFT in the stock Trainer, the same recipe.

MiniLM (16 texts of 128 tokens), SmolLM2-135M (4 blocks of 128 tokens) and ViT-S/14 (16 images of 11 x 11 patches and a
class token), adapters on all linear layers, rank 8, no dropout in them, AdamW. Ours is what ``asymlora finetune``
trains with; PEFT's is `get_peft_model` in a `Trainer` with its default optimizer (fused AdamW); with ``A`` frozen its
flags are cleared by hand. Each measurement is a process of its own, both sides in turn; medians of steps, then of
rounds. Peak memory is the largest resident set from the first step on. Writes ``results/training_speed.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import asymlora as al
from asymlora import Recipe
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.task import Prepared
from asymlora.train.callbacks import Silent, quiet_transformers
from asymlora.train.methods import METHODS
from asymlora.train.run_folder import RunFolder, environment, peak_bytes
from asymlora.train.settings import make_trainer

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
BATCH = {"minilm": 16, "smollm2": 4, "vit": 16}
ARMS = {"lora": "lora", "b_only": "b_only"}
SIDES = ("ours", "peft")
WARM_STEPS = 2


def recipe(model: str, arm: str, steps: int, folder: Path) -> Recipe:
    """Return the recipe of a cell; the data are long enough for every row to be full."""
    common: dict[str, Any] = {
        "adapter": {"preset": ARMS[arm], "rank": 8},
        "train": {
            "steps": steps,
            "evaluate_every": steps,
            "batch_size": BATCH[model],
            "lr": 1e-3,
            "memory_check": False,
        },
    }
    if model == "minilm":
        return Recipe.from_dict({**common, "data": {"name": str(_long_reviews(folder)), "max_tokens": 128}})
    if model == "smollm2":
        rows = {"name": "embedded:brown", "max_tokens": 128, "max_rows": 400}
        return Recipe.from_dict({**common, "task": "language_modeling", "data": rows})
    rows = {"name": "embedded:fashion-mnist", "image_size": 154, "augment": False, "max_rows": 400}
    return Recipe.from_dict({**common, "task": "image_classification", "data": rows})


def _long_reviews(folder: Path) -> Path:
    from asymlora.tasks.embedded_data import film_reviews

    rows = film_reviews().parts["train"]
    path = folder / "long.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(0, 4000, 8):
            writer.writerow([" ".join(rows["text"][i : i + 8]), str(i // 8 % 2)])
    return path


class Clock(TrainerCallback):
    """Times each step; the peak of memory is counted from the first."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Forget the peak of loading."""
        Path("/proc/self/clear_refs").write_text("5")

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.steps.append(time.perf_counter() - self.started)


def one(model: str, arm: str, side: str, steps: int) -> dict[str, float]:
    """Measure one side of a cell in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        chosen = recipe(model, arm, steps, Path(scratch))
        prepared = prepare_task(chosen.task, chosen.model, chosen.data, head_seed=0)
        clock = Clock()
        trainer = (_ours if side == "ours" else _pefts)(chosen, prepared, Path(scratch) / "run")
        trainer.add_callback(clock)
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.train()
    step = statistics.median(clock.steps[WARM_STEPS:])
    return {"rows_per_second": BATCH[model] / step, "peak_bytes": peak_bytes() or 0}


def _ours(chosen: Recipe, prepared: Prepared, folder: Path) -> Trainer:
    method = METHODS["adapter"]
    network = method.put_on(prepared.model, chosen, prepared.heads)
    folder.mkdir()
    return make_trainer(chosen, prepared, method, network, folder=RunFolder(path=folder), watcher=Silent())[0]


def _pefts(chosen: Recipe, prepared: Prepared, folder: Path) -> Trainer:
    import peft

    model = _plain_model(chosen, prepared)
    places = [site.name for site in al.sites(al.attach(model, chosen.adapter))]
    al.detach(model)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=places, modules_to_save=list(prepared.heads) or None, lora_dropout=0.0
    )
    network = peft.get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    if chosen.adapter.trains["A"] is False:
        for name, parameter in network.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=chosen.train.steps,
        per_device_train_batch_size=chosen.train.batch_size,
        learning_rate=chosen.train.lr,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    return Trainer(network, args, train_dataset=prepared.train, data_collator=prepared.collator)  # pyright: ignore


def _plain_model(chosen: Recipe, prepared: Prepared) -> nn.Module:
    # A language model of ours takes its loss in another way; PEFT's user has the plain class.
    if chosen.task != "language_modeling":
        return prepared.model
    from transformers import AutoModelForCausalLM

    from asymlora.tasks.sources import find_model

    return AutoModelForCausalLM.from_pretrained(find_model(chosen.model.name)[0], dtype=torch.float32)


def measure(models: list[str], arms: list[str], steps: int, rounds: int, threads: int) -> Iterator[dict[str, Any]]:
    """Measure every cell, both sides in turn, and return a row a cell."""
    for model in models:
        for arm in arms:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for turn in range(rounds):
                for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                    command = [sys.executable, __file__, "--one", model, arm, side]
                    command += ["--steps", str(steps), "--threads", str(threads)]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise SystemExit(done.stderr[-3000:])
                    found[side].append(json.loads(done.stdout.splitlines()[-1]))
            ratios = [
                ours["rows_per_second"] / peft["rows_per_second"]
                for ours, peft in zip(found["ours"], found["peft"], strict=True)
            ]
            speed = {s: statistics.median(r["rows_per_second"] for r in found[s]) for s in SIDES}
            peak = {s: statistics.median(r["peak_bytes"] for r in found[s]) for s in SIDES}
            yield {
                "model": model,
                "arm": arm,
                "batch": BATCH[model],
                "rows_per_second": speed,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "peak_bytes": peak,
            }


def table(content: dict[str, Any]) -> str:
    """Return the table of a stored measurement, with the geometric means below."""
    lines = [
        "| model | trained | rows/s ours | PEFT | ours / PEFT (each round) | peak MiB ours | PEFT |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        speed, peak = row["rows_per_second"], row["peak_bytes"]
        lines.append(
            f"| {row['model']} | {row['arm']} | {speed['ours']:.2f} | {speed['peft']:.2f} |"
            f" {row['ratio']:.2f} ({', '.join(f'{r:.2f}' for r in row['ratios'])}) |"
            f" {peak['ours'] / 2**20:,.0f} | {peak['peft'] / 2**20:,.0f} |"
        )
    means = ", ".join(f"{arm} {mean:.2f}" for arm, mean in content["geometric_means"].items())
    return "\n".join([*lines, "", f"Geometric means of ours / PEFT: {means}."])


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--one", nargs=3, metavar=("MODEL", "ARM", "SIDE"), help="one side of one cell, in this process"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        quiet_transformers()
        print(json.dumps(one(*arguments.one, steps=arguments.steps)))
        return
    rows: list[dict[str, Any]] = []
    for row in measure(arguments.models, arguments.arms, arguments.steps, arguments.rounds, arguments.threads):
        rows.append(row)
        print(f"{row['model']} {row['arm']}: {row['ratio']:.2f}", flush=True)
    means = {
        arm: math.prod(row["ratio"] for row in rows if row["arm"] == arm) ** (1 / len(arguments.models))
        for arm in arguments.arms
    }
    content = {
        "environment": environment(),
        "settings": {"steps": arguments.steps, "rounds": arguments.rounds, "threads": arguments.threads},
        "rows": rows,
        "geometric_means": means,
    }
    print(table(content))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
