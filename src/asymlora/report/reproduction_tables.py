"""Artefacts of a paper as a terminal shows them: the list, what would be run, what it costs, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from asymlora.report.cost_tables import size
from asymlora.report.tables import plain_table

Record = Mapping[str, Any]
_VERDICT_STYLES: Mapping[str, str] = {
    "holds": "bold green",
    "fails": "bold red",
    "undecided": "bold yellow",
    "not testable here": "bold",
}


def list_table(rows: Sequence[Record]) -> Table:
    """Return the list of artefacts, each name over what it is: as columns, both would be a word wide.

    Args:
        rows: ``name``, ``title``, ``minutes``, ``memory_gib``, ``status``, ``verdicts`` (count by verdict; None where
            no results are kept).

    Returns:
        Something that rich prints.
    """
    table = plain_table(
        "Artefacts that can be reproduced",
        "Minutes and memory: of the small scale on two cores, the whole of it and its largest process. Status: of the"
        " run in reproductions/. Verdicts: of the results that are kept. Parts and claims: asymlora"
        " reproduce NAME --dry-run.",
    )
    table.add_column("artefact", min_width=max(len(row["name"]) for row in rows))
    for head in ("min", "GiB"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("status")
    table.add_column("verdicts", min_width=len("12 not testable here"))
    for row in rows:
        table.add_row(
            Text.assemble((row["name"], "bold"), "\n", (row["title"], "dim")),
            number(row["minutes"]),
            number(row["memory_gib"]),
            row["status"],
            counts_text(row["verdicts"]),
        )
    return table


def counts_text(verdicts: Mapping[str, int] | None) -> str:
    """Return how many claims got which verdict.

    Args:
        verdicts: Number of claims by verdict; None where there are no results.

    Example:
        >>> counts_text({"holds": 3, "fails": 0, "undecided": 1}), counts_text(None)
        ('3 holds, 1 undecided', '-')
    """
    if verdicts is None:
        return "-"
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)


def runs_table(rows: Sequence[Record]) -> Table:
    """Return the parts of an artefact with their runs.

    Args:
        rows: ``name``, ``kind``, ``arms``, ``first`` and ``both`` (None: there is one look).

    Returns:
        Something that rich prints.
    """
    looks = any(row["both"] is not None for row in rows)
    second = " The second look is begun where a claim of the abstract is undecided." if looks else ""
    table = plain_table("Runs by part", f"Before any grid has grown.{second}")
    for head, justify in (("part", "left"), ("what", "left"), ("arms", "left"), ("runs", "right")):
        table.add_column(head, justify=justify)  # pyright: ignore[reportArgumentType]
    if looks:
        table.add_column("with second look", justify="right")
    for row in rows:
        most = ["-" if row["both"] is None else f"{row['both']:,}"] if looks else []
        table.add_row(row["name"], row["kind"], Text(", ".join(row["arms"]) or "-"), f"{row['first']:,}", *most)
    if len(rows) > 1:
        first, both = sum(row["first"] for row in rows), sum(row["both"] or row["first"] for row in rows)
        table.add_section()
        table.add_row("all", "", "", f"{first:,}", *([f"{both:,}"] if looks else []))
    return table


def arms_tables(rows: Sequence[Record]) -> Group:
    """Return what the arms of an artefact's sweeps train, and below it what they cost: one table is too wide.

    Args:
        rows: ``part``, ``arm``, ``rank``, ``values``, ``printed`` (its ``text``), ``agreement``, ``runs``, ``steps``,
            ``flops``, ``file_bytes``, ``peak_bytes``; None where a number is not known.

    Returns:
        Something that rich prints.
    """
    trained = _of_arms(
        "What the arms train",
        "Trained: values of the factors, or of the whole model, heads left out; beside it what the paper prints, and"
        " whether that is ours rounded (equal) or cut off at its last digit.",
        ("rank", "trained", "paper prints"),
    )
    costs = _of_arms(
        "What the arms cost",
        "FLOPs: of all runs before any grid has grown. Peak: tensors of a step at the recipe's batch on an accelerator;"
        " the process and the allocator's rounding come on top.",
        ("runs", "steps", "FLOPs", "file", "peak"),
    )
    for row in rows:
        named = row["part"], Text(row["arm"])
        values = "-" if row["values"] is None else f"{row['values']:,}"
        trained.add_row(*named, str(row["rank"]), values, printed_text(row["printed"], row["agreement"]))
        flops = "-" if row["flops"] is None else f"{row['flops']:.2g}"
        sizes = size(row["file_bytes"]), size(row["peak_bytes"])
        costs.add_row(*named, f"{row['runs']:,}", f"{row['steps']:,}", flops, *sizes)
    return Group(trained, "", costs)


def _of_arms(title: str, caption: str, heads: Sequence[str]) -> Table:
    table = plain_table(title, caption)
    for head in ("part", "arm"):
        table.add_column(head)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def printed_text(printed: Record | None, agreement: str | None) -> str:
    """Return what a paper prints for a count, and whether ours is the same.

    Example:
        >>> printed_text({"text": "0.8 M"}, "equal"), printed_text({"text": "2.5 M"}, None), printed_text(None, None)
        ('0.8 M, equal', '2.5 M', '-')
    """
    return ", ".join(filter(None, ("-" if printed is None else printed["text"], agreement)))


def verdict_list(rows: Sequence[Record], *, title: str) -> Table:
    """Return what was found of each claim: verdict, claim, and below it the paper's number and ours.

    Args:
        rows: ``says``, ``paper``, ``ours`` and ``verdict``.
        title: Line above.

    Returns:
        Something that rich prints.
    """
    return _sentences(
        title,
        [
            (
                Text(row["verdict"], style=_VERDICT_STYLES[row["verdict"]]),
                row["says"],
                {"paper": row["paper"], "here": row["ours"]},
            )
            for row in rows
        ],
    )


def claim_list(rows: Sequence[Record], *, title: str) -> Table:
    """Return claims before any run: where each stands, what it says, the paper's number, and the test that decides.

    Args:
        rows: ``kind``, ``says``, ``paper`` and ``test``.
        title: Line above.

    Returns:
        Something that rich prints.
    """
    return _sentences(
        title, [(Text(row["kind"]), row["says"], {"paper": row["paper"], "test": row["test"]}) for row in rows]
    )


def _sentences(title: str, rows: Sequence[tuple[Text, str, Mapping[str, str]]]) -> Table:
    """Long sentences below each other: beside each other they would be columns of single words."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for mark, headline, lines in rows:
        said = Text.assemble((headline, "bold"))
        for name, text in lines.items():
            if text:
                said.append_text(Text.assemble("\n", (f"{name}: ", "dim"), text))
        table.add_row(mark, said)
    return table


