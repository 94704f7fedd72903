"""What zhu_cca measures: how alike the factors are that some starts and some tasks led to. No torch at import.

A point trains a small set of adapters, two starts by every task, and gives similarities: the adapters are not kept.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from asymlora.errors import SpecError
from asymlora.factor_spec import factors_named
from asymlora.reproduce.evidence import Record
from asymlora.sweep.run_record import RunJob, RunRow
from asymlora.train.recipe import Recipe

if TYPE_CHECKING:
    from asymlora.diagnostics.site_factors import SiteFactors
    from asymlora.sweep.session import Session

Point = Mapping[str, Any]
STANDARD, REVERSED = "standard", "reversed"
STARTS: Mapping[str, str] = {STANDARD: "lora", REVERSED: "hA_zero_hB_km"}
"""Both factors trained: A from Kaiming's draw and B from zero, and the same with the letters exchanged."""
RANDOM: Mapping[str, str] = {STANDARD: "A", REVERSED: "B"}
ZERO: Mapping[str, str] = {STANDARD: "B", REVERSED: "A"}
"""Which factor starts at random, and which at zero."""
SAME_TASK, SHARED_START, BOTH_OTHER = PANELS = ("same task", "shared start", "both other")
"""Kinds of pairs: one task from two starts, two tasks from one start, two tasks from two starts."""
FIRST, LAST = MOMENTS = ("first step", "end")


class Run(NamedTuple):
    """Which run of a point.

    Attributes:
        task: What was learnt.
        seed: Of the start, and of the order of the rows.
    """

    task: str
    seed: int


def points_of(
    variant: str, start: str, *, tasks: Sequence[str], rate: float, head: str, units: int
) -> tuple[Point, ...]:
    """Return one point for each unit: a pair of starts that no other unit has.

    Args:
        variant: What these points are called.
        start: ``standard`` or ``reversed``.
        tasks: What is learnt from each start.
        rate: Learning rate.
        head: ``probe``: fitted on the frozen model and so the same for all starts; ``random``: drawn by the seed.
        units: How many.
    """
    return tuple(
        {
            "variant": variant, "start": start, "tasks": list(tasks), "rate": rate, "head": head, "unit": unit,
            "seeds": [2 * unit, 2 * unit + 1],
        }
        for unit in range(units)
    )  # fmt: skip


class Similarities:
    """Measures points; the model and the fitted head of each task are kept from point to point.

    Args:
        recipes: Of a run on each task, by its name; start, rate, head and seed are those of a point.
    """

    def __init__(self, recipes: Mapping[str, Recipe]) -> None:
        self.recipes = dict(recipes)
        self._sessions: dict[str, Session] = {}

    def __call__(self, point: Point) -> list[Record]:
        """Train the adapters of a point, to the end and for one step, and compare all of them pair by pair.

        Args:
            point: As `points_of` gives it.

        Returns:
            Records of three kinds. ``run``: how each run ended; ``similarity``: means over pairs and sites by moment,
            panel and factor, also over chance; ``moved``: how far the factor that starts at random went by the end.

        Raises:
            SpecError: A run has failed or diverged: the pairs would be others than those that were stated.
        """
        from asymlora.diagnostics.site_factors import site_factors

        known = {name: point[name] for name in ("variant", "start", "unit")}
        records: list[Record] = []
        with TemporaryDirectory(prefix="asymlora-similarity-") as place:
            found: dict[str, dict[Run, tuple[SiteFactors, ...]]] = {moment: {} for moment in MOMENTS}
            for run in itertools.starmap(Run, itertools.product(point["tasks"], point["seeds"])):
                rows = {moment: self._row(point, run, moment, Path(place)) for moment in MOMENTS}
                for moment, row in rows.items():
                    found[moment][run] = site_factors(Path(place) / str(row.adapter))
                records.append({"kind": "run", **known, "task": run.task, "seed": run.seed, **_reached(rows[LAST])})
        for moment, adapters in found.items():
            records += [{"kind": "similarity", **known, "moment": moment, **row} for row in _alike(adapters)]
        moved = _movement(found[LAST], "AB".index(RANDOM[point["start"]]))
        return [*records, {"kind": "moved", **known, "factor": RANDOM[point["start"]], **moved}]

    def _row(self, point: Point, run: Run, moment: str, place: Path) -> RunRow:
        from asymlora.sweep.session import Session

        session = self._sessions.setdefault(run.task, Session())
        session.folder = place
        recipe = _recipe(self.recipes[run.task], point, run.seed, first=moment == FIRST)
        row = session.run(RunJob(recipe=recipe, phase="closing", arm=point["start"], seed=run.seed, keeps_adapter=True))
        if row.status != "finished":
            raise SpecError(
                f"The run of {run.task} with seed {run.seed} at rate {point['rate']:g} has {row.status}: {row.error}"
                " Every pair of a point is compared, so all of its runs must finish; give it a smaller rate."
            )
        return row


