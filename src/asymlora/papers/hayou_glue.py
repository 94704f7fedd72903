"""Artefact: sentence classification at swept learning rates, Init[A] against Init[B]. No torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asymlora.papers.glue_claims import CLAIMS, NAMES, PAPER_TITLES, RATES_PART, SMALL_TITLES
from asymlora.papers.hayou_settings import INIT_ARMS, SOURCE
from asymlora.papers.models_and_data import MINILM_NAME
from asymlora.papers.text_evidence import at_paper_scale, rates_figure
from asymlora.papers.text_sweeps import (
    GLUE_SETS,
    PAPER_SETTINGS,
    ROBERTA_NAME,
    SMALL_SETS,
    SMALL_SETTINGS,
    TextSet,
    glue_data,
    paper_plan,
    small_plan,
)
from asymlora.reproduce.artefact import FIRST_SEEDS, MOST_SEEDS, Artefact, Scale, SweepPart
from asymlora.reproduce.evidence import Evidence
from asymlora.sweep.axes import parse_rates
from asymlora.sweep.grid import SweepPlan


def small_parts(data_root: Path) -> tuple[SweepPart, ...]:
    """Return the five sweeps of MiniLM.

    On TREC-6 each of six tuning seeds tells best and largest stable rate, and the grid reaches to where training
    fails. On the other sets two tuning seeds choose the rate at which the arms are compared.

    Args:
        data_root: Where data sets stand.
    """
    return tuple(_small_part(each, data_root) for each in SMALL_SETS)


def _small_part(each: TextSet, data_root: Path) -> SweepPart:
    main = each.name == RATES_PART
    rates = parse_rates("1e-4..1e-1:2" if main else "3.16e-4..1e-2:2")

    def plan(tuning: int, closing: int) -> SweepPlan:
        return small_plan(each, data_root, arms=INIT_ARMS, rates=rates, seeds=(tuning, closing))

    return SweepPart(
        name=each.name,
        plan=plan(FIRST_SEEDS if main else 2, FIRST_SEEDS),
        second=plan(MOST_SEEDS if main else 2, MOST_SEEDS),
    )


def paper_parts(data_root: Path) -> tuple[SweepPart, ...]:
    """Return the four sweeps of RoBERTa-large.

    Args:
        data_root: Not read: the sets come from the hub.
    """
    return tuple(
        SweepPart(
            name=name,
            plan=paper_plan(name, arms=INIT_ARMS),
            second=paper_plan(name, arms=INIT_ARMS, seeds=(MOST_SEEDS, MOST_SEEDS)),
        )
        for name in GLUE_SETS
    )


def _figure(evidence: Evidence) -> Any:
    titles = PAPER_TITLES if at_paper_scale(evidence) else SMALL_TITLES
    return rates_figure(evidence, titles, names=NAMES, title="The metric on validation against the learning rate")


ARTEFACT = Artefact(
    name="hayou_glue",
    title="Sentence classification: learning rates of Init[A] and Init[B]",
    source=f"{SOURCE}, experiments on RoBERTa-large",
    shows="Accuracy of RoBERTa-large on sets of GLUE against the learning rate, for both inits. With Init[A] the best"
    " rate is larger, and so is the accuracy there: on MNLI 90.69 at 8e-5 against 89.47 at 1e-5 (second-hand).",
    small=Scale(
        parts=small_parts,
        minutes=94,
        memory_gib=1.5,
        data=tuple(each.data for each in SMALL_SETS),
        settings=SMALL_SETTINGS,
        cut=(
            "rows: at most 500 of each part of TREC-6 that is scored and 300 of the others, 8,000 of SST-2's training"
            " rows, 8 pairs a step, of 48 tokens",
            "ranks: 8 alone",
            "tuning seeds: two on SST-2, CoLA, MRPC and RTE, and four rates, so rates are tested seed by seed on TREC-6"
            " alone",
            "tasks: MNLI, QNLI and QQP, which are not at hand; SUBJ, which is",
        ),
        model=MINILM_NAME,
    ),
    paper=Scale(
        parts=paper_parts,
        minutes=None,
        memory_gib=None,
        data=glue_data(*GLUE_SETS),
        settings=PAPER_SETTINGS,
        model=ROBERTA_NAME,
    ),
    claims=CLAIMS,
    figure=_figure,
)
"""The artefact."""
