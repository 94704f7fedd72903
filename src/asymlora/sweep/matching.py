"""Equal budgets: the rank at which an arm trains as many values as the first, the steps in which it computes as much.

What a recipe costs is asked of functions, so that the rules need no model; `ModelCosts` answers from a model's shapes.
No torch at import.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from asymlora.errors import AsymloraError, RankError, SpecError
from asymlora.factor_spec import PRESETS
from asymlora.spec import AdapterSpec
from asymlora.sweep.grid import Cell, SweepPlan, cells
from asymlora.train.recipe import Recipe

if TYPE_CHECKING:
    from asymlora.theory.block_cost import Block
    from asymlora.theory.cost import Flops
    from asymlora.theory.model_shapes import ModelShape

FactorValues = Callable[[Recipe], int]
StepFlops = Callable[[Recipe], float | None]
RANKED = ("adapter", "peft:lora", "peft:lora_fa")
"""Methods whose trained values follow from the rank alone. AdaLoRA changes its ranks as it trains."""


def matched(plan: SweepPlan, *, factor_values: FactorValues, flops: StepFlops) -> list[Cell]:
    """Return the cells of a plan with the budgets of its arms made equal, as ``plan.match`` says.

    The first arm sets the budget, at each point of the further axes for itself. With ``parameters`` every other arm
    gets the rank at which its trained factor values are nearest to the first arm's, of two as near the smaller; heads
    are not counted. With ``compute`` it gets the number of steps whose operations are nearest, and scores its
    validation part at the same shares of them.

    Args:
        plan: The plan.
        factor_values: Trained values of the factors of a recipe's adapter.
        flops: Floating-point operations of one optimizer step of a recipe; None where unknown.

    Returns:
        The cells, in their order; what was changed, and the difference that remains, stands in their notes.

    Raises:
        SpecError: An arm's budget cannot be made equal; all such arms are named.
    """
    found = cells(plan)
    if plan.match == "steps":
        return found
    result: list[Cell] = []
    problems: list[str] = []
    for cell in found:
        first = next(other for other in found if other.axes == cell.axes)
        try:
            if plan.match == "parameters":
                result.append(_with_values_of(cell, first, factor_values))
            else:
                result.append(_with_compute_of(cell, first, flops))
        except AsymloraError as error:
            problems.append(f"Arm {cell.label}: {error}")
    if problems:
        raise SpecError(" ".join(dict.fromkeys(problems)))
    return result


# Trained values ------------------------------------------------------------------------------------------------------


def _with_values_of(cell: Cell, first: Cell, factor_values: FactorValues) -> Cell:
    if cell.recipe.method not in RANKED:
        raise SpecError(
            f"method={cell.recipe.method!r} has no rank that sets what it trains, so match=parameters cannot hold. Take"
            " match=compute or match=steps, or leave the arm out."
        )
    if cell is first:
        return cell
    wanted = factor_values(first.recipe)
    rank = nearest_rank(lambda rank: factor_values(_at_rank(cell.recipe, rank)), wanted)
    chosen = _at_rank(cell.recipe, rank)
    values = factor_values(chosen)
    said = [
        f"{cell.label}: rank {rank}, {values:,} trained factor values, {_difference(values, wanted)} {first.label}"
        f" ({wanted:,})."
    ]
    before, after = cell.recipe.adapter.scaling_factor, chosen.adapter.scaling_factor
    if before != after:
        said.append(f"{cell.label}: with the rank its scaling factor goes from {before:.3g} to {after:.3g}.")
    return replace(cell, recipe=chosen, notes=(*cell.notes, *said))


def nearest_rank(values: Callable[[int], int], wanted: int) -> int:
    """Return the rank whose number of trained values is nearest to a wanted one; of two as near, the smaller.

    Args:
        values: Trained values at a rank, not falling with it; raises `RankError` where a layer does not allow the rank.
        wanted: Trained values.

    Returns:
        The rank, at least 1.

    Raises:
        SpecError: The rank does not change what is trained.

    Example:
        >>> nearest_rank(lambda rank: 100 * rank, 830), nearest_rank(lambda rank: 100 * rank, 850)
        (8, 8)
    """
    known: dict[int, float] = {1: values(1)}

    def at(rank: int) -> float:
        if rank not in known:
            try:
                known[rank] = values(rank)
            except RankError:
                known[rank] = float("inf")
        return known[rank]

    if at(1) == at(2):
        raise SpecError(
            f"its rank does not change what it trains ({at(1):,.0f} values), as with a rank_pattern for every layer."
            " Leave the pattern out, or take match=compute."
        )
    highest = 1
    while at(highest) < wanted:
        highest *= 2
    least = bisect.bisect_left(range(1, highest + 1), wanted, key=at) + 1
    return min((rank for rank in (least - 1, least) if rank >= 1), key=lambda rank: (abs(at(rank) - wanted), rank))


def _at_rank(recipe: Recipe, rank: int) -> Recipe:
    return replace(recipe, adapter=replace(recipe.adapter, rank=rank))


# Compute -------------------------------------------------------------------------------------------------------------


def _with_compute_of(cell: Cell, first: Cell, flops: StepFlops) -> Cell:
    own, theirs = flops(cell.recipe), flops(first.recipe)
    if own is None or theirs is None:
        which = "its compute" if own is None else f"the compute of {first.label}"
        raise SpecError(f"{which} is not known for this method and model. Take match=steps or match=parameters.")
    if cell is first:
        return cell
    train = cell.recipe.train
    wanted = theirs * first.recipe.train.steps
    steps, every = scaled_steps(train.steps, train.evaluate_every, factor=wanted / own / train.steps)
    said = f"{cell.label}: {steps:,} steps, whose compute is {_difference(steps * own, wanted)} {first.label}."
    recipe = replace(cell.recipe, train=replace(train, steps=steps, evaluate_every=every))
    return replace(cell, recipe=recipe, notes=(*cell.notes, said))


def scaled_steps(steps: int, every: int, *, factor: float) -> tuple[int, int]:
    """Return a number of steps and the steps between two scores, both scaled.

    Args:
        steps: Steps before.
        every: Steps between two scores before.
        factor: What the number of steps is multiplied by, above 0.

    Returns:
        The nearest whole number of steps, at least 1; steps between two scores, rounded down so that there are as many
        scores as before, at least 1.

    Example:
        >>> scaled_steps(80, 20, factor=0.79)
        (63, 15)
    """
    scaled = max(1, round(steps * factor))
    return scaled, max(1, scaled * every // steps)


def _difference(amount: float, wanted: float) -> str:
    share = 100 * (amount / wanted - 1)
    if amount == wanted:
        return "exactly as in"
    return f"{abs(share):.2g} % {'above' if share > 0 else 'below'}"


# What a recipe costs -------------------------------------------------------------------------------------------------


class ModelCosts:
    """Answers for `matched` from the shapes of the recipes' models; no weights are read, every model once."""

    def __init__(self) -> None:
        self._models: dict[tuple[str | None, ...], Any] = {}

    def factor_values(self, recipe: Recipe) -> int:
        """Return the trained values of the factors.

        Args:
            recipe: A recipe of one of the methods in `RANKED`.

        Returns:
            Their number, heads and modules trained in full left out.
        """
        model = self._model(recipe)
        shape = _shape(model, recipe, _heads(model, recipe))
        return 0 if shape is None else sum(layer.trained_factor_values for layer in shape.adapted.values())

    def base_values(self, recipe: Recipe) -> int:
        """Return the values of the model, its head left out: what full fine-tuning trains.

        Args:
            recipe: The recipe.
        """
        model = self._model(recipe)
        heads = tuple(f"{head}." for head in _heads(model, recipe))
        return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(heads))

    def kept_bytes(self, recipe: Recipe) -> int:
        """Return about what the weights take that a run keeps: those of the whole model, or two factors a site.

        Args:
            recipe: The recipe.

        Returns:
            Bytes in float32; heads are left out, and 0 where the method's sites are not known.
        """
        if recipe.method == "full":
            return 4 * sum(parameter.numel() for parameter in self._model(recipe).parameters())
        return 8 * self.factor_values(recipe) if recipe.method in RANKED else 0

    def flops(self, recipe: Recipe) -> float | None:
        """Return the floating-point operations of one optimizer step, every row as long as the data allow.

        Args:
            recipe: The recipe.

        Returns:
            As `step_flops` has it.
        """
        model = self._model(recipe)
        rows = recipe.train.batch_size * recipe.train.gradient_accumulation
        return step_flops(model, recipe, rows=rows, length=row_length(model, recipe), heads=_heads(model, recipe))

    def _model(self, recipe: Recipe) -> Any:
        key = recipe.model.config or recipe.model.name, recipe.model.revision, recipe.model.pooling
        if key not in self._models:
            self._models[key] = _empty(recipe)
        return self._models[key]


