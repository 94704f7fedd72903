"""Claims of `advice`: is an advised recipe better than a plain one, and is its cost well counted? No torch in here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from asymlora.papers.advice_runs import (
    ADVISED,
    B_ALONE,
    BATCH_SIZE,
    LORA,
    OWN,
    PAPER_SET,
    PLAIN,
    SETS,
    STEPS,
    TITLES,
    TUNED,
    TUNED_SETS,
    part_name,
)
from asymlora.papers.bracketed import AT_AN_END, open_arms, undecided_at_ends
from asymlora.papers.stated_tests import UNTOLD, known_before
from asymlora.papers.text_evidence import ONE_LOOK
from asymlora.reproduce.by_seed import BySeed, asked_for
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record, SweepEvidence
from asymlora.reproduce.paired_tests import (
    OCTAVES,
    POINTS,
    RATIO,
    bound_finding,
    equivalence_finding,
    exact_finding,
    paired_finding,
)
from asymlora.reproduce.rates_by_seed import closing_values, rate_sentence, tuned_rate
from asymlora.sweep.rates import rate_text

NONE_WITHIN, BEHIND = 0.01, 0.015
"""Of the accuracy, stated before the runs: a difference that counts as none, and how far behind is as good."""
RATE_OCTAVES, TIME_RATIO = 2.0, 1.25
"""Stated before the runs: octaves within which two rates agree, and time over that of the counted steps."""
NAMES: Mapping[str, str] = {LORA: "LoRA, rank 8", B_ALONE: "B alone, rank 16"}
_SMALL_SWEEPS = tuple(
    part_name(each.name, which) for each in SETS for which in (PLAIN, OWN, *((TUNED,) if each.tuned else ()))
)
_PAPER_SWEEPS = tuple(part_name(PAPER_SET, which) for which in (PLAIN, OWN, TUNED))
_PARTS = (*_SMALL_SWEEPS, ADVISED, *_PAPER_SWEEPS)


# What the records say ------------------------------------------------------------------------------------------------


def advised_sets(evidence: Evidence) -> tuple[str, ...]:
    """Return the sets of which there are advised runs.

    Args:
        evidence: Records of the artefact.
    """
    return tuple(dict.fromkeys(record["set"] for record in evidence.records(ADVISED)))


def advised_values(evidence: Evidence, text_set: str, field: str, *, cost_counted: bool) -> BySeed:
    """Return a figure of the advised runs of one set by seed; those that diverged have none.

    Args:
        evidence: Records of the artefact.
        text_set: The set.
        field: Name of the figure in the records.
        cost_counted: Of the runs that have fewer steps by the advice's cost, or of those with all steps.
    """
    records = [r for r in advised_records(evidence, text_set) if r["cost_counted"] == cost_counted]
    found = {r["seed"]: float(r[field]) for r in records if r[field] is not None}
    return BySeed(found, planned=[r["seed"] for r in records])


def advised_records(evidence: Evidence, text_set: str) -> list[Record]:
    """Return the records of the advised runs of one set.

    Args:
        evidence: Records of the artefact.
        text_set: The set.
    """
    return [record for record in evidence.records(ADVISED) if record["set"] == text_set]


def _mean_over(sets: Sequence[BySeed]) -> BySeed:
    seeds = [seed for seed in asked_for(*sets) if all(seed in values for values in sets)]
    means = {seed: statistics.fmean(values[seed] for values in sets) for seed in seeds}
    return BySeed(means, planned=asked_for(*sets))


# Claims --------------------------------------------------------------------------------------------------------------


def _beats(which: str, arm: str, rival: str) -> Callable[[Evidence], Finding]:
    """Return the judge of "the advised recipe is better than a plain one", the advice's cost counted."""

    def judge(evidence: Evidence) -> Finding:
        sets = advised_sets(evidence)
        ours = [advised_values(evidence, name, "accuracy", cost_counted=True) for name in sets]
        theirs = [closing_values(evidence.sweep(part_name(name, which)), arm) for name in sets]
        found = paired_finding(
            _mean_over(ours), _mean_over(theirs), claimed="greater", show=POINTS, none_within=NONE_WITHIN,
            what=f"Mean over {_titles(sets)}: accuracy of the advised recipe less that of {rival}",
        )  # fmt: skip
        free = [advised_values(evidence, name, "accuracy", cost_counted=False) for name in sets]
        counted, uncounted = (_by_set(sets, side, theirs) for side in (ours, free))
        return replace(found, ours=f"{found.ours} By set: {counted}. Were the advice free: {uncounted}.")

    return judge


