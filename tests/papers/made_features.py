"""Made-up courses of features: what each start does is stated by the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asymlora.papers.student_points import TRACED
from asymlora.reproduce.evidence import Record, SweepEvidence
from asymlora.sweep.run_record import RunRow
from sweep.made_rows import closing, plan, tuning


@dataclass(frozen=True, kw_only=True)
class Course:
    """What the factors of one start do.

    Attributes:
        growth: Of ``Z_A`` from its first size other than zero to the end.
        of_B: ``delta2`` over ``delta1`` in every step but the first.
        joint: ``delta3`` over ``delta1``, times the step.
        moved: Way of the factor that starts at random over its start.
        end: ``Z_A`` at the end.
    """

    growth: float
    of_B: float
    joint: float
    moved: float
    end: float


EFFICIENT = Course(growth=4.0, of_B=0.8, joint=0.9, moved=1.5, end=2.0)
"""Init[A] as claimed."""
ONE_SIDED = Course(growth=3.0, of_B=0.03, joint=0.02, moved=0.02, end=1.0)
"""Init[B] as claimed."""


def courses(arm: str, course: Course, steps: Sequence[int], *, seed: int) -> dict[str, list[float | None]]:
    """Return sizes at some steps, the first of which moves one factor; seeds differ by a few per cent."""
    alone = "delta2" if arm == "init_a" else "delta1"
    off = 1 + 0.01 * seed
    found: dict[str, list[float | None]] = {"step": list(steps), "Z_A": [], "Z_B": []}
    found |= {name: [] for name in ("delta1", "delta2", "delta3")}
    for place, step in enumerate(steps):
        share = place / (len(steps) - 1)
        found["Z_A"].append(off * course.end * course.growth ** (share - 1))
        found["Z_B"].append(off * share)
        parts = {"delta1": 1.0, "delta2": course.of_B * off, "delta3": course.joint * off / step}
        for name, size in parts.items():
            found[name].append(size if place else float(name == alone))
    return found


def traces(widths: Sequence[int], arms: Mapping[str, Mapping[int, Course]], *, seeds: int = 6) -> list[Record]:
    """Return the records of `asymlora.papers.student_points.measure_trace`; each begins with the start, step 0."""
    return [
        _trace(n, arm, by_width[n], seed) for n in widths for arm, by_width in arms.items() for seed in range(seeds)
    ]


def _trace(width: int, arm: str, course: Course, seed: int) -> Record:
    found: dict[str, Any] = courses(arm, course, TRACED, seed=seed)
    start = found["Z_A"][0] if arm == "init_a" else 0.0
    first = {"step": 0, "Z_A": start, "Z_B": 0.0, "delta1": None, "delta2": None, "delta3": None}
    letter = "A" if arm == "init_a" else "B"
    moved = {"moved_A": None, "moved_B": None, f"moved_{letter}": course.moved * (1 + 0.01 * seed)}
    known = {"width": width, "scheme": arm, "seed": seed, "log2_rate": -6, "interior": True}
    return {**known, **{name: [first[name], *values] for name, values in found.items()}, **moved}


def swept(
    arms: Mapping[str, Course], *, seeds: int = 6, steps: Sequence[int] = (1, 2, 3, 20, 40, 60, 80)
) -> SweepEvidence:
    """Return what a sweep would leave whose best rate is 1e-3, with the courses of its closing runs."""
    rows: list[RunRow] = []
    for arm, course in arms.items():
        rows += tuning(arm, {1e-4: 0.7, 1e-3: 0.9, 1e-2: 0.6})
        letter = "A" if arm == "init_a" else "B"
        for seed in range(seeds):
            dynamics: dict[str, Any] = courses(arm, course, steps, seed=seed)
            dynamics |= {"moved_A": [None] * len(steps), "moved_B": [None] * len(steps)}
            dynamics[f"moved_{letter}"] = [course.moved * (1 + 0.01 * seed)] * len(steps)
            (row,) = closing(arm, 1e-3, [0.9], dynamics=dynamics)
            rows.append(RunRow.from_dict({**row.to_dict(), "seed": seed, "id": f"{arm} closing {seed}"}))
    return SweepEvidence(plan=plan(list(arms), closing_seeds=list(range(seeds))), rows=rows)
