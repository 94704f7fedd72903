"""Nets small enough to pretrain in a script, the tasks they are pretrained on and adapted to, and one training loop.

Tokens. A row is a sequence of tokens drawn evenly; a table sends each token to a class, and the label is the class that
most tokens of the row have (rows with a tie are drawn again). The downstream task is the same with another table: the
classes of some tokens are permuted among them. So a net must tell tokens apart that pretraining taught it to confuse.

Digits. scikit-learn's 1,797 scans of 8 x 8 pixels. A seed draws five of the ten digits for pretraining; the downstream
task is the other five.

The head is frozen and serves both tasks of a net, so that what is learned downstream is learned by the factors alone.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from asymlora.errors import DivergedError


class Rows(NamedTuple):
    """Inputs, one row each, and their labels."""

    inputs: Tensor
    labels: Tensor


class Parts(NamedTuple):
    """What is trained on, what choices are made on, and what is reported on."""

    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run: AdamW without weight decay, the rate falling linearly to zero.

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows per step, drawn evenly from the training rows.
    """

    steps: int
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a base is trained, all weights at a constant rate, until it generalises.

    Attributes:
        until: Validation accuracy at which to stop, fraction in [0, 1].
        most_rounds: Rounds of 100 steps after which to give up.
        batch_size: Rows per step.
        rate: Learning rate of AdamW.
    """

    until: float
    most_rounds: int = 60
    batch_size: int = 128
    rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class TokenTask:
    """Size of the token task and of the BERT that learns it.

    Attributes:
        tokens: Tokens that a row is drawn from; one more starts each row, and the head reads there.
        classes: Classes of tokens and of rows.
        length: Tokens of a row.
        width: Hidden size of the encoder.
        layers: Layers of the encoder.
        moved: Tokens whose classes are permuted downstream.
    """

    tokens: int = 64
    classes: int = 8
    length: int = 16
    width: int = 64
    layers: int = 2
    moved: int = 16


def generator(*address: object) -> torch.Generator:
    """Return a generator seeded by a digest of the address, so that neighbouring seeds are unrelated."""
    digest = hashlib.blake2b(repr(address).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def token_classes(task: TokenTask, *, seed: int | None) -> Tensor:
    """Return the class of each token.

    Args:
        task: The task.
        seed: Seed of the downstream table; None: the table of pretraining.

    Returns:
        Classes, shape ``(tokens,)``; each class has as many tokens in every table.
    """
    table = torch.arange(task.tokens) % task.classes
    if seed is not None:
        draws = generator("table", seed)
        moved = torch.randperm(task.tokens, generator=draws)[: task.moved]
        table[moved] = table[moved[torch.randperm(task.moved, generator=draws)]]
    return table


def token_rows(task: TokenTask, table: Tensor, count: int, draws: torch.Generator) -> Rows:
    """Return rows whose label is the class that most of their tokens have.

    Args:
        task: The task.
        table: Class of each token, shape ``(tokens,)``.
        count: Rows wanted.
        draws: Where the tokens come from.

    Returns:
        ``count`` rows without ties, inputs of shape ``(count, 1 + length)``.
    """
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        tokens = torch.randint(task.tokens, (2 * count, task.length), generator=draws)
        first, second = _counts(task, table, tokens).topk(2, dim=1).values.unbind(1)
        found.append(tokens[first > second])
    tokens = torch.cat(found)[:count]
    start = torch.full((count, 1), task.tokens)
    return Rows(torch.cat([start, tokens], 1), _counts(task, table, tokens).argmax(1))


def _counts(task: TokenTask, table: Tensor, tokens: Tensor) -> Tensor:
    return nn.functional.one_hot(table[tokens], task.classes).sum(1)


def token_parts(task: TokenTask, *, seed: int | None, train: int, other: int) -> Parts:
    """Return the three parts of the task that a seed names; each part has draws of its own.

    Args:
        task: The task.
        seed: As for `token_classes`.
        train: Training rows.
        other: Rows of validation, and of test.

    Returns:
        The parts.
    """
    table = token_classes(task, seed=seed)
    counts = {"train": train, "validation": other, "test": other}
    return Parts(*(token_rows(task, table, n, generator(part, seed)) for part, n in counts.items()))


def token_net(task: TokenTask, *, seed: int) -> nn.Module:
    """Return an untrained BERT classifier for the token task, without dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=task.tokens + 1,
        hidden_size=task.width,
        num_hidden_layers=task.layers,
        num_attention_heads=4,
        intermediate_size=4 * task.width,
        max_position_embeddings=task.length + 1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=task.classes,
    )
    return _seeded(lambda: BertForSequenceClassification(config), seed)


