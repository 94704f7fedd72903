"""How the frozen base is stored: the options that make transformers load it in one of the four ways."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch

from asymlora.errors import MissingPackageError
from asymlora.tasks.inputs import ModelRecipe

HEADS = (
    "classification_head",
    "classifier",
    "embed_out",
    "head",
    "lm_head",
    "pooler",
    "proj_out",
    "qa_outputs",
    "regressor",
    "score",
)
"""Names of modules that are trained in full or give the output; they are never packed."""


def loading_options(model: ModelRecipe) -> dict[str, Any]:
    """Return the keyword arguments of ``from_pretrained`` that store the base as asked.

    What is packed are the linear layers but heads; all else stays float32, in which packed weights are multiplied too.
    No ``device_map`` is given: where there is one device transformers then adds no hooks, which an adapter layer would
    have to call.

    Args:
        model: Its ``base`` is ``float32``, ``bfloat16``, ``nf4`` (4 bits, scales quantised in turn: QLoRA's) or
            ``int8`` (one float32 scale a row).

    Returns:
        ``dtype``, and ``quantization_config`` for a packed base.

    Raises:
        MissingPackageError: The package that packs is not installed; the message holds the command.

    Example:
        >>> loading_options(ModelRecipe(base="bfloat16"))
        {'dtype': torch.bfloat16}
    """
    if model.base in ("float32", "bfloat16"):
        return {"dtype": getattr(torch, model.base)}
    package, configuration = _PACKED[model.base]
    missing = [name for name in (package, "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"model.base={model.base!r} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not"
            f" installed. Install with: pip install {' '.join(missing)}. Without, take float32 or bfloat16."
        )
    # transformers matches these from the start of a path, as expressions.
    return {"dtype": torch.float32, "quantization_config": configuration([rf"(?:.*\.)?{name}" for name in HEADS])}


def _nf4(skipped: list[str]) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=skipped,
    )


def _int8(skipped: list[str]) -> Any:
    from transformers import TorchAoConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchao's own import, under newer versions of torch
        from torchao.quantization import Int8WeightOnlyConfig
    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)


_PACKED: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "nf4": ("bitsandbytes", _nf4),
    "int8": ("torchao", _int8),
}
"""Package that packs, and the configuration by the paths that it leaves alone."""
