"""From a recipe to an advised one: one short pass over a model and its data, then a range test of what is advised.

What is measured is `asymlora.diagnostics`'s, what follows from it `asymlora.diagnostics.advice`'s. This runs them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asymlora.diagnostics.advice import Advice, advise
from asymlora.diagnostics.advised_rate import RateMeasures, advise_rate
from asymlora.diagnostics.captured_gradient import SiteMeasures, measure_sites
from asymlora.diagnostics.covariance import every_target, gather_moments
from asymlora.errors import AttachError
from asymlora.schema import refuse_values
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules, match_targets
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.sources import label_of
from asymlora.tasks.task import Batch, Prepared
from asymlora.theory.learning_rates import transfer
from asymlora.theory.rate_laws import Setting
from asymlora.train.advice_options import KEPT, AdvisingSettings, refuse_chosen
from asymlora.train.baseline import fit_head
from asymlora.train.callbacks import Observer, Silent
from asymlora.train.methods import ADAPTER
from asymlora.train.optimizers import optimizer_class
from asymlora.train.range_rules import RangeTest
from asymlora.train.range_test import range_test
from asymlora.train.recipe import Recipe, at_rate
from asymlora.train.settings import memory_sentence, refuse_unavailable

_SCORED_ROWS = 400
_ADAMS = ("adam", "adamw", "nadam", "radam", "adamax")


@dataclass(frozen=True, kw_only=True)
class Advised:
    """An advised recipe with what it follows from.

    Attributes:
        recipe: The recipe to run: the given one with another adapter and learning rate.
        given: The recipe that was given.
        advice: What is advised for the adapter's targets, and the rate.
        measures: What was measured at each of them.
        elsewhere: What would be advised for the model's other layers that can take an adapter; no part of the recipe.
        measures_elsewhere: What was measured there.
        range_test: How the rate was found.
        other_rates: What theory makes of the rate for other choices, each with its law and what stands behind that.
        head_fitted: Whether the head was fitted before, as the run will begin with it.
        model: What the model is, in the words of its source.
        rows: Training rows that were read.
        batches: Batches that were gathered over.
        notes: Sentences that the user should read.
        seconds: Seconds of each stage: ``reading``, ``head``, ``moments``, ``range test``, and ``in all``.
    """

    recipe: Recipe
    given: Recipe
    advice: Advice
    measures: tuple[SiteMeasures, ...]
    elsewhere: Advice | None
    measures_elsewhere: tuple[SiteMeasures, ...]
    range_test: RangeTest
    other_rates: tuple[dict[str, Any], ...]
    head_fitted: bool
    model: str
    rows: int
    batches: int
    notes: tuple[str, ...]
    seconds: dict[str, float]


def advise_recipe(
    recipe: Recipe, *, settings: AdvisingSettings | None = None, observer: Observer | None = None
) -> Advised:
    """Look at a model and its data once, and advise which factor to train where, at what rank, from which rate.

    The head is fitted first, where the run will begin with a fitted one, because gradients through a random head say
    little of the task. Then the moments of inputs and output gradients and the first gradient are gathered over a few
    batches of training rows, the advised adapter is attached, and its rate is found by a range test.

    Args:
        recipe: The run that is wanted. Of its adapter the fields of `KEPT` are read.
        settings: How much is looked at; None: the defaults.
        observer: Who is told how it goes on.

    Returns:
        The advised recipe and every measurement.

    Raises:
        SpecError: The recipe chooses what advice is to choose, or a step would not fit into memory.
        NoTargetError: Nothing in the model can take the adapter.
    """
    settings, watcher = settings or AdvisingSettings(), observer or Silent()
    clock = _Clock()
    refuse_chosen(recipe)
    optimizer_class(recipe.train.optimizer, recipe.train.optimizer_options)
    refuse_unavailable(recipe)
    short = _shortened(recipe, settings.rows)
    watcher.stage(f"Reading {recipe.data.name} and {label_of(recipe.model.name)}")
    prepared = prepare_task(short.task, short.model, short.data, head_seed=short.train.seed)
    targets = _targets(prepared, recipe.adapter)
    _refuse_budget(prepared.model, targets, settings.values)
    memory_sentence(short, prepared)
    _to_accelerator(prepared.model, packed=recipe.model.base in ("nf4", "int8"))
    clock.lap("reading")
    fitted = _fit_head(prepared, recipe, watcher)
    clock.lap("head")
    watcher.stage(f"Gathering gradients and moments over {settings.batches} batches of training rows")
    measures, notes = _measure(prepared, short, targets, settings)
    clock.lap("moments")
    inside = tuple(m for m in measures if m.name in targets)
    outside = tuple(m for m in measures if m.name not in targets)
    refuse_values([f"the model calls none of the adapter's {len(targets)} targets"] if not inside else [])
    advice = advise(inside, rank=recipe.adapter.rank, values=settings.values, ranks_by_layer=settings.ranks_by_layer)
    tested = replace(short, adapter=_spec(advice, recipe.adapter))
    network = ADAPTER.put_on(prepared.model, tested, prepared.heads)
    most = settings.range_test.steps + settings.range_test.most_probes * settings.range_test.probe_steps
    about = most * recipe.train.gradient_accumulation * _step_seconds(prepared, short)
    watcher.stage(f"Range test of the advised adapter: up to {most} steps, up to about {about:.0f} s")
    found = range_test(tested, prepared, network, settings=settings.range_test, observer=watcher)
    clock.lap("range test")
    measured = _measured(found, tested, advice, inside)
    rate = advise_rate(measured, measured.scheme)  # what was tested is what is advised
    train = at_rate(recipe.train, _rounded(rate.start))
    return Advised(
        recipe=replace(recipe, adapter=tested.adapter, train=train),
        given=recipe,
        advice=replace(advice, rate=rate),
        other_rates=tuple(_other_rates(train.lr, measured.scheme)),
        measures=inside,
        elsewhere=advise(outside, rank=recipe.adapter.rank) if outside else None,
        measures_elsewhere=outside,
        range_test=found,
        head_fitted=fitted,
        model=label_of(recipe.model.name),
        rows=len(prepared.train),
        batches=settings.batches,
        # That rows were left out is advice's own doing; the recipe keeps its number.
        notes=(*(note for note in prepared.notes if "data.max_rows" not in note), *notes),
        seconds=clock.all(),
    )


class _Clock:
    # Seconds of each stage since the stage before.
    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self.last, 3)
        self.last = now

    def all(self) -> dict[str, float]:
        return {**self.seconds, "in all": round(time.monotonic() - self.started, 3)}


def _shortened(recipe: Recipe, rows: int) -> Recipe:
    data = recipe.data
    scored = min(_SCORED_ROWS, rows, data.max_scored_rows or rows)
    return replace(recipe, data=replace(data, max_rows=min(rows, data.max_rows or rows), max_scored_rows=scored))


def _targets(prepared: Prepared, spec: AdapterSpec) -> tuple[str, ...]:
    in_full = match_saved_modules(prepared.model, tuple(dict.fromkeys((*spec.modules_to_save, *prepared.heads))))
    return tuple(match_targets(prepared.model, AdapterSpec.b_only(rank=1, targets=spec.targets), in_full))


def _refuse_budget(model: nn.Module, targets: tuple[str, ...], values: int | None) -> None:
    # A floor, before anything is measured: what the smaller factor costs at rank 1, linear layers alone.
    layers = [layer for name in targets if hasattr(layer := model.get_submodule(name), "in_features")]
    least = sum(min(int(layer.in_features), int(layer.out_features)) for layer in layers)  # pyright: ignore
    if values is not None and values < least:
        refuse_values([f"values={values} is less than rank 1 costs at {len(targets)} targets, {least:,} or more"])


def _to_accelerator(model: nn.Module, *, packed: bool) -> None:
    if torch.accelerator.is_available() and not packed:
        model.to(torch.accelerator.current_accelerator())


def _fit_head(prepared: Prepared, recipe: Recipe, watcher: Observer) -> bool:
    if prepared.fit_head is None or recipe.train.head_start != "probe":
        return False
    head = fit_head(prepared.fit_head, prepared, watcher)
    if head.copy_to_model is None:
        return False
    head.copy_to_model()
    return True


def _measure(
    prepared: Prepared, recipe: Recipe, targets: tuple[str, ...], settings: AdvisingSettings
) -> tuple[tuple[SiteMeasures, ...], tuple[str, ...]]:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return batch_loss(model, batch, prepared)

    def gathered(chosen: tuple[str, ...]) -> tuple[SiteMeasures, ...]:
        batches = _batches(prepared, recipe, settings.batches)
        return measure_sites(gather_moments(prepared.model, batches, loss=loss, targets=chosen), ranks=ranks)

    ranks = sorted({2**power for power in range(7)} | {recipe.adapter.rank})  # the reference among them
    every = tuple(dict.fromkeys((*targets, *_further(prepared.model)))) if settings.everywhere else targets
    try:
        return gathered(every), ()
    except AttachError as error:
        if every == targets:
            raise
        return gathered(targets), (f"Only the adapter's targets were measured: {error}",)


def _further(model: nn.Module) -> Iterator[str]:
    # BART's positional embedding makes its own indices of a float input: there are no entries to count.
    for name in every_target(model):
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Embedding) or type(layer).forward is nn.Embedding.forward:
            yield name


def batch_loss(model: nn.Module, batch: Batch, prepared: Prepared) -> Tensor:
    """Return the mean loss of one batch as the Trainer computes it, without what a method adds.

    Args:
        model: The task's model.
        batch: As the task's collator gives it.
        prepared: The task.
    """
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items()}
    if prepared.loss is None:
        return model(**inputs).loss
    labels = inputs.pop("labels")
    return prepared.loss(model(**inputs), labels, None)


def _batches(prepared: Prepared, recipe: Recipe, count: int) -> Iterator[Batch]:
    # Rows by chance, so that no batch holds the longest texts alone; again from the start where there are too few.
    items, size = prepared.train, recipe.train.batch_size
    generator = torch.Generator().manual_seed(recipe.train.seed)
    rows: list[int] = []
    while len(rows) < count * size:
        rows += torch.randperm(len(items), generator=generator).tolist()
    for start in range(0, count * size, size):
        yield prepared.collator([items[row] for row in rows[start : start + size]])


def _step_seconds(prepared: Prepared, recipe: Recipe) -> float:
    # A forward and a backward pass take about three forward passes.
    (batch,) = _batches(prepared, recipe, 1)
    started = time.monotonic()
    with torch.no_grad():
        batch_loss(prepared.model, batch, prepared)
    return 3 * (time.monotonic() - started)


def _spec(advice: Advice, given: AdapterSpec) -> AdapterSpec:
    left: dict[str, Any] = {name: getattr(given, name) for name in KEPT if name not in ("rank", "targets")}
    return advice.to_spec(targets=given.targets, **left)


def _measured(found: RangeTest, recipe: Recipe, advice: Advice, measures: tuple[SiteMeasures, ...]) -> RateMeasures:
    # One setting for all sites: the scheme of most, the middle width.
    trained = [site.train for site in advice.sites]
    method = {"B": "b_only", "A": "a_only", "both": "init_a"}[max(sorted(set(trained)), key=trained.count)]
    scheme = Setting(
        method=method,  # pyright: ignore[reportArgumentType]
        width_in=round(statistics.median(m.fan_in for m in measures)),
        width_out=round(statistics.median(m.outputs for m in measures)),
        rank=advice.uniform_rank,
        scaling=recipe.adapter.scaling_factor,
        start="gaussian" if method == "init_a" else "orthonormal",
        optimizer="adam" if recipe.train.optimizer.lower() in _ADAMS else "sgd",
    )
    return RateMeasures(
        rates=tuple(point.rate for point in found.points),
        losses=tuple(point.loss for point in found.points),
        edge=found.edge if found.outcome == "found" else None,
        suggested=found.suggested,
        scheme=scheme,
        none_stable=found.outcome == "none stable",
    )


def _other_rates(lr: float, scheme: Setting) -> Iterator[dict[str, Any]]:
    assert scheme.rank is not None
    others = {f"rank {2 * scheme.rank}": replace(scheme, rank=2 * scheme.rank)}
    others |= {f"scaling {2 * scheme.scaling:g}": replace(scheme, scaling=2 * scheme.scaling)}
    for method, words in (("init_a", "A and B, Init[A]"), ("b_only", "B alone"), ("a_only", "A alone")):
        start = "gaussian" if method == "init_a" else "orthonormal"
        if method != scheme.method and scheme.optimizer == "adam":
            others[words] = replace(scheme, method=method, start=start)  # pyright: ignore[reportArgumentType]
    for words, other in others.items():
        if scheme.optimizer == "sgd" and scheme.method != "b_only":
            return  # no law
        carried = transfer(lr, scheme, other, unconfirmed=True)
        yield {
            "what": words,
            "rate": carried.rate,
            "law": carried.law,
            "status": carried.status,
            "confirmed": carried.confirmed,
        }


def _rounded(rate: float) -> float:
    # Two digits say as much as an octave does, and a recipe is read by people.
    return float(f"{rate:.2g}")
