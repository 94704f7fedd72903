r"""Verdicts on adapters that do not train as they should, from rows of `FeatureDynamics`: pure functions, no model.

A verdict is reached per site and factor; one `Verdict` tells all sites of the same trouble. With ``n`` the columns of
``A`` (of an embedding, whose one-hot input contracts over nothing, the rows of ``B``), they hold when

* ``no_gradient`` (exact): at 3 measured steps or more, and at all of them, a trained factor has no gradient or a zero
  one. Steps at which the other factor was zero do not count: there the chain rule gives zero.
* ``not_moving`` (rounding): at 3 measured steps or more, one of them after step 3, and at all of them, a factor with a
  gradient moves by less than eps/4 of its size.
* ``B_zero`` (exact): ``B`` is exactly zero after the second measured step, or later.
* ``internal_instability`` (theory): ``log(Z_A / rms_x) / log n > 1/4`` where ``A`` is trained.
* ``output_instability`` (theory): ``log(Z_B / rms_base) / log n > 1/4``.
* ``inefficient`` (theory): both factors are trained, and the medians of ``delta1`` and ``delta2`` over 3 or more
  measured steps after the first two have a ratio below ``n**-1/2``.
* ``non_finite`` (exact): a measurement is NaN or infinite.

*Rounding.* Neighbouring numbers of a type lie eps/2 to eps of their size apart. If a share ``p`` of the entries moves
by one such step, the factor moves by at least about ``sqrt(p) eps/2`` of its size. So below eps/4 less than a quarter
of its entries move: the others round their updates away. Steps 1 to 3 often lie in a warm-up, and alone decide nothing.

*Theory.* As the width ``n`` grows, ``Z_A`` is of order 1 where it is stable, and of order ``n**1/2`` at the largest
stable rate of Init[A]. ``Z_B`` is of order 1 where it is stable, and of order ``n**1/2`` where the rate is ``n**1/4``
too large for Init[A] or ``n**1/2`` too large for Init[B]. ``delta2 / delta1`` is of order 1 where both factors learn,
and of order ``1/n`` for Init[B] at its stable rate. Each threshold is the geometric middle between the two orders. The
constants that a theory of orders leaves open can be as large as that for narrow layers: below 64, ``n`` counts as 64
(ours). A factor that begins at zero grows in proportion to the steps, and the ratio of the deltas with it, until it
is of order 1: while a run goes on, ``inefficient`` waits for a ratio that rises faster than the square root of the
steps, the middle of growing and standing still (ours). What was there before the first step is no growth: ``Z_A`` and
``Z_B`` are compared with their own start where that is the larger. On an embedding a step of ``A`` adds up along
nothing, so the two verdicts on it are left out there.

Source:
    Hayou et al., 2024, "The Impact of Initialization on LoRA Finetuning Dynamics": the orders (the recursions of
    `asymlora.theory.width_scaling`, checked there). The thresholds between them: *derived here*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Any

from asymlora.diagnostics.verdict import Factor, Verdict, named

__all__ = ["RULES", "Row", "Verdict", "judge"]
Row = Mapping[str, Any]
FACTORS: tuple[Factor, Factor] = ("A", "B")
MIN_STEPS = 3
"""Measured steps that a verdict on a course needs."""
MIN_WIDTH = 64
GROWTH_EXPONENT = 0.25
EFFICIENCY_EXPONENT = -0.5
RISE_EXPONENT = 0.5
FLOAT32_EPS = 2.0**-23
_EARLY = 3
_SIZES = ("Z_A", "Z_B", "delta1", "delta2", "delta3", "delta_Z_B", "grad_A", "grad_B", "norm_A", "norm_B")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one rule saw at one site.

    Attributes:
        site: Path of the site.
        step: The first step at which the rule held.
        value: The worst value.
        threshold: What it was compared with.
        detail: What else the sentence needs.
    """

    site: str
    step: int
    value: float
    threshold: float
    detail: str = ""


