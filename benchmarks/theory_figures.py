"""Draw the figures of `docs/theory.md` that follow from formulas: the bound, and what training keeps for backward.

The others are drawn by ``asymlora theory stability|toy|gap --figure``; all are in ``docs/figures/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import asymlora as al
from asymlora.report.plots import line_plot
from asymlora.theory.block_cost import Batch, saved_bytes
from asymlora.theory.bounds import gap_bounds
from asymlora.theory.model_shapes import read_model

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


def bound_records() -> list[dict[str, Any]]:
    """Return the bound for RoBERTa-large's queries and values at rank 8, by training samples."""
    names = {"both": "both factors", "B_only": "B alone (or A: the layers are square)"}
    rows: list[dict[str, Any]] = []
    for samples in (10**power for power in range(3, 9)):
        bounds = gap_bounds([(1024, 1024)] * 48, rank=8, samples=samples)
        rows += [{"samples": samples, "gap": getattr(bounds, way).gap, "way": words} for way, words in names.items()]
    return rows


def kept_records() -> list[dict[str, Any]]:
    """Return the activations that a Llama-2-7B keeps for each token in bfloat16, by rank and way."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(intermediate_size=11008)).to(torch.bfloat16)
    batch = Batch(size=1, length=512, itemsize=2, device="cuda", kernel=False)
    ways = {"both factors": al.AdapterSpec.lora, "B alone": al.AdapterSpec.b_only, "A alone": al.AdapterSpec.a_only}
    frozen = saved_bytes(read_model(model).blocks, batch)
    rows = [{"rank": rank, "kib": frozen / batch.tokens / 1024, "way": "frozen base"} for rank in RANKS]
    for words, preset in ways.items():
        for rank in RANKS:
            shape = read_model(model, preset(rank=rank, targets="all-linear"))
            rows.append({"rank": rank, "kib": saved_bytes(shape.blocks, batch) / batch.tokens / 1024, "way": words})
    return rows


def main() -> None:
    """Draw both."""
    line_plot(
        bound_records(), x="samples", y="gap", by="way", log="xy",
        title="Bound on the gap between test and training loss: RoBERTa-large, queries and values, rank 8",
        labels={"samples": "training samples", "gap": "bound, for a loss in [0, 1]", "way": "trained"},
    ).save(FIGURES / "theory_bound.svg")  # fmt: skip
    line_plot(
        kept_records(), x="rank", y="kib", by="way", log="x",
        title="Activations kept for backward: Llama-2-7B in bfloat16, adapters on all linear layers",
        labels={"rank": "rank", "kib": "KiB a token", "way": "trained"},
    ).save(FIGURES / "theory_kept.svg")  # fmt: skip


if __name__ == "__main__":
    main()
