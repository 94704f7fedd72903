"""One figure or table of a paper: what is run at each scale, and what is claimed. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asymlora.reproduce.claim import Claim
from asymlora.reproduce.evidence import Evidence, Record
from asymlora.reproduce.printed_count import PrintedCount
from asymlora.sweep.grid import SweepPlan
from asymlora.tasks.packages import Package
from asymlora.train.recipe import Recipe

ScaleName = Literal["small", "paper"]
FIRST_SEEDS, MOST_SEEDS = 6, 10
"""Paired seeds of a part that a claim of the abstract reads: at first, and where that leaves the claim undecided."""


@dataclass(frozen=True, kw_only=True)
class SweepPart:
    """Runs that are a sweep.

    Attributes:
        name: Name that is unique in the artefact, and that of its folder.
        plan: The sweep: the first look.
        second: The same sweep with more seeds, run where a claim of the abstract that reads it is undecided after the
            first look; None: there is one look.
        printed: Trained values as the paper prints them, by arm.
    """

    name: str
    plan: SweepPlan
    second: SweepPlan | None = None
    printed: Mapping[str, PrintedCount] = field(default_factory=dict[str, PrintedCount])


@dataclass(frozen=True, kw_only=True)
class MeasuredPart:
    """Measurements that are no fine-tuning runs: of a theory's model, or of the inside of a pretrained one.

    Attributes:
        name: Name that is unique in the artefact, and that of its folder.
        points: Settings of each measurement, plain values; each is done once and kept.
        measure: From settings to records; called with one point.
        version: Of what ``measure`` does: counted up when it is changed, so that what an older one measured is not
            taken for what this one would.
        second: Further points, measured where a claim of the abstract that reads the part is undecided after the first
            look.
        recipes: Recipes whose pretrained model and data ``measure`` reads: what of these is not there is told before
            the first run.
        packages: Other weights that it reads, likewise.
    """

    name: str
    points: tuple[Mapping[str, Any], ...]
    measure: Callable[[Mapping[str, Any]], list[Record]] = field(repr=False)
    second: tuple[Mapping[str, Any], ...] = ()
    version: int = 1
    recipes: tuple[Recipe, ...] = field(default=(), repr=False)
    packages: tuple[Package, ...] = ()


Part = SweepPart | MeasuredPart


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of an artefact.

    Attributes:
        name: What it is called.
        source: Its public source: repository, package, or id on the hub.
        place: Where it stands below ``--data-root``; empty: a package or the hub has it.
    """

    name: str
    source: str
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting in which a reproduction differs from the paper, or that the paper leaves unknown.

    Attributes:
        what: The setting.
        paper: The paper's, or ``unknown``.
        ours: Ours.
        why: Why it differs.
    """

    what: str
    paper: str
    ours: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An artefact at one scale.

    Attributes:
        parts: From the data root to what is run, in its order.
        minutes: Of two cores, as measured or estimated before the first run; None: not known (needs accelerators).
        memory_gib: Largest memory of one process, likewise.
        data: What is read.
        settings: What differs from the paper or is unknown there.
        cut: What was left out to fit, and in which order.
        model: Which model, as one should quote it.
        prepare: Writes data in a form that a task takes, where the data root has them in another: from the data root
            and the run's folder to the folder that ``parts`` is given in the data root's place. Called at the beginning
            of every session, before ``parts``; not called for a dry run, for which the data root itself serves. None:
            ``parts`` reads the data root.
    """

    parts: Callable[[Path], tuple[Part, ...]] = field(repr=False)
    minutes: float | None
    memory_gib: float | None
    data: tuple[DataSet, ...]
    settings: tuple[Setting, ...]
    cut: tuple[str, ...] = ()
    model: str = ""
    prepare: Callable[[Path, Path], Path] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One figure or table of a paper.

    Attributes:
        name: As ``asymlora reproduce`` takes it.
        title: What it is, in a few words.
        source: Paper and place.
        shows: What the paper shows there, in two or three sentences.
        small: On the models and data at hand, two cores.
        paper: At the paper's scale.
        claims: What is claimed, with tests; judged on the small scale's records and on the paper scale's alike.
        figure: From the records to the figure of the page of results (`asymlora.report.plots`); `MissingEvidenceError`
            where there are none yet.
    """

    name: str
    title: str
    source: str
    shows: str
    small: Scale
    paper: Scale
    claims: tuple[Claim, ...]
    figure: Callable[[Evidence], Any] = field(repr=False)

    def scale(self, name: ScaleName) -> Scale:
        """Return the artefact at one scale.

        Args:
            name: Which one.
        """
        return self.small if name == "small" else self.paper