def _titles(sets: Sequence[str]) -> str:
    return " and ".join(TITLES[name] for name in sets)


def _by_set(sets: Sequence[str], first: Sequence[BySeed], second: Sequence[BySeed]) -> str:
    said: list[str] = []
    for name, one, other in zip(sets, first, second, strict=True):
        differences = [one[seed] - other[seed] for seed in one if seed in other]
        said.append(f"{TITLES[name]} {POINTS.text(statistics.fmean(differences)) if differences else 'not known'}")
    return "; ".join(said)


def _as_good_as_tuned(arm: str) -> Callable[[Evidence], Finding]:
    """Return the judge of "the advised recipe is not far behind a plain one at its own best rate"."""

    def judge(evidence: Evidence) -> Finding:
        name = _tuned_set(evidence)
        sweep = evidence.sweep(part_name(name, TUNED))
        ours, theirs = advised_values(evidence, name, "accuracy", cost_counted=False), closing_values(sweep, arm)
        differences = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
        found = bound_finding(
            BySeed(differences, planned=asked_for(ours, theirs)), claimed="above", bound=-BEHIND, show=POINTS,
            what=f"{TITLES[name]}: accuracy of the advised recipe less that of {NAMES[arm]} at its best rate",
        )  # fmt: skip
        said = replace(found, ours=f"{found.ours} {_in_all(evidence, name, sweep, arm)} {rate_sentence(sweep, arm)}")
        return undecided_at_ends(said, open_arms(sweep, {arm: NAMES[arm]}))

    return judge


def _in_all(evidence: Evidence, text_set: str, sweep: SweepEvidence, arm: str) -> str:
    """Return what both ways took in steps: advice and one run, or the search of the rate and one run."""
    records = [r for r in advised_records(evidence, text_set) if not r["cost_counted"]]
    ours = statistics.fmean(_counted(r) + r["steps"] for r in records)
    rows = [row for row in sweep.rows if row.arm == arm]
    search = sum(row.steps for row in rows if row.phase == "tuning")
    theirs = search + max(row.planned_steps for row in rows if row.phase == "closing")
    return f"Steps in all: {ours:,.0f} with the advice, {theirs:,} with the search."


def _tuned_set(evidence: Evidence) -> str:
    found = next((name for name in advised_sets(evidence) if name in TUNED_SETS), None)
    if found is None:
        raise MissingEvidenceError("advised runs of a set with tuned rates")
    return found


def _rate_is_near(evidence: Evidence) -> Finding:
    name = _tuned_set(evidence)
    sweep = evidence.sweep(part_name(name, TUNED))
    best = tuned_rate(sweep, B_ALONE)
    if best is None:
        raise MissingEvidenceError(f"the best rate of {B_ALONE}")
    rates = advised_values(evidence, name, "lr", cost_counted=True)
    octaves = BySeed({seed: math.log2(rate / best) for seed, rate in rates.items()}, planned=rates.planned)
    found = equivalence_finding(
        octaves, dict.fromkeys(octaves.planned, 0.0), margin=RATE_OCTAVES, show=OCTAVES,
        what=f"{TITLES[name]}: advised rate over the best rate of {NAMES[B_ALONE]}",
    )  # fmt: skip
    said = replace(found, ours=f"{found.ours} {rate_sentence(sweep, B_ALONE)}")
    return undecided_at_ends(said, open_arms(sweep, {B_ALONE: NAMES[B_ALONE]}))


