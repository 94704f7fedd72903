"""Bytes of an adapter on disk: PEFT's file against the seed-compressed folder, for the same frozen-``A`` adapter.

Models are made of their shapes alone (meta device). Tensor files are counted by `asymlora.theory.file_size`;
``asymlora.json`` and ``adapter_config.json`` are counted too, in full. The rule is checked in the same run against both
forms of a really written small adapter and against the file that PEFT writes for it, byte for byte.
Prints a table and writes JSON beside this file, in ``results/``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import asymlora as al
from asymlora.adapter_file import AdapterFile, json_bytes
from asymlora.checkpoint import CONFIG_FILE, WEIGHTS_FILE, describe_adapter
from asymlora.own_file import FACTORS_FILE, OWN_FILE, OwnFile
from asymlora.theory.file_size import safetensors_bytes
from asymlora.train.run_folder import environment

RESULTS = Path(__file__).parent / "results"
RANKS = (8, 16)
DIGEST = "0" * 64


def _minilm() -> nn.Module:
    return BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))


def _roberta_large() -> nn.Module:
    shape: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    return RobertaForSequenceClassification(RobertaConfig(**shape, vocab_size=50265))


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config())


def _llama_7b() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=11008))


MODELS = {
    "MiniLM-L6": (_minilm, ("query", "value")),
    "RoBERTa-large": (_roberta_large, ("query", "value")),
    "GPT-2": (_gpt2, ("c_attn",)),
    "Llama-2-7B": (_llama_7b, ("q_proj", "v_proj")),
}
"""Architecture by name, and its targets for queries and values (GPT-2 has them in one layer)."""


def tensor_file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of a safetensors file with tensors of these shapes and types."""
    return safetensors_bytes({k: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in tensors.items()})


def folder_bytes(file: AdapterFile) -> dict[str, dict[str, int]]:
    """Return the size of every file of both forms but the model card, by form and name."""
    seeded = {key: value for key, value in file.parts().items() if key not in file.draws}
    own = {
        form: OwnFile(
            spec=file.spec,
            form=form,
            draws=file.draws,
            digests=dict.fromkeys(file.peft_tensors() if form == "peft" else file.parts(), DIGEST),
            peft_config=file.config if form == "seed" else None,
        ).to_dict()
        for form in ("peft", "seed")
    }
    return {
        "peft": {
            WEIGHTS_FILE: tensor_file_bytes(file.peft_tensors()),
            CONFIG_FILE: len(json_bytes(file.config, indent=2)),
            OWN_FILE: len(json_bytes(own["peft"], indent=2)),
        },
        "seed": {FACTORS_FILE: tensor_file_bytes(seeded), OWN_FILE: len(json_bytes(own["seed"], indent=None))},
    }


def check_rule() -> dict[str, Any]:
    """Compare the rule with files really written for a small adapter, by us and by PEFT; a difference is an error."""
    model = al.attach(_small_bert(), al.AdapterSpec.b_only(rank=4))
    expected = folder_bytes(describe_adapter(model))
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    with tempfile.TemporaryDirectory() as root:
        peft.get_peft_model(_small_bert(), config).save_pretrained(root)  # pyright: ignore[reportArgumentType]
        if (theirs := (Path(root) / WEIGHTS_FILE).stat().st_size) != expected["peft"][WEIGHTS_FILE]:
            raise SystemExit(f"The rule gives {expected['peft'][WEIGHTS_FILE]} bytes, PEFT wrote {theirs}.")
        for form in ("peft", "seed"):
            folder = al.save_adapter(model, Path(root) / form, compress=form == "seed")
            written = {name: (folder / name).stat().st_size for name in expected[form]}
            if written != expected[form]:
                raise SystemExit(f"The rule gives {expected[form]}, written were {written}.")
    return expected


def _small_bert() -> nn.Module:
    shape: dict[str, Any] = {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 384,
    }
    return BertModel(BertConfig(**shape, vocab_size=99))


def measure(name: str, rank: int, targets: str | tuple[str, ...]) -> dict[str, Any]:
    """Return the bytes of one adapter in both forms."""
    build, _ = MODELS[name]
    with torch.device("meta"):
        model = build()
    spec = al.AdapterSpec.b_only(rank=rank, targets=targets)
    sizes = folder_bytes(describe_adapter(al.attach(model, spec)))
    peft_file, seed = sizes["peft"][WEIGHTS_FILE], sum(sizes["seed"].values())
    return {
        "model": name,
        "targets": targets if isinstance(targets, str) else "+".join(targets),
        "rank": rank,
        "files": sizes,
        "peft_file_bytes": peft_file,
        "seed_folder_bytes": seed,
        "ratio": seed / peft_file,
    }


def main() -> None:
    """Measure, print and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    checked = check_rule()
    print(
        "| model | targets | rank | PEFT's adapter_model.safetensors, bytes | seed-compressed folder, bytes | share |"
    )
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for name, (_, attention) in MODELS.items():
        for targets in ("all-linear", attention):
            for rank in RANKS:
                row = measure(name, rank, targets)
                rows.append(row)
                print(
                    f"| {name} | {row['targets']} | {rank} | {row['peft_file_bytes']:,} |"
                    f" {row['seed_folder_bytes']:,} | {row['ratio']:.1%} |",
                    flush=True,
                )
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": environment(), "rule_checked_on": checked, "rows": rows}
    (RESULTS / "adapter_bytes.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
