"""What a run trains and how that is kept: an adapter of ours, the whole model, its head alone, or a method of PEFT's.

A further method is a class and its row in `METHODS`; those of PEFT are in `asymlora.train.peft_methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from asymlora.attaching import attach_drawn, load_adapter
from asymlora.checkpoint import CONFIG_FILE, WEIGHTS_FILE, fill, read_adapter, save_adapter
from asymlora.errors import SpecError
from asymlora.installing import Factors, drawn_factors
from asymlora.merging import merge
from asymlora.optim import param_groups
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules
from asymlora.train.method import Method, refuse_unread
from asymlora.train.peft_methods import PEFT_METHODS
from asymlora.train.recipe import Recipe, TrainRecipe
from asymlora.train.trained_file import (
    TRAINED_FILE,
    TRAINED_LIST,
    check_trained,
    plain_path,
    read_trained,
    write_trained,
)

__all__ = ["ADAPTER", "METHODS", "InFull", "Method", "OurAdapter"]
_HEADS = "asymlora_heads"
_PACKED = ("nf4", "int8")
Draw = Callable[[Mapping[str, nn.Module], AdapterSpec], Factors]
"""From base layers by path and a spec to the start of both factors of each."""


# An adapter of ours --------------------------------------------------------------------------------------------------


class OurAdapter(Method):
    """An `asymlora` adapter by the recipe's spec.

    Args:
        draw: Gives the start of the factors, as `asymlora.installing.drawn_factors` does.
    """

    name = "adapter"
    label = "adapter"
    files = (CONFIG_FILE, WEIGHTS_FILE)

    def __init__(self, draw: Draw = drawn_factors) -> None:
        self.draw = draw

    def refuse_unused(self, recipe: Recipe) -> None:
        """Refuse a gradient correction where ``A`` is trained.

        Args:
            recipe: The recipe.

        Raises:
            SpecError: ``A`` is trained somewhere, so there is no constant ``A`` to correct by.
        """
        if recipe.train.gradient_correction and recipe.adapter.trains["A"]:
            raise SpecError(
                "train.gradient_correction corrects B by a constant A, and this adapter trains A. Take"
                " adapter.preset=b_only, or leave the correction out."
            )

    def put_on(self, model: nn.Module, recipe: Recipe, heads: tuple[str, ...]) -> nn.Module:
        """Attach the adapter, the heads trained in full beside it."""
        in_full = tuple(dict.fromkeys((*recipe.adapter.modules_to_save, *heads)))
        return attach_drawn(model, replace(recipe.adapter, modules_to_save=in_full), self.draw)

    def groups(self, network: nn.Module, train: TrainRecipe) -> list[dict[str, Any]]:
        """Return what `asymlora.param_groups` does, by the recipe's rates."""
        return param_groups(
            network,
            lr=train.lr,
            lr_A=train.lr_A,
            lr_B=train.lr_B,
            lr_head=train.lr_head,
            weight_decay=train.weight_decay,
        )

    def save(self, network: nn.Module, folder: Path, **about: Any) -> None:
        """Write the adapter as a folder that PEFT loads too."""
        save_adapter(network, folder, **about)

    def check(self, folder: Path) -> None:
        """Read the adapter."""
        read_adapter(folder)

    def fill(self, network: nn.Module, folder: Path) -> None:
        """Load the adapter of a folder into the one that the network carries."""
        fill(network, read_adapter(folder))

    def load(self, model: nn.Module, recipe: Recipe, heads: tuple[str, ...], folder: Path) -> nn.Module:
        """Load the adapter of a folder; nothing is drawn."""
        return load_adapter(model, folder)

    def merge(self, network: nn.Module) -> None:
        """Merge the adapter with one rounding."""
        merge(network)


