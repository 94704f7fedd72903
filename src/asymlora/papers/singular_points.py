"""What zhu_singular measures: whose singular vectors a start holds, and how the released code's start trains.

Each function takes one point of a `asymlora.reproduce.artefact.MeasuredPart` and gives plain records. Torch is imported
in the functions, as artefacts are listed without it.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from asymlora.reproduce.evidence import Record
from asymlora.sweep.grid import SweepPlan, cells, job

if TYPE_CHECKING:
    from torch import Tensor, nn

    from asymlora.installing import Factors
    from asymlora.spec import AdapterSpec

Point = Mapping[str, Any]
TOP: Final = "top_singular"
RELEASED: Final = "released"
RANDOM: Final = "orthonormal"
"""Starts: singular vectors of the pretrained weight; as the released code draws them; a random orthonormal frame."""
STARTS = (TOP, RELEASED, RANDOM)


def similarity_points(
    model: str, targets: Sequence[str], *, rank: int, seeds: Sequence[int]
) -> tuple[Mapping[str, Any], ...]:
    """Return one point a seed of the draws.

    Args:
        model: Name of the pretrained model.
        targets: Endings of the adapted layers.
        rank: Of the factors.
        seeds: Of the draws.
    """
    return tuple({"model": model, "targets": list(targets), "rank": rank, "seed": seed} for seed in seeds)


def training_points(rate: float, seeds: Sequence[int]) -> tuple[Mapping[str, Any], ...]:
    """Return one point a seed for each of the three starts.

    Args:
        rate: The learning rate, the same for all: their rows have the same length.
        seeds: Paired seeds.
    """
    return tuple({"start": start, "rate": rate, "seed": seed} for seed in seeds for start in STARTS)


# Whose singular vectors ----------------------------------------------------------------------------------------------


def released_start(shape: tuple[int, int], rank: int, *, seed: int, site: str) -> tuple[Tensor, Tensor]:
    """Return both factors as the authors' released code draws its V and U for a layer.

    It decomposes a layer of the same shape with fresh Kaiming-uniform entries in the place of the pretrained weight,
    and takes the first columns of ``Vh``, whose rows are the singular vectors. The columns are orthonormal too. The
    inputs of a fresh layer are exchangeable, so where it is not wide ``E A^T A = (r/n) I`` up to the signs that LAPACK
    gives: on average ``A`` is as near to any given space as a random frame. Of normal entries it would be one.

    Args:
        shape: Of the layer's weight, ``(out, in)``.
        rank: Of the factors.
        seed: Of the draw.
        site: Path of the layer.

    Returns:
        ``A``, shape ``(rank, in)``, and ``B``, shape ``(out, rank)``; float32.

    Source:
        Read in the authors' code (github.com/Jiacheng-Zhu-AIML/AsymmetryLoRA); the argument is ours.
    """
    import torch

    from asymlora.draws import Draws

    m, n = shape
    entries = Draws(seed=seed, site=site, factor="A").uniform(m * n) / math.sqrt(n)
    # Of a wide layer Vh is completed to a square matrix, or its columns would be too short.
    left, _, right = torch.linalg.svd(torch.from_numpy(entries).reshape(m, n), full_matrices=m < n)
    return right[:, :rank].T.float().contiguous(), left[:, :rank].float().contiguous()


def measure_similarity(point: Point) -> list[Record]:
    """Compare starts with the leading singular spaces of the pretrained weights.

    Args:
        point: ``model``, ``targets``, ``rank``, ``seed``.

    Returns:
        One record a start and factor: over the layers the mean and the least similarity, the mean of similarity over
        chance, and the largest entry of ``A A^T - I`` (``B^T B - I``).
    """
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for site, weight in _weights(point["model"], point["targets"]).items():
        for key, measured in _similarities(weight, point["rank"], seed=point["seed"], site=site):
            found.setdefault(key, []).append(measured)
    return [
        {
            "start": start, "factor": factor, "seed": point["seed"], "layers": len(layers),
            "similarity": statistics.fmean(layer["similarity"] for layer in layers),
            "least": min(layer["similarity"] for layer in layers),
            "over_chance": statistics.fmean(layer["over_chance"] for layer in layers),
            "not_orthonormal": max(layer["not_orthonormal"] for layer in layers),
        }
        for (start, factor), layers in found.items()
    ]  # fmt: skip


def _similarities(weight: Tensor, rank: int, *, seed: int, site: str) -> list[tuple[tuple[str, str], dict[str, float]]]:
    import torch

    from asymlora.diagnostics.similarity import chance_similarity, subspace_similarity
    from asymlora.init import draw

    m, n = weight.shape
    left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    space = {"A": right[:rank].T, "B": left[:, :rank]}
    starts: dict[str, tuple[Tensor, Tensor]] = {RELEASED: released_start((m, n), rank, seed=seed, site=site)}
    for init in (TOP, RANDOM):
        A = draw(init, (rank, n), seed=seed, site=site, factor="A", weight=weight)
        starts[init] = A, draw(init, (m, rank), seed=seed, site=site, factor="B", weight=weight)
    found: list[tuple[tuple[str, str], dict[str, float]]] = []
    for start in STARTS:
        for factor, columns in (("A", starts[start][0].T), ("B", starts[start][1])):
            similarity = subspace_similarity(columns.double(), space[factor])
            gram = columns.double().T @ columns.double() - torch.eye(rank, dtype=torch.float64)
            over = similarity / chance_similarity(rank, len(columns))
            largest = float(gram.abs().max())
            measured = {"similarity": similarity, "over_chance": over, "not_orthonormal": largest}
            found.append(((start, factor), measured))
    return found


def _weights(model: str, targets: Sequence[str]) -> dict[str, Tensor]:
    from asymlora.spec import AdapterSpec
    from asymlora.targets import match_targets
    from asymlora.tasks.base_weights import base_weights
    from asymlora.tasks.empty_models import empty_model

    sites = match_targets(empty_model(model), AdapterSpec(rank=1, targets=tuple(targets)), ())
    return {site: weight.float() for site, weight in base_weights(model, sites).items()}


# How it trains -------------------------------------------------------------------------------------------------------


def measure_training(point: Point, *, plan: SweepPlan, arms: Mapping[str, str]) -> list[Record]:
    """Train one closing run of an arm, its ``A`` from the released code's draw or from the arm's own.

    Args:
        point: ``start``, ``rate``, ``seed``.
        plan: The sweep that has the arm: model, data and training are its own.
        arms: Name of the arm by start; the released draw takes the place of its own.

    Returns:
        One record: the metric on test, None where the run diverged.
    """
    from asymlora.errors import DivergedError
    from asymlora.sweep.single_run import SingleRun
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    (cell,) = [cell for cell in cells(plan) if cell.label == arms[point["start"]]]
    todo = job(plan, cell, lr=point["rate"], seed=point["seed"], phase="closing")
    base = _base(json.dumps(plan.recipe.to_dict(), sort_keys=True))
    base.released = point["start"] == RELEASED
    run = SingleRun(base, replace(todo, keeps_adapter=False), folder=None, progress=None)
    try:
        run.do()
        value = run.found["test"][run.found["metric"]]
    except DivergedError:
        value = None
    return [{"start": point["start"], "seed": point["seed"], "rate": point["rate"], "value": value}]


@functools.lru_cache(maxsize=1)
def _base(recipe: str) -> Any:
    """Return model and data of a recipe, loaded once in a row of points."""
    from asymlora.sweep.loaded_base import LoadedBase
    from asymlora.train.method import Method
    from asymlora.train.methods import ADAPTER, OurAdapter
    from asymlora.train.recipe import Recipe

    class Base(LoadedBase):
        # Runs on it take their A from the released code's draw where that is asked for.
        released = False

        def method(self, recipe: Recipe) -> Method:
            return OurAdapter(_released_factors) if self.released else ADAPTER

    return Base(Recipe.from_dict(json.loads(recipe)))


def _released_factors(bases: Mapping[str, nn.Module], spec: AdapterSpec) -> Factors:
    from asymlora.installing import drawn_factors

    factors = drawn_factors(bases, spec)
    return {
        site: (released_start((len(B), A.shape[1]), len(A), seed=spec.seed, site=site)[0], B)
        for site, (A, B) in factors.items()
    }
