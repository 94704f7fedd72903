from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from asymlora.tasks import linear_probe
from asymlora.tasks.linear_probe import PENALTIES, LinearProbe, fit_probe

Labelled = tuple[np.ndarray, np.ndarray]


def _made(count: int, *, labels: int, seed: int, width: int = 6, noise: float = 1.0) -> Labelled:
    """Overlapping clouds around one centre a label, with features of very different sizes and means."""
    centres = np.random.default_rng(7).normal(size=(labels, width))
    draw = np.random.default_rng(seed)
    which = draw.integers(0, labels, count)
    features = centres[which] + noise * draw.normal(size=(count, width))
    return (features * np.logspace(-2, 2, width) + np.arange(width)).astype(np.float32), which


def _sklearn(train: Labelled, inverse_penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=5000, tol=1e-6)).fit(*train)


def _fit(labels: int) -> tuple[LinearProbe, Labelled, Labelled]:
    train, validation = _made(300, labels=labels, seed=0), _made(100, labels=labels, seed=1)
    return fit_probe(train, validation, labels=labels), train, validation


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_probe_predicts_what_scikit_learn_predicts(labels: int) -> None:
    probe, train, _ = _fit(labels)
    features, _ = _made(500, labels=labels, seed=2)
    reference = _sklearn(train, probe.inverse_penalty)
    logits = probe.logits(features)
    assert logits.shape == (500, labels)
    shares = torch.tensor(logits, dtype=torch.float64).softmax(-1).numpy()
    # The fit stops at a gradient of 1e-4 of the mean loss; the shares follow to about a thousandth.
    np.testing.assert_allclose(shares, reference.predict_proba(features), atol=5e-3)
    ordered = np.sort(shares, axis=-1)
    decided = ordered[:, -1] - ordered[:, -2] > 1e-2
    assert decided.mean() > 0.9
    assert (logits.argmax(-1) == reference.predict(features))[decided].all()


@pytest.mark.parametrize("labels", [2, 3])
def test_fit_is_converged(labels: int) -> None:
    probe, (features, which), _ = _fit(labels)
    rows = torch.tensor(features, dtype=torch.float64)
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    weight = (probe.weight.double() * deviation).requires_grad_()
    bias = (probe.bias.double() + probe.weight.double() @ mean).requires_grad_()
    # scikit-learn's loss over the rows; for two labels its penalty is on the difference of the two rows.
    penalised = (weight[1] - weight[0]) if labels == 2 else weight
    penalty = (penalised**2).sum() / (2 * probe.inverse_penalty * len(which))
    loss = nn.functional.cross_entropy((rows - mean) / deviation @ weight.T + bias, torch.tensor(which)) + penalty
    gradients = torch.autograd.grad(loss, (weight, bias))
    # The stopping rule of scikit-learn's L-BFGS: 1e-4, doubled for weights rounded to float32.
    assert max(g.abs().max().item() for g in gradients) < 2e-4


def test_the_loss_of_a_probe_that_is_not_converged_has_a_gradient() -> None:
    # The test above must be able to fail: the same gradient at zero weights is large.
    features, which = _made(300, labels=3, seed=0)
    weight = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    scaled = torch.tensor((features - features.mean(0)) / features.std(0)).double()
    nn.functional.cross_entropy(scaled @ weight.T, torch.tensor(which)).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0.05


def test_two_labels_get_opposite_rows_so_no_direction_is_preferred() -> None:
    probe, *_ = _fit(2)
    assert torch.equal(probe.weight[0], -probe.weight[1])
    torch.testing.assert_close(probe.bias[0], -probe.bias[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labels", [2, 3])
def test_head_that_it_is_copied_to_gives_the_same_logits(labels: int) -> None:
    probe, _, (features, _) = _fit(labels)
    head = nn.Linear(6, labels)
    probe.copy_to(head)
    assert torch.equal(head.weight, probe.weight)
    assert torch.equal(head.bias, probe.bias)
    assert head.weight.requires_grad
    with torch.no_grad():
        logits = head(torch.tensor(features)).numpy()
    # Six float32 products up to about 1e3, summed in another order.
    np.testing.assert_allclose(logits, probe.logits(features), rtol=1e-4, atol=1e-3)


# Rare second label: a strong penalty leaves it out. Much noise in many features, few rows: a weak one overfits.
CHOICES = {
    "weak": (lambda seed, count: _imbalanced(count, seed), lambda chosen: chosen > PENALTIES[0]),
    "strong": (lambda seed, count: _noisy(count, seed), lambda chosen: chosen < PENALTIES[-1]),
}


def _imbalanced(count: int, seed: int) -> Labelled:
    draw = np.random.default_rng(seed)
    which = (draw.random(count) < 0.15).astype(int)
    return (draw.normal(size=(count, 4)) + 3 * which[:, None]).astype(np.float32), which


def _noisy(count: int, seed: int) -> Labelled:
    draw = np.random.default_rng(seed)
    which = np.arange(count) % 2
    features = draw.normal(size=(count, 60))
    features[:, :30] += 0.25 * which[:, None]
    return features.astype(np.float32), which


@pytest.mark.parametrize("kind", CHOICES)
def test_penalty_with_the_best_validation_score_is_kept(kind: str) -> None:
    made, expected = CHOICES[kind]
    train, validation = made(0, 80), made(1, 400)
    scores = {c: float(_sklearn(train, c).score(*validation)) for c in PENALTIES}
    assert len(set(scores.values())) > 1
    probe = fit_probe(train, validation, labels=2)
    assert scores[probe.inverse_penalty] == pytest.approx(max(scores.values()), abs=1 / 400)
    # A row on the boundary may fall on either side of the two fits.
    assert probe.validation_score == pytest.approx(scores[probe.inverse_penalty], abs=1 / 400)
    assert expected(probe.inverse_penalty)


def test_of_equally_good_penalties_the_strongest_is_kept() -> None:
    features = np.repeat([[-1.0, 0.5], [1.0, -0.5]], 20, axis=0).astype(np.float32)
    which = np.repeat([0, 1], 20)
    probe = fit_probe((features, which), (features, which), labels=2)
    assert (probe.validation_score, probe.inverse_penalty) == (1.0, min(PENALTIES))


def test_choice_depends_on_the_validation_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a single penalty to choose from, two validation parts give one and the same head.
    monkeypatch.setattr(linear_probe, "PENALTIES", (0.1,))
    train = _made(300, labels=3, seed=0)
    one, other = (fit_probe(train, _made(50, labels=3, seed=seed), labels=3) for seed in (1, 2))
    assert torch.equal(one.weight, other.weight)
    assert one.validation_score != other.validation_score


def test_feature_that_never_varies_does_no_harm() -> None:
    features, which = _made(200, labels=2, seed=0)
    constant = np.concatenate([features, np.full((200, 1), 0.25, dtype=np.float32)], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_it = fit_probe((constant, which), (constant, which), labels=2)
    without = fit_probe((features, which), (features, which), labels=2)
    assert torch.isfinite(with_it.weight).all()
    np.testing.assert_allclose(with_it.logits(constant), without.logits(features), rtol=1e-2, atol=1e-2)
