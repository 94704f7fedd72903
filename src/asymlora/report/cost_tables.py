"""What a way of training would cost, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from asymlora.report.tables import plain_table


def estimate_tables(
    ways: Sequence[Mapping[str, Any]], *, settings: Mapping[str, Any], fits: Sequence[Mapping[str, int]] | None
) -> Group:
    """Return the tables of memory, of work and files, and of what fits.

    Args:
        ways: Records as `asymlora.theory.estimate.Estimate.to_dict` gives them.
        settings: Model, batch and how a step runs.
        fits: Rank, largest batch and peak of each rank that fits; None where peaks are not known.

    Returns:
        Something that rich prints.
    """
    parts = [_memory(ways, settings), Text(), _work(ways)]
    if settings["memory"]:
        parts += [Text(), _fits(fits, settings)]
    return Group(*parts)


def _memory(ways: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Table:
    head = f" Without the head of {settings['head']}, which is not known." if settings.get("head") else ""
    table = plain_table(
        f"Memory for {settings['size']} x {settings['length']} tokens of {settings['model']}",
        "Frozen: base weights. State: trained values, gradients, optimizer. Kept: activations for backward."
        " Peak of a step, tensors only: the process, the device's context and the allocator's rounding come on top."
        f" Factors are float32, all else as the model has it.{head}",
    )
    table.add_column("way", no_wrap=True)
    for head in ("trained", "of all", "frozen", "state", "kept", "peak"):
        table.add_column(head, justify="right", no_wrap=True)
    for way in ways:
        state = sum(way[f"{part}_bytes"] for part in ("parameters", "gradients", "optimizer", "master"))
        table.add_row(
            way["way"],
            _count(way["trained_values"]),
            _share(way["trained_fraction"]),
            *map(size, (way["base_bytes"], state, way["saved_bytes"], way["peak_bytes"])),
        )
    return table


def _work(ways: Sequence[Mapping[str, Any]]) -> Table:
    vacuous = [way for way in ways if way["bound_vacuous"]]
    said = f" A gap of 1 or more says nothing, as {len(vacuous)} of {len(ways)} here." if vacuous else ""
    table = plain_table(
        "Work, files and the bound on the generalisation gap",
        "FLOPs: of a token in linear layers, forward and backward. Seeds: the file if frozen factors are seeds."
        f" The bound is for losses in [0, 1]; what it supports is comparing ways.{said}",
    )
    table.add_column("way", no_wrap=True)
    for head in ("FLOPs", "of full", "file", "seeds", "nats", "gap"):
        table.add_column(head, justify="right", no_wrap=True)
    known = ways[0]["flops_forward"] is not None
    for way in ways:
        flops, whole = ((w["flops_forward"] + w["flops_backward"]) if known else 0 for w in (way, ways[0]))
        table.add_row(
            way["way"],
            _count(flops) if known else "-",
            f"{flops / whole:.0%}" if known else "-",
            size(way["file_bytes"]),
            size(way["seed_file_bytes"]),
            f"{way['bound_nats']:.1e}",
            f"{way['bound_gap']:,.3g}",
        )
    return table


def _fits(fits: Sequence[Mapping[str, int]] | None, settings: Mapping[str, Any]) -> Table | Text:
    if fits is None:
        return Text(
            "The blocks of this architecture are not known, so nothing is said of activations, FLOPs and what fits."
        )
    if not fits:
        return Text(f"In {size(settings['memory'])} not even one sequence of {settings['length']} tokens fits.")
    table = plain_table(f"What fits in {size(settings['memory'])}, as asked")
    for head in ("rank", "largest batch", "peak of a step"):
        table.add_column(head, justify="right")
    for fit in fits:
        table.add_row(str(fit["rank"]), str(fit["size"]), size(fit["peak_bytes"]))
    return table


def size(count: int | None) -> str:
    """Return bytes in decimal units, or a dash.

    Example:
        >>> size(39_976_960 * 4), size(512), size(None)
        ('160 MB', '512 B', '-')
    """
    if count is None:
        return "-"
    for unit, step in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.3g} {unit}" if count < 1000 * step else f"{count / step:,.0f} {unit}"
    return f"{count} B"


def _count(number: int) -> str:
    for unit, step in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= step:
            return f"{number / step:,.4g} {unit}"
    return str(number)


def _share(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.1 else f"{fraction:.2%}"
