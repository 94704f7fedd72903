"""The head alone: a linear classifier on features of the frozen model, computed once and fitted to convergence.

The fit is convex and solved by L-BFGS to convergence, so no learning rate is left to choose; what is chosen on the
validation part is the strength of its L2 penalty.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        inverse_penalty: The chosen ``C`` of scikit-learn's logistic regression, on standardised features.
        validation_accuracy: Accuracy on the part that it was chosen on.
    """

    weight: Tensor
    bias: Tensor
    inverse_penalty: float
    validation_accuracy: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return logits, shape ``(texts, labels)``, of features of shape ``(texts, width)``."""
        return features @ self.weight.numpy().T + self.bias.numpy()

    def copy_to(self, head: nn.Linear) -> None:
        """Make a linear head give this probe's logits."""
        with torch.no_grad():
            head.weight.copy_(self.weight)
            head.bias.copy_(self.bias)


def fit_probe(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], *, labels: int
) -> LinearProbe:
    """Fit a linear head for each penalty and keep the one with the best validation accuracy.

    Args:
        train: Features ``(texts, width)`` and labels ``(texts,)``.
        validation: The same, for the choice.
        labels: Number of labels.

    Returns:
        The fitted head; of equal ones, the most penalised.
    """
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train[0].mean(0), train[0].std(0) + 1e-6
    best: LinearProbe | None = None
    for inverse_penalty in PENALTIES:
        fit = LogisticRegression(C=inverse_penalty, max_iter=5000)
        fit.fit((train[0] - mean) / deviation, train[1])
        weight, bias = _softmax_form(np.asarray(fit.coef_), np.asarray(fit.intercept_))
        weight = weight / deviation
        bias = bias - weight @ mean
        probe = LinearProbe(
            weight=torch.tensor(weight, dtype=torch.float32),
            bias=torch.tensor(bias, dtype=torch.float32),
            inverse_penalty=inverse_penalty,
            validation_accuracy=0.0,
        )
        assert weight.shape[0] == labels
        score = float((probe.logits(validation[0]).argmax(-1) == validation[1]).mean())
        if best is None or score > best.validation_accuracy:
            best = LinearProbe(
                weight=probe.weight, bias=probe.bias, inverse_penalty=inverse_penalty, validation_accuracy=score
            )
    assert best is not None
    return best


def _softmax_form(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # scikit-learn gives one row for two labels: the difference of their logits.
    if weight.shape[0] > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
