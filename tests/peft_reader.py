"""Run in a fresh process: load each case's folder with PEFT alone and write down the logits that come out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file

from cases import MODELS


def main(root: Path) -> None:
    """Write ``logits.safetensors``: for each folder named in ``cases.json`` the logits of PEFT's model."""
    torch.set_num_threads(1)
    models = {case.name: case for case in MODELS}
    logits: dict[str, torch.Tensor] = {}
    for folder, name in json.loads((root / "cases.json").read_text()).items():
        case = models[name]
        logits[folder] = case.logits(PeftModel.from_pretrained(case.build(), str(root / folder))).contiguous()  # pyright: ignore
    save_file(logits, root / "logits.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
