"""Each kind of model the papers used, trained on real weights and data: base, head or zero-shot, LoRA, B only.

Sets of the research data beside the checkout, cut to what a quarter of a minute reads; 60 steps at the most, two seeds.
Learning rates are one for all arms of a set and not tuned: this shows that every kind trains, not which arm is better.
One JSON line a run is appended to ``results/task_matrix.jsonl``; what stands there is not run again. ``--table`` prints
the table from the stored lines.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asymlora import Recipe, finetune
from asymlora.train.callbacks import quiet_transformers
from asymlora.train.run_folder import environment

RESULTS = Path(__file__).parent / "results" / "task_matrix.jsonl"
DATA = Path(__file__).parents[2] / "shared" / "data"
ARMS: dict[str, dict[str, Any]] = {
    "lora r8": {"preset": "lora", "rank": 8},
    "b_only r8": {"preset": "b_only", "rank": 8},
    "b_only r16": {"preset": "b_only", "rank": 16},
}
SEEDS = (0, 1)
_TEXT = {"batch_size": 16, "steps": 30, "evaluate_every": 30, "lr": 2e-3}
_LM = {"batch_size": 4, "steps": 12, "evaluate_every": 12, "lr": 1e-3}
_ROWS = {"train": 480, "validation": 80, "test": 200}


def sets() -> dict[str, dict[str, Any]]:
    """Return each set's recipe, but for the place of its data."""
    pair = {"text_pair": "text_pair", "max_tokens": 96}
    text: dict[str, dict[str, Any]] = {
        "sst2": {},
        "cola": {"metric": "matthews"},
        "rte": pair,
        "mrpc": {**pair, "metric": "f1"},
        "stsb": {**pair, "metric": "spearman"},
        "trec6": {},
    }
    rows = {
        f"text/{name}": {
            "task": "text_regression" if name == "stsb" else "text_classification",
            "data": data,
            "train": _TEXT,
        }
        for name, data in text.items()
    }
    for name in ("tinyshakespeare", "wikitext2"):
        rows[f"lm/{name}"] = {"task": "language_modeling", "data": {"max_tokens": 64}, "train": _LM}
    rows["vision/pacs112"] = {
        "task": "image_classification",
        "data": {"train_environment": "photo"},
        "train": {"batch_size": 16, "steps": 24, "evaluate_every": 24, "lr": 3e-4},
    }
    rows["seq2seq/mrpc_paraphrase"] = {
        "task": "seq2seq",
        "data": {
            "text": "source",
            "target": "target",
            "max_tokens": 64,
            "max_target_tokens": 40,
            "beams": 2,
            "max_scored_rows": 80,
        },
        "train": {"batch_size": 16, "steps": 30, "evaluate_every": 30, "lr": 5e-3},
    }
    return rows


def cut(name: str, data: Path, folder: Path) -> Path:
    """Write a small copy of a set, for the time of a run, and return where it is."""
    kind, _, rest = name.partition("/")
    if kind == "lm":
        _cut_text(rest, data / "lm", folder)
    elif kind == "vision":
        _cut_images(data / name, folder)
    else:
        _cut_rows(data / name, folder)
    return folder


def _cut_rows(source: Path, folder: Path) -> None:
    parts = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in source.glob("*.jsonl")}
    if "test" not in parts:  # GLUE publishes no labels of its test parts: its validation part is the test here
        parts["test"] = parts.pop("validation")
    train = random.Random(0).sample(parts["train"], len(parts["train"]))
    held = parts.get("validation", train[-_ROWS["validation"] :])
    chosen = {"train": train[: _ROWS["train"]], "validation": held[: _ROWS["validation"]]}
    chosen["test"] = random.Random(0).sample(parts["test"], min(len(parts["test"]), _ROWS["test"]))
    for part, lines in chosen.items():
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cut_text(name: str, source: Path, folder: Path) -> None:
    if name == "wikitext2":  # its training file is not at hand: valid is trained on, test is scored
        train, test = ((source / f"wikitext2-{part}.txt").read_text(encoding="utf-8") for part in ("valid", "test"))
    else:
        text = (source / f"{name}.txt").read_text(encoding="utf-8")
        train, test = text[:-100_000], text[-100_000:]
    (folder / "train.txt").write_text(train[:-40_000], encoding="utf-8")
    (folder / "validation.txt").write_text(train[-4_000:], encoding="utf-8")
    (folder / "test.txt").write_text(test[:8_000], encoding="utf-8")