def judge(
    rows: Iterable[Row], *, eps: Mapping[tuple[str, str], float] | None = None, goes_on: bool = False
) -> tuple[Verdict, ...]:
    """Return what is wrong with the adapters that some rows tell of.

    Args:
        rows: Rows of `FeatureDynamics`, in the order of the steps.
        eps: Distance of 1 to the next number in the type of a factor, by site and factor; default: float32's.
        goes_on: Whether more rows will follow. Then a site is not yet called ``inefficient`` while its ratio rises.

    Returns:
        One verdict for each name and factor, in the order of the table at the top; empty where all is well.
    """
    by_site: dict[str, list[Row]] = {}
    for row in rows:
        by_site.setdefault(row["site"], []).append(row)
    found: list[Verdict] = []
    for rule in RULES:
        seen = [s for own in by_site.values() if (s := rule.find(own, eps or {})) is not None]
        if goes_on and rule.name == "inefficient":
            seen = [s for s in seen if not _still_rises(by_site[s.site])]
        if seen:
            found.append(_verdict(rule, seen, total=len(by_site)))
    return tuple(found)


_Find = Callable[[Sequence[Row], Mapping[tuple[str, str], float]], Seen | None]


# Rules ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one verdict is reached.

    Attributes:
        name: The verdict's.
        factor: Which factor it is about, or None.
        find: Looks through one site's rows; gets ``eps`` too.
        says: Sentence with the fields ``where``, ``step``, ``value``, ``threshold``, ``detail``, ``width``.
        means: What it means.
        remedy: What to change; may hold ``{detail}``.
        worst: Chooses the worst of several values.
    """

    name: str
    factor: Factor | None
    find: _Find
    says: str
    means: str
    remedy: str
    worst: Callable[[Iterable[float]], float] = max


def _verdict(rule: Rule, seen: Sequence[Seen], *, total: int) -> Verdict:
    first = min(seen, key=lambda s: s.step)
    worst = next((s for s in seen if s.value == rule.worst(each.value for each in seen)), first)
    sites = tuple(s.site for s in seen)
    fields = {"step": first.step, "value": worst.value, "threshold": worst.threshold, "detail": worst.detail}
    return Verdict(
        name=rule.name,
        factor=rule.factor,
        sites=sites,
        step=first.step,
        value=worst.value,
        threshold=worst.threshold,
        says=rule.says.format(where=named(sites, total), **fields),
        means=rule.means.format(**fields),
        remedy=rule.remedy.format(**fields),
    )


def _no_gradient(factor: Factor) -> _Find:
    other = "B" if factor == "A" else "A"

    def find(rows: Sequence[Row], eps: Mapping[tuple[str, str], float]) -> Seen | None:
        # A factor beside a zero one has a zero gradient, by the chain rule: the first step of Init[A] and Init[B].
        due = [r for r in rows if r[f"trains_{factor}"] and r[f"relative_update_{other}"] is not None]
        if len(due) < MIN_STEPS or any(r[f"grad_{factor}"] for r in due):
            return None
        missing = all(r[f"grad_{factor}"] is None for r in due)
        detail = "no gradient" if missing else "a gradient of exactly 0"
        return Seen(site=due[0]["site"], step=due[MIN_STEPS - 1]["step"], value=0.0, threshold=0.0, detail=detail)

    return find


def _not_moving(factor: Factor) -> _Find:
    def find(rows: Sequence[Row], eps: Mapping[tuple[str, str], float]) -> Seen | None:
        due = [r for r in rows if r[f"trains_{factor}"] and r[f"grad_{factor}"]]
        if len(due) < MIN_STEPS or due[-1]["step"] <= _EARLY:
            return None
        least = eps.get((due[0]["site"], factor), FLOAT32_EPS) / 4
        # From zero every movement is infinitely large.
        moves = [
            r[f"relative_update_{factor}"] if r[f"relative_update_{factor}"] is not None else r[f"update_{factor}"]
            for r in due
        ]
        if not all(move < least for move in moves):
            return None
        decided = next(r["step"] for i, r in enumerate(due) if i + 1 >= MIN_STEPS and r["step"] > _EARLY)
        return Seen(site=due[0]["site"], step=decided, value=max(moves), threshold=least)

    return find


def _zero_B(rows: Sequence[Row], eps: Mapping[tuple[str, str], float]) -> Seen | None:
    for count, row in enumerate(rows, start=1):
        # An expert that no batch has called yet, or a B below a head that is zero until the warm-up moves it, waits for
        # the third measured step, as `no_gradient` does.
        waits = row["trains_B"] and not any(r["grad_B"] for r in rows[:count])
        if count >= (MIN_STEPS if waits else 2) and row["norm_B"] == 0:
            return Seen(site=row["site"], step=row["step"], value=0.0, threshold=0.0)
    return None


def _internal(rows: Sequence[Row], eps: Mapping[tuple[str, str], float]) -> Seen | None:
    if not rows[0]["trains_A"] or rows[0]["kind"] == "embedding":
        return None
    first = rows[0]
    # A step that moves A by more than its size leaves nothing of the start to compare with.
    has_start = first["step"] == 1 and first["relative_update_A"] is not None and first["relative_update_A"] < 1
    start = max(first["rms_x"], first["Z_A"] if has_start else 0.0)
    return _grown(rows, "Z_A", start=start, of="their start or their input")


def _output(rows: Sequence[Row], eps: Mapping[tuple[str, str], float]) -> Seen | None:
    first = rows[0]
    # By the triangle inequality, Z_B was at least this large before the first step.
    start = first["Z_B"] - first["delta_Z_B"] if first["step"] == 1 else 0.0
    return _grown(rows, "Z_B", start=max(first["rms_base"] or 0.0, start), of="the frozen layer's own output")


def _grown(rows: Sequence[Row], key: str, *, start: float, of: str) -> Seen | None:
    if not start > 0 or not math.isfinite(start):
        return None
    width = _width(rows[0])
    over = [
        (row["step"], exponent)
        for row in rows
        if 0 < row[key] < math.inf and (exponent := math.log(row[key] / start) / math.log(width)) > GROWTH_EXPONENT
    ]
    if not over:
        return None
    largest = max(exponent for _, exponent in over)
    times = f"{width**largest:,.3g} times {of} (at width {width:,} at most {width**GROWTH_EXPONENT:.2g} times)"
    return Seen(site=rows[0]["site"], step=over[0][0], value=largest, threshold=GROWTH_EXPONENT, detail=times)


def _inefficient(rows: Sequence[Row], eps: Mapping[tuple[str, str], float]) -> Seen | None:
    late = [r for r in rows[2:] if all(math.isfinite(r[key]) for key in ("delta1", "delta2"))]
    both = rows[0]["trains_A"] and rows[0]["trains_B"] and rows[0]["kind"] != "embedding"
    if not both or len(late) < MIN_STEPS:
        return None
    delta1, delta2 = (median(r[key] for r in late) for key in ("delta1", "delta2"))
    least = _width(rows[0]) ** EFFICIENCY_EXPONENT
    if max(delta1, delta2) == 0 or min(delta1, delta2) >= least * max(delta1, delta2):
        return None
    detail = _ONLY_A if delta1 > delta2 else _ONLY_B
    ratio = min(delta1, delta2) / max(delta1, delta2)
    return Seen(site=rows[0]["site"], step=late[-1]["step"], value=ratio, threshold=least, detail=detail)


def _still_rises(rows: Sequence[Row]) -> bool:
    late = [r for r in rows[2:] if all(math.isfinite(r[key]) for key in ("delta1", "delta2"))]
    parts = late[: len(late) // 2], late[-(len(late) // 2) :]
    ratios = [[min(pair) / (max(pair) or 1.0) for r in part if (pair := (r["delta1"], r["delta2"]))] for part in parts]
    (before, now), (earlier, step) = map(median_low, ratios), (median_low(r["step"] for r in part) for part in parts)
    if before == 0:
        return now > 0
    return now > before * (step / earlier) ** RISE_EXPONENT


_ONLY_A = (
    "Here A alone moves the output (delta1). Raise B's rate (adapter.B.lr_ratio 4 to 16, LoRA+), start with"
    " adapter.preset=init_a, or train A alone (adapter.preset=a_only)."
)
_ONLY_B = (
    "Here B alone moves the output (delta2). Train B alone (adapter.preset=b_only): half the parameters, nearly the"
    " same steps. Or raise train.lr, or train.lr_A by itself."
)


def _non_finite(rows: Sequence[Row], eps: Mapping[tuple[str, str], float]) -> Seen | None:
    for row in rows:
        for key in _SIZES:
            if row[key] is not None and not math.isfinite(row[key]):
                return Seen(site=row["site"], step=row["step"], value=row[key], threshold=math.inf, detail=key)
    return None


def _width(row: Row) -> int:
    return max(MIN_WIDTH, row["outputs"] if row["kind"] == "embedding" else row["fan_in"])


def _of_each_factor(name: str, find: Callable[[Factor], _Find], *, says: str, means: str, remedy: str) -> list[Rule]:
    return [
        Rule(
            name=name,
            factor=factor,
            find=find(factor),
            says=says.replace("<F>", factor),
            means=means,
            remedy=remedy.replace("<F>", factor),
        )
        for factor in FACTORS
    ]


RULES: tuple[Rule, ...] = (
    Rule(
        name="non_finite",
        factor=None,
        find=_non_finite,
        says="{detail} is {value} at step {step}, at {where}.",
        means="A number has run over, and what is computed from it is lost.",
        remedy="Lower train.lr to a third; with float16 or bfloat16 factors, keep them in float32.",
    ),
    *_of_each_factor(
        "no_gradient",
        _no_gradient,
        says="<F> had {detail} in every measured step up to {step}, at {where}.",
        means="It is marked as trained and does not learn: the loss does not depend on it.",
        remedy=(
            "Look whether the layer's output reaches the loss (detach, no_grad, a layer that is not called), and with"
            " gradient checkpointing call model.enable_input_require_grads()."
        ),
    ),
    *_of_each_factor(
        "not_moving",
        _not_moving,
        says=(
            "<F> has a gradient and moved by {value:.2g} of its size a step at most, up to step {step}, at {where};"
            " below {threshold:.2g} updates round away."
        ),
        means="The optimizer does not train it: its rate is 0 or too small for its type, or no optimizer has it.",
        remedy=(
            "Raise train.lr_<F>, keep the factors in float32, and build the optimizer over asymlora.param_groups(model,"
            " lr=...)."
        ),
    ),
    Rule(
        name="B_zero",
        factor="B",
        find=_zero_B,
        says="B is still exactly zero after step {step}, at {where}.",
        means="The adapter adds nothing to its layer, and A can have no gradient.",
        remedy=(
            "Train B (adapter.B.trainable true, a rate above 0, its parameters in the optimizer), or start it at random"
            " over a zero A (adapter.preset=init_b)."
        ),
    ),
    Rule(
        name="output_instability",
        factor="B",
        find=_output,
        says="The adapter's output Z_B is {detail}, from step {step} on, at {where}.",
        means="The update drowns what the model knew; with the width it grows without bound.",
        remedy="Lower train.lr to a third, or adapter.alpha.",
    ),
    Rule(
        name="internal_instability",
        factor="A",
        find=_internal,
        says="The features Z_A = Ax are {detail}, from step {step} on, at {where}.",
        means=(
            "A's steps add up along the inputs. At the largest stable rate of Init[A] this is expected and the price of"
            " learning with both factors; it loses digits in float16 and bfloat16, and is the first sign of a rate that"
            " is too large."
        ),
        remedy=(
            "Lower A's rate alone (train.lr_A, or adapter.B.lr_ratio 4 to 16 beside a smaller train.lr), or train B"
            " alone (adapter.preset=b_only)."
        ),
    ),
    Rule(
        name="inefficient",
        factor=None,
        find=_inefficient,
        says=(
            "Of delta1 (A moves) and delta2 (B moves), the smaller is {value:.2g} of the larger up to step {step}, at"
            " {where}; below {threshold:.2g} only one of them is alive."
        ),
        means=(
            "Both factors are trained, stored and stepped, and one of them hardly changes what the model says. In the"
            " first steps this is so from every start with a zero factor: of a short run it says little."
        ),
        remedy="{detail}",
        worst=min,
    ),
)
"""In the order in which they are told."""
