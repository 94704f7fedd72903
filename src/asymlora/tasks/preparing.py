"""From a task's name to its model and rows: the one place that looks a task up."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from asymlora.errors import MissingPackageError
from asymlora.tasks.inputs import DataRecipe, ModelRecipe, refuse_unread, task_row
from asymlora.tasks.task import Loaded, Prepared


def prepare_task(task: str, model: ModelRecipe, data: DataRecipe, *, head_seed: int) -> Prepared:
    """Load a task's data and model.

    Args:
        task: Its name.
        model: Which model.
        data: Which rows, and how they are divided.
        head_seed: Seed of a fresh head.

    Returns:
        All that a run needs of the task.
    """
    refuse_unread(task, data)
    return _module(task).prepare(model, data, task=task, head_seed=head_seed)


def load_task(task: str, model: ModelRecipe, data: DataRecipe, *, label_names: tuple[str, ...]) -> Loaded:
    """Load a model to be asked.

    Args:
        task: The task's name.
        model: Which model.
        data: How inputs are read.
        label_names: Names of the labels by index; empty where there are none.

    Returns:
        The model; a head is fresh.
    """
    return _module(task).load(model, data, task=task, label_names=label_names)


def _module(task: str) -> Any:
    name = task_row(task).module
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("asymlora"):
            raise
        raise MissingPackageError(
            f"The task {task} needs {error.name}, which is not installed: pip install 'asymlora[train]'"
        ) from None
