"""What the factors do, logged beside the loss by any Hugging Face `Trainer` to the trackers that it reports to."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.diagnostics.probe import ProbeBatch
from asymlora.errors import SpecError, UnknownNameError

_OF_A_FACTOR = tuple(
    f"{name}_{f}" for name in ("grad", "norm", "update", "relative_update", "moved", "angle") for f in "AB"
)
QUANTITIES = ("Z_A", "Z_B", "delta1", "delta2", "delta3", "delta_Z_B", *_OF_A_FACTOR, "effective_rank", "stable_rank")
"""What is logged of each site; what a row of `FeatureDynamics` has besides is constant or no number."""
_VALUES_AT_ONCE = 500
"""MLflow takes no more than 1000 values in one call."""


class DynamicsCallback(TrainerCallback):
    """Measures with `FeatureDynamics` and logs ``asymlora/<site>/<quantity>`` to what ``report_to`` names.

    ``DynamicsCallback(probe_batch).add_to(trainer)``, before ``trainer.train()``, for the stock `Trainer`, TRL's and
    `AdapterTrainer`. TensorBoard, W&B, MLflow, trackio and every other tracker of transformers get the values, each at
    its step; transformers puts ``train/`` before the names. The trainer's log history and its printed lines do not, as
    a model has hundreds of them. The first process of a distributed run measures and logs, the others do nothing.

    Hooks hang only while the optimizer steps, so a run that raises leaves none behind. Of a frozen factor only
    ``moved`` is logged: it is 0 unless something has changed the factor.

    Args:
        measured: A probe batch: the model is measured as it is when training begins, a checkpoint loaded. Or a
            `FeatureDynamics`, made before; the arguments below are those that it has then.
        every: As for `FeatureDynamics`.
        max_rows: As for `FeatureDynamics`.
        adapter: As for `FeatureDynamics`.
        quantities: What is logged, of `QUANTITIES`; None: all.

    Attributes:
        dynamics: What measures; None before training begins.

    Raises:
        UnknownNameError: A quantity is not one of `QUANTITIES`.
    """

    def __init__(
        self,
        measured: FeatureDynamics | ProbeBatch,
        *,
        every: int = 20,
        max_rows: int = 256,
        adapter: str | None = None,
        quantities: Sequence[str] | None = None,
    ) -> None:
        given = isinstance(measured, FeatureDynamics)
        self.dynamics: FeatureDynamics | None = measured if given else None
        self.quantities = QUANTITIES if quantities is None else tuple(quantities)
        if unknown := [name for name in self.quantities if name not in QUANTITIES]:
            raise UnknownNameError(f"quantities={unknown} are not measured. Known are: {', '.join(QUANTITIES)}.")
        self._batch = None if given else measured
        self._options: dict[str, Any] = {"every": every, "max_rows": max_rows, "adapter": adapter}
        self._measured_model: weakref.ref[nn.Module] | None = None
        self._trainer: weakref.ref[Trainer] | None = None
        self._inside = ExitStack()
        self._told = 0

    def add_to(self, trainer: Trainer) -> DynamicsCallback:
        """Add this to a trainer, whose trackers get the values.

        Args:
            trainer: Any `Trainer`.

        Returns:
            This callback.
        """
        if not any(callback is self for callback in trainer.callback_handler.callbacks):
            trainer.add_callback(self)
        self._trainer = weakref.ref(trainer)
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Capture what the sites read, unless that was done before.

        Raises:
            SpecError: The callback was given to the trainer in another way than by `add_to`.
        """
        if self._trainer is None or self._trainer() is None:
            raise SpecError(
                "A DynamicsCallback does not know the trainer's trackers. Instead of callbacks=[...] or add_callback,"
                " call DynamicsCallback(probe_batch).add_to(trainer)."
            )
        if not state.is_world_process_zero:
            return
        model = given["model"]
        if self._batch is not None and (self._measured_model is None or self._measured_model() is not model):
            self.dynamics = FeatureDynamics(model, self._batch, **self._options)
            self._measured_model = weakref.ref(model)
        assert self.dynamics is not None
        self.dynamics.step = state.global_step
        self._told = len(self.dynamics.records)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Hang the hooks."""
        self._inside.close()  # the last step may have raised
        if self.dynamics is not None and state.is_world_process_zero:
            self._inside.enter_context(self.dynamics)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the hooks off."""
        self._inside.close()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Log what this step's measurement found."""
        trainer = None if self._trainer is None else self._trainer()
        if self.dynamics is None or trainer is None or not state.is_world_process_zero:
            return
        rows, self._told = self.dynamics.records[self._told :], len(self.dynamics.records)
        trackers = _trackers(trainer)
        for part in _parts(values(rows, self.quantities)):
            for tracker in trackers:
                tracker.on_log(args, state, control, logs=dict(part), **given)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take hooks off that a step has left."""
        self.release()

    def release(self) -> None:
        """Take hooks off that a step has left: the Trainer does not tell of the end of a training that raised."""
        self._inside.close()


def values(rows: Sequence[Mapping[str, Any]], quantities: Sequence[str] = QUANTITIES) -> dict[str, float]:
    """Return what is logged of some rows, by name.

    Args:
        rows: Rows of `FeatureDynamics` of one step.
        quantities: What is wanted of each.

    Returns:
        ``asymlora/<site>/<quantity>``; without what has no value, and without numbers of frozen factors but ``moved``.
    """
    return {
        f"asymlora/{row['site']}/{name}": row[name]
        for row in rows
        for name in quantities
        if row[name] is not None and _is_telling(row, name)
    }


def _is_telling(row: Mapping[str, Any], name: str) -> bool:
    return name not in _OF_A_FACTOR or name.startswith("moved") or row[f"trains_{name[-1]}"]


def _trackers(trainer: Trainer) -> list[Any]:
    known = tuple(integration_utils.INTEGRATION_TO_CALLBACK.values())
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, known)]


def _parts(logs: Mapping[str, float]) -> Iterator[list[tuple[str, float]]]:
    items = list(logs.items())
    for start in range(0, len(items), _VALUES_AT_ONCE):
        yield items[start : start + _VALUES_AT_ONCE]
