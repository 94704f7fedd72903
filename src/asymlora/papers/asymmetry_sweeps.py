"""Sweeps over sets of texts that the artefacts of Zhu et al. share, and their settings. No torch in here.

At the small scale of MiniLM, at the paper's of RoBERTa-large. Sets and the recipe of MiniLM are those of
`asymlora.papers.text_sweeps`; what claims read of either is in `asymlora.papers.text_evidence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asymlora.papers.paper_recipes import paper_recipe
from asymlora.papers.stated_tests import UNKNOWN, closing_seeds, tuning_seeds
from asymlora.papers.text_sweeps import GLUE_SETS, GlueSet, TextSet, small_plan
from asymlora.papers.text_sweeps import SMALL_SETTINGS as SETTINGS_OF_MINILM
from asymlora.papers.zhu_settings import LEARNING_RATES, OPTIMIZER, SCALING, TARGETS
from asymlora.reproduce.artefact import FIRST_SEEDS, MOST_SEEDS, DataSet, Setting, SweepPart
from asymlora.reproduce.printed_count import PrintedCount
from asymlora.sweep.axes import Arm, parse_rates
from asymlora.sweep.grid import SweepPlan

RATES = parse_rates("1e-3..3.16e-2:2")
"""Of the first grid on MiniLM: four rates, half a decade apart."""
PAPER_RATES = (1e-4, 2e-4, 4e-4, 8e-4)
"""Octaves around 4e-4, the only rate that is known of the paper (code, RTE)."""
MAIN_SEEDS, ROW_SEEDS = (2, FIRST_SEEDS, MOST_SEEDS), (1, 3)
"""Tuning seeds, and closing seeds at each look: of arms that claims of the abstract compare, and of rows of a table."""
MARGIN = 0.02
"""Largest difference of a metric on test that counts as none, stated before the runs: less than the 2.3 points by which
training A falls behind training B in the paper, so that what is a difference there is none here."""
GLUE: Mapping[str, GlueSet] = {
    "mnli": GLUE_SETS["mnli"],
    "sst2": GLUE_SETS["sst2"],
    "mrpc": GlueSet(title="MRPC", rows=3_668, columns=("sentence1", "sentence2")),
    "cola": GlueSet(title="CoLA", rows=8_551, columns=("sentence",)),
    "qnli": GLUE_SETS["qnli"],
    "rte": GlueSet(title="RTE", rows=2_490, columns=("sentence1", "sentence2")),
    "stsb": GlueSet(title="STS-B", rows=5_749, columns=("sentence1", "sentence2")),
}
"""The paper's sets, in its order."""
_METRICS = {"cola": "matthews", "stsb": "pearson"}
_EPOCHS, _SCORES, _TRAINED = 20, 20, 0.8
"""Epochs, scores of a run, and the share of a training file that is trained on: the rest is held out as test."""


def text_part(
    text_set: TextSet,
    data_root: Path,
    *,
    arms: Sequence[Arm],
    rates: Sequence[float] = RATES,
    seeds: tuple[int, ...] = MAIN_SEEDS,
    margin: float | None = None,
) -> SweepPart:
    """Return a sweep of MiniLM on one set, whose grid may grow by one rate beyond either end.

    Args:
        text_set: The set; the part has its name (`dataclasses.replace` gives it another).
        data_root: Where data sets stand.
        arms: What is compared; `zhu_settings` has the three main ones.
        rates: Learning rates of the first grid.
        seeds: Number of tuning seeds, then of closing seeds at the first look and, where there is one, at the second.
        margin: Largest difference of the metric that counts as none, as the plan states it.
    """

    def plan(closing: int) -> SweepPlan:
        return small_plan(text_set, data_root, arms=arms, rates=rates, seeds=(seeds[0], closing), margin=margin)

    return SweepPart(name=text_set.name, plan=plan(seeds[1]), second=plan(seeds[2]) if len(seeds) > 2 else None)


