"""Use a finished run: its model with what was trained on it, ready to be asked, and a merged copy of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from asymlora.atomic import staged_folder, write_file
from asymlora.errors import AsymloraError, RunExistsError, RunFolderError
from asymlora.schema import from_mapping
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.preparing import load_task
from asymlora.tasks.task import Loaded
from asymlora.train.methods import METHODS
from asymlora.train.run_folder import ADAPTER, RECIPE, RESULT, stored_recipe

_READING_FILE = "asymlora_reading.json"
"""In a merged folder: its task, and how the run read inputs and wrote answers. transformers does without."""
_READING = ("max_tokens", "max_target_tokens", "beams", "image_size")
_TASK_OF_CLASS = {
    "ForCausalLM": "language_modeling",
    "ForConditionalGeneration": "seq2seq",
    "ForImageClassification": "image_classification",
}
"""Of a merged folder without that file, by the end of its class; a classifier of texts is none of these."""


def load_run(folder: str | Path) -> Loaded:
    """Load a finished run, or a folder that `merge_run` wrote.

    Args:
        folder: The run's folder, or the merged model's.

    Returns:
        The model, ready to be asked.

    Raises:
        RunFolderError: The folder is neither, or the run has not ended.
    """
    path = Path(folder)
    if (path / "config.json").is_file():
        return _load_merged(path)
    _require_run(path)
    recipe = stored_recipe(path)
    try:
        labels = tuple(json.loads((path / RESULT).read_text(encoding="utf-8"))["label_names"])
    except (ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"{path / RESULT} is damaged. Its adapter is whole: asymlora.load_adapter(model, {str(path / ADAPTER)!r})"
            " puts it on a model, or run the recipe again."
        ) from None
    loaded = load_task(recipe.task, recipe.model, recipe.data, label_names=labels)
    network = METHODS[recipe.method].load(loaded.model, recipe, loaded.heads, path / ADAPTER)
    network.eval()
    return replace(loaded, network=network)


def merge_run(folder: str | Path, out: str | Path) -> Path:
    """Write a run's model with the adapter folded in, as a plain model that needs no asymlora to load.

    Args:
        folder: The run's folder.
        out: Where to write; must not exist.

    Returns:
        ``out``.

    Raises:
        RunExistsError: ``out`` exists.
        RunFolderError: The folder is no finished run.
    """
    target, path = Path(out), Path(folder)
    if target.exists():
        raise RunExistsError(f"{target} exists; nothing is overwritten. Choose a new folder.")
    if not (path / RECIPE).is_file():
        raise RunFolderError(f"{folder} is no run of asymlora (it has no {RECIPE}); only a run can be merged.")
    run = load_run(path)
    recipe = stored_recipe(path)
    METHODS[recipe.method].merge(run.network or run.model)
    reading = {"task": recipe.task, "data": {name: getattr(recipe.data, name) for name in _READING}}
    with staged_folder(target) as staging:
        run.save(staging)
        write_file(staging / _READING_FILE, json.dumps(reading, indent=2) + "\n")
    return target


def _require_run(path: Path) -> None:
    if not (path / RECIPE).is_file():
        raise RunFolderError(f"{path} is no run of asymlora (no {RECIPE} in it) and no model merged from one.")
    if not (path / RESULT).is_file():
        raise RunFolderError(
            f"The run in {path} has not ended. Go on with it: asymlora finetune --output {path} --resume"
        )


def _load_merged(path: Path) -> Loaded:
    from asymlora.tasks.classifiers import load_plain
    from asymlora.tasks.text_classification import loaded

    config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    names: list[str] = config.get("architectures") or [""]
    known = next((task for ending, task in _TASK_OF_CLASS.items() if names[0].endswith(ending)), None)
    if known is None:
        return loaded(*load_plain(path))
    labels = tuple(dict(sorted(config.get("id2label", {}).items(), key=lambda pair: int(pair[0]))).values())
    task, data = _reading(path / _READING_FILE, known)
    return load_task(task, ModelRecipe(name=str(path)), data, label_names=labels)


def _reading(file: Path, known: str) -> tuple[str, DataRecipe]:
    if not file.is_file():
        return known, DataRecipe()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content["task"], from_mapping(DataRecipe, content["data"])
    except (AsymloraError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file} is damaged ({' '.join(str(error).split())}). Merge the run again, or remove the file to"
            " read inputs by the defaults of the task."
        ) from None
