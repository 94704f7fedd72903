from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from asymlora.errors import UnknownNameError
from asymlora.tasks.text_scoring import ClassificationScoring, RegressionScoring, glue_metric


class Labelled:
    """Rows of labels alone."""

    def __init__(self, labels: list[Any]) -> None:
        self.labels = labels

    @property
    def lengths(self) -> list[int]:
        return [1] * len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"labels": self.labels[index]}

    def fingerprint(self) -> Iterator[bytes]:
        yield repr(self.labels).encode()


LOGITS = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4], [2.0, 1.0]])


def test_accuracy_f1_matthews_and_loss_of_four_rows_by_hand() -> None:
    scoring = ClassificationScoring(2)
    scores = scoring.score(scoring.evidence(LOGITS, Labelled([1, 0, 0, 0])))
    # Given 1, 0, 1, 0: one true positive, one false one, two true negatives, no false one.
    assert scores["accuracy"] == 0.75
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx((1 * 2 - 1 * 0) / np.sqrt(2 * 1 * 3 * 2))
    rows = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    assert scores["loss"] == pytest.approx(-np.log(rows[range(4), [1, 0, 0, 0]]).mean(), rel=1e-9)


def test_f1_of_several_labels_is_the_mean_over_labels() -> None:
    scoring = ClassificationScoring(3, "f1")
    logits = np.eye(3)[[0, 0, 1, 2]]
    # By label: 2/3 (one of two given is wrong), 0, 1.
    scores = scoring.score(scoring.evidence(logits, Labelled([0, 1, 0, 2])))
    assert scores["f1"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_metrics_from_counts_are_scikit_learns(labels: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    scoring = ClassificationScoring(labels)
    generator = np.random.default_rng(labels)
    for rows in (7, 200):
        logits, wanted = generator.normal(size=(rows, labels)), generator.integers(0, labels, rows)
        scores = scoring.score(scoring.evidence(logits, Labelled(wanted.tolist())))
        given = logits.argmax(-1)
        average = "binary" if labels == 2 else "macro"
        assert scores["accuracy"] == accuracy_score(wanted, given)
        assert scores["f1"] == pytest.approx(f1_score(wanted, given, average=average, zero_division=0.0), abs=1e-12)
        assert scores["matthews"] == pytest.approx(matthews_corrcoef(wanted, given), abs=1e-12)


def test_what_is_not_defined_is_nought() -> None:
    scoring = ClassificationScoring(2)
    scores = scoring.score(scoring.evidence(np.array([[1.0, 0.0]] * 3), Labelled([0, 0, 0])))
    assert (scores["accuracy"], scores["f1"], scores["matthews"]) == (1.0, 0.0, 0.0)
    numbers = RegressionScoring()
    flat = numbers.score(numbers.evidence(np.ones((3, 1)), Labelled([1.0, 2.0, 3.0])))
    assert (flat["pearson"], flat["spearman"]) == (0.0, 0.0)


def test_correlations_are_scipys_ties_included() -> None:
    from scipy.stats import pearsonr, spearmanr

    generator = np.random.default_rng(0)
    given, wanted = generator.integers(0, 5, size=(2, 60)).astype(float)
    scoring = RegressionScoring("spearman")
    scores = scoring.score(scoring.evidence(given[:, None], Labelled(wanted.tolist())))
    assert scores["pearson"] == pytest.approx(pearsonr(given, wanted).statistic, abs=1e-12)
    assert scores["spearman"] == pytest.approx(spearmanr(given, wanted).statistic, abs=1e-12)
    assert scores["mse"] == pytest.approx(((given - wanted) ** 2).mean())


@pytest.mark.parametrize(
    ("name", "subset", "metric"),
    [
        ("nyu-mll/glue", "cola", "matthews"),
        ("glue", "stsb", "spearman"),
        ("mine.csv", "cola", None),
        ("glue", None, None),
    ],
)
def test_glue_is_scored_as_glue_does(name: str, subset: str | None, metric: str | None) -> None:
    assert glue_metric(name, subset) == metric


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'matthews'\? Known: accuracy, f1, matthews, loss"):
        ClassificationScoring(2, "mathews")
    with pytest.raises(UnknownNameError, match="Known: pearson, spearman, mse"):
        RegressionScoring("accuracy")
