"""The README's first command, whole: the embedded model on the embedded data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.optional, pytest.mark.timeout(1500)]  # among the first to begin, as it is the longest


def test_the_first_command_beats_the_head_alone_beyond_noise_and_its_adapter_is_pefts(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("asymlora")), "finetune"]
    # The command as a user types it, without what the tests set.
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["gain"] > 2 * result["gain_standard_error"]
    assert 2 * result["trained_parameters"] < 1.1 * result["lora_parameters"]
    for figure in ("head alone", "adapter (B only, rank 8)", "full fine-tuning", "KiB", "MiB"):
        assert figure in done.stdout
    print(done.stdout)

    import torch
    from peft import PeftModel

    from asymlora import load_adapter
    from asymlora.tasks.classifiers import load_classifier
    from asymlora.tasks.inputs import ModelRecipe

    models = [load_classifier(ModelRecipe(), label_names=result["label_names"]) for _ in range(2)]
    batch = models[0][1](["a warm film", "two dull hours"], padding=True, return_tensors="pt")
    ours = load_adapter(models[0][0], run / "adapter").eval()
    theirs = PeftModel.from_pretrained(models[1][0], str(run / "adapter")).eval()
    with torch.no_grad():
        assert (ours(**batch).logits - theirs(**batch).logits).abs().max() <= 1e-5
