"""Whether every cell of a plan can be run here, found out before the first run: on models without weights."""

from __future__ import annotations

from collections.abc import Sequence

from asymlora.errors import AsymloraError, SpecError
from asymlora.sweep.grid import Cell, SweepPlan
from asymlora.sweep.matching import ModelCosts, matched
from asymlora.tasks.empty_models import empty_model, fresh_heads
from asymlora.tasks.inputs import refuse_unread
from asymlora.tasks.sources import find_model
from asymlora.train.methods import METHODS
from asymlora.train.optimizers import optimizer_class
from asymlora.train.settings import refuse_unavailable


def ready_cells(plan: SweepPlan) -> list[Cell]:
    """Return the cells of a plan with their budgets matched, each of which can be attached to its model.

    Args:
        plan: The plan.

    Returns:
        The cells.

    Raises:
        SpecError: A cell's adapter does not fit its model, its data are read wrongly, or it asks for what this machine
            does not have; every such cell is named. A lone problem keeps the class of its error.
    """
    costs = ModelCosts()
    found = matched(plan, factor_values=costs.factor_values, flops=costs.flops)
    errors: list[tuple[str, AsymloraError]] = []
    for cell in found:
        try:
            _check(cell)
        except AsymloraError as error:
            errors.append((cell.label, error))
    if len(errors) == 1:
        label, error = errors[0]
        raise type(error)(f"Arm {label}: {error}")
    if errors:
        raise SpecError(" ".join(dict.fromkeys(f"Arm {label}: {error}" for label, error in errors)))
    return found


def pruning_problem(plan: SweepPlan, cells: Sequence[Cell]) -> str | None:
    """Return why early stopping could stop nothing, as a sentence, or None.

    Args:
        plan: The plan.
        cells: Its cells.
    """
    if plan.prune and not plan.tunes and plan.search is None:
        return "--prune stops tuning runs early, and with one rate there are none. Give a range (--lr), or leave it."
    silent = [c.label for c in cells if c.recipe.train.evaluate_every >= c.recipe.train.steps]
    if not plan.prune or not silent:
        return None
    train = cells[0].recipe.train
    return (
        f"--prune stops runs by their scores on the way, and {', '.join(silent[:3])} has none: train.evaluate_every is"
        f" {train.evaluate_every} and train.steps {train.steps}. Give --train.evaluate_every"
        f" {max(1, train.steps // 5)}, or leave --prune out."
    )


def _check(cell: Cell) -> None:
    recipe = cell.recipe
    refuse_unread(recipe.task, recipe.data)
    METHODS[recipe.method].refuse_unused(recipe)
    optimizer_class(recipe.train.optimizer, recipe.train.optimizer_options)
    refuse_unavailable(recipe)
    if recipe.train.sharding != "none":
        raise SpecError(f"train.sharding={recipe.train.sharding} is for runs over several processes; a sweep has none.")
    find_model(recipe.model.name, revision=recipe.model.revision)
    model = empty_model(recipe.model.config or recipe.model.name, revision=recipe.model.revision)
    labels = "classification" in recipe.task or "regression" in recipe.task
    heads = fresh_heads(model) if labels else ()
    if recipe.method == "head" and labels and not heads:
        return  # an encoder alone; its head comes with the labels, which are not read here
    METHODS[recipe.method].put_on(model, recipe, heads)
