"""What zhu_bounds evaluates and measures: the bound at layers of real models, and the gap of short runs beside it.

Each function takes one point of a `asymlora.reproduce.artefact.MeasuredPart` and gives plain records. Torch is imported
in the functions, as artefacts are listed without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.papers.models_and_data import COLA, TREC6
from asymlora.papers.paper_recipes import paper_recipe
from asymlora.papers.row_scores import scores_of
from asymlora.papers.zhu_settings import A_ONLY, B_ONLY, BOTH
from asymlora.reproduce.evidence import Record
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.train.recipe import Recipe, TrainRecipe

if TYPE_CHECKING:
    from torch import nn

    from asymlora.tasks.task import Prepared

Point = Mapping[str, Any]
ARMS = (BOTH, B_ONLY, A_ONLY)
STEPS, BATCH, SCORED = 48, 8, 200
"""Steps of a short run, rows of a step, and unseen rows that are scored."""
BITS, SIGMA = 32, 0.5
"""Bits of a trained value, and the constant of a loss in [0, 1]: float32, and the share of wrong answers."""

_PLACES: Mapping[str, str] = {"trec6": TREC6.place, "cola": COLA.place}


def _layers(width: int, inner: int, *, blocks: int, attention: int) -> list[list[int]]:
    """Return ``[out, in, count]`` of square layers of attention and of both feed-forward layers."""
    return [[width, width, attention * blocks], [inner, width, blocks], [width, inner, blocks]]


LAYERS: Mapping[str, list[list[int]]] = {
    "query and value of RoBERTa-large": [[1024, 1024, 48]],
    "up-projections of RoBERTa-large": [[4096, 1024, 24]],
    "down-projections of RoBERTa-large": [[1024, 4096, 24]],
    "all linear layers of MiniLM": _layers(384, 1536, blocks=6, attention=4),
}
"""Adapted layers: outputs, inputs, and how many of them there are."""
MORE_LAYERS: Mapping[str, list[list[int]]] = {
    "all linear layers of RoBERTa-large": _layers(1024, 4096, blocks=24, attention=4),
    "query and value of LLaMA-2-7B": [[4096, 4096, 64]],
}


def measure_bound(point: Point) -> list[Record]:
    """Evaluate the bounds of the three ways of training one adapter.

    Args:
        point: ``layers`` (a name), ``shapes`` (outputs, inputs, count), ``rank``, ``samples``, ``bits``.

    Returns:
        One record: the point but for its shapes, ``square`` (whether all layers are), the three bounds on a loss in
        [0, 1], the samples from which on the one for B alone would say something, and relative errors of what should
        be identities, taken from all digits.
    """
    from asymlora.theory.bounds import gap_bounds

    shapes = [(out, into) for out, into, count in point["shapes"] for _ in range(count)]
    rank, samples = point["rank"], point["samples"]

    def bounds(rank: int, samples: int) -> dict[str, float]:
        found = gap_bounds(shapes, rank=rank, samples=samples, bits=point["bits"], sub_gaussian=SIGMA)
        return {"both": found.both.gap, "b_only": found.B_only.gap, "a_only": found.A_only.gap}

    here, fourfold, more = bounds(rank, samples), bounds(4 * rank, samples), bounds(rank, 4 * samples)
    needed = gap_bounds(shapes, rank=rank, samples=samples, bits=point["bits"], sub_gaussian=SIGMA)
    return [
        {
            **{name: point[name] for name in ("layers", "rank", "samples", "bits")},
            "square": all(out == into for out, into in shapes),
            **here,
            "samples_needed": needed.B_only.samples_needed,
            "squares_error": abs(math.hypot(here["a_only"], here["b_only"]) / here["both"] - 1),
            "rank_error": max(abs(fourfold[way] / (2 * here[way]) - 1) for way in here),
            "samples_error": max(abs(2 * more[way] / here[way] - 1) for way in here),
            "one_factor_error": abs(math.sqrt(2) * here["b_only"] / here["both"] - 1),
            "doubled_error": abs(bounds(2 * rank, samples)["b_only"] / here["both"] - 1),
        }
    ]


def measure_gaps(point: Point, *, data_root: Path) -> list[Record]:
    """Train the three arms on few rows, drawn by the seed, and score the rows that were trained on beside unseen ones.

    Args:
        point: ``set``, ``rows``, ``seed``, ``steps``, ``batch_size``, ``lr``; or ``recipe``, a recipe at the paper's
            scale, with ``seed``.
        data_root: Where data sets stand.

    Returns:
        One record an arm: share of wrong answers on both kinds of rows and the losses, in nats; the bounds on the
        expected difference of the shares; None in the place of what a diverged run lacks.
    """
    from asymlora.errors import DivergedError
    from asymlora.sweep.loaded_base import LoadedBase
    from asymlora.sweep.run_record import RunJob
    from asymlora.sweep.single_run import SingleRun
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    base_recipe = recipe_of(point, data_root)
    base = LoadedBase(base_recipe)
    prepared = base.prepared
    base.prepared = replace(prepared, closing={"train": lambda network: _on_training_rows(network, prepared)})
    records: list[Record] = []
    for arm in ARMS:
        recipe = arm.laid_over(base_recipe)
        recipe = replace(recipe, adapter=replace(recipe.adapter, seed=point["seed"]))
        run = SingleRun(
            base, RunJob(recipe=recipe, phase="closing", arm=arm.name, seed=point["seed"], scores_test=True),
            folder=None, progress=None,
        )  # fmt: skip
        try:
            run.do()
            test = run.found["test"]
        except DivergedError:
            test = {}
        found = {
            "arm": arm.name,
            "train_error": _error(test.get("train.accuracy")),
            "test_error": _error(test.get("accuracy")),
            "train_loss": test.get("train.loss"),
            "test_loss": test.get("loss"),
            **{name: test.get(f"train.bound_{name}") for name in ("both", "b_only", "a_only")},
        }
        records.append({"set": point["set"], "rows": len(prepared.train), "seed": point["seed"], **found})
    return records


def _error(accuracy: float | None) -> float | None:
    return None if accuracy is None else 1 - accuracy


def recipe_of(point: Point, data_root: Path) -> Recipe:
    """Return model, data and training of a short run.

    Args:
        point: As for `measure_gaps`.
        data_root: Where data sets stand.
    """
    if name := point.get("recipe"):
        recipe = paper_recipe(name)
        data = replace(recipe.data, seed=point["seed"])
        return replace(recipe, data=data, train=replace(recipe.train, seed=point["seed"], dynamics_every=0))
    return Recipe(
        model=ModelRecipe(name=point["model"]),
        data=DataRecipe(
            name=str(data_root / _PLACES[point["set"]]), max_rows=point["rows"], max_scored_rows=SCORED,
            # Each seed draws its own rows: the bound is on the mean over samples.
            seed=point["seed"],
        ),
        train=TrainRecipe(
            steps=point["steps"], batch_size=point["batch_size"], lr=point["lr"], head_start="random",
            evaluate_every=point["steps"], dynamics_every=0, seed=point["seed"],
        ),
    )  # fmt: skip


def _on_training_rows(network: nn.Module, prepared: Prepared) -> dict[str, float]:
    """Return the metrics on the rows that were trained on, and the bounds of the adapter on the network."""
    from asymlora.site_view import sites
    from asymlora.theory.bounds import gap_bounds_of_sites

    metrics = scores_of(network, prepared, prepared.train)
    bounds = gap_bounds_of_sites(sites(network), samples=len(prepared.train), bits=BITS, sub_gaussian=SIGMA)
    return {
        **{name: metrics[name] for name in ("accuracy", "loss")},
        "bound_both": bounds.both.gap, "bound_b_only": bounds.B_only.gap, "bound_a_only": bounds.A_only.gap,
    }  # fmt: skip


# Points --------------------------------------------------------------------------------------------------------------


def bound_points(layers: Mapping[str, Sequence[Sequence[int]]]) -> tuple[Point, ...]:
    """Return rank 8 on RTE's 2,490 rows, and the least that an adapter can be.

    Args:
        layers: Shapes by name.
    """
    variants = ((8, 2490, BITS), (1, 2490, 1))
    return tuple(
        {"layers": name, "shapes": [list(shape) for shape in shapes], "rank": rank, "samples": samples, "bits": bits}
        for name, shapes in layers.items()
        for rank, samples, bits in variants
    )


def gap_points(seeds: Sequence[int], model: str) -> tuple[Point, ...]:
    """Return the sets, their numbers of training rows and the seeds of the short runs.

    Args:
        seeds: Of rows, head, factors and order.
        model: Name of the model.
    """
    # With 64 rows of TREC-6 one of six seeds draws none of its rarest label, and such a run is refused.
    sizes = (("trec6", 96), ("trec6", 256), ("cola", 128))
    return tuple(
        {"set": name, "rows": rows, "seed": seed, "model": model, "steps": STEPS, "batch_size": BATCH, "lr": 3e-3}
        for name, rows in sizes
        for seed in seeds
    )


def paper_gap_points(seeds: Sequence[int]) -> tuple[Point, ...]:
    """Return the runs of RoBERTa-large on RTE.

    Args:
        seeds: Likewise.
    """
    return tuple({"set": "rte", "recipe": "roberta_large_glue", "seed": seed} for seed in seeds)