def digit_parts(*, seed: int, pretraining: bool) -> Parts:
    """Return half of scikit-learn's digits, those of pretraining or the others, in parts of 50, 25 and 25 %.

    Args:
        seed: Draws which digits are whose, and the parts.
        pretraining: Which half.

    Returns:
        The parts; inputs of shape ``(rows, 64)`` in [0, 1], labels 0 to 4.
    """
    pixels, digits = _digits()
    draws = generator("digits", seed)
    order = torch.randperm(10, generator=draws)
    chosen = order[:5] if pretraining else order[5:]
    mine = torch.isin(digits, chosen)
    pixels, labels = pixels[mine], (digits[mine, None] == chosen).int().argmax(1)
    shuffled = torch.randperm(len(labels), generator=draws)
    half, quarter = len(labels) // 2, len(labels) // 4
    places = shuffled[:half], shuffled[half : half + quarter], shuffled[half + quarter :]
    return Parts(*(Rows(pixels[place], labels[place]) for place in places))


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)


def digit_net(*, width: int, seed: int) -> nn.Module:
    """Return an untrained net of two hidden layers, ``first`` and ``second``, for five digits."""

    def build() -> nn.Module:
        layers = {
            "first": nn.Linear(64, width),
            "first_relu": nn.ReLU(),
            "second": nn.Linear(width, width),
            "second_relu": nn.ReLU(),
            "classifier": nn.Linear(width, 5),
        }
        return nn.Sequential(OrderedDict(layers))

    return _seeded(build, seed)


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    # torch's and transformers' own inits draw from the global generator: it is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def pretrain(net: nn.Module, parts: Parts, how: Pretraining, *, seed: int) -> dict[str, Any]:
    """Train all weights until the net generalises, then freeze them; a record of it comes back.

    Args:
        net: An untrained net, trained in place.
        parts: Its task.
        how: The settings.
        seed: Seed of the batches.

    Returns:
        Steps taken, and accuracy on validation and test rows.

    Raises:
        DivergedError: The wanted accuracy was not reached.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=how.rate, weight_decay=0.0)
    training = Training(steps=100, batch_size=how.batch_size)
    accuracy = 0.0
    for count in range(1, how.most_rounds + 1):
        train_steps(net, optimizer, parts.train, training, seed=(seed, count), falling=False)
        accuracy = evaluate(net, parts.validation)[1]
        if accuracy >= how.until:
            net.requires_grad_(False)
            test = evaluate(net, parts.test)[1]
            return {"steps": count * training.steps, "validation_accuracy": accuracy, "test_accuracy": test}
    raise DivergedError(
        f"the base reached a validation accuracy of {accuracy:.3f} in {how.most_rounds} rounds; wanted are {how.until}."
        " Train longer or at another rate."
    )


def train_steps(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    training: Training,
    *,
    seed: object,
    falling: bool = True,
) -> str:
    """Train for some steps on batches that follow from the seed alone.

    Args:
        net: The net.
        optimizer: Of its trained parameters.
        rows: What to train on.
        training: The settings.
        seed: Seed of the batches.
        falling: Whether the rate falls linearly to zero.

    Returns:
        A digest of the batches' row numbers, in order: runs with the same digest saw the same rows.
    """
    draws = generator("batches", seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - falling * step / training.steps)
    seen = hashlib.blake2b(digest_size=8)
    net.train()
    for _ in range(training.steps):
        batch = torch.randint(len(rows.labels), (training.batch_size,), generator=draws)
        seen.update(batch.numpy().tobytes())
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(_logits(net, rows.inputs[batch]), rows.labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return seen.hexdigest()


@torch.no_grad()
def evaluate(net: nn.Module, rows: Rows) -> tuple[float, float]:
    """Return the mean cross entropy, in nats, and the accuracy."""
    net.eval()
    logits = _logits(net, rows.inputs)
    right = (logits.argmax(1) == rows.labels).double().mean()
    return float(cross_entropy(logits.double(), rows.labels)), float(right)


def _logits(net: nn.Module, inputs: Tensor) -> Tensor:
    output = net(inputs)
    return output if isinstance(output, Tensor) else output.logits
