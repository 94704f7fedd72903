"""What an adapter adds to a forward and backward pass: asymlora against PEFT, over the frozen model's own time.

Overhead ratio = (ours - floor) / (PEFT - floor) in one run. The floor is the frozen layer with an input that requires a
gradient.

* ``--part grid``: one square layer at each width, number of tokens and rank; ``--part dropout``: at dropout 0.1.
* ``--part orders``: single layers against RunLoRA's selection of orders (Cherniuk, Mikhalev, Oseledets 2023,
  arXiv:2312.03415; written anew here: every forward and backward order by plain products, the fastest by timing).
* ``--part models``: full training steps, optimizer included, of BERT-, Llama- and ViT-shaped models, and of a
  `PeftModel` under `speed_up`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification
from transformers.models.bert.modeling_bert import BertForSequenceClassification

import asymlora as al
from side_by_side import environment, geometric_mean, in_turn, median, overhead_ratio, shown, time_ratio, write

WIDTHS, TOKENS, RANKS = (384, 768, 1024), (128, 1024, 4096), (8, 64)
LENGTH = 128
ENCODER = ("query", "key", "value", "dense")
RUNLORA_SHAPES = (
    (384, 384, 512),
    (384, 384, 2048),
    (768, 768, 128),
    (768, 768, 512),
    (768, 768, 2048),
    (768, 3072, 1024),
)


def with_peft(base: nn.Module, rank: int, *, frozen_A: bool, dropout: float, targets: tuple[str, ...]) -> nn.Module:
    """Return the module as `get_peft_model` makes it; `A` frozen by its flag, PEFT's only way."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=list(targets))
    model = peft.get_peft_model(base, config)  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if frozen_A and "lora_A" in name:
            parameter.requires_grad_(False)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return model.train()


def with_ours(base: nn.Module, rank: int, *, frozen_A: bool, dropout: float, targets: tuple[str, ...]) -> nn.Module:
    """Return the module with our adapter."""
    preset = al.AdapterSpec.b_only if frozen_A else al.AdapterSpec.lora
    model = al.attach(base, preset(rank=rank, dropout=dropout, targets=targets))
    for site in al.sites(model):
        nn.init.normal_(site.B, std=0.01)
    return model.train()


