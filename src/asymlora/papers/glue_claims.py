"""Claims of hayou_glue: best and largest stable learning rates, and who is better at its own best one. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from asymlora.papers.bracketed import AT_AN_END, open_arms, undecided_at_ends
from asymlora.papers.hayou_settings import ABSTRACT, EXPERIMENTS
from asymlora.papers.stated_tests import UNTOLD, known_before
from asymlora.papers.text_evidence import (
    CENSORED,
    KNOWN_EDGES,
    MAIN_SET,
    STABLE_WORDS,
    TWO_LOOKS,
    at_paper_scale,
    by_set,
    counted_sets,
    difference_text,
    main_sweep,
    mean_over,
    stable_edges,
    tuning_rows,
)
from asymlora.papers.text_sweeps import GLUE_SETS, SMALL_SETS
from asymlora.reproduce.by_seed import BySeed
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, SweepEvidence
from asymlora.reproduce.paired_tests import NATS, OCTAVES, POINTS, described, not_testable, paired_finding
from asymlora.reproduce.rates_by_seed import (
    best_ends,
    best_rates,
    closing_values,
    comparable_rates,
    is_interior,
    rate_sentence,
    tuned_rate,
)
from asymlora.reproduce.run_measures import last_loss
from asymlora.sweep.rates import rate_text

RATES_PART = "trec6"
SMALL_TITLES = {each.name: each.title for each in SMALL_SETS}
PAPER_TITLES = {name: each.title for name, each in GLUE_SETS.items()}
NAMES = {"init_a": "Init[A]", "init_b": "Init[B]"}
SHARED_WITHIN = 0.5
"""Octaves. The grid's step is 1.7, so that a parabola through three rates tells no less than a third of it."""
_MAIN = (RATES_PART, "mnli")
_ALL = tuple(dict.fromkeys((*SMALL_TITLES, *PAPER_TITLES)))


# Claims of the abstract ----------------------------------------------------------------------------------------------


def _rates_differ(evidence: Evidence) -> Finding:
    sweep = main_sweep(evidence)
    first, second, open_seeds = _comparable_best(sweep)
    found = paired_finding(
        first, second, claimed="different", show=OCTAVES,
        what="Best rate of Init[A] over that of Init[B], tuning seed by tuning seed",
        # A bound tells that the rates differ, and not by how little.
        none_within=None if open_seeds & set(first) else SHARED_WITHIN,
    )  # fmt: skip
    return _with(found, _bounds_said(open_seeds), _rates_said(sweep))


def _larger_rate(evidence: Evidence) -> Finding:
    sweep = main_sweep(evidence)
    first, second, open_seeds = _comparable_best(sweep)
    found = paired_finding(
        first, second, claimed="greater", show=OCTAVES,
        what="Best rate of Init[A] over that of Init[B], tuning seed by tuning seed",
    )  # fmt: skip
    return _with(found, _bounds_said(open_seeds), _rates_said(sweep))


def _comparable_best(sweep: SweepEvidence) -> tuple[BySeed, BySeed, set[int]]:
    """Return the best rates at seeds whose difference has a known sign, and the seeds at which one is a bound."""
    upper, lower = ([set(best_ends(sweep, arm, end=end)) for arm in NAMES] for end in ("upper", "lower"))
    first, second = comparable_rates(
        *(best_rates(sweep, arm) for arm in NAMES),
        open_first=upper[0], open_second=upper[1], low_first=lower[0], low_second=lower[1],
    )  # fmt: skip
    return first, second, set[int]().union(*upper, *lower)


def _bounds_said(open_seeds: set[int]) -> str:
    if not open_seeds:
        return ""
    return f"At {len(open_seeds)} seeds ({', '.join(map(str, sorted(open_seeds)))}) a best rate is an end of the grid."


