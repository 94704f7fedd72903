"""One linear LoRA layer trained on one sample, simulated exactly at any width.

``n`` features in, ``m`` features out, ``r`` rank, ``S`` seeds. With the input ``x``, the read-out ``v`` and the output
``f = v . s B A x``, the gradients have rank one, so that under SignSGD, Adam and SGD

    A_t = a_t A_0 + move_A p^T,    B_t = b_t B_0 + q move_B^T,    p, q = sign(x), sign(v), or x, v for SGD.

A run therefore keeps ``r`` numbers a factor and a seed; the width enters only in the inner products of the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from asymlora.errors import SpecError
from asymlora.schema import refuse_values
from asymlora.theory.width_scaling import Scheme, find_scheme

Optimizer = Literal["sign", "adam", "sgd"]
WIDTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Seven octaves."""
QUANTITIES = ("Z_A", "Z_B", "delta1", "delta2", "delta3", "step_A", "step_B")
"""What a run records of each update."""


@dataclass(frozen=True, kw_only=True)
class OneLayerSettings:
    """All that a run depends on but its width, its learning rates and its number of steps.

    Attributes:
        scheme: How the factors start and which are trained: a key of `asymlora.theory.width_scaling.SCHEMES`, or a
            scheme of one's own.
        rank: ``r``.
        scaling: ``s``, the whole factor on ``B A``.
        aspect: ``m / n``, features out over features in.
        optimizer: ``sign`` (SignSGD), ``adam`` (without its epsilon, which has no exact reduced form) or ``sgd``.
        beta1: Adam's decay of the first moment.
        beta2: Adam's decay of the second moment.
        weight_decay: Decoupled, as AdamW's.
        target: What ``f`` should become. Far away, so that the residual never changes sign; near, it does.
        seeds: One layer each.
        dtype: ``float64`` or ``float32``.
    """

    scheme: Scheme | str = "init_a"
    rank: int = 4
    scaling: float = 1.0
    aspect: float = 1.0
    optimizer: Optimizer = "sign"
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    target: float = 1e9
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    dtype: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        """Check the values."""
        find_scheme(self.scheme)
        problems = [
            f"{name}={getattr(self, name)!r} must be {words}"
            for name, words, fits in (
                ("rank", "a whole number of at least 1", self.rank >= 1),
                ("scaling", "greater than 0", 0 < self.scaling < math.inf),
                ("aspect", "greater than 0", 0 < self.aspect < math.inf),
                ("optimizer", "'sign', 'adam' or 'sgd'", self.optimizer in ("sign", "adam", "sgd")),
                ("beta1", "at least 0 and less than 1", 0 <= self.beta1 < 1),
                ("beta2", "at least 0 and less than 1", 0 <= self.beta2 < 1),
                ("weight_decay", "at least 0", 0 <= self.weight_decay < math.inf),
                ("seeds", "one or more whole numbers", len(self.seeds) > 0),
                ("dtype", "'float64' or 'float32'", self.dtype in ("float64", "float32")),
            )
            if not fits
        ]
        refuse_values(problems)


class Draws(NamedTuple):
    """The factors of one seed as drawn, and its sample: float64, ``(r, n)``, ``(m, r)``, ``(n,)``, ``(m,)``."""

    A: Tensor
    B: Tensor
    x: Tensor
    v: Tensor


def draw_one(settings: OneLayerSettings, width: int, seed: int) -> Draws:
    """Draw the start of one layer: ``x`` standard normal, ``v`` standard normal over ``m``, the factors by the scheme.

    Args:
        settings: What to draw.
        width: ``n``.
        seed: The seed; another width is an independent draw.

    Raises:
        SpecError: ``width`` or ``m`` is below 1.
    """
    scheme, n, m, r = find_scheme(settings.scheme), width, round(width * settings.aspect), settings.rank
    if min(n, m) < 1:
        raise SpecError(f"width={width} and aspect={settings.aspect} give {m} features out: give at least 1 of each.")
    generator = torch.Generator().manual_seed(seed * 2**24 + n)
    x, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (n, m))
    A = torch.randn(r, n, generator=generator, dtype=torch.float64) * scheme.A.std(n, r)
    B = torch.randn(m, r, generator=generator, dtype=torch.float64) * scheme.B.std(n, r)
    return Draws(A, B, x, v / m)