def _empty(recipe: Recipe) -> Any:
    from asymlora.tasks.classifiers import is_pooled_by_mean
    from asymlora.tasks.empty_models import empty_model
    from asymlora.tasks.sources import find_model

    asked = recipe.model
    model = empty_model(asked.config or asked.name, revision=asked.revision)
    by_mean = asked.pooling == "mean"
    if asked.pooling == "auto" and asked.config is None and "text_" in recipe.task:
        _, folder = find_model(asked.name, revision=asked.revision)
        by_mean = folder is not None and is_pooled_by_mean(folder)
    if by_mean and getattr(model, "pooler", None) is not None:
        model.register_module(
            "pooler", None
        )  # as `asymlora.tasks.classifiers` builds it: a pooler is then no layer to adapt
    return model


def row_length(model: Any, recipe: Recipe) -> int:
    """Return the longest row in tokens: of texts as they are cut, of images their patches and one.

    Args:
        model: The base model.
        recipe: The recipe.
    """
    patch = getattr(model.config, "patch_size", None)
    if recipe.task != "image_classification" or not isinstance(patch, int):
        return recipe.data.max_tokens
    return (recipe.data.image_size // patch) ** 2 + 1


def step_flops(model: Any, recipe: Recipe, *, rows: int, length: int, heads: tuple[str, ...] = ()) -> float | None:
    """Return the floating-point operations of one optimizer step of a recipe.

    Products of the blocks' linear layers, adapters included, and of attention, and those of an output layer that every
    token passes. Embeddings, norms, activations and a classifier's head are left out. The backward pass goes down to
    the lowest block in which something is trained.

    Args:
        model: The base model before anything is put on it; on ``meta`` it holds no values.
        recipe: The recipe.
        rows: Rows of an optimizer step.
        length: Tokens of a row.
        heads: Paths of what is trained in full beside an adapter.

    Returns:
        The operations, a multiplication with its addition as two; None where the model's blocks or the method's layers
        are not known.

    Source:
        `asymlora.theory.cost.layer_flops` and `attention_flops`.
    """
    from asymlora.theory.cost import Flops, layer_flops

    shape = _shape(model, recipe, heads)
    if shape is None or not shape.blocks:
        return None
    trains = [any(layer.trained_values for layer in block.layers.values()) for block in shape.blocks]
    lowest = trains.index(True) if True in trains else len(trains)
    checkpointing = recipe.train.gradient_checkpointing
    total = Flops(0, 0)
    for place, block in enumerate(shape.blocks):
        total += _block_flops(block, length=length, backward=place >= lowest, checkpointing=checkpointing)
    for layer in shape.head.layers if shape.head is not None and not shape.head.pools else ():
        total += layer_flops(layer) if lowest < len(trains) else Flops(layer_flops(layer).forward, 0)
    return float(rows * length * total.total)


def _block_flops(block: Block, *, length: int, backward: bool, checkpointing: bool) -> Flops:
    from asymlora.theory.cost import Flops, attention_flops, flops_per_token

    total = flops_per_token(block.layers.values()) + attention_flops(length, block.heads * block.head_dim)
    if not backward:
        return Flops(total.forward, 0)
    return total.checkpointed() if checkpointing else total


def _heads(model: Any, recipe: Recipe) -> tuple[str, ...]:
    from asymlora.tasks.empty_models import fresh_heads

    # A classifier's head is drawn anew; what writes tokens has a head that came with the base.
    return fresh_heads(model) if "classification" in recipe.task or "regression" in recipe.task else ()


def _shape(model: Any, recipe: Recipe, heads: tuple[str, ...]) -> ModelShape | None:
    from asymlora.theory.model_shapes import read_model

    if recipe.method == "full":
        return read_model(model, full=True)
    if recipe.method == "head":
        return read_model(model)
    if recipe.method not in RANKED:
        return None
    in_full = tuple(dict.fromkeys((*recipe.adapter.modules_to_save, *heads)))
    spec = replace(_as_trained(recipe), modules_to_save=in_full)
    return read_model(model, spec, branch="ours" if recipe.method == "adapter" else "peft")


def _as_trained(recipe: Recipe) -> AdapterSpec:
    # PEFT's methods have factors of their own, whatever the recipe's adapter says.
    own: dict[str, str] = {"peft:lora": "lora", "peft:lora_fa": "b_only"}
    name = own.get(recipe.method)
    return recipe.adapter if name is None else replace(recipe.adapter, **PRESETS[name], factor_pattern={}, shared_A=())