def _better_on_average(evidence: Evidence) -> Finding:
    titles = _titles(evidence)
    sweeps = {name: evidence.sweep(name) for name in titles}
    counted = counted_sets(sweeps, tuple(NAMES))
    beside = f"Over all {len(titles)} sets: {_mean_said(sweeps)}. {_by_set(sweeps, titles)}"
    if not counted:
        return described(f"On no set have all tuning runs of an arm learnt anything. {beside}")
    first, second = (mean_over({name: sweeps[name] for name in counted}, arm) for arm in NAMES)
    found = paired_finding(
        first, second, claimed="greater", show=POINTS,
        what=f"Mean over {_listed(counted, titles)} of Init[A] less Init[B], each at its own best rate",
    )  # fmt: skip
    passed_over = [name for name in titles if name not in counted]
    said = f"Not counted, as nothing was learnt there: {_listed(passed_over, titles)}." if passed_over else ""
    ends = [end for name in counted for end in open_arms(sweeps[name], NAMES, where=f" on {titles[name]}")]
    return undecided_at_ends(_with(found, said, beside), ends)


def _larger_stable_rate(evidence: Evidence) -> Finding:
    edges = stable_edges(evidence, "init_a", "init_b")
    first, second = edges.comparable()
    found = paired_finding(
        first, second, claimed="greater", show=OCTAVES,
        what="Largest stable rate of Init[A] over that of Init[B], tuning seed by tuning seed",
    )  # fmt: skip
    return _with(found, edges.sentence)


# Further claims ------------------------------------------------------------------------------------------------------


def _ratio_of_rates(evidence: Evidence) -> Finding:
    said: list[str] = []
    for name, title in _titles(evidence).items():
        sweep = evidence.sweep(name)
        first, second = (tuned_rate(sweep, arm) for arm in NAMES)
        if first is None or second is None:
            said.append(f"{title}: a rate is not settled")
            continue
        edge = "" if all(is_interior(sweep, arm) for arm in NAMES) else ", one of them at an end of its grid"
        said.append(f"{title}: {rate_text(first)} over {rate_text(second)}, ratio {first / second:.3g}{edge}")
    return described(f"Tuned rate of Init[A] over that of Init[B]. {'; '.join(said)}.")


def _difference_by_set(evidence: Evidence) -> Finding:
    titles = _titles(evidence)
    sweeps = {name: evidence.sweep(name) for name in titles}
    said = _by_set(sweeps, titles)
    return described(f"Init[A] less Init[B], each at its own best rate, with the intervals of single tests. {said}")


def _behind_at_small_rates(evidence: Evidence) -> Finding:
    sweep = main_sweep(evidence)
    rate = min(sweep.plan["rates"])
    losses = [_losses_at(evidence, arm, rate) for arm in NAMES]
    return paired_finding(
        *losses, claimed="greater", show=NATS,
        what=f"Training loss of Init[A] less that of Init[B] at the rate {rate_text(rate)}, tuning seed by tuning seed",
    )  # fmt: skip


def _losses_at(evidence: Evidence, arm: str, rate: float) -> BySeed:
    sweep = main_sweep(evidence)
    losses = {seed: last_loss(row) for seed, row in tuning_rows(sweep, arm, rate).items()}
    known = {seed: loss for seed, loss in losses.items() if loss is not None}
    return BySeed(known, planned=sweep.plan["tuning_seeds"])


def _of_glue(name: str) -> Callable[[Evidence], Finding]:
    def judge(evidence: Evidence) -> Finding:
        if not at_paper_scale(evidence):
            return not_testable(
                f"{PAPER_TITLES[name]} and RoBERTa-large are not at hand. With both from the hub, and an accelerator,"
                " asymlora reproduce hayou_glue --scale paper judges it."
            )
        sweep = evidence.sweep(name)
        found = _with(_difference(sweep, PAPER_TITLES[name]), *(rate_sentence(sweep, arm) for arm in NAMES))
        return undecided_at_ends(found, open_arms(sweep, NAMES))

    return judge


# Sentences and numbers of several claims -----------------------------------------------------------------------------


def _titles(evidence: Evidence) -> Mapping[str, str]:
    return PAPER_TITLES if at_paper_scale(evidence) else SMALL_TITLES


