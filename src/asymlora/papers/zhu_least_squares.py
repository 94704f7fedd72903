"""Artefact: which factor to train at one linear layer, in closed form. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asymlora.papers import factor_draw_claims, least_squares_claims
from asymlora.papers.least_squares_points import (
    closed_form_points,
    draw_points,
    gap_points,
    gradient_points,
    measure_closed_forms,
    measure_draws,
    measure_gap_formula,
    measure_gradients,
    measure_nested,
    measure_reparameterisation,
    nested_points,
    reparameterisation_points,
)
from asymlora.papers.stated_tests import UNKNOWN
from asymlora.papers.zhu_settings import THEORY
from asymlora.reproduce.artefact import Artefact, MeasuredPart, Part, Scale, Setting
from asymlora.reproduce.evidence import Evidence

WIDTH, PAPER_WIDTH = 256, 1024
"""Width of the layers whose factors are drawn."""


def _parts(width: int) -> tuple[Part, ...]:
    exact = least_squares_claims
    return (
        MeasuredPart(name=exact.FORMS, points=closed_form_points(), measure=measure_closed_forms),
        MeasuredPart(name=exact.GRADIENTS, points=gradient_points(), measure=measure_gradients),
        MeasuredPart(name=factor_draw_claims.DRAWS, points=draw_points(width), measure=measure_draws),
        MeasuredPart(name=exact.GAP, points=gap_points(), measure=measure_gap_formula),
        MeasuredPart(name=exact.MOVED, points=reparameterisation_points(), measure=measure_reparameterisation),
        MeasuredPart(name=exact.NESTED, points=nested_points(), measure=measure_nested),
    )


def small_parts(_: Path) -> tuple[Part, ...]:
    """Return the measurements at width 256. No data are read."""
    return _parts(WIDTH)


def paper_parts(_: Path) -> tuple[Part, ...]:
    """Return the measurements at the width of RoBERTa-large. No data are read."""
    return _parts(PAPER_WIDTH)


def figure(evidence: Evidence) -> Any:
    """Draw the ratio of what both ways of training explain against two predictions of it, a line a kind of layer.

    Args:
        evidence: Records of the artefact.

    Returns:
        The figure; on the grey line the ratio is as predicted.

    Raises:
        MissingEvidenceError: There are no records of draws.
    """
    from asymlora.report.reproduction_figures import Panel, lines_over

    records = evidence.records(factor_draw_claims.DRAWS)
    panels = [
        Panel(title=title, lines=_by_kind(records, key), diagonal="as predicted")
        for title, key in (("outputs over participation ratio", "criterion"), ("prediction at the rank", "predicted"))
    ]
    return lines_over(
        panels, title="What B alone explains over what A alone does, one linear layer", x="predicted III_A / III_B",
        y="III_A / III_B",
    )  # fmt: skip


def _by_kind(records: Sequence[Mapping[str, Any]], predicted: str) -> dict[str, dict[float, list[float]]]:
    lines: dict[str, dict[float, list[float]]] = {}
    for record in sorted(records, key=lambda r: (r["rank"], r[predicted])):
        square, generic = record["inputs"] == record["outputs"], record["wanted"] == factor_draw_claims.GENERIC
        kind = f"update on {record['wanted']}" if not generic else f"rank {record['rank']}" if square else "not square"
        lines.setdefault(kind, {}).setdefault(record[predicted], []).append(record["ratio"])
    return lines


_SETTINGS = (
    Setting(
        what="inputs", paper="mean 0, any covariance (second-hand)",
        ours="variances 1, 1/2, 1/3, ... to a power from 0 to 2, along the axes",
        why="both closed forms see the spectrum and the update's place in it, and nothing else",
    ),
    Setting(
        what="update", paper="any; whether the theorem asks more of it is not known to us",
        ours="independent Gaussian entries, of all inputs or of the half of high or low variance",
        why="a generic one, and one on either side of it",
    ),
    Setting(
        what="frozen factor", paper="uniform on its Stiefel manifold (second-hand)", ours="Gaussian",
        why="its row or column space is uniform, and the closed forms depend on nothing else",
    ),
    Setting(
        what="sides", paper="d to infinity at fixed rank (second-hand)", ours="as the claims say",
        why="no limit is run",
    ),
    Setting(what="figure", paper=UNKNOWN, ours="ratio against the criterion", why="the paper has a theorem alone"),
)  # fmt: skip

ARTEFACT = Artefact(
    name="zhu_least_squares",
    title="Which factor to train at one linear layer: closed forms and theorem 4.3",
    source=THEORY,
    shows="At a linear layer each factor has a closed form while the other is frozen. Over random frozen factors,"
    " training B alone ends lower than training A alone with high probability as the width grows at a fixed rank.",
    small=Scale(
        parts=small_parts,
        minutes=4,
        memory_gib=1.0,
        data=(),
        settings=_SETTINGS,
        cut=("width: 256", "draws: 400 where a share is claimed to be next to 1 or 0, else 100"),
        model="one linear layer, 64 to 256 inputs and outputs",
    ),
    paper=Scale(
        parts=paper_parts,
        minutes=90,
        memory_gib=1.5,
        data=(),
        settings=_SETTINGS,
        model="one linear layer, 256 to 1024 inputs and outputs",
    ),
    claims=(*least_squares_claims.CLAIMS, *factor_draw_claims.CLAIMS),
    figure=figure,
)
"""The artefact."""
