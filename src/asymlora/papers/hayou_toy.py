"""The models of the paper's analysis: best and largest stable learning rate against the width. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.papers import one_layer_claims, start_claims, student_claims
from asymlora.papers.hayou_settings import EXPERIMENTS
from asymlora.papers.one_layer_points import (
    FIRST_SEEDS,
    MORE_SEEDS,
    draw_points,
    exponent_points,
    freezing_points,
    measure_draws,
    measure_exponents,
    measure_freezing,
    measure_ranks,
    measure_stable_rates,
    measure_start,
    rank_points,
    stable_points,
    start_points,
)
from asymlora.papers.stated_tests import UNKNOWN
from asymlora.papers.student_points import measure_sweep, sweep_points
from asymlora.papers.student_records import NAMES, StudentRuns
from asymlora.reproduce.artefact import Artefact, MeasuredPart, Part, Scale, Setting
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError

if TYPE_CHECKING:
    from asymlora.report.reproduction_figures import Panel

WIDTHS, PAPER_WIDTHS = (128, 512, 2048, 4096), (128, 256, 512, 1024, 2048, 4096, 8192)
PAPER_RATES = 9


def _one_layer() -> tuple[Part, ...]:
    stable = MeasuredPart(
        name=one_layer_claims.STABLE, points=stable_points(FIRST_SEEDS), measure=measure_stable_rates,
        second=stable_points(MORE_SEEDS),
    )  # fmt: skip
    return (
        MeasuredPart(name=start_claims.START, points=start_points(), measure=measure_start),
        MeasuredPart(name=start_claims.DRAWS, points=draw_points(), measure=measure_draws),
        MeasuredPart(name=one_layer_claims.EXPONENTS, points=exponent_points(), measure=measure_exponents),
        stable,
        MeasuredPart(name=one_layer_claims.FREEZING, points=freezing_points(), measure=measure_freezing),
        MeasuredPart(name=one_layer_claims.RANKS, points=rank_points(), measure=measure_ranks),
    )


def _small(_: Path) -> tuple[Part, ...]:
    students = MeasuredPart(
        name=student_claims.STUDENTS,
        points=sweep_points(WIDTHS, FIRST_SEEDS),
        measure=measure_sweep,
        # The claims of the abstract are judged at the largest width.
        second=sweep_points(WIDTHS[-1:], MORE_SEEDS),
    )
    return (*_one_layer(), students)


def _paper(_: Path) -> tuple[Part, ...]:
    points = sweep_points(PAPER_WIDTHS, (*FIRST_SEEDS, *MORE_SEEDS), rates=PAPER_RATES)
    return (*_one_layer(), MeasuredPart(name=student_claims.STUDENTS, points=points, measure=measure_sweep))


# The figure ----------------------------------------------------------------------------------------------------------


def figure(evidence: Evidence) -> Any:
    """Draw the largest stable and the best learning rate against the width, with the slopes of the theory.

    Args:
        evidence: Records of the artefact.

    Returns:
        The figure; a panel without records is left out.

    Raises:
        MissingEvidenceError: There are no records of either.
    """
    from asymlora.report.reproduction_figures import lines_over

    panels: list[Panel] = []
    for draw in (_stable_panel, _best_panel):
        try:
            panels.append(draw(evidence))
        except MissingEvidenceError:
            continue
    if not panels:
        raise MissingEvidenceError(f"{one_layer_claims.STABLE} and {student_claims.STUDENTS}")
    return lines_over(
        panels, title="Learning rates against the width: each start, six seeds or more", x="width n", y="learning rate"
    )


def _panel(title: str, rows: Sequence[tuple[str, int, float]]) -> Panel:
    """Return the panel of (start, width, log2 of a rate)."""
    from asymlora.report.reproduction_figures import Panel

    lines: dict[str, dict[float, list[float]]] = {}
    for scheme, width, log2_rate in rows:
        lines.setdefault(NAMES[scheme], {}).setdefault(width, []).append(2.0**log2_rate)
    return Panel(title=title, lines=lines, guides={"n^-1/2": -0.5, "n^-1": -1.0})


def _stable_panel(evidence: Evidence) -> Panel:
    records = evidence.records(one_layer_claims.STABLE)
    rows = [(r["scheme"], r["width"], r["log2_rate"]) for r in records]
    return _panel("largest stable rate, one layer", rows)


def _best_panel(evidence: Evidence) -> Panel:
    runs = StudentRuns(evidence.records(student_claims.STUDENTS))
    rows = [
        (scheme, width, rate)
        for width in runs.widths
        for scheme in ("init_a", "init_b")
        for rate in runs.best_rates(width, scheme).values()
    ]
    if not rows:
        raise MissingEvidenceError(student_claims.STUDENTS)
    return _panel("best rate, teacher and student", rows)


# The artefact --------------------------------------------------------------------------------------------------------

_SHARED = (
    Setting(
        what="teacher and student",
        paper="one adapted layer, ReLU; 5 inputs, teacher of width 1000 and rank 20, student of rank 4 (recalled); 1000"
        " training and 100 test points (second-hand)",
        ours="the same",
        why="recalled, taken as a default",
    ),
    Setting(what="steps", paper=UNKNOWN, ours="100", why="unknown in the paper"),
    Setting(what="batch", paper=UNKNOWN, ours="all points", why="unknown in the paper"),
    Setting(
        what="optimizer of the student", paper="Adam or AdamW, betas 0.9 and 0.99 (recalled); weight decay unknown",
        ours="AdamW, betas 0.9 and 0.99, epsilon 1e-8, no decay", why="recalled, or unknown",
    ),
    Setting(what="frozen W_h of the student", paper=UNKNOWN, ours="zero", why="unknown in the paper"),
    Setting(
        what="draws", paper=UNKNOWN, ours="Gaussian of variance 1 over the fan-in, each seed with data and teacher of"
        " its own; float32; the seeds 300 to 305, then to 309, which no earlier record has",
        why="unknown in the paper",
    ),
    Setting(
        what="best rate", paper="the smallest final training loss (recalled); ties and seeds unknown",
        ours="a parabola through it and its neighbours for each seed; a seed's loss and features are quoted at the rate"
        " that is best over the other seeds",
        why="a run that chooses its own rate looks too good, and an argmin on a coarse grid is a poor estimator",
    ),
    Setting(
        what="one layer", paper="the setting of the analysis: SignSGD, one sample (second-hand)",
        ours="rank 4, standard normal input, read-out of variance 1/n^2, target 1e9 unless a claim says otherwise",
        why="a far target keeps the sign of the residual, without which the exponents do not hold",
    ),
)  # fmt: skip
_SMALL_SETTINGS = (
    Setting(
        what="widths of the student", paper="128 to 8192 by octaves (recalled)", ours="128, 512, 2048, 4096",
        why="17 minutes of two cores with both looks",
    ),
    Setting(
        what="learning rates", paper="powers of two or log-spaced (recalled)",
        ours="7 at each width, an octave apart, around 2^-5 (n/128)^-0.75, and beyond either end by octaves until the"
        " best one of a seed is interior, by four at most", why="17 minutes of two cores with both looks",
    ),
)  # fmt: skip
_PAPER_SETTINGS = (
    Setting(
        what="learning rates", paper="powers of two or log-spaced (recalled)",
        ours=f"{PAPER_RATES} at each width, an octave apart, around 2^-5 (n/128)^-0.75, growing as at the small scale",
        why="unknown in the paper",
    ),
)  # fmt: skip

ARTEFACT = Artefact(
    name="hayou_toy",
    title="Best and largest stable learning rate against the width",
    source=EXPERIMENTS,
    shows="The largest stable learning rate falls as n^-1/2 under Init[A] and as n^-1 under Init[B]. In a"
    " teacher-student model the best rate follows, with a gap that grows with the width, and Init[A] ends with larger"
    " |Z_A| (hayou_features) and a lower training loss.",
    small=Scale(
        parts=_small,
        minutes=17,
        memory_gib=1.0,
        data=(),
        settings=(*_SHARED, *_SMALL_SETTINGS),
        cut=("widths 256, 1024 and 8192 of the teacher-student model", "learning rates: 7 of 9 at each width"),
        model="one linear layer, 2^7 to 2^13; teacher and student of width 128 to 4096",
    ),
    paper=Scale(
        parts=_paper,
        minutes=90,
        memory_gib=1.5,
        data=(),
        settings=(*_SHARED, *_PAPER_SETTINGS),
        model="one linear layer, 2^7 to 2^13; teacher and student of width 128 to 8192, ten seeds",
    ),
    claims=(*start_claims.CLAIMS, *one_layer_claims.CLAIMS, *student_claims.CLAIMS),
    figure=figure,
)