def _listed(names: Sequence[str], titles: Mapping[str, str]) -> str:
    return ", ".join(titles[name] for name in names)


def _with(found: Finding, *more: str) -> Finding:
    return replace(found, ours=" ".join([found.ours, *filter(None, more)]))


def _rates_said(sweep: SweepEvidence) -> str:
    return "Over all tuning seeds, " + " ".join(rate_sentence(sweep, arm) for arm in NAMES)


def _difference(sweep: SweepEvidence, title: str) -> Finding:
    return paired_finding(
        closing_values(sweep, "init_a"), closing_values(sweep, "init_b"), claimed="greater", show=POINTS,
        what=f"{title}, Init[A] less Init[B], each at its own best rate",
    )  # fmt: skip


def _by_set(sweeps: Mapping[str, SweepEvidence], titles: Mapping[str, str]) -> str:
    return by_set(sweeps, titles, first="init_a", second="init_b")


def _mean_said(sweeps: Mapping[str, SweepEvidence]) -> str:
    try:
        first, second = (mean_over(sweeps, arm) for arm in NAMES)
        return difference_text(paired_finding(first, second, claimed="greater", show=POINTS, what="all sets"))
    except MissingEvidenceError:
        return "not known"


# The claims ----------------------------------------------------------------------------------------------------------

_BY_SIGN = (
    "Holds: the mean is above 0 and p is at most the level. Fails: it is below 0 and p is at most the level. Else"
)
_KNOWN_RATES = known_before(
    f"{KNOWN_EDGES}. With a fitted head, two seeds of Init[A] had their best training loss at 3.9e-3 after 60 steps"
    " (docs/diagnostics.md)."
)
_AT_PAPER_SCALE = (
    f"At the paper's scale alone: accuracy of Init[A] less that of Init[B], paired by seed; {TWO_LOOKS}. {AT_AN_END}"
    + known_before("nothing of ours.")
)