@dataclass(frozen=True)
class Layer:
    """The starts of all seeds at one width, reduced to the inner products that a run needs.

    The last entry of an axis of ``r + 1`` is the direction ``p`` or ``q``, the others are the components of the start.

    Attributes:
        width: ``n``.
        height: ``m``.
        read: Products of the rows of ``A_0`` and ``p`` with ``x``, ``(S, r + 1)``.
        gram_A: Products of the rows of ``A_0`` and ``p`` with each other, ``(S, r + 1, r + 1)``.
        write: Products of the columns of ``B_0`` and ``q`` with ``v``, ``(S, r + 1)``.
        gram_B: Products of the columns of ``B_0`` and ``q`` with each other, ``(S, r + 1, r + 1)``.
    """

    width: int
    height: int
    read: Tensor
    gram_A: Tensor
    write: Tensor
    gram_B: Tensor


def draw_layer(settings: OneLayerSettings, width: int) -> Layer:
    """Return the starts of all seeds at one width, for any number of runs.

    Args:
        settings: What to draw; the optimizer decides the directions.
        width: ``n``.
    """
    parts: list[tuple[Tensor, ...]] = []
    height = 0
    for seed in settings.seeds:
        A, B, x, v = draw_one(settings, width, seed)
        p, q = (x, v) if settings.optimizer == "sgd" else (x.sign(), v.sign())
        rows, columns = torch.cat([A, p[None]]), torch.cat([B.T, q[None]])
        parts.append((rows @ x, rows @ rows.T, columns @ v, columns @ columns.T))
        height = len(v)
    dtype = getattr(torch, settings.dtype)
    return Layer(width, height, *(torch.stack(part).to(dtype) for part in zip(*parts, strict=True)))


@dataclass
class _Factor:
    """One factor as ``keep`` times its start and ``move`` along its direction."""

    settings: OneLayerSettings
    rate: float
    keep: float
    move: Tensor
    mean: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def start(cls, settings: OneLayerSettings, rate: float, like: Tensor) -> _Factor:
        zeros = like.new_zeros(len(like), settings.rank)
        return cls(settings, rate, keep=1.0, move=zeros, mean=zeros, square=zeros)

    def step(self, gradient: Tensor) -> tuple[float, Tensor]:
        """Return by how much ``keep`` and ``move`` change."""
        decay = self.rate * self.settings.weight_decay
        return -decay * self.keep, -self.rate * self._direction(gradient) - decay * self.move

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.settings.optimizer == "sgd":
            return gradient
        if self.settings.optimizer == "sign":
            return gradient.sign()
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        self.steps += 1
        self.mean = torch.lerp(gradient, self.mean, beta1)
        self.square = torch.lerp(gradient.square(), self.square, beta2)
        # An entry that has had no gradient yet is 0/0: the epsilon that is left out here would make it 0.
        ratio = (self.mean / (1 - beta1**self.steps)) / (self.square / (1 - beta2**self.steps)).sqrt()
        return torch.where(self.square == 0, 0.0, ratio)

    def apply(self, change: tuple[float, Tensor]) -> None:
        self.keep, self.move = self.keep + change[0], self.move + change[1]


