"""Claims of zhu_cca: which factor is alike across tasks, and which across starts. No torch in here.

What is measured is in `asymlora.papers.similarity_points`. A unit is a pair of starts that no other unit has, so units
are independent; the value of a unit is a mean over its pairs of runs and over layers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from asymlora.papers.similarity_points import (
    BOTH_OTHER,
    FIRST,
    LAST,
    RANDOM,
    REVERSED,
    SAME_TASK,
    SHARED_START,
    STANDARD,
    ZERO,
)
from asymlora.papers.stated_tests import UNTOLD, known_before
from asymlora.papers.zhu_settings import DERIVED, SOURCE
from asymlora.reproduce.artefact import FIRST_SEEDS
from asymlora.reproduce.by_seed import BySeed
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record
from asymlora.reproduce.paired_tests import (
    OCTAVES,
    RATIO,
    all_of,
    bound_finding,
    described,
    equivalence_finding,
    paired_finding,
)

SIMILARITY, CONTROLS = "similarity", "controls"
"""Parts: both starts at their rates; the same at smaller rates, and with a head drawn anew for each start."""
AT_RATE, SLOWER, DRAWN_HEAD = "at its rate", "at a third of it", "with a drawn head"
"""Variants."""
ALIKE, NEAR_CHANCE, HARDLY = 0.5, 3.0, 0.5
"""Similarity above which factors are alike; factor of chance within which they are not; movement, over the norm of the
start, below which a factor has hardly moved. Stated before the runs, the first two in check Z12."""


# What the records say ------------------------------------------------------------------------------------------------


def similarities(
    evidence: Evidence, start: str, factor: str, panel: str, *, column: str = "cca", moment: str = LAST,
    variant: str = AT_RATE,
) -> BySeed:  # fmt: skip
    """Return the similarity of one factor in one panel, by unit.

    Args:
        evidence: Records of the artefact.
        start: ``standard`` or ``reversed``.
        factor: ``A`` or ``B``.
        panel: Kind of the pairs.
        column: ``cca`` or ``over_chance``.
        moment: After the first step, or at the end.
        variant: Which of the variants.

    Raises:
        MissingEvidenceError: There is no such record.
    """
    wanted = {"kind": "similarity", "start": start, "factor": factor, "panel": panel, "moment": moment}
    records = _records(evidence, variant, wanted)
    return BySeed({record["unit"]: record[column] for record in records}, planned=range(FIRST_SEEDS))


def _movements(evidence: Evidence, start: str, column: str, *, variant: str = AT_RATE) -> BySeed:
    records = _records(evidence, variant, {"kind": "moved", "start": start})
    known = {record["unit"]: record[column] for record in records if record[column] is not None}
    if not known:
        raise MissingEvidenceError(f"the start of a factor that still resembles it, {start} start {variant}")
    return BySeed(known, planned=range(FIRST_SEEDS))


def _records(evidence: Evidence, variant: str, wanted: Record) -> list[Record]:
    part = SIMILARITY if variant == AT_RATE else CONTROLS
    wanted = {**wanted, "variant": variant}
    found = [record for record in evidence.records(part) if wanted.items() <= record.items()]
    if not found:
        raise MissingEvidenceError(f"{part}: {', '.join(map(str, wanted.values()))}")
    return found


def _octaves(values: BySeed) -> BySeed:
    return BySeed({unit: math.log2(value) for unit, value in values.items()}, planned=values.planned)


# Findings ------------------------------------------------------------------------------------------------------------


def _alike_if_shared(evidence: Evidence, start: str, *, variant: str = AT_RATE) -> Finding:
    factor = RANDOM[start]
    return bound_finding(
        similarities(evidence, start, factor, SHARED_START, variant=variant), claimed="above", bound=ALIKE, show=RATIO,
        what=f"Similarity of two {factor} of one start and two tasks, by pair of starts",
    )  # fmt: skip


def _at_chance_if_not(evidence: Evidence, start: str) -> Finding:
    factor = RANDOM[start]

    def within(panel: str, what: str) -> Finding:
        over = _octaves(similarities(evidence, start, factor, panel, column="over_chance"))
        return equivalence_finding(
            over, dict.fromkeys(over, 0.0), margin=math.log2(NEAR_CHANCE), show=OCTAVES,
            what=f"Similarity of two {factor} of two starts over chance, {what}",
        )  # fmt: skip

    return all_of({"one task": within(SAME_TASK, "one task"), "two tasks": within(BOTH_OTHER, "two tasks")})


def _follows_the_task(evidence: Evidence, start: str, *, variant: str = AT_RATE) -> Finding:
    factor = ZERO[start]
    within = similarities(evidence, start, factor, SAME_TASK, variant=variant)

    def above(panel: str, what: str) -> Finding:
        return paired_finding(
            within, similarities(evidence, start, factor, panel, variant=variant), claimed="greater", show=RATIO,
            what=f"Similarity of two {factor} of one task and two starts less that of two tasks, {what}",
        )  # fmt: skip

    return all_of({
        "one start": above(SHARED_START, "one start"), "two starts": above(BOTH_OTHER, "two starts"),
    })  # fmt: skip


def _all_three(evidence: Evidence, start: str) -> Finding:
    return all_of(
        {
            f"{RANDOM[start]} alike if shared": _alike_if_shared(evidence, start),
            f"{RANDOM[start]} at chance if not": _at_chance_if_not(evidence, start),
            f"{ZERO[start]} follows the task": _follows_the_task(evidence, start),
        }
    )


def _letter(evidence: Evidence) -> Finding:
    sides = (similarities(evidence, start, ZERO[start], SAME_TASK, column="over_chance") for start in ZERO)
    return paired_finding(
        *map(_octaves, sides), claimed="greater", show=OCTAVES,
        what="Similarity over chance within a task, B that started at zero over A that did",
    )  # fmt: skip


def _hardly_moves(evidence: Evidence, *, variant: str = AT_RATE) -> Finding:
    found = {
        f"{RANDOM[start]}, {start} start": bound_finding(
            _movements(evidence, start, "moved", variant=variant), claimed="below", bound=HARDLY, show=RATIO,
            what=f"Way of {RANDOM[start]} over the norm of its start, median layer",
        )
        for start in (STANDARD, REVERSED)
    }  # fmt: skip
    return all_of(found)


def _after_one_step(evidence: Evidence) -> Finding:
    first, last = (_shared_within(evidence, moment) for moment in (FIRST, LAST))
    half = BySeed({unit: value / 2 for unit, value in last.items()}, planned=last.planned)
    found = paired_finding(
        first, half, claimed="greater", show=RATIO,
        what="What two B share within a task and not across, after one step less half of that at the end",
    )  # fmt: skip
    said = f"After one step they share {RATIO.number(_mean(first))}, at the end {RATIO.number(_mean(last))}."
    return replace(found, ours=f"{found.ours} {said}")


def _shared_within(evidence: Evidence, moment: str) -> BySeed:
    within, across = (similarities(evidence, STANDARD, "B", panel, moment=moment) for panel in (SAME_TASK, BOTH_OTHER))
    return BySeed({u: value - across[u] for u, value in within.items() if u in across}, planned=within.planned)


def _rates(evidence: Evidence) -> Finding:
    said: list[str] = []
    for start in (STANDARD, REVERSED):
        for variant in (AT_RATE, SLOWER):
            moved = _mean(_movements(evidence, start, "moved", variant=variant))
            stays = _mean(_movements(evidence, start, "like_its_start", variant=variant))
            shared = _mean(similarities(evidence, start, RANDOM[start], SHARED_START, variant=variant))
            said.append(
                f"{start} start {variant}: {RANDOM[start]} moved by {RATIO.number(moved)} of its norm, is"
                f" {RATIO.number(stays)} like its start, and {RATIO.number(shared)} like that of another task from the"
                " same start"
            )
    return described(f"{'; '.join(said)}.")


def _mean(values: BySeed) -> float:
    return statistics.fmean(values.values())


# The claims ----------------------------------------------------------------------------------------------------------

_FIGURES = f"{SOURCE}, figure 1 (second-hand; panels partly recalled)"
_NO_NUMBERS = "maps over layers; no numbers are known"
_LEVEL = (
    f"exact two-sided sign-flip test over {FIRST_SEEDS} pairs of starts at a level of 0.03125. Holds: p is at most the"
    " level and the mean lies on the claimed side. Fails: p is at most the level and it lies on the other. Else"
    " undecided."
)
_KNOWN = known_before(
    "an experiment of the same form with three starts on the same three tasks, 60 steps of 8 rows at rates of 1e-3 and"
    " 1.25e-4 (experiments/README.md, Z12): all six parts of the check held, by bootstrap over tasks and starts. A was"
    " 0.929 like that of another task, B 0.112 alike within a task and 0.050 across; reversed 1.000, 0.144 and 0.065."
    " The seeds 0 to 2 are among ours; rates, rows and the test are others."
)
_BY_RATE = f"{DERIVED}: similarity is a matter of how far training goes"
_THIRDS = f"no more than a factor of {NEAR_CHANCE:g} off"
_EQUIVALENT = (
    f"log2 of the similarity over chance, r/d, is tested to be {_THIRDS}, both for one task and for two: two one-sided"
    " tests at a level of 0.03125. Holds: all reject. Fails: the sign-flip test at that level finds a difference whose"
    " interval lies beyond. Else undecided."
)


def _claim(key: str, says: str, *, test: str, judge: Callable[[Evidence], Finding], **fields: Any) -> Claim:
    of_paper: dict[str, Any] = {"kind": "paper", "source": _FIGURES, "paper": _NO_NUMBERS, "parts": (SIMILARITY,)}
    return Claim(key=key, says=says, test=f"{test}{UNTOLD}{_KNOWN}", judge=judge, **of_paper | fields)


CLAIMS = (
    _claim(
        "a_alike_if_shared",
        "A is alike across tasks where the start is shared.",
        test="Mean similarity of A over pairs of tasks with one start and over layers, for each pair of starts,"
        f" against {ALIKE:g}; {_LEVEL}",
        judge=lambda evidence: _alike_if_shared(evidence, STANDARD),
    ),
    _claim(
        "a_at_chance_if_not",
        "A of different starts is not alike, whatever the task.",
        test=f"For each pair of starts, {_EQUIVALENT}",
        judge=lambda evidence: _at_chance_if_not(evidence, STANDARD),
    ),
    _claim(
        "b_follows_the_task",
        "B is more alike within a task than across tasks.",
        test="Mean similarity of B over layers and pairs of runs of one task and two starts, less that of two tasks,"
        f" once of one start and once of two; both must hold; {_LEVEL}",
        judge=lambda evidence: _follows_the_task(evidence, STANDARD),
    ),
    _claim(
        "reversed",
        "With the start reversed the letters change places: it is the start that decides, not the letter.",
        test="The three tests above with A from zero and B from Kaiming's draw, A and B exchanged; holds if all hold,"
        " fails if one fails.",
        judge=lambda evidence: _all_three(evidence, REVERSED),
        source=f"{SOURCE}, appendix A (second-hand): the trend reverses; its authors put that down to the start and"
        " argue for B by averages of panels all the same",
    ),
    _claim(
        "letter",
        "Of the factors that start at zero, B is more alike within a task than A.",
        test="log2 of the similarity within a task and across starts over chance, of B at the standard start less that"
        f" of A at the reversed one, by pair of starts; {_LEVEL}",
        judge=_letter,
        kind="question",
        source=f"{DERIVED}: what is left of the claim on A and B when the start is exchanged",
        paper="",
    ),
    _claim(
        "hardly_moves",
        "The factor that starts at random hardly moves: by less than half of its norm.",
        test="Frobenius distance from its start over the norm of that, median over layers, mean over the runs of a pair"
        f" of starts, against {HARDLY:g}, at either start; {_LEVEL} Both must hold.",
        judge=_hardly_moves,
        kind="derived",
        source=f"{DERIVED}: a factor that moves little is like what it started as, whatever it learnt",
        paper="",
    ),
    _claim(
        "after_one_step",
        "Half or more of what B shares within a task is there after one step.",
        test="Similarity of B of one task less that of two, two starts each: after a single step of the whole rate less"
        f" half of the same at the end, by pair of starts; {_LEVEL}",
        judge=_after_one_step,
        kind="derived",
        source=f"{DERIVED}: B starts at zero, so after one step of gradient descent its columns lie in those of the"
        " gradient G of the weight; Adam's first step is the sign of that",
        paper="",
    ),
    _claim(
        "with_a_drawn_head",
        "B follows the task too where every start has a head of its own.",
        test=f"As b_follows_the_task, the head drawn by the seed of the start instead of fitted; {_LEVEL}",
        judge=lambda evidence: _follows_the_task(evidence, STANDARD, variant=DRAWN_HEAD),
        kind="question",
        source=f"{DERIVED}: gradients of the last layers lie in the span of the head's rows, so a shared head makes B"
        " alike; whether the paper's starts share one is unknown",
        paper="",
        parts=(CONTROLS,),
    ),
    _claim(
        "a_alike_at_a_third",
        "At a third of the rate A is alike across tasks where the start is shared.",
        test=f"As a_alike_if_shared, at a third of the rate; {_LEVEL}",
        judge=lambda evidence: _alike_if_shared(evidence, STANDARD, variant=SLOWER),
        kind="derived",
        source=_BY_RATE,
        paper="",
        parts=(CONTROLS,),
    ),
    _claim(
        "hardly_moves_at_a_third",
        "At a third of the rate the factor that starts at random hardly moves.",
        test=f"As hardly_moves, at a third of the rate; {_LEVEL} Both must hold.",
        judge=lambda evidence: _hardly_moves(evidence, variant=SLOWER),
        kind="derived",
        source=_BY_RATE,
        paper="",
        parts=(CONTROLS,),
    ),
    _claim(
        "rates",
        "At a smaller rate the random factor moves less and is more alike.",
        test="Description: movement, similarity to the own start and to that of another task at the rate and at a third"
        " of it.",
        judge=_rates,
        kind="question",
        source=_BY_RATE,
        paper="",
        parts=(SIMILARITY, CONTROLS),
    ),
)
"""All of them."""
