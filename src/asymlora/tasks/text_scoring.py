"""How labels and numbers for texts are scored: accuracy, F1, Matthews, Pearson, Spearman, and GLUE's choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from asymlora.errors import UnknownNameError, nearest
from asymlora.tasks.task import Batch, Items

GLUE = {
    "cola": "matthews",
    "sst2": "accuracy",
    "mrpc": "f1",
    "qqp": "f1",
    "stsb": "spearman",
    "mnli": "accuracy",
    "qnli": "accuracy",
    "rte": "accuracy",
    "wnli": "accuracy",
}
"""By which choices are made on a GLUE set; where GLUE reports two metrics, both are in the result."""


class ClassificationScoring:
    """Accuracy, F1, Matthews' correlation and cross-entropy of a classifier.

    Args:
        labels: Number of labels. F1 is that of label 1 where there are two, as in GLUE, else the mean over labels.
        metric: By which choices are made.

    Raises:
        UnknownNameError: There is no such metric.
    """

    METRICS = ("accuracy", "f1", "matthews", "loss")

    def __init__(self, labels: int, metric: str = "accuracy") -> None:
        self.labels = labels
        self.metric = known_metric(metric, self.METRICS)
        self.greater_is_better = metric != "loss"

    def keep(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits, shape ``(rows, labels)``."""
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits.float()

    def evidence(self, kept: np.ndarray, items: Items) -> np.ndarray:
        """Return label given, label wanted and cross-entropy in nats, shape ``(rows, 3)``."""
        wanted = targets_of(items)
        with torch.no_grad():
            losses = nn.functional.cross_entropy(torch.tensor(kept), torch.tensor(wanted).long(), reduction="none")
        return np.column_stack([kept.argmax(-1), wanted, losses.numpy()]).astype(np.float64)

    def score(self, evidence: np.ndarray) -> dict[str, float]:
        """Return every metric; a correlation or share that is not defined is 0."""
        counts = self.counts(evidence)
        return {
            "accuracy": float(np.trace(counts) / counts.sum()),
            "f1": _f1(counts),
            "matthews": _matthews(counts),
            "loss": float(evidence[:, 2].mean()),
        }

    def counts(self, evidence: np.ndarray) -> np.ndarray:
        """Return how many rows have each label wanted (row) and given (column), shape ``(labels, labels)``."""
        # Metrics are made of these, as scikit-learn takes milliseconds for each, and a standard error asks a thousand
        # times.
        given, wanted = evidence[:, 0].astype(int), evidence[:, 1].astype(int)
        pairs = np.bincount(self.labels * wanted + given, minlength=self.labels**2)
        return pairs.reshape(self.labels, self.labels)


def f1_of_labels(counts: np.ndarray) -> np.ndarray:
    """Return the F1 of each label that was given or wanted.

    Args:
        counts: Of rows by label wanted and label given, shape ``(labels, labels)``.

    Returns:
        Fractions in [0, 1].

    Example:
        >>> f1_of_labels(np.array([[1, 1, 0], [0, 2, 0], [0, 0, 0]])).round(2).tolist()
        [0.67, 0.8]
    """
    both = counts.sum(0) + counts.sum(1)
    seen = both > 0
    return 2 * np.diagonal(counts)[seen] / both[seen]


def _f1(counts: np.ndarray) -> float:
    if len(counts) == 2:
        both = counts[1].sum() + counts[:, 1].sum()
        return float(2 * counts[1, 1] / both) if both else 0.0
    return float(f1_of_labels(counts).mean())


def _matthews(counts: np.ndarray) -> float:
    given, wanted, rows = counts.sum(0).astype(float), counts.sum(1).astype(float), float(counts.sum())
    size = np.sqrt((rows**2 - (given**2).sum()) * (rows**2 - (wanted**2).sum()))
    return float((np.trace(counts) * rows - given @ wanted) / size) if size > 0 else 0.0


class RegressionScoring:
    """Pearson's and Spearman's correlation and the mean squared error of a regression.

    Args:
        metric: By which choices are made.

    Raises:
        UnknownNameError: There is no such metric.
    """

    METRICS = ("pearson", "spearman", "mse")

    def __init__(self, metric: str = "pearson") -> None:
        self.metric = known_metric(metric, self.METRICS)
        self.greater_is_better = metric != "mse"

    def keep(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the numbers given, shape ``(rows, 1)``."""
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits.float()

    def evidence(self, kept: np.ndarray, items: Items) -> np.ndarray:
        """Return number given and number wanted, shape ``(rows, 2)``."""
        return np.column_stack([kept[:, 0], targets_of(items)]).astype(np.float64)

    def score(self, evidence: np.ndarray) -> dict[str, float]:
        """Return every metric; a correlation with a constant is 0."""
        from scipy.stats import rankdata

        given, wanted = evidence[:, 0], evidence[:, 1]
        return {
            "pearson": _correlation(given, wanted),
            "spearman": _correlation(rankdata(given), rankdata(wanted)),
            "mse": float(((given - wanted) ** 2).mean()),
        }


def known_metric(metric: str, known: Sequence[str]) -> str:
    """Return a metric's name if a task has it.

    Args:
        metric: The name.
        known: Names that the task has.

    Returns:
        The name.

    Raises:
        UnknownNameError: The task has no such metric.
    """
    if metric not in known:
        raise UnknownNameError(
            f"data.metric={metric!r} is no metric of this task.{nearest(metric, known)} Known: {', '.join(known)}."
        )
    return metric


def targets_of(items: Items) -> np.ndarray:
    """Return the label of each row, shape ``(rows,)``."""
    own = getattr(items, "labels", None)  # where asking row by row would decode images
    return np.array([items[i]["labels"] for i in range(len(items))] if own is None else own)


def glue_metric(name: str, subset: str | None) -> str | None:
    """Return the metric of a GLUE set on the hub, or None for any other data.

    Example:
        >>> glue_metric("nyu-mll/glue", "cola")
        'matthews'
    """
    return GLUE.get(subset or "") if name.rpartition("/")[2] == "glue" else None


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    size: float = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum() / size) if size > 0 else 0.0
