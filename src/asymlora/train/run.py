"""A run from its recipe to its result: data, model, head alone, adapter, closing figures."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from asymlora.atomic import write_file
from asymlora.attaching import attach, count_parameters, disabled
from asymlora.checkpoint import WEIGHTS_FILE, adapter_tensors, save_adapter
from asymlora.errors import DataError
from asymlora.site_view import saved_modules, sites
from asymlora.tasks.linear_probe import fit_probe
from asymlora.tasks.text_classification import (
    FEATURE_BATCH,
    Prepared,
    accuracy,
    pooled_features,
    predict_logits,
    prepare,
)
from asymlora.train.callbacks import Observer, Recorder, Silent
from asymlora.train.recipe import Recipe
from asymlora.train.run_folder import RunFolder, claim, peak_bytes, require_same_recipe
from asymlora.train.trainer import AdapterTrainer, last_checkpoint, step_of

_LOG_EVERY = 10
_HEAD_ALONE = "head_alone.json"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run produced.

    Attributes:
        folder: The run's folder.
        label_names: Names of the labels, by index.
        rows: Rows by part; ``dropped``: rows left out because their text stands in another part.
        head_alone_accuracy: Test accuracy of a linear head on the frozen model, fitted to convergence.
        before_accuracy: Test accuracy before the first step.
        accuracy: Test accuracy of the adapter of the best step.
        gain: ``accuracy - head_alone_accuracy``.
        gain_standard_error: Standard error of the gain over the test rows, paired by row.
        validation_accuracy: Accuracy of the best step on the part that it was chosen on.
        best_step: The step whose adapter was kept.
        steps: Steps taken.
        trained_parameters: Values trained, the head included.
        head_parameters: Values of the head, and of what else is trained in full.
        lora_parameters: Values that LoRA with both factors would train at the same rank and targets, head included.
        full_parameters: Values of the whole model.
        adapter_bytes: Size of the adapter's weight file.
        features_seconds: Seconds for the features of the head alone and its fit.
        train_seconds: Seconds of training, validation included.
        total_seconds: Seconds of the whole command.
        peak_memory_bytes: Largest resident memory of the process, or None where it cannot be told.
        resumed: Whether the run was interrupted and gone on with.
    """

    folder: str
    label_names: tuple[str, ...]
    rows: dict[str, int]
    head_alone_accuracy: float
    before_accuracy: float
    accuracy: float
    gain: float
    gain_standard_error: float
    validation_accuracy: float
    best_step: int
    steps: int
    trained_parameters: int
    head_parameters: int
    lora_parameters: int
    full_parameters: int
    adapter_bytes: int
    features_seconds: float
    train_seconds: float
    total_seconds: float
    peak_memory_bytes: int | None
    resumed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the folder is left out, as it may move."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


@dataclass(frozen=True, kw_only=True)
class HeadAlone:
    """The baseline: what a trained head alone reaches, and what the model gives before the first step.

    Attributes:
        accuracy: On the test part.
        before_accuracy: Of the model as the training finds it, on the test part.
        validation_accuracy: On the part that its penalty was chosen on.
        correct: For each test row, in order, 1 if the head alone is right.
        seconds: Seconds for features and fit.
        data_sha256: Digest of the divided rows, so that a resumed run sees the same.
    """

    accuracy: float
    before_accuracy: float
    validation_accuracy: float
    correct: list[int]
    seconds: float
    data_sha256: str


