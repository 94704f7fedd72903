"""Both papers as the page of results names them, and in words what they got right. No torch.

A sentence is on the page while the kept findings have the verdicts that it stands on, and goes when one changes.
"""

from __future__ import annotations

from asymlora.papers.factor_by_task import B_OVER_A, B_OVER_A_ON_IMAGES, LOWER_TEST_LOSS, OPEN, SAME_RANK, SAME_VALUES
from asymlora.reproduce.by_paper import Paper
from asymlora.reproduce.factor_guide import Answer

# The paper on initialisation ------------------------------------------------------------------------------------------

_HAYOU = (
    Answer(
        when={
            "hayou_toy.larger_stable_rate": "holds", "hayou_toy.best_rate_larger": "holds",
            "hayou_glue.stable_rate_larger": "holds", "hayou_glue.optimal_rate_larger": "holds",
        },
        says="Right in the main. With A random and B zero (Init[A]) larger learning rates stay stable, and the best one"
        " is larger: in the paper's toy at a large width, and in an encoder on sentence classification.",
    ),
    Answer(
        when={"hayou_glue.better_on_average": "holds"},
        says="Each at its own best rate, Init[A] ends better there, on average over the sets where something"
        " is learnt.",
    ),
    Answer(
        when={"hayou_lm.lower_loss": "holds", "hayou_llama.lower_loss": "undecided"},
        says="A decoder ends lower with it in language modelling; in instruction tuning the seeds tell nothing.",
    ),
    Answer(
        when={
            "hayou_toy.init_a_exponents": "holds", "hayou_toy.init_b_exponents": "holds",
            "hayou_toy.stable_rate_slopes": "holds", "hayou_toy.undertrained_b": "holds",
        },
        says="Right in the theory of wide layers: features, the parts of a step and the largest stable rate have the"
        " exponents that it states, and Init[B] leaves B undertrained.",
    ),
    Answer(
        when={"hayou_features.encoder_efficiency": "holds", "hayou_features.decoder_efficiency": "holds"},
        says="In an encoder and a decoder too both factors move the output under Init[A], and one does under Init[B].",
    ),
    Answer(
        when={"hayou_toy.variance_decides": "holds", "hayou_toy.variance_decides_rate": "holds"},
        says="It is not the letter that decides: what holds Init[B] back in the toy is the variance 1/r of its start,"
        " and with 1/n it has the exponents of Init[A].",
    ),
    Answer(
        when={"hayou_variance.better_than_init_b": "holds", "hayou_variance.as_good_as_init_a": "holds"},
        says="With 1/n the encoder is as good from Init[B] as from Init[A].",
    ),
    Answer(
        when={"hayou_variance.better_than_init_b": "holds", "hayou_variance.as_good_as_init_a": "undecided"},
        says="In the encoder 1/n is better than 1/r; that it is as good as Init[A] is not shown.",
    ),
    Answer(
        when={"hayou_toy.loraplus_rates": "holds"},
        says="With the rates of LoRA+ the difference is gone in the toy: both starts then learn with both factors.",
    ),
    Answer(
        when={"hayou_glue.behind_at_small_rates": "holds"},
        says="Far below the best rate it is Init[B] that learns faster.",
    ),
)  # fmt: skip

# The paper on asymmetry -----------------------------------------------------------------------------------------------

