"""TRL's SFTTrainer on a PeftModel whose A is frozen: python examples/trl_sft.py.

SFTTrainer knows PeftModels: it saves their checkpoints, resumes from them and takes quantised bases under them, and
`al.freeze` outlasts all of that. An attached model trains and saves here just as well, but a stock Trainer, which this
is, cannot resume it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from trl import SFTConfig, SFTTrainer

import asymlora as al
from evidence import Facts, Watch
from small_models import SENTENCES, language_model, tokenizer


def settings(folder: str, steps: int) -> SFTConfig:
    """Return the settings of a run that saves half way."""
    return SFTConfig(
        output_dir=folder,
        max_steps=steps,
        save_steps=15,
        per_device_train_batch_size=9,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
    )


def main() -> Facts:
    """Tune B alone on prompts with completions, in two goes; PEFT loads what TRL saved."""
    words, config = tokenizer(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    texts: Any = words([row["prompt"] + row["completion"] for row in SENTENCES], padding=True, return_tensors="pt")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, seen = str(Path(folder) / "checkpoint-15"), None
        for steps, start in ((15, None), (30, checkpoint)):
            model = al.freeze(get_peft_model(language_model(), config), "A")
            seen = seen or Watch(model, {**texts, "labels": texts["input_ids"]})
            optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-2))
            rows = Dataset.from_list(SENTENCES)
            trainer = SFTTrainer(
                model, settings(folder, steps), train_dataset=rows, processing_class=words, optimizers=(optimizer, None)
            )
            trainer.train(resume_from_checkpoint=start)
        trainer.save_model(folder)
        return seen.facts(model, lambda: PeftModel.from_pretrained(language_model(), folder))


if __name__ == "__main__":
    main().show()
