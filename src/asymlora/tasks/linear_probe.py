"""The head alone: a linear head on features of the frozen model, computed once and fitted to convergence.

The fit is convex and solved to convergence (L-BFGS for labels, least squares for numbers), so no learning rate is left
to choose; what is chosen on the validation part is the strength of its L2 penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A fitted linear head.

    Attributes:
        weight: Shape ``(labels, width)``.
        bias: Shape ``(labels,)``.
        inverse_penalty: The chosen ``C`` of scikit-learn's logistic regression, or one over the ``alpha`` of its ridge
            regression, on standardised features.
        validation_score: What it was chosen by, on the validation part.
    """

    weight: Tensor
    bias: Tensor
    inverse_penalty: float
    validation_score: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return logits, shape ``(texts, labels)``, of features of shape ``(texts, width)``."""
        return features @ self.weight.numpy().T + self.bias.numpy()

    def copy_to(self, head: nn.Module) -> None:
        """Make a linear head give this probe's logits.

        Args:
            head: One linear layer, or a wrapper that keeps several copies of it, as PEFT's does.
        """
        with torch.no_grad():
            for layer in head.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.copy_(self.weight)
                    layer.bias.copy_(self.bias)


Columns = tuple[np.ndarray, np.ndarray]
"""Features ``(rows, width)`` and labels or numbers ``(rows,)``."""
Metric = Callable[[np.ndarray], float]
"""Of the logits of the validation rows; more is better."""


def fit_probe(train: Columns, validation: Columns, *, labels: int, metric: Metric | None = None) -> LinearProbe:
    """Fit a linear head for each penalty and keep the one that is best on the validation rows.

    Args:
        train: Features ``(texts, width)`` and labels ``(texts,)``.
        validation: The same, for the choice.
        labels: Number of labels.
        metric: By which it is chosen; None: accuracy.

    Returns:
        The fitted head; of equal ones, the most penalised.
    """
    from sklearn.linear_model import LogisticRegression

    def fit(features: np.ndarray, inverse_penalty: float) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=inverse_penalty, max_iter=5000).fit(features, train[1])
        weight, bias = _softmax_form(np.asarray(model.coef_), np.asarray(model.intercept_))
        assert weight.shape[0] == labels
        return weight, bias

    return _best(
        fit, train[0], validation[0], metric or (lambda logits: float((logits.argmax(-1) == validation[1]).mean()))
    )


def fit_number_probe(train: Columns, validation: Columns, *, metric: Metric | None = None) -> LinearProbe:
    """Fit a linear head that gives one number, by ridge regression.

    Args:
        train: Features ``(texts, width)`` and numbers ``(texts,)``.
        validation: The same, for the choice of the penalty.
        metric: By which it is chosen; None: the negative mean squared error.

    Returns:
        The fitted head; of equal ones, the most penalised.
    """
    from sklearn.linear_model import Ridge

    def fit(features: np.ndarray, inverse_penalty: float) -> tuple[np.ndarray, np.ndarray]:
        model = Ridge(alpha=1 / inverse_penalty).fit(features, train[1])
        return np.asarray(model.coef_).reshape(1, -1), np.asarray(model.intercept_).reshape(1)

    return _best(
        fit, train[0], validation[0], metric or (lambda logits: -float(((logits[:, 0] - validation[1]) ** 2).mean()))
    )


def _best(
    fit: Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]],
    train: np.ndarray,
    validation: np.ndarray,
    metric: Metric,
) -> LinearProbe:
    train = train.astype(np.float64)  # in float32 the line search of L-BFGS can fail
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    best: LinearProbe | None = None
    for inverse_penalty in PENALTIES:
        weight, bias = fit((train - mean) / deviation, inverse_penalty)
        weight = weight / deviation
        probe = LinearProbe(
            weight=torch.tensor(weight, dtype=torch.float32),
            bias=torch.tensor(bias - weight @ mean, dtype=torch.float32),
            inverse_penalty=inverse_penalty,
            validation_score=0.0,
        )
        probe = replace(probe, validation_score=metric(probe.logits(validation)))
        if best is None or probe.validation_score > best.validation_score:
            best = probe
    assert best is not None
    return best


def _softmax_form(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # scikit-learn gives one row for two labels: the difference of their logits.
    if weight.shape[0] > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
