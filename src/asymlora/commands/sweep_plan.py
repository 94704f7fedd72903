"""What a user typed for ``asymlora sweep``, as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asymlora.errors import SpecError
from asymlora.schema import refuse_values
from asymlora.sweep.axes import parse_arm, parse_axis, parse_rates
from asymlora.sweep.grid import SweepPlan, seeds_of
from asymlora.sweep.searching import Search, parse_searched
from asymlora.train.recipe import Recipe

RATES = "1e-4..1e-2"
ARMS = ("init_a", "init_b", "b_only")
_OF_SEARCH = ("trials", "sampler", "search_batch")


def plan_of(file: str | None, given: Mapping[str, Any], words: Mapping[str, Any]) -> SweepPlan:
    """Return the plan.

    Args:
        file: Recipe of all runs; None: the embedded one.
        given: Fields of the recipe that were typed, nested; they win over the file's.
        words: The other options, by name with underscores; None where they were not typed.

    Returns:
        The plan.

    Raises:
        SpecError: A word says nothing, or an option does nothing beside the others.
    """
    _refuse_idle(words)
    recipe = Recipe.load(file, given) if file else Recipe.from_dict(given)
    closing, tuning = _seeds(words)
    values: dict[str, Any] = {
        "recipe": recipe,
        "arms": tuple(parse_arm(word) for word in words["arm"] or ARMS),
        "axes": tuple(parse_axis(word) for word in words["axis"] or ()),
        "rates": _rates(words),
        "bounds": _bounds(words["lr_bounds"]),
        "grow": not words["no_grow"],
        "closing_seeds": closing,
        "tuning_seeds": tuning,
        "prune": bool(words["prune"]),
        "search": _search(words),
    }
    plain = ("match", "prune_eta", "repeats", "margin", "threads")
    return SweepPlan(**values, **{name: words[name] for name in plain if words[name] is not None})


def _refuse_idle(words: Mapping[str, Any]) -> None:
    wrong = {
        "--prune-eta is of early stopping: give --prune": words["prune_eta"] is not None and not words["prune"],
        "--lr-bounds is how far a grid may grow: leave --no-grow out": words["lr_bounds"] and words["no_grow"],
    }
    refuse_values([said for said, idle in wrong.items() if idle])


def _rates(words: Mapping[str, Any]) -> tuple[float, ...]:
    if words["search"] and words["lr"]:
        raise SpecError("--search takes the place of the grid: give --search train.lr=1e-4..1e-2 instead of --lr.")
    return parse_rates(words["lr"] or RATES)


def _bounds(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, dots, high = text.partition("..")
    if not dots:
        raise SpecError(f"--lr-bounds {text} is no range. Write LOW..HIGH: 1e-6..1.")
    (below,), (above,) = parse_rates(low), parse_rates(high)
    return below, above


def _seeds(words: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    closing, tuning = (words[name] or default for name, default in (("seeds", "6"), ("tuning_seeds", "2")))
    counts = [_count(text, option) for text, option in ((closing, "--seeds"), (tuning, "--tuning-seeds"))]
    listed = [
        None if count is not None else _listed(text) for count, text in zip(counts, (closing, tuning), strict=True)
    ]
    above = max(listed[0], default=-1) + 1 if listed[0] is not None else counts[0] or 0
    drawn = seeds_of(closing=max(above, counts[0] or 0), tuning=counts[1] or 0)
    first = listed[0] if listed[0] is not None else drawn[0][: counts[0]]
    return first, listed[1] if listed[1] is not None else drawn[1]


def _count(text: str, option: str) -> int | None:
    if "," in text:
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise SpecError(f"{option} {text} is no number of seeds. Give one of at least 1, or the seeds: 3,5,8.")
    return int(text)


def _listed(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise SpecError(f"{', '.join(map(repr, wrong))} is no seed. Give whole numbers from 0 on, with commas: 3,5,8.")
    return tuple(map(int, parts))


def _search(words: Mapping[str, Any]) -> Search | None:
    options = {name.removeprefix("search_"): words[name] for name in _OF_SEARCH if words[name] is not None}
    if words["search"]:
        return Search(space=tuple(parse_searched(word) for word in words["search"]), **options)
    if options:
        raise SpecError("--trials, --sampler and --search-batch are of a search: give --search train.lr=1e-4..1e-2.")
    return None
