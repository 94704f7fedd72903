"""Pretrained image models with a classification head: loaded, tried at the size of the images, read at the head."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.utils.hub import cached_file

from asymlora.errors import DataNotFoundError, SpecError
from asymlora.packed_base import keep_trainable
from asymlora.tasks.base_storage import loading_options
from asymlora.tasks.classifiers import _fresh_heads
from asymlora.tasks.images import SETTINGS_FILE, ImageSettings, read_settings
from asymlora.tasks.inputs import ModelRecipe
from asymlora.tasks.sources import find_model
from asymlora.tasks.task import Batch

_FLAG = "interpolate_pos_encoding"


@dataclass(frozen=True, kw_only=True)
class ImageModel:
    """A pretrained image model that takes images of the wanted size.

    Attributes:
        model: In evaluation mode, with a fresh head where its files hold none.
        settings: How images become its input.
        heads: Paths of what stands beside the base or started at random.
        head: Path of the last linear layer that gives one number for each label.
        reads_head: Whether that layer's output is the model's answer as it is.
        tokens: Patches of an image; 1 where the model cuts none.
    """

    model: PreTrainedModel
    settings: ImageSettings
    heads: tuple[str, ...]
    head: str
    reads_head: bool
    tokens: int

    def save(self, folder: Path) -> None:
        """Write model and settings as a folder that transformers loads.

        Args:
            folder: An existing folder.
        """
        self.model.save_pretrained(folder)
        self.settings.save_pretrained(folder)


def load_image_model(model: ModelRecipe, *, label_names: Sequence[str], size: int) -> ImageModel:
    """Load a pretrained image model, with a fresh head where its files hold none for these labels.

    Args:
        model: Which model, and how its base is stored.
        label_names: Names of the labels, by index.
        size: Pixels of a side of the images.

    Returns:
        The model; it has been run once at that size.

    Raises:
        DataNotFoundError: There is no such model, its files lack weights, or it has no linear head.
        SpecError: It does not take images of that size.
    """
    where, folder = find_model(model.name, revision=model.revision)
    settings = read_settings(folder / SETTINGS_FILE if folder else _hub_file(where, model.revision), size=size)
    labels = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: i for i, label in enumerate(label_names)},
    }
    options: dict[str, Any] = {"local_files_only": True} if folder else {"revision": model.revision or "main"}
    storage = loading_options(model)
    try:
        config = AutoConfig.from_pretrained(where, **labels, **options)
        network, report = AutoModelForImageClassification.from_pretrained(
            where,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for other labels is started anew
            **storage,
            **options,
        )
        keep_trainable(network)
        heads = _beside_base(network, report)
        head = _last_linear(network, heads, labels=len(label_names))
    except (ImportError, OSError, ValueError, SafetensorError) as error:
        raise DataNotFoundError(
            f"The model {model.name!r} could not be loaded for images ({_first_line(error)}). Give a folder of an image"
            " model that transformers saved, or an id on the hub that this machine can reach."
        ) from error
    network.config.name_or_path = model.name
    network.eval()
    patch = _fitted(network, size)
    return ImageModel(
        model=network,
        settings=settings,
        heads=heads,
        head=head,
        reads_head=_tried(network, head, size),
        tokens=(size // patch) ** 2 if patch > 1 else 1,
    )


def _fitted(model: PreTrainedModel, size: int) -> int:
    first, patch = _first_convolution(model), patch_size(model)
    _refuse_size(size, patch)
    if first is not None and first.weight.dtype != torch.float32:
        first.register_forward_pre_hook(_as_stored)
    if size != _trained_size(model):
        _interpolate_positions(model)
    return patch


def patch_size(model: nn.Module) -> int:
    """Return the pixels of a side of the patches that a model cuts images into, or 1 where it cuts none."""
    first = _first_convolution(model)
    if first is None or first.kernel_size != first.stride or first.kernel_size[0] != first.kernel_size[1]:
        return 1
    return int(first.kernel_size[0])


def head_features(
    model: nn.Module, head: str, batches: Iterable[Batch], *, done: Callable[[int], None] | None = None
) -> np.ndarray:
    """Return what a linear head reads, of the model as it is.

    Args:
        model: An image model.
        head: Path of its linear layer.
        batches: Images, ``pixel_values``.
        done: Called after each batch with its number of images.

    Returns:
        Shape ``(images, width)``, float32.
    """
    rows: list[Tensor] = []
    weights = next(model.parameters())
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _, given: rows.append(given[0].float().cpu()))
    model.eval()
    try:
        for batch in batches:
            with torch.inference_mode():
                model(pixel_values=batch["pixel_values"].to(weights.device))
            if done is not None:
                done(len(batch["pixel_values"]))
    finally:
        hook.remove()
    return torch.cat(rows).numpy()


def _beside_base(model: PreTrainedModel, report: Mapping[str, Any]) -> tuple[str, ...]:
    # A tower taken out of a larger model (CLIP's) has that model's prefix, under which nothing stands.
    prefix = model.base_model_prefix
    if model.base_model is model:
        sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
        model.base_model_prefix = max(sizes, key=lambda name: sizes[name])
    try:
        return _fresh_heads(model, report)
    finally:
        model.base_model_prefix = prefix


def _last_linear(model: PreTrainedModel, heads: Sequence[str], *, labels: int) -> str:
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == labels
        and any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear head of {labels} labels beside its base")
    return found[-1]


def _first_convolution(model: nn.Module) -> nn.Conv2d | None:
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def _as_stored(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Images are float32; not every class casts them to the type that the base is stored in.
    return (args[0].to(module.weight.dtype), *args[1:])


def _refuse_size(size: int, patch: int) -> None:
    if size % patch:
        below = size // patch * patch
        allowed = " or ".join(str(s) for s in (below, below + patch) if s)
        raise SpecError(
            f"data.image_size={size} is no multiple of the {patch} pixels of the model's patches, so an edge would be"
            f" cut off. Give {allowed}."
        )


def _trained_size(model: PreTrainedModel) -> int | None:
    size = getattr(model.config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


class _Flagged:
    """Tells one module to interpolate its position embeddings, whoever calls it.

    Args:
        index: Place of the option in the module's forward.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > self.index:
            return (*args[: self.index], True, *args[self.index + 1 :]), kwargs
        return args, {**kwargs, _FLAG: True}


def _interpolate_positions(model: PreTrainedModel) -> None:
    # On the inner modules: PEFT calls the forward of the outermost one directly, past its hooks.
    for module in model.modules():
        names = list(inspect.signature(module.forward).parameters)
        if _FLAG in names and module is not model:
            module.register_forward_pre_hook(_Flagged(names.index(_FLAG)), with_kwargs=True)


def _tried(model: PreTrainedModel, head: str, size: int) -> bool:
    outputs: list[Any] = []
    hook = model.get_submodule(head).register_forward_hook(lambda _, given, output: outputs.append(output))
    try:
        with torch.inference_mode():
            logits = model(pixel_values=torch.zeros(1, 3, size, size, device=model.device)).logits
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        trained = _trained_size(model)
        remedy = f"Give data.image_size={trained}, its own" if trained not in (None, size) else "Give another model"
        raise SpecError(
            f"{type(model).__name__} does not take images of data.image_size={size} ({_first_line(error)}). {remedy}."
        ) from error
    finally:
        hook.remove()
    return len(outputs) == 1 and torch.equal(outputs[0], logits)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _hub_file(name: str, revision: str | None) -> Path | None:
    # A hub that has none, or is out of reach, gives None: the model itself is asked for next.
    found = cached_file(
        name,
        SETTINGS_FILE,
        revision=revision or "main",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
