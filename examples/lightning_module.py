"""PyTorch Lightning: python examples/lightning_module.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import asymlora as al
from evidence import Facts, Watch
from small_models import batch, classifier, rows


class Tuned(lightning.LightningModule):
    """A classifier with a B-only adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # the checkpoints lack what is frozen
        spec = al.AdapterSpec.b_only(rank=4, targets=("query", "value"), modules_to_save=("classifier",))
        self.model = al.attach(classifier(), spec)

    def training_step(self, part: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        return self.model(**part).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the factors and the head."""
        return torch.optim.AdamW(al.param_groups(self.model, lr=1e-2, weight_decay=0.01))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained in Lightning's checkpoint; frozen values are drawn or downloaded again."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}


def trainer(folder: str, epochs: int) -> lightning.Trainer:
    """Return a quiet Trainer, of one step an epoch here."""
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def main() -> Facts:
    """Train in two goes over a checkpoint of Lightning's, save the adapter, load it again."""
    loader = DataLoader(rows(), batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        tuned, file = Tuned(), Path(folder) / "half.ckpt"
        watch = Watch(tuned.model, batch())
        first = trainer(folder, epochs=15)
        first.fit(tuned, loader)
        first.save_checkpoint(file)

        tuned = Tuned()
        trainer(folder, epochs=30).fit(tuned, loader, ckpt_path=file)
        al.save_adapter(tuned.model, Path(folder) / "adapter")
        return watch.facts(tuned.model, lambda: al.load_adapter(classifier(), Path(folder) / "adapter"))


if __name__ == "__main__":
    main().show()
