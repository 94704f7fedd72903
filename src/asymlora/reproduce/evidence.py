"""The records of an artefact as its claims read them: rows of sweeps, and what was measured otherwise. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asymlora.sweep.run_record import RunRow

if TYPE_CHECKING:
    from asymlora.sweep.cell_analysis import CellRows, PlanView

Record = Mapping[str, Any]


class MissingEvidenceError(LookupError):
    """Something that a claim reads cannot be told from the records; its text names it."""


class PartNotRunError(MissingEvidenceError):
    """A part that a claim reads has no records; its text names the part."""


@dataclass(frozen=True, kw_only=True)
class SweepEvidence:
    """What one sweep left.

    Attributes:
        plan: As ``sweep.yaml`` holds it.
        rows: Its runs; ``recipe`` is empty in rows that were read from kept results.
    """

    plan: Mapping[str, Any]
    rows: Sequence[RunRow]

    @cached_property
    def view(self) -> PlanView:
        """What the analysis needs of the plan."""
        from asymlora.sweep.cell_analysis import PlanView  # SciPy takes most of a second to import

        return PlanView.of(self.plan, self.rows)

    @cached_property
    def cells(self) -> Mapping[str, CellRows]:
        """The runs that the plan asks for, cell by cell, by label; of two rows of one run the later counts."""
        from asymlora.sweep.cell_analysis import cells_of

        rows = {row.id: row for row in self.rows}.values()
        return {cell.label: cell for cell in cells_of(self.view, [row for row in rows if self.view.asks(row)])}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the parts of an artefact left.

    Attributes:
        sweeps: Sweeps by the part's name.
        measured: Records by the part's name.
    """

    sweeps: Mapping[str, SweepEvidence] = field(default_factory=dict[str, SweepEvidence])
    measured: Mapping[str, Sequence[Record]] = field(default_factory=dict[str, Sequence[Record]])

    def sweep(self, part: str) -> SweepEvidence:
        """Return what one sweep left.

        Args:
            part: Its name.

        Raises:
            PartNotRunError: It has no rows.
        """
        found = self.sweeps.get(part)
        if found is None or not found.rows:
            raise PartNotRunError(part)
        return found

    def records(self, part: str) -> Sequence[Record]:
        """Return what one part measured.

        Args:
            part: Its name.

        Raises:
            PartNotRunError: It has no records.
        """
        found = self.measured.get(part)
        if not found:
            raise PartNotRunError(part)
        return found

    def has(self, part: str) -> bool:
        """Return whether a part has records.

        Args:
            part: Its name.
        """
        sweep = self.sweeps.get(part)
        return bool(self.measured.get(part)) or (sweep is not None and bool(sweep.rows))
