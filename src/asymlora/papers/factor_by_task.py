"""Questions of the page "Which factor should I train?" on one factor or two: by task, budget, rows, domain. No torch.

As in `asymlora.papers.which_factor`, an answer is given where the kept findings have its verdicts, and else is not.
"""

from __future__ import annotations

from asymlora.reproduce.factor_guide import Answer, Question

OPEN = ("fails", "undecided")
"""Verdicts of what is not shown."""

# Which factor, one or two ---------------------------------------------------------------------------------------------

B_OVER_A, B_OVER_A_ON_IMAGES = "zhu_glue.b_better_than_a", "zhu_vision.b_over_a_own"
LOWER_TEST_LOSS = "zhu_glue.lower_test_loss"
SAME_RANK, SAME_VALUES = "zhu_glue.frozen_a_as_good", "zhu_glue.frozen_a_as_good_at_equal_values"
EQUAL_VALUES = "zhu_rank.as_good_as_both"
_WHICH_ONE = Question(
    title="If one factor is trained, which?",
    asks=(
        B_OVER_A, LOWER_TEST_LOSS, B_OVER_A_ON_IMAGES, "zhu_llama.b_over_a_loss", "zhu_llama.b_over_a_choices",
        "zhu_glue.b_learns_more", "zhu_glue.gap_by_set",
        "zhu_inputs.random_a_reaches_more", "zhu_inputs.signs_as_predicted",
    ),
    answers=(
        Answer(
            when={B_OVER_A: "holds"},
            says="Train B over a random, held A. On sentence classification it is the better one, each factor at its"
            " own learning rate.",
        ),
        Answer(
            when={B_OVER_A: "fails"},
            says="Not B by habit. On sentence classification A alone was the better one, each factor at its own rate.",
        ),
        Answer(
            when={B_OVER_A: "undecided", LOWER_TEST_LOSS: "holds", B_OVER_A_ON_IMAGES: "holds"},
            says="B over a random, held A: on images it is the better one, each factor at its own learning rate, and on"
            " sentence classification it ends with the lower test loss, where accuracy does not tell the two apart.",
        ),
        Answer(
            when={B_OVER_A: "undecided", B_OVER_A_ON_IMAGES: "holds", "zhu_llama.b_over_a_loss": "undecided"},
            says="B over a random, held A: on images it is the better one, each factor at its own learning rate, and"
            " in no training run of ours is it shown to be the worse one. On sentence classification and for a decoder"
            " on instructions the seeds tell neither from the other.",
        ),
        Answer(
            when={B_OVER_A: "undecided", B_OVER_A_ON_IMAGES: "holds"},
            says="Train B over a random, held A. On images it is the better one; on sentence classification the seeds"
            " tell neither from the other.",
        ),
        Answer(
            when={B_OVER_A: "undecided"},
            says="Take the one that costs less. On sentence classification the seeds tell neither from the other; a"
            " rank of B trains as many values as the layer has outputs, a rank of A as it has inputs.",
        ),
        Answer(
            when={B_OVER_A_ON_IMAGES: "holds"},
            says="Train B over a random, held A. On images it is the better one, each factor at its own learning rate.",
        ),
    ),
)  # fmt: skip
_ONE_OR_TWO = Question(
    title="One factor or two, at the same rank?",
    asks=(SAME_RANK, SAME_VALUES, "zhu_vision.nearly_as_well", "zhu_llama.nearly_as_well"),
    answers=(
        Answer(
            when={
                SAME_RANK: "holds",
                "zhu_vision.nearly_as_well": "holds",
                "zhu_llama.nearly_as_well": "undecided",
            },
            says="B alone, in sentence classification and on images of the trained domain: it is as good as both within"
            " two points, or better, and trains about half of the values. For a decoder on instructions that is not"
            " decided.",
        ),
        Answer(
            when={SAME_RANK: "holds"},
            says="B alone. It is as good as both within the margin, or better, and trains about half of the values.",
        ),
        Answer(
            when={SAME_RANK: "fails", SAME_VALUES: "holds"},
            says="Both; or B alone at twice the rank. At the same rank B alone is behind by more than the margin, at as"
            " many trained values it is not.",
        ),
        Answer(
            when={SAME_RANK: "fails"},
            says="Both. B alone is behind by more than the margin.",
        ),
        Answer(
            when={SAME_RANK: "undecided", SAME_VALUES: "holds"},
            says="B alone at twice the rank, if either. With as many trained values it is as good as both within the"
            " margin; at the same rank that is not decided.",
        ),
        Answer(
            when={SAME_RANK: "undecided"},
            says="Both where the last point counts, B alone where memory does. The seeds do not decide it.",
        ),
    ),
)
_BUDGET = Question(
    title="With a budget of trained values, which rank?",
    asks=(
        EQUAL_VALUES,
        "zhu_rank.doubling_helps",
        "zhu_rank.equal_values",
        "zhu_rank.equal_compute",
        SAME_RANK,
        SAME_VALUES,
    ),
    answers=(
        Answer(
            when={EQUAL_VALUES: "holds", "zhu_rank.doubling_helps": OPEN},
            says="B alone, at the rank that both would have. At twice that rank it is as good as both, and twice the"
            " rank is not shown to be better than once: the smaller one costs half.",
        ),
        Answer(
            when={EQUAL_VALUES: "holds", "zhu_rank.doubling_helps": "holds"},
            says="B alone at twice the rank. It is as good as both with as many values, and better than at once the"
            " rank.",
        ),
        Answer(
            when={EQUAL_VALUES: "fails", "zhu_rank.doubling_helps": "holds"},
            says="Twice the rank for B alone. It helps, and it is not the same as both factors at once the rank: the"
            " findings say which is ahead.",
        ),
        Answer(
            when={EQUAL_VALUES: "fails"},
            says="Not by the number of values alone. With as many values B alone and both factors differ: the findings"
            " say which is ahead.",
        ),
        Answer(
            when={EQUAL_VALUES: "undecided", "zhu_rank.doubling_helps": "holds"},
            says="Twice the rank for B alone. It helps; whether it is then as good as both is not decided.",
        ),
        Answer(
            when={
                EQUAL_VALUES: "undecided",
                "zhu_rank.doubling_helps": OPEN,
                SAME_RANK: "holds",
                SAME_VALUES: "holds",
            },
            says="The rank that you would give both factors: in sentence classification B alone is then no more than"
            " two points worse, with about half of the values. Twice that rank, with as many values as both have, is no"
            " more than that worse either, and not shown to be better than once.",
        ),
        Answer(
            when={EQUAL_VALUES: "undecided"},
            says="The rank that you would give both factors; B alone then trains about half of the values. Whether"
            " twice that rank, with as many values as both have, is as good as both, and whether it is better than"
            " once, the seeds do not decide.",
        ),
    ),
)

