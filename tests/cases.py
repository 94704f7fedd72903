"""Tables that property tests run over: presets, and small random models of the kinds that people adapt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "asymlora.json", "factors.safetensors")
"""What the files of an adapter folder are called."""

PRESET_NAMES = ("lora", "init_a", "init_b", "b_only", "a_only")


@dataclass(frozen=True, kw_only=True)
class ModelCase:
    """A small random model, the endings of its linear layers, and how it is called."""

    name: str
    build: Callable[[], nn.Module]
    targets: tuple[str, ...]
    head: str
    inputs: Callable[[], dict[str, Tensor]]

    def logits(self, model: nn.Module) -> Tensor:
        """The model's logits on the case's fixed input."""
        with torch.no_grad():
            return model.eval()(**self.inputs_for(model)).logits

    def inputs_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The case's fixed input, numbers in the type of the model's first parameter."""
        dtype = next(model.parameters()).dtype
        return {key: v.to(dtype) if v.is_floating_point() else v for key, v in self.inputs().items()}


def _text_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (3, 7), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image_inputs() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**_SMALL, num_labels=3))


def _roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(**_SMALL, num_labels=3, pad_token_id=1))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**_SMALL, num_key_value_heads=2))


def _gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**_SMALL))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {key: value for key, value in _SMALL.items() if key not in ("vocab_size", "max_position_embeddings")}
    return ViTForImageClassification(ViTConfig(**shape, image_size=16, patch_size=8, num_labels=3))


_SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    # Larger than the usual 0.02, so that a change in one layer is seen in the logits.
    "initializer_range": 0.2,
}

MODELS = (
    ModelCase(name="bert", build=_bert, targets=("query", "value"), head="classifier", inputs=_text_inputs),
    ModelCase(name="roberta", build=_roberta, targets=("query", "dense"), head="classifier", inputs=_text_inputs),
    ModelCase(name="llama", build=_llama, targets=("q_proj", "down_proj"), head="norm", inputs=_text_inputs),
    ModelCase(
        name="gpt_neox", build=_gpt_neox, targets=("query_key_value",), head="final_layer_norm", inputs=_text_inputs
    ),
    ModelCase(name="vit", build=_vit, targets=("q_proj", "v_proj"), head="classifier", inputs=_image_inputs),
)


def fill_factors(model: nn.Module, *, seed: int = 0, size: float = 0.3) -> None:
    """Fill both factors of every site, and heads trained beside them, with random values, frozen ones included."""
    from asymlora.site_view import saved_modules, sites

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in sites(model):
            site.A.normal_(0.0, size, generator=generator)
            site.B.normal_(0.0, size, generator=generator)
        for module in saved_modules(model).values():
            for parameter in module.parameters():
                parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    # transformers scales residual projections down; the larger range makes up for it.
    config = GPT2Config(
        initializer_range=0.2,
        vocab_size=64,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


class SmallBlock(nn.Module):
    """Two linear layers that read the same input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.v = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both, squashed."""
        return torch.tanh(self.q(x) + self.v(x))


class SmallNet(nn.Module):
    """Every kind of layer once, and a path (``q``) that is the ending of another (``block.q``)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.line = nn.Conv1d(8, 8, 3, padding=1)
        self.plane = nn.Conv2d(8, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=2)
        self.block = SmallBlock(8)
        self.q = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Return an object with ``logits``, shape (rows, 3), for 16 numbers below 20 a row."""
        x = self.line(self.table(input_ids).transpose(1, 2)).unflatten(2, (4, 4))
        x = self.grouped(torch.tanh(self.plane(x))).mean((2, 3))
        return SimpleNamespace(logits=self.head(self.norm(self.q(self.block(x)))))


def small_net() -> SmallNet:
    """A random `SmallNet`."""
    torch.manual_seed(0)
    return SmallNet()


def small_net_inputs() -> dict[str, Tensor]:
    """Five rows for a `SmallNet`."""
    return {"input_ids": torch.randint(0, 20, (5, 16), generator=torch.Generator().manual_seed(0))}


def fill_by_formula(model: nn.Module) -> nn.Module:
    """Give every parameter values that follow from its name alone, the same under any version of torch."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            steps = torch.arange(parameter.numel(), dtype=torch.float64) + sum(ord(letter) for letter in name)
            uniform = (torch.sin(12.9898 * steps) * 43758.5453).frac().reshape(parameter.shape)
            size = 2 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(size * uniform + float(parameter.dim() == 1 and name.endswith("weight")))
    return model


KIND_MODELS = (
    ModelCase(name="gpt2", build=_gpt2, targets=("c_attn", "c_proj"), head="ln_f", inputs=_text_inputs),
    ModelCase(
        name="small-net",
        build=small_net,
        targets=("table", "line", "plane", "grouped", "q"),
        head="head",
        inputs=small_net_inputs,
    ),
    ModelCase(
        name="bert-words", build=_bert, targets=("word_embeddings", "value"), head="classifier", inputs=_text_inputs
    ),
)
"""Models with layers of other kinds than linear."""

EVERY_KIND = (*MODELS, *KIND_MODELS)


def move_trained(model: nn.Module) -> nn.Module:
    """Add random values to everything that is trained, as training would; what is frozen stays."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def edit_json(file: Path, **values: Any) -> None:
    """Change values of a JSON object in a file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of an adapter folder in PEFT's form."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


WORDS_GOOD = ("good", "great", "fine", "lovely", "warm")
WORDS_BAD = ("bad", "poor", "dull", "cold", "sad")
WORDS_PLAIN = ("the", "a", "film", "book", "plot", "song", "and", "with", "of", "very", "quite", "not")


def write_small_encoder(folder: Path) -> Path:
    """Write a small random BERT with a tokenizer of its own words, as transformers saves them."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS_PLAIN, *WORDS_GOOD, *WORDS_BAD]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(**{**_SMALL, "vocab_size": len(vocabulary)})
    BertModel(config).save_pretrained(folder)
    return folder


def small_reviews(rows: int = 240, *, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose label is the kind of their one judging word; nothing to it, but a real signal."""
    draw = random.Random(seed)
    made: list[dict[str, str]] = []
    for row in range(rows):
        label = draw.choice(("fresh", "rotten"))
        judging = draw.choice(WORDS_GOOD if label == "fresh" else WORDS_BAD)
        words = [draw.choice(WORDS_PLAIN) for _ in range(draw.randint(2, 9))]
        words.insert(draw.randint(0, len(words)), judging)
        made.append({"text": " ".join(words), "label": label, "film": f"film {row % 20}"})
    return made


LABELS = ("fresh", "rotten", "unsure")
TEXTS = ["a warm film", "the plot of the book and song", "dull", "a very good song with a lovely plot", "not bad"]


def text_batch(tokenizer: Any, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    """The texts as one padded batch."""
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def text_logits(model: Any, tokenizer: Any, texts: list[str] = TEXTS) -> Tensor:
    """The model's logits on the texts, in one batch."""
    with torch.no_grad():
        return model(**text_batch(tokenizer, texts)).logits
