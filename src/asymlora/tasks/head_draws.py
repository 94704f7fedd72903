"""Draw a loaded model's fresh heads again by another seed, as loading it with that seed would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_MOST_SEEDS = 64


class HeadDraws:
    """Gives a model's heads the values that they have in a model which is loaded after ``torch.manual_seed(seed)``.

    Three ways, the quickest that is right: what was drawn before; transformers' own initialisation of the heads alone,
    where that gives the values which the model came with; loading the model again. No generator is left moved.

    Args:
        model: As it was loaded, nothing put on it.
        heads: Paths of what is fresh.
        seed: The seed that it was loaded with.
        reload: Loads it again.
    """

    def __init__(
        self, model: PreTrainedModel, heads: Sequence[str], *, seed: int, reload: Callable[[], nn.Module]
    ) -> None:
        self.model = model
        self.heads = tuple(heads)
        self.seed = seed
        self.reload = reload
        self._known = {seed: self._values(model)}
        self._alone: bool | None = None

    def __call__(self, seed: int) -> None:
        """Draw them, in place.

        Args:
            seed: The seed.
        """
        if seed not in self._known:
            drawn = self._drawn(seed)
            if len(self._known) < _MOST_SEEDS:
                self._known[seed] = drawn
            self._fill(drawn)
            return
        self._fill(self._known[seed])

    def _drawn(self, seed: int) -> list[Tensor]:
        if self._alone is None:
            self._alone = _equal(self._drawn_alone(self.seed), self._known[self.seed])
        if self._alone:
            return self._drawn_alone(seed)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return self._values(self.reload())

    def _drawn_alone(self, seed: int) -> list[Tensor]:
        copies = {path: copy.deepcopy(self.model.get_submodule(path)).cpu() for path in self.heads}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            for head in copies.values():
                for module in head.modules():
                    _forget_loading(module)
                    self.model._init_weights(module)
        return [tensor.detach().clone() for head in copies.values() for tensor in _tensors(head)]

    def _values(self, model: nn.Module) -> list[Tensor]:
        heads = [model.get_submodule(path) for path in self.heads]
        return [tensor.detach().cpu().clone() for head in heads for tensor in _tensors(head)]

    def _fill(self, values: Sequence[Tensor]) -> None:
        heads = [self.model.get_submodule(path) for path in self.heads]
        with torch.no_grad():
            for tensor, value in zip((t for head in heads for t in _tensors(head)), values, strict=True):
                tensor.copy_(value)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _forget_loading(module: nn.Module) -> None:
    # transformers marks what it has loaded or drawn, and draws no such thing again.
    marked: list[Any] = [module, *module.parameters(recurse=False)]
    for owner in marked:
        vars(owner).pop("_is_hf_initialized", None)


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(some, others, strict=True))
