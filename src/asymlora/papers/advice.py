"""Artefact: recipes of ``asymlora advise`` against plain ones, the advice's own cost counted. No torch in here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from asymlora.papers.advice_claims import CLAIMS, NAMES, advised_records, advised_sets
from asymlora.papers.advice_runs import (
    BATCH_SIZE,
    OWN,
    PAPER_SET,
    PLAIN,
    SCORED_ROWS,
    SETS,
    STEPS,
    TITLES,
    TUNED,
    TUNED_SETS,
    VALUES,
    paper_parts,
    part_name,
    small_parts,
)
from asymlora.papers.asymmetry_sweeps import PAPER_TEXT_SETTINGS, paper_glue_data
from asymlora.papers.models_and_data import MINILM_CAVEAT, MINILM_NAME
from asymlora.papers.text_sweeps import ROBERTA_NAME
from asymlora.reproduce.artefact import Artefact, Scale, Setting
from asymlora.reproduce.evidence import Evidence

if TYPE_CHECKING:
    from asymlora.report.reproduction_figures import Panel


def figure(evidence: Evidence) -> Any:
    """Draw the metric on validation against the rate: advised runs, plain defaults and tuned arms, a panel a set.

    Args:
        evidence: Records of the artefact.

    Returns:
        The figure.

    Raises:
        MissingEvidenceError: There are no advised runs.
    """
    from asymlora.report.reproduction_figures import metric_against_rate

    panels = [_panel(evidence, name) for name in advised_sets(evidence)]
    return metric_against_rate(panels, title="Advised, plain and tuned recipes", y="accuracy on validation, points")


def _panel(evidence: Evidence, name: str) -> Panel:
    from asymlora.report.reproduction_figures import Panel
    from asymlora.report.reproduction_panels import rate_panel

    panel = Panel(title=TITLES[name], lines={})
    if name in TUNED_SETS:
        sweep = evidence.sweep(part_name(name, TUNED))
        panel = rate_panel(TITLES[name], sweep.plan, rows=sweep.rows, names=NAMES, scale=100)
    lines = {arm: {rate: list(values) for rate, values in line.items()} for arm, line in panel.lines.items()}
    for which in (PLAIN, OWN):
        for row in evidence.sweep(part_name(name, which)).rows:
            if row.validation is not None:
                line = lines.setdefault(f"{NAMES[row.arm]}, default rate", {})
                line.setdefault(row.lr, []).append(100 * row.validation)
    advised: dict[float, list[float]] = {}
    for record in advised_records(evidence, name):
        if record["cost_counted"] and record["validation"] is not None:
            advised.setdefault(record["lr"], []).append(100 * record["validation"])
    return replace(panel, lines={**lines, "advised": advised}, unjoined=frozenset({"advised"}))


# The artefact --------------------------------------------------------------------------------------------------------

_OURS = "none: it has no advice"
_SETTINGS = (
    Setting(what="model", paper=_OURS, ours=MINILM_NAME, why=f"two cores; {MINILM_CAVEAT}"),
    Setting(
        what="data", paper=_OURS,
        ours="TREC-6, 2,000 training rows; SST-2, 500. TREC-6: a tenth of train chooses, the official test part is"
        " quoted; SST-2: the official validation part chooses, a fifth of train that is held out is quoted; at most"
        f" {SCORED_ROWS} rows of each part that is scored",
        why="one set that is read about once, and one so small that it is read five times",
    ),
    Setting(
        what="total compute", paper=_OURS,
        ours=f"{STEPS} steps of {BATCH_SIZE} rows for every arm; for the advised one less what the advice cost",
        why="two cores. The advice costs the same before a longer run: the longer the run, the less it weighs",
    ),
    Setting(
        what="trained values", paper=_OURS, ours=f"{VALUES:,} in the factors, for the advised recipe at most; the head"
        " besides", why="equal budgets",
    ),
    Setting(
        what="head", paper=_OURS, ours="fitted to convergence on features of the frozen model, trained at the run's"
        " rate", why="the default of asymlora finetune; advice looks at gradients through a fitted head",
    ),
    Setting(
        what="advice", paper=_OURS,
        ours="as asymlora advise gives it with --values, --ranks-by-layer and --only-targets, once for each seed",
        why="what a user got when it was run; since, ranks by layer must be asked for, as these runs do not show that"
        " they help. Layers besides the adapter's are measured for a look only",
    ),
    Setting(
        what="optimizer", paper=_OURS,
        ours="AdamW, no decay, rate falling linearly to 0 after a warm-up over 6 % of the steps, gradients clipped at"
        " norm 1", why="the defaults of asymlora finetune",
    ),
)  # fmt: skip

ARTEFACT = Artefact(
    name="advice",
    title="Advised recipes against plain defaults and tuned rates",
    source="asymlora advise; no part of either paper",
    shows="What the papers leave to the user: which factor, which rank, which rate. asymlora advise answers it from a"
    " range test and a look at gradients; here its recipes are held against plain ones at equal trained values and"
    " equal compute, its own cost counted.",
    small=Scale(
        parts=small_parts,
        minutes=27,
        memory_gib=1.5,
        data=tuple(each.data for each in SETS),
        settings=_SETTINGS,
        cut=(
            "rows: 2,000 and 500 training rows, at most 300 of each part that is scored, 16 a step",
            "ranks: one budget of trained values",
            "tasks: tuned rates on TREC-6 alone",
        ),
        model=MINILM_NAME,
    ),
    paper=Scale(
        parts=paper_parts,
        minutes=None,
        memory_gib=None,
        data=paper_glue_data(PAPER_SET),
        settings=PAPER_TEXT_SETTINGS,
        model=ROBERTA_NAME,
    ),
    claims=CLAIMS,
    figure=figure,
)
"""The artefact."""
