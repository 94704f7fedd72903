"""``asymlora finetune --dry-run``: what a recipe costs, and what this machine lacks for it. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from asymlora.attaching import count_parameters
from asymlora.commands import estimate
from asymlora.errors import AsymloraError
from asymlora.schema import to_mapping
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules
from asymlora.tasks.empty_models import empty_model, fresh_heads
from asymlora.tasks.hub import is_hub_id, is_reachable
from asymlora.tasks.inputs import refuse_unread
from asymlora.tasks.sources import EMBEDDED, find_model
from asymlora.train.memory_check import Planned, memory_line
from asymlora.train.methods import METHODS
from asymlora.train.optimizers import optimizer_class
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
    refuse_unread(recipe.task, recipe.data)
    METHODS[recipe.method].refuse_unused(recipe)
    optimizer_class(recipe.train.optimizer, recipe.train.optimizer_options)
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


def _labels(recipe: Recipe) -> bool:
    # A classifier's head is what stands beside its base; what writes tokens has a head that came with the base.
    return "classification" in recipe.task or "regression" in recipe.task


def _heads(recipe: Recipe, model: Any) -> tuple[str, ...]:
    return fresh_heads(model) if _labels(recipe) else ()


def _spec(recipe: Recipe, model: Any) -> AdapterSpec:
    in_full = (*recipe.adapter.modules_to_save, *_heads(recipe, model))
    return replace(recipe.adapter, modules_to_save=tuple(dict.fromkeys(in_full)))


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
        momentum=bool(recipe.train.optimizer_options.get("momentum")),
        checkpointing=recipe.train.gradient_checkpointing,
        base=recipe.model.base,
        everything=recipe.method == "full",
        device=_device(),
    )
    line = memory_line(model, _spec(recipe, model) if recipe.method == "adapter" else None, planned)
    return f"Memory is missing here: {line.sentence}" if line.too_large else line.sentence


def _counts(recipe: Recipe, model: Any) -> str:
    heads = _heads(recipe, model)
    in_full = match_saved_modules(model, _spec(recipe, model).modules_to_save)
    trained = whole = 0
    if recipe.method != "head" or in_full:
        trained, _ = count_parameters(METHODS[recipe.method].put_on(model, recipe, heads))
        whole = sum(p.numel() for path in in_full for p in model.get_submodule(path).parameters() if p.requires_grad)
    rest = "in the other weights" if recipe.method == "full" else "in factors"
    later = "" if heads or not _labels(recipe) else " The head for the labels, which are not read here, comes on top."
    steps, rows = recipe.train.steps, recipe.train.batch_size * recipe.train.gradient_accumulation
    return (
        f"Trained: {trained:,} values, {whole:,} of them in modules trained in full and {trained - whole:,} {rest}."
        f"{later} {steps:,} steps of {rows:,} rows: {steps * rows:,} rows are seen."
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
