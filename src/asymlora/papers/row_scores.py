"""The metrics of a model on any rows of its task, outside of a Trainer: of training rows, say. No torch at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from asymlora.tasks.task import Items, Prepared


def scores_of(network: nn.Module, prepared: Prepared, items: Items, *, batch_size: int = 64) -> dict[str, float]:
    """Return every metric of some rows, of a network as it is.

    Args:
        network: The task's model with what is on it; it is put into evaluation mode, and stays so.
        prepared: Collator and scoring of the task.
        items: The rows.
        batch_size: Rows of a forward pass.

    Returns:
        The metrics by name, as a run's own scores have them.
    """
    import torch

    network.eval()
    device = next(network.parameters()).device
    kept: list[Tensor] = []
    with torch.inference_mode():
        for first in range(0, len(items), batch_size):
            rows = [dict(items[place]) for place in range(first, min(first + batch_size, len(items)))]
            batch = {name: value.to(device) for name, value in prepared.collator(rows).items()}
            kept.append(prepared.scoring.keep(network, batch).cpu())
    return prepared.scoring.score(prepared.scoring.evidence(torch.cat(kept).numpy(), items))
