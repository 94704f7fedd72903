"""For the owner of a PeftModel: freeze A for good, and run the layers faster: python examples/peft_model.py."""

from __future__ import annotations

import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import asymlora as al
from evidence import Facts, Watch
from small_models import batch, classifier


def main() -> Facts:
    """Train a PeftModel with A frozen; PEFT saves it and PEFT loads it."""
    config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(classifier(), config)

    al.freeze(model, "A")  # set_adapter, disable_adapter and the like no longer thaw it
    print(f"layers sped up: {al.speed_up(model).sped_up}")
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-2, lr_B=2e-2, weight_decay=0.01))

    watch = Watch(model, batch())
    model.train()
    for _ in range(30):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        # Nothing in PEFT's files says that A is frozen: to train on, freeze again. PEFT's own product rounds otherwise.
        return watch.facts(model, lambda: PeftModel.from_pretrained(classifier(), folder))


if __name__ == "__main__":
    main().show()