def finetune(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Fine-tune a pretrained model with an adapter and measure what it bought.

    Everything that can be wrong with the recipe, the data, the model and the disk is found before an older run is
    touched and before the training starts.

    Args:
        recipe: The run.
        output: Its folder; None: a new one below ``runs/``.
        resume: Go on with the unfinished run in the folder, to the same weights as without the interruption.
        overwrite: Replace the run in the folder.
        observer: Who is told how it goes on.

    Returns:
        The closing figures; they also stand in ``result.json``.
    """
    started = time.monotonic()
    watcher = observer or Silent()
    folder = claim(output, resume=resume, overwrite=overwrite)
    if folder.resumes:
        require_same_recipe(folder.path, recipe)
    folder.check_space(0)
    watcher.stage(f"Reading {recipe.data.name} and {recipe.model.name}")
    prepared = prepare(recipe.model, recipe.data, head_seed=recipe.train.seed)
    full = sum(p.numel() for p in prepared.model.parameters())
    in_full = tuple(dict.fromkeys((*recipe.adapter.modules_to_save, *prepared.heads)))
    attach(prepared.model, replace(recipe.adapter, modules_to_save=in_full))
    folder.check_space(_bytes_to_write(prepared.model, recipe))
    with folder.begun(recipe):
        watcher.begun(str(folder.path))
        return _run(recipe, prepared, folder, watcher, started=started, full=full)


def _run(
    recipe: Recipe, prepared: Prepared, folder: RunFolder, watcher: Observer, *, started: float, full: int
) -> RunResult:
    checkpoint = last_checkpoint(folder.checkpoints) if folder.resumes else None
    if folder.resumes:
        folder.forget_after(step_of(checkpoint) if checkpoint else -1)
    watcher.stage(_counts(prepared))
    head_alone = _head_alone(prepared, folder, recipe, watcher, fresh=checkpoint is None)

    trainer, recorder = _trainer(prepared, folder, recipe, watcher)
    watcher.stage(f"Training {recipe.train.steps} steps" + (f" from {checkpoint.name}" if checkpoint else ""))
    if checkpoint and step_of(checkpoint) >= recipe.train.steps:
        trainer.restore(checkpoint)  # the Trainer would take one step more
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    train_seconds = recorder.seconds
    watcher.stage("Scoring the test part")
    after, correct = _test(trainer, prepared)

    # PEFT's class for the task exists only for the classes that transformers has.
    task_type = None if prepared.pooled_by_mean else "SEQ_CLS"
    save_adapter(prepared.model, folder.adapter, base_model=recipe.model.name, task_type=task_type)
    trained, _ = count_parameters(prepared.model)
    heads = sum(p.numel() for module in saved_modules(prepared.model).values() for p in module.parameters())
    paired = np.array(correct) - np.array(head_alone.correct)
    result = RunResult(
        folder=str(folder.path),
        label_names=prepared.label_names,
        rows=prepared.rows,
        head_alone_accuracy=head_alone.accuracy,
        before_accuracy=head_alone.before_accuracy,
        accuracy=after,
        gain=after - head_alone.accuracy,
        gain_standard_error=float(paired.std(ddof=1) / np.sqrt(len(paired))) if len(paired) > 1 else 0.0,
        validation_accuracy=float(trainer.state.best_metric or 0.0),
        best_step=trainer.state.best_global_step or trainer.state.global_step,
        steps=trainer.state.global_step,
        trained_parameters=trained,
        head_parameters=heads,
        lora_parameters=heads + sum(site.A.numel() + site.B.numel() for site in sites(prepared.model)),
        full_parameters=full,
        adapter_bytes=(folder.adapter / WEIGHTS_FILE).stat().st_size,
        features_seconds=round(head_alone.seconds, 3),
        train_seconds=round(train_seconds, 3),
        total_seconds=round(time.monotonic() - started, 3),
        peak_memory_bytes=peak_bytes(),
        resumed=folder.resumes,
    )
    folder.record({"split": "test", "step": result.best_step, "accuracy": after})
    folder.finish(result.to_dict())
    return result


def _counts(prepared: Prepared) -> str:
    rows = prepared.rows
    dropped = f" ({rows['dropped']} that also stand elsewhere left out)" if rows["dropped"] else ""
    return (
        f"{rows['train']:,} training rows{dropped}, {rows['validation']:,} for choices, {rows['test']:,} for the"
        f" closing figures; labels: {', '.join(prepared.label_names[:8])}"
    )


def _head_alone(prepared: Prepared, folder: RunFolder, recipe: Recipe, watcher: Observer, *, fresh: bool) -> HeadAlone:
    stored = folder.checkpoints / _HEAD_ALONE
    digest = prepared.digest()
    if not fresh and (measured := _stored_head_alone(stored)) is not None:
        if measured.data_sha256 != digest:
            raise DataError(
                f"The rows of {recipe.data.name} are others than when the run in {folder.path} began. Give it the same"
                " data to go on with it, or begin a new run."
            )
        return measured
    watcher.stage("Fitting the head alone on features of the frozen model")
    started = time.monotonic()
    parts = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    total, read = sum(len(items) for items in parts.values()), 0

    def done(rows: int) -> None:
        nonlocal read
        read += rows
        watcher.progress("features", read, total, {})

    with disabled(prepared.model):
        features = {
            name: pooled_features(prepared.model, items, prepared.collator, done=done) for name, items in parts.items()
        }
    probe = fit_probe(
        (features["train"], prepared.train.labels),
        (features["validation"], prepared.validation.labels),
        labels=len(prepared.label_names),
    )
    logits = probe.logits(features["test"])
    head = saved_modules(prepared.model)[prepared.heads[0]]
    # A head that is no plain linear layer on the mean features cannot take the probe's weights.
    if recipe.train.head_start == "probe" and isinstance(head, nn.Linear) and prepared.pooled_by_mean:
        probe.copy_to(head)
        before = logits
    else:
        before = predict_logits(prepared.model, prepared.test, prepared.collator)
    measured = HeadAlone(
        accuracy=accuracy(logits, prepared.test.labels),
        before_accuracy=accuracy(before, prepared.test.labels),
        validation_accuracy=probe.validation_accuracy,
        correct=(logits.argmax(-1) == prepared.test.labels).astype(int).tolist(),
        seconds=time.monotonic() - started,
        data_sha256=digest,
    )
    write_file(stored, json.dumps(asdict(measured)))
    folder.record({"split": "test", "step": 0, "head_alone_accuracy": measured.accuracy})
    watcher.stage(f"Head alone: {measured.accuracy:.1%} on the test part")
    return measured


def _stored_head_alone(file: Path) -> HeadAlone | None:
    try:
        return HeadAlone(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # not there, or damaged: it is measured again


def _trainer(
    prepared: Prepared, folder: RunFolder, recipe: Recipe, watcher: Observer
) -> tuple[AdapterTrainer, Recorder]:
    train = recipe.train
    seconds = [row["wall_s"] for row in folder.records() if "wall_s" in row]
    recorder = Recorder(folder, watcher, seconds_before=max(seconds, default=0.0))
    every = min(train.evaluate_every, train.steps)
    args = TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=FEATURE_BATCH,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.lr,
        weight_decay=train.weight_decay,
        lr_scheduler_type="constant_with_warmup" if train.schedule == "constant" else train.schedule,
        warmup_steps=round(train.warmup_fraction * train.steps),
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        logging_steps=min(_LOG_EVERY, every),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=train.keep_checkpoints,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        greater_is_better=True,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = AdapterTrainer(
        prepared.model,
        args,
        rates={"lr_A": train.lr_A, "lr_B": train.lr_B, "lr_head": train.lr_head},
        lengths=prepared.train.lengths,
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        data_collator=prepared.collator,
        compute_metrics=lambda scored: {"accuracy": accuracy(scored.predictions, scored.label_ids)},
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, recorder


def _test(trainer: AdapterTrainer, prepared: Prepared) -> tuple[float, list[int]]:
    scored = trainer.predict(prepared.test)  # pyright: ignore[reportArgumentType]
    logits, labels = np.asarray(scored.predictions), prepared.test.labels
    return accuracy(logits, labels), (logits.argmax(-1) == labels).astype(int).tolist()


def _bytes_to_write(model: nn.Module, recipe: Recipe) -> int:
    adapter = sum(t.numel() * t.element_size() for t in adapter_tensors(model).values())
    trained, _ = count_parameters(model)
    checkpoint = adapter + 8 * trained  # AdamW: two float32 values each
    return adapter + (recipe.train.keep_checkpoints + 2) * checkpoint
