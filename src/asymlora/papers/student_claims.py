"""Claims of hayou_toy on the teacher-student model, check C11 and its limits, and their tests. No torch in here.

What is run is in `asymlora.papers.student_points`, what a best rate and a quoted run are in
`asymlora.papers.student_records`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from asymlora.papers.hayou_settings import ABSTRACT, DERIVED, EXPERIMENTS
from asymlora.papers.stated_tests import DECIDES, EXPONENT, SIGN_FLIP, known_before
from asymlora.papers.student_records import NAMES, StudentRuns, slope
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.paired_tests import OCTAVES, all_of, described, equivalence_finding, paired_finding

STUDENTS = "students"
"""Part of hayou_toy."""
SMALL_WIDTHS = (128, 512)
"""Widths at which claims of large width are known not to hold (papers/initialization.md, section 8)."""
NO_DIFFERENCE = 0.5
"""Octaves between two best rates that count as none: half a step of the grid."""
COINCIDE = 1.0
"""Octaves within which best rates are said to coincide: one step of the grid."""


def _runs(evidence: Evidence) -> StudentRuns:
    return StudentRuns(evidence.records(STUDENTS))


def _where_bracketed(runs: StudentRuns, widths: Sequence[int], judge: Callable[[], Finding]) -> Finding:
    """Judge best rates, or say that the best rate of a seed lies at an end of what was tried."""
    said: list[str] = []
    for width in widths:
        for scheme in ("init_a", "init_b"):
            if found := runs.open_seeds(width, scheme):
                count = f"{len(found)} of {len(runs.seeds(width, scheme))} seeds"
                said.append(f"{NAMES[scheme]} at n = {width} ({count})")
    if said:
        return described(
            f"The best rate of {', '.join(said)} is the first or last one tried, so that it is not known: more rates"
            " are needed."
        )
    return judge()


def _where_all_bracketed(runs: StudentRuns, widths: Sequence[int], judge: Callable[[], Finding]) -> Finding:
    """Judge runs at the rate that is best in the mean, or say where that lies at an end of what every seed tried."""
    if ends := [f"{' and '.join(starts)} at n = {width}" for width in widths if (starts := runs.at_an_end(width))]:
        return described(
            f"The best mean rate of {', '.join(ends)} is the first or last one that every seed tried, so that it is not"
            " known: more rates are needed."
        )
    return judge()


def _rates(runs: StudentRuns, width: int) -> tuple[dict[int, float], dict[int, float]]:
    first, second = (runs.best_rates(width, scheme) for scheme in ("init_a", "init_b"))
    return first, second


def _rates_differ(evidence: Evidence) -> Finding:
    runs = _runs(evidence)
    width = runs.largest
    return _where_bracketed(
        runs,
        [width],
        lambda: paired_finding(
            *_rates(runs, width), claimed="different", none_within=NO_DIFFERENCE, show=OCTAVES,
            what=f"log2 of the best rate at n = {width}, Init[A] less Init[B]",
        ),
    )  # fmt: skip


def _rate_larger(evidence: Evidence) -> Finding:
    runs = _runs(evidence)
    width = runs.largest
    return _where_bracketed(
        runs,
        [width],
        lambda: paired_finding(
            *_rates(runs, width), claimed="greater", show=OCTAVES,
            what=f"log2 of the best rate at n = {width}, Init[A] less Init[B]",
        ),
    )  # fmt: skip


def _small_widths(runs: StudentRuns) -> list[int]:
    found = [width for width in SMALL_WIDTHS if width in runs.widths]
    if not found:
        raise MissingEvidenceError(f"runs at widths {' and '.join(map(str, SMALL_WIDTHS))}")
    return found


def _rates_coincide(evidence: Evidence) -> Finding:
    runs = _runs(evidence)
    widths = _small_widths(runs)
    return _where_bracketed(
        runs,
        widths,
        lambda: all_of(
            {
                f"n = {width}": equivalence_finding(
                    *_rates(runs, width), margin=COINCIDE, show=OCTAVES,
                    what="log2 of the best rate, Init[A] less Init[B]",
                )
                for width in widths
            }
        ),
    )  # fmt: skip


def _rate_slopes(evidence: Evidence) -> Finding:
    runs = _runs(evidence)
    return _where_bracketed(runs, runs.widths, lambda: _slopes_compared(runs))


def _slopes_compared(runs: StudentRuns) -> Finding:
    slopes: list[dict[int, float]] = []
    for scheme in ("init_a", "init_b"):
        by_width = {width: runs.best_rates(width, scheme) for width in runs.widths}
        seeds = set[int].intersection(*map(set, by_width.values())) if by_width else set[int]()
        slopes.append(
            {seed: slope(list(by_width), [2.0 ** of[seed] for of in by_width.values()]) for seed in sorted(seeds)}
        )
    if any(not math.isfinite(value) for of_arm in slopes for value in of_arm.values()) or not all(slopes):
        raise MissingEvidenceError("best rates of both starts at several widths")
    means = [statistics.fmean(of_arm.values()) for of_arm in slopes]
    return paired_finding(
        *slopes, claimed="greater", show=EXPONENT,
        what=f"Slope of the best rate against the width, {means[0]:.2f} (Init[A]) less {means[1]:.2f} (Init[B])",
    )  # fmt: skip


def _log2_ratio(runs: StudentRuns, width: int, quantity: str) -> dict[int, float]:
    """Return log2 of a quantity under Init[A] over that under Init[B], by seed, each quoted at its best rate."""
    first, second = (runs.quoted(width, scheme, quantity) for scheme in ("init_a", "init_b"))
    both = sorted(set(first) & set(second))
    return {seed: math.log2(first[seed] / second[seed]) for seed in both if first[seed] > 0 and second[seed] > 0}


def _loss(evidence: Evidence) -> Finding:
    runs = _runs(evidence)
    if not runs.widths:
        raise MissingEvidenceError("runs of both starts at one width")
    ratios = {width: _log2_ratio(runs, width, "train_loss") for width in runs.widths}
    seeds = sorted(set[int].intersection(*map(set, ratios.values())))
    means = {seed: statistics.fmean(of_width[seed] for of_width in ratios.values()) for seed in seeds}
    each = ", ".join(f"{statistics.fmean(of.values()):+.2f} at {width}" for width, of in ratios.items() if of)
    return _where_all_bracketed(
        runs,
        runs.widths,
        lambda: paired_finding(
            means, dict.fromkeys(means, 0.0), claimed="less", show=OCTAVES,
            what=f"log2 of the training loss of Init[A] over that of Init[B], mean over widths ({each})",
        ),
    )  # fmt: skip


_BEST = (
    "Best rate of a seed: the lowest point of a parabola in the logarithms through the smallest final training loss and"
    " its neighbours, an octave apart."
)
_QUOTED = "Each seed is quoted at the rate that is best in the mean over the other seeds."
_GROWN = (
    "The rates of each start, width and seed grow by octaves until the best one is interior, by four at most either way"
)
_ENDS = f"{_GROWN}; undecided also where the best rate of a seed stays at an end."
_KNOWN = known_before(
    "three other seeds (0 to 2) at 128 to 1,024 (experiments/results/theory_toy.jsonl), where the slopes of the best"
    " rates were not confirmed. Log2 of the best point of the grid, Init[A] against Init[B], seed by seed: -5, -5, -5"
    " against -4, -6, -6 at 128; -6, -6, -7 against -7, -7, -8 at 512; -7, -7, -6 against -8, -9, -9 at 1,024. Of"
    " Init[B] nothing above 1,024. The seeds here (300 to 309) are fresh."
)


def _claim(key: str, judge: Callable[[Evidence], Finding], **words: Any) -> Claim:
    return Claim(key=key, parts=(STUDENTS,), judge=judge, **words)


CLAIMS = (
    _claim(
        "best_rates_differ", _rates_differ, kind="abstract", source=ABSTRACT,
        says="The two starts do not share one optimal learning rate: at the largest width they differ.",
        paper="differ; figure with guide lines n^-1 and n^-1/2 (second-hand)",
        test=f"{_BEST} Difference at the largest width: {SIGN_FLIP}; fails where two one-sided tests at that level find"
        f" it within {NO_DIFFERENCE:g} octaves, holds where p is at most the level, else undecided. {_ENDS}{_KNOWN}",
    ),
    _claim(
        "best_rate_larger", _rate_larger, kind="abstract", source=ABSTRACT,
        says="The optimal learning rate of Init[A] is larger, at the largest width.",
        paper="generally larger; the gap grows with the width (second-hand)",
        test=f"{_BEST} Difference at the largest width: {SIGN_FLIP}; {DECIDES}. {_ENDS}{_KNOWN}",
    ),
    _claim(
        "rates_coincide_small", _rates_coincide, kind="question", source=DERIVED,
        says="It stops holding at small widths: at n = 128 and 512 the best rates lie within one octave.",
        paper="the same point of the grid (measured by us, one seed)",
        test=f"{_BEST} At each width two one-sided tests against a margin of {COINCIDE:g} octave, at the level of the"
        " sign-flip test; holds where both widths pass, fails where a difference is found wholly beyond the margin."
        f" {_ENDS}{_KNOWN}",
    ),
    _claim(
        "rate_slopes", _rate_slopes, kind="paper", source=EXPERIMENTS,
        says="The best rate falls more slowly with the width under Init[A] than under Init[B].",
        paper="guide lines n^-1/2 and n^-1",
        test=f"{_BEST} Slope over all widths for each seed, difference: {SIGN_FLIP}; {DECIDES}. {_ENDS}{_KNOWN}",
    ),
    _claim(
        "lower_loss", _loss, kind="paper", source=EXPERIMENTS,
        says="At its own best rate Init[A] reaches the lower training loss.",
        paper="lower at n = 8192 (second-hand)",
        test=f"{_QUOTED} log2 of the ratio of final training losses, mean over widths, one value a seed: {SIGN_FLIP};"
        f" {DECIDES}. {_GROWN}; undecided also where the best mean rate is at an end of those that every seed tried."
        + known_before(
            "three other seeds (0 to 2): 5.0, 4.9, 5.6, 3.4 thousandths under Init[A] against 6.6, 8.6, 7.3, 6.7 at 128"
            " to 1,024 (docs/theory.md). The seeds here (300 to 305) are fresh."
        ),
    ),
)  # fmt: skip
"""All of them."""