@dataclass(frozen=True, kw_only=True)
class OneLayerRun:
    """What happened in one run. ``T`` updates; sizes are root mean squares over the entries.

    Attributes:
        settings: All settings of the run.
        width: ``n``.
        rate_A: Learning rate of ``A``, per step.
        rate_B: Learning rate of ``B``, per step.
        Z_A: Size of ``A x`` at the start and after each update, ``(T + 1, S)``.
        Z_B: Size of ``s B A x``, likewise.
        delta1: Size of ``s B dA x`` in each update, ``(T, S)``.
        delta2: Size of ``s dB A x``, likewise.
        delta3: Size of ``s dB dA x``, likewise.
        step_A: Size of the update of ``A`` over that of ``A`` after it; 0 where both are zero.
        step_B: The same of ``B``.
        grad_A: Largest gradient of ``A``, over its direction, before each update.
        grad_B: The same of ``B``.
        cos_B: Cosine between ``B`` after each update and its start; not a number for a zero start.
        residual: ``f`` minus the target before each update.
        identity_error: Size of ``Z_B`` after minus before minus the three deltas, over that of ``Z_B``.
        features: ``s B A x`` in the basis of ``B_0``'s columns and ``q``, ``(T + 1, S, r + 1)``.
        gram_B: The products of that basis, ``(S, r + 1, r + 1)``.
    """

    settings: OneLayerSettings
    width: int
    rate_A: float
    rate_B: float
    Z_A: Tensor
    Z_B: Tensor
    delta1: Tensor
    delta2: Tensor
    delta3: Tensor
    step_A: Tensor
    step_B: Tensor
    grad_A: Tensor
    grad_B: Tensor
    cos_B: Tensor
    residual: Tensor
    identity_error: Tensor
    features: Tensor
    gram_B: Tensor


def simulate(
    settings: OneLayerSettings,
    width: int,
    rate_A: float,
    rate_B: float | None = None,
    *,
    steps: int = 4,
    layer: Layer | None = None,
) -> OneLayerRun:
    """Train the layer of each seed for some steps.

    Args:
        settings: All else that the run depends on.
        width: ``n``.
        rate_A: Learning rate of ``A``, per step.
        rate_B: Learning rate of ``B``; None for the same.
        steps: Number of updates, at least 1.
        layer: The start from `draw_layer` for these settings and this width, where it is used again.

    Returns:
        The sizes of all parts of every step.

    Raises:
        SpecError: There is no step, or the layer is that of another width or number of seeds.

    Example:
        >>> run = simulate(OneLayerSettings(scheme="init_b"), 256, 1 / 256)
        >>> run.delta2[0].max().item(), run.delta1[0].min().item() > 0
        (0.0, True)

    Source:
        Hayou, Ghosh, Yu 2024, arXiv 2406.08447: the setting of the analysis (second-hand). The reduced form is derived
        here.
    """
    layer = draw_layer(settings, width) if layer is None else layer
    if steps < 1 or layer.width != width or len(layer.read) != len(settings.seeds):
        raise SpecError(
            f"steps={steps}, width={width} and {len(settings.seeds)} seeds, with a layer of width {layer.width} and"
            f" {len(layer.read)} seeds: make at least 1 step, and draw the layer for the settings of the run."
        )
    rate_B = rate_A if rate_B is None else rate_B
    trainer = _Trainer(settings, layer, rate_A, rate_B)
    rows = [trainer.update() for _ in range(steps)]
    records = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    for name, first in trainer.first.items():
        records[name] = torch.cat([first[None], records[name]])
    return OneLayerRun(settings=settings, width=width, rate_A=rate_A, rate_B=rate_B, gram_B=layer.gram_B, **records)


def largest_output(settings: OneLayerSettings, layer: Layer, rate_A: float, rate_B: float, *, steps: int) -> float:
    """Return the largest size of ``Z_B``, over entries and seeds, after any update, and nothing else.

    Args:
        settings: Of the run.
        layer: The start from `draw_layer`.
        rate_A: Learning rate of ``A``, per step.
        rate_B: Learning rate of ``B``, per step.
        steps: Number of updates.
    """
    trainer, largest = _Trainer(settings, layer, rate_A, rate_B), torch.zeros((), dtype=layer.read.dtype)
    for _ in range(steps):
        trainer.advance()
        largest = torch.maximum(largest, trainer.size().square().mean().sqrt())  # keeps a not-a-number
    return largest.item()


