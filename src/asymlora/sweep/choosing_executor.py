"""From the words of the command line to where runs execute."""

from __future__ import annotations

import os
import re
from pathlib import Path

from asymlora.errors import SpecError, UnknownNameError, nearest
from asymlora.sweep.executors import Executor, InProcess

EXECUTORS = ("inline", "processes", "ray")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def make_executor(
    name: str,
    folder: Path,
    *,
    threads: int | None = None,
    workers: int | None = None,
    memory: str | None = None,
    address: str | None = None,
) -> Executor:
    """Return the executor of a name.

    Args:
        name: ``inline``, ``processes`` or ``ray``.
        folder: The sweep's.
        threads: Of each run; None: torch's own in this process, one in a worker.
        workers: Processes at a time; None: as cores and memory allow.
        memory: For all processes, as text (``12GiB``); None: what is free.
        address: Of a Ray cluster; None: one on this machine.

    Returns:
        The executor.

    Raises:
        SpecError: An option is given that this executor does not read.
    """
    refuse_places(name, workers=workers, memory=memory, address=address)
    if name == "inline":
        return InProcess(folder, threads=threads)
    if name == "processes":
        from asymlora.sweep.local_processes import LocalProcesses

        budget = None if memory is None else parse_bytes(memory)
        return LocalProcesses(folder, workers=workers, threads=threads or 1, memory_budget=budget)
    from asymlora.sweep.ray_executor import RayExecutor

    return RayExecutor(folder, address=address, threads=threads or 1)


def refuse_places(name: str, *, workers: int | None, memory: str | None, address: str | None) -> None:
    """Refuse an executor that is none, and options that the one asked for would pass over in silence.

    Args:
        name: Name of the executor.
        workers: As for `make_executor`.
        memory: As for `make_executor`.
        address: As for `make_executor`.

    Raises:
        UnknownNameError: There is no such executor.
        SpecError: An option is given that it does not read, or is no size or number.
    """
    if name not in EXECUTORS:
        raise UnknownNameError(
            f"No executor is called {name!r}.{nearest(name, EXECUTORS)} Known: {', '.join(EXECUTORS)}."
        )
    given = {"workers": workers, "memory": memory, "address": address}
    reads = {"inline": (), "processes": ("workers", "memory"), "ray": ("address",)}[name]
    if unread := [option for option, value in given.items() if value is not None and option not in reads]:
        shown = " and ".join(f"--{option}" for option in unread)
        raise SpecError(f"--executor {name} does not read {shown}. Leave it out, or choose another executor.")
    if workers is not None and workers < 1:
        raise SpecError(f"--workers {workers} must be at least 1.")
    if memory is not None:
        parse_bytes(memory)


def workers_of(name: str, *, workers: int | None, threads: int | None) -> int:
    """Return how many runs go on at a time, as far as cores decide it.

    Args:
        name: Name of the executor.
        workers: As for `make_executor`.
        threads: As for `make_executor`.
    """
    if name == "inline":
        return 1
    return workers or max(1, (os.cpu_count() or 1) // (threads or 1))


def parse_bytes(text: str) -> int:
    """Return the bytes of a size.

    Args:
        text: A number with a unit of 1,000 (``GB``) or 1,024 (``GiB``), or none.

    Returns:
        The bytes.

    Raises:
        SpecError: It is no size above 0.

    Example:
        >>> parse_bytes("12GiB"), parse_bytes("1.5 GB"), parse_bytes("4096")
        (12884901888, 1500000000, 4096)
    """
    parts = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", text, flags=re.IGNORECASE)
    size = int(float(parts[1]) * _UNITS[parts[2].lower()]) if parts and parts[2].lower() in _UNITS else 0
    if size < 1:
        raise SpecError(f"--memory {text} is no size. Write a number and a unit: 12GiB, 8GB, 900MiB.")
    return size
