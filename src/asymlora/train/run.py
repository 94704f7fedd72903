"""A run from its recipe to its result: data, model, baseline, training, closing figures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from asymlora.attaching import count_parameters
from asymlora.errors import DataError, DivergedError, RunFolderError
from asymlora.site_view import find_attached, saved_modules, sites
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.sources import label_of
from asymlora.tasks.task import Prepared
from asymlora.train import processes
from asymlora.train.baseline import Baseline, measure_baseline, stored_baseline
from asymlora.train.callbacks import Observer, Silent
from asymlora.train.health_watch import HealthWatch
from asymlora.train.methods import METHODS, Method
from asymlora.train.optimizers import optimizer_class
from asymlora.train.paired_gain import paired_gain
from asymlora.train.recipe import Recipe
from asymlora.train.run_folder import RunFolder, claim, peak_bytes, require_same_recipe
from asymlora.train.settings import make_trainer, memory_sentence, refuse_optimizer, refuse_unavailable
from asymlora.train.trainer import AdapterTrainer, has_ended, last_checkpoint, step_of


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run produced.

    Attributes:
        folder: The run's folder.
        task: The task.
        method: What was trained.
        model: What the pretrained model is, in the words of its source.
        label_names: Names of the labels, by index; empty where there are none.
        rows: Rows by part; ``dropped``: rows left out because their input stands in another part.
        metric: The metric of the figures below, by which choices were made.
        greater_is_better: Whether more of it is better.
        baseline_kind: ``head alone``: a linear head on the frozen model, fitted to convergence; ``base model``: the
            model as it came.
        baseline: Metric of the baseline on the test part.
        before: Metric of the model as the training found it, on the test part.
        score: Metric of the best step's weights on the test part.
        gain: By how much the metric is better than the baseline's.
        gain_standard_error: Standard error of the gain over the test rows, paired by row; None where it is not known.
        validation: Metric of the best step on the part that it was chosen on.
        metrics: Every metric on the test part, of ``baseline``, ``before`` and ``after``.
        environments: Every metric on further sets, by their name, ``before`` and ``after``.
        closing: Further measurements by name, ``before`` and ``after``.
        best_step: The step whose weights were kept.
        steps: Steps taken.
        trained_parameters: Values trained, the head included.
        head_parameters: Values of the head, and of what else is trained in full.
        lora_parameters: Values that LoRA with both factors would train at the same rank and targets, head included;
            None for other methods than an adapter.
        full_parameters: Values of the whole model.
        adapter_bytes: Size of the weight files that are kept.
        baseline_seconds: Seconds for the baseline, features and fit included.
        train_seconds: Seconds of training, validation included.
        samples_per_second: Rows per second of training steps, of this process's part of the run; None if it had none.
        total_seconds: Seconds of the whole command.
        peak_memory_bytes: Largest resident memory of the process, or None where it cannot be told.
        resumed: Whether the run was interrupted and gone on with.
        health: The verdicts on the factors and heads, each as `asymlora.diagnostics.health.Verdict` names its parts.
        watched_sites: Sites whose factors were measured.
        watched_steps: Steps at which they were.
    """

    folder: str
    task: str
    method: str
    model: str
    label_names: tuple[str, ...]
    rows: dict[str, int]
    metric: str
    greater_is_better: bool
    baseline_kind: str
    baseline: float
    before: float
    score: float
    gain: float
    gain_standard_error: float | None
    validation: float
    metrics: dict[str, dict[str, float]]
    environments: dict[str, dict[str, dict[str, float]]]
    closing: dict[str, dict[str, dict[str, float]]]
    best_step: int
    steps: int
    trained_parameters: int
    head_parameters: int
    lora_parameters: int | None
    full_parameters: int
    adapter_bytes: int
    baseline_seconds: float
    train_seconds: float
    samples_per_second: float | None
    total_seconds: float
    peak_memory_bytes: int | None
    resumed: bool
    health: tuple[dict[str, Any], ...]
    watched_sites: int
    watched_steps: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the folder is left out, as it may move."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


@dataclass(frozen=True, kw_only=True)
class _Run:
    # What the stages of a run share.
    recipe: Recipe
    prepared: Prepared
    method: Method
    network: nn.Module
    folder: RunFolder
    watcher: Observer
    full_parameters: int
    strict: bool


