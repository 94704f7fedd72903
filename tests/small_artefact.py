"""A made-up artefact without a model: a sweep of known results, two measured parts, and claims that count records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from asymlora.reproduce.artefact import Artefact, DataSet, MeasuredPart, Part, Scale, ScaleName, SweepPart
from asymlora.reproduce.artefact_folder import ArtefactFolder, claim_artefact
from asymlora.reproduce.claim import Claim, Finding, Kind
from asymlora.reproduce.evidence import Evidence, Record
from asymlora.reproduce.running import Means, Outcome, SilentWatcher, run_artefact
from asymlora.sweep.axes import Arm
from asymlora.sweep.executors import InProcess
from asymlora.sweep.grid import Cell, SweepPlan, cells
from asymlora.sweep.run_record import RunRow
from asymlora.train.recipe import Recipe
from sweep.bowl import Bowl, work_of

ARMS = (Arm(name="init_a", word="init_a"), Arm(name="init_b", word="init_b"))
RECIPE = Recipe.from_dict({"train": {"steps": 20, "evaluate_every": 20}})
PLAN = SweepPlan(
    recipe=RECIPE, arms=ARMS, rates=(1e-3, 3.16228e-3, 1e-2), tuning_seeds=(200,), closing_seeds=(0, 1), grow=False
)
SECOND = replace(PLAN, tuning_seeds=(200, 201), closing_seeds=(0, 1, 2))
POINTS = ({"width": 8}, {"width": 16})


def bowl(**changes: Any) -> Bowl:
    """Return runs whose best rates are 3.2e-3 for Init[A] and 1e-3 for Init[B]."""
    return Bowl(**{"best": {"init_a": 3.16228e-3, "init_b": 1e-3}, "noise": 0.01, **changes})


@dataclass
class Meter:
    """Measures points, and knows which.

    Attributes:
        measured: The points, in order.
        after: Called after so many points, before the next one's records are there.
    """

    measured: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    after: Callable[[int], None] = lambda count: None

    def __call__(self, point: Mapping[str, Any]) -> list[Record]:
        """Return two records."""
        self.measured.append(point)
        self.after(len(self.measured))
        return [{**point, "step": step, "value": step / point["width"]} for step in (1, 2)]


def closing(evidence: Evidence, part: str = "swept") -> list[RunRow]:
    """Return the closing runs of the sweep."""
    return [row for row in evidence.sweep(part).rows if row.phase == "closing" and row.status == "finished"]


def count_claim(key: str, *, needed: int, kind: Kind = "abstract", parts: Sequence[str] = ("swept", "toy")) -> Claim:
    """Return a claim that is undecided below so many closing seeds and records together, and then holds."""

    def judge(evidence: Evidence) -> Finding:
        seeds = len({row.seed for row in closing(evidence)}) if "swept" in parts else 0
        records = sum(len(evidence.records(part)) for part in parts if part != "swept")
        found = seeds + records
        return Finding(verdict="holds" if found >= needed else "undecided", ours=f"{found} in all", estimate=found)

    return Claim(
        key=key, says=f"There are {needed}.", kind=kind, source="made up", test="Counted.", parts=tuple(parts),
        judge=judge,
    )  # fmt: skip


def artefact(
    meter: Meter | None = None, *, claims: Sequence[Claim] | None = None, parts: Sequence[Part] | None = None,
    data: Sequence[DataSet] = (), **of_scale: Any,
) -> Artefact:  # fmt: skip
    """Return the artefact: ``swept`` and ``toy`` have a second look, ``aside`` has none.

    Args:
        meter: Measures its points.
        claims: Its claims; by default one of the abstract that is undecided after the first look.
        parts: Its parts.
        data: Its data sets.
        of_scale: Further fields of both scales.
    """
    measure = meter or Meter()
    own: tuple[Part, ...] = (
        SweepPart(name="swept", plan=PLAN, second=SECOND),
        MeasuredPart(name="toy", points=POINTS, measure=measure, second=({"width": 32},)),
        MeasuredPart(name="aside", points=({"width": 4},), measure=measure),
    )
    given = own if parts is None else tuple(parts)
    fields = {"minutes": 1.0, "memory_gib": 0.5, "data": tuple(data), "settings": (), **of_scale}
    scale = Scale(**{"parts": lambda root: given, **fields})
    claimed = (count_claim("enough", needed=9),) if claims is None else tuple(claims)
    return Artefact(
        name="made_up", title="Made up", source="made up", shows="Nothing.", small=scale, paper=scale, claims=claimed,
        figure=lambda evidence: None,
    )  # fmt: skip


def unchecked(plan: SweepPlan) -> tuple[Sequence[Cell], int]:
    """Return the cells of a plan without a look at a model."""
    return cells(plan), 0


def run(
    path: Path, what: Artefact, runs: Bowl, *, only: Sequence[str] = (), scale: ScaleName = "small",
    overwrite: bool = False, **of_means: Any,
) -> Outcome:  # fmt: skip
    """Run an artefact in one session.

    Args:
        path: Its folder.
        what: The artefact.
        runs: Does the runs of its sweeps.
        only: Parts of this session.
        scale: Its scale.
        overwrite: Whether a run that is there is removed.
        of_means: Other fields of the means.
    """
    folder: ArtefactFolder = claim_artefact(path, name=what.name, scale=scale, overwrite=overwrite)
    means = Means(
        **{
            "executor": lambda place: InProcess(place, work=partial(work_of, runs)), "ready": unchecked,
            "watcher": SilentWatcher(), "command": "asymlora reproduce made_up", **of_means,
        }
    )  # fmt: skip
    return run_artefact(what, folder, data_root=Path("data"), means=means, only=only)
