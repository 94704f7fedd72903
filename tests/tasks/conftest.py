"""A small classifier, as the tests of models and of the task both load it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from asymlora.tasks.classifiers import load_classifier
from asymlora.tasks.inputs import ModelRecipe
from cases import LABELS


@pytest.fixture
def load(small_encoder: Path) -> Callable[..., tuple[Any, PreTrainedTokenizerBase]]:
    """Load the small encoder with a head: by pooling, labels and seed."""

    def load(pooling: Any, labels: tuple[str, ...] = LABELS, seed: int = 0) -> tuple[Any, PreTrainedTokenizerBase]:
        torch.manual_seed(seed)
        return load_classifier(ModelRecipe(name=str(small_encoder), pooling=pooling), label_names=labels)

    return load
