"""Use a finished run: its model with the adapter on, its labels, and a merged copy of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from asymlora.atomic import staged_folder
from asymlora.attaching import load_adapter
from asymlora.errors import RunExistsError, RunFolderError
from asymlora.merging import merge
from asymlora.tasks.classifiers import load_classifier, load_plain, save_plain, token_limit
from asymlora.tasks.splits import Part
from asymlora.tasks.text_classification import TokenizedTexts, predict_logits
from asymlora.train.run_folder import ADAPTER, RECIPE, RESULT, stored_recipe


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one text.

    Attributes:
        text: The text.
        label: Name of the most probable label.
        probability: Its probability, in [0, 1].
    """

    text: str
    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A model that is ready to be asked.

    Attributes:
        model: The classifier; of a run with its adapter on, of a merged folder plain.
        tokenizer: Its tokenizer.
        label_names: Names of the labels, by index.
        max_tokens: Longer texts are cut.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...]
    max_tokens: int

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Return the most probable label of each text, in the order given.

        Args:
            texts: At least one text.

        Returns:
            One prediction for each.
        """
        predictions: list[Prediction] = []
        for text in texts:
            items = TokenizedTexts(self.tokenizer, Part(texts=[text], labels=[0]), max_tokens=self.max_tokens)
            logits = predict_logits(self.model, items, DataCollatorWithPadding(self.tokenizer))[0].astype(np.float64)
            probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            best = int(probabilities.argmax())
            predictions.append(
                Prediction(text=text, label=self.label_names[best], probability=float(probabilities[best]))
            )
        return predictions


def load_run(folder: str | Path) -> SavedRun:
    """Load a finished run, or a folder that `merge_run` wrote.

    Args:
        folder: The run's folder, or the merged model's.

    Returns:
        The model with tokenizer and labels.

    Raises:
        RunFolderError: The folder is neither, or the run has not ended.
    """
    path = Path(folder)
    if (path / "config.json").is_file():
        model, tokenizer, labels, max_tokens = load_plain(path)
        return SavedRun(model=model, tokenizer=tokenizer, label_names=labels, max_tokens=max_tokens)
    if not (path / RECIPE).is_file():
        raise RunFolderError(f"{path} is no run of asymlora (no {RECIPE} in it) and no model merged from one.")
    if not (path / RESULT).is_file():
        raise RunFolderError(
            f"The run in {path} has not ended. Go on with it: asymlora finetune --output {path} --resume"
        )
    recipe = stored_recipe(path)
    labels = tuple(json.loads((path / RESULT).read_text(encoding="utf-8"))["label_names"])
    model, tokenizer = load_classifier(recipe.model, label_names=labels)
    load_adapter(model, path / ADAPTER)
    limit = token_limit(model, tokenizer, wanted=recipe.data.max_tokens)
    return SavedRun(model=model.eval(), tokenizer=tokenizer, label_names=labels, max_tokens=limit)


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
    target = Path(out)
    if target.exists():
        raise RunExistsError(f"{target} exists; nothing is overwritten. Choose a new folder.")
    if not (Path(folder) / RECIPE).is_file():
        raise RunFolderError(f"{folder} is no run of asymlora (it has no {RECIPE}); only a run can be merged.")
    run = load_run(folder)
    merge(run.model)
    with staged_folder(target) as staging:
        save_plain(run.model, run.tokenizer, staging, max_tokens=run.max_tokens)
    return target
