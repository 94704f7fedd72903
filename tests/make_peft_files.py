"""Write the adapters of ``peft_files/``: what each of several PEFT versions saves, and the logits that it computes.

Run by hand: ``python tests/make_peft_files.py [VERSION ...]``. For each version it makes a throw-away environment below
the system's temporary folder, with that PEFT and a transformers of its time; torch is this interpreter's own. The
environment then runs this file with ``--write``. The files are committed; nothing makes them again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from cases import KIND_MODELS, ModelCase, fill_by_formula

FILES = Path(__file__).with_name("peft_files")
VERSIONS: dict[str, tuple[str, ...]] = {
    "0.10.0": ("transformers==4.44.2", "tokenizers==0.19.1", "huggingface-hub==0.24.7", "accelerate==0.34.2"),
    "0.13.2": ("transformers==4.46.3", "tokenizers==0.20.3", "huggingface-hub==0.26.5", "accelerate==1.1.1"),
    "0.17.1": ("transformers==4.56.2", "tokenizers==0.22.1", "huggingface-hub==0.35.3", "accelerate==1.10.1"),
    "0.21.2": (),  # the one that the tests run beside
}
NET = ["table", "plane", "block.q", "block.v", "q"]
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("small-net", {"target_modules": ["q", "v"]}),
    "rslora": ("small-net", {"target_modules": ["q", "v"], "use_rslora": True, "r": 4}),
    # Before 0.14 the first key of either pattern answered for both: the alpha of `block.q` comes out differently.
    "patterns": (
        "small-net",
        {"target_modules": NET, "rank_pattern": {"q": 4, "plane": 3}, "alpha_pattern": {"block.q": 9, "v": 2, "q": 12}},
    ),
    "embedding-conv2d": ("small-net", {"target_modules": ["table", "plane"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "alpha_pattern": {"h.0.attn.c_attn": 3}}),
    "modules-to-save": ("small-net", {"target_modules": ["v"], "modules_to_save": ["head"], "lora_dropout": 0.25}),
    "named": ("small-net", {"target_modules": ["plane", "v"]}),
}
NAME = "second"
"""Adapter of the case ``named``; it is saved in a sub-folder."""


def case_of(name: str) -> ModelCase:
    """Return the model case of a file."""
    return next(case for case in KIND_MODELS if case.name == CONFIGS[name][0])


def base_of(name: str) -> nn.Module:
    """Return the base of a file: its weights follow from their names."""
    return fill_by_formula(case_of(name).build())


def write(folder: Path) -> None:
    """Write all files with the PEFT of this interpreter."""
    # Old versions break on new ones of these, if they are installed beside torch.
    sys.modules |= dict.fromkeys(("torchao", "bitsandbytes"))  # pyright: ignore
    import peft

    torch.set_num_threads(1)
    logits: dict[str, torch.Tensor] = {}
    for seed, (name, (_, fields)) in enumerate(CONFIGS.items()):
        config = peft.LoraConfig(**{"r": 2, "lora_alpha": 5, **fields})
        adapter = NAME if name == "named" else "default"
        torch.manual_seed(seed)
        model: Any = peft.get_peft_model(base_of(name), config, adapter_name=adapter)  # pyright: ignore
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(folder / name), safe_serialization=True)
        for card in (folder / name).rglob("README.md"):
            card.unlink()
        logits[name] = case_of(name).logits(model).float().contiguous()
        logits[f"{name}-base"] = case_of(name).logits(base_of(name)).float().contiguous()
    save_file(logits, folder / "logits.safetensors")
    (folder / "versions.json").write_text(json.dumps({"peft": peft.__version__, "torch": torch.__version__}) + "\n")


def make(version: str, run: Callable[..., object] = subprocess.run) -> None:
    """Make the environment of one version and let it write."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        own = next(Path(folder).glob("lib/python*/site-packages"))
        # Behind its own packages the environment finds those of this interpreter: torch, safetensors, numpy.
        (own / "behind.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        packages = (f"peft=={version}", *VERSIONS[version])
        run([python, "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        run([python, "-W", "ignore", __file__, "--write", FILES / version], check=True, env=environment)


def main() -> None:
    """Parse the arguments and make or write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=", ".join(VERSIONS))
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write with the PEFT of this interpreter")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
        return
    for version in arguments.versions or VERSIONS:
        make(version)
        print(version, file=sys.stderr)


if __name__ == "__main__":
    main()
