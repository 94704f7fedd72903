"""How large a learning rate one recipe stands: a ramp of the rate, then short runs at single rates from the same start.

It runs on the one loop (`make_trainer`) with the recipe's own optimizer, groups and batches, writes nothing, and leaves
the network as it was, bit for bit. The rules by which it decides are in `asymlora.train.range_rules`.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from asymlora.diagnostics.advised_rate import BELOW_EDGE
from asymlora.errors import DivergedError, SpecError
from asymlora.tasks.task import Prepared
from asymlora.train import processes
from asymlora.train.callbacks import Observer, Silent
from asymlora.train.methods import METHODS
from asymlora.train.range_rules import (
    QUIET_SHARE,
    RangeSettings,
    RangeTest,
    RateProbe,
    confirmed,
    edge_of_probes,
    edge_of_ramp,
    has_risen,
    judged,
    probe_rates,
    ramp_points,
    rise_rule,
    steepest_rate,
)
from asymlora.train.recipe import Recipe
from asymlora.train.restoring import restored
from asymlora.train.run_folder import RunFolder
from asymlora.train.settings import make_trainer
from asymlora.train.trainer import AdapterTrainer


def range_test(
    recipe: Recipe,
    prepared: Prepared,
    network: nn.Module,
    *,
    settings: RangeSettings | None = None,
    observer: Observer | None = None,
) -> RangeTest:
    """Find the largest learning rate that a recipe stands on its model and data, and suggest one to start from.

    The ramp takes ``settings.steps`` steps at rates that rise in equal ratios, all groups with the recipe's ratios. It
    stops where a loss is not finite, or where the mean of three losses is above that of the first quarter, whose rates
    move nothing, by half of it (``settings.rise``) and by 4 standard errors. The rise began at the last rate after
    which the smoothed loss was not above the start's: ``ramp_edge``.

    At the end of a ramp the weights are not the first ones, Adam's averages lag, and each rate acts for a step or two:
    a ramp places the edge, it does not measure it. So runs of ``settings.probe_steps`` steps at one rate each follow,
    from the first weights: the first midway between where the rise began and where the ramp stopped, the others halving
    or doubling until the two answers stand an octave apart. Such a run is stable if its loss, over its second half, is
    in the mean above that of the start on the same batches by at most half of it. The batches, and dropout's draws, are
    those of the ramp's first steps, so the comparison is paired. Any rise at all would not do as the rule: from a head
    that is fitted already, the first steps of a good rate raise the loss a little. Where the recipe has a warm-up, so
    has the first half: Adam's first steps, at a whole rate, are a shock that the recipe's run does not have.

    ``suggested`` is the edge over 4 (`asymlora.diagnostics.advised_rate.BELOW_EDGE`), two octaves below it: one because
    the best constant rate of gradient descent on a quadratic is half of its stability edge, one because a run of
    hundreds of steps meets rarer batches than ten steps do. It was fixed before any sweep was compared with it; the
    allowed rise and the warm-up were set after a look at the embedded reviews, which are not among the data of that
    comparison.

    Args:
        recipe: The run whose rate is wanted. Its schedule, length, trackers and evaluations play no part.
        prepared: Its task.
        network: What the recipe's method put on the model, its head as the run will start from it.
        settings: How the test is run; None: the defaults.
        observer: Who is told how it goes on.

    Returns:
        The edge, the suggestion and every loss that they follow from.

    Raises:
        SpecError: The loss is not finite at the lowest rate, or the run is one of several processes or sharded.

    Source:
        The ramp: Smith, 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. Rules and defaults
        are ours.
    """
    settings, watcher = settings or RangeSettings(), observer or Silent()
    if processes.count() > 1 or recipe.train.sharding != "none":
        raise SpecError("A range test runs in one process, unsharded. Start it without torchrun and train.sharding.")
    started = time.monotonic()
    run = _Runs(_bare(recipe, settings.steps), prepared, network, watcher)
    ramp = run.losses(settings.rates(), "range test", until=rise_rule(settings))
    quiet = ramp[: settings.steps // QUIET_SHARE]
    if len(quiet) < settings.steps // QUIET_SHARE or not all(map(math.isfinite, quiet)):
        raise SpecError(
            f"The loss is not finite, or rises, in the first {len(quiet)} steps of the range test, at rates of"
            f" {settings.lowest:g} and little above. Look at the data, or take a smaller lowest rate."
        )
    points = ramp_points(settings.rates(), ramp)
    from_ramp = edge_of_ramp(points, settings)

    def probe(rate: float) -> RateProbe:
        rates = probe_rates(rate, settings.probe_steps, warm_up=recipe.train.warmup_fraction > 0)
        losses = run.losses(rates, f"at {rate:.2g}")
        return judged(rate, losses, start=ramp, rise=settings.rise)

    midway = math.sqrt(from_ramp * points[-1].rate) if has_risen(points, settings) else settings.highest
    probes = confirmed(probe, midway, highest=settings.highest, most=settings.most_probes)
    edge, outcome = edge_of_probes(probes)
    return RangeTest(
        points=tuple(points),
        probes=tuple(probes),
        start_loss=statistics.fmean(quiet),
        ramp_edge=from_ramp,
        edge=edge,
        outcome=outcome,
        steepest=steepest_rate(points, from_ramp),
        suggested=edge / BELOW_EDGE,
        steps=run.taken,
        seconds=round(time.monotonic() - started, 3),
    )


def _bare(recipe: Recipe, steps: int) -> Recipe:
    train = replace(
        recipe.train, steps=steps, evaluate_every=steps, patience=None, report_to=(), schedule="constant",
        warmup_fraction=0.0,
    )  # fmt: skip
    return replace(recipe, train=train)


class _Runs:
    # Short trainings from the same weights, batches and draws, each at rates of its own.
    def __init__(self, recipe: Recipe, prepared: Prepared, network: nn.Module, watcher: Observer) -> None:
        self.recipe = recipe
        self.prepared = prepared
        self.network = network
        self.watcher = watcher
        self.taken = 0

    def losses(
        self, rates: Sequence[float], what: str, until: Callable[[Sequence[float]], bool] | None = None
    ) -> list[float]:
        # The losses of as many steps as were taken; one that is not finite is the last.
        with tempfile.TemporaryDirectory(prefix="asymlora-range-test-") as folder, restored(self.network):
            ramp = _Ramp(rates, until, lambda done, loss: self.watcher.progress(what, done, len(rates), {"loss": loss}))
            trainer = self._trainer(rates, Path(folder))
            trainer.add_callback(ramp)
            try:
                trainer.train()
            except DivergedError:
                ramp.losses.append(math.nan)
        self.taken += len(ramp.losses)
        return ramp.losses

    def _trainer(self, rates: Sequence[float], folder: Path) -> AdapterTrainer:
        recipe = replace(self.recipe, train=replace(self.recipe.train, steps=len(rates), evaluate_every=len(rates)))
        where = RunFolder(path=folder, writes=False)
        method = METHODS[recipe.method]
        trainer, recorder = make_trainer(recipe, self.prepared, method, self.network, folder=where, watcher=Silent())
        trainer.remove_callback(recorder)
        trainer.args.set_evaluate("no")
        trainer.args.set_save("no")
        trainer.args.load_best_model_at_end = False
        trainer.args.logging_steps = 1
        factors = [rate / recipe.train.lr for rate in rates]
        # The scheduler is asked once more after the last step.
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            trainer.create_optimizer(), lambda step: factors[min(step, len(factors) - 1)]
        )
        return trainer


class _Ramp(TrainerCallback):
    # Keeps the loss of each step, and ends the training when it has seen enough.
    def __init__(
        self,
        rates: Sequence[float],
        until: Callable[[Sequence[float]], bool] | None,
        told: Callable[[int, float], None],
    ) -> None:
        self.rates = rates
        self.until = until
        self.told = told
        self.losses: list[float] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.losses.append(float(logs["loss"]))
        self.told(len(self.losses), self.losses[-1])
        if self.until is not None and self.until(self.losses):
            control.should_training_stop = True
