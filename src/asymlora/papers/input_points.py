"""What zhu_inputs measures inside of pretrained models: how many dimensions inputs fill, what held factors reach.

`measure_sites` takes one point of a `asymlora.reproduce.artefact.MeasuredPart` and gives plain records. Torch is
imported in the functions, as artefacts are listed without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.papers.models_and_data import MINILM, PACS_AT_112, SMOLLM2, TREC6, WIKITEXT2_VALID
from asymlora.papers.paper_recipes import paper_recipe
from asymlora.reproduce.evidence import Record
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.train.recipe import Recipe, TrainRecipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from asymlora.diagnostics.captured_gradient import SiteMeasures
    from asymlora.diagnostics.site_moments import SiteMoments
    from asymlora.tasks.task import Batch, Prepared

Point = Mapping[str, Any]
VIT = "embedded:vit-s14"
RANK, DRAWS, BATCHES = 8, 4, 8
"""Rank of the held factors; draws of each, which stand beside the closed form of the mean; batches of rows."""


@dataclass(frozen=True, kw_only=True)
class Listened:
    """A model, and what it is listened to with.

    Attributes:
        model: The model, its head fitted where it has a fresh one.
        batches: Batches of training rows.
        loss: From the model and a batch to the mean loss.
    """

    model: nn.Module
    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]


def measure_sites(point: Point, *, data_root: Path) -> list[Record]:
    """Gather moments and the first gradient at the layers of a model, and what each held factor leaves in reach.

    Embeddings are left out, and convolutions in groups, whose update is no product of two matrices.

    Args:
        point: ``name`` (one of `MODELS`, or `CONVOLUTIONS`), or any with ``recipe``, one at the paper's scale;
            ``batches``, ``rank``, ``draws``, ``seed``; ``blocks``: the first of those that are looked at, and the first
            that is not any more.
        data_root: Where data sets stand.

    Returns:
        One record a layer. ``random_A`` is the mean share of the first update's energy that training B can reach over a
        random held A of the rank, ``random_B`` likewise; ``drawn_A`` and ``drawn_B`` are means over draws, None where
        the moment of the inputs is sketched.
    """
    from asymlora.diagnostics.captured_gradient import measure_site
    from asymlora.diagnostics.covariance import gather_moments

    heard = _heard(point, data_root)
    found = gather_moments(heard.model, heard.batches, loss=heard.loss, targets=_layers(heard.model, point["blocks"]))
    records: list[Record] = []
    for moments in found.values():
        measured = measure_site(moments, ranks=(point["rank"],))
        if measured.shares:
            records.append({"model": point["name"], **_record(measured), **_drawn(moments, measured, point)})
    return records


def _layers(model: nn.Module, blocks: Sequence[int] | None) -> tuple[str, ...]:
    from torch import nn

    from asymlora.diagnostics.covariance import every_target

    names = [name for name in every_target(model) if not isinstance(model.get_submodule(name), nn.Embedding)]
    if blocks is None:
        return tuple(names)
    first, end = blocks
    return tuple(name for name in names if (block := place_of(name)[0]) is not None and first <= block < end)


def place_of(site: str) -> tuple[int | None, str]:
    """Return the block in which a layer stands, and what it is there.

    Args:
        site: Path of the layer.

    Returns:
        Number of the block, None for a layer of none; and the path after it, the whole one where there is none.

    Example:
        >>> place_of("model.layers.3.mlp.down_proj"), place_of("classifier")
        ((3, 'mlp.down_proj'), (None, 'classifier'))
    """
    found = re.search(r"(?:^|\.)(\d+)\.([^\d].*)$", site)
    return (int(found[1]), found[2]) if found else (None, site)


def _record(measured: SiteMeasures) -> Record:
    (shares,) = measured.shares
    block, role = place_of(measured.name)
    return {
        "site": measured.name,
        "block": block,
        "role": role,
        "kind": measured.kind,
        "fan_in": measured.fan_in,
        "outputs": measured.outputs,
        "rows": measured.rows,
        "input_ratio": measured.input_ratio,
        "centred_ratio": measured.centred_ratio,
        "noise": measured.noise,
        "rank": shares.rank,
        "random_A": shares.random_A,
        "random_B": shares.random_B,
        "best": shares.best,
    }


def _drawn(moments: SiteMoments, measured: SiteMeasures, point: Point) -> Record:
    """Return the means over draws of what each held factor leaves in reach."""
    import statistics

    import torch

    from asymlora.theory.least_squares import explained_given_A, explained_given_B, total_variance
    from asymlora.theory.spectrum import InputMoment

    inputs, gradient, rank = moments.inputs, moments.gradient, measured.shares[0].rank
    if not isinstance(inputs, InputMoment) or inputs.sketch or gradient is None:
        return {"drawn_A": None, "drawn_B": None}
    cov, delta = inputs.matrix(), gradient.double() / gradient.abs().max()
    whole = total_variance(cov=cov, delta=delta)
    generator = torch.Generator().manual_seed(point["seed"])
    by_B, by_A = list[float](), list[float]()
    for _ in range(point["draws"]):
        down = torch.randn(rank, measured.fan_in, generator=generator, dtype=torch.float64)
        up = torch.randn(measured.outputs, rank, generator=generator, dtype=torch.float64)
        by_B.append(explained_given_A(down, cov=cov, delta=delta) / whole)
        by_A.append(explained_given_B(up, cov=cov, delta=delta) / whole)
    return {"drawn_A": statistics.fmean(by_B), "drawn_B": statistics.fmean(by_A)}


# Models --------------------------------------------------------------------------------------------------------------


def _minilm(data_root: Path) -> Recipe:
    data = DataRecipe(name=str(data_root / TREC6.place), max_rows=1000, max_scored_rows=100)
    return Recipe(model=ModelRecipe(name=MINILM), data=data, train=TrainRecipe(batch_size=32))


def _smollm2(data_root: Path) -> Recipe:
    data = DataRecipe(name=str(data_root / WIKITEXT2_VALID.place), max_tokens=128, max_rows=64, max_scored_rows=2)
    return Recipe(task="language_modeling", model=ModelRecipe(name=SMOLLM2), data=data, train=TrainRecipe(batch_size=4))


def _vit(data_root: Path) -> Recipe:
    data = DataRecipe(
        name=str(data_root / PACS_AT_112.place),
        train_environment="photo",
        augment=False,
        max_rows=128,
        max_scored_rows=50,
    )
    return Recipe(task="image_classification", model=ModelRecipe(name=VIT), data=data, train=TrainRecipe(batch_size=8))


MODELS: Mapping[str, Callable[[Path], Recipe]] = {"minilm": _minilm, "smollm2": _smollm2, "vit": _vit}
"""By name: from the data root to model and rows."""
CONVOLUTIONS = "efficientnet"
"""The name of the model that is no recipe's."""


