"""Findings that no test on seeds is behind: exponents, exact checks, descriptions, and claims of several parts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from asymlora.errors import SpecError
from asymlora.reproduce.claim import VERDICTS, Finding, Verdict


def slope_finding(
    slope: float,
    *,
    expected: float,
    tolerance: float,
    what: str,
    error: float | None = None,
    degrees: int | None = None,
) -> Finding:
    """Judge "the exponent is so large, within a tolerance".

    ``holds``: it is within the tolerance; ``fails``: it is outside. With an error, that is asked of its whole 95 %
    interval, and where that straddles an edge the verdict is ``undecided``; so it is for a slope that is not finite.

    Args:
        slope: Measured exponent.
        expected: The claimed one.
        tolerance: How far from it still counts as it, stated before the runs.
        what: What grows with what, as the start of a sentence.
        error: Standard error of the slope; None: unknown, or the fit is exact enough to do without.
        degrees: Degrees of freedom of the error, for Student's quantile; None: they are many, and the interval reaches
            two errors to either side.
    """
    if not math.isfinite(slope) or (error is not None and not math.isfinite(error)):
        return Finding(verdict="undecided", ours=f"{what}: no finite slope was found.")
    half = 0.0 if error is None else _quantile(degrees) * error
    low, high = slope - half, slope + half
    # 0.1 off by decimals is more than 0.1 off by floats.
    first, last = expected - tolerance * (1 + 1e-9), expected + tolerance * (1 + 1e-9)
    verdict: Verdict = "undecided"
    if first <= low and high <= last:
        verdict = "holds"
    elif high < first or low > last:
        verdict = "fails"
    around = "" if error is None else f" (95 %: {low:.3f} to {high:.3f})"
    return Finding(
        verdict=verdict,
        ours=f"{what}: slope {slope:.3f}{around}, claimed {expected:g} ± {tolerance:g}.",
        estimate=slope,
        interval=None if error is None else (low, high),
    )


def exact_finding(ok: bool, ours: str) -> Finding:
    """Return what a check without noise found: it ``holds`` or ``fails``.

    Args:
        ok: Whether the claim is true of the records.
        ours: Our numbers, as one sentence.
    """
    return Finding(verdict="holds" if ok else "fails", ours=ours)


def described(
    ours: str,
    *,
    estimate: float | None = None,
    interval: tuple[float, float] | None = None,
    pairs: int | None = None,
    detectable: float | None = None,
    seeds_needed: int | None = None,
) -> Finding:
    """Return a description: numbers that no test was stated for, so ``undecided``.

    Args:
        ours: Our numbers, as one sentence.
        estimate: As in `Finding`.
        interval: Likewise.
        pairs: Likewise.
        detectable: Likewise.
        seeds_needed: Likewise.
    """
    return Finding(
        verdict="undecided", ours=ours, estimate=estimate, interval=interval, pairs=pairs, detectable=detectable,
        seeds_needed=seeds_needed,
    )  # fmt: skip


def not_testable(why: str) -> Finding:
    """Return that a claim cannot be tested on the models and data at hand.

    Args:
        why: What is missing, and what would do, as a sentence.
    """
    return Finding(verdict="not testable here", ours=why)


def all_of(findings: Mapping[str, Finding]) -> Finding:
    """Judge a claim of several parts: it holds if all of them hold, fails if one fails, and is undecided otherwise.

    Parts that are all ``not testable here`` make a claim that is not; beside others such a part leaves it undecided.

    Args:
        findings: Of the parts, by a short name of each.

    Returns:
        The finding: the sentences of the parts, the smallest number of pairs, and the largest number of seeds needed
        where each undecided part tells it. Each part is tested at its own level.

    Raises:
        SpecError: There are no parts.
    """
    parts = list(findings.values())
    if not parts:
        raise SpecError("findings={}: a claim of no parts cannot be judged. Give at least one finding by its name.")
    verdicts = {part.verdict for part in parts}
    pairs = [part.pairs for part in parts if part.pairs is not None]
    needed = [part.seeds_needed for part in parts if part.verdict == "undecided"]
    known = [seeds for seeds in needed if seeds is not None]
    verdict: Verdict = "undecided"
    if len(verdicts) == 1:
        verdict = parts[0].verdict
    elif "fails" in verdicts:
        verdict = "fails"
    return Finding(
        verdict=verdict,
        ours=" ".join(f"{name} ({part.verdict}): {part.ours}" for name, part in findings.items()),
        pairs=min(pairs, default=None),
        seeds_needed=max(known) if verdict == "undecided" and known and len(known) == len(needed) else None,
        joined=sum(part.joined or 1 for part in parts),
        brief=_brief(findings),
    )


def _brief(findings: Mapping[str, Finding]) -> str:
    # "Holds: Z_A (0.489); Z_B (-0.011). Undecided: ratio (0.3)."
    said: list[str] = []
    for verdict in VERDICTS:
        names = [_named(name, part) for name, part in findings.items() if part.verdict == verdict]
        said += [f"{verdict.capitalize()}: {'; '.join(names)}."] if names else []
    return " ".join(said)


def _named(name: str, part: Finding) -> str:
    return name if part.estimate is None else f"{name} ({part.estimate:.3g})"


def _quantile(degrees: int | None) -> float:
    if degrees is None:
        return 2.0
    from scipy import stats  # takes most of a second to import

    return float(stats.t.isf(0.025, degrees))
