"""Init[A] and Init[B] in language modelling: TinyLlama on WikiText-2, here SmolLM2. No torch in here."""

from __future__ import annotations

from pathlib import Path

from asymlora.papers.hayou_settings import EXPERIMENTS, LEARNING_RATES, OPTIMIZER, START
from asymlora.papers.language_sweeps import (
    larger_rate,
    linked,
    lower_loss,
    rate_figure,
    small_recipe,
    smallest_rate,
    sweep_part,
)
from asymlora.papers.models_and_data import SMOLLM2, SMOLLM2_NAME, WIKITEXT2_TEST, WIKITEXT2_VALID
from asymlora.papers.paper_recipes import paper_recipe
from asymlora.papers.stated_tests import UNKNOWN
from asymlora.reproduce.artefact import Artefact, DataSet, Part, Scale, Setting

PART = "wikitext2"
PAPERS_MODEL = "TinyLlama-1.1B on WikiText-2 in the paper"
PAPER_RATES = "1e-5..1e-2"


def small_parts(root: Path) -> tuple[Part, ...]:
    """Return the sweep on SmolLM2.

    Args:
        root: Folder that holds ``wikitext2/`` with train.txt and test.txt, as `with_parts_named` makes it.
    """
    data = {"name": str(root / PART), "max_tokens": 64, "max_scored_rows": 24}
    return (sweep_part(PART, small_recipe("language_modeling", data, SMOLLM2)),)


def with_parts_named(data_root: Path, folder: Path) -> Path:
    """Give the files of WikiText-2 that are at hand the names of parts, by links in the run's folder.

    Args:
        data_root: Where the files are.
        folder: Of the artefact's runs.

    Returns:
        What `small_parts` takes.
    """
    root = folder / "data"
    linked(root / PART / "train.txt", data_root / WIKITEXT2_VALID.place)
    linked(root / PART / "test.txt", data_root / WIKITEXT2_TEST.place)
    return root


def paper_parts(root: Path) -> tuple[Part, ...]:
    """Return the sweep on TinyLlama.

    Args:
        root: Not read: model and data are on the hub.
    """
    return (sweep_part(PART, paper_recipe("tinyllama_wikitext2"), rates=PAPER_RATES),)


_ADAPTED = Setting(
    what="adapted layers",
    paper=UNKNOWN,
    ours="all linear layers of the blocks",
    why="the authors' scripts for Llama-7b of another paper adapt all seven projections (code)",
)
_SMALL_SETTINGS = (
    Setting(
        what="model",
        paper="TinyLlama, which of its checkpoints is unknown, in BF16 (second-hand)",
        ours=f"{SMOLLM2_NAME}, in float32",
        why="what runs on two cores; it is an instruction-tuned model, and one that was quantised",
    ),
    Setting(
        what="parts of WikiText-2",
        paper="official train, validation and test (inferred)",
        ours="trained on the first 90 % of the official validation file, rates chosen on the rest of it, quoted on 24"
        " blocks of the official test file",
        why="the training file is not at hand; scoring all of test would take longer than the training",
    ),
    Setting(
        what="length and batch", paper=UNKNOWN, ours="blocks of 64 tokens, 4 a step, 24 steps: 6,144 tokens",
        why="runs of about 40 seconds on two cores; both starts see the same blocks in the same order",
    ),
    Setting(
        what="rank and alpha", paper=UNKNOWN, ours="rank 8, alpha 16: scaling 2", why="as for RoBERTa-large (recalled)"
    ),
    _ADAPTED,
    START,
    OPTIMIZER,
    LEARNING_RATES,
)  # fmt: skip
_PAPER_SETTINGS = (
    Setting(
        what="model", paper="TinyLlama, which of its checkpoints is unknown", ours="the last one, of 3 T tokens",
        why="unknown in the paper",
    ),
    Setting(
        what="rank, alpha, length, batch, steps, rates, seeds",
        paper="listed in an appendix (second-hand), values unknown",
        ours="rank 16, alpha 32, 1,024 tokens, batch 8, 900 steps, 1e-5 to 1e-2 with three rates a decade, 2 tuning and"
        " 6 closing seeds",
        why="unknown in the paper; six pairs are the least that can decide",
    ),
    _ADAPTED,
    START,
    OPTIMIZER,
    LEARNING_RATES,
)  # fmt: skip

ARTEFACT = Artefact(
    name="hayou_lm",
    title="Language modelling: best rate and loss of Init[A] and Init[B]",
    source=EXPERIMENTS,
    shows="Perplexity of TinyLlama on WikiText-2 against the learning rate for both starts (recalled; the values of the"
    " figure are not known to us). By the abstract the best rate of Init[A] is generally the larger one, and its result"
    " better on average, not always.",
    small=Scale(
        parts=small_parts,
        minutes=29,
        memory_gib=2.0,
        data=(WIKITEXT2_VALID, WIKITEXT2_TEST),
        settings=_SMALL_SETTINGS,
        cut=(
            "rows: blocks of 64 tokens, 4 a step, 24 steps, 24 blocks scored",
            "rates: 3.16e-2, to which a grid grows where it must",
            "ranks: 8 alone",
            "a second look: no claim here is the abstract's",
        ),
        model=SMOLLM2_NAME,
        prepare=with_parts_named,
    ),
    paper=Scale(
        parts=paper_parts,
        minutes=None,
        memory_gib=None,
        data=(DataSet(name="WikiText-2, raw", source="Hugging Face hub: Salesforce/wikitext, wikitext-2-raw-v1"),),
        settings=_PAPER_SETTINGS,
        model="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    ),
    claims=(
        larger_rate(PART, model=PAPERS_MODEL),
        lower_loss(PART, model=PAPERS_MODEL),
        smallest_rate(PART),
    ),
    figure=rate_figure(
        PART,
        title="WikiText-2: perplexity on validation against the learning rate, by start",
        panel="WikiText-2",
        y="perplexity",
        log_y=True,
    ),
)
