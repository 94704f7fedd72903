"""Which positions of a batch count at a layer, and which are padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_CROSS = frozenset({"encoder_attn", "EncDecAttention", "crossattention", "cross_attn"})
_READS_ENCODER = frozenset({"k", "v", "k_proj", "v_proj", "key", "value"})
"""Names in transformers of cross-attentions, and of their layers that read the encoder's output."""


def attention_mask(batch: Any, name: str) -> Tensor | None:
    """Return the mask of a batch for one layer.

    Layers under a ``decoder`` have the decoder's; where a batch has ``decoder_input_ids`` and no mask of them, that is
    where its ``labels`` count, or everywhere without labels. Keys and values of a cross-attention read the encoder.

    Args:
        batch: A mapping such as tokenizers give, or anything else, which has no mask.
        name: Path of the layer.

    Returns:
        Shape ``(batch, tokens)``, or None.
    """
    if not isinstance(batch, Mapping):
        return None
    parts = name.split(".")
    found = batch.get("attention_mask")
    if "decoder" in parts and not (_CROSS.intersection(parts) and parts[-1] in _READS_ENCODER):
        labels = batch.get("labels")
        if "decoder_input_ids" in batch:
            found = labels != -100 if isinstance(labels, Tensor) else None
        found = batch.get("decoder_attention_mask", found)
    if not isinstance(found, Tensor):
        return None
    return found if found.dim() == 2 else None
