"""Run in a fresh process: load each case's folder with PEFT alone and write down the logits that come out."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from functools import cache
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from cases import EVERY_KIND

MODELS = {case.name: case for case in EVERY_KIND}


@cache
def _base(name: str, dtype: str) -> nn.Module:
    return MODELS[name].build().to(getattr(torch, dtype))


def main(root: Path) -> None:
    """Write ``logits.safetensors``: for each folder named in ``cases.json`` the logits of PEFT's model.

    Folders that PEFT refuses go into ``refused.json`` with its message.
    """
    torch.set_num_threads(1)
    logits: dict[str, torch.Tensor] = {}
    refused: dict[str, str] = {}
    warnings.filterwarnings("error", message="Found missing adapter keys")
    for folder, (name, dtype) in json.loads((root / "cases.json").read_text()).items():
        try:
            model = PeftModel.from_pretrained(copy.deepcopy(_base(name, dtype)), str(root / folder))  # pyright: ignore
        except (RuntimeError, UserWarning) as error:
            refused[folder] = str(error)
            continue
        logits[folder] = MODELS[name].logits(model).float().contiguous()
    save_file(logits, root / "logits.safetensors")
    (root / "refused.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