class _Trainer:
    """The state between two updates."""

    def __init__(self, settings: OneLayerSettings, layer: Layer, rate_A: float, rate_B: float) -> None:
        scheme = find_scheme(settings.scheme)
        self.settings, self.layer = settings, layer
        self.A = _Factor.start(settings, rate_A if scheme.trains_A else 0.0, layer.read)
        self.B = _Factor.start(settings, rate_B if scheme.trains_B else 0.0, layer.read)
        self.code = self._code(1.0, self.A.move)
        self.features = self._features(1.0, self.B.move, self.code)
        self.first = {"Z_A": _rms(self.code), "Z_B": self._size(self.features), "features": self.features}

    def advance(self) -> tuple[tuple[float, Tensor], tuple[float, Tensor], dict[str, Tensor]]:
        """Make one update; return how both factors changed, and the gradients."""
        A, B, layer, s = self.A, self.B, self.layer, self.settings.scaling
        residual = (self.features * layer.write).sum(-1) - self.settings.target
        back = B.keep * layer.write[:, :-1] + B.move * layer.write[:, -1:]
        grad_A, grad_B = s * residual[:, None] * back, s * residual[:, None] * self.code
        change_A, change_B = A.step(grad_A), B.step(grad_B)
        A.apply(change_A)
        B.apply(change_B)
        self.code = self._code(A.keep, A.move)
        self.features = self._features(B.keep, B.move, self.code)
        return change_A, change_B, {"grad_A": grad_A, "grad_B": grad_B, "residual": residual}

    def update(self) -> dict[str, Tensor]:
        """Make one update and return all sizes of it."""
        A, B, layer = self.A, self.B, self.layer
        before, code, kept = self.features, self.code, (B.keep, B.move)
        change_A, change_B, seen = self.advance()
        moved_code = self._code(*change_A)
        deltas = (
            self._features(*kept, moved_code),
            self._features(*change_B, code),
            self._features(*change_B, moved_code),
        )
        norm_B, start_B = _norm(layer.gram_B, B.keep, B.move), _own(layer.gram_B).sum(-1)
        along = B.keep * start_B + (B.move * layer.gram_B[:, :-1, -1]).sum(-1)
        return {
            "Z_A": _rms(self.code),
            "Z_B": self.size(),
            "features": self.features,
            **{f"delta{i}": self._size(delta) for i, delta in enumerate(deltas, 1)},
            "step_A": _ratio(_norm(layer.gram_A, *change_A), _norm(layer.gram_A, A.keep, A.move)),
            "step_B": _ratio(_norm(layer.gram_B, *change_B), norm_B),
            "grad_A": seen["grad_A"].abs().amax(-1),
            "grad_B": seen["grad_B"].abs().amax(-1),
            "cos_B": along / (norm_B * start_B.sqrt()),
            "residual": seen["residual"],
            "identity_error": _ratio(self._size(self.features - before - sum(deltas)), self.size()),
        }

    def size(self) -> Tensor:
        """Return the size of ``Z_B`` now, of each seed."""
        return self._size(self.features)

    def _code(self, keep: float, move: Tensor) -> Tensor:
        return keep * self.layer.read[:, :-1] + move * self.layer.read[:, -1:]

    def _features(self, keep: float, move: Tensor, code: Tensor) -> Tensor:
        return self.settings.scaling * torch.cat([keep * code, (move * code).sum(-1, keepdim=True)], dim=-1)

    def _size(self, features: Tensor) -> Tensor:
        return basis_length(self.layer.gram_B, features) / math.sqrt(self.layer.height)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(-1).sqrt()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 0.0, part / whole)


def basis_length(gram: Tensor, coefficients: Tensor) -> Tensor:
    """Return the Euclidean lengths of vectors that are given in a basis.

    Args:
        gram: Products of the basis vectors with each other, ``(S, k, k)``.
        coefficients: The vectors, ``(..., S, k)``.
    """
    square = torch.einsum("...sj,sjk,...sk->...s", coefficients, gram, coefficients)
    return square.clamp_min(0.0).sqrt()


def _own(gram: Tensor) -> Tensor:
    """Return the squared lengths of the components of the start."""
    return gram[:, :-1, :-1].diagonal(dim1=-2, dim2=-1)


def _norm(gram: Tensor, keep: float, move: Tensor) -> Tensor:
    """Return the Frobenius norm of a factor."""
    square = keep**2 * _own(gram) + 2 * keep * move * gram[:, :-1, -1] + move.square() * gram[:, -1:, -1]
    return square.sum(-1).clamp_min(0.0).sqrt()
