"""Seconds to put adapters on a RoBERTa-large-shaped model: asymlora, PEFT, and the released AsymmetryLoRA's way.

The released code draws an orthonormal factor as the singular vectors of a full-size random matrix, one decomposition
of (out, in) for each layer (read in its source; written anew in `frame_by_full_svd`). It is timed on one layer of each
shape and multiplied by the number of such layers, as the whole takes minutes; ``--whole`` runs all of them.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

import asymlora as al
from asymlora.init import draw
from side_by_side import environment, in_turn, median, shown, time_ratio, write

RANK, TARGETS = 8, ("query", "key", "value", "dense")


def roberta_large() -> nn.Module:
    """Return a RoBERTa-large-shaped encoder with random weights and a small vocabulary."""
    config = RobertaConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=1000
    )
    return RobertaModel(config, add_pooling_layer=False)


def frame_by_full_svd(layer: nn.Linear) -> Tensor:
    """Return an ``A`` with orthonormal rows as the released code draws it."""
    uniform = torch.rand(layer.out_features, layer.in_features) - 0.5
    _, _, right = torch.linalg.svd(uniform)
    return right[:, :RANK].t().contiguous()


def svd_seconds(model: nn.Module, *, whole: bool) -> float:
    """Return the seconds of that way for every adapted layer of the model."""
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] in TARGETS]
    counts = Counter((layer.in_features, layer.out_features) for layer in layers)
    chosen = layers if whole else list({(m.in_features, m.out_features): m for m in layers}.values())
    total = 0.0
    for layer in chosen:
        started = time.perf_counter()
        frame_by_full_svd(layer)
        times = 1 if whole else counts[layer.in_features, layer.out_features]
        total += times * (time.perf_counter() - started)
    return total


def on_a_copy(base: nn.Module, put_on: Callable[[nn.Module], Any]) -> Callable[[], float]:
    """Return a step that copies the model and times only what comes after."""

    def step() -> float:
        model = copy.deepcopy(base)
        started = time.perf_counter()
        put_on(model)
        return time.perf_counter() - started

    return step


def main() -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = roberta_large()
    config = peft.LoraConfig(r=RANK, target_modules=list(TARGETS))
    ways = {
        "asymlora": on_a_copy(base, lambda m: al.attach(m, al.AdapterSpec.b_only(rank=RANK, targets=TARGETS))),
        "peft": on_a_copy(base, lambda m: peft.get_peft_model(m, config)),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if turn:  # the first is a warm-up
                taken[name].append(seconds)
    sites = sum(1 for n, m in base.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] in TARGETS)
    draws = {
        "draws": lambda: [draw("orthonormal", (RANK, 1024), seed=0, site=str(i), factor="A") for i in range(sites)]
    }
    drawing = median(in_turn(draws, seconds=2.0)["draws"])
    svd = svd_seconds(base, whole=arguments.whole)
    ours, theirs = median(taken["asymlora"]), median(taken["peft"])
    ratio = time_ratio(taken, "asymlora", "peft")
    print("| way | seconds | times asymlora |\n|---|---|---|")
    for name, seconds in (("asymlora", ours), ("PEFT, get_peft_model", theirs), ("one full SVD a layer", svd)):
        print(f"| {name} | {seconds:.3f} | {seconds / ours:.1f} |")
    print(
        f"\nasymlora / PEFT {shown(ratio)}; {sites} sites; {sites} orthonormal draws of (8, 1024) alone {drawing:.3f} s"
    )
    rows = [{"asymlora_s": ours, "peft_s": theirs, "svd_s": svd, "ratio_to_peft": ratio, "draws_s": drawing}]
    write("attach_time", rows, sites=sites, rank=RANK, svd_measured_whole=arguments.whole)
    print(environment())


if __name__ == "__main__":
    main()