def agreement_table(rows: Sequence[Record], *, title: str) -> Table:
    """Return the claims of a run beside those of kept results.

    Args:
        rows: ``key``, ``kept`` and ``new`` (findings as plain values, ``kept`` None where there is none) and
            ``agreement``.
        title: Line above.

    Returns:
        Something that rich prints.
    """
    table = plain_table(title)
    table.add_column("claim", no_wrap=True)
    for head in ("kept", "kept interval", "now"):
        table.add_column(head, justify="right")
    for head in ("verdict", "agreement"):
        table.add_column(head, min_width=len(head))
    for row in rows:
        kept: Record = row["kept"] or {}
        low_high = kept.get("interval")
        table.add_row(
            row["key"],
            number(kept.get("estimate")),
            "-" if low_high is None else f"{number(low_high[0])} to {number(low_high[1])}",
            number(row["new"]["estimate"]),
            _verdicts(kept.get("verdict"), row["new"]["verdict"]),
            row["agreement"],
        )
    return table


def _verdicts(kept: str | None, new: str) -> str:
    return new if kept in (None, new) else f"{kept}, now {new}"


def number(value: float | None) -> str:
    """Return a number in three digits, or a dash.

    Example:
        >>> number(75), number(0.012345), number(1234.5), number(None)
        ('75', '0.0123', '1,234', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
