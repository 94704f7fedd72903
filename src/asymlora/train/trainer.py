"""The Hugging Face Trainer, subclassed once and thinly: factor-aware groups, adapter checkpoints, a stop on NaN."""

from __future__ import annotations

import copy
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from asymlora.atomic import STAGING_PREFIX, publish_folder, remove_folder
from asymlora.errors import AsymloraError, AttachError, DivergedError
from asymlora.optim import param_groups
from asymlora.site_view import find_attached, sites
from asymlora.tasks.task import Items, Scoring, longest_first
from asymlora.train.batching import LengthGroupedSampler
from asymlora.train.methods import METHODS, Method

_STATE_FILE = "trainer_state.json"
_SILENT_STEPS = 10
_MEMORY = "in memory"
"""Stands where the Trainer wants the path of the best checkpoint."""
_NEEDED = ("optimizer.pt", "scheduler.pt", _STATE_FILE)


class AdapterTrainer(Trainer):
    """A `Trainer` for models that carry an asymlora adapter.

    What differs, and why (read in the source of transformers 5.23):

    * The optimizer gets `param_groups`: the stock groups know no factors.
    * A checkpoint holds the adapter, the modules trained beside it and the optimizer's state. It is written to a
      staging folder and renamed; the stock one writes the whole model, in place.
    * A loss or weight that is not finite stops the run before it reaches a checkpoint; the stock loop averages it away.
    * A quantised base passes the Trainer's refusal, because its adapters are what is trained.

    Args:
        model: An attached model, or what another method trains.
        args: As for the `Trainer`; ``learning_rate`` and ``weight_decay`` are those of `param_groups`.
        rates: Absolute rates, ``lr_A``, ``lr_B``, ``lr_head``; None for the default of `param_groups`.
        lengths: Tokens of each training row, for batches of similar length; None for the Trainer's own order.
        method: What is trained and how its weights are kept; None: an adapter of ours.
        optimize: Builds the optimizer over a model, possibly wrapped; None: the one that ``args`` name.
        scoring: How evaluation measures the model; None: the Trainer's own way.
        **others: As for the `Trainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        rates: Mapping[str, float | None] | None = None,
        lengths: list[int] | None = None,
        method: Method | None = None,
        optimize: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        scoring: Scoring | None = None,
        **others: Any,
    ) -> None:
        self.network = model
        self.rates = dict(rates or {})
        self.lengths = lengths
        self.method = method or METHODS["adapter"]
        self.optimize = optimize
        self.scoring = scoring
        self.evidence: Any = None
        self._scored: Any = None
        if scoring is not None:
            others["compute_metrics"] = self._metrics
        # Rotation is done here, of what this run wrote: the stock one deletes in place, whatever has the right name.
        args = copy.copy(args)
        self.keep_checkpoints, args.save_total_limit = args.save_total_limit, None
        self._own_steps: set[int] = set()
        self._silent: set[str] | None = None
        self._staging: Path | None = None
        self._in_memory = False
        self._put_best_back: Callable[[], None] | None = None
        # The flag by which the Trainer knows that a quantised model has adapters on it.
        unmarked = find_attached(model) is not None and not getattr(model, "_hf_peft_config_loaded", False)
        try:
            if unmarked:
                model.__dict__["_hf_peft_config_loaded"] = True
            super().__init__(model=model, args=args, **others)
        finally:
            if unmarked:
                del model.__dict__["_hf_peft_config_loaded"]

    def keep_in_memory(self) -> None:
        """Keep the best step's weights in memory and write no checkpoint: the run cannot be resumed."""
        self._in_memory = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over named groups, one for each factor and kind."""
        wrapped = self.network if model is None else model
        if self.optimizer is None and self.optimize is not None:
            self.optimizer = self.optimize(wrapped)
        if self.optimizer is None:
            groups = param_groups(
                wrapped, lr=self.args.learning_rate, weight_decay=self.args.weight_decay, **self.rates
            )
            chosen, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = chosen(groups, **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        together = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        told = getattr(self.train_dataset, "set_epoch", None)
        return LengthGroupedSampler(self.lengths, batch_size=together, seed=seed, told=told)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return super()._get_eval_sampler(eval_dataset) if self.scoring is None else longest_first(eval_dataset)

    def evaluation_loop(self, dataloader: Any, *args: Any, **options: Any) -> Any:
        """Score a set of rows; `evidence` holds what the metrics saw of each."""
        self._scored = dataloader.dataset
        return super().evaluation_loop(dataloader, *args, **options)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Run the model on one batch, as the task scores it."""
        if self.scoring is None:
            return super().prediction_step(model, inputs, *args, **options)
        inputs = self._prepare_inputs(inputs)  # pyright: ignore[reportAssignmentType]
        with torch.inference_mode(), self.accelerator.autocast():
            kept = self.scoring.keep(model, inputs)
        # Labels stand for nothing here, but without them the Trainer asks for no metrics.
        return None, kept.clone(), kept.new_zeros(len(kept))

    def evidence_of(self, items: Items) -> np.ndarray:
        """Run the model over a set of rows and return what the metrics see of each.

        Args:
            items: The rows.

        Returns:
            Shape ``(rows, m)``, as `Scoring.evidence` gives it.
        """
        self.predict(items)  # pyright: ignore[reportArgumentType]
        return self.evidence

    def skip_scoring(self) -> None:
        """Leave the random numbers as `evidence_of` leaves them, without running the model.

        Each pass of a `DataLoader` draws one number from torch's global generator, from which dropout draws next.
        """
        iter(DataLoader([0]))  # pyright: ignore[reportArgumentType]

    def _metrics(self, scored: Any) -> dict[str, float]:
        assert self.scoring is not None
        kept = np.empty_like(scored.predictions)
        kept[longest_first(self._scored)] = scored.predictions
        self.evidence = self.scoring.evidence(kept, self._scored)
        return self.scoring.score(self.evidence)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Do one forward and backward pass.

        Args:
            model: The model, possibly wrapped.
            inputs: One batch.
            num_items_in_batch: As for the `Trainer`.

        Returns:
            The loss, a scalar.

        Raises:
            DivergedError: The loss is not finite; the weights are still those of the step before.
            AttachError: An adapter has had no gradient in the first steps: the model never calls its layer.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise self._diverged(f"The loss is {loss.item()}")
        self._refuse_silent_sites()
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Return the loss, with what the method adds to it."""
        loss = super().compute_loss(model, inputs, *args, **options)
        penalty = self.method.penalty(self.network)
        if penalty is None or not isinstance(loss, Tensor):
            return loss
        # A loss of the task's own is a mean over all accumulated batches already; the model's is divided later.
        batches = self.current_gradient_accumulation_steps if self.compute_loss_func is not None else 1
        return loss + penalty / batches

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the Trainer's estimate, which counts the model's parameters at each step, where a state is written."""
        return 0 if self._in_memory else super().floating_point_ops(inputs)

    def _refuse_silent_sites(self) -> None:
        # A few steps, as a layer of a mixture of experts may not be called in each.
        if self._silent is None:
            self._silent = {site.name for site in sites(self.network)} if find_attached(self.network) else set()
        if not self._silent:
            return
        heard = {s.name for s in sites(self.network) if s.A.grad is not None or s.B.grad is not None}
        self._silent -= heard
        if self._silent and self.state.global_step + 1 >= min(_SILENT_STEPS, self.state.max_steps):
            shown = ", ".join(sorted(self._silent)[:3])
            raise AttachError(
                f"{len(self._silent)} adapters have had no gradient in {self.state.global_step + 1} steps ({shown}):"
                " the model does not call these layers, or reads their weights only. Leave them out of adapter.targets."
            )

    def _diverged(self, what: str) -> DivergedError:
        groups = self.optimizer.param_groups if self.optimizer else []
        rates = ", ".join(f"{g.get('name', 'lr')} {g['lr']:.3g}" for g in groups)
        good = last_checkpoint(Path(str(self.args.output_dir)), self.method)
        kept = f" The last good checkpoint is {good}." if good else " No checkpoint was written yet."
        step = self.state.global_step + 1
        return DivergedError(
            f"{what} at step {step}, with the learning rates {rates}.{'' if self._in_memory else kept} Lower train.lr"
            " (a third is a fair next try), or look at the data of this step.",
            step=step,
        )

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            # Under FSDP the Trainer has gathered the state in all processes, and comes here in the first alone.
            gathered = state_dict if self.is_fsdp_enabled else None
            self.method.save(self.network, Path(output_dir or str(self.args.output_dir)), state=gathered)

    def _prepare_for_training(self, *args: Any, **options: Any) -> Any:
        # A score before the training marks the model as prepared, and Accelerate would then leave it without DDP: each
        # process would train alone (read in accelerate 1.15, tests/test_torchrun.py).
        vars(self.network).pop("_is_accelerate_prepared", None)
        return super()._prepare_for_training(*args, **options)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        bad = [n for n, p in self.network.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
        if bad:
            raise self._diverged(f"{bad[0]} (and {len(bad) - 1} more) holds NaN or infinity")
        if self._in_memory:
            self._keep_if_best()
            return
        final = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = final / f"{STAGING_PREFIX}{name}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(final / name)  # in every process, which all load it at the end
            if self.args.should_save:
                self._publish(self._staging / name, final / name)
            self.accelerator.wait_for_everyone()
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None

    def _keep_if_best(self) -> None:
        if self.state.best_global_step == self.state.global_step:
            self._put_best_back = self.method.keep(self.network)
            self.state.best_model_checkpoint = _MEMORY

    def _publish(self, staged: Path, final: Path) -> None:
        if self.state.best_global_step == self.state.global_step:
            self.state.save_to_json(str(staged / _STATE_FILE))
        if final.exists():
            remove_folder(final)
        publish_folder(staged, final)
        self._own_steps.add(self.state.global_step)
        if self.keep_checkpoints is None:
            return
        own = sorted((f for f in checkpoints(final.parent) if step_of(f) in self._own_steps), key=step_of)
        for old in own[: -self.keep_checkpoints]:
            if step_of(old) != self.state.best_global_step:
                remove_folder(old)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.method.fill(self.network if model is None else model, Path(resume_from_checkpoint))

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        trained = super()._init_training_state(*args, **kwargs)
        self._own_steps = {step_of(f) for f in checkpoints(Path(str(self.args.output_dir)))}
        self._own_steps = {step for step in self._own_steps if step <= self.state.global_step}
        # The path in the file is that of the run when it was written; the folder may have moved since.
        best = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return trained

    def restore(self, checkpoint: Path) -> None:
        """Stand where `train` ended that wrote its last checkpoint: the state of then, and the best step's adapter.

        Args:
            checkpoint: The checkpoint of the last step.
        """
        self.state = TrainerState.load_from_json(str(checkpoint / _STATE_FILE))
        best = checkpoint.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        self.method.fill(self.network, best if best.is_dir() else checkpoint)

    def _load_best_model(self) -> None:
        if self._put_best_back is not None:
            self._put_best_back()
            return
        assert self.state.best_model_checkpoint is not None
        self.method.fill(self.network, Path(self.state.best_model_checkpoint))


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders in ``folder``, whole or not."""
    return [f for f in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if re.fullmatch(r".*-\d+", f.name) and f.is_dir()]


def last_checkpoint(folder: Path, method: Method | None = None) -> Path | None:
    """Return the newest checkpoint in ``folder`` that is complete and loads, or None.

    Args:
        folder: Where checkpoints are.
        method: How their weights are kept; None: as an adapter of ours.
    """
    method = method or METHODS["adapter"]
    for checkpoint in sorted(checkpoints(folder), key=step_of, reverse=True):
        needed = [name for name in _NEEDED if name != "optimizer.pt" or not _has_sharded_optimizer(checkpoint)]
        files = [checkpoint / name for name in (*method.files, *needed)]
        if not all(f.is_file() and f.stat().st_size for f in files) or not any(checkpoint.glob("rng_state*.pth")):
            continue
        try:
            json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
            method.check(checkpoint)
        except (AsymloraError, OSError, ValueError):
            continue
        # torch.save writes zip archives, whose index stands at the end: a torn one is none.
        if all(zipfile.is_zipfile(f) for f in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"))):
            return checkpoint
    return None


def _has_sharded_optimizer(checkpoint: Path) -> bool:
    # Accelerate's names under FSDP, gathered and sharded (read in 1.15; not run here: no accelerator).
    return (checkpoint / "optimizer.bin").is_file() or (checkpoint / "optimizer_0").is_dir()


def has_ended(checkpoint: Path, *, steps: int) -> bool:
    """Whether the training had ended when a checkpoint was written: at its last step, or before it by its patience.

    Args:
        checkpoint: A complete one.
        steps: Those of the recipe.
    """
    kept: Any = json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8")).get("stateful_callbacks", {})
    control = kept.get("TrainerControl", {}).get("args", {})
    return step_of(checkpoint) >= steps or bool(control.get("should_training_stop"))


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written at."""
    return int(checkpoint.name.rpartition("-")[2])
