"""``asymlora finetune --dry-run``: what a recipe costs, and what this machine lacks for it. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from asymlora.attaching import attach, count_parameters
from asymlora.commands import estimate
from asymlora.errors import AsymloraError
from asymlora.schema import to_mapping
from asymlora.site_view import saved_modules
from asymlora.spec import AdapterSpec
from asymlora.tasks.empty_models import empty_model, fresh_heads
from asymlora.tasks.hub import is_hub_id, is_reachable
from asymlora.tasks.sources import EMBEDDED, find_model
from asymlora.train.memory_check import Planned, memory_line
from asymlora.train.recipe import Recipe

_OPTIMIZERS = {"sgd": "sgd"}
"""Rows of the estimator besides AdamW's."""


def run(recipe: Recipe) -> int:
    """Print what a recipe costs, what it trains, and what is missing.

    Args:
        recipe: The recipe.

    Returns:
        The exit code: 0, whether or not it could run here.
    """
    network = _empty(recipe)
    options: dict[str, Any] = {
        "model": recipe.model.config or recipe.model.name,
        "adapter": to_mapping(_spec(recipe, network)),
        "batch": recipe.train.batch_size,
        "length": _length(recipe, network),
        "dtype": "bfloat16" if recipe.model.base == "bfloat16" else "float32",
        "base": recipe.model.base if recipe.model.base in ("nf4", "int8") else None,
        "optimizer": _OPTIMIZERS.get(recipe.train.optimizer.lower(), "adamw"),
        "checkpointing": recipe.train.gradient_checkpointing,
        "device": _device(),
    }
    code = estimate.run(options)
    console = Console()
    console.print()
    for sentence in (_memory(recipe, network), _counts(recipe, network), *_lacking(recipe)):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return code


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _empty(recipe: Recipe) -> Any:
    model = empty_model(recipe.model.config or recipe.model.name, revision=recipe.model.revision)
    return model.to(getattr(torch, recipe.model.base)) if recipe.model.base == "bfloat16" else model


def _spec(recipe: Recipe, model: Any) -> AdapterSpec:
    # A classifier's head is what stands beside its base; what writes tokens has a head that came with the base.

    heads = fresh_heads(model) if "classification" in recipe.task or "regression" in recipe.task else ()
    return replace(recipe.adapter, modules_to_save=tuple(dict.fromkeys((*recipe.adapter.modules_to_save, *heads))))


def _length(recipe: Recipe, model: Any) -> int:
    patch = getattr(model.config, "patch_size", None)
    if recipe.task != "image_classification" or not isinstance(patch, int):
        return recipe.data.max_tokens
    return (recipe.data.image_size // patch) ** 2 + 1


def _memory(recipe: Recipe, model: Any) -> str:
    planned = Planned(
        batch=recipe.train.batch_size,
        length=_length(recipe, model),
        optimizer=recipe.train.optimizer,
        checkpointing=recipe.train.gradient_checkpointing,
        base=recipe.model.base,
        device=_device(),
    )
    line = memory_line(model, _spec(recipe, model), planned)
    return f"Memory is missing here: {line.sentence}" if line.too_large else line.sentence


def _counts(recipe: Recipe, model: Any) -> str:
    network = attach(model, _spec(recipe, model))
    trained, _ = count_parameters(network)
    heads = sum(p.numel() for module in saved_modules(network).values() for p in module.parameters())
    steps, rows = recipe.train.steps, recipe.train.batch_size * recipe.train.gradient_accumulation
    return (
        f"Trained: {trained:,} values, {heads:,} of them in modules trained in full and {trained - heads:,} in factors."
        f" {steps:,} steps of {rows:,} rows: {steps * rows:,} rows are seen."
    )


def _lacking(recipe: Recipe) -> Iterator[str]:
    lacking = False
    try:
        find_model(recipe.model.name)
    except AsymloraError as error:
        lacking = True
        yield f"Weights are missing here: {error}"
    data = recipe.data.name
    here = data.startswith(EMBEDDED) or Path(data).expanduser().exists()
    if not here and not (is_hub_id(data) and is_reachable()):
        lacking = True
        yield f"Data are missing here: {data} is no local file or folder, and the hub is out of reach."
    if not lacking:
        yield "Weights and data can be had here: run it without --dry-run."
