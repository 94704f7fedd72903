"""The teacher-student model in which the two starts of LoRA are compared: a small network with one adapted layer.

``N`` points, ``d`` inputs, ``n`` width, ``r`` rank. For points in rows, with ``phi`` the activation,

    Y_in = X W_in^T,    Y_h = Y_in + phi(Y_in) (W_h + s B A)^T,    f = phi(Y_h) W_out^T.

Only ``A`` and ``B`` are trained, so ``P = phi(Y_in)`` and ``H = Y_in + P W_h^T`` are computed once, and a step costs
``O(N n r)``. Whatever the paper leaves open is a field of `TeacherStudent`, and stands in every record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from asymlora.errors import SpecError
from asymlora.schema import refuse_values
from asymlora.theory.width_scaling import SCHEMES, Scheme, find_scheme

Activation = Literal["relu", "tanh", "identity"]


class _Function(NamedTuple):
    """An activation and its derivative, both of the value before it."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


ACTIVATIONS: Mapping[str, _Function] = {
    "relu": _Function(functional.relu, lambda y: (y > 0).to(y.dtype)),
    "tanh": _Function(torch.tanh, lambda y: 1 - torch.tanh(y).square()),
    "identity": _Function(lambda y: y, torch.ones_like),
}
"""Activations of teacher and student by name."""


