"""What a way of training is: the protocol that every row of `asymlora.train.methods.METHODS` follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asymlora.factor_spec import FactorSpec
from asymlora.schema import refuse_values
from asymlora.spec import AdapterSpec
from asymlora.train.recipe import Recipe, TrainRecipe
from asymlora.train.trained_file import trained_tensors


class Method(Protocol):
    """What is trained; without a state of its own, so that one object serves every run."""

    name: str
    """In a recipe."""
    label: str
    """In tables."""
    files: tuple[str, ...]
    """Names of the files that a checkpoint cannot do without."""

    def refuse_unused(self, recipe: Recipe) -> None:
        """Refuse what a recipe asks for and this method would not do, before anything is loaded.

        Args:
            recipe: The recipe.
        """
        ...

    def notes(self, recipe: Recipe) -> tuple[str, ...]:
        """Return sentences that the user should read before the training.

        Args:
            recipe: The recipe.
        """
        return ()

    def put_on(self, model: nn.Module, recipe: Recipe, heads: tuple[str, ...]) -> nn.Module:
        """Make a model ready for training, in place where possible.

        Args:
            model: The pretrained model.
            recipe: The recipe.
            heads: Paths of what is trained in full.

        Returns:
            The network that the Trainer gets; it gives the pretrained model's own output.
        """
        ...

    def groups(self, network: nn.Module, train: TrainRecipe) -> list[dict[str, Any]]:
        """Return the trained parameters as named groups with a rate and a decay each; none is empty.

        Args:
            network: What `put_on` gave, or a wrapper around it.
            train: Rates and decay.
        """
        ...

    def optimizer(self, network: nn.Module, train: TrainRecipe) -> torch.optim.Optimizer | None:
        """Return the method's own optimizer, or None where any can be built over `groups`.

        Args:
            network: What `put_on` gave.
            train: Rates and decay.
        """
        return None

    def penalty(self, network: nn.Module) -> Tensor | None:
        """Return what the method adds to the loss of each batch, a scalar, or None.

        Args:
            network: What `put_on` gave.
        """
        return None

    def after_step(self, network: nn.Module, step: int) -> None:
        """Do what the method does after a step of the optimizer, while the gradients are still there.

        Args:
            network: What `put_on` gave.
            step: Number of that step, from 1.
        """

    def save(
        self,
        network: nn.Module,
        folder: Path,
        *,
        base_model: str | None = None,
        task_type: str | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write what was trained; a reader finds all of it or nothing.

        Args:
            network: What `put_on` gave.
            folder: Where to write; may exist.
            base_model: Name of the base, for an adapter's configuration.
            task_type: PEFT's name of the task, for the same.
            state: The network's state, gathered from all processes over which it is divided; None: the network's own.
        """
        ...

    def check(self, folder: Path) -> None:
        """Refuse a folder that `fill` could not read.

        Args:
            folder: Written by `save`.
        """
        ...

    def fill(self, network: nn.Module, folder: Path) -> None:
        """Load what `save` wrote into a network of the same recipe: all of it, and nothing else.

        Args:
            network: What `put_on` gave, or a wrapper around it.
            folder: Written by `save`.
        """
        ...

    def keep(self, network: nn.Module) -> Callable[[], None]:
        """Copy the trained values in memory, to go on or go back: what `save` writes and `fill` reads, without a file.

        Args:
            network: What `put_on` gave.

        Returns:
            Puts the values of now back into the same network.
        """
        kept = [(tensor, tensor.detach().clone()) for tensor in trained_tensors(network).values()]

        def put_back() -> None:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)

        return put_back

    def load(self, model: nn.Module, recipe: Recipe, heads: tuple[str, ...], folder: Path) -> nn.Module:
        """Put on a pretrained model what a run has trained.

        Args:
            model: The pretrained model.
            recipe: The run's recipe.
            heads: Paths of what was trained in full.
            folder: Written by `save`.

        Returns:
            The network.
        """
        network = self.put_on(model, recipe, heads)
        self.fill(network, folder)
        return network

    def merge(self, network: nn.Module) -> None:
        """Fold what was trained into the pretrained model, in place; nothing where it is the model's own weights.

        Args:
            network: What `load` gave.
        """


_OPTIMIZER = ("optimizer", "optimizer_options")
_SPECIAL = ("lr_A", "lr_B", "lr_head", "gradient_correction", *_OPTIMIZER)
"""Fields of a `TrainRecipe` that not every method reads."""


def refuse_unread(
    recipe: Recipe,
    *,
    adapter: Sequence[str],
    train: Sequence[str] = ("lr_head", *_OPTIMIZER),
    factors: Sequence[tuple[FactorSpec, FactorSpec]] = (),
) -> None:
    """Refuse fields that a method does not read and that hold something else than their default, by name.

    Args:
        recipe: The recipe.
        adapter: Fields of its `AdapterSpec` that the method reads.
        train: Fields of its `TrainRecipe`, of those that not every method reads.
        factors: Pairs of ``A`` and ``B`` besides the default that mean what the method does.

    Raises:
        SpecError: There is such a field; all are named.
    """
    plain, usual = AdapterSpec(), TrainRecipe()
    known = (recipe.adapter.A, recipe.adapter.B) in factors
    unread = [f"adapter.{f.name}" for f in fields(plain) if f.name not in (*adapter, *(("A", "B") if known else ()))]
    unread += [f"train.{name}" for name in _SPECIAL if name not in train]
    sides = {"adapter": (recipe.adapter, plain), "train": (recipe.train, usual)}
    changed: list[str] = []
    for dotted in unread:
        side, _, name = dotted.partition(".")
        given, default = (getattr(owner, name) for owner in sides[side])
        if given != default:
            changed.append(dotted)
    read = ", ".join(f"adapter.{name}" for name in adapter)
    refuse_values(
        [f"method={recipe.method!r} does not read {', '.join(changed)}; of the adapter it reads {read}. Leave them out"]
        if changed
        else []
    )