CLAIMS = (
    Claim(
        key="optimal_rates_differ",
        says="Init[A] and Init[B] do not share one optimal learning rate.",
        kind="abstract",
        source=ABSTRACT,
        paper="8e-5 against 1e-5 on MNLI (second-hand)",
        test=f"On {MAIN_SET}, for each tuning seed the rate with the best validation accuracy, between grid points by"
        f" a parabola in log2 of the rate; {TWO_LOOKS}, on the differences of log2. Fails: two one-sided tests at the"
        f" level find the mean difference within {SHARED_WITHIN} octaves, which count as one rate, all rates being"
        f" known. Else holds: p is at most the level. Else undecided. {CENSORED}{UNTOLD}{_KNOWN_RATES}",
        parts=_MAIN,
        judge=_rates_differ,
    ),
    Claim(
        key="optimal_rate_larger",
        says="The optimal learning rate of Init[A] is larger than that of Init[B].",
        kind="abstract",
        source=f"{ABSTRACT}: generally larger",
        paper="ratio 8 on MNLI (second-hand)",
        test=f"On {MAIN_SET}, the same rates by tuning seed, differences of log2; {TWO_LOOKS}. {_BY_SIGN} undecided."
        f" {CENSORED}{UNTOLD}{_KNOWN_RATES}",
        parts=_MAIN,
        judge=_larger_rate,
    ),
    Claim(
        key="better_on_average",
        says="At its own best rate, Init[A] is better than Init[B] on average over tasks.",
        kind="abstract",
        source=ABSTRACT,
        paper="+1.22 points on MNLI (second-hand); other tasks: values not known",
        test="Test accuracy (CoLA: Matthews' correlation) of Init[A] less that of Init[B], each at the rate that its"
        " tuning runs chose, mean over the sets that count, for each closing seed: one value a seed. A set counts where"
        " at its chosen rate the tuning runs of at least one arm have all learnt: their last logged training loss, a"
        " mean of ten steps, is below 0.9 of the entropy of the set's training labels. The closing runs have no part in"
        f" that. {TWO_LOOKS.capitalize()}. {_BY_SIGN} undecided, and so where no set counts, or where on a set that"
        " does a best rate is at an end of the tried ones. Beside it stand the mean over all sets and the difference on"
        f" each: descriptions. The test is of the seeds: it says nothing of other sets.{UNTOLD}"
        + known_before(
            "single trial runs of Init[A] with the tuning seed 200, on validation: 0.89 on TREC-6, 0.81 on SST-2; 0.69"
            " on MRPC, 0.55 on RTE and a correlation of 0 on CoLA, about what the more frequent label gives. So TREC-6"
            " and SST-2 are expected to count. Of the difference, the sweep of 57 runs on TREC-6 named under"
            " stable_rate_larger."
        ),
        parts=_ALL,
        judge=_better_on_average,
    ),
    Claim(
        key="stable_rate_larger",
        says="Init[A] allows larger learning rates than Init[B] before the output becomes unstable.",
        kind="abstract",
        source=ABSTRACT,
        paper="exponent -1/2 against -1 in the width (second-hand): no number at one width",
        test=f"On {MAIN_SET}, log2 of the largest stable rate for each tuning seed, where {STABLE_WORDS}."
        f" {TWO_LOOKS.capitalize()}. {_BY_SIGN} undecided. {CENSORED}{UNTOLD}" + known_before(f"{KNOWN_EDGES}."),
        parts=_MAIN,
        judge=_larger_stable_rate,
    ),
    Claim(
        key="ratio_of_rates",
        says="The best rate of Init[A] is eight times that of Init[B].",
        kind="paper",
        source=f"{EXPERIMENTS}: RoBERTa-large on MNLI, rank 8",
        paper="8e-5 / 1e-5 = 8",
        test="None: the number is of another model and task. Described: the ratio of the two tuned rates on each set.",
        parts=_ALL,
        judge=_ratio_of_rates,
    ),
    Claim(
        key="difference_by_set",
        says="At its own best rate, Init[A] is ahead of Init[B] by 1.22 points.",
        kind="paper",
        source=f"{EXPERIMENTS}: RoBERTa-large on MNLI, rank 8",
        paper="90.69 - 89.47 = 1.22 points",
        test="None: the number is of another model and task. Described: the paired difference on each set with its"
        " interval, set by set and uncorrected for their number.",
        parts=_ALL,
        judge=_difference_by_set,
    ),
    Claim(
        key="mnli",
        says="On MNLI, Init[A] is better than Init[B], each at its own best rate.",
        kind="paper",
        source=f"{EXPERIMENTS}: RoBERTa-large, rank 8",
        paper="90.69 at 8e-5 against 89.47 at 1e-5",
        test=_AT_PAPER_SCALE,
        parts=("mnli",),
        judge=_of_glue("mnli"),
    ),
    Claim(
        key="qnli",
        says="On QNLI, Init[A] is better than Init[B], each at its own best rate.",
        kind="question",
        source=f"{EXPERIMENTS}: that QNLI was swept; its outcome is not known, and the abstract speaks of an average",
        paper="a figure; values not known",
        test=_AT_PAPER_SCALE,
        parts=("qnli",),
        judge=_of_glue("qnli"),
    ),
    Claim(
        key="behind_at_small_rates",
        says="At rates far below the best one, it is Init[B] that learns faster.",
        kind="question",
        source="github.com/aweers/lora-init (another model and task, values read off a plot): Init[B] ahead at 1e-4",
        paper="",
        test=f"On {MAIN_SET}, at the smallest rate of the first grid: last logged training loss (mean of ten steps,"
        " each row seen once, so it is that of unseen rows) of Init[A] less that of Init[B] by tuning seed; exact"
        f" two-sided sign-flip test at the level of the abstract's claims. {_BY_SIGN} undecided.{UNTOLD}"
        + known_before("of our own, that a tiny transformer shows it (docs/theory.md, two controlled runs)."),
        parts=_MAIN,
        judge=_behind_at_small_rates,
    ),
)
"""All of them."""
