"""Claims of hayou_toy on one linear layer, checks C4 to C10 and C12, and their tests. No torch in here.

Tolerances and expected slopes are those of the checks, which were written with measurements of the seeds 0 to 5 before
them; every claim's test says what was known. The runs here have fresh seeds, so that no stored record decides. The
setting of each measurement is in `asymlora.papers.one_layer_points`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from asymlora.papers.hayou_settings import ABSTRACT, ANALYSIS, DERIVED, SOURCE
from asymlora.papers.one_layer_points import WIDTHS
from asymlora.papers.start_claims import chosen_records
from asymlora.papers.stated_tests import DECIDES, SIGN_FLIP, known_before
from asymlora.papers.student_records import NAMES, mean_and_error, slope
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.paired_tests import OCTAVES, all_of, exact_finding, paired_finding, slope_finding

EXPONENTS, STABLE, FREEZING, RANKS = "exponents", "stable_rates", "freezing", "ranks"
"""Parts of hayou_toy."""
TOLERANCE = 0.1
_FITTED = (
    "Least squares of log size on log width, 2^7 to 2^13, rank 4, six seeds, fourth update of SignSGD, target 1e9."
    " Holds where every slope with its 95 % interval (Student's) lies within {tolerance:g} of the expected one, fails"
    " where one lies wholly outside, else undecided."
)


# Exponents: C4 to C6, C8, C9 -----------------------------------------------------------------------------------------

Row = Mapping[str, Any]
_EFFICIENT = {"Z_A": 0.5, "Z_B": 0.0, "delta1": 0.0, "delta2": 0.0, "delta3": 0.0}


def _row(scheme: str, rate_A: float, rate_B: float | None = None, *, c: float = 1.0, target: float = 1e9) -> Row:
    rate_B = rate_A if rate_B is None else rate_B
    return {"scheme": scheme, "rate_A": rate_A, "rate_B": rate_B, "coefficient": c, "target": target}


def _slopes(evidence: Evidence, row: Row, expected: Mapping[str, float], tolerance: float = TOLERANCE) -> Finding:
    """Judge the slopes of one row of the table of exponents."""
    record = chosen_records(evidence, EXPONENTS, **row)[0]
    if absent := [name for name in expected if name not in record["slopes"]]:
        return exact_finding(False, f"{', '.join(absent)} is exactly zero at every width and has no slope.")
    return all_of(
        {
            name: slope_finding(
                record["slopes"][name], expected=value, tolerance=tolerance, error=record["errors"][name],
                degrees=len(WIDTHS) - 2, what="in the width",
            )
            for name, value in expected.items()
        }
    )  # fmt: skip


def _off_the_edge(evidence: Evidence) -> Finding:
    return all_of(
        {
            "Init[A] at n^-1/4": _slopes(evidence, _row("init_a", -0.25), {"Z_B": 0.5}, 0.15),
            "Init[B] at n^-1/2": _slopes(evidence, _row("init_b", -0.5), {"Z_B": 0.45}, 0.2),
            "Init[A] at n^-1": _slopes(evidence, _row("init_a", -1.0), {"Z_B": -1.0}),
        }
    )


def _loraplus(evidence: Evidence) -> Finding:
    flat = dict.fromkeys(_EFFICIENT, 0.0)
    return all_of({NAMES[scheme]: _slopes(evidence, _row(scheme, -1.0, 0.0), flat) for scheme in ("init_a", "init_b")})


def _sign_flips(evidence: Evidence) -> Finding:
    near = chosen_records(evidence, EXPONENTS, **_row("init_a", -0.5, target=1.0))[0]
    slow = chosen_records(evidence, EXPONENTS, **_row("init_a", -0.5, c=0.05, target=1.0))[0]
    found = near["slopes"]["delta2"]
    return all_of(
        {
            "target 1, rate n^-1/2": exact_finding(
                near["flipped"] > 0 and abs(found) > TOLERANCE,
                f"the residual changed its sign at {near['flipped']} widths, delta2 has slope {found:.2f} for 0.",
            ),
            "target 1, rate 0.05 n^-1/2": all_of(
                {
                    "no sign change": exact_finding(slow["flipped"] == 0, f"{slow['flipped']} widths."),
                    "delta1": _slopes(evidence, _row("init_a", -0.5, c=0.05, target=1.0), {"delta1": 0.0}),
                }
            ),
        }
    )


# Stable rates: C7 ----------------------------------------------------------------------------------------------------


def _edges(evidence: Evidence, scheme: str) -> dict[int, dict[int, float]]:
    """Return log2 of the largest stable rate by seed and width, of the seeds that have every width."""
    found: dict[int, dict[int, float]] = {}
    for record in chosen_records(evidence, STABLE, scheme=scheme):
        found.setdefault(record["seed"], {})[record["width"]] = record["log2_rate"]
    widths = {width for of_seed in found.values() for width in of_seed}
    return {seed: dict(sorted(rates.items())) for seed, rates in sorted(found.items()) if set(rates) == widths}


def _edge_slope(
    evidence: Evidence, scheme: str, *, expected: float, below: str | None = None, what: str = ""
) -> Finding:
    """Judge the slope of log2 of the largest stable rate, less that of another start, by seed.

    Raises:
        MissingEvidenceError: No seed has several widths.
    """
    rates = _edges(evidence, scheme)
    less = _edges(evidence, below) if below else {seed: dict.fromkeys(of, 0.0) for seed, of in rates.items()}
    slopes = [
        slope(list(of), [2.0 ** (rate - less[seed][width]) for width, rate in of.items()])
        for seed, of in rates.items()
        if seed in less and set(less[seed]) == set(of)
    ]
    if not slopes:
        raise MissingEvidenceError(f"{STABLE} of {NAMES[scheme]} at several widths")
    mean, error = mean_and_error(slopes)
    said = what or f"Largest stable rate of {NAMES[scheme]} against the width"
    degrees = max(1, len(slopes) - 1)
    return slope_finding(mean, expected=expected, tolerance=TOLERANCE, what=said, error=error, degrees=degrees)


def _edge_slopes(evidence: Evidence) -> Finding:
    return all_of(
        {
            "Init[A]": _edge_slope(evidence, "init_a", expected=-0.5),
            "Init[B]": _edge_slope(evidence, "init_b", expected=-1.0),
            "ratio": _edge_slope(
                evidence, "init_a", below="init_b", expected=0.5,
                what="Largest stable rate of Init[A] over that of Init[B] against the width",
            ),
        }
    )  # fmt: skip


def _larger_edge(evidence: Evidence) -> Finding:
    first, second = (_edges(evidence, scheme) for scheme in ("init_a", "init_b"))
    widths = sorted({n for of in first.values() for n in of} & {n for of in second.values() for n in of})
    if not widths:
        raise MissingEvidenceError(f"{STABLE} of both starts at one width")
    largest = widths[-1]
    return paired_finding(
        *({seed: of[largest] for seed, of in arm.items()} for arm in (first, second)),
        claimed="greater",
        show=OCTAVES,
        what=f"log2 of the largest stable rate at n = {largest}, Init[A] less Init[B]",
    )


# Freezing and ranks: C10, C12 ----------------------------------------------------------------------------------------


def _gaps(evidence: Evidence, **wanted: Any) -> dict[int, float]:
    return {record["width"]: record["gap"] for record in chosen_records(evidence, FREEZING, **wanted)}


def _undertrained(evidence: Evidence) -> Finding:
    found: dict[str, Finding] = {}
    for c in (1.0, 0.1):
        gaps = _gaps(evidence, scheme="init_b", frozen="B", coefficient=c)
        found[f"rate {c:g}/n"] = slope_finding(
            slope(list(gaps), list(gaps.values())), expected=-1, tolerance=TOLERANCE,
            what="Relative difference of Z_B with B frozen, against the width",
        )  # fmt: skip
    return all_of(found)


def _needed(evidence: Evidence) -> Finding:
    gaps = _gaps(evidence, scheme="init_a", frozen="A")
    least = min(gaps, key=gaps.__getitem__)
    return all_of(
        {
            "size": exact_finding(
                gaps[least] >= 0.5, f"smallest relative difference of Z_B {gaps[least]:.2f}, at n = {least}."
            ),
            "slope": slope_finding(
                slope(list(gaps), list(gaps.values())), expected=0, tolerance=TOLERANCE, what="against the width"
            ),
        }
    )


def _ranks(evidence: Evidence) -> Finding:
    found: dict[str, Finding] = {}
    for scheme, by_rank, expected in (("init_a", 0, 1), ("init_a", -1, 0), ("init_b", 0, 0), ("init_b", -1, -1)):
        rows = chosen_records(evidence, RANKS, scheme=scheme, by_rank=by_rank)
        found[f"{NAMES[scheme]}, s = {'1/r' if by_rank else '1'}"] = slope_finding(
            slope([r["rank"] for r in rows], [r["Z_B"] for r in rows]), expected=expected, tolerance=TOLERANCE,
            what="Z_B in the rank",
        )  # fmt: skip
    return all_of(found)


# The claims ----------------------------------------------------------------------------------------------------------


_FRESH = " The seeds here (300 to 305) are fresh, the model is the same."


def _claim(
    key: str, part: str, judge: Callable[[Evidence], Finding], *, known: str, test: str, **words: Any
) -> Claim:  # fmt: skip
    return Claim(key=key, parts=(part,), judge=judge, test=test + known_before(known + _FRESH), **words)


CLAIMS = (
    _claim(
        "init_a_exponents", EXPONENTS, partial(_slopes, row=_row("init_a", -0.5), expected=_EFFICIENT), kind="paper",
        source=ANALYSIS,
        says="Init[A] at n^-1/2 learns with both factors while Z_A grows: Z_A as n^1/2, Z_B and all three parts of its"
        " change as n^0.",
        paper="1/2, 0, 0, 0, 0",
        test=_FITTED.format(tolerance=TOLERANCE),
        known="seeds 0 to 5 of the same model: 0.50, 0.00, 0.01, 0.00, 0.01.",
    ),
    _claim(
        "init_b_exponents", EXPONENTS,
        partial(
            _slopes, row=_row("init_b", -1.0),
            expected={"Z_A": 0.0, "Z_B": 0.0, "delta1": 0.0, "delta2": -1.0, "delta3": -1.0, "step_B": -1.0},
        ),
        kind="paper", source=ANALYSIS,
        says="Init[B] at n^-1 is stable and learns by A alone: Z_A, Z_B and delta1 as n^0, delta2, delta3 and the"
        " relative step of B as n^-1.",
        paper="0, 0, 0, -1, -1, -1",
        test=_FITTED.format(tolerance=TOLERANCE),
        known="seeds 0 to 5 of the same model: 0.01, 0.00, 0.00, -0.99, -0.99; the relative step of B as asked.",
    ),
    _claim(
        "off_the_edge", EXPONENTS, _off_the_edge, kind="paper", source=ANALYSIS,
        says="Beyond the largest stable rate Z_B grows with the width, below it Init[A] learns nothing.",
        paper="Init[A] at n^-1/4: 1/2; Init[B] at n^-1/2: 1/2 in the limit, 0.4 to 0.5 at these widths; Init[A] at"
        " n^-1: -1",
        test=_FITTED.format(tolerance=TOLERANCE)
        + " Tolerance 0.15 beyond the edge, for Init[B] around all of 0.4 to 0.5: 0.45 within 0.2.",
        known="seeds 0 to 5 of the same model: 0.51, 0.41 and -0.99.",
    ),
    _claim(
        "variance_decides", EXPONENTS, partial(_slopes, row=_row("init_b_small", -0.5), expected=_EFFICIENT),
        kind="derived", source=DERIVED,
        says="The handicap of Init[B] is the variance of its start, not which factor is zero: with variance 1/n it has"
        " the exponents of Init[A].",
        paper="1/2, 0, 0, 0, 0 (derived)",
        test=_FITTED.format(tolerance=TOLERANCE),
        known="seeds 0 to 5 of the same model: 0.51, 0.00, 0.00, 0.01, 0.01.",
    ),
    _claim(
        "loraplus_rates", EXPONENTS, _loraplus, kind="derived",
        source=f"{DERIVED}, with the rates of LoRA+ (arXiv:2402.12354)",
        says="It stops holding with the rates of LoRA+, 1/n for A and 1 for B: then every part is of order 1 under both"
        " starts.",
        paper="0, 0, 0, 0, 0 (derived)",
        test=_FITTED.format(tolerance=TOLERANCE),
        known="seeds 0 to 5 of the same model: 0.01 in each.",
    ),
    _claim(
        "sign_flips", EXPONENTS, _sign_flips, kind="derived", source=DERIVED,
        says="The exponents need a residual that keeps its sign: with a near target and the rate n^-1/2 delta2 has"
        " another one; at a twentieth of the rate the sign stays.",
        paper="delta2 -0.49 for 0 (measured by us)",
        test="Near target: holds where the residual changes its sign and the slope of delta2 is more than 0.1 off;"
        " small rate: where it does not, and that of delta1 is within 0.1 of 0 with its 95 % interval.",
        known="seeds 0 to 5 of the same model: delta2 -0.49, and that a small rate keeps the sign.",
    ),
    _claim(
        "stable_rate_slopes", STABLE, _edge_slopes, kind="paper", source=ANALYSIS,
        says="The largest stable learning rate falls as n^-1/2 under Init[A] and as n^-1 under Init[B], so that their"
        " ratio grows as n^1/2.",
        paper="-1/2, -1, ratio 1/2",
        test="Largest rate at which the root mean square of Z_B stays within 10 for 5 steps, by bisection for each seed"
        " at 2^7 to 2^13; mean slope over seeds with its 95 % interval (Student's) within 0.1 of each, as above.",
        known="seeds 0 to 5 of the same model: -0.49 and -0.98 (docs/theory.md).",
    ),
    _claim(
        "larger_stable_rate", STABLE, _larger_edge, kind="abstract", source=ABSTRACT,
        says="Init[A] allows larger learning rates than Init[B] before the output becomes unstable.",
        paper="larger; by n^1/2 in theory (second-hand)",
        test=f"log2 of the largest stable rate at the largest width, Init[A] less Init[B]: {SIGN_FLIP}; {DECIDES}.",
        known="the slopes of the largest stable rate over the same widths for the seeds 0 to 5, -0.49 and"
        " -0.98, and with them the sign at the largest width.",
    ),
    _claim(
        "variance_decides_rate", STABLE,
        partial(
            _edge_slope, scheme="init_b_small", expected=-0.5,
            what="Largest stable rate of Init[B] of variance 1/n against the width",
        ),
        kind="derived", source=DERIVED,
        says="With variance 1/n the largest stable rate of Init[B] falls as that of Init[A].",
        paper="-1/2 (derived)",
        test="Mean slope over seeds with its 95 % interval within 0.1 of -1/2 holds, wholly outside fails, else"
        " undecided.",
        known="seeds 0 to 5 of the same model: -0.49 (docs/theory.md).",
    ),
    _claim(
        "undertrained_b", FREEZING, _undertrained, kind="paper", source=ANALYSIS,
        says="Init[B] leaves B undertrained: at rates of order 1/n, freezing B changes less and less as the width"
        " grows.",
        paper="difference as 1/n (derived)",
        test="Relative difference of Z_B after 20 steps, n = 2^7 to 2^12, rates 1/n and 0.1/n: slope within 0.1 of -1"
        " holds, else fails.",
        known="seeds 0 to 5 of the same model: -0.96 at 1/n and -1.00 at 0.1/n.",
    ),
    _claim(
        "trained_a", FREEZING, _needed, kind="derived", source=DERIVED,
        says="It stops holding for Init[A]: at n^-1/2, freezing A changes the output at every width.",
        paper="difference of order 1 (derived)",
        test="Relative difference of Z_B after 20 steps: holds where it is at least 0.5 at every width and its slope"
        " within 0.1 of 0, else fails.",
        known="seeds 0 to 5 of the same model: 0.96 to 1.00 at every width.",
    ),
    _claim(
        "ranks", RANKS, _ranks, kind="derived", source=f"{SOURCE} fixes the rank; derived by us",
        says="In the rank, at a fixed rate, Z_B grows as r under Init[A] with scaling 1, and not at all with scaling"
        " 1/r, or under Init[B] with scaling 1; under Init[B] with 1/r it falls as 1/r.",
        paper="1, 0, 0, -1 (derived)",
        test="Slopes over ranks 2 to 32 at n = 2048, fourth update: within 0.1 holds, else fails.",
        known="seeds 0 to 5 of the same model: 1.00, 0.00, 0.02 and -0.98.",
    ),
)  # fmt: skip
"""All of them."""
