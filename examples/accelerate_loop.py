"""A loop under Accelerate: python examples/accelerate_loop.py, or accelerate launch examples/accelerate_loop.py."""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import asymlora as al
from evidence import Facts, Watch
from small_models import batch, classifier, rows


def main() -> Facts:
    """Train B over a frozen A on as many processes as were launched, save by the first, load in all."""
    accelerator = Accelerator()
    spec = al.AdapterSpec.b_only(rank=4, targets=("query", "value"), modules_to_save=("classifier",))
    attached = al.attach(classifier(), spec)  # before prepare, which may wrap the model or divide its parameters
    watch = Watch(attached, batch())

    optimizer = torch.optim.AdamW(al.param_groups(attached, lr=1e-2, weight_decay=0.01))
    loader = DataLoader(rows(), batch_size=8 // accelerator.num_processes)
    model, optimizer, loader = accelerator.prepare(attached, optimizer, loader)
    model.train()
    for _ in range(30):
        for part in loader:
            accelerator.backward(model(**part).loss)
            optimizer.step()
            optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        # Each process has a folder of its own here. Into one for all: `if accelerator.is_main_process:`. Not so under
        # FSDP, where the factors are divided: all processes call `save_adapter`, and the first one writes.
        al.save_adapter(model, folder)
        return watch.facts(attached, lambda: al.load_adapter(classifier(), folder))


if __name__ == "__main__":
    main().show()
