"""The Hugging Face Trainer, stock and ours, on an attached model: python examples/transformers_trainer.py.

Stock, it trains and saves the adapter. `AdapterTrainer` also has a rate for each factor, resumes from its checkpoints
and can load the best one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

import asymlora as al
from asymlora.train.trainer import AdapterTrainer
from evidence import Facts, Watch
from small_models import batch, classifier, rows


def attached() -> Any:
    """Return a classifier with a B-only adapter and a trained head."""
    spec = al.AdapterSpec.b_only(rank=4, targets=("query", "value"), modules_to_save=("classifier",))
    return al.attach(classifier(), spec)


def arguments(folder: str, **more: Any) -> TrainingArguments:
    """Return the settings of both."""
    return TrainingArguments(
        output_dir=folder, per_device_train_batch_size=8, learning_rate=1e-2, report_to="none", **more
    )


def stock() -> Facts:
    """Train with the stock Trainer."""
    model = attached()
    watch = Watch(model, batch())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, arguments(folder, max_steps=30, save_strategy="no"), train_dataset=rows())
        trainer.train()
        trainer.save_model(folder)  # the adapter folder, as of a PeftModel
        return watch.facts(model, lambda: al.load_adapter(classifier(), folder))


def ours() -> Facts:
    """Train with `AdapterTrainer`, B and head at rates of their own, in two goes."""
    model = attached()
    watch = Watch(model, batch())
    rates = {"lr_B": 2e-2, "lr_head": 5e-3}
    with tempfile.TemporaryDirectory() as folder:
        more: dict[str, Any] = {"save_steps": 15, "lr_scheduler_type": "constant"}
        for steps, checkpoint in ((15, None), (30, str(Path(folder) / "checkpoint-15"))):
            settings = arguments(folder, max_steps=steps, **more)
            trainer = AdapterTrainer(model, settings, rates=rates, train_dataset=rows())
            trainer.train(resume_from_checkpoint=checkpoint)
        return watch.facts(model, lambda: al.load_adapter(classifier(), Path(folder) / "checkpoint-30"))


def main() -> dict[str, Facts]:
    """Do both."""
    return {"Trainer": stock(), "AdapterTrainer": ours()}


if __name__ == "__main__":
    for name, facts in main().items():
        print(name)
        facts.show()
