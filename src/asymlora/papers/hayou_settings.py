"""What the artefacts of Hayou, Ghosh, Yu 2024 share: where claims stand, arms, seeds, settings. No torch in here.

Confidence of what is known of the paper: *abstract*: stated in its abstract; *second-hand*: by texts that quote it;
*recalled*: from memory, taken as a default; *code*: of the authors' scripts for another paper; *derived*: by us.
"""

from __future__ import annotations

from asymlora.reproduce.artefact import Setting
from asymlora.sweep.axes import Arm

SOURCE = "Hayou, Ghosh, Yu, 2024, arXiv:2406.08447"
ABSTRACT = f"{SOURCE}, abstract"
ANALYSIS = f"{SOURCE}, analysis of large width (second-hand)"
EXPERIMENTS = f"{SOURCE}, experiments (second-hand)"
DERIVED = f"derived by us from the setting of {SOURCE}"

INIT_ARMS = (Arm(name="init_a", word="init_a"), Arm(name="init_b", word="init_b"))
"""Init[A]: A random, B zero; Init[B]: B random, A zero."""
TOY_SEEDS, MORE_TOY_SEEDS = tuple(range(300, 306)), tuple(range(306, 310))
"""Seeds of the theory's models, of both looks. Earlier records of these models are of the seeds 0 to 5."""
TOY_TUNING_SEEDS = (400, 401)
"""Seeds that choose the learning rate of a student whose features are measured."""

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