def _cut_images(source: Path, folder: Path) -> None:
    import pyarrow.parquet as parquet

    for file in source.glob("*.parquet"):
        table = parquet.read_table(file)
        splits = table["split"].to_pylist()
        kept: list[int] = []
        for part in ("train", "validation", "test"):
            rows = [i for i, split in enumerate(splits) if split == part]
            kept += random.Random(0).sample(rows, min(len(rows), 80 if part == "test" else 250))
        parquet.write_table(table.take(sorted(kept)), folder / file.name)


def runs(data: Path, chosen: list[str]) -> Iterator[dict[str, Any]]:
    """Run what is not stored yet, one line a run."""
    done = {(row["set"], row["arm"], row["seed"]) for row in stored()}
    for name, recipe in sets().items():
        if chosen and not any(name.startswith(prefix) for prefix in chosen):
            continue
        for seed in SEEDS:
            for arm, adapter in ARMS.items():
                if (name, arm, seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    place = Path(scratch) / "data"
                    place.mkdir()
                    settings = {
                        **recipe,
                        "data": {**recipe["data"], "name": str(cut(name, data, place)), "seed": seed},
                        "adapter": {**adapter, "seed": seed},
                        "train": {**recipe["train"], "seed": seed},
                    }
                    result = finetune(Recipe.from_dict(settings), output=Path(scratch) / "run").to_dict()
                settings["data"]["name"] = name
                yield {"set": name, "arm": arm, "seed": seed, "recipe": settings, **result}


def stored() -> list[dict[str, Any]]:
    """Return the lines that were stored."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of stored runs: a line a set and arm, means over seeds with both seeds' values."""
    lines = [
        "| set | metric | baseline | arm | values trained | seeds | mean | rows/s | training, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sets():
        for arm in ARMS:
            found = [row for row in rows if (row["set"], row["arm"]) == (name, arm)]
            if not found:
                continue
            first = found[0]
            scores = [row["score"] for row in found]
            base = sum(row["baseline"] for row in found) / len(found)
            lines.append(
                f"| {name} | {first['metric']} | {base:.3f} ({first['baseline_kind']}) | {arm} |"
                f" {first['trained_parameters']:,} | {', '.join(f'{s:.3f}' for s in scores)} |"
                f" {sum(scores) / len(scores):.3f} | {sum(r['samples_per_second'] for r in found) / len(found):.1f} |"
                f" {sum(r['train_seconds'] for r in found) / len(found):.0f} |"
            )
            for domain in first["environments"]:
                after = [row["environments"][domain]["after"][first["metric"]] for row in found]
                before = [row["environments"][domain]["before"][first["metric"]] for row in found]
                lines.append(
                    f"| ... {domain} | {first['metric']} | {sum(before) / len(before):.3f} | {arm} | |"
                    f" {', '.join(f'{s:.3f}' for s in after)} | {sum(after) / len(after):.3f} | | |"
                )
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, run, store and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=[], help="beginnings of names, like text lm/wiki")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the stored runs and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(arguments.threads)
        quiet_transformers()
        about = {"environment": environment()}
        RESULTS.parent.mkdir(exist_ok=True)
        for row in runs(arguments.data, arguments.sets):
            row = {**row, **about, "date": time.strftime("%Y-%m-%d")}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row["set"], row["arm"], row["seed"], f"{row['baseline']:.3f} -> {row['score']:.3f}", flush=True)
    print(table(stored()))


if __name__ == "__main__":
    main()
