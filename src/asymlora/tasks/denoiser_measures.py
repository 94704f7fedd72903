"""How good the denoiser is on held-out rows: its loss, the tokens it fills in, the tokens it copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import BartForConditionalGeneration

from asymlora.tasks.denoiser_text import SPECIAL, Block, HeldOutBlocks


def measure(model: BartForConditionalGeneration, blocks: Sequence[Block], *, mask: int, seed: int) -> dict[str, float]:
    """Measure a denoiser on rows, each token of the target given those before it.

    Args:
        model: In evaluation mode.
        blocks: The rows.
        mask: Id of the mask token.
        seed: Of the noise.

    Returns:
        ``loss`` in nats per token, the special ones included; ``hidden`` and ``kept``: shares of the tokens that the
        source lacks and has which come first in the model's prediction.
    """
    totals: dict[str, float] = defaultdict(float)
    rows = HeldOutBlocks(blocks, mask=mask, seed=seed)
    for start in range(0, len(rows), 32):
        chosen = range(start, min(start + 32, len(rows)))
        inputs = {key: _padded([rows[i][key] for i in chosen], fill) for key, fill in _FILL.items()}
        with torch.inference_mode():
            logits = model(**{key: value.to(model.device) for key, value in inputs.items()}).logits.cpu()
        labels = inputs["labels"]
        totals["nll"] += float(nn.functional.cross_entropy(logits.mT, labels, reduction="sum"))
        totals["tokens"] += int((labels != -100).sum())
        right = logits.argmax(-1) == labels
        # 2 marks the tokens that are neither: the first, the last and the padding.
        hidden = _padded([[2, *map(int, rows.noised[i].hidden), 2] for i in chosen], 2)
        for name, mark in (("kept", 0), ("hidden", 1)):
            totals[f"{name} right"] += int(right[hidden == mark].sum())
            totals[name] += int((hidden == mark).sum())
    shares = {name: totals[f"{name} right"] / max(totals[name], 1) for name in ("hidden", "kept")}
    return {"loss": totals["nll"] / totals["tokens"], **shares}


_FILL = {"input_ids": SPECIAL.index("<pad>"), "attention_mask": 0, "labels": -100}


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def chance(train: Sequence[Block], held_out: Sequence[Block], *, mask: int, seed: int) -> float:
    """Return the share of hidden held-out tokens that are the most frequent token of the training rows."""
    seen = Counter(token for block in train for sentence in block for token in sentence)
    guess = seen.most_common(1)[0][0]
    rows = HeldOutBlocks(held_out, mask=mask, seed=seed).noised
    lacking = [t for row in rows for t, gone in zip(row.target, row.hidden, strict=True) if gone]
    return lacking.count(guess) / max(len(lacking), 1)
