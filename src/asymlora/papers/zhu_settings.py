"""What the artefacts of Zhu et al. 2024 share: where claims stand, arms, settings. No torch in here.

Confidence of what is known of the paper: *abstract*: stated in its abstract; *second-hand*: by texts that quote it;
*recalled*: from memory, taken as a default; *code*: of the authors' released code; *derived*: by us.
"""

from __future__ import annotations

from asymlora.reproduce.artefact import Setting
from asymlora.sweep.axes import Arm

SOURCE = "Zhu et al., 2024, arXiv:2402.16842"
ABSTRACT = f"{SOURCE}, abstract"
THEORY = f"{SOURCE}, section 4 (second-hand)"
EXPERIMENTS = f"{SOURCE}, section 5 (second-hand)"
RELEASED_CODE = f"{SOURCE}, the authors' released code"
DERIVED = f"derived by us from the setting of {SOURCE}"

BOTH = Arm(name="both", word="lora")
"""Both factors trained, A from Kaiming's draw: the usual LoRA."""
B_ONLY = Arm(name="b_only", word="b_only")
"""B trained from zero over a frozen A with orthonormal rows."""
A_ONLY = Arm(name="a_only", word="a_only")
"""A trained from zero under a frozen B with orthonormal columns."""

SCALING = Setting(
    what="alpha",
    paper="twice the rank at every rank: scaling 2 (code, second-hand)",
    ours="twice the rank: scaling 2",
    why="as in the paper",
)
TARGETS = Setting(
    what="adapted layers",
    paper='"every query/key/value matrix" (second-hand); its counts fit query and value alone (derived)',
    ours="all linear layers",
    why="a model of this size has little to adapt in query and value alone",
)
OPTIMIZER = Setting(
    what="optimizer",
    paper="AdamW with the defaults of Hugging Face, the rate falling linearly (inferred)",
    ours="AdamW, betas 0.9 and 0.999, epsilon 1e-8, no decay, rate falling linearly to 0 after a warm-up over 6 % of"
    " the steps, gradients clipped at norm 1",
    why="those of asymlora finetune, the same for all arms",
)
LEARNING_RATES = Setting(
    what="choice of the learning rate",
    paper="4e-4 on RTE (code), of other sets unknown; that all arms of a task had one is our reading",
    ours="the best mean on validation over tuning seeds of their own for each arm, the grid growing until it is"
    " interior; quoted are fresh seeds on test",
    why="arms whose factors have other sizes are not comparable at one shared rate",
)
