"""A loop of one's own in plain torch: python examples/plain_loop.py."""

from __future__ import annotations

import tempfile

import torch

import asymlora as al
from evidence import Facts, Watch
from small_models import batch, classifier


def main() -> Facts:
    """Train B over a frozen A on one batch, save the adapter, load it again."""
    spec = al.AdapterSpec.b_only(rank=4, targets=("query", "value"), modules_to_save=("classifier",))
    model = al.attach(classifier(), spec)
    watch = Watch(model, batch())

    optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-2, weight_decay=0.01))
    model.train()
    for _ in range(30):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        al.save_adapter(model, folder)
        return watch.facts(model, lambda: al.load_adapter(classifier(), folder))


if __name__ == "__main__":
    main().show()