def finetune(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
    strict: bool = False,
) -> RunResult:
    """Fine-tune a pretrained model and measure what it bought.

    Everything that can be wrong with the recipe, the data, the model, the memory and the disk is found before an older
    run is touched and before the training starts. Started by ``torchrun``, every process runs this with the same
    arguments; the first one writes.

    Args:
        recipe: The run.
        output: Its folder; None: a new one below ``runs/``.
        resume: Go on with the unfinished run in the folder, to the same weights as without the interruption.
        overwrite: Replace the run in the folder.
        observer: Who is told how it goes on.
        strict: Stop at the first verdict on the health of factors and heads (`UnhealthyError`); what is stopped can be
            resumed.

    Returns:
        The closing figures; they also stand in ``result.json``.

    Raises:
        RunFolderError: The folder is not seen by every process.
    """
    started = time.monotonic()
    processes.share(recipe.train.batch_size)
    processes.join()
    watcher = observer if observer is not None and processes.is_first() else Silent()
    method = METHODS[recipe.method]
    method.refuse_unused(recipe)
    optimizer_class(recipe.train.optimizer, recipe.train.optimizer_options)
    refuse_unavailable(recipe, strict=strict)
    claimed = processes.on_first(lambda: _claim(recipe, output, resume=resume, overwrite=overwrite))
    folder = replace(claimed, writes=processes.is_first())
    watcher.stage(f"Reading {recipe.data.name} and {label_of(recipe.model.name)}")
    prepared = prepare_task(recipe.task, recipe.model, recipe.data, head_seed=recipe.train.seed)
    full = sum(p.numel() for p in prepared.model.parameters())
    watcher.stage(memory_sentence(recipe, prepared))
    network = method.put_on(prepared.model, recipe, prepared.heads)
    refuse_optimizer(recipe, method, network)
    processes.on_first(lambda: folder.check_space(_bytes_to_write(network, recipe)))
    run = _Run(
        recipe=recipe,
        prepared=prepared,
        method=method,
        network=network,
        folder=folder,
        watcher=watcher,
        full_parameters=full,
        strict=strict,
    )
    with ExitStack() as held, processes.loss_of_a_process_said(_how_to_resume(folder)):
        processes.on_first(lambda: _begin(held, run))
        if not folder.path.is_dir():
            raise RunFolderError(
                f"{folder.path} was made by the first process and is not there for this one. Give an --output on a disk"
                " that all machines see."
            )
        watcher.begun(str(folder.path))
        return _run(run, started=started)


def _claim(recipe: Recipe, output: str | Path | None, *, resume: bool, overwrite: bool) -> RunFolder:
    folder = claim(output, resume=resume, overwrite=overwrite)
    if folder.resumes:
        require_same_recipe(folder.path, recipe)
    folder.check_space(0)
    return folder


def _begin(held: ExitStack, run: _Run) -> None:
    held.enter_context(run.folder.begun(run.recipe))


def _how_to_resume(folder: RunFolder) -> str:
    return f"Start it again with --output {folder.path} --resume."


def _run(run: _Run, *, started: float) -> RunResult:
    recipe, prepared, folder, watcher = run.recipe, run.prepared, run.folder, run.watcher
    checkpoint = last_checkpoint(folder.checkpoints, run.method) if folder.resumes else None
    if folder.resumes:
        folder.forget_after(step_of(checkpoint) if checkpoint else -1)
        processes.wait()
    watcher.stage(_counts(prepared))
    for note in (*prepared.notes, *run.method.notes(recipe)):
        watcher.stage(note)
    trainer, recorder = make_trainer(recipe, prepared, run.method, run.network, folder=folder, watcher=watcher)
    watch = HealthWatch(recipe, prepared, method=run.method, network=run.network, folder=folder, strict=run.strict)
    watch.add_to(trainer)
    if watch.note:
        watcher.stage(watch.note)
    baseline = _baseline(run, trainer, fresh=checkpoint is None)
    watcher.stage(f"Training {recipe.train.steps} steps" + (f" from {checkpoint.name}" if checkpoint else ""))
    if checkpoint and has_ended(checkpoint, steps=recipe.train.steps):
        trainer.restore(checkpoint)  # the Trainer would take further steps
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    train_seconds = recorder.seconds
    watcher.stage("Scoring the test part")
    after = _test(trainer, prepared)
    refuse_diverged(prepared.scoring.score(after.evidence), recipe)
    if folder.writes or trainer.is_fsdp_enabled:  # what is sharded is gathered by all processes together
        run.method.save(run.network, folder.adapter, base_model=recipe.model.name, task_type=prepared.task_type)
    processes.wait()
    result = _result(
        run,
        trainer,
        baseline,
        after=after,
        health=watch.close(),
        train_seconds=round(train_seconds, 3),
        samples_per_second=recorder.samples_per_second(recipe.train.batch_size * recipe.train.gradient_accumulation),
        total_seconds=round(time.monotonic() - started, 3),
    )
    folder.record({"split": "test", "step": result.best_step, **result.metrics["after"]})
    folder.finish(result.to_dict())
    return result


def _counts(prepared: Prepared) -> str:
    rows = {name: len(items) for name, items in prepared.parts.items()}
    further = "".join(f", {len(items):,} of {name}" for name, items in prepared.environments.items())
    return (
        f"{rows['train']:,} training rows, {rows['validation']:,} for choices, {rows['test']:,} for the closing"
        f" figures{further}"
    )


def _baseline(run: _Run, trainer: AdapterTrainer, *, fresh: bool) -> Baseline:
    digest = run.prepared.digest()
    file = run.folder.checkpoints
    if not fresh and (measured := stored_baseline(file)) is not None:
        if measured.data_sha256 != digest:
            raise DataError(
                f"The rows of {run.recipe.data.name} are others than when the run in {run.folder.path} began. Give it"
                " the same data to go on with it, or begin a new run."
            )
        return measured
    copies = run.recipe.train.head_start == "probe"
    measured = measure_baseline(run.prepared, trainer, copies_head=copies, watcher=run.watcher, data_sha256=digest)
    if run.folder.writes:
        measured.store(file)
    metrics = run.prepared.scoring.score(np.array(measured.evidence))
    run.folder.record({"split": "test", "step": 0, "what": measured.kind, **metrics})
    metric = run.prepared.scoring.metric
    run.watcher.stage(f"{measured.kind.capitalize()}: {metric} {metrics[metric]:.3f} on the test part")
    return measured


