"""Each kind of model from its recipe to its saved run: learned, interrupted, resumed, asked and merged."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from asymlora.train.recipe import Recipe
from asymlora.train.run import finetune
from asymlora.train.run_folder import RunFolder
from asymlora.train.saved_run import load_run, merge_run
from small_causal import write_small_causal
from small_seq2seq import write_model, write_pairs

COLOURS = {"blue": (30, 30, 220), "red": (220, 30, 30)}


def _language_modeling(folder: Path) -> dict[str, Any]:
    write_small_causal(folder / "model")
    (folder / "text.txt").write_text("a line of text that repeats itself. " * 120)
    return {
        "model": {"name": str(folder / "model")},
        "data": {"name": str(folder / "text.txt"), "max_tokens": 24, "max_target_tokens": 4},
        "train": {"lr": 0.03, "batch_size": 8},
    }


def _instruction_tuning(folder: Path) -> dict[str, Any]:
    write_small_causal(folder / "model")
    rows = [{"text": f"say {word} {i}", "target": word} for i in range(40) for word in ("yes", "no")]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = [{"question": f"what is {i}?", "answer": f"it is #### {i}"} for i in range(3)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    choices = [{"question": f"which {i}?", "choices": ["this", "that"], "answer": "AB"[i % 2]} for i in range(4)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    return {
        "model": {"name": str(folder / "model")},
        "data": {
            "name": str(folder / "chats.jsonl"),
            "max_tokens": 48,
            "max_target_tokens": 4,
            "problems": str(folder / "problems.jsonl"),
            "choices": str(folder / "choices.jsonl"),
        },
        "train": {"lr": 0.03, "batch_size": 8},
    }


def _seq2seq(folder: Path) -> dict[str, Any]:
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", rows=60)
    names = {"text": "source", "target": "target", "max_tokens": 40, "max_target_tokens": 8, "beams": 2}
    return {
        "model": {"name": str(folder / "model")},
        "data": {"name": str(folder / "pairs.jsonl"), **names},
        "train": {"lr": 0.03, "batch_size": 8},
    }


def _image_classification(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=16, patch_size=4)).save_pretrained(folder / "model")
    for domain in ("day", "night"):
        for name in COLOURS:
            (folder / "images" / domain / name).mkdir(parents=True)
            for i in range(24):
                (folder / "images" / domain / name / f"{i}.png").write_bytes(_picture(name, i, dark=domain == "night"))
    return {
        "model": {"name": str(folder / "model")},
        "data": {"name": str(folder / "images"), "image_size": 16, "train_environment": "day"},
        "train": {"lr": 0.01, "batch_size": 8},
    }


def _picture(colour: str, seed: int, *, dark: bool) -> bytes:
    noise = np.random.default_rng([seed, dark]).integers(-30, 31, (20, 24, 3))
    buffer = io.BytesIO()
    pixels = (np.array(COLOURS[colour]) // (2 if dark else 1) + noise).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _text_regression(folder: Path) -> dict[str, Any]:
    from cases import write_small_encoder

    encoder = write_small_encoder(folder / "model")
    generator = np.random.default_rng(0)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["one", "two", "score"])
        for i in range(120):
            words = generator.choice(["good", "film", "plot", "dull"], size=(2, 3))
            writer.writerow([f"{' '.join(words[0])} {i}", " ".join(words[1]), np.mean(words[0] == words[1]) * 5])
    return {
        "model": {"name": str(encoder), "pooling": "mean"},
        "data": {"name": str(folder / "pairs.csv"), "text": "one", "text_pair": "two", "label": "score"},
        "train": {"lr": 0.01, "batch_size": 8},
    }


TASKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text_regression": _text_regression,
    "language_modeling": _language_modeling,
    "instruction_tuning": _instruction_tuning,
    "seq2seq": _seq2seq,
    "image_classification": _image_classification,
}
"""Recipes on small random models and small data; texts with labels have their own tests."""
METRIC = {
    "text_regression": "pearson",
    "language_modeling": "perplexity",
    "instruction_tuning": "loss",
    "seq2seq": "rougeL",
    "image_classification": "accuracy",
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def recipe(task: str, tmp_path: Path) -> Recipe:
    made = TASKS[task](tmp_path)
    train = {"steps": 6, "evaluate_every": 2, **made["train"]}
    return Recipe.from_dict({"task": task, **made, "adapter": {"preset": "lora", "rank": 2}, "train": train})


class _StopError(Exception):
    pass


def _cut(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunFolder.record

    def stop(self: RunFolder, row: Any) -> None:
        record(self, row)
        if row["split"] == "validation" and row["step"] == 4:
            raise _StopError  # before the checkpoint of step 4 is written: that of step 2 is gone on from

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stop)
        with pytest.raises(_StopError):
            finetune(recipe, output=folder)


def _weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_an_interrupted_run_goes_on_to_the_same_bits_and_is_asked_and_merged(
    task: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(recipe, output=tmp_path / "whole")
    _cut(recipe, tmp_path / "cut", monkeypatch)
    resumed = finetune(recipe, output=tmp_path / "cut", resume=True)
    assert resumed.resumed
    assert _weights(tmp_path / "whole") == _weights(tmp_path / "cut")
    assert resumed.metrics == whole.metrics
    assert whole.metric == METRIC[task]
    assert set(whole.environments) == ({"night"} if task == "image_classification" else set())
    given = [str(tmp_path / "images" / "day" / "red" / "0.png")] if "image" in task else ["say yes 3"]
    said = load_run(tmp_path / "cut").answer(given)
    assert said == load_run(tmp_path / "whole").answer(given)
    merged = load_run(merge_run(tmp_path / "whole", tmp_path / "merged")).answer(given)
    if said[0].probability is not None:
        assert merged[0].probability == pytest.approx(said[0].probability, abs=1e-4)
        assert merged[0].answer == said[0].answer
    elif task != "text_regression":  # the last digit of a number is rounded anew
        assert merged == said


@pytest.mark.optional  # forty steps of each kind of model, half a minute
def test_training_learns(task: str, tmp_path: Path) -> None:
    made = TASKS[task](tmp_path)
    train = {**made["train"], "steps": 40, "evaluate_every": 20, "head_start": "random"}
    recipe = Recipe.from_dict({"task": task, **made, "adapter": {"preset": "lora", "rank": 4}, "train": train})
    result = finetune(recipe, output=tmp_path / "run")
    loss = {"text_regression": "mse"}.get(task, "loss")
    assert result.metrics["after"][loss] < result.metrics["before"][loss]
    rows = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < losses[0]
    if task == "instruction_tuning":
        assert all(set(both) == {"before", "after"} for both in result.closing.values())
        assert len(result.closing) == 2