def recipe_of(point: Point, data_root: Path) -> Recipe:
    """Return the model that a point listens to, and the rows; of convolutions the images of the other image model.

    Args:
        point: As for `measure_sites`.
        data_root: Where data sets stand.
    """
    if name := point.get("recipe"):
        recipe = paper_recipe(name)
        # A name without an owner is a folder as DomainBed writes it, any other one stands on the hub.
        place = recipe.data.name if "/" in recipe.data.name else str(data_root / "domainbed" / recipe.data.name)
        return replace(recipe, data=replace(recipe.data, name=place, max_rows=1000, max_scored_rows=100))
    return MODELS["vit" if point["name"] == CONVOLUTIONS else point["name"]](data_root)


def _heard(point: Point, data_root: Path) -> Listened:
    from asymlora.tasks.preparing import prepare_task
    from asymlora.train.advising import batch_loss
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    recipe = recipe_of(point, data_root)
    prepared = prepare_task(recipe.task, recipe.model, recipe.data, head_seed=point["seed"])
    batches = _batches(prepared, recipe.train.batch_size, point)
    if point["name"] == CONVOLUTIONS:
        return _convolutions(prepared, batches)
    if prepared.fit_head is not None and (head := prepared.fit_head(lambda rows: None)).copy_to_model is not None:
        head.copy_to_model()
    return Listened(model=prepared.model, batches=batches, loss=lambda model, batch: batch_loss(model, batch, prepared))


def _batches(prepared: Prepared, size: int, point: Point) -> list[Batch]:
    """Return batches of training rows by chance."""
    import torch

    order = torch.randperm(len(prepared.train), generator=torch.Generator().manual_seed(point["seed"])).tolist()
    chosen = [order[start : start + size] for start in range(0, min(len(order), size * point["batches"]), size)]
    return [prepared.collator([prepared.train[row] for row in rows]) for rows in chosen]


def _convolutions(prepared: Prepared, batches: Sequence[Batch]) -> Listened:
    """Return EfficientNet-Lite0 with a fitted classifier in the place of its own, on images of the given task."""
    import numpy as np
    import torch
    from torch import nn

    from asymlora.papers import efficientnet_lite
    from asymlora.tasks.linear_probe import fit_probe

    layers = efficientnet_lite.pretrained()
    settings: Any = prepared.processor
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (settings.mean, settings.std))

    def read(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        pixels = batch["pixel_values"] * deviation + mean
        return efficientnet_lite.features(layers, (pixels - efficientnet_lite.MEAN) / efficientnet_lite.DEVIATION)

    def columns(items: Any) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            rows = [read(prepared.collator([items[row]])) for row in range(len(items))]
        return torch.cat(rows).numpy(), items.labels

    probe = fit_probe(columns(prepared.train), columns(prepared.validation), labels=len(prepared.label_names))
    layers["_fc"] = nn.Linear(efficientnet_lite.WIDTH, len(prepared.label_names))
    probe.copy_to(layers["_fc"])
    for parameter in layers.parameters():
        parameter.requires_grad_(False)

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(layers["_fc"](read(batch)), batch["labels"])

    return Listened(model=layers, batches=batches, loss=loss)


# Points --------------------------------------------------------------------------------------------------------------


def _point(name: str, blocks: Sequence[int] | None = None, **more: Any) -> Point:
    chosen = None if blocks is None else list(blocks)
    return {"name": name, "blocks": chosen, "batches": BATCHES, "rank": RANK, "draws": DRAWS, "seed": 0, **more}


def site_points() -> tuple[Point, ...]:
    """Return the transformers of the small scale; of SmolLM2 ten blocks at a time, as memory goes by layers."""
    decoder = tuple(_point("smollm2", (first, first + 10)) for first in (0, 10, 20))
    return (_point("minilm"), *decoder, _point("vit"))


def convolution_points() -> tuple[Point, ...]:
    """Return the network of convolutions."""
    return (_point(CONVOLUTIONS),)


def paper_points() -> tuple[Point, ...]:
    """Return the models of the paper's recipes; of LLaMA-2-7B four blocks at a time."""
    decoder = tuple(_point("llama", (first, first + 4), recipe="llama_2_7b_alpaca") for first in range(0, 32, 4))
    return (_point("roberta", recipe="roberta_large_glue"), *decoder, _point("vit_base", recipe="vit_base_pacs"))
