"""Claims of zhu_least_squares that are exact: both lemmas, projections, inputs of few dimensions. No torch in here.

What is measured is in `asymlora.papers.least_squares_points`; claims on random draws are in
`asymlora.papers.factor_draw_claims`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from asymlora.papers.start_claims import chosen_records
from asymlora.papers.stated_tests import known_before
from asymlora.papers.zhu_settings import DERIVED, THEORY
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record
from asymlora.reproduce.plain_findings import all_of, exact_finding

FORMS, GRADIENTS, GAP, MOVED, NESTED = (
    "closed_forms", "gradients", "gap_formula", "reparameterisation", "nested_ranks",
)  # fmt: skip
"""Parts of zhu_least_squares."""


# Both lemmas ---------------------------------------------------------------------------------------------------------

_FORM_LIMITS = {
    "loss_error": 1e-10, "solution_error": 1e-8, "gradient": 1e-8, "descent_error": 1e-6, "noise_error": 0.02,
}  # fmt: skip
_FORM_NAMES = {
    "loss_error": "loss against the data", "solution_error": "factor against least squares",
    "gradient": "gradient there over that at zero", "descent_error": "loss after descent",
    "noise_error": "loss with noise on fresh rows",
}  # fmt: skip


def _lemma(trained: str) -> Callable[[Evidence], Finding]:
    def judge(evidence: Evidence) -> Finding:
        records = chosen_records(evidence, FORMS, trained=trained)
        largest = {name: max(record[name] for record in records) for name in _FORM_LIMITS}
        said = ", ".join(f"{_FORM_NAMES[name]} {value:.1e}" for name, value in largest.items())
        ok = all(value <= _FORM_LIMITS[name] for name, value in largest.items())
        return exact_finding(ok, f"Largest relative errors over {len(records)} layers: {said}.")

    return judge


def _projections(evidence: Evidence) -> Finding:
    found: dict[str, Finding] = {}
    for dtype, limit in (("float64", 1e-12), ("float32", 1e-6)):
        records = chosen_records(evidence, GRADIENTS, dtype=dtype)
        worst = max(max(record["error_A"], record["error_B"]) for record in records)
        found[dtype] = exact_finding(worst <= limit, f"largest relative error {worst:.1e} over {len(records)} nets.")
    return all_of(found)


# What is exact -------------------------------------------------------------------------------------------------------


def _gap(evidence: Evidence) -> Finding:
    found: dict[str, Finding] = {}
    for r in evidence.records(GAP):
        off = r["gap"] / r["formula"] - 1
        allowed = max(0.005, 4 * r["error"] / r["formula"])
        found[f"rank {r['rank']} of {r['width']}"] = exact_finding(
            abs(off) <= allowed,
            f"mean of {r['draws']} draws {r['gap']:.4f} of the whole, formula {r['formula']:.4f}: {100 * off:+.2f} %,"
            f" {100 * allowed:.2f} % allowed.",
        )
    return all_of(found)


def _recovered(evidence: Evidence) -> Finding:
    worst = max(record["not_recovered"] for record in evidence.records(GAP))
    return exact_finding(worst <= 1e-8, f"Largest share that III_A misses, over draws and ranks: {worst:.1e}.")


def _moved(evidence: Evidence) -> Finding:
    records = evidence.records(MOVED)
    fits = [r["error"] for r in records if r["dimensions"] <= r["rank"]]
    beyond = [r["error"] for r in records if r["dimensions"] > r["rank"]]
    if not fits or not beyond:
        raise MissingEvidenceError("inputs of at most the rank's dimensions and of more")
    return all_of(
        {
            "dimensions up to the rank": exact_finding(max(fits) <= 1e-8, f"largest error {max(fits):.1e}."),
            "twice the rank": exact_finding(min(beyond) > 1e-3, f"smallest error {min(beyond):.2g}."),
        }
    )


def _grows_with_rank(evidence: Evidence) -> Finding:
    records = evidence.records(NESTED)
    lines: dict[tuple[float, int], list[Record]] = {}
    for record in sorted(records, key=lambda r: r["rank"]):
        lines.setdefault((record["decay"], record["seed"]), []).append(record)
    pairs = [pair for line in lines.values() for pair in pairwise(line)]
    if not pairs:
        raise MissingEvidenceError("two ranks of one draw")
    falls = [before[name] - after[name] for before, after in pairs for name in ("explained_A", "explained_B")]
    ahead = [max(r["explained_A"], r["explained_B"]) - r["best"] for r in records]
    return exact_finding(
        max(falls) <= 1e-9 and max(ahead) <= 1e-9,
        f"Over {len(lines)} draws, from one rank to the next III_A and III_B rose by {-max(falls):.1e} of the whole or"
        f" more, and exceeded the free optimum by {max(ahead):.1e} at most.",
    )


# The claims ----------------------------------------------------------------------------------------------------------

_EXACT = known_before("exact by derivation, and tested so in tests/theory.")


def _claim(key: str, part: str, judge: Callable[[Evidence], Finding], **words: Any) -> Claim:
    return Claim(key=key, parts=(part,), judge=judge, **words)


def _of_lemma(key: str, trained: str, held: str, number: str) -> Claim:
    return _claim(
        key, FORMS, _lemma(trained), kind="paper", source=f"{THEORY}, lemma {number}",
        says=f"The best {trained} over a frozen {held}, and its loss, are those of the closed form.",
        paper="exact",
        test="Six layers of 16 inputs and 12 outputs at rank 4, covariance that of 500 rows. Relative errors, holds"
        " where all are met, else fails: loss on the rows 1e-10, factor against a least-squares solver 1e-8, gradient"
        " there over that at zero 1e-8, loss after gradient descent 1e-6, loss with noise on 200,000 fresh rows 2 %."
        + _EXACT,
    )  # fmt: skip


CLAIMS = (
    _of_lemma("lemma_4_1", "B", "A", "4.1"),
    _of_lemma("lemma_4_2", "A", "B", "4.2"),
    _claim(
        "projections", GRADIENTS, _projections, kind="paper", source=f"{THEORY}: formulas recalled",
        says="A frozen A projects the inputs of the layer's gradient, a frozen B the errors at its outputs.",
        paper="grad_B = G Q^T, grad_A = U^T G",
        test="A net of three layers, tanh and cross-entropy, scaling 2. Holds where both gradients agree with autograd"
        " within 1e-12 in float64 and 1e-6 in float32, else fails." + _EXACT,
    ),
    _claim(
        "gap_formula", GAP, _gap, kind="paper", source=f"{THEORY}; exact at any size: derived by us",
        says="Where inputs fill r dimensions alike, III_A - III_B is 1 - r/d of the whole in the mean.",
        paper="(1 - r/d) sigma_x^2 Tr[...] as d grows",
        test="Width 128, ranks 4, 16 and 64, 400 draws of B: mean within 0.5 % of the formula, or within four standard"
        " errors where these are more. Holds where all are, else fails."
        + known_before("within 0.12 % on other draws (our notes on the paper)."),
    ),
    _claim(
        "full_recovery", GAP, _recovered, kind="paper", source=THEORY,
        says="Where inputs fill at most r dimensions, a random A loses nothing, whichever it is.",
        paper="III_A is the whole for every Q",
        test="20 draws of A at each rank: III_A within 1e-8 of the whole. Holds where all are, else fails." + _EXACT,
    ),
    _claim(
        "reparameterisation", MOVED, _moved, kind="paper", source=THEORY,
        says="Any update moves onto any other A where inputs fill at most r dimensions, and only there.",
        paper="B' = B A U_X (Q U_X)^-1",
        test="Rank 8, inputs of 4, 8 and 16 dimensions, six draws: largest error over the largest output at most 1e-8"
        " up to the rank, and above 1e-3 at twice the rank with the closest B'. Holds where both do, else fails."
        + _EXACT,
    ),
    _claim(
        "grows_with_rank", NESTED, _grows_with_rank, kind="derived", source=DERIVED,
        says="More rows of a frozen A, or columns of a frozen B, never explain less; both factors free explain most.",
        test="Nested factors of ranks 1 to 64, isotropic inputs and variances 1/i, six draws: no fall and no excess"
        " over the free optimum above 1e-9 of the whole. Holds where so, else fails." + _EXACT,
    ),
)  # fmt: skip
"""All of them."""
