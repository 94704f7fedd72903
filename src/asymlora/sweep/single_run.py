"""One run on a base that is loaded already: the same numbers as `asymlora.train.run.finetune`, without its files."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asymlora.attaching import count_parameters, detach
from asymlora.errors import SpecError
from asymlora.site_view import find_attached
from asymlora.sweep.loaded_base import LoadedBase, fits_on_adapter
from asymlora.sweep.run_dynamics import median_dynamics
from asymlora.sweep.run_record import RunJob
from asymlora.tasks.task import HeadAlone
from asymlora.train import processes
from asymlora.train.callbacks import Silent
from asymlora.train.health_watch import HealthWatch
from asymlora.train.optimizers import optimizer_class
from asymlora.train.restoring import restored, untouched
from asymlora.train.run import head_values, refuse_diverged
from asymlora.train.run_folder import RunFolder
from asymlora.train.run_watch import Progress, RunWatch
from asymlora.train.settings import make_trainer, refuse_unavailable
from asymlora.train.trained_file import trained_tensors
from asymlora.train.trainer import AdapterTrainer

ADAPTERS = "adapters"
"""Folder of the kept adapters in a sweep's."""


class SingleRun:
    """One run.

    Trackers (``train.report_to``) and checkpoints are left out, further sets too. Closing measurements are made where
    the test part is scored, after the training alone: ``choices.accuracy`` stands beside the metrics of the test part.
    Whatever happens, the base's model is afterwards what it was before, object by object and bit for bit.

    Args:
        base: What is loaded.
        job: What is to be done.
        folder: The sweep's; None: no adapter is kept.
        progress: Who is told after each step; None: nobody.

    Attributes:
        found: Fields of `asymlora.sweep.run_record.RunRow` as far as they are known, after an error too.
    """

    def __init__(self, base: LoadedBase, job: RunJob, *, folder: Path | None, progress: Progress | None) -> None:
        self.base = base
        self.job = job
        self.folder = folder
        self.recipe = replace(job.recipe, train=replace(job.recipe.train, report_to=()))
        scoring = base.prepared.scoring
        self.found: dict[str, Any] = {"metric": scoring.metric, "greater_is_better": scoring.greater_is_better}
        behind = None if job.rivals is None else self._is_behind
        self.watch = RunWatch(scoring.metric, progress=progress, behind=behind)

    def do(self) -> None:
        """Put the method on, train, score, and take it off again.

        Raises:
            DivergedError: A loss, a weight or a figure is not finite.
            SpecError: The run cannot be done in this way, or not on this machine.
        """
        started = time.monotonic()
        self._refuse()
        model, heads = self.base.prepared.model, self.base.prepared.heads
        self.found["flops_per_step"] = self.base.flops(self.recipe)
        with untouched(model, heads):
            fitted = self._start_heads(on_adapter=False)
            network = self.base.method(self.recipe).put_on(model, self.recipe, heads)
            try:
                with restored(network):
                    fitted = fitted or self._start_heads(on_adapter=True)
                    self._run(network, fitted, started=started)
            finally:
                if find_attached(model) is not None:
                    detach(model)

    def _refuse(self) -> None:
        recipe = self.recipe
        self.base.method(recipe).refuse_unused(recipe)
        optimizer_class(recipe.train.optimizer, recipe.train.optimizer_options)
        refuse_unavailable(recipe)
        if processes.count() > 1 or recipe.train.sharding != "none":
            raise SpecError("A run of a sweep runs in one process, unsharded. Start it without torchrun.")
        self.base.refuse_too_large(recipe)

    def _start_heads(self, *, on_adapter: bool) -> HeadAlone | None:
        if not on_adapter and fits_on_adapter(self.recipe):
            self.base.draw_heads(self.recipe)
            return None
        if on_adapter and not fits_on_adapter(self.recipe):
            return None
        fitted = self.base.fitted_head(self.recipe)
        if not on_adapter and (fitted is None or len(self.base.prepared.heads) > 1):
            self.base.draw_heads(self.recipe)  # a fitted head would take the place of a drawn one
        if fitted is not None and fitted.copy_to_model is not None:
            fitted.copy_to_model()
        return fitted

    def _run(self, network: nn.Module, fitted: HeadAlone | None, *, started: float) -> None:
        with tempfile.TemporaryDirectory(prefix="asymlora-sweep-") as nowhere:
            trainer, watched = self._trainer(network, RunFolder(path=Path(nowhere), writes=False))
            self.found["trained_parameters"], _ = count_parameters(network)
            self.found["head_parameters"] = head_values(network, self.base.prepared)
            begun = time.monotonic()
            self._score_before(trainer, fitted)
            trained = time.monotonic()
            self.found["setup_seconds"] = round(begun - started, 4)
            try:
                trainer.train()
            finally:
                watched.release()
                seconds = time.monotonic() - trained - self.watch.evaluate_seconds
                self.found["train_seconds"] = round(seconds, 4)
                self._tell(trainer, watched)
        scored = time.monotonic()
        self._close(trainer, network)
        evaluated = self.watch.evaluate_seconds + trained - begun + time.monotonic() - scored
        self.found["evaluate_seconds"] = round(evaluated, 4)

    def _trainer(self, network: nn.Module, nowhere: RunFolder) -> tuple[AdapterTrainer, HealthWatch]:
        prepared, method = self.base.prepared, self.base.method(self.recipe)
        trainer, recorder = make_trainer(self.recipe, prepared, method, network, folder=nowhere, watcher=Silent())
        trainer.remove_callback(recorder)
        trainer.keep_in_memory()
        watched = HealthWatch(self.recipe, prepared, method=method, network=network, folder=nowhere).add_to(trainer)
        trainer.add_callback(self.watch)
        return trainer, watched

    def _score_before(self, trainer: AdapterTrainer, fitted: HeadAlone | None) -> None:
        # Where a run by itself scores its model before the training, dropout draws other numbers afterwards.
        prepared, scores = self.base.prepared, self.job.scores_test
        if fitted is not None:
            evidence = fitted.evidence
        elif scores:
            evidence = trainer.evidence_of(prepared.test)
        else:
            evidence = None
            trainer.skip_scoring()
        for _ in prepared.environments:
            trainer.skip_scoring()
        if scores and evidence is not None:
            self.found["before"] = finite(prepared.scoring.score(evidence))

    def _tell(self, trainer: AdapterTrainer, watched: HealthWatch) -> None:
        rows = [] if watched.dynamics is None else watched.dynamics.records
        self.found |= {
            "steps": trainer.state.global_step,
            "losses": self.watch.losses,
            "scores": self.watch.scores,
            "dynamics": median_dynamics(rows),
            "health": list(dict.fromkeys(verdict["name"] for verdict in watched.close()["verdicts"])),
        }

    def _close(self, trainer: AdapterTrainer, network: nn.Module) -> None:
        prepared, best = self.base.prepared, trainer.state.best_metric
        self.found["best_step"] = trainer.state.best_global_step or trainer.state.global_step
        self.found["weights_digest"] = digest(trained_tensors(network))
        if self.watch.pruned:
            self.found |= {"status": "pruned", "validation": self.watch.scores["value"][-1]}
            return
        if best is not None:
            refuse_diverged({prepared.scoring.metric: float(best)}, self.recipe, part="validation")
            self.found["validation"] = float(best)
        if self.job.scores_test:
            metrics = prepared.scoring.score(trainer.evidence_of(prepared.test))
            refuse_diverged(metrics, self.recipe)
            self.found["test"] = finite({**metrics, **self._measure(network)})
        if self.job.keeps_adapter:
            self.found["adapter"] = self._keep(network)
        self.found["status"] = "finished"

    def _measure(self, network: nn.Module) -> dict[str, float]:
        network.eval()
        found = {name: measure(network) for name, measure in self.base.prepared.closing.items()}
        return {f"{name}.{key}": value for name, measured in found.items() for key, value in measured.items()}

    def _is_behind(self, own: Mapping[int, float]) -> bool:
        from asymlora.sweep.pruning import is_behind  # Optuna takes a second to import

        train, better = self.recipe.train, self.base.prepared.scoring.greater_is_better
        every = min(train.evaluate_every, train.steps)
        rivals = self.job.rivals or ()
        return is_behind(rivals, own, every=every, eta=self.job.prune_eta, greater_is_better=better)

    def _keep(self, network: nn.Module) -> str:
        assert self.folder is not None
        kept = f"{ADAPTERS}/{self.job.id}"
        recipe, prepared = self.recipe, self.base.prepared
        self.base.method(recipe).save(
            network, self.folder / kept, base_model=recipe.model.name, task_type=prepared.task_type
        )
        return kept


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and values, in the order of the names, hexadecimal.

    Args:
        tensors: Tensors by name.

    Example:
        >>> a, b = torch.ones(2), torch.zeros(2)
        >>> digest({"a": a, "b": b}) == digest({"b": b, "a": a}) != digest({"a": b, "b": a})
        True
    """
    summed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        summed.update(f"{name}\x1f{tuple(tensor.shape)}\x1f{tensor.dtype}\x1f".encode())
        summed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()


def finite(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return metrics as JSON takes them: None for what is not finite.

    Args:
        metrics: By name.

    Example:
        >>> finite({"accuracy": 0.5, "perplexity": float("inf")})
        {'accuracy': 0.5, 'perplexity': None}
    """
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
