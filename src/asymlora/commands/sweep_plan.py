"""What a user typed for ``asymlora sweep``, as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from asymlora.errors import SpecError
from asymlora.schema import refuse_values
from asymlora.sweep.axes import parse_arm, parse_axis, parse_rates
from asymlora.sweep.grid import SweepPlan, seeds_of
from asymlora.sweep.searching import Search, parse_searched
from asymlora.sweep.sweep_folder import stored_plan
from asymlora.train.recipe import Recipe

RATES = "1e-4..1e-2"
ARMS = ("init_a", "init_b", "b_only")
_PLAIN = ("match", "prune_eta", "repeats", "margin", "threads")
"""Options that are fields of the plan by the same name."""
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
    recipe = _recipe(file, given)
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
    return SweepPlan(**values, **{name: words[name] for name in _PLAIN if words[name] is not None})


def gone_on_with(folder: Path, file: str | None, given: Mapping[str, Any], words: Mapping[str, Any]) -> SweepPlan:
    """Return the plan of a sweep that is resumed: the stored one, with what was typed now laid over it.

    Args:
        folder: The sweep.
        file: As for `plan_of`; None: the stored recipe.
        given: As for `plan_of`.
        words: As for `plan_of`. Arms are added to those that are there; the others take the place of what is there.

    Returns:
        The plan.
    """
    stored = SweepPlan.from_dict(stored_plan(folder))
    said = {**words, "prune": words["prune"] or stored.prune, "no_grow": words["no_grow"] or not stored.grow}
    _refuse_idle(said)
    new: dict[str, Any] = {"prune": said["prune"], "grow": not said["no_grow"]}
    if file or given:
        new["recipe"] = _recipe(file, given)
    if words["arm"]:
        typed = {arm.name: arm for arm in map(parse_arm, words["arm"])}
        new["arms"] = (*(typed.pop(arm.name, arm) for arm in stored.arms), *typed.values())
    if words["axis"]:
        new["axes"] = tuple(parse_axis(word) for word in words["axis"])
    if words["lr"]:
        new["rates"] = _rates(words)
    if words["lr_bounds"]:
        new["bounds"] = _bounds(words["lr_bounds"])
    if words["seeds"] or words["tuning_seeds"]:
        closing, tuning = _seeds(words)
        new |= {"closing_seeds": closing} if words["seeds"] else {}
        new |= {"tuning_seeds": tuning} if words["tuning_seeds"] else {}
    if any(words[name] is not None for name in ("search", *_OF_SEARCH)):
        new["search"] = _search(words)
    return replace(stored, **new, **{name: words[name] for name in _PLAIN if words[name] is not None})


def _recipe(file: str | None, given: Mapping[str, Any]) -> Recipe:
    return Recipe.load(file, given) if file else Recipe.from_dict(given)


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