def _cost_in_time(evidence: Evidence) -> Finding:
    sets = advised_sets(evidence)
    ratios = _mean_over([_time_ratios(evidence, name) for name in sets])
    found = bound_finding(
        ratios, claimed="below", bound=TIME_RATIO, show=RATIO,
        what=f"Seconds of the advice over those of the steps that are counted for it, mean over {_titles(sets)}",
    )  # fmt: skip
    counted = {name: [_counted(r) for r in advised_records(evidence, name) if r["cost_counted"]] for name in sets}
    said = "; ".join(f"{TITLES[name]} {min(steps)} to {max(steps)}" for name, steps in counted.items())
    return replace(found, ours=f"{found.ours} Counted steps: {said}.")


def _time_ratios(evidence: Evidence, text_set: str) -> BySeed:
    records = [r for r in advised_records(evidence, text_set) if not r["cost_counted"] and r["status"] == "finished"]
    ratios = {r["seed"]: r["advice_seconds"] / (_counted(r) * r["train_seconds"] / r["steps"]) for r in records}
    return BySeed(ratios, planned=[r["seed"] for r in advised_records(evidence, text_set)])


def _counted(record: Record) -> int:
    return record["range_steps"] + record["gradient_steps"] + record["head_steps"]


def _what_is_advised(evidence: Evidence) -> Finding:
    said, everywhere = list[str](), True
    for name in advised_sets(evidence):
        records = [r for r in advised_records(evidence, name) if r["cost_counted"]]
        everywhere = everywhere and not any(r["sites_A"] or r["sites_both"] for r in records)
        layers = [r["sites_A"] + r["sites_B"] + r["sites_both"] for r in records]
        share = statistics.fmean(r["sites_B"] / count for r, count in zip(records, layers, strict=True))
        rates = [r["lr"] for r in records]
        own = sum(bool(r["per_site_ranks"]) for r in records)
        values = f"{min(r['values'] for r in records):,} to {max(r['values'] for r in records):,}"
        said.append(
            f"{TITLES[name]}: B alone at {share:.0%} of the layers, rates {rate_text(min(rates))} to"
            f" {rate_text(max(rates))}, ranks by layer at {own} of {len(records)} seeds, {values} values"
        )
    return exact_finding(everywhere, f"{'. '.join(said)}.")


# The claims ----------------------------------------------------------------------------------------------------------

_SOURCE = "no claim of a paper: asked of asymlora advise, whose rules are this library's"
_COUNTED = (
    "Each advised run has as many steps fewer as its advice cost, at least one being left: the steps of its range test,"
    " a step for each batch of its gradient pass, and a third of a step for each batch of rows whose features its head"
    " was fitted on. Factors hold at most as many trained values as those of LoRA of rank 8, which is as many as B"
    " alone of rank 16 has. Every run starts from a head that is fitted on the frozen model, as asymlora finetune does."
)
_KNOWN = known_before(
    "of one advice on TREC-6 and one on SST-2 (docs/diagnostics.md, 2,000 rows, 32 a step): rates of 1.3e-3 and 1.2e-3,"
    " B alone at every layer, a sweep's best rate of 3.9e-3 after 60 steps on both, and that an advice took as long as"
    " some 200 steps there, of which 87 and 90 would be counted. No advised run had been compared with a default."
)


def _beats_claim(key: str, rival: str, which: str, arm: str) -> Claim:
    return Claim(
        key=key,
        says="At equal compute, its own cost counted, the advised recipe is better than"
        f" {rival} (in runs as short as {STEPS} steps of {BATCH_SIZE} rows at the small scale).",
        kind="question",
        source=_SOURCE,
        test=f"Accuracy on test of the advised run less that of {rival}, mean over the sets for each closing seed;"
        f" {ONE_LOOK}. Fails: two one-sided tests at that level find the mean difference within"
        f" {100 * NONE_WITHIN:g} point, or it is below 0 and p is at most the level. Holds: neither, it is above 0 and"
        f" p is at most the level. Else undecided. {_COUNTED} Beside it stand the sets one by one, and the same for"
        f" runs with all steps: descriptions.{UNTOLD}{_KNOWN}",
        parts=_PARTS,
        judge=_beats(which, arm, rival),
    )


