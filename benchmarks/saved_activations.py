"""Bytes that one training step keeps for backward: frozen base, PEFT, asymlora; counted, not estimated.

Every tensor that autograd packs is counted once by its storage; parameters and buffers of the model are left out. The
floor has all weights frozen and an embedding output that requires a gradient; the adapted models run likewise. With
``A`` frozen, what asymlora adds over the floor must be the ``r``-wide codes exactly, and one bit for each value of
dropout. Exit status 1 if it is not.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import asymlora as al
from side_by_side import environment, write
from step_overhead import with_ours, with_peft

RANK, LENGTH, BATCH = 8, 128, 8
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def blocks() -> dict[str, tuple[nn.Module, Callable[[nn.Module], nn.Module], dict[str, Tensor], tuple[str, ...]]]:
    """Return by name: a model of random weights, its embedding, a batch, and the layers that get an adapter."""
    torch.manual_seed(0)
    ids = {"input_ids": torch.randint(5, 1000, (BATCH, LENGTH))}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 2, "intermediate_size": 1536}
    bert = BertConfig(**shape, **none, vocab_size=1000, num_attention_heads=6)
    llama = LlamaConfig(**shape, vocab_size=1000, num_attention_heads=6, num_key_value_heads=2)
    gpt2 = GPT2Config(vocab_size=1000, n_embd=384, n_layer=2, n_head=6, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    vit = ViTForImageClassification(ViTConfig(**shape, **none, num_attention_heads=6, image_size=112, patch_size=14))
    linear = {n.rpartition(".")[2] for n, m in vit.named_modules() if isinstance(m, nn.Linear) and n != "classifier"}
    images = {"pixel_values": torch.randn(BATCH, 3, 112, 112)}
    return {
        "BERT": (
            BertForSequenceClassification(bert), lambda m: m.bert.embeddings, ids, ("query", "key", "value", "dense"),
        ),
        "Llama": (LlamaForCausalLM(llama), lambda m: m.model.embed_tokens, ids, LLAMA),
        "GPT-2": (GPT2LMHeadModel(gpt2), lambda m: m.transformer.wte, ids, ("c_attn", "c_proj", "c_fc")),
        "ViT": (vit, lambda m: m.vit.embeddings, images, tuple(sorted(linear))),
    }  # fmt: skip


def kept_bytes(model: nn.Module, embedding: nn.Module, batch: dict[str, Tensor]) -> int:
    """Return the bytes of all distinct storages that autograd packs in one forward pass."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor  # held, so that no other tensor can take its place in memory
        return tensor

    hook = embedding.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_())
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**batch).logits.float().sum().backward()
    finally:
        hook.remove()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def expected_bytes(model: nn.Module, batch: dict[str, Tensor], *, dropout: float) -> int:
    """Return what adapters must add: one float32 code a site and token, with dropout one bit a value of the input."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        values = inputs[0].numel()
        tokens = values // inputs[0].shape[-1]
        total += 4 * layer.lora_A.shape[0] * tokens + ((values + 7) // 8 if dropout else 0)

    handles = [site.layer.register_forward_hook(count) for site in al.sites(model)]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return total


def main() -> None:
    """Count, print and write."""
    warnings.simplefilter("ignore")
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(2)
    rows: list[dict[str, Any]] = []
    print("| model | base | dropout | trained | frozen base, KiB | PEFT adds | ours adds | codes and bits | exact |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (base, embedding, batch, targets) in blocks().items():
        for dtype, dropout, frozen_A in itertools.product((torch.float32, torch.bfloat16), (0.0, 0.1), (True, False)):
            given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
            cast = base.to(dtype)
            floor_model = copy.deepcopy(cast).requires_grad_(False)
            floor = kept_bytes(floor_model.train(), embedding(floor_model), given)
            options: dict[str, Any] = {"frozen_A": frozen_A, "dropout": dropout, "targets": targets}
            theirs = with_peft(copy.deepcopy(cast), RANK, **options)
            theirs_kept = kept_bytes(theirs, embedding(theirs.base_model.model), given) - floor
            ours = with_ours(copy.deepcopy(cast), RANK, **options)
            ours_kept = kept_bytes(ours, embedding(ours), given) - floor
            wanted = expected_bytes(ours, given, dropout=dropout)
            row = {
                "model": name, "base": str(dtype).removeprefix("torch."), "dropout": dropout,
                "trained": "B" if frozen_A else "A and B", "floor_bytes": floor, "peft_bytes": theirs_kept,
                "ours_bytes": ours_kept, "codes_and_bits": wanted, "exact": ours_kept == wanted if frozen_A else None,
            }  # fmt: skip
            rows.append(row)
            exact = {True: "yes", False: "NO", None: ""}[row["exact"]]
            print(
                f"| {name} | {row['base']} | {dropout} | {row['trained']} | {floor / 1024:,.0f} |"
                f" {theirs_kept / 1024:,.0f} | {ours_kept / 1024:,.0f} | {wanted / 1024:,.0f} | {exact} |",
                flush=True,
            )
    write("saved_activations", rows, rank=RANK, batch=BATCH, length=LENGTH)
    print(environment())
    sys.exit(any(row["exact"] is False for row in rows))


if __name__ == "__main__":
    main()
