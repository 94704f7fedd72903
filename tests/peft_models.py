"""Small models of every layer kind with PEFT's LoRA on them, filled with random values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from asymlora.peft_sites import adapters_of, lora_layers, place_of
from cases import MODELS


def gpt2() -> nn.Module:
    """A small random GPT-2, whose dense layers are transformers' `Conv1D`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 24}
    return GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.2))


class Words(nn.Module):
    """An embedding, a dense layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 8)
        self.dense = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.dense(self.words(ids))).mean(1))


class Images(nn.Module):
    """Convolutions of both widths, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.long = nn.Conv1d(6, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.long(torch.tanh(self.flat(x)).flatten(2)).mean(2))


@dataclass(frozen=True, kw_only=True)
class PeftCase:
    """A base model, the endings of the layers that PEFT adapts, the path of its head, and how it is called."""

    name: str
    build: Callable[[], nn.Module]
    targets: tuple[str, ...]
    head: str
    inputs: Callable[[], dict[str, Tensor]]
    fan_in_fan_out: bool = False

    def output(self, model: nn.Module) -> Tensor:
        """What a model gives for the case's fixed input, in the mode that it is in."""
        result = model(**self.inputs())
        return result if isinstance(result, Tensor) else result.logits

    def config(self, **given: Any) -> LoraConfig:
        """PEFT's configuration of an adapter on the case's targets."""
        fields = {"r": 2, "lora_alpha": 3, "target_modules": list(self.targets), "fan_in_fan_out": self.fan_in_fan_out}
        return LoraConfig(**{**fields, **given})

    def peft(self, *, fill: bool = True, **given: Any) -> Any:
        """A `PeftModel` whose factors are all random, or as PEFT starts them."""
        model = get_peft_model(self.build(), self.config(**given))
        return fill_peft(model) if fill else model


def _ids() -> Tensor:
    return torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))


def _image() -> Tensor:
    return torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))


_OF = {case.name: case for case in MODELS}
TEXT = tuple(
    PeftCase(name=name, build=_OF[name].build, targets=_OF[name].targets, head=head, inputs=_OF[name].inputs)
    for name, head in (
        ("bert", "classifier"),
        ("llama", "lm_head"),
        ("gpt_neox", "gpt_neox.final_layer_norm"),
        ("vit", "classifier"),
    )
)
GPT2 = PeftCase(
    name="gpt2",
    build=gpt2,
    targets=("c_attn", "c_fc"),
    head="transformer.ln_f",
    inputs=_OF["llama"].inputs,
    fan_in_fan_out=True,
)
WORDS = PeftCase(name="words", build=Words, targets=("words", "dense"), head="head", inputs=lambda: {"ids": _ids()})
IMAGES = PeftCase(name="images", build=Images, targets=("flat", "long"), head="head", inputs=lambda: {"x": _image()})
BERT = TEXT[0]
CASES = (*TEXT, GPT2, WORDS, IMAGES)
IDS = [case.name for case in CASES]


def fill_peft(model: Any, *, seed: int = 0, only: str | None = None) -> Any:
    """Fill the factors of every adapter, or of one, with random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for adapter in adapters_of(layer) if only is None else (only,):
                for factor in ("A", "B"):
                    place_of(layer, factor, adapter).tensor.normal_(0.0, 0.3, generator=generator)
    return model


def add_second(case: PeftCase, model: Any, name: str = "second") -> None:
    """Add another adapter of the same kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second configuration
        model.add_adapter(name, case.config())
    fill_peft(model, seed=1, only=name)


def factors(model: nn.Module, factor: Any = "A", adapter: str = "default") -> dict[str, Tensor]:
    """A factor of every site, by the site's path."""
    return {name: place_of(layer, factor, adapter).tensor for name, layer in lora_layers(model).items()}


def trained(model: nn.Module, factor: Any = "A") -> set[str]:
    """Sites whose factor would get a gradient or be moved by an optimizer."""
    optimized = {id(p) for p in model.parameters() if p.requires_grad}
    return {name for name, t in factors(model, factor).items() if t.requires_grad or id(t) in optimized}