def pass_of(model: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Return a step: forward and backward with the input requiring a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        given = x.detach().requires_grad_()
        out = model(given)
        (out[0] if isinstance(out, tuple) else out).backward(grad)

    return step


def grid(*, dropout: float, seconds: float) -> list[dict[str, Any]]:
    """Measure every cell of the grid on one square layer."""
    rows: list[dict[str, Any]] = []
    print("| width | tokens | rank | trained | floor, ms | PEFT adds | ours adds | ratio (5-95 %) |")
    print("|---|---|---|---|---|---|---|---|")
    for width, tokens, rank, frozen_A in itertools.product(WIDTHS, TOKENS, RANKS, (False, True)):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(width, width)).requires_grad_(False)
        options: dict[str, Any] = {"frozen_A": frozen_A, "dropout": dropout, "targets": ("0",)}
        models = {
            "floor": copy.deepcopy(base),
            "peft": with_peft(copy.deepcopy(base), rank, **options),
            "ours": with_ours(copy.deepcopy(base), rank, **options),
        }
        x = torch.randn(max(1, tokens // LENGTH), LENGTH, width)
        taken = in_turn({n: pass_of(m, x, torch.randn_like(x)) for n, m in models.items()}, seconds=seconds)
        ratio, floor = overhead_ratio(taken, "ours", "peft"), median(taken["floor"])
        row = {
            "width": width, "tokens": tokens, "rank": rank, "trained": "B" if frozen_A else "A and B",
            "floor_ms": 1e3 * floor, "peft_adds": median(taken["peft"]) / floor - 1,
            "ours_adds": median(taken["ours"]) / floor - 1, "ratio": ratio[0], "low": ratio[1], "high": ratio[2],
            "rounds": len(taken["floor"]),
        }  # fmt: skip
        rows.append(row)
        print(
            f"| {width} | {tokens} | {rank} | {row['trained']} | {row['floor_ms']:.1f} | {row['peft_adds']:.0%} |"
            f" {row['ours_adds']:.0%} | {shown(ratio)} |",
            flush=True,
        )
    print(f"\ngeometric mean {geometric_mean([row['ratio'] for row in rows]):.3f}")
    return rows


class _Ordered(torch.autograd.Function):
    """One forward and one backward order of a LoRA layer, by plain products; ``x`` is ``(T, n)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, A: Tensor, B: Tensor, order: tuple[bool, ...]) -> Tensor:
        ctx.save_for_backward(x, W, A, B)
        ctx.order = order
        return x @ (W + B @ A).t() if order[0] else x @ W.t() + (x @ A.t()) @ B.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, A, B = ctx.saved_tensors
        _, folds, weight_first_A, weight_first_B = ctx.order
        code = None if folds and weight_first_A else grad @ B
        whole = grad.t() @ x if weight_first_A or weight_first_B else None
        grad_x = grad @ (W + B @ A) if folds else grad @ W + code @ A
        grad_A = B.t() @ whole if weight_first_A else code.t() @ x
        grad_B = whole @ A.t() if weight_first_B else grad.t() @ (x @ A.t())
        return grad_x, None, grad_A, grad_B, None


class OrderedLinear(nn.Module):
    """A LoRA layer in one of RunLoRA's orders."""

    def __init__(self, base: nn.Linear, rank: int, order: tuple[bool, ...]) -> None:
        super().__init__()
        self.base, self.order = base, order
        self.A = nn.Parameter(torch.randn(rank, base.in_features) * 0.01)
        self.B = nn.Parameter(torch.randn(base.out_features, rank) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return _Ordered.apply(x, self.base.weight, self.A, self.B, self.order)


def orders(seconds: float) -> list[dict[str, Any]]:
    """Measure single layers, both factors trained, against every order of RunLoRA."""
    rows: list[dict[str, Any]] = []
    print("| layer | tokens | PEFT adds | RunLoRA's best order adds | ours adds | ours / RunLoRA (5-95 %) |")
    print("|---|---|---|---|---|---|")
    for n, m, tokens in RUNLORA_SHAPES:
        torch.manual_seed(0)
        base = nn.Linear(n, m, bias=False).requires_grad_(False)
        x, grad = torch.randn(tokens, n), torch.randn(tokens, m)
        every = {order: OrderedLinear(base, 8, order) for order in itertools.product((False, True), repeat=4)}
        trial = in_turn({str(o): pass_of(layer, x, grad) for o, layer in every.items()}, seconds=seconds / 2)
        best = min(every, key=lambda order: median(trial[str(order)]))
        holder = {"frozen_A": False, "dropout": 0.0, "targets": ("0",)}
        models = {
            "floor": base,
            "peft": with_peft(nn.Sequential(copy.deepcopy(base)), 8, **holder),
            "runlora": every[best],
            "ours": with_ours(nn.Sequential(copy.deepcopy(base)), 8, **holder),
        }
        taken = in_turn({name: pass_of(model, x, grad) for name, model in models.items()}, seconds=seconds)
        floor, ratio = median(taken["floor"]), overhead_ratio(taken, "ours", "runlora")
        adds = {name: median(taken[name]) / floor - 1 for name in ("peft", "runlora", "ours")}
        rows.append(
            {
                "in": n,
                "out": m,
                "tokens": tokens,
                "order": best,
                **adds,
                "ratio": ratio[0],
                "low": ratio[1],
                "high": ratio[2],
            }
        )
        print(
            f"| {n} to {m} | {tokens} | {' | '.join(f'{share:.0%}' for share in adds.values())} | {shown(ratio)} |",
            flush=True,
        )
    return rows


def whole_models() -> dict[str, tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]]:
    """Return small models of three shapes with their batch and targets; random weights, real architectures."""
    ids = torch.randint(5, 1000, (8, LENGTH))
    shape: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 4, "intermediate_size": 1536}
    bert = BertConfig(
        **shape, vocab_size=1000, num_attention_heads=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    llama = LlamaConfig(**shape, vocab_size=1000, num_attention_heads=6, num_key_value_heads=2)
    vit = ViTConfig(
        **shape,
        num_attention_heads=6,
        image_size=112,
        patch_size=14,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    images = {"pixel_values": torch.randn(16, 3, 112, 112), "labels": torch.zeros(16, dtype=torch.long)}
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    vit_model = ViTForImageClassification(vit)
    linear = {n.rpartition(".")[2] for n, m in vit_model.named_modules() if isinstance(m, nn.Linear)}
    vit_linears = tuple(sorted(linear - {"classifier"}))
    return {
        "BERT": (
            BertForSequenceClassification(bert),
            {"input_ids": ids, "labels": torch.zeros(8, dtype=torch.long)},
            ENCODER,
        ),
        "Llama": (LlamaForCausalLM(llama), {"input_ids": ids, "labels": ids}, every),
        "ViT": (vit_model, images, vit_linears),
    }


def training_step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Return a full step of AdamW on what the model trains."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def models(seconds: float) -> list[dict[str, Any]]:
    """Measure full training steps."""
    rows: list[dict[str, Any]] = []
    print("| model | rank | trained | PEFT, ms | ours / PEFT | speed_up(PEFT) / PEFT |\n|---|---|---|---|---|---|")
    for name, (base, batch, targets) in whole_models().items():
        for rank, frozen_A in itertools.product((8, 64), (False, True)):
            options: dict[str, Any] = {"frozen_A": frozen_A, "dropout": 0.0, "targets": targets}
            theirs = with_peft(copy.deepcopy(base), rank, **options)
            faster = with_peft(copy.deepcopy(base), rank, **options)
            al.speed_up(faster)
            ours = with_ours(copy.deepcopy(base), rank, **options)
            steps = {"peft": theirs, "ours": ours, "sped_up": faster}
            taken = in_turn({n: training_step(m, batch) for n, m in steps.items()}, seconds=seconds)
            ratio, sped = time_ratio(taken, "ours", "peft"), time_ratio(taken, "sped_up", "peft")
            trained = "B" if frozen_A else "A and B"
            rows.append(
                {
                    "model": name,
                    "rank": rank,
                    "trained": trained,
                    "peft_ms": 1e3 * median(taken["peft"]),
                    "ours": ratio,
                    "sped_up": sped,
                }
            )
            print(
                f"| {name} | {rank} | {trained} | {1e3 * median(taken['peft']):.0f} | {shown(ratio)} | {shown(sped)} |",
                flush=True,
            )
    return rows


def main() -> None:
    """Parse the arguments, measure, print and write."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("grid", "dropout", "orders", "models"), default="grid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of measurement for each cell")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(environment())
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "grid": lambda: grid(dropout=0.0, seconds=arguments.seconds),
        "dropout": lambda: grid(dropout=0.1, seconds=arguments.seconds),
        "orders": lambda: orders(arguments.seconds),
        "models": lambda: models(arguments.seconds),
    }
    write(f"step_overhead_{arguments.part}", parts[arguments.part]())


if __name__ == "__main__":
    main()