def _recipe(base: Recipe, point: Point, seed: int, *, first: bool) -> Recipe:
    # The warm-up's first step has the rate 0, so one step by itself has none.
    short: dict[str, Any] = {"steps": 1, "evaluate_every": 1, "warmup_fraction": 0.0} if first else {}
    train = replace(base.train, lr=point["rate"], head_start=point["head"], seed=seed, **short)
    factors: dict[str, Any] = factors_named(STARTS[point["start"]])
    return replace(base, train=train, adapter=replace(base.adapter, **factors, seed=seed))


def _reached(row: RunRow) -> dict[str, Any]:
    losses = row.losses.get("loss") or ()
    return {"loss": _short(losses[-1]) if losses else None, "metric": row.metric, "validation": row.validation}


def _alike(adapters: Mapping[Run, Sequence[SiteFactors]]) -> Iterator[dict[str, Any]]:
    from asymlora.diagnostics.adapter_pairs import compare_adapters

    named = {f"{run.task} {run.seed}": run for run in adapters}
    compared = compare_adapters({name: adapters[run] for name, run in named.items()})
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in compared.records:
        panel = panel_of(named[record["first"]], named[record["second"]])
        groups.setdefault((panel, record["factor"]), []).append(record)
    for (panel, factor), rows in sorted(groups.items(), key=lambda item: (PANELS.index(item[0][0]), item[0][1])):
        defined = [row for row in rows if row["cca"] is not None]
        if defined:
            yield {
                "panel": panel,
                "factor": factor,
                "pairs": len({row["pair"] for row in defined}),
                "cca": _short(statistics.fmean(row["cca"] for row in defined)),
                "over_chance": _short(statistics.fmean(row["cca"] / row["cca_chance"] for row in defined)),
            }


def panel_of(one: Run, other: Run) -> str:
    """Return of which kind a pair of runs of one point is.

    Args:
        one: A run.
        other: Another.

    Example:
        >>> panel_of(Run("cola", 0), Run("cola", 1)), panel_of(Run("cola", 0), Run("sst2", 0))
        ('same task', 'shared start')
    """
    if one.task == other.task:
        return SAME_TASK
    return SHARED_START if one.seed == other.seed else BOTH_OTHER


def _movement(adapters: Mapping[Run, Sequence[SiteFactors]], place: int) -> dict[str, float | None]:
    """Return how far a factor went, over its start, and how like its start it still is: means of medians over sites."""
    from asymlora.diagnostics.adapter_records import moved
    from asymlora.diagnostics.similarity import A_similarity, B_similarity

    similarity = (A_similarity, B_similarity)[place]
    ways: dict[str, list[float]] = {"moved": [], "like_its_start": []}
    for of in adapters.values():
        pairs = [((site.A, site.B)[place], site.starts[place]) for site in of]
        known = [(now, start.to(now)) for now, start in pairs if start is not None]
        if known:  # of a factor that has left its start altogether nothing is said
            ways["moved"].append(statistics.median(moved(now, start) or 0.0 for now, start in known))
            ways["like_its_start"].append(statistics.median(similarity(now, start) for now, start in known))
    return {name: _short(statistics.fmean(values)) if values else None for name, values in ways.items()}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
