"""What hayou_toy and hayou_features measure on the teacher-student model: losses over rates, and features over steps.

Each function takes one point of a `asymlora.reproduce.artefact.MeasuredPart` and gives plain records. Torch is imported
in the functions, as artefacts are listed without it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asymlora.papers.hayou_settings import TOY_SEEDS, TOY_TUNING_SEEDS
from asymlora.reproduce.evidence import Record

if TYPE_CHECKING:
    from torch import Tensor

    from asymlora.theory.teacher_student import Data, FrozenPath, Student, TeacherStudent

Point = Mapping[str, Any]
SCHEMES = ("init_a", "init_b")
TRACED = (1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100)
"""Steps at which features are measured; of 100 steps the last third begins near 63."""
MOST_GROWTH = 4
"""Octaves by which a grid of rates may grow beyond either end."""


def rates_around(width: int, count: int) -> list[int]:
    """Return log2 of the rates that are tried first at a width.

    The middle one falls by 1.5 octaves from one width to four times it, between the powers -1/2 and -1 of the theory,
    from 2^-5 at 128 (papers/initialization.md, section 5: the argmin of one seed).

    Args:
        width: Width of the student.
        count: How many, an odd number.

    Example:
        >>> rates_around(128, 3), rates_around(2048, 3)
        ([-6, -5, -4], [-9, -8, -7])
    """
    middle = round(-5 - 0.75 * math.log2(width / 128))
    return list(range(middle - count // 2, middle + count // 2 + 1))


def sweep_points(widths: Sequence[int], seeds: Sequence[int], *, rates: int = 7) -> tuple[Mapping[str, Any], ...]:
    """Return one point for every width, start and seed, each with its grid of rates.

    Args:
        widths: Widths of the student.
        seeds: Seeds of data, teacher and student.
        rates: Rates an octave apart.
    """
    return tuple(
        {"width": n, "scheme": scheme, "seed": seed, "log2_rates": rates_around(n, rates), "growth": MOST_GROWTH}
        for n in widths
        for seed in seeds
        for scheme in SCHEMES
    )


def measure_sweep(point: Point) -> list[Record]:
    """Train one student at each rate, and beyond either end while the best rate is the first or the last one tried.

    Args:
        point: ``width``, ``scheme``, ``seed``, ``log2_rates``, ``growth`` (octaves beyond either end; without it none);
            further fields are settings of `asymlora.theory.teacher_student.TeacherStudent`.

    Returns:
        One record a rate, rising; a loss that is not finite is None.
    """
    records: list[Record] = []

    def losses(rates: Sequence[int]) -> dict[int, float]:
        found = list(_losses(point, rates, point["seed"]))
        records.extend(found)
        return {record["log2_rate"]: _or_infinite(record["train_loss"]) for record in found}

    _best(losses, point["log2_rates"], growth=point.get("growth", 0))
    return sorted(records, key=lambda record: record["log2_rate"])


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None else loss


def _best(losses: Callable[[Sequence[int]], dict[int, float]], grid: Sequence[int], *, growth: int) -> tuple[int, bool]:
    """Return the rate with the smallest loss, the grid growing while it is at an end, and whether it is interior."""
    found, wanted = dict[int, float](), list(grid)
    first, last = wanted[0] - growth, wanted[-1] + growth
    while True:
        found |= losses(wanted)
        best = min(found, key=found.__getitem__)
        beyond = {min(found): best - 1, max(found): best + 1}.get(best)
        if beyond is None or not first <= beyond <= last or found[best] == math.inf:
            return best, beyond is None
        wanted = [beyond]


def _losses(point: Point, log2_rates: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    from asymlora.theory.teacher_student import draw_data, draw_student, train

    settings, scheme = _settings(point), point["scheme"]
    data, student = draw_data(settings, seed), draw_student(settings, point["width"], scheme, seed)
    for log2_rate in log2_rates:
        found = train(settings, data, student, scheme=scheme, rate=2.0**log2_rate, seed=seed)
        values = {name: finite(getattr(found, name)) for name in ("train_loss", "test_loss", "Z_A", "Z_B")}
        yield {"width": point["width"], "scheme": scheme, "seed": seed, "log2_rate": log2_rate, **values}


# Features over the steps ---------------------------------------------------------------------------------------------


def trace_points(widths: Sequence[int]) -> tuple[Mapping[str, Any], ...]:
    """Return one point for every width and start: its rate is chosen on some seeds, its features measured on others.

    Args:
        widths: Widths of the student.
    """
    seeds = {"tuning_seeds": list(TOY_TUNING_SEEDS), "closing_seeds": list(TOY_SEEDS)}
    return tuple(
        {"width": n, "scheme": scheme, "log2_rates": rates_around(n, 5), **seeds} for n in widths for scheme in SCHEMES
    )


def measure_trace(point: Point) -> list[Record]:
    """Choose the rate of one start at one width, then train fresh seeds at it and measure features at `TRACED` steps.

    Args:
        point: ``width``, ``scheme``, ``log2_rates``, ``tuning_seeds``, ``closing_seeds``; further fields are settings
            of `asymlora.theory.teacher_student.TeacherStudent`.

    Returns:
        One record a closing seed: ``step`` (0 is the start) and, at each, mean sizes over the training points of
        ``Z_A``, ``Z_B`` and the parts of the step's change of ``Z_B``; at the end the losses and how far each factor
        is from its start over the norm of that (None for a start of zeros).
    """
    chosen, interior = tuned_rate(point)
    known = {"width": point["width"], "scheme": point["scheme"], "log2_rate": chosen, "interior": interior}
    return [{**known, "seed": seed, **_traced(point, 2.0**chosen, seed)} for seed in point["closing_seeds"]]


def tuned_rate(point: Point) -> tuple[int, bool]:
    """Return log2 of the rate with the smallest mean training loss over the tuning seeds, and whether it is interior.

    While the best rate is the first or the last one tried, the next one beyond it is tried, up to `MOST_GROWTH` rates.

    Args:
        point: As for `measure_trace`.
    """

    def losses(rates: Sequence[int]) -> dict[int, float]:
        found = [record for seed in point["tuning_seeds"] for record in _losses(point, rates, seed)]
        return {
            rate: statistics.fmean(_or_infinite(r["train_loss"]) for r in found if r["log2_rate"] == rate)
            for rate in rates
        }

    return _best(losses, point["log2_rates"], growth=MOST_GROWTH)


def _traced(point: Point, rate: float, seed: int) -> dict[str, Any]:
    from asymlora.theory.teacher_student import draw_data, draw_student, train

    settings, scheme = _settings(point), point["scheme"]
    data, student = draw_data(settings, seed), draw_student(settings, point["width"], scheme, seed)
    trace = Trace(frozen_path(settings, data, student), student)
    with listening(trace):
        found = train(settings, data, student, scheme=scheme, rate=rate, seed=seed)
    courses = {name: [finite(row[name]) for row in trace.rows] for name in trace.rows[0]}
    starts = {"moved_A": (found.A, student.A), "moved_B": (found.B, student.B)}
    moved = {name: finite(_moved(now, start)) for name, (now, start) in starts.items()}
    return {**courses, "train_loss": finite(found.train_loss), "test_loss": finite(found.test_loss), **moved}


def frozen_path(settings: TeacherStudent, data: Data, student: Student) -> FrozenPath:
    """Return what the features of the training points are computed from.

    Args:
        settings: Of the run.
        data: Its points.
        student: Its frozen weights.
    """
    from asymlora.theory.teacher_student import FrozenPath

    return FrozenPath(student, data.x, data.y, activation=settings.activation, scaling=settings.scaling)


class Trace:
    """What the features do in the steps of one run: mean sizes over the training points.

    Args:
        path: The frozen part of the student.
        student: Its start.

    Attributes:
        step: Steps so far.
        rows: Sizes at the start and at the steps of `TRACED`.
    """

    def __init__(self, path: FrozenPath, student: Student) -> None:
        self.path, self.step = path, 0
        self.before = (student.A, student.B)
        self.rows: list[dict[str, Any]] = [self._sizes(student.A, student.B) | dict.fromkeys(_PARTS)]

    def before_step(self, optimizer: Any, *_: object) -> None:
        """Keep both factors, where the step is one to be measured."""
        self.step += 1
        if self.step in TRACED:
            A, B = optimizer.param_groups[0]["params"]
            self.before = (A.clone(), B.clone())

    def after_step(self, optimizer: Any, *_: object) -> None:
        """Measure the step."""
        if self.step not in TRACED:
            return
        (A, B), (A_before, B_before) = optimizer.param_groups[0]["params"], self.before
        parts = ((A - A_before, B_before), (A_before, B - B_before), (A - A_before, B - B_before))
        deltas = {name: self._sizes(*pair)["Z_B"] for name, pair in zip(_PARTS, parts, strict=True)}
        self.rows.append(self._sizes(A, B) | deltas)

    def _sizes(self, A: Tensor, B: Tensor) -> dict[str, Any]:
        Z_A, Z_B = self.path.features(A, B)
        return {"step": self.step, "Z_A": Z_A.abs().mean().item(), "Z_B": Z_B.abs().mean().item()}


_PARTS = ("delta1", "delta2", "delta3")


@contextmanager
def listening(trace: Trace) -> Iterator[None]:
    """Let a trace see every step of torch's optimizers in between.

    Args:
        trace: Of the run.
    """
    # The training loop is that of the theory, seen through the hooks that torch has for every optimizer.
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    hooks = [
        register_optimizer_step_pre_hook(trace.before_step),
        register_optimizer_step_post_hook(trace.after_step),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _moved(now: Tensor, start: Tensor) -> float | None:
    norm = start.norm().item()
    return (now - start).norm().item() / norm if norm else None


def _settings(point: Point) -> TeacherStudent:
    from asymlora.theory.teacher_student import TeacherStudent

    of_point = ("width", "scheme", "seed", "log2_rates", "growth", "tuning_seeds", "closing_seeds")
    return TeacherStudent(**{name: value for name, value in point.items() if name not in of_point})


def finite(value: float | None) -> float | None:
    """Return a number as JSON takes it: None for what is not finite."""
    return value if value is not None and math.isfinite(value) else None
