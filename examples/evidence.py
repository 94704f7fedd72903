"""What every example shows of itself: A stayed, the loss fell, and the saved adapter gives the same output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import asymlora as al


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an example found.

    Attributes:
        first_loss: On the batch, before the first step.
        last_loss: On the same batch, after the last.
        frozen_unchanged: Whether every A is bit for bit what it was.
        moved_B: Sites whose B is not what it was.
        reload_difference: Largest difference of the logits that the saved adapter gives on a fresh base.
    """

    first_loss: float
    last_loss: float
    frozen_unchanged: bool
    moved_B: int
    reload_difference: float

    def show(self) -> Facts:
        """Print one line each, in one write: several processes may share a terminal or a pipe."""
        lines = (
            f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in asdict(self).items()
        )
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
        return self


class Watch:
    """Remembers the factors and the loss from before the training.

    Args:
        model: A model with an adapter on it, attached or PEFT's.
        batch: Rows with labels.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.batch = batch
        self.start = {site.name: (site.A.detach().clone(), site.B.detach().clone()) for site in al.sites(model)}
        self.first_loss = float(self._output(model).loss)

    def facts(self, model: nn.Module, reload: Callable[[], nn.Module]) -> Facts:
        """Compare with a trained model.

        Args:
            model: The model, or the one that went on from it.
            reload: Returns a fresh base with the saved adapter on.
        """
        now = {site.name: (site.A, site.B) for site in al.sites(model)}
        ours, theirs = self._output(model), self._output(reload())
        return Facts(
            first_loss=self.first_loss,
            last_loss=float(ours.loss),
            frozen_unchanged=all(torch.equal(now[name][0], A) for name, (A, _) in self.start.items()),
            moved_B=sum(not torch.equal(now[name][1], B) for name, (_, B) in self.start.items()),
            reload_difference=float((ours.logits - theirs.logits).abs().max()),
        )

    def _output(self, model: Any) -> Any:
        trained = model.training
        with torch.no_grad():
            output = model.eval()(**self.batch)
        model.train(trained)
        return output