_AS_GOOD_ON_IMAGES = "zhu_vision.nearly_as_well"
_ZHU = (
    Answer(
        when={B_OVER_A: "holds", B_OVER_A_ON_IMAGES: "holds"},
        says="Right in the main: B over a random, held A is the better one to train, each factor at its own rate, in an"
        " encoder on sentence classification and in a vision transformer in the domain that is trained on.",
    ),
    Answer(
        when={B_OVER_A: "holds", B_OVER_A_ON_IMAGES: OPEN},
        says="Right in the main: B over a random, held A is the better one to train on sentence classification, each"
        " factor at its own rate. On images that is not shown.",
    ),
    Answer(
        when={B_OVER_A: OPEN, B_OVER_A_ON_IMAGES: "holds"},
        says="Right on images: B over a random, held A is the better one to train, each factor at its own rate, in the"
        " domain that is trained on. On sentence classification accuracy does not show it.",
    ),
    Answer(
        when={B_OVER_A: OPEN, LOWER_TEST_LOSS: "holds"},
        says="There it ends with the lower test loss, on seeds that were new when that was asked.",
    ),
    Answer(
        when={B_OVER_A: OPEN, LOWER_TEST_LOSS: "undecided"},
        says="Nor does the test loss, on seeds that were new when that was asked.",
    ),
    Answer(
        when={SAME_RANK: "holds", _AS_GOOD_ON_IMAGES: "holds"},
        says="On sentence classification and on these images a random A does as well as a trained one, within the"
        " margin.",
    ),
    Answer(
        when={SAME_RANK: OPEN, _AS_GOOD_ON_IMAGES: "holds"},
        says="A random A does as well as a trained one, within the margin, on these images; on sentence classification"
        " that is not shown.",
    ),
    Answer(
        when={SAME_RANK: "holds", _AS_GOOD_ON_IMAGES: OPEN},
        says="A random A does as well as a trained one, within the margin, on sentence classification; on images that"
        " is not shown.",
    ),
    Answer(
        when={"zhu_llama.b_over_a_loss": "undecided", "zhu_llama.nearly_as_well": "undecided"},
        says="For a decoder on instructions the seeds decide neither which factor is the better one nor whether B alone"
        " does as well as both.",
    ),
    Answer(
        when={
            "zhu_least_squares.theorem_in_its_regime": "holds", "zhu_least_squares.theorem_without_conditions": "fails",
        },
        says="Its theorem at one layer is right where inputs fill few dimensions and the update reads them as they"
        " come, and not without conditions: where the update reads inputs of low variance A alone ends lower.",
    ),
    Answer(
        when={
            "zhu_inputs.inputs_fill_few": "holds", "zhu_inputs.random_a_reaches_more": "holds",
            "zhu_inputs.order_as_predicted": OPEN,
        },
        says="In three pretrained transformers inputs fill few dimensions, and a random A leaves more of the first"
        " gradient in reach; that this tells where A alone loses is not shown.",
    ),
    Answer(
        when={
            "zhu_inputs.inputs_fill_few": "holds", "zhu_inputs.random_a_reaches_more": "holds",
            "zhu_inputs.order_as_predicted": "holds",
        },
        says="In three pretrained transformers inputs fill few dimensions, a random A leaves more of the first gradient"
        " in reach, and A alone loses most where it is predicted to reach least.",
    ),
    Answer(
        when={
            "zhu_cca.a_alike_if_shared": "holds", "zhu_cca.b_follows_the_task": "holds", "zhu_cca.reversed": "holds",
            "zhu_cca.hardly_moves": "fails",
        },
        says="It is right that A is alike across tasks where the start is shared, though A moves by more than half"
        " its norm at its own rate, and that B follows the task. Both are of the start: with A started at zero and B"
        " at random the letters change places.",
    ),
    Answer(
        when={"zhu_init_scale.falls_behind": "holds", "zhu_init_scale.unit_columns_close_it": "holds"},
        says="A under a frozen Kaiming B falls behind at the rate that suits an orthonormal one; columns of length 1"
        " mend that, so that most of it is their size and not the draw.",
    ),
    Answer(
        when={"zhu_singular.released_at_chance": "holds"},
        says="If its rows V and U came from the released code they say nothing of singular vectors: there these never"
        " see the pretrained weight.",
    ),
    Answer(
        when={"zhu_bounds.improves": "holds", "zhu_bounds.vacuous": "holds", "zhu_bounds.tells_b_from_a": "fails"},
        says="Its bound is smaller for one factor than for two, as it says; it lies above any gap that there can be,"
        " and is smaller for B than for A only at layers that have fewer outputs than inputs.",
    ),
    Answer(
        when={"zhu_gap.smaller_with_b": "undecided", "zhu_gap.smaller_at_equal_loss": "holds"},
        says="That B alone has the smaller gap between training and test rows is shown in loss, at equal training loss,"
        " and not in accuracy at equal steps.",
    ),
    Answer(
        when={
            SAME_VALUES: "holds", "zhu_rank.as_good_as_both": "undecided",
            "zhu_rank.doubling_helps": "undecided",
        },
        says="At twice the rank, with as many values, B alone is no more than the margin worse than both in sentence"
        " classification; whether it is no better either, and whether twice the rank beats once, is not decided.",
    ),
    Answer(
        when={
            SAME_VALUES: OPEN, "zhu_rank.as_good_as_both": "undecided",
            "zhu_rank.doubling_helps": "undecided",
        },
        says="That B alone at twice the rank, with as many values, is neither better nor worse than both is not"
        " decided, and not that it is better than at once the rank.",
    ),
    Answer(
        when={"zhu_summaries.below_both": "holds"},
        says="In writing texts both factors are ahead of it, as in its table.",
    ),
    Answer(
        when={"zhu_summaries.below_both": "undecided", "zhu_summaries.above_a_only": "undecided"},
        says="In writing texts a small model tells none of the three apart.",
    ),
)  # fmt: skip

PAPERS = (
    Paper(
        arxiv="2406.08447",
        name="Hayou, Ghosh and Yu 2024",
        title="The Impact of Initialization on LoRA Finetuning Dynamics",
        in_words=_HAYOU,
    ),
    Paper(
        arxiv="2402.16842",
        name="Zhu et al. 2024",
        title="Asymmetry in Low-Rank Adapters of Foundation Models",
        in_words=_ZHU,
    ),
)
"""In the order of the page."""
