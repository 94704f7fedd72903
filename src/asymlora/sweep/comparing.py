"""Results of several folders beside each other: what may be tested, what is only described, and why. No torch."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from asymlora.errors import UnknownNameError, nearest
from asymlora.schema import refuse_values
from asymlora.sweep.analysis import analyse
from asymlora.sweep.run_folders import is_run
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.summary import Comparison, Summary
from asymlora.sweep.sweep_folder import SweepRecords
from asymlora.sweep.verdicts import Contender, Shown, compare_cells
from asymlora.train.recipe import differing_keys

_BY_DESIGN = ("train.lr:", "train.seed:", "adapter.seed:")
"""Beginnings of differences between the recipes of two tuned cells that say nothing of what is compared."""
_CONDITIONS = ("task", "data", "train.steps", "train.batch_size", "train.gradient_accumulation")
"""Keys, or mappings of keys, that must be equal for a test between folders: the question and the budget."""


@dataclass(frozen=True, kw_only=True)
class ComparedCell:
    """One line of a comparison.

    Attributes:
        label: Its name; that of the folder stands before it where there are several.
        folder: Name of its folder.
        metric: Name of the metric.
        greater_is_better: Whether more of it is better.
        found: What was found in it: `asymlora.sweep.summary.CellSummary` as plain values.
        recipe: Of its closing runs, or of others where there are none; plain values.
        seconds: Mean over its closing runs: setup, steps and scoring; None where there are none.
        adapter_bytes: Size of the weight files of a kept adapter; None where none is there.
    """

    label: str
    folder: str
    metric: str
    greater_is_better: bool
    found: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seconds: float | None
    adapter_bytes: int | None

    @property
    def values(self) -> dict[int, float]:
        """The metric on the test part by seed."""
        return {value["seed"]: value["value"] for value in self.found["closing"]}

    def conditions(self) -> dict[str, Any]:
        """Return what must be equal for a test between folders."""
        asked: dict[str, Any] = {"metric": self.metric}
        for name in _CONDITIONS:
            value: Any = self.recipe
            for part in name.split("."):
                value = value.get(part)
            asked[name] = value
        return asked


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Cells beside each other.

    Attributes:
        cells: In the order of the folders.
        comparisons: Verdicts on the pairs that may be tested.
        descriptions: A sentence for each pair that may not.
        differences: A sentence for each pair from two folders: the keys in which their recipes differ.
        notes: Sentences on the whole.
    """

    cells: tuple[ComparedCell, ...]
    comparisons: tuple[Comparison, ...]
    descriptions: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdicts(self) -> list[str]:
        """The sentence of each pair that may be tested."""
        return [comparison.sentence for comparison in self.comparisons]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ``verdicts`` included."""
        pairs = [
            {**asdict(pair), "differences": [each._asdict() for each in pair.differences]} for pair in self.comparisons
        ]
        return {**asdict(self), "comparisons": pairs, "verdicts": self.verdicts}


def compare_results(
    results: Sequence[SweepRecords], *, arms: Sequence[str] = (), margin: float | None = None
) -> Compared:
    """Compare the cells of one sweep, or those of several folders, by the closing runs.

    Cells of one sweep are compared as the sweep does. Cells of several folders are paired by seed where task, data,
    metric, steps and batch are equal; of the others it is said in which of these they differ, and nothing is tested.

    Args:
        results: The folders' records.
        arms: Names of arms or cells that are wanted; nothing: all. The correction for many comparisons counts all.
        margin: Largest difference that counts as none, in units of the metric; None: that of the plan, if all folders
            have the same.

    Returns:
        The comparison.

    Raises:
        UnknownNameError: No cell is called like that.
        SpecError: The margin is no number above 0, or there is only one cell.
    """
    if margin is not None and not 0 < margin < math.inf:
        refuse_values([f"margin={margin:g} must be a number above 0: the largest difference that counts as none"])
    margins = {records.plan.get("margin") for records in results}
    used = margins.pop() if margin is None and len(margins) == 1 else margin
    several = len(results) > 1
    analysed = [_analysed(records, several=several, margin=used) for records in results]
    cells = [cell for mine, _ in analysed for cell in mine]
    wanted = _wanted(cells, arms)
    found = analysed[0][1].comparisons
    if several:
        found = [pair for group in _groups(cells) for pair in _verdicts(group, margin=used)]
    chosen = [pair for pair in found if {pair.first, pair.second} <= set(wanted)]
    shown = [cell for cell in cells if cell.label in wanted]
    pairs = list(itertools.combinations(shown, 2))
    return Compared(
        cells=tuple(shown),
        comparisons=tuple(chosen),
        descriptions=tuple(_described(*pair) for pair in pairs if several and _unequal(*pair)),
        differences=tuple(_differing(*pair) for pair in pairs if pair[0].folder != pair[1].folder),
        notes=tuple(_notes(results, chosen, margin=margin)),
    )


def _analysed(records: SweepRecords, *, several: bool, margin: float | None) -> tuple[list[ComparedCell], Summary]:
    rows: list[RunRow] = list(records.rows)
    plan = {**records.plan, "margin": margin}
    if several and not is_run(records.path):  # a run is called by its folder already
        plan["arms"] = [f"{records.name}: {arm}" for arm in dict.fromkeys(row.arm for row in rows)]
        rows = [replace(row, arm=f"{records.name}: {row.arm}") for row in rows]
    summary = analyse(plan, rows)
    plain = summary.to_dict()
    return [_cell(records, rows, found=found, summary=plain) for found in plain["cells"]], summary


def _cell(
    records: SweepRecords, rows: Iterable[RunRow], *, found: Mapping[str, Any], summary: Mapping[str, Any]
) -> ComparedCell:
    mine = [row for row in rows if row.arm == found["arm"] and dict(row.axes) == found["axes"]]
    closing = [row for row in mine if row.phase == "closing" and row.lr == found["closing_rate"]]
    ended = [row for row in closing if row.status == "finished"]
    seconds = [row.setup_seconds + row.train_seconds + row.evaluate_seconds for row in ended]
    return ComparedCell(
        label=found["label"],
        folder=records.name,
        metric=summary["metric"],
        greater_is_better=summary["greater_is_better"],
        found=found,
        recipe=(ended or closing or mine)[0].recipe,
        seconds=statistics.fmean(seconds) if seconds else None,
        adapter_bytes=_adapter_bytes(records, ended),
    )


def _adapter_bytes(records: SweepRecords, rows: Iterable[RunRow]) -> int | None:
    for row in rows:
        sizes = [f.stat().st_size for f in (records.path / row.adapter).rglob("*.safetensors")] if row.adapter else []
        if sizes:
            return sum(sizes)
    return None


def _wanted(cells: Sequence[ComparedCell], arms: Sequence[str]) -> list[str]:
    known = {name for cell in cells for name in _names(cell)}
    if unknown := [arm for arm in arms if arm not in known]:
        raise UnknownNameError(
            f"No arm is called {unknown[0]!r}.{nearest(unknown[0], known)} Known: {', '.join(sorted(known))}."
        )
    wanted = [cell.label for cell in cells if not arms or set(arms) & _names(cell)]
    if len(wanted) < 2:
        there = f"only {wanted[0]}" if wanted else "nothing"
        refuse_values([f"{there} is there to be compared; give a second folder, or another arm"])
    return wanted


def _names(cell: ComparedCell) -> set[str]:
    names = {cell.label, cell.found["arm"]}
    return names | {name.removeprefix(f"{cell.folder}: ") for name in names}


def _groups(cells: Sequence[ComparedCell]) -> list[list[ComparedCell]]:
    groups: list[list[ComparedCell]] = []
    for cell in cells:
        home = next((group for group in groups if group[0].conditions() == cell.conditions()), None)
        if home is None:
            groups.append([cell])
        else:
            home.append(cell)
    return groups


def _verdicts(cells: Sequence[ComparedCell], *, margin: float | None) -> list[Comparison]:
    contenders = [
        Contender(
            label=cell.label,
            values=cell.values,
            doubt=cell.found["rate_doubt"] or 0.0,
            diverged=tuple(cell.found["closing_diverged"]),
            caveats=tuple(cell.found["caveats"]),
        )
        for cell in cells
    ]
    return compare_cells(contenders, _shown(cells), margin=margin)


def _shown(cells: Sequence[ComparedCell]) -> Shown:
    values = [value for cell in cells for value in cell.values.values()]
    # A run that has not ended does not know which way is better.
    told = next((cell for cell in cells if cell.values), cells[0])
    return Shown.of(told.metric, values, greater_is_better=told.greater_is_better)


def _unequal(one: ComparedCell, other: ComparedCell) -> list[str]:
    return differing_keys(one.conditions(), other.conditions())


def _described(one: ComparedCell, other: ComparedCell) -> str:
    figures = " ".join(_figure(cell) for cell in (one, other))
    return (
        f"{one.label} and {other.label} answer other questions or had other budgets, so nothing is tested"
        f" ({'; '.join(_unequal(one, other))}). {figures}"
    )


def _figure(cell: ComparedCell) -> str:
    if cell.found["mean"] is None:
        return f"{cell.label}: no closing run."
    seeds = len(cell.values)
    amount = _shown([cell]).amount(cell.found["mean"])
    return f"{cell.label}: {amount} on test, {seeds} seed{'s' if seeds != 1 else ''}."


def _differing(one: ComparedCell, other: ComparedCell) -> str:
    keys = [key for key in differing_keys(one.recipe, other.recipe) if not key.startswith(_BY_DESIGN)]
    if not keys:
        return f"{one.label} and {other.label} differ in no key of the recipe but learning rate and seeds."
    return f"{one.label} / {other.label} differ in {'; '.join(keys)}."


def _notes(results: Sequence[SweepRecords], comparisons: Sequence[Comparison], *, margin: float | None) -> list[str]:
    said = [warning for records in results for warning in records.warnings]
    if comparisons and all(len(pair.differences) <= 1 for pair in comparisons):
        said.append(
            "Single runs do not show how far a difference varies from seed to seed. A sweep with both as arms and"
            " --seeds 6 does, and chooses each one's learning rate."
        )
    if margin is not None:
        said.append(
            f"The margin of {margin:g} was given to this command: equivalence within it may be claimed only if it was"
            " chosen before the results were seen."
        )
    for one, other in itertools.combinations(results, 2):
        if changed := differing_keys(one.environment, other.environment):
            said.append(f"{one.name} and {other.name} ran in other environments ({'; '.join(changed)}).")
    return said
