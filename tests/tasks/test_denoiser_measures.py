from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from asymlora.tasks.denoiser_measures import chance, measure
from asymlora.tasks.denoiser_text import HeldOutBlocks

BLOCKS = [[[5, 6, 7, 8]], [[9, 5], [5, 5, 6]], [[10] * 12]]
VOCABULARY = 12


def _model(predict: Any) -> Any:
    # A stand-in that is told the labels and says what comes first at each place.
    def call(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=predict(labels.clamp(min=0)))

    class Model:
        device = torch.device("cpu")
        __call__ = staticmethod(call)

    return Model()


def test_a_model_that_knows_the_target_is_right_everywhere() -> None:
    sure = _model(lambda labels: 50.0 * torch.nn.functional.one_hot(labels, VOCABULARY))
    measured = measure(sure, BLOCKS, mask=4, seed=0)
    assert measured["loss"] < 1e-6
    assert (measured["hidden"], measured["kept"]) == (1.0, 1.0)


def test_a_model_that_knows_nothing_has_the_loss_of_the_vocabulary() -> None:
    flat = _model(lambda labels: torch.zeros(*labels.shape, VOCABULARY))
    assert measure(flat, BLOCKS, mask=4, seed=0)["loss"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_hidden_and_kept_tokens_are_told_apart() -> None:
    always_five = _model(lambda labels: torch.nn.functional.one_hot(torch.full_like(labels, 5), VOCABULARY).float())
    rows = HeldOutBlocks(BLOCKS, mask=4, seed=0).noised
    for name, wanted in (("hidden", True), ("kept", False)):
        tokens = [t for row in rows for t, gone in zip(row.target, row.hidden, strict=True) if gone is wanted]
        assert measure(always_five, BLOCKS, mask=4, seed=0)[name] == tokens.count(5) / len(tokens)


def test_chance_is_the_most_frequent_training_token_among_the_hidden() -> None:
    rows = HeldOutBlocks(BLOCKS, mask=4, seed=0).noised
    hidden = [t for row in rows for t, gone in zip(row.target, row.hidden, strict=True) if gone]
    assert chance([[[10, 10, 5]]], BLOCKS, mask=4, seed=0) == hidden.count(10) / len(hidden)
