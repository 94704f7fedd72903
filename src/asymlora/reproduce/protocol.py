"""What a look at a part is to run, and digests that tell whether that has been run, and on which data. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asymlora.atomic import STAGING_PREFIX
from asymlora.errors import SpecError
from asymlora.reproduce.artefact import MeasuredPart, Part, SweepPart
from asymlora.reproduce.measured_store import point_id
from asymlora.reproduce.run_records import Look
from asymlora.sweep.grid import SweepPlan


def plan_of(part: SweepPart, look: Look) -> SweepPlan:
    """Return the plan of one look at a sweep.

    Args:
        part: The sweep.
        look: Which look; a sweep without a second plan has one look.
    """
    return part.second if look == "second" and part.second is not None else part.plan


def points_of(part: MeasuredPart, look: Look) -> dict[str, Mapping[str, Any]]:
    """Return the points of one look at a measured part by their ids: the second look has those of the first too.

    Args:
        part: The part.
        look: Which look.

    Returns:
        The points, in their order.

    Raises:
        SpecError: Two points are the same, or one holds no plain values.
    """
    points = (*part.points, *(part.second if look == "second" else ()))
    found = {point_id(part.name, point, version=part.version): point for point in points}
    if len(found) < len(points):
        raise SpecError(f"Part {part.name} has {len(points)} points, {len(points) - len(found)} of them twice.")
    return found


def has_second(part: Part) -> bool:
    """Return whether there is a second look at a part.

    Args:
        part: The part.
    """
    return bool(part.second)


def plan_digest(plan: Mapping[str, Any]) -> str:
    """Return what stands for a plan whatever its threads: they are the machine's, and no part of the protocol.

    Args:
        plan: Plain values, as ``sweep.yaml`` holds them.
    """
    return _digest({key: value for key, value in plan.items() if key != "threads"})


def digest(part: Part, look: Look) -> str:
    """Return what stands for all that a look at a part is to run.

    Args:
        part: The part.
        look: Which look.
    """
    if isinstance(part, SweepPart):
        return plan_digest(plan_of(part, look).to_dict())
    return _digest(sorted(points_of(part, look)))


def data_digest(root: Path) -> str:
    """Return what stands for data that are read: names and bytes of the files, wherever these stand.

    Args:
        root: A file, or a folder; links are followed.
    """
    found = hashlib.sha256()
    for file in _files(root):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(json.dumps([file.relative_to(root).as_posix(), content]).encode())
    return found.hexdigest()[:20]


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    walked = (Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names)
    return sorted(file for file in walked if file.is_file() and not file.name.startswith(STAGING_PREFIX))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
