"""Questions and answers of the page "Which factor should I train?", each with the verdicts that it stands on. No torch.

Nothing here is true by itself: `asymlora.reproduce.factor_guide` gives an answer where the kept findings have its
verdicts, and none where they have not.
"""

from __future__ import annotations

from asymlora.factor_spec import FactorSpec
from asymlora.papers.factor_by_task import B_OVER_A, EQUAL_VALUES, OPEN, QUESTIONS, SAME_RANK
from asymlora.reproduce.factor_guide import Answer, Default, Guide, Question
from asymlora.spec import AdapterSpec
from asymlora.sweep.rates import rate_text
from asymlora.train.recipe import TrainRecipe

COMMAND = "python experiments/which_factor_page.py"

# Layers, starts, rates ------------------------------------------------------------------------------------------------

_LAYERS = Question(
    title="At which layers is A the one to train?",
    asks=(
        "zhu_least_squares.criterion", "zhu_least_squares.reversed_at_few_outputs",
        "zhu_least_squares.reversed_at_low_variance", "zhu_inputs.inputs_fill_few",
        "zhu_inputs.signs_as_predicted", "zhu_inputs.order_as_predicted",
        "zhu_inputs.criterion_agrees", "zhu_inputs.weakest_at_down_projections",
    ),
    answers=(
        Answer(
            when={
                "zhu_least_squares.criterion": "holds", "zhu_least_squares.reversed_at_few_outputs": "holds",
                "zhu_inputs.signs_as_predicted": "holds",
            },
            says="Where a layer has fewer outputs than its inputs fill dimensions. That is exact for least squares, and"
            " tells on a real model which factor ends with the lower training loss in each group of layers.",
        ),
        Answer(
            when={
                "zhu_least_squares.criterion": "holds", "zhu_least_squares.reversed_at_few_outputs": "holds",
                "zhu_least_squares.reversed_at_low_variance": "holds", "zhu_inputs.inputs_fill_few": "holds",
                "zhu_inputs.signs_as_predicted": OPEN,
            },
            says="At none that is shown. For least squares and an update that reads inputs as they come, A is the one"
            " where outputs are fewer than the dimensions that inputs fill, and no layer of a block in the three"
            " transformers is such; an update that reads inputs of low variance favours A at any layer. Whether either"
            " tells which factor trains better on a real model is not shown.",
        ),
        Answer(
            when={
                "zhu_least_squares.criterion": "holds", "zhu_least_squares.reversed_at_few_outputs": "holds",
                "zhu_inputs.signs_as_predicted": OPEN,
            },
            says="In theory, where a layer has fewer outputs than its inputs fill dimensions. For least squares it is"
            " so; on a real model it is not shown that this tells which factor trains better.",
        ),
        Answer(
            when={"zhu_least_squares.criterion": "holds", "zhu_least_squares.reversed_at_few_outputs": "holds"},
            says="In theory, where a layer has fewer outputs than its inputs fill dimensions. For least squares it is"
            " so.",
        ),
    ),
)  # fmt: skip
_HELD_A = Question(
    title="How should a held A start?",
    asks=(
        "zhu_singular.informed_as_random",
        "zhu_singular.released_at_chance",
        "zhu_singular.released_as_random",
        "zhu_glue.table",
    ),
    answers=(
        Answer(
            when={"zhu_singular.informed_as_random": "holds"},
            says="At random, with orthonormal rows. Singular vectors of the pretrained weight are no better.",
        ),
        Answer(
            when={"zhu_singular.informed_as_random": "fails above"},
            says="From the leading singular vectors of the pretrained weight. They are better than a random A by more"
            " than the margin: --adapter.A.init top_singular.",
        ),
        Answer(
            when={"zhu_singular.informed_as_random": "fails below"},
            says="At random, with orthonormal rows. Singular vectors of the pretrained weight are worse.",
        ),
        Answer(
            when={"zhu_singular.informed_as_random": "undecided"},
            says="At random. That singular vectors of the pretrained weight are better is not shown, nor that they are"
            " as good. The default draws orthonormal rows; that they are better or worse than Kaiming's is not tested"
            " (a row of the table of zhu_glue has both, each at its own rate, Kaiming's at the larger one).",
        ),
    ),
)
_HELD_B = Question(
    title="And a held B?",
    asks=(
        "zhu_init_scale.falls_behind", "zhu_init_scale.smaller_rate_closes_it",
        "zhu_init_scale.unit_columns_close_it", "zhu_init_scale.as_good_at_its_own_rate",
        "zhu_init_scale.rates_apart_by_the_norm", "zhu_glue.kaiming_b_collapses",
    ),
    answers=(
        Answer(
            when={"zhu_init_scale.falls_behind": "holds", "zhu_init_scale.as_good_at_its_own_rate": "holds"},
            says="With columns of length 1, or with a rate divided by their length. Kaiming's draw has long columns and"
            " falls behind at a shared rate; at a rate of its own it does not.",
        ),
        Answer(
            when={"zhu_init_scale.falls_behind": "holds", "zhu_init_scale.smaller_rate_closes_it": "holds"},
            says="With columns of length 1, or with a rate divided by their length. Kaiming's draw has long columns and"
            " falls behind at a shared rate, and the smaller rate closes most of the gap.",
        ),
        Answer(
            when={"zhu_init_scale.falls_behind": "holds", "zhu_init_scale.unit_columns_close_it": "holds"},
            says="With columns of length 1: orthonormal ones, or another draw divided by its length. Kaiming's draw has"
            " long columns, and falls behind at the rate that suits orthonormal ones: it needs a smaller rate. That any"
            " is as good as an orthonormal one has not been shown.",
        ),
        Answer(
            when={"zhu_init_scale.falls_behind": "holds"},
            says="With orthonormal columns. Kaiming's draw falls behind at a shared rate.",
        ),
        Answer(
            when={"zhu_init_scale.falls_behind": OPEN},
            says="As you like: Kaiming's draw is not shown to fall behind an orthonormal one.",
        ),
    ),
)  # fmt: skip
_INIT = Question(
    title="With both factors trained, which one starts at zero?",
    asks=(
        "hayou_glue.better_on_average", "hayou_glue.stable_rate_larger", "hayou_glue.behind_at_small_rates",
        "hayou_variance.as_good_as_init_a", "hayou_loraplus.difference_shrinks", "hayou_lm.lower_loss",
        "hayou_llama.lower_loss", "zhu_glue.starts_of_a_pair",
    ),
    answers=(
        Answer(
            when={
                "hayou_glue.better_on_average": "holds", "hayou_glue.behind_at_small_rates": "holds",
                "hayou_variance.as_good_as_init_a": "undecided",
            },
            says="B, where the random factor has its usual variance (1/n for A, 1/r for B): with A random and B zero"
            " (Init[A]) runs end better on average over the sentence sets where something is learnt, each at its own"
            " rate. Far below that rate the other start learns faster. With a random B of variance 1/n it is neither"
            " shown to be worse nor to be as good.",
        ),
        Answer(
            when={"hayou_glue.better_on_average": "holds", "hayou_glue.behind_at_small_rates": "holds"},
            says="B: with A random and B zero (Init[A]) runs end better on average over the sentence sets where"
            " something is learnt, each at its own rate. Far below that rate the other start learns faster.",
        ),
        Answer(
            when={"hayou_glue.better_on_average": "holds"},
            says="B: with A random and B zero (Init[A]) runs end better on average over the sentence sets where"
            " something is learnt, each at its own rate.",
        ),
        Answer(
            when={"hayou_glue.better_on_average": "fails"},
            says="A: B random and A zero (Init[B]) is better on average, each at its own rate.",
        ),
        Answer(
            when={
                "hayou_glue.better_on_average": "undecided", "hayou_glue.stable_rate_larger": "holds",
            },
            says="B: A random and B zero (Init[A]) stands larger rates. Which one ends better is not decided.",
        ),
        Answer(
            when={"hayou_glue.better_on_average": "undecided"},
            says="Either: the seeds do not tell which one ends better.",
        ),
    ),
)  # fmt: skip
_RATE = Question(
    title="Which learning rate to start from?",
    asks=(
        "advice.rate_near_tuned", "hayou_glue.optimal_rates_differ", "hayou_glue.optimal_rate_larger",
        "hayou_glue.stable_rate_larger", "hayou_lm.larger_rate", "hayou_llama.larger_rate",
    ),
    answers=(
        Answer(
            when={"advice.rate_near_tuned": "holds below"},
            says="The best one of a sweep of ours for the nearest arm, model and length of training: they stand below."
            " Of asymlora advise try its rate and rates up to four times as large: on the one set where a sweep of B"
            " alone at rank 16 stood beside, it lay below what that found, by two octaves at most.",
        ),
        Answer(
            when={"advice.rate_near_tuned": "holds"},
            says="The best one of a sweep of ours for the nearest arm, model and length of training: they stand below."
            " From asymlora advise its rate and up to four times more or less: on the one set where both were tried it"
            " lay within two octaves of what a sweep finds.",
        ),
        Answer(
            when={"advice.rate_near_tuned": OPEN, "hayou_glue.optimal_rates_differ": "holds"},
            says="One that a short sweep finds for the arm at hand. Arms have best rates of their own, and the advised"
            " rate is not shown to be near: the best rates found stand below.",
        ),
        Answer(
            when={"hayou_glue.optimal_rates_differ": "holds"},
            says="One that a short sweep finds for the arm at hand, around the best rates that ours found, which stand"
            " below. To change which factor starts at zero is enough to move the best rate.",
        ),
        Answer(
            when={"hayou_glue.optimal_rates_differ": OPEN},
            says="One that a short sweep finds. That starts have best rates of their own is not shown.",
        ),
    ),
)  # fmt: skip
_ADVICE = Question(
    title="Is it worth asking asymlora advise?",
    asks=(
        "advice.beats_lora", "advice.beats_b_only", "advice.beats_own_default", "advice.as_good_as_tuned_lora",
        "advice.as_good_as_tuned_b_only", "advice.cost_in_time", "advice.what_is_advised",
    ),
    answers=(
        Answer(
            when={"advice.beats_own_default": "holds", "advice.cost_in_time": "fails"},
            says="By the count of its steps, yes; by the clock it costs more. Its recipe beats the default of asymlora"
            " finetune where its cost is counted in steps.",
        ),
        Answer(
            when={"advice.beats_own_default": "holds"},
            says="Yes. Its recipe beats the default of asymlora finetune, its own cost counted.",
        ),
        Answer(
            when={
                "advice.beats_lora": "holds", "advice.beats_b_only": "holds", "advice.beats_own_default": OPEN,
            },
            says="Instead of LoRA at 2e-4, yes; instead of the default of asymlora finetune it is not shown to be. Its"
            " own cost is counted.",
        ),
        Answer(
            when={
                "advice.beats_lora": OPEN, "advice.beats_own_default": OPEN,
                "advice.as_good_as_tuned_lora": "holds", "advice.as_good_as_tuned_b_only": OPEN,
                "advice.cost_in_time": "fails",
            },
            says="Not before a run as short as these, where it is not shown to beat plain defaults and by the clock"
            " costs more than its steps. In place of a search perhaps: without one its recipe is as good as LoRA at its"
            " own best rate, on one set; against B alone at its own that is not decided. Longer runs were not tried.",
        ),
        Answer(
            when={"advice.beats_own_default": OPEN, "advice.as_good_as_tuned_b_only": "holds"},
            says="Before a long run. Its recipe is as good as a tuned one, but before a run as short as these it is not"
            " shown to repay its cost.",
        ),
        Answer(
            when={"advice.beats_own_default": OPEN},
            says="For its reasons rather than its recipe. That the recipe beats the defaults is not shown.",
        ),
    ),
)  # fmt: skip