@dataclass(frozen=True, kw_only=True)
class TeacherStudent:
    """All that a run depends on but its width, its start, its learning rate and its seed.

    The defaults are recalled from the paper, or ours where it is not known what the paper used (*unknown*).

    Attributes:
        rank: Rank of the student, ``r``.
        scaling: ``s``, the whole factor on ``B A``.
        inputs: ``d``.
        train_points: Number of training points.
        test_points: Number of test points.
        teacher_width: Width of the teacher.
        teacher_rank: Rank of the teacher, whose ``W_h`` is zero.
        hidden: Frozen ``W_h`` of the student: ``zero``, or ``random`` of variance ``1/n`` (*unknown*).
        activation: A key of `ACTIVATIONS`.
        steps: Number of updates (*unknown*).
        batch_size: Points of one update, drawn anew each epoch; None for all of them (*unknown*).
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
        epsilon: AdamW's epsilon (*unknown*).
        weight_decay: AdamW's weight decay (*unknown*).
        fixed_teacher: Whether all seeds share the data and the teacher of seed 0 (*unknown*).
        dtype: ``float32`` or ``float64`` (*unknown*).
    """

    rank: int = 4
    scaling: float = 1.0
    inputs: int = 5
    train_points: int = 1000
    test_points: int = 100
    teacher_width: int = 1000
    teacher_rank: int = 20
    hidden: Literal["zero", "random"] = "zero"
    activation: Activation = "relu"
    steps: int = 100
    batch_size: int | None = None
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    fixed_teacher: bool = False
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        """Check the values."""
        counts = ("rank", "inputs", "train_points", "test_points", "teacher_width", "teacher_rank", "steps")
        problems = [
            f"{name}={getattr(self, name)!r} must be a whole number of at least 1"
            for name in counts
            if getattr(self, name) < 1
        ]
        if self.batch_size is not None and not 1 <= self.batch_size <= self.train_points:
            problems.append(
                f"batch_size={self.batch_size!r} must be None or 1..{self.train_points}, the training points"
            )
        for name, allowed in (
            ("hidden", ("zero", "random")),
            ("activation", tuple(ACTIVATIONS)),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in allowed:
                problems.append(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        problems += [
            f"{name}={getattr(self, name)!r} must be at least 0 and less than {below}"
            for name, below in (("beta1", 1), ("beta2", 1), ("epsilon", math.inf), ("weight_decay", math.inf))
            if not 0 <= getattr(self, name) < below
        ]
        refuse_values(problems)


class Data(NamedTuple):
    """Points and the teacher's answers: ``(N, d)`` and ``(N,)``, for training and for testing."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


class Student(NamedTuple):
    """The weights: ``(n, d)``, ``(n, n)`` or None for zero, ``(1, n)``, ``(r, n)`` and ``(n, r)``."""

    W_in: Tensor
    W_h: Tensor | None
    W_out: Tensor
    A: Tensor
    B: Tensor

    def __call__(self, x: Tensor, *, activation: Activation, scaling: float) -> Tensor:
        """Return the outputs, ``(N,)``, by the whole formula; training uses `FrozenPath`, which costs less."""
        phi = ACTIVATIONS[activation].value
        inner = x @ self.W_in.T
        update = scaling * self.B @ self.A
        hidden = inner + phi(inner) @ (update if self.W_h is None else self.W_h + update).T
        return (phi(hidden) @ self.W_out.T).squeeze(-1)


def draw_data(settings: TeacherStudent, seed: int) -> Data:
    """Draw points from a standard normal and let a random teacher answer them.

    Args:
        settings: Sizes of the data and of the teacher.
        seed: The seed of both; every width, start and rate of one seed sees the same data.
    """
    generator = torch.Generator().manual_seed(2**32 + (0 if settings.fixed_teacher else seed))
    dtype = getattr(torch, settings.dtype)
    count = settings.train_points + settings.test_points
    x = torch.randn(count, settings.inputs, generator=generator, dtype=torch.float64)
    # The teacher is W_h = 0 and both factors random, with the variances of their fan-in.
    both = Scheme(A=SCHEMES["init_a"].A, B=SCHEMES["init_b"].B)
    shape = replace(settings, rank=settings.teacher_rank, hidden="zero", dtype="float64")
    teacher = _weights(shape, settings.teacher_width, both, generator)
    y = teacher(x, activation=settings.activation, scaling=1.0)
    x, y = x.to(dtype), y.to(dtype)
    return Data(
        x[: settings.train_points], y[: settings.train_points], x[-settings.test_points :], y[-settings.test_points :]
    )


def draw_student(settings: TeacherStudent, width: int, scheme: Scheme | str, seed: int) -> Student:
    """Draw the frozen weights and the start of the factors, each of the variance of its fan-in.

    Args:
        settings: Sizes of the student.
        width: ``n``.
        scheme: How the factors start: a key of `asymlora.theory.width_scaling.SCHEMES` or a scheme of one's own.
        seed: The seed; schemes of one seed and width share the frozen weights.

    Raises:
        SpecError: ``width`` is below 1.
    """
    if width < 1:
        raise SpecError(f"width={width} must be at least 1: it is how many hidden features the student has.")
    return _weights(settings, width, find_scheme(scheme), torch.Generator().manual_seed(seed * 2**24 + width))


def _weights(settings: TeacherStudent, width: int, scheme: Scheme, generator: torch.Generator) -> Student:
    dtype = getattr(torch, settings.dtype)

    def normal(rows: int, columns: int, std: float) -> Tensor:
        return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * std).to(dtype)

    # In the order of the draws: what comes before W_h must not depend on whether there is one.
    return Student(
        W_in=normal(width, settings.inputs, settings.inputs**-0.5),
        W_out=normal(1, width, width**-0.5),
        A=normal(settings.rank, width, scheme.A.std(width, settings.rank)),
        B=normal(width, settings.rank, scheme.B.std(width, settings.rank)),
        W_h=normal(width, width, width**-0.5) if settings.hidden == "random" else None,
    )


class Pass(NamedTuple):
    """What one evaluation of the student gives: the loss, and the gradients of both factors if asked for."""

    loss: Tensor
    grad_A: Tensor | None
    grad_B: Tensor | None


class FrozenPath:
    """All of a student that does not move, computed once for some points.

    Args:
        student: Its frozen weights.
        x: Points, ``(N, d)``.
        y: What the student should answer, ``(N,)``.
        activation: A key of `ACTIVATIONS`.
        scaling: ``s``.
    """

    def __init__(self, student: Student, x: Tensor, y: Tensor, *, activation: Activation, scaling: float) -> None:
        self.phi, self.scaling, self.y, self.W_out = ACTIVATIONS[activation], scaling, y, student.W_out
        inner = x @ student.W_in.T
        self.P = self.phi.value(inner)
        self.H = inner if student.W_h is None else inner + self.P @ student.W_h.T

    def evaluate(self, A: Tensor, B: Tensor, *, rows: Tensor | None = None, wanted: str = "AB") -> Pass:
        """Return the mean squared error and its gradients.

        Args:
            A: Down factor, ``(r, n)``.
            B: Up factor, ``(n, r)``.
            rows: Indices of the points of a batch; None for all.
            wanted: The factors whose gradient is computed: ``""``, ``"A"``, ``"B"`` or ``"AB"``.

        Returns:
            The loss and the gradients.
        """
        features, base, y = (part if rows is None else part[rows] for part in (self.P, self.H, self.y))
        Z_A = features @ A.T
        hidden = torch.addmm(base, Z_A, B.T, alpha=self.scaling)
        residual = (self.phi.value(hidden) @ self.W_out.T).squeeze(-1) - y
        loss = residual.square().mean()
        if not wanted:
            return Pass(loss, None, None)
        # The gradient of the hidden features is diag(back) slope diag(W_out): the diagonals act on the thin factors.
        slope, back = self.phi.slope(hidden), (2 * self.scaling / len(y)) * residual[:, None]
        grad_A = (back * (slope @ (self.W_out.T * B))).T @ features if "A" in wanted else None
        grad_B = self.W_out.T * (slope.T @ (back * Z_A)) if "B" in wanted else None
        return Pass(loss, grad_A, grad_B)

    def features(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``Z_A = A phi(Y_in)``, ``(N, r)``, and ``Z_B = s B Z_A``, ``(N, n)``."""
        Z_A = self.P @ A.T
        return Z_A, self.scaling * Z_A @ B.T


class Outcome(NamedTuple):
    """How a run ended: mean squared errors, mean sizes of ``Z_A`` and ``Z_B`` over the training points, and factors."""

    train_loss: float
    test_loss: float
    Z_A: float
    Z_B: float
    A: Tensor
    B: Tensor


def train(
    settings: TeacherStudent, data: Data, student: Student, *, scheme: Scheme | str, rate: float, seed: int
) -> Outcome:
    """Train the factors of a student with AdamW.

    Args:
        settings: Of the run.
        data: From `draw_data`.
        student: From `draw_student`; it is left as it is.
        scheme: Says which factors are trained.
        rate: Learning rate, per step.
        seed: Of the batches; only used if there are any.

    Returns:
        The losses, infinite if the run diverged, with the factors at the end.

    Raises:
        SpecError: The scheme trains no factor.
    """
    scheme = find_scheme(scheme)
    wanted = "A" * scheme.trains_A + "B" * scheme.trains_B
    if not wanted:
        raise SpecError("the scheme trains neither A nor B: set trains_A or trains_B.")
    known = {"activation": settings.activation, "scaling": settings.scaling}
    path = FrozenPath(student, data.x, data.y, **known)
    A, B = student.A.clone(), student.B.clone()
    optimizer = torch.optim.AdamW(
        [factor for name, factor in (("A", A), ("B", B)) if name in wanted],
        lr=rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    batches = _batches(settings, seed)
    for _ in range(settings.steps):
        found = path.evaluate(A, B, rows=next(batches), wanted=wanted)
        A.grad, B.grad = found.grad_A, found.grad_B
        optimizer.step()
    last = path.evaluate(A, B, wanted="")
    test = FrozenPath(student, data.test_x, data.test_y, **known).evaluate(A, B, wanted="")
    losses = [loss if math.isfinite(loss) else math.inf for loss in (last.loss.item(), test.loss.item())]
    sizes = [part.abs().mean().item() for part in path.features(A, B)]
    return Outcome(losses[0], losses[1], sizes[0], sizes[1], A, B)


def _batches(settings: TeacherStudent, seed: int) -> Iterator[Tensor | None]:
    generator = torch.Generator().manual_seed(2**33 + seed)
    while True:
        if settings.batch_size is None:
            yield None
            continue
        # A last, smaller batch of an epoch is used too.
        yield from torch.randperm(settings.train_points, generator=generator).split(settings.batch_size)


def sweep(
    settings: TeacherStudent,
    *,
    widths: Sequence[int],
    schemes: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    progress: Callable[[int, int, Mapping[str, Any]], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train every combination, and give one flat record of each as soon as it is there.

    Args:
        settings: Of all runs.
        widths: Widths of the student.
        schemes: Keys of `asymlora.theory.width_scaling.SCHEMES`.
        rates: Learning rates, per step.
        seeds: Seeds; schemes, rates and widths of one seed see the same data.
        progress: Called after each run with the number of runs made, that of all, and the record.

    Yields:
        ``width``, ``scheme``, ``rate``, ``seed``, ``train_loss``, ``test_loss``, ``Z_A``, ``Z_B`` and all settings.

    Example:
        >>> small = TeacherStudent(train_points=20, test_points=5, teacher_width=16, steps=2)
        >>> records = sweep(small, widths=[8], schemes=["init_a"], rates=[1e-2], seeds=[0, 1])
        >>> [(record["seed"], record["weight_decay"]) for record in records]
        [(0, 0.0), (1, 0.0)]
    """
    total, made = len(widths) * len(schemes) * len(rates) * len(seeds), 0
    for width in widths:
        for seed in seeds:
            data = draw_data(settings, seed)
            for scheme in schemes:
                student = draw_student(settings, width, scheme, seed)
                for rate in rates:
                    outcome = train(settings, data, student, scheme=scheme, rate=rate, seed=seed)
                    measured = {name: getattr(outcome, name) for name in ("train_loss", "test_loss", "Z_A", "Z_B")}
                    chosen = {"width": width, "scheme": scheme, "rate": rate, "seed": seed}
                    record = chosen | measured | asdict(settings)
                    made += 1
                    if progress is not None:
                        progress(made, total, record)
                    yield record
