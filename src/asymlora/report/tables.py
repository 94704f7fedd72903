"""Tables for people, made from results and records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text


def plain_table(title: str, caption: str | None = None) -> Table:
    """Return an empty table without frame, for many columns in 80 characters.

    Args:
        title: Line above it.
        caption: Lines below it.

    Returns:
        The table.
    """
    return Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def closing_table(result: Mapping[str, Any], adapter: Mapping[str, Any]) -> Group:
    """Return what a run bought: accuracy, what was trained, what it cost.

    Args:
        result: Content of ``result.json``.
        adapter: The recipe's ``adapter``, plain values.

    Returns:
        Something that rich prints.
    """
    return Group(_quality(result, adapter), Text(), _cost(result))


def adapter_name(adapter: Mapping[str, Any]) -> str:
    """Return the few words that say which factors are trained.

    Example:
        >>> from asymlora import AdapterSpec
        >>> adapter_name(AdapterSpec.b_only(rank=4).to_dict())
        'B only, rank 4'
    """
    trained = [name for name in ("A", "B") if adapter[name]["trainable"]]
    return f"{f'{trained[0]} only' if len(trained) == 1 else 'A and B'}, rank {adapter['rank']}"


def _quality(result: Mapping[str, Any], adapter: Mapping[str, Any]) -> Table:
    rows: int = result["rows"]["test"]
    table = Table(title=f"Accuracy on {rows:,} test rows, unseen by training and by choices", title_justify="left")
    table.add_column("what is trained")
    table.add_column("accuracy", justify="right")
    table.add_column("± s.e.", justify="right")
    table.add_column("values trained", justify="right")
    head: float = result["head_alone_accuracy"]
    full: int = result["full_parameters"]
    trained: int = result["trained_parameters"]
    table.add_row(
        "head alone (to convergence)", f"{head:.1%}", _standard_error(head, rows), f"{result['head_parameters']:,}"
    )
    accuracy: float = result["accuracy"]
    table.add_row(
        f"adapter ({adapter_name(adapter)}) and head",
        f"[bold]{accuracy:.1%}[/bold]",
        _standard_error(accuracy, rows),
        f"{trained:,}",
        end_section=True,
    )
    gain, error = 100 * result["gain"], 100 * result["gain_standard_error"]
    table.add_row("gain, paired by row", f"{gain:+.1f} points", f"{error:.1f}", "")
    lora: int = result["lora_parameters"]
    table.add_row("LoRA at the same rank would train", "", "", f"{lora:,} ({_times(lora, trained)})")
    table.add_row("full fine-tuning would train", "", "", f"{full:,} ({_times(full, trained)})")
    return table


def _cost(result: Mapping[str, Any]) -> Table:
    table = Table(title="Cost", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    peak: int | None = result["peak_memory_bytes"]
    table.add_row("best step", f"{result['best_step']} of {result['steps']}")
    table.add_row("features and fit of the head alone", f"{result['features_seconds']:.0f} s")
    table.add_row("training, with validation", f"{result['train_seconds']:.0f} s")
    command = "this command, after an interruption" if result["resumed"] else "whole command"
    table.add_row(command, f"{result['total_seconds']:.0f} s")
    table.add_row("adapter file", f"{result['adapter_bytes'] / 1024:,.0f} KiB")
    table.add_row("peak memory of the process", f"{peak / 2**20:,.0f} MiB" if peak else "not known here")
    return table


def _standard_error(share: float, rows: int) -> str:
    return f"{100 * (share * (1 - share) / rows) ** 0.5:.1f}"


def _times(count: int, unit: int) -> str:
    ratio = count / unit
    return f"{ratio:,.1f}x" if ratio < 10 else f"{ratio:,.0f}x"