def _tuned_claim(key: str, arm: str) -> Claim:
    return Claim(
        key=key,
        says=f"The advised recipe is as good as {NAMES[arm]} at its own best rate.",
        kind="question",
        source=_SOURCE,
        test=f"On TREC-6 (RTE at the paper's scale): accuracy on test of the advised run with all steps less that of"
        f" {NAMES[arm]} at its best rate, by closing seed, against a bound of -{100 * BEHIND:g} points, which was"
        f" stated before the runs; {ONE_LOOK} on what the differences are beyond it. Holds: the mean is above the bound"
        " and p is at most the level. Fails: below it, likewise. Else undecided. Neither the advice nor the search for"
        " the best rate is taken off the run; beside it stand the steps of both ways in all, of which the search has"
        f" the more. {AT_AN_END}{UNTOLD}{_KNOWN}",
        parts=_PARTS,
        judge=_as_good_as_tuned(arm),
    )


CLAIMS = (
    _beats_claim("beats_lora", f"{NAMES[LORA]} at 2e-4", PLAIN, LORA),
    _beats_claim("beats_b_only", f"{NAMES[B_ALONE]} at 2e-4", PLAIN, B_ALONE),
    _beats_claim("beats_own_default", f"{NAMES[B_ALONE]} at 2e-3, the rate of asymlora finetune", OWN, B_ALONE),
    _tuned_claim("as_good_as_tuned_lora", LORA),
    _tuned_claim("as_good_as_tuned_b_only", B_ALONE),
    Claim(
        key="rate_near_tuned",
        says="The advised rate is within two octaves of the best one of B alone.",
        kind="question",
        source=_SOURCE,
        test=f"On TREC-6 (RTE at the paper's scale): log2 of the advised rate over the rate that {NAMES[B_ALONE]} chose"
        f" on its tuning seeds, by closing seed; two one-sided tests against a margin of {RATE_OCTAVES:g} octaves,"
        " which was stated before the runs, at a level of 0.03125 with six seeds. Holds: both reject. Fails: the"
        " sign-flip test at that level finds a difference whose interval lies beyond the margin. Else undecided. The"
        " best rate is one of a grid of half decades, 1.7 octaves, and the same for every seed; the advised adapter is"
        f" not quite the tuned one. {AT_AN_END}{UNTOLD}{_KNOWN}",
        parts=_PARTS,
        judge=_rate_is_near,
    ),
    Claim(
        key="cost_in_time",
        says="The steps that are counted for the advice are what it costs in time, within a quarter.",
        kind="question",
        source=_SOURCE,
        test="Seconds of the advice over the seconds that so many steps take in the run that follows it, mean over the"
        f" sets for each closing seed, against a bound of {TIME_RATIO:g}; {ONE_LOOK} on what is beyond it. Holds: the"
        " mean is below the bound and p is at most the level. Fails: above it, likewise: then the advice costs more"
        f" than the other claims count. Else undecided.{UNTOLD}{_KNOWN}",
        parts=(ADVISED,),
        judge=_cost_in_time,
    ),
    Claim(
        key="what_is_advised",
        says="The advice is to train B alone at every layer.",
        kind="question",
        source=_SOURCE,
        test="Exact: holds where at every seed and on every set B alone is advised at each of the adapted layers, else"
        f" fails. Beside it stand the rates, and at how many seeds ranks differ by layer.{_KNOWN}",
        parts=(ADVISED,),
        judge=_what_is_advised,
    ),
)
