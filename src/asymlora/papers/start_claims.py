"""Claims of hayou_toy on the start, checks C1 to C3, and their tests. No torch in here.

The setting of each measurement is in `asymlora.papers.one_layer_points`.
"""

from __future__ import annotations

from typing import Any

from asymlora.papers.hayou_settings import ABSTRACT, ANALYSIS, DERIVED
from asymlora.papers.stated_tests import known_before
from asymlora.papers.student_records import NAMES
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record
from asymlora.reproduce.plain_findings import all_of, exact_finding

START, DRAWS = "start", "draws"
"""Parts of hayou_toy."""


def chosen_records(evidence: Evidence, part: str, **wanted: Any) -> list[Record]:
    """Return the records of a part with some values.

    Args:
        evidence: Records of the artefact.
        part: Its name.
        wanted: Values by field.

    Raises:
        MissingEvidenceError: There are none.
    """
    found = [r for r in evidence.records(part) if all(r[name] == value for name, value in wanted.items())]
    if not found:
        raise MissingEvidenceError(f"{part} with {', '.join(f'{name} {value}' for name, value in wanted.items())}")
    return found


def _identity(evidence: Evidence) -> Finding:
    rows = [r for r in evidence.records(START) if r["scheme"] != "both_zero"]
    errors = {dtype: [r["identity_error"] for r in rows if r["dtype"] == dtype] for dtype in ("float64", "float32")}
    if not all(errors.values()):
        raise MissingEvidenceError("starts in both precisions")
    largest = {dtype: max(values) for dtype, values in errors.items()}
    return exact_finding(
        largest["float64"] < 1e-12 and largest["float32"] < 1e-5,
        f"Largest error over optimizers, starts and 12 steps: {largest['float64']:.1e} of Z_B in float64,"
        f" {largest['float32']:.1e} in float32.",
    )


def _changes_nothing(evidence: Evidence) -> Finding:
    rows = [r for scheme in ("init_a", "init_b") for r in chosen_records(evidence, START, scheme=scheme)]
    largest = max(r["output_at_start"] for r in rows)
    return exact_finding(largest == 0, f"Largest output of B A before the first update, {len(rows)} runs: {largest:g}.")


def _first_step(evidence: Evidence) -> Finding:
    found: dict[str, Finding] = {}
    for scheme, held, moving in (("init_a", "A", "B"), ("init_b", "B", "A")):
        rows = chosen_records(evidence, START, scheme=scheme, weight_decay=0.0)
        still = max(max(r[f"grad_{held}"], r[f"step_{held}"]) for r in rows)
        moved = min(r[f"step_{moving}"] for r in rows)
        found[NAMES[scheme]] = exact_finding(
            still == 0 and moved > 0,
            f"gradient and step of {held} {still:g}, step of {moving} at least {moved:.2g} of it, {len(rows)} runs.",
        )
    return all_of(found)


def _controls(evidence: Evidence) -> Finding:
    moved = max(r["moved"] for r in chosen_records(evidence, START, scheme="both_zero"))
    decayed = [r["step_A"] for r in chosen_records(evidence, START, scheme="init_a") if r["weight_decay"] > 0]
    if not decayed:
        raise MissingEvidenceError("a start with weight decay")
    return all_of(
        {
            "both factors zero": exact_finding(moved == 0, f"largest step of a factor in 12 updates {moved:g}."),
            "weight decay 0.1": exact_finding(
                min(decayed) > 0, f"first step of A under Init[A] {min(decayed):.2g} of A."
            ),
        }
    )


def _expected_variance(row: Record) -> float:
    fan_in = row["width"] if row["factor"] == "A" else row["rank"]
    return {"gaussian": 1 / fan_in, "kaiming_uniform": 1 / (3 * fan_in), "peft_gaussian": row["rank"] ** -2.0}[
        row["init"]
    ]


def _variances(evidence: Evidence) -> Finding:
    rows = evidence.records(DRAWS)
    ratios = {f"{r['factor']} {r['init']}": r["variance"] / _expected_variance(r) for r in rows}
    worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
    return exact_finding(
        abs(ratios[worst] - 1) <= 0.05 and all(r["entries"] >= 20_000 for r in rows),
        f"Largest deviation of {len(rows)} draws of at least {min(r['entries'] for r in rows):,} entries: {worst},"
        f" {ratios[worst]:.3f} times the stated variance.",
    )


CLAIMS = (
    Claim(
        key="identity", parts=(START,), judge=_identity, kind="derived", source=DERIVED,
        says="The change of Z_B in a step is delta1 + delta2 + delta3, whatever the optimizer, the start and the step.",
        paper="exact (derived)",
        test="Holds where the largest error over Z_B is below 1e-12 in float64 and 1e-5 in float32, else fails."
        + known_before("exact, and tested so in tests/theory."),
    ),
    Claim(
        key="changes_nothing", parts=(START,), judge=_changes_nothing, kind="paper",
        source=f"{ABSTRACT}; as an exact claim it needs no seeds and is not run until decided",
        says="Both starts change nothing before the first step: B A = 0.",
        paper="B A = 0",
        test="Holds where the output of B A is exactly 0 before the first update in every run, else fails."
        + known_before("exact by construction, and tested so."),
    ),
    Claim(
        key="first_step", parts=(START,), judge=_first_step, kind="paper", source=ANALYSIS,
        says="The first step moves exactly one factor: B under Init[A], A under Init[B].",
        paper="gradient of the other factor 0",
        test="Holds where gradient and step of the other factor are exactly 0 and this one moves, under SGD, SignSGD"
        " and Adam without decay, else fails."
        + known_before("exact by construction, and tested so in tests/theory."),
    ),
    Claim(
        key="controls", parts=(START,), judge=_controls, kind="derived", source=DERIVED,
        says="It stops holding: with both factors zero nothing ever moves, and weight decay moves A in the first step"
        " of Init[A].",
        test="Holds where no factor moves in 12 updates from zero, and the first step of A is above 0 at decay 0.1,"
        " else fails."
        + known_before("exact by construction, and tested so in tests/theory."),
    ),
    Claim(
        key="variances", parts=(DRAWS,), judge=_variances, kind="paper",
        source=f"{ANALYSIS}; Kaiming uniform and PEFT's variances read in code",
        says="Starts have the stated variances: 1/n (A) and 1/r (B), a third of that for Kaiming uniform, 1/r^2 for"
        " PEFT's gaussian A.",
        paper="1/n, 1/r",
        test="Holds where every sample variance of at least 20,000 entries is within 5 % of the stated one, else"
        " fails."
        + known_before("the draws are tested so in tests."),
    ),
)  # fmt: skip
"""All of them."""