# Weights of the model itself -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InFull(Method):
    """Weights of the model itself: all of them, or its head's.

    Attributes:
        name: In a recipe.
        label: In tables.
        everything: Whether all of them.
    """

    name: str
    label: str
    everything: bool
    files: tuple[str, ...] = (TRAINED_FILE, TRAINED_LIST)

    def refuse_unused(self, recipe: Recipe) -> None:
        """Refuse every field that only an adapter has, and a packed base.

        Args:
            recipe: The recipe.

        Raises:
            SpecError: The base is packed.
        """
        refuse_unread(recipe, adapter=("modules_to_save", "seed"))
        if recipe.model.base in _PACKED:
            raise SpecError(
                f"method={self.name!r} over model.base={recipe.model.base!r}: packed weights are not trained, and the"
                " Trainer takes a packed base with an adapter only. Take model.base=float32 or bfloat16, or"
                " method=adapter."
            )

    def notes(self, recipe: Recipe) -> tuple[str, ...]:
        """Tell what training weights in bfloat16 means."""
        if self.everything and recipe.model.base == "bfloat16":
            return ("model.base=bfloat16 with method=full: steps below 0.4% of a weight are rounded away.",)
        return ()

    def put_on(self, model: nn.Module, recipe: Recipe, heads: tuple[str, ...]) -> nn.Module:
        """Choose what requires a gradient.

        Args:
            model: The pretrained model.
            recipe: The recipe.
            heads: Paths of its heads.

        Returns:
            The same model.

        Raises:
            SpecError: The head alone is to be trained, and there is none.
        """
        chosen = match_saved_modules(model, tuple(dict.fromkeys((*recipe.adapter.modules_to_save, *heads))))
        if not self.everything and not chosen:
            raise SpecError(
                f"method={self.name!r} trains the head alone, and task {recipe.task!r} gives this model none. Name"
                " modules in adapter.modules_to_save (norms, for instance), or take method=adapter."
            )
        inside = tuple(f"{path}." for path in chosen)
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.is_floating_point() and (self.everything or path.startswith(inside)))
        setattr(model, _HEADS, inside)  # so that groups are found through wrappers
        return model

    def groups(self, network: nn.Module, train: TrainRecipe) -> list[dict[str, Any]]:
        """Return matrices and vectors of trunk and head; vectors get no decay."""
        inside = _recorded_heads(network)
        sorted_by: dict[str, list[nn.Parameter]] = {name: [] for name in ("weights", "vectors", "head", "norm")}
        for path, parameter in network.named_parameters():
            if parameter.requires_grad:
                names = ("norm", "head") if plain_path(path).startswith(inside) else ("vectors", "weights")
                sorted_by[names[parameter.dim() >= 2]].append(parameter)
        head = train.lr if train.lr_head is None else train.lr_head
        rates = {"weights": train.lr, "vectors": train.lr, "head": head, "norm": head}
        decays = {"weights": train.weight_decay, "vectors": 0.0, "head": train.weight_decay, "norm": 0.0}
        return [
            {"name": name, "params": found, "lr": rates[name], "weight_decay": decays[name]}
            for name, found in sorted_by.items()
            if found
        ]

    def save(self, network: nn.Module, folder: Path, *, base_model: str | None = None, **_: Any) -> None:
        """Write the trained tensors and a list of them."""
        write_trained(network, folder, method=self.name, base_model=base_model)

    def check(self, folder: Path) -> None:
        """Compare the tensor file's header with the list."""
        check_trained(folder, method=self.name)

    def fill(self, network: nn.Module, folder: Path) -> None:
        """Load the trained tensors."""
        read_trained(network, folder, method=self.name)


def _recorded_heads(network: nn.Module) -> tuple[str, ...]:
    found = (vars(module).get(_HEADS) for module in network.modules())
    return next((heads for heads in found if heads is not None), ())


ADAPTER = OurAdapter()
METHODS: dict[str, Method] = {
    "adapter": ADAPTER,
    "full": InFull(name="full", label="full fine-tuning", everything=True),
    "head": InFull(name="head", label="head alone", everything=False),
    **PEFT_METHODS,
}
"""Every method by its name in a recipe."""
