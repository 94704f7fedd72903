"""A task, a model and its data, read once and used by many runs; between two runs the model is as it was read."""

from __future__ import annotations

import json
import statistics
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from asymlora.errors import AsymloraError
from asymlora.schema import to_mapping
from asymlora.sweep.kept_draws import KeptDraws
from asymlora.sweep.matching import step_flops
from asymlora.tasks.preparing import prepare_task
from asymlora.tasks.task import HeadAlone
from asymlora.train.baseline import fit_head
from asymlora.train.callbacks import Silent
from asymlora.train.method import Method
from asymlora.train.methods import METHODS, OurAdapter
from asymlora.train.recipe import Recipe
from asymlora.train.settings import memory_sentence

_MOST_FITS = 8


def base_key(recipe: Recipe) -> str:
    """Return what two recipes have in common that can share a base: task, model and data."""
    shared = {"task": recipe.task, "model": to_mapping(recipe.model), "data": to_mapping(recipe.data)}
    return json.dumps(shared, sort_keys=True)


class LoadedBase:
    """What runs of one task, model and data share.

    Args:
        recipe: Any of their recipes.

    Attributes:
        prepared: Model and rows.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.prepared = prepare_task(recipe.task, recipe.model, recipe.data, head_seed=recipe.train.seed)
        self._adapter = OurAdapter(KeptDraws())
        self._fits: OrderedDict[str, HeadAlone] = OrderedDict()
        self._fitting: set[str] = set()
        self._flops: dict[str, float | None] = {}

    def method(self, recipe: Recipe) -> Method:
        """Return the recipe's method; of our own adapter one that keeps slow draws."""
        return self._adapter if recipe.method == "adapter" else METHODS[recipe.method]

    def refuse_too_large(self, recipe: Recipe) -> None:
        """Refuse a step that does not fit into memory; recipes that differ in rates and seeds are checked once.

        Args:
            recipe: The run, before anything is put on the model.
        """
        key = _size_key(recipe)
        if recipe.train.memory_check and key not in self._fitting:
            memory_sentence(recipe, self.prepared)
            self._fitting.add(key)

    def flops(self, recipe: Recipe) -> float | None:
        """Return the operations of one optimizer step, as `asymlora.sweep.matching.step_flops` does, or None.

        Args:
            recipe: The run, before anything is put on the model.
        """
        key = _size_key(recipe)
        if key not in self._flops:
            self._flops[key] = self._step_flops(recipe)
        return self._flops[key]

    def _step_flops(self, recipe: Recipe) -> float | None:
        # Padding is left out: rows of a batch have similar lengths.
        rows = recipe.train.batch_size * recipe.train.gradient_accumulation
        length = round(statistics.fmean(self.prepared.train.lengths))
        try:
            return step_flops(self.prepared.model, recipe, rows=rows, length=length, heads=self.prepared.heads)
        except AsymloraError:
            return None

    def fitted_head(self, recipe: Recipe) -> HeadAlone | None:
        """Return the head that the recipe's run starts from, fitted once; None where it starts from a drawn one.

        An adapter whose both factors start non-zero moves the features by rounding, and the head is fitted on those.

        Args:
            recipe: The run; where `fits_on_adapter` its adapter is on the model, else nothing is.
        """
        if recipe.train.head_start != "probe" or self.prepared.fit_head is None:
            return None
        key = json.dumps(to_mapping(recipe.adapter), sort_keys=True) if fits_on_adapter(recipe) else ""
        if key not in self._fits:
            self._fits[key] = fit_head(self.prepared.fit_head, self.prepared, Silent())
            while len(self._fits) > _MOST_FITS:
                self._fits.popitem(last=False)
        self._fits.move_to_end(key)
        head = self._fits[key]
        return None if head.copy_to_model is None else head

    def draw_heads(self, recipe: Recipe) -> None:
        """Draw what is fresh in the model by the recipe's seed, in place.

        Args:
            recipe: The run, before anything is put on the model.
        """
        if self.prepared.draw_head is not None:
            self.prepared.draw_head(recipe.train.seed)


def fits_on_adapter(recipe: Recipe) -> bool:
    """Whether a head has to be fitted with the adapter on the model, as it does not give quite the base's output."""
    return recipe.method == "adapter" and recipe.adapter.nonzero_start != "refuse"


def _size_key(recipe: Recipe) -> str:
    same: dict[str, Any] = {"lr": 1.0, "lr_A": None, "lr_B": None, "lr_head": None, "seed": 0}
    train = replace(recipe.train, **same)
    alike = replace(recipe, train=train, adapter=replace(recipe.adapter, seed=0))
    return json.dumps(alike.to_dict(), sort_keys=True)
