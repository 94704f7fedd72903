"""What a task gives to a run: model and rows, what evaluation keeps of a batch, and how that is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

Batch = dict[str, Tensor]
Done = Callable[[int], None]
"""Called after each batch with its number of rows."""


class Items(Protocol):
    """Rows as the model sees them, in a fixed order."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, for batches of similar length."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def fingerprint(self) -> Iterator[bytes]:
        """Yield what makes the rows what they are, for a digest."""
        ...


def longest_first(items: Items) -> list[int]:
    """Return the order in which rows are run through a model, for batches that hold little padding.

    The longest come first, so that what does not fit in memory fails at once; rows of one length stay in their order.

    Args:
        items: The rows.
    """
    lengths = items.lengths
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


class Scoring(Protocol):
    """How a task measures a model. All of it works batch by batch, so it also runs on several processes."""

    metric: str
    """By which choices are made."""
    greater_is_better: bool

    def keep(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on a batch, without gradients, and return what scoring needs.

        Args:
            model: The model, possibly wrapped, in evaluation mode.
            batch: One batch, on the model's device.

        Returns:
            Shape ``(rows, k)``, numbers; ``k`` is the same for every batch.
        """
        ...

    def evidence(self, kept: np.ndarray, items: Items) -> np.ndarray:
        """Turn what was kept of all rows into what the metrics need of each.

        Args:
            kept: Shape ``(rows, k)``, in the order of the items.
            items: The rows.

        Returns:
            Shape ``(rows, m)``, float64.
        """
        ...

    def score(self, evidence: np.ndarray) -> dict[str, float]:
        """Return every metric of some rows, by name; `metric` is among them.

        Args:
            evidence: Shape ``(rows, m)``, of any selection of rows, so that errors can be told by leaving rows out.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class HeadAlone:
    """A head fitted to convergence on features of the frozen model.

    Attributes:
        evidence: Of the test rows, as `Scoring.evidence` gives it.
        validation: The metric on the validation part, on which the penalty was chosen.
        copy_to_model: Makes the model's own head give the same output; None where it is of another form.
    """

    evidence: np.ndarray
    validation: float
    copy_to_model: Callable[[], None] | None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a run needs of its task.

    Attributes:
        model: The pretrained model in evaluation mode, with a fresh head where it needs one, no adapter.
        processor: Tokenizer or image settings, with ``save_pretrained``.
        collator: Turns items into a padded batch of tensors, with ``labels``.
        train: Training rows.
        validation: Rows on which choices are made.
        test: Rows on which closing figures are quoted.
        scoring: How the model is measured.
        heads: Paths of what is trained in full beside the adapter.
        label_names: Names of the labels by index; empty where there are none.
        task_type: PEFT's name of the task, or None where PEFT has no class for the model.
        loss: Mean loss of a batch from the model's output, the batch's ``labels`` and the number of targets in all
            batches of the step (None: of this one); None: the model's own.
        fit_head: Fits the head alone; None where the baseline is the base model as it is.
        draw_head: Draws what is fresh in the model again, in place and before anything is put on it: to the values that
            it has when the task is prepared with that ``head_seed``; None where nothing is fresh.
        environments: Further sets that the closing figures are quoted on, by name.
        closing: Further measurements at the end, of the base and of the adapted model, by name.
        notes: Sentences that the user should read before the training: rows dropped, inputs cut.
        dropped: Rows left out because their input stands in another part.
    """

    model: PreTrainedModel
    processor: Any
    collator: Callable[[list[dict[str, Any]]], Batch]
    train: Items
    validation: Items
    test: Items
    scoring: Scoring
    heads: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    task_type: str | None = None
    loss: Callable[[Any, Tensor, Tensor | int | None], Tensor] | None = None
    fit_head: Callable[[Done], HeadAlone] | None = None
    draw_head: Callable[[int], None] | None = None
    environments: Mapping[str, Items] = field(default_factory=dict)
    closing: Mapping[str, Callable[[nn.Module], dict[str, float]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dropped: int = 0

    @property
    def parts(self) -> dict[str, Items]:
        """Training, validation and test rows by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def digest(self) -> str:
        """Return the SHA-256 of all rows as the model sees them, hexadecimal."""
        digest = hashlib.sha256(repr(self.label_names).encode())
        for name, items in {**self.parts, **self.environments}.items():
            digest.update(name.encode())
            for piece in items.fingerprint():
                digest.update(len(piece).to_bytes(8, "little") + piece)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says to one input.

    Attributes:
        given: The input: a text, or the path of an image.
        answer: A label, a number or a text.
        probability: Of a label, in [0, 1]; None for others.
    """

    given: str
    answer: str
    probability: float | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that is ready to be asked.

    Attributes:
        model: The model in evaluation mode, no adapter yet.
        processor: Tokenizer or image settings, with ``save_pretrained``.
        answer: Answers inputs one by one, with whatever adapter the model carries by then.
        save: Writes model and processor as a folder that loads without asymlora.
        heads: Paths of what a run trains in full.
        network: The model with what a run trained on it; None: there is nothing on it.
    """

    model: PreTrainedModel
    processor: Any
    answer: Callable[[list[str]], list[Answer]]
    save: Callable[[Any], None]
    heads: tuple[str, ...] = ()
    network: nn.Module | None = None
