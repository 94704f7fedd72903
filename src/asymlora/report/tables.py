"""Tables for people, made from results and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Return what a run bought: its metric, what was trained, what it cost.

    Args:
        result: Content of ``result.json``.
        adapter: The recipe's ``adapter``, plain values.

    Returns:
        Something that rich prints.
    """
    parts: list[Any] = [_quality(result, adapter)]
    parts += [table for table in (_further(result),) if table.row_count]
    parts.append(_cost(result))
    if "health" in result:  # a run of before has none
        parts.append(health_table(result))
    return Group(*[piece for part in parts for piece in (part, Text())][:-1])


def health_table(result: Mapping[str, Any]) -> Table | Text:
    """Return the verdicts on the factors and heads of a run, or the one line that there is none.

    Args:
        result: Content of ``result.json``: ``health``, ``watched_sites``, ``watched_steps``.

    Returns:
        Something that rich prints. Paths of sites are the user's, and no markup.
    """
    found: Sequence[Mapping[str, Any]] = result["health"]
    sites, steps = result["watched_sites"], result["watched_steps"]
    seen = f"{sites:,} {'site' if sites == 1 else 'sites'} at {steps:,} steps" if sites else "no factor"
    if not found:
        nothing = "nothing to report" if sites else "nothing to report on the head"
        return Text(f"Health: {nothing} (watched: {seen})")
    count = f"{len(found)} {'verdict' if len(found) == 1 else 'verdicts'}"
    table = Table(title=f"Health: {count} (watched: {seen})", title_justify="left", show_header=False, show_lines=True)
    table.add_column("verdict", style="bold", no_wrap=True)
    table.add_column("what was seen, what it means, what to change")
    for verdict in found:
        table.add_row(Text(verdict["name"]), Text(f"{verdict['says']} {verdict['means']}\n-> {verdict['remedy']}"))
    return table


def adapter_name(adapter: Mapping[str, Any]) -> str:
    """Return the few words that say which factors are trained.

    Example:
        >>> from asymlora import AdapterSpec
        >>> adapter_name(AdapterSpec.b_only(rank=4).to_dict())
        'B only, rank 4'
    """
    trained = [name for name in ("A", "B") if adapter[name]["trainable"]]
    return f"{f'{trained[0]} only' if len(trained) == 1 else 'A and B'}, rank {adapter['rank']}"


_NAMES = {"full": "every weight", "head": "head, by training"}
_SHARES = ("accuracy", "f1")
"""Metrics that are shown in per cent."""


def method_name(method: str, adapter: Mapping[str, Any]) -> str:
    """Return the few words that say what is trained.

    Example:
        >>> method_name("peft:lora_fa", {"rank": 8})
        "PEFT's lora_fa, rank 8"
    """
    if method == "adapter":
        return f"adapter ({adapter_name(adapter)})"
    if method == "peft:ia3":
        return "PEFT's ia3"  # it has no rank
    if method.startswith("peft:"):
        return f"PEFT's {method.removeprefix('peft:')}, rank {adapter['rank']}"
    return _NAMES[method]


def shown(metric: str, value: float) -> str:
    """Return a metric's value as it is printed.

    Example:
        >>> shown("accuracy", 0.8125), shown("perplexity", 13.367), shown("matthews", 0.5)
        ('81.2%', '13.37', '0.500')
    """
    if metric in _SHARES:
        return f"{value:.1%}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _quality(result: Mapping[str, Any], adapter: Mapping[str, Any]) -> Table:
    rows: int = result["rows"]["test"]
    metric: str = result["metric"]
    less = "" if result["greater_is_better"] else "\nLess is better"
    title = f"{metric[0].upper()}{metric[1:]} on {rows:,} test rows, unseen by training and by choices{less}"
    table = Table(title=title, title_justify="left")
    table.add_column("what is trained")
    table.add_column(metric, justify="right")
    table.add_column("± s.e.", justify="right")
    table.add_column("values trained", justify="right")
    full: int = result["full_parameters"]
    trained: int = result["trained_parameters"]
    alone = result["baseline_kind"] == "head alone"
    table.add_row(
        "head alone (to convergence)" if alone else "nothing (the base model)",
        shown(metric, result["baseline"]),
        _standard_error(metric, result["baseline"], rows),
        f"{result['head_parameters']:,}" if alone else "0",
    )
    head = " and head" if result["head_parameters"] and result["method"] not in ("full", "head") else ""
    table.add_row(
        f"{method_name(result['method'], adapter)}{head}",
        f"[bold]{shown(metric, result['score'])}[/bold]",
        _standard_error(metric, result["score"], rows),
        f"{trained:,}",
        end_section=True,
    )
    table.add_row("gain, paired by row", *_gain(result), "")
    lora: int | None = result["lora_parameters"]
    if lora is not None:
        table.add_row("LoRA at the same rank would train", "", "", f"{lora:,} ({_times(lora, trained)})")
    if result["method"] != "full":
        table.add_row("full fine-tuning would train", "", "", f"{full:,} ({_times(full, trained)})")
    return table


def _gain(result: Mapping[str, Any]) -> tuple[str, str]:
    gain, error = result["gain"], result["gain_standard_error"]
    if result["metric"] in _SHARES:
        return f"{100 * gain:+.1f} points", "" if error is None else f"{100 * error:.1f}"
    digits = 2 if abs(result["score"]) >= 10 else 3
    return f"{gain:+.{digits}f}", "" if error is None else f"{error:.{digits}f}"


def _further(result: Mapping[str, Any]) -> Table:
    table = Table(title="Further, before and after", title_justify="left")
    for name, justify in (("what", "left"), ("metric", "left"), ("before", "right"), ("after", "right")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    metric = result["metric"]
    for name in sorted(set(result["metrics"]["after"]) - {metric}):
        before, after = (result["metrics"][when][name] for when in ("baseline", "after"))
        table.add_row("test", name, shown(name, before), shown(name, after))
    for name, both in result["environments"].items():
        table.add_row(name, metric, shown(metric, both["before"][metric]), shown(metric, both["after"][metric]))
    for name, both in result["closing"].items():
        for kind in both["after"]:
            table.add_row(name, kind, shown(kind, both["before"][kind]), shown(kind, both["after"][kind]))
    return table


def _cost(result: Mapping[str, Any]) -> Table:
    table = Table(title="Cost", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    peak: int | None = result["peak_memory_bytes"]
    table.add_row("best step", f"{result['best_step']} of {result['steps']}")
    what = "features and fit of the head alone" if result["baseline_kind"] == "head alone" else "scoring the base"
    table.add_row(what, f"{result['baseline_seconds']:.0f} s")
    table.add_row("training, with validation", f"{result['train_seconds']:.0f} s")
    if result["samples_per_second"] is not None:
        table.add_row("rows a second in training", f"{result['samples_per_second']:,.1f}")
    command = "this command, after an interruption" if result["resumed"] else "whole command"
    table.add_row(command, f"{result['total_seconds']:.0f} s")
    file = "weights file" if result["method"] in _NAMES else "adapter file"
    table.add_row(file, f"{result['adapter_bytes'] / 1024:,.0f} KiB")
    table.add_row("peak memory of the process", f"{peak / 2**20:,.0f} MiB" if peak else "not known here")
    return table


def _standard_error(metric: str, share: float, rows: int) -> str:
    return f"{100 * (share * (1 - share) / rows) ** 0.5:.1f}" if metric == "accuracy" else ""


def _times(count: int, unit: int) -> str:
    ratio = count / unit
    return f"{ratio:,.1f}x" if ratio < 10 else f"{ratio:,.0f}x"