# By kind of model and task --------------------------------------------------------------------------------------------

_SUMMARIES = Question(
    title="For writing texts with an encoder-decoder?",
    asks=(
        "zhu_summaries.nearly_as_well", "zhu_summaries.below_both", "zhu_summaries.above_a_only",
        "zhu_summaries.higher_loss", "zhu_summaries.lower_loss_than_a_only",
    ),
    answers=(
        Answer(
            when={"zhu_summaries.below_both": "holds", "zhu_summaries.nearly_as_well": OPEN},
            says="Both factors. B alone writes worse with as many trained values.",
        ),
        Answer(
            when={"zhu_summaries.below_both": "holds", "zhu_summaries.nearly_as_well": "holds"},
            says="Both factors where a point counts. B alone at twice the rank is behind, by less than a point.",
        ),
        Answer(
            when={"zhu_summaries.below_both": "fails"},
            says="B alone at twice the rank. It writes better than both factors with as many values.",
        ),
        Answer(
            when={"zhu_summaries.nearly_as_well": "holds"},
            says="B alone at twice the rank does as well as both within a point, or better.",
        ),
        Answer(
            when={"zhu_summaries.above_a_only": "holds"},
            says="Of one factor B, which writes better than A. Whether both are better is not decided.",
        ),
        Answer(
            when={"zhu_summaries.below_both": "undecided", "zhu_summaries.above_a_only": "undecided"},
            says="Not decided. With as many trained values the seeds tell B alone neither from both factors nor from A"
            " alone, on a model and a task where no arm gains much.",
        ),
    ),
)  # fmt: skip
_LLAMA = Question(
    title="For tuning a decoder on instructions?",
    asks=(
        "zhu_llama.nearly_as_well", "zhu_llama.b_over_a_loss", "zhu_llama.doubled_over_both_loss",
        "zhu_llama.b_over_a_choices", "zhu_llama.doubled_over_both_choices",
    ),
    answers=(
        Answer(
            when={"zhu_llama.nearly_as_well": "holds", "zhu_llama.b_over_a_loss": "holds"},
            says="B alone. At the same rank its loss is that of both factors within the margin, or lower, and below"
            " that of A alone.",
        ),
        Answer(
            when={"zhu_llama.nearly_as_well": "holds"},
            says="B alone or both. At the same rank the loss of B alone is that of both within the margin, or lower.",
        ),
        Answer(
            when={"zhu_llama.doubled_over_both_loss": "holds"},
            says="B alone at twice the rank. With as many trained values its loss is below that of both factors.",
        ),
        Answer(
            when={"zhu_llama.nearly_as_well": "fails"},
            says="Both factors. At the same rank the loss of B alone is higher by more than the margin.",
        ),
        Answer(
            when={"zhu_llama.b_over_a_loss": "holds"},
            says="Of one factor B, whose loss is below that of A. Whether both are better is not decided.",
        ),
        Answer(
            when={"zhu_llama.nearly_as_well": "undecided"},
            says="Not decided: B alone, about half of the values, or both. The seeds show neither that the loss of B"
            " alone is above that of both by more than the margin nor that it is not.",
        ),
    ),
)  # fmt: skip
_VISION = Question(
    title="For images, in the domain that is trained on?",
    asks=("zhu_vision.nearly_as_well", B_OVER_A_ON_IMAGES, "zhu_vision.linear_probe"),
    answers=(
        Answer(
            when={"zhu_vision.nearly_as_well": "holds", B_OVER_A_ON_IMAGES: "holds"},
            says="B alone. It is as good as both factors within the margin, or better, and better than A alone.",
        ),
        Answer(
            when={"zhu_vision.nearly_as_well": "holds"},
            says="B alone. It is as good as both factors within the margin, or better.",
        ),
        Answer(
            when={"zhu_vision.nearly_as_well": "fails"},
            says="Both factors. B alone is behind by more than the margin.",
        ),
        Answer(
            when={B_OVER_A_ON_IMAGES: "holds"},
            says="Of one factor B, which is better than A. Whether both are better is not decided.",
        ),
    ),
)
_SHIFT = Question(
    title="And on images of domains that were not trained on?",
    asks=(
        "zhu_vision.pacs_row", "zhu_vision.b_over_a_elsewhere", "zhu_vision.smaller_gap_elsewhere",
        "zhu_vision.doubled_rank", "zhu_vision.full_finetuning", "zhu_vision.better_elsewhere",
    ),
    answers=(
        Answer(
            when={"zhu_vision.pacs_row": "fails"},
            says="B alone. On the other domains of PACS it is better than both factors at the same rank.",
        ),
        Answer(
            when={"zhu_vision.pacs_row": "holds"},
            says="Both factors. On the other domains of PACS they are better than B alone at the same rank.",
        ),
        Answer(
            when={"zhu_vision.pacs_row": "undecided"},
            says="Not decided between B alone and both. On the other domains of PACS the seeds do not tell them apart,"
            " and in the paper it goes both ways, by set.",
        ),
    ),
)  # fmt: skip
_FEW_ROWS = Question(
    title="With few rows, does one factor overfit less?",
    asks=(
        "zhu_gap.smaller_with_b", "zhu_gap.smaller_at_equal_loss", "zhu_gap.smaller_with_a", "zhu_gap.fits_less",
        "zhu_bounds.improves", "zhu_bounds.vacuous", "zhu_bounds.tells_b_from_a",
    ),
    answers=(
        Answer(
            when={"zhu_gap.smaller_with_b": "holds", "zhu_gap.smaller_at_equal_loss": "holds"},
            says="Yes. The gap between training and test rows is smaller with B alone, at equal steps and at equal"
            " training loss.",
        ),
        Answer(
            when={"zhu_gap.smaller_with_b": "holds", "zhu_gap.fits_less": "holds"},
            says="It fits less, so its gap is smaller. At equal training loss a smaller gap of B alone is not shown:"
            " fewer steps may do the same.",
        ),
        Answer(
            when={"zhu_gap.smaller_with_b": "holds"},
            says="At equal steps, yes. At equal training loss it is not shown.",
        ),
        Answer(
            when={"zhu_gap.smaller_with_b": "fails"},
            says="No. With B alone the gap between training and test rows is the larger one.",
        ),
        Answer(
            when={"zhu_gap.smaller_with_b": "undecided", "zhu_gap.smaller_at_equal_loss": "holds"},
            says="With B alone, in loss. At equal training loss its gap in loss is the smaller one; in accuracy, at"
            " equal steps, that is not shown. Expect a lower test loss at the same training loss; whether it makes"
            " fewer mistakes is open.",
        ),
        Answer(
            when={"zhu_gap.smaller_with_b": "undecided"},
            says="It is not shown. The seeds do not tell the gaps apart.",
        ),
    ),
)  # fmt: skip
_BOTH = Question(
    title="Where are both factors the better choice?",
    asks=(
        SAME_RANK, SAME_VALUES, "zhu_summaries.below_both", "zhu_llama.nearly_as_well",
        "zhu_vision.nearly_as_well", "zhu_vision.pacs_row",
    ),
    answers=(
        Answer(when={SAME_RANK: "fails"}, says="In sentence classification, at the same rank."),
        Answer(
            when={SAME_VALUES: "fails"}, says="In sentence classification, with as many trained values."
        ),
        Answer(
            when={"zhu_summaries.below_both": "holds"},
            says="In writing texts with an encoder-decoder, with as many trained values.",
        ),
        Answer(
            when={"zhu_llama.nearly_as_well": "fails"},
            says="In tuning a decoder on instructions, at the same rank.",
        ),
        Answer(
            when={"zhu_vision.nearly_as_well": "fails"}, says="On images of the domain that is trained on."
        ),
        Answer(when={"zhu_vision.pacs_row": "holds"}, says="On images of other domains (PACS)."),
        Answer(
            when={SAME_RANK: "holds"}, says="Not in sentence classification: there B alone does nearly as well or"
            " better.",
        ),
    ),
    all_that_fit=True,
)  # fmt: skip

QUESTIONS = (_WHICH_ONE, _ONE_OR_TWO, _BUDGET, _SUMMARIES, _LLAMA, _VISION, _SHIFT, _FEW_ROWS, _BOTH)
"""In the order of the page."""
