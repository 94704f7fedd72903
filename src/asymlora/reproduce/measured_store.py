"""What a measured part leaves on disk: ``measured.jsonl``, one row a point, in the form of a sweep's rows. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from asymlora.errors import SpecError
from asymlora.reproduce.evidence import Record
from asymlora.sweep.store import RowStore

MEASURED = "measured.jsonl"
_LATER = "threads"  # rows of an older version have none


def point_id(part: str, point: Mapping[str, Any], *, version: int = 1) -> str:
    """Return twenty hexadecimal digits that stand for one point of a part: the same in any process, folder and order.

    Args:
        part: Name of the part.
        point: Settings of the measurement, plain values.
        version: Of what is measured (`asymlora.reproduce.artefact.MeasuredPart.version`).

    Returns:
        The id.

    Raises:
        SpecError: A setting is no plain value or no finite number.

    Example:
        >>> point_id("toy", {"width": 8, "seed": 0}) == point_id("toy", {"seed": 0, "width": 8})
        True
    """
    try:
        named = {"part": part, "point": dict(point), "version": version}
        canonical = json.dumps(named, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"The point {dict(point)!r} of part {part} cannot be stored ({error}). Points hold plain values and finite"
            " numbers."
        ) from None
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """What one point leaves: one line of ``measured.jsonl``.

    Attributes:
        id: As `point_id`.
        point: Its settings.
        records: What was measured.
        seconds: How long it took.
        ended: UTC time, ISO 8601.
        threads: Of torch in the worker process that measured it; None: it was measured in the first process.
    """

    id: str
    point: Mapping[str, Any]
    records: Sequence[Record]
    seconds: float
    ended: str
    threads: int | None = None

    @property
    def final(self) -> bool:
        """Whether the point need not be measured again: a point that failed leaves no row."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the inverse of `from_dict`."""
        return {key: value for key, value in asdict(self).items() if key != _LATER or value is not None}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> MeasuredRow:
        """Return the row of plain values.

        Args:
            mapping: As `to_dict` gives it.

        Returns:
            The row.

        Raises:
            SpecError: A field is unknown or missing.
        """
        known = {f.name for f in fields(cls)}
        if wrong := sorted(set(mapping) - known | known - set(mapping) - {_LATER}):
            raise SpecError(f"A row of {MEASURED} has these fields and no others: {', '.join(sorted(known))}; {wrong}.")
        return cls(**mapping)


class MeasuredStore(RowStore[MeasuredRow]):
    """The rows of a measured part.

    Args:
        path: The file; it appears with the first row.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, MeasuredRow)

    def records(self) -> list[Record]:
        """Return what was measured, point after point in the order in which they ended."""
        return [record for row in self.rows() for record in row.records]
