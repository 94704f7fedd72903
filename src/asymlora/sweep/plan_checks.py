"""What is wrong with the plan of a sweep, and what should be known of it, before any model is looked at. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from asymlora.sweep.axes import is_read
from asymlora.sweep.rates import rate_text

if TYPE_CHECKING:
    from asymlora.sweep.grid import SweepPlan

LEAST_TUNING, LEAST_CLOSING = 2, 6
_SET_BY_MATCH = {"parameters": "adapter.rank", "compute": "train.steps"}


def plan_problems(plan: SweepPlan) -> list[str]:
    """Return what makes a plan one that cannot be run, apart from its cells' recipes.

    Args:
        plan: The plan.

    Returns:
        One sentence part each; none where nothing is wrong.
    """
    return [*_number_problems(plan), *_seed_problems(plan), *_choice_problems(plan), *_search_problems(plan)]


def notes(plan: SweepPlan) -> list[str]:
    """Return sentences that the user should read before a sweep begins.

    Args:
        plan: A plan that can be run.
    """
    said: list[str] = []
    if not plan.tunes:
        said.append(
            f"One learning rate, {rate_text(plan.rates[0])}: nothing is tuned, and arms are compared at a rate that may"
            " suit one better than another. Give a range, like --lr 1e-4..1e-2."
        )
    elif len(plan.tuning_seeds) < LEAST_TUNING:
        said.append("One tuning seed: a rate that is stable by luck can be chosen. Give --tuning-seeds 2.")
    if len(plan.closing_seeds) < LEAST_CLOSING:
        count = len(plan.closing_seeds)
        said.append(
            f"{count} closing {'seed' if count == 1 else 'seeds'}: fewer than {LEAST_CLOSING} pairs cannot reach"
            f" p < 0.05 in an exact paired test, so no difference can be shown. Give --seeds {LEAST_CLOSING}."
        )
    if len(plan.arms) * math.prod(len(axis.values) for axis in plan.axes) == 1:
        said.append("One cell: a rate is found for it, and it is compared with nothing. Give a second --arm.")
    return said


def _number_problems(plan: SweepPlan) -> Iterator[str]:
    if not plan.rates:
        yield "there are no learning rates. Give some, like --lr 1e-4..1e-2"
        return
    wrong = [lr for lr in plan.rates if not (math.isfinite(lr) and lr > 0)]
    if wrong:
        yield f"the rates {', '.join(map(str, wrong))} are no numbers above 0"
    for lr in sorted({lr for lr in plan.rates if plan.rates.count(lr) > 1}):
        yield f"the rate {rate_text(lr)} is given twice. Give every rate once"
    if plan.bounds is not None and not wrong:
        yield from _bound_problems(plan.bounds, plan.rates)
    for name, least in (("prune_eta", 2), ("repeats", 0), ("threads", 1)):
        value = getattr(plan, name)
        if value is not None and value < least:
            yield f"{name}={value} must be at least {least}"
    if plan.margin is not None and not (math.isfinite(plan.margin) and plan.margin > 0):
        yield f"margin={plan.margin} must be a number above 0"


def _bound_problems(bounds: Sequence[float], rates: Sequence[float]) -> Iterator[str]:
    if len(bounds) != 2 or not 0 < bounds[0] <= rates[0] or not rates[-1] <= bounds[1] < math.inf:
        said = ", ".join(f"{bound:g}" for bound in bounds)
        yield (
            f"bounds ({said}) must be two numbers above 0 around all rates, {rate_text(rates[0])} to"
            f" {rate_text(rates[-1])}"
        )


def _seed_problems(plan: SweepPlan) -> Iterator[str]:
    for name in ("tuning_seeds", "closing_seeds"):
        seeds: tuple[int, ...] = getattr(plan, name)
        if not seeds and not (name == "tuning_seeds" and len(plan.rates) == 1 and plan.search is None):
            yield f"{name} is empty. Give at least one seed"
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            yield f"{name} holds {', '.join(map(str, twice))} twice. Give every seed once"
        if outside := [seed for seed in seeds if not 0 <= seed < 2**32]:
            yield f"{name} holds {', '.join(map(str, outside))}, and seeds lie between 0 and 2**32 - 1"
    if both := sorted(set(plan.tuning_seeds) & set(plan.closing_seeds)):
        yield (
            f"{', '.join(map(str, both))} stands in tuning_seeds and in closing_seeds: figures of runs that chose the"
            " rate are too good. Take others for one of them"
        )


def _choice_problems(plan: SweepPlan) -> Iterator[str]:
    if not plan.arms:
        yield "there are no arms. Give at least one, like --arm b_only"
    for what, names in (("arm", [arm.name for arm in plan.arms]), ("axis", [axis.field for axis in plan.axes])):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{what} {name!r} is given twice. Give it once" + (", or name one: NAME=..." if what == "arm" else "")
    for arm, axis in itertools.product(plan.arms, plan.axes):
        if axis.field in arm.options:
            yield f"arm {arm.name!r} sets {axis.field}, which is an axis too. Leave one of them out"
        if len(axis.values) > 1 and not is_read(arm.method(plan.recipe), axis.field):
            yield (
                f"arm {arm.name!r} does not read {axis.field}, so its cells along that axis would be the same run."
                " Leave the arm or the axis out"
            )
    if plan.match in _SET_BY_MATCH:
        yield from _budget_problems(plan, _SET_BY_MATCH[plan.match])


def _budget_problems(plan: SweepPlan, name: str) -> Iterator[str]:
    if any(axis.field == name for axis in plan.axes):
        yield f"match={plan.match} sets {name} of every arm but the first, and it is an axis. Leave one of them out"
    for arm in plan.arms[1:]:
        if name in arm.options:
            yield (
                f"match={plan.match} sets {name} of every arm but the first, and arm {arm.name!r} sets its own. Leave"
                " it out there, or let the arm be the first"
            )


def _search_problems(plan: SweepPlan) -> Iterator[str]:
    if plan.search is None:
        return
    if plan.bounds is not None or not plan.grow:
        yield "bounds and grow are of a grid of rates, and a search has none. Leave them out (--lr-bounds, --no-grow)"
    for name in dict.fromkeys(field.name for field in plan.search.space):
        if any(axis.field == name for axis in plan.axes):
            yield f"{name} is searched, and it is an axis. Leave one of them out"
        if name == _SET_BY_MATCH.get(plan.match):
            yield f"match={plan.match} sets {name}, and it is searched. Leave one of them out"
        for arm in plan.arms:
            if name in arm.options:
                yield f"{name} is searched, and arm {arm.name!r} sets its own. Leave one of them out"
            if not is_read(arm.method(plan.recipe), name):
                yield f"{name} is searched, and arm {arm.name!r} does not read it. Leave the arm or the field out"