def paper_text_part(
    subset: str,
    *,
    arms: Sequence[Arm],
    rates: Sequence[float] = PAPER_RATES,
    seeds: tuple[int, ...] = MAIN_SEEDS,
    margin: float | None = None,
    printed: Mapping[str, PrintedCount] | None = None,
) -> SweepPart:
    """Return a sweep of RoBERTa-large on one set of GLUE.

    Args:
        subset: One of `GLUE`; the part has its name.
        arms: What is compared.
        rates: Learning rates of the first grid.
        seeds: As for `text_part`.
        margin: Likewise.
        printed: Values trained that the paper prints, by arm, as `SweepPart` has them.
    """
    base, glue = paper_recipe("roberta_large_glue"), GLUE[subset]
    text, pair = glue.columns[0], glue.columns[1] if len(glue.columns) > 1 else None
    steps = int(glue.rows * _TRAINED) // base.train.batch_size * _EPOCHS
    metric = _METRICS.get(subset, "accuracy")
    recipe = replace(
        base,
        task="text_regression" if subset == "stsb" else base.task,
        data=replace(base.data, subset=subset, text=text, text_pair=pair, metric=metric),
        # Alpha is twice the rank at every rank, so that arms of other ranks have the same scaling.
        adapter=replace(base.adapter, alpha=None),
        train=replace(base.train, steps=steps, evaluate_every=steps // _SCORES, dynamics_every=0),
    )

    def plan(closing: int) -> SweepPlan:
        return SweepPlan(
            recipe=recipe, arms=tuple(arms), rates=tuple(rates), tuning_seeds=tuning_seeds(seeds[0]),
            closing_seeds=closing_seeds(closing), margin=margin,
        )  # fmt: skip

    return SweepPart(
        name=subset,
        plan=plan(seeds[1]),
        second=plan(seeds[2]) if len(seeds) > 2 else None,
        printed=printed or {},
    )


def paper_glue_data(*subsets: str) -> tuple[DataSet, ...]:
    """Return sets of GLUE as the hub has them.

    Args:
        subsets: Some of `GLUE`.
    """
    return tuple(DataSet(name=GLUE[name].title, source=f"hub nyu-mll/glue, configuration {name}") for name in subsets)


# Settings ------------------------------------------------------------------------------------------------------------


def _of_minilm(what: str, paper: str, *, why: str = "") -> Setting:
    """Return a setting of the sweeps of MiniLM beside what this paper says of it."""
    (setting,) = [setting for setting in SETTINGS_OF_MINILM if setting.what == what]
    return replace(setting, paper=paper, why=why or setting.why)


_PARTS = "mean of 3 seeds, of which part of the data is unknown"
_PARTS_OF = {
    "TREC-6": "a tenth of train chooses, the official test part is quoted",
    "SST-2": "the official validation part chooses, a fifth of train that is held out is quoted",
    "SUBJ": "a tenth, drawn once for all uses, chooses, another tenth is quoted (its source has no parts)",
}


def parts_said(*titles: str) -> str:
    """Return which rows of sets choose and which are quoted.

    Args:
        titles: Names of the sets for people.

    Example:
        >>> parts_said("TREC-6")
        'TREC-6: a tenth of train chooses, the official test part is quoted'
    """
    return ". ".join(f"{title}: {_PARTS_OF[title]}" for title in titles)


def small_text_settings(*titles: str, rows: int = 32) -> tuple[Setting, ...]:
    """Return the settings of sweeps of MiniLM.

    Args:
        titles: Names of their sets for people.
        rows: Of a step.
    """
    return (
        _of_minilm("model", "RoBERTa-large, 355 M values, width 1024 (second-hand)"),
        SCALING,
        TARGETS,
        OPTIMIZER,
        _of_minilm("dropout on the adapter's input", "0.05 (code: the flag is ignored, the value written in)"),
        Setting(
            what="length of training", paper="20 epochs on RTE (code); of the other sets unknown", ours="64 steps",
            why="runs of about 25 seconds on two cores; all arms have the same steps",
        ),
        Setting(
            what="how much is learnt", paper="all that there is", ours="what 64 steps reach",
            why="two cores; differences on sets of which little is learnt are noise or none: such a set does not count",
        ),
        Setting(
            what="rows of a step", paper="8 (inferred: the default of Hugging Face)", ours=str(rows),
            why="fewer, steadier steps in the same time" if rows > 8 else "as in the paper",
        ),
        _of_minilm(
            "head", "trained (code); its rate is that of the adapter (inferred)",
            why="a fitted head would leave less to the adapter, and hide which factor learns more; an arm with the"
            " larger best rate has the faster head too",
        ),
        Setting(
            what="cut of the inputs", paper="128 tokens, padded (code)", ours="64 tokens",
            why="time; few rows are longer",
        ),
        LEARNING_RATES,
        _of_minilm("growth of the grids", UNKNOWN),
        Setting(
            what="parts of the data", paper=_PARTS, ours=f"{parts_said(*titles)}. The same rows for all runs",
            why="GLUE publishes no test labels, and a figure that was chosen on the rows that it is quoted on is too"
            " good",
        ),
        _of_minilm("precision", "bfloat16 and TF32 (code)"),
        Setting(
            what="tasks", paper="MNLI, SST-2, MRPC, CoLA, QNLI, RTE, STS-B", ours=" and ".join(titles),
            why="sets that MiniLM learns in a minute, of those at hand",
        ),
    )  # fmt: skip


PAPER_TEXT_SETTINGS = (
    SCALING,
    replace(TARGETS, ours="query and value", why="what the paper's counts fit"),
    OPTIMIZER,
    Setting(
        what="batch, schedule, length of training",
        paper="20 epochs on RTE (code); batch 8, falling linearly, no warm-up (inferred: defaults of Hugging Face); of"
        " other sets unknown",
        ours="8 rows, 20 epochs of the four fifths that are trained on, on every set",
        why="unknown in the paper; a fifth of train is held out to be quoted",
    ),
    Setting(
        what="learning rates", paper="4e-4 on RTE (code); of other sets unknown",
        ours="1e-4 to 8e-4 in octaves, growing until the best one is interior", why="one rate for all arms favours one",
    ),
    LEARNING_RATES,
    Setting(
        what="parts of the data", paper=_PARTS,
        ours="the validation part (MNLI: matched) chooses; a fifth of train that is held out is quoted",
        why="GLUE publishes no test labels, and a figure that was chosen on the rows that it is quoted on is too good",
    ),
    Setting(
        what="metric", paper="accuracy, on CoLA and STS-B correlations (second-hand: which ones is recalled)",
        ours="accuracy; CoLA: Matthews' correlation; STS-B: Pearson's", why="recalled",
    ),
    Setting(
        what="head", paper="trained (code); its start unknown", ours="drawn at random, the same for all arms of a seed",
        why="paired seeds",
    ),
    Setting(what="precision", paper="bfloat16 and TF32 (code)", ours="float32", why="one unknown less"),
)  # fmt: skip
"""Of the sweeps of RoBERTa-large."""