# The page -------------------------------------------------------------------------------------------------------------


def _said(factor: FactorSpec) -> str:
    start = factor.init if isinstance(factor.init, str) else "a function"
    return f"{start}, {'trained' if factor.trainable else 'held'}"


def defaults() -> tuple[Default, ...]:
    """Return the defaults of ``asymlora finetune``, read from the code, with the findings that bear on them."""
    spec, train = AdapterSpec(), TrainRecipe()
    return (
        Default(
            what="the factors", value=f"A: {_said(spec.A)}; B: {_said(spec.B)}",
            asks=(B_OVER_A, SAME_RANK, "zhu_singular.informed_as_random", "advice.beats_own_default"),
        ),
        Default(
            what="the rank", value=f"{spec.rank} at every layer", asks=(EQUAL_VALUES, "zhu_rank.doubling_helps"),
        ),
        Default(
            what="the learning rate (tried below at rank 16)", value=rate_text(train.lr),
            asks=("advice.beats_own_default", "advice.as_good_as_tuned_b_only"),
        ),
    )  # fmt: skip


GUIDE = Guide(
    title="Which factor should I train?",
    opening="Answers for who is about to fine-tune, from experiments with small models on two cores: an encoder of 22 M"
    " values, a decoder of 135 M, an encoder-decoder of 8 M and a vision transformer of 22 M, trained for 16 to 160"
    " steps. Larger models and longer runs may differ.",
    questions=(*QUESTIONS, _LAYERS, _HELD_A, _HELD_B, _INIT, _RATE, _ADVICE),
    defaults=defaults(),
    command=COMMAND,
)  # fmt: skip
"""All of the page that does not depend on results."""
