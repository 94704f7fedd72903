"""What features and factors do in training: in the toy over widths, in an encoder, in a decoder. No torch in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.papers.feature_claims import CLAIMS, DECODER, ENCODER, STUDENTS
from asymlora.papers.hayou_settings import (
    EXPERIMENTS,
    INIT_ARMS,
    LEARNING_RATES,
    OPTIMIZER,
    SCALING,
    START,
    STEPS,
    TARGETS,
)
from asymlora.papers.language_sweeps import small_recipe, sweep_part
from asymlora.papers.models_and_data import MINILM_NAME, SMOLLM2, SMOLLM2_NAME, TREC6, WIKITEXT2_VALID
from asymlora.papers.paper_recipes import paper_recipe
from asymlora.papers.student_points import measure_trace, trace_points
from asymlora.papers.student_records import NAMES
from asymlora.papers.text_sweeps import PAPER_SEEDS, PAPER_SETTINGS, TREC6_SET, glue_data, paper_plan, small_plan
from asymlora.reproduce.artefact import (
    FIRST_SEEDS,
    Artefact,
    DataSet,
    MeasuredPart,
    Part,
    Scale,
    Setting,
    SweepPart,
)
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.sweep.axes import parse_rates
from asymlora.sweep.grid import SweepPlan

if TYPE_CHECKING:
    from asymlora.report.reproduction_figures import Panel

WIDTHS, PAPER_WIDTHS = (128, 512, 2048, 4096), (128, 256, 512, 1024, 2048, 4096, 8192)
WIKITEXT2_ON_HUB = DataSet(name="WikiText-2, raw", source="hub Salesforce/wikitext, configuration wikitext-2-raw-v1")
ENCODER_RATES, DECODER_RATES, PAPER_DECODER_RATES = "3.16e-4..3.16e-2:2", "3.16e-4..3.16e-3:2", "1e-5..1e-2"
DECODER_SCORED = 12
"""Blocks of a part that are scored: six take about as long as a step."""
MEASUREMENTS = 8
"""Equal stretches of a run of an encoder, a measurement at the end of each; the first three steps are measured besides.
Of a decoder half as many: there one takes about half as long as a step."""


def _measured(plan: SweepPlan, stretches: int) -> SweepPlan:
    train = plan.recipe.train
    return replace(plan, recipe=replace(plan.recipe, train=replace(train, dynamics_every=train.steps // stretches)))


def _small(data_root: Path) -> tuple[Part, ...]:
    rates = parse_rates(ENCODER_RATES)
    encoder = small_plan(TREC6_SET, data_root, arms=INIT_ARMS, rates=rates, seeds=(2, FIRST_SEEDS))
    data = {"name": str(data_root / WIKITEXT2_VALID.place), "max_tokens": 64, "max_scored_rows": DECODER_SCORED}
    recipe = small_recipe("language_modeling", data, SMOLLM2)
    decoder = sweep_part(DECODER, replace(recipe, train=replace(recipe.train, batch_size=2)), rates=DECODER_RATES)
    return (
        MeasuredPart(name=STUDENTS, points=trace_points(WIDTHS), measure=measure_trace),
        # No claim here is the abstract's: one look.
        SweepPart(name=ENCODER, plan=_measured(encoder, MEASUREMENTS)),
        replace(decoder, plan=_measured(decoder.plan, MEASUREMENTS // 2)),
    )


def _paper(_: Path) -> tuple[Part, ...]:
    encoder = _measured(paper_plan("mnli", arms=INIT_ARMS, seeds=(PAPER_SEEDS, FIRST_SEEDS)), MEASUREMENTS)
    decoder = sweep_part(DECODER, paper_recipe("tinyllama_wikitext2"), rates=PAPER_DECODER_RATES)
    return (
        MeasuredPart(name=STUDENTS, points=trace_points(PAPER_WIDTHS), measure=measure_trace),
        SweepPart(name=ENCODER, plan=encoder),
        replace(decoder, plan=_measured(decoder.plan, MEASUREMENTS // 2)),
    )


# The figure ----------------------------------------------------------------------------------------------------------


def figure(evidence: Evidence) -> Any:
    """Draw the sizes of ``Z_A`` and ``Z_B`` over the steps: of the toy at its ends of width, and of both models.

    Args:
        evidence: Records of the artefact.

    Returns:
        The figure; a panel without records is left out.

    Raises:
        MissingEvidenceError: There are no records of any.
    """
    from asymlora.report.reproduction_figures import over_steps

    draws: tuple[Callable[[Evidence, str], Panel], ...] = (
        _student_panel,
        lambda evidence, name: _model_panel(evidence, ENCODER, f"{name}, text encoder", name),
        lambda evidence, name: _model_panel(evidence, DECODER, f"{name}, language model", name),
    )
    panels: list[Panel] = []
    for name in ("Z_A", "Z_B"):
        for draw in draws:
            try:
                panels.append(draw(evidence, name))
            except MissingEvidenceError:
                continue
    if not panels:
        raise MissingEvidenceError(f"{STUDENTS}, {ENCODER} and {DECODER}")
    return over_steps(
        panels,
        title="Size of the features in training, each start at its best rate",
        y="size",  # toy: mean absolute value; models: root mean square, median layer
    )


def _student_panel(evidence: Evidence, quantity: str) -> Panel:
    from asymlora.report.reproduction_figures import Panel

    records = evidence.records(STUDENTS)
    ends = {record["width"] for record in records}
    lines: dict[str, dict[float, list[float]]] = {}
    for width in sorted({min(ends), max(ends)}):
        for record in records:
            if record["width"] == width:
                line = lines.setdefault(f"{NAMES[record['scheme']]}, n = {width}", {})
                for step, size in zip(record["step"], record[quantity], strict=True):
                    if size:  # a start of zeros has no place on a logarithmic axis
                        line.setdefault(step, []).append(size)
    return Panel(title=f"|{quantity}|, toy", lines=lines)


def _model_panel(evidence: Evidence, part: str, title: str, quantity: str) -> Panel:
    from asymlora.report.reproduction_panels import course_panel

    panel = course_panel(title, evidence.sweep(part).rows, quantity=quantity)
    if not panel.lines:
        raise MissingEvidenceError(f"closing runs of {part}")
    return panel


# The artefact --------------------------------------------------------------------------------------------------------

_TOY = (
    Setting(
        what="toy", paper="teacher and student as in hayou_toy; n = 128 and 8192, each run at its best learning rate,"
        " several seeds (second-hand)",
        ours="the same model, its unknown settings as in hayou_toy; the rate chosen by training loss on the seeds 400"
        " and 401, growing until it is interior, the seeds 300 to 305 measured",
        why="a run that chooses its own rate looks too good",
    ),
    Setting(
        what="sizes", paper="|Z_A| and |Z_B|, a mean over the training points (second-hand); which norm is recalled",
        ours="toy: mean absolute value over the training points; models: root mean square over a held probe of at most"
        " 8 validation rows and 256 tokens, then the median over layers", why="recalled, or unknown",
    ),
)  # fmt: skip
_PROBE = Setting(
    what="features of pretrained models", paper="of the toy only (second-hand)",
    ours="measured in the first three steps and at equal stretches, by an exact identity on inputs that are captured"
    " once", why="where earlier layers move too, the split holds on a held input only",
)  # fmt: skip
_SMALL_SETTINGS = (
    *_TOY,
    Setting(
        what="widths of the toy", paper="128 and 8192 (second-hand)", ours="128, 512, 2048, 4096",
        why="a student of 8192 takes twice the time of all here; the claims ask for 4096 at least",
    ),
    _PROBE,
    Setting(
        what="text encoder", paper="RoBERTa-large, of which no features are shown",
        ours=f"{MINILM_NAME}; TREC-6, 32 rows of at most 64 tokens a step, a fresh head trained at the run's rate",
        why="runs of about 20 seconds on two cores",
    ),
    Setting(
        what="parts of TREC-6", paper="no such set", ours="a tenth of train chooses the rate, of at most 500 rows; the"
        " features are those of a probe of the rows that choose", why="it has no official validation part",
    ),
    Setting(
        what="dropout on the adapter's input", paper="0.1 (recalled)", ours="none",
        why="with it features of two passes differ; 64 steps see no row twice",
    ),
    Setting(
        what="language model", paper="TinyLlama and Llama-7b, of which no features are shown",
        ours=f"{SMOLLM2_NAME}; WikiText-2's validation file cut in three, blocks of 64 tokens, 2 a step, 24 steps,"
        f" {DECODER_SCORED} blocks of each other part scored",
        why="runs of about 35 seconds on two cores; the training file is not at hand",
    ),
    START, OPTIMIZER, TARGETS, SCALING, STEPS, LEARNING_RATES,
)  # fmt: skip
_PAPER_SETTINGS = (
    *_TOY,
    _PROBE,
    Setting(
        what="language model", paper="TinyLlama; its settings are in an appendix, values unknown",
        ours="as in hayou_lm, from 1e-5 to 1e-2", why="unknown in the paper",
    ),
    *PAPER_SETTINGS,
)  # fmt: skip

ARTEFACT = Artefact(
    name="hayou_features",
    title="Features and factors in training: Z_A, Z_B and the three parts of a step",
    source=EXPERIMENTS,
    shows="In the toy at n = 8192, |Z_A| becomes far larger under Init[A] than under Init[B] while its training loss is"
    " lower: internal instability, and efficient learning. Under Init[B] features stay bounded and B is left"
    " undertrained.",
    small=Scale(
        parts=_small,
        minutes=33,
        memory_gib=2.0,
        data=(TREC6, WIKITEXT2_VALID),
        settings=_SMALL_SETTINGS,
        cut=(
            "rows: 2 blocks a step of the language model, not 4; 12 blocks scored, not 24",
            "widths 256, 1024 and 8192 of the toy",
            "a second look: no claim here is the abstract's",
        ),
        model=f"toy of width 128 to 4096; {MINILM_NAME}; {SMOLLM2_NAME}",
    ),
    paper=Scale(
        parts=_paper,
        minutes=None,
        memory_gib=None,
        data=(*glue_data("mnli"), WIKITEXT2_ON_HUB),
        settings=_PAPER_SETTINGS,
        model="toy of width 128 to 8192; FacebookAI/roberta-large; TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    ),
    claims=CLAIMS,
    figure=figure,
)