@dataclass(frozen=True, kw_only=True)
class _After:
    # What the trained model reaches: evidence of the test rows, metrics of further sets, further measurements.
    evidence: np.ndarray
    environments: dict[str, dict[str, float]]
    closing: dict[str, dict[str, float]]


def _test(trainer: AdapterTrainer, prepared: Prepared) -> _After:
    evidence = trainer.evidence_of(prepared.test)
    environments = {
        name: prepared.scoring.score(trainer.evidence_of(items)) for name, items in prepared.environments.items()
    }
    trainer.network.eval()
    closing = {name: measure(trainer.network) for name, measure in prepared.closing.items()}
    return _After(evidence=evidence, environments=environments, closing=closing)


def refuse_diverged(metrics: Mapping[str, float], recipe: Recipe, *, part: str = "test") -> None:
    """Refuse weights whose figures on a part of the rows are not finite.

    Raises:
        DivergedError: One is not.
    """
    if bad := [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]:
        raise DivergedError(
            f"The weights that were kept give {', '.join(bad)} on the {part} part, with train.lr={recipe.train.lr:.3g}."
            " Lower train.lr (a third is a fair next try)."
        )


def _result(
    run: _Run, trainer: AdapterTrainer, baseline: Baseline, *, after: _After, health: Mapping[str, Any], **timings: Any
) -> RunResult:
    prepared, scoring, network = run.prepared, run.prepared.scoring, run.network
    before = np.array(baseline.evidence if baseline.before is None else baseline.before)
    sign = 1 if scoring.greater_is_better else -1
    metrics = {
        "baseline": scoring.score(np.array(baseline.evidence)),
        "before": scoring.score(before),
        "after": scoring.score(after.evidence),
    }
    gain, error = paired_gain(
        lambda rows: sign * scoring.score(rows)[scoring.metric], np.array(baseline.evidence), after.evidence
    )
    trained, _ = count_parameters(network)
    adapted = find_attached(network) is not None
    heads = head_values(network, prepared)
    return RunResult(
        folder=str(run.folder.path),
        task=run.recipe.task,
        method=run.recipe.method,
        model=label_of(run.recipe.model.name),
        label_names=prepared.label_names,
        rows={
            **{name: len(items) for name, items in {**prepared.parts, **prepared.environments}.items()},
            "dropped": prepared.dropped,
        },
        metric=scoring.metric,
        greater_is_better=scoring.greater_is_better,
        baseline_kind=baseline.kind,
        baseline=metrics["baseline"][scoring.metric],
        before=metrics["before"][scoring.metric],
        score=metrics["after"][scoring.metric],
        gain=gain,
        gain_standard_error=error,
        validation=float(trainer.state.best_metric or 0.0),
        metrics=metrics,
        environments={
            name: {"before": baseline.environments[name], "after": after.environments[name]}
            for name in prepared.environments
        },
        closing={name: {"before": baseline.closing[name], "after": after.closing[name]} for name in prepared.closing},
        best_step=trainer.state.best_global_step or trainer.state.global_step,
        steps=trainer.state.global_step,
        trained_parameters=trained,
        head_parameters=heads,
        lora_parameters=heads + sum(s.A.numel() + s.B.numel() for s in sites(network)) if adapted else None,
        full_parameters=run.full_parameters,
        adapter_bytes=sum(f.stat().st_size for f in run.folder.adapter.glob("*.safetensors")),
        baseline_seconds=round(baseline.seconds, 3),
        peak_memory_bytes=peak_bytes(),
        resumed=run.folder.resumes,
        health=tuple(health["verdicts"]),
        watched_sites=health["sites"],
        watched_steps=health["steps"],
        **timings,
    )


def head_values(network: nn.Module, prepared: Prepared) -> int:
    """Return how many values are trained of heads and of what else is trained in full.

    Args:
        network: What a method put on the task's model.
        prepared: The task.
    """
    if find_attached(network) is not None:
        heads = list(saved_modules(network).values())
    else:
        heads = [prepared.model.get_submodule(path) for path in prepared.heads]
    # Only what is trained: PEFT keeps the head as it was beside the one that it trains.
    return sum(p.numel() for head in heads for p in head.parameters() if p.requires_grad)


def _bytes_to_write(network: nn.Module, recipe: Recipe) -> int:
    trained, _ = count_parameters(network)
    frozen = sum(s.A.numel() + s.B.numel() for s in sites(network)) if find_attached(network) is not None else 0
    adapter = 4 * (trained + frozen)
    checkpoint = adapter + 8 * trained  # AdamW: two float32 values each
    return adapter + (recipe.train.keep_checkpoints + 2) * checkpoint
