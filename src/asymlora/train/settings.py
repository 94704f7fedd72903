"""From a recipe to the Trainer that runs it: every training field of the recipe has its place here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)

from asymlora.errors import MissingPackageError, SpecError, UnknownNameError, nearest
from asymlora.gradient_correction import correct_gradients
from asymlora.tasks.task import Prepared
from asymlora.train import processes
from asymlora.train.callbacks import Observer, Recorder
from asymlora.train.memory_check import Planned, memory_line, refuse_too_large
from asymlora.train.methods import Method
from asymlora.train.optimizers import build_optimizer, scheduler_type
from asymlora.train.recipe import Recipe
from asymlora.train.run_folder import RunFolder
from asymlora.train.trainer import AdapterTrainer

LOG_EVERY = 10
SCORED_TOGETHER = 64
"""Rows of a batch of evaluation, over all processes."""
TENSORBOARD = "tensorboard"


def refuse_unavailable(recipe: Recipe, *, strict: bool = False) -> None:
    """Refuse sharding and trackers that this machine does not have, before anything is read or replaced.

    Args:
        recipe: The run.
        strict: Whether it is to stop at the first verdict.

    Raises:
        SpecError: Sharding is asked for without an accelerator, or of another method than an adapter; or a strict run
            would measure nothing.
        UnknownNameError: There is no such tracker; the names are listed.
        MissingPackageError: A tracker's package is not installed.
    """
    if recipe.train.sharding == "fsdp":
        if not torch.cuda.is_available():
            raise SpecError(
                "train.sharding=fsdp needs accelerators: on a CPU, Accelerate runs DDP instead without a word. Leave it"
                " out to run DDP, or shard in a loop of your own with asymlora.sharding (docs/distributed.md)."
            )
        if recipe.method != "adapter":
            raise SpecError(f"train.sharding=fsdp takes method=adapter; method={recipe.method!r} runs under DDP.")
    if strict and (recipe.train.dynamics_every == 0 or recipe.train.sharding == "fsdp"):
        raise SpecError(
            "strict stops at the first verdict on the factors, and this run measures none: train.dynamics_every must be"
            " at least 1 (20 is the default) and train.sharding none. Change that, or leave out --strict."
        )
    known, here = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in recipe.train.report_to:
        if name not in known:
            raise UnknownNameError(
                f"train.report_to names {name!r}, which is no tracker of transformers.{nearest(name, known)} Known:"
                f" {', '.join(known)}; leave it out for none."
            )
        if name not in here:
            raise MissingPackageError(f"train.report_to={name} needs a package that is not here: pip install {name}")


def refuse_optimizer(recipe: Recipe, method: Method, network: nn.Module) -> None:
    """Refuse an optimizer that cannot train what the method trains: build it once, before an older run is touched.

    Args:
        recipe: The run.
        method: What is trained.
        network: The model with what is trained on it.
    """
    _optimizer(recipe, method, network)


def make_trainer(
    recipe: Recipe, prepared: Prepared, method: Method, network: nn.Module, *, folder: RunFolder, watcher: Observer
) -> tuple[AdapterTrainer, Recorder]:
    """Build the Trainer of a run.

    Args:
        recipe: The run.
        prepared: Its task.
        method: What is trained.
        network: The model with what is trained on it.
        folder: Where checkpoints and records go.
        watcher: Who is told how it goes on.

    Returns:
        The Trainer, and what writes its records.

    Raises:
        SpecError: Sharding was asked for, and this machine would run without it.
    """
    train, scoring = recipe.train, prepared.scoring
    if train.gradient_checkpointing:
        # Not by the Trainer's argument, which has another name from version to version, as the method has.
        name = "activation" if hasattr(prepared.model, "activation_checkpointing_enable") else "gradient"
        enable = getattr(prepared.model, f"{name}_checkpointing_enable")
        enable(**{f"{name}_checkpointing_kwargs": {"use_reentrant": False}})
    seconds = [row["wall_s"] for row in folder.records() if "wall_s" in row]
    recorder = Recorder(folder, watcher, metric=scoring.metric, seconds_before=max(seconds, default=0.0))
    trainer = AdapterTrainer(
        network,
        training_arguments(recipe, prepared, folder),
        method=method,
        optimize=partial(_optimizer, recipe, method),
        scoring=scoring,
        lengths=prepared.train.lengths,
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        data_collator=prepared.collator,
        compute_loss_func=prepared.loss and partial(_loss, prepared.loss),
        callbacks=[recorder, MethodSteps(method, network), *_callbacks(recipe, folder)],
    )
    trainer.remove_callback(PrinterCallback)
    if train.sharding == "fsdp" and not trainer.is_fsdp_enabled:
        raise SpecError("train.sharding=fsdp was asked for, and Accelerate would run without it. Start with torchrun.")
    if trainer.args.world_size != processes.count():
        raise SpecError(
            f"{processes.count()} processes were started, and Accelerate takes this one for one of"
            f" {trainer.args.world_size}: each would train alone. Start them with torchrun or accelerate launch."
        )
    return trainer, recorder


def training_arguments(recipe: Recipe, prepared: Prepared, folder: RunFolder) -> TrainingArguments:
    """Return the Trainer's arguments for a recipe.

    Args:
        recipe: The run.
        prepared: Its task.
        folder: Where checkpoints go.

    Returns:
        The arguments.
    """
    train = recipe.train
    every = min(train.evaluate_every, train.steps)
    sharded: dict[str, Any] = {}
    if train.sharding == "fsdp":
        sharded = {"fsdp": "full_shard", "fsdp_config": {"version": 2}}
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=train.steps,
        per_device_train_batch_size=processes.share(train.batch_size),
        per_device_eval_batch_size=max(1, SCORED_TOGETHER // processes.count()),
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.lr,
        weight_decay=train.weight_decay,
        lr_scheduler_type=scheduler_type(train.schedule),
        warmup_steps=round(train.warmup_fraction * train.steps),
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),  # the Trainer refuses bfloat16 on a CPU that is not asked for
        seed=train.seed,
        logging_steps=min(LOG_EVERY, every),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=train.keep_checkpoints,
        load_best_model_at_end=True,
        metric_for_best_model=prepared.scoring.metric,
        greater_is_better=prepared.scoring.greater_is_better,
        restore_callback_states_from_checkpoint=train.patience is not None,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[name for name in train.report_to if name != TENSORBOARD] or "none",
        # The task's collator picks what the model takes; the signature would drop what a task adds.
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # Frozen factors are buffers and the same in every process; only batch norm has buffers that change.
        ddp_broadcast_buffers=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in prepared.model.modules()),
        dataloader_pin_memory=torch.cuda.is_available(),
        **sharded,
    )


def memory_sentence(recipe: Recipe, prepared: Prepared) -> str:
    """Predict whether a step fits into memory, before an adapter is on the model.

    Args:
        recipe: The run.
        prepared: Its task.

    Returns:
        The sentence for the user. Where the step is known not to fit and ``train.memory_check`` is on, the run is
        refused with what to change.
    """
    train, in_full = recipe.train, (*recipe.adapter.modules_to_save, *prepared.heads)
    spec = replace(recipe.adapter, modules_to_save=tuple(dict.fromkeys(in_full)))
    line = memory_line(
        prepared.model,
        spec if recipe.method == "adapter" else None,
        Planned(
            batch=processes.share(train.batch_size),
            length=max(prepared.train.lengths),
            optimizer=train.optimizer,
            momentum=bool(train.optimizer_options.get("momentum")),
            checkpointing=train.gradient_checkpointing,
            base=recipe.model.base,
            everything=recipe.method == "full",
            device="cuda" if torch.cuda.is_available() else "cpu",
        ),
    )
    if train.memory_check:
        refuse_too_large(line)
    return line.sentence


class MethodSteps(TrainerCallback):
    """Does what a method does after each step of the optimizer.

    Args:
        method: The method.
        network: What it trains.
    """

    def __init__(self, method: Method, network: nn.Module) -> None:
        self.method = method
        self.network = network

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tell the method, while the gradients are still there."""
        self.method.after_step(self.network, state.global_step + 1)


def _loss(loss: Callable[[Any, Tensor, Any], Tensor], outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    return loss(outputs, labels, num_items_in_batch)


def _callbacks(recipe: Recipe, folder: RunFolder) -> list[TrainerCallback]:
    made: list[TrainerCallback] = []
    if recipe.train.patience is not None:
        made.append(EarlyStoppingCallback(early_stopping_patience=recipe.train.patience))
    if TENSORBOARD in recipe.train.report_to and folder.writes:
        # Of its own, as the Trainer would write below the checkpoints, which go when the run ends.
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingPackageError("train.report_to=tensorboard needs it: pip install tensorboard") from None
        made.append(TensorBoardCallback(SummaryWriter(str(folder.path / TENSORBOARD))))
    return made


def _optimizer(recipe: Recipe, method: Method, network: nn.Module) -> torch.optim.Optimizer:
    train = recipe.train
    made = method.optimizer(network, train)
    if made is None:
        made = build_optimizer(train.optimizer, method.groups(network, train), train.optimizer_options)
    if train.gradient_correction:
        correct_gradients(network, made)
    return made
