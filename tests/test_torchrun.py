"""``torchrun -m asymlora finetune``: two processes give what one gives, one writes, a killed one is survived."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from asymlora.errors import SpecError
from asymlora.train.recipe import Recipe
from asymlora.train.run import finetune
from cases import edit_json, small_reviews
from train.kill_driver import half_written

PROCESSES, STEPS, LONG = 2, 20, 40
SECONDS = 300
ENDS_WITHIN = 60
WEIGHTS = "adapter_model.safetensors"
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def write_recipe(root: Path, small_encoder: Path) -> Callable[..., Path]:
    """Write a recipe of small reviews, of an encoder with or without dropout, and return the file."""
    with (root / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label", "film"])
        writer.writeheader()
        writer.writerows(small_reviews())
    still = Path(shutil.copytree(small_encoder, root / "still"))
    edit_json(still / "config.json", **STILL)

    def write(name: str, *, dropout: float, **train: Any) -> Path:
        recipe = {
            "model": {"name": str(small_encoder if dropout else still), "pooling": "mean"},
            "data": {"name": str(root / "rows.csv"), "group": "film", "max_tokens": 16},
            "adapter": {"preset": "lora", "rank": 2, "dropout": dropout},
            "train": {"batch_size": 8, "lr": 0.01, "schedule": "constant", "head_start": "random", **train},
        }
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


def _start(recipe: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command = ["-m", "asymlora", "finetune", str(recipe), "--output", str(output), *more]
    return subprocess.Popen(
        [sys.executable, *launcher, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def _run(recipe: Path, output: Path, *more: str) -> Path:
    process = _start(recipe, output, *more)
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, said[-4000:]
    return output


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pair(root: Path, write_recipe: Callable[..., Path]) -> tuple[Path, Path]:
    """Folders of one recipe run by two processes and by one."""
    recipe = write_recipe("still-run", dropout=0.0, steps=STEPS, evaluate_every=STEPS)
    finetune(Recipe.load(recipe), output=root / "one")
    return _run(recipe, root / "two"), root / "one"


def test_two_processes_give_the_weights_of_one_at_the_same_global_batch(pair: tuple[Path, Path]) -> None:
    two, one = (load_file(folder / "adapter" / WEIGHTS) for folder in pair)
    assert two.keys() == one.keys()
    assert any("lora_A" in key for key in two)
    assert max(float((two[key] - one[key]).norm() / one[key].norm()) for key in one) <= 1e-5


def test_two_processes_give_the_figures_of_one(pair: tuple[Path, Path]) -> None:
    two, one = (json.loads((folder / "result.json").read_text()) for folder in pair)
    assert one["steps"] == STEPS
    for key in ("steps", "best_step", "trained_parameters", "rows", "label_names"):
        assert two[key] == one[key]
    scores = [{key: value for key, value in r.items() if "accuracy" in key or key == "score"} for r in (two, one)]
    assert scores[0]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    losses = [[r["loss"] for r in _records(folder) if r["split"] == "train"] for folder in pair]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_one_process_of_two_writes(pair: tuple[Path, Path]) -> None:
    two, one = pair
    assert sorted(str(f.relative_to(two)) for f in two.rglob("*")) == sorted(
        str(f.relative_to(one)) for f in one.rglob("*")
    )
    rows = [(row["split"], row["step"], row.get("what")) for row in _records(two)]
    assert len(rows) == len(set(rows))
    assert rows == [(row["split"], row["step"], row.get("what")) for row in _records(one)]


def test_a_batch_that_cannot_be_divided_is_refused_before_a_folder_is_made(
    root: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load(write_recipe("odd", dropout=0.0, steps=1, batch_size=7))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=r"train\.batch_size=7 cannot be divided among 2 processes"):
        finetune(recipe, output=root / "odd")
    assert not (root / "odd").exists()


def _worker(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    children = psutil.Process(launcher.pid).children(recursive=True)
    (found,) = [child for child in children if child.environ().get("RANK") == str(rank)]
    return found


def _kill_one_at(folder: Path, launcher: subprocess.Popen[str], step: int, rank: int) -> tuple[str, float]:
    """Kill a worker once a checkpoint stands; return what was said, and the seconds until all had ended."""
    until = time.monotonic() + SECONDS
    while not (folder / "checkpoints" / f"checkpoint-{step}").is_dir():
        assert launcher.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < until, "no checkpoint came"
        time.sleep(0.005)
    _worker(launcher, rank).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said, _ = launcher.communicate(timeout=SECONDS)
    return said, time.monotonic() - killed


def _survives(recipe: Path, whole: Path, broken: Path, *, killed: int) -> None:
    launcher = _start(recipe, broken)
    try:
        said, seconds = _kill_one_at(broken, launcher, 10, killed)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    assert seconds < ENDS_WITHIN
    if killed != 0:  # the first process is the one that speaks
        assert "Another process of this run has ended, so the run cannot go on." in said
        assert "--resume" in said
    assert not (broken / "result.json").exists()
    assert half_written(broken) == []
    _run(recipe, broken, "--resume")
    assert (broken / "adapter" / WEIGHTS).read_bytes() == (whole / "adapter" / WEIGHTS).read_bytes()
    rows = [[{k: v for k, v in row.items() if k != "wall_s"} for row in _records(folder)] for folder in (broken, whole)]
    assert rows[0] == rows[1]
    assert json.loads((broken / "result.json").read_text())["resumed"]


@pytest.mark.optional  # five runs of two processes, a minute
@pytest.mark.timeout(900)  # slow where other work holds both cores
def test_a_killed_worker_ends_the_run_with_a_sentence_and_two_resume_to_the_same_bits(
    root: Path, write_recipe: Callable[..., Path]
) -> None:
    recipe = write_recipe("killed", dropout=0.1, steps=LONG, evaluate_every=10)
    whole = _run(recipe, root / "whole")
    for killed in (1, 0):  # the second is the one that writes
        _survives(recipe, whole, root / f"broken-{killed}", killed=killed)
