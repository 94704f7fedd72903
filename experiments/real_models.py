"""A pretrained model with its task, adapted again and again: loaded once, its head fitted once, all put back later."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from asymlora import AdapterSpec, attach, detach
from asymlora.optim import param_groups
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.task import Prepared
from asymlora.train.callbacks import quiet_transformers
from asymlora.train.trainer import AdapterTrainer


@dataclass(frozen=True, kw_only=True)
class Course:
    """How an adapter is trained.

    Attributes:
        steps: Of AdamW, without decay of the weights, warm-up or dropout of the adapter.
        batch_size: Rows a step.
        schedule: ``linear`` to 0, or ``constant``; the first step has the whole rate.
        max_grad_norm: Gradients are scaled down to this norm.
    """

    steps: int
    batch_size: int
    schedule: str = "linear"
    max_grad_norm: float = 1.0


class PretrainedTask:
    """A model and its rows.

    Args:
        task: As in a recipe.
        model: Which model.
        data: Which rows.

    Attributes:
        prepared: All that the task gives.
        network: The model.
        validation_of_head: Metric of the fitted head on the validation rows; NaN where the task has no head.
    """

    def __init__(self, task: str, model: ModelRecipe, data: DataRecipe) -> None:
        quiet_transformers()
        self.prepared: Prepared = prepare_task(task, model, data, head_seed=0)
        self.network: nn.Module = self.prepared.model
        self.validation_of_head = math.nan
        if self.prepared.fit_head is not None:
            head = self.prepared.fit_head(lambda rows: None)
            self.validation_of_head = head.validation
            if head.copy_to_model is not None:
                head.copy_to_model()
        heads = {name: self.network.get_submodule(name) for name in self.prepared.heads}
        self._start = {name: _copy(head.state_dict()) for name, head in heads.items()}

    @contextmanager
    def adapted(self, spec: AdapterSpec) -> Iterator[nn.Module]:
        """Put an adapter on the model, its head trained beside it, and take both off again.

        Args:
            spec: The adapter.

        Yields:
            The model.
        """
        in_full = (*spec.modules_to_save, *self.prepared.heads)
        attach(self.network, replace(spec, modules_to_save=in_full))
        try:
            yield self.network
        finally:
            detach(self.network)
            for name, start in self._start.items():
                self.network.get_submodule(name).load_state_dict(start)

    def trainer(
        self,
        course: Course,
        *,
        rates: dict[str, float],
        seed: int,
        after_step: Callable[[int, float], None] | None = None,
    ) -> AdapterTrainer:
        """Build what trains the adapted model.

        Args:
            course: How.
            rates: Arguments of `param_groups`: ``lr``, and others where they differ.
            seed: Of the order of the rows and the model's own dropout.
            after_step: Called after each step with its number, from 1, and its loss.

        Returns:
            The Trainer.
        """
        prepared = self.prepared
        trainer = AdapterTrainer(
            self.network,
            _arguments(course, seed),
            optimize=lambda wrapped: torch.optim.AdamW(param_groups(wrapped, **rates)),
            scoring=prepared.scoring,
            lengths=prepared.train.lengths,
            train_dataset=prepared.train,
            data_collator=prepared.collator,
            compute_loss_func=prepared.loss and _loss_of(prepared.loss),
            callbacks=[_AfterStep(after_step)] if after_step else [],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def batch(self, rows: int) -> dict[str, Tensor]:
        """Return evenly spaced validation rows, which are sorted by length, as a batch without labels.

        Args:
            rows: How many.
        """
        items = self.prepared.validation
        count = min(rows, len(items))
        made = self.prepared.collator([dict(items[i * len(items) // count]) for i in range(count)])
        return {key: value for key, value in made.items() if key != "labels"}

    def score(self, trainer: AdapterTrainer) -> float:
        """Return the task's metric on the validation rows."""
        scoring = self.prepared.scoring
        return scoring.score(trainer.evidence_of(self.prepared.validation))[scoring.metric]


class _AfterStep(TrainerCallback):
    def __init__(self, after_step: Callable[[int, float], None]) -> None:
        self.after_step = after_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.after_step(state.global_step, logs["loss"])


def _arguments(course: Course, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written
        max_steps=course.steps,
        per_device_train_batch_size=course.batch_size,
        per_device_eval_batch_size=64,
        lr_scheduler_type=course.schedule,
        max_grad_norm=course.max_grad_norm,
        weight_decay=0.0,
        use_cpu=True,
        seed=seed,
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def _loss_of(loss: Callable[[Any, Tensor, Any], Tensor]) -> Callable[..., Tensor]:
    return lambda outputs, labels, num_items_in_batch: loss(outputs, labels, num_items_in_batch)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in state.items()}
