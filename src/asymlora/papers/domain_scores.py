"""What kept adapters of sweeps reach by domain: on rows that they were trained on, on test rows, on other domains.

A run of a sweep is scored on the test rows of its own domain alone; its adapter is kept, and scored here on the rest.
No torch at import.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.errors import RunFolderError
from asymlora.papers.row_scores import scores_of
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.evidence import Record, SweepEvidence
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.store import RunStore
from asymlora.sweep.sweep_folder import PLAN, RUNS, stored_plan
from asymlora.train.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from asymlora.tasks.images import ImageItems
    from asymlora.tasks.task import Items, Prepared

TRAINED, OWN, OTHER = "trained", "own", "other"
"""Kinds of rows: some that were trained on; test rows of the same domain; rows of another domain."""


def domain_points(*parts: SweepPart) -> tuple[Mapping[str, Any], ...]:
    """Return a point for each closing run of some sweeps.

    Args:
        parts: The sweeps.
    """
    return tuple(
        {"sweep": part.name, "arm": arm.name, "seed": seed}
        for part in parts
        for arm in part.plan.arms
        for seed in part.plan.closing_seeds
    )


@dataclass(frozen=True)
class DomainScores:
    """Scores closing runs of image classification in sweeps that stand in one folder.

    Attributes:
        folder: That the sweeps' folders are in: that of the artefact's run.
        trained_rows: Most training rows that are scored, the same for all runs.
    """

    folder: Path
    trained_rows: int

    def measure(self, point: Mapping[str, Any]) -> list[Record]:
        """Return what one run reaches on each kind of rows.

        Args:
            point: One of `domain_points`.

        Returns:
            A record for each domain, and one more for that which was trained on: the point, ``kind``, ``domain``,
            ``rows``, ``accuracy``, and ``loss`` in nats. None of a run that diverged.

        Raises:
            RunFolderError: The run has not ended, or its adapter is gone.
        """
        place = self.folder / point["sweep"]
        row = _closing_run(place, point["arm"], point["seed"])
        if row.status == "diverged":
            return []
        if row.adapter is None or not (place / row.adapter).is_dir():
            raise RunFolderError(
                f"The adapter of {row.arm} with seed {row.seed} is gone from {place / 'adapters'}, and it is to be"
                " scored on the other domains. Put it back from a copy, or begin anew with --overwrite."
            )
        recipe = Recipe.from_dict(row.recipe)
        return [{**point, **found} for found in self._found(recipe, place / row.adapter, row.test or {})]

    def _found(self, recipe: Recipe, adapter: Path, tested: Mapping[str, float]) -> Iterator[Record]:
        prepared, own = _prepared_for(recipe), recipe.data.train_environment
        yield _record(OWN, own, prepared.test, tested)
        trained = _some_trained(prepared, self.trained_rows)
        with _put_on(prepared, recipe, adapter) as network:
            yield _record(TRAINED, own, trained, scores_of(network, prepared, trained))
            for name, items in prepared.environments.items():
                yield _record(OTHER, name, items, scores_of(network, prepared, items))


def _closing_run(place: Path, arm: str, seed: int) -> RunRow:
    if (place / PLAN).is_file():
        sweep = SweepEvidence(plan=stored_plan(place), rows=RunStore(place / RUNS).rows())
        for row in sweep.cells[arm].closing if arm in sweep.cells else ():
            if row.seed == seed and row.final:
                return row
    raise RunFolderError(
        f"There is no closing run of {arm} with seed {seed} in {place}, and its adapter is to be scored here. Run the"
        f" part {place.name} first: the same command without --part does all parts in their order."
    )


def _record(kind: str, domain: str | None, items: Items, scores: Mapping[str, float]) -> Record:
    figures = {name: scores[name] for name in ("accuracy", "loss")}
    return {"kind": kind, "domain": domain, "rows": len(items), **figures}


# The model and its rows ----------------------------------------------------------------------------------------------


def _prepared_for(recipe: Recipe) -> Prepared:
    from asymlora.sweep.loaded_base import base_key

    return _prepared(base_key(recipe))


@lru_cache(maxsize=1)
def _prepared(key: str) -> Prepared:
    # Runs of one set share model and rows; of the set before nothing stays in memory.
    import torch

    from asymlora.tasks.preparing import prepare_task

    recipe = Recipe.from_dict(json.loads(key))
    prepared = prepare_task(recipe.task, recipe.model, recipe.data, head_seed=0)
    network: nn.Module = prepared.model  # transformers types ``to`` otherwise
    if torch.accelerator.is_available():
        network.to(torch.accelerator.current_accelerator())  # pyright: ignore[reportArgumentType]
    return prepared


def _some_trained(prepared: Prepared, most: int) -> ImageItems:
    from asymlora.tasks.images import ImageItems

    train = prepared.train
    assert isinstance(train, ImageItems)  # the task is image classification
    chosen = sorted(random.Random(0).sample(range(len(train)), min(most, len(train))))
    labels = [int(train.labels[row]) for row in chosen]
    return ImageItems([train.images[row] for row in chosen], labels, settings=train.settings, tokens=train.tokens)


@contextmanager
def _put_on(prepared: Prepared, recipe: Recipe, adapter: Path) -> Iterator[nn.Module]:
    # What a run has trained, on the shared model, which is afterwards what it was before.
    from asymlora.attaching import detach
    from asymlora.site_view import find_attached
    from asymlora.train.methods import METHODS
    from asymlora.train.restoring import restored, untouched

    model, method = prepared.model, METHODS[recipe.method]
    with untouched(model, prepared.heads):
        network = method.put_on(model, recipe, prepared.heads)
        try:
            with restored(network):
                method.fill(network, adapter)
                yield network.eval()
        finally:
            if find_attached(model) is not None:
                detach(model)
