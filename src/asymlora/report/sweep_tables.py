"""What a sweep found, or what it would cost, as a terminal shows it. Everything is read from plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asymlora.report.cost_tables import size
from asymlora.report.tables import plain_table
from asymlora.sweep.rates import rate_text

WIDE = 110
"""Columns of the terminal from which the tables show more."""
PHASES = ("tuning", "search", "closing", "repeat")
_WORDS = ("lies", "phase", "ended")
"""Columns of words, which stand at the left."""
Record = Mapping[str, Any]


def sweep_tables(summary: Record, *, width: int = 80) -> Group:
    """Return the tables of a finished or unfinished sweep, the verdicts below them.

    Args:
        summary: As `asymlora.sweep.summary.Summary.to_dict` gives it.
        width: Columns of the terminal.

    Returns:
        Something that rich prints. Names of cells are the user's, and no markup.
    """
    parts: list[RenderableType] = [Text(summary["answer"], style="bold")]
    for sheet in sheets(summary, wide=width >= WIDE):
        parts += [Text(), drawn(sheet)]
    return Group(*parts, Text(cost_line(summary)), *listed(sentences(summary)))


class Sheet(NamedTuple):
    """A table as text, whatever it is printed as.

    Attributes:
        title: Line above it.
        heads: Names of its columns.
        rows: Its rows, a text a column.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(summary: Record, *, wide: bool = False) -> list[Sheet]:
    """Return the tables of results, of rates where any was tuned, and of costs.

    Args:
        summary: As for `sweep_tables`.
        wide: Whether there is room for more columns.
    """
    tuned = any(cell["rates"] for cell in summary["cells"])
    makers = (results_sheet, *((rates_sheet,) if tuned else ()), costs_sheet)
    return [make(summary, wide=wide) for make in makers]


def drawn(sheet: Sheet) -> Group:
    """Return a sheet as something that rich prints, the title on lines as wide as the terminal.

    Args:
        sheet: The sheet; its texts are no markup.
    """
    table = plain_table("")
    table.title = None
    first, *others = sheet.heads
    table.add_column(first, overflow="fold", min_width=8)
    for head in others:
        table.add_column(head, justify="left" if head in _WORDS else "right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return Group(Text(sheet.title, style="italic"), table)


def results_sheet(summary: Record, *, wide: bool = False) -> Sheet:
    """Return what the closing runs reached on the test part.

    Args:
        summary: As for `sweep_tables`.
        wide: Whether there is room for more columns.
    """
    metric = summary["metric"] or "metric"
    less = "" if summary["greater_is_better"] else "; less is better"
    title = f"{metric[0].upper()}{metric[1:]} on test, fresh seeds at each cell's best rate{less}. Gain: over the start"
    heads = ["seeds", "rate", "mean", interval_head(summary), "gain"]
    heads += ["s.d.", "loss", "worst seed", "best seed"] if wide else []
    rows = [(cell["label"], *_result(summary, cell, wide=wide)) for cell in summary["cells"]]
    return Sheet(title, ("cell", *heads), tuple(rows))


def rates_sheet(summary: Record, *, wide: bool = False) -> Sheet:
    """Return what the tuning runs say of the rate of each cell.

    Args:
        summary: As for `sweep_tables`.
        wide: Whether there is room for more columns.
    """
    title = "Rates, by validation and seeds of their own. Octaves: within one noise floor"
    heads = ["best rate", "lies", "validation", "octaves", "unstable at"]
    heads += ["stable to", "tried", "pruned", "collapsed", "diverged"] if wide else []
    rows = [(cell["label"], *_rates(summary, cell, wide=wide)) for cell in summary["cells"]]
    return Sheet(title, ("cell", *heads), tuple(rows))


def costs_sheet(summary: Record, *, wide: bool = False) -> Sheet:
    """Return what each cell trained and what its runs took.

    Args:
        summary: As for `sweep_tables`.
        wide: Whether there is room for more columns.
    """
    heads = ["trained", "runs", "steps", "not taken", "time"]
    heads += ["of these: tuning", "closing", "FLOPs"] if wide else []
    rows = [(cell["label"], *_costs(cell, wide=wide)) for cell in summary["cells"]]
    return Sheet("Cost. Not taken: steps that early stopping saved", ("cell", *heads), tuple(rows))


def cost_line(summary: Record) -> str:
    """Return in a sentence what the whole sweep took.

    Args:
        summary: As for `sweep_tables`.
    """
    counts = ", ".join(f"{count} {status}" for status, count in summary["runs"].items() if count)
    whole = summary["cost"].get("all")
    if whole is None or not whole["runs"]:
        return "No run has ended."
    saved = whole["saved_steps"]
    share = f"; early stopping saved {saved:,} of {whole['planned_steps']:,} steps" if saved else ""
    time = f"{duration(whole['seconds'])} of run time"
    runs = f"{whole['runs']:,} run{'s' if whole['runs'] != 1 else ''}"
    return f"{runs} ({counts}), {whole['steps']:,} steps, {time}{share}."


def listed(said: Mapping[str, Sequence[str]]) -> list[RenderableType]:
    """Return sentences as the items of a list under each heading; headings without a sentence are left out.

    Args:
        said: Sentences by heading.
    """
    parts: list[RenderableType] = []
    for heading, lines in said.items():
        if lines:
            parts += [Text(), Text(heading, style="bold"), *map(_item, lines)]
    return parts


def sentences(summary: Record) -> dict[str, list[str]]:
    """Return what is said in words, each once, by heading; headings without a sentence are there too.

    Args:
        summary: As for `sweep_tables`.
    """
    verdicts = list(summary["verdicts"])  # which hold the caveats of the cells that they are about
    caveats = [said for cell in summary["cells"] for said in cell["caveats"] if not any(said in v for v in verdicts)]
    return {"Verdicts": verdicts, "Beside the figures": caveats, "Notes": list(summary["notes"])}


def forecast_table(forecast: Record) -> Group:
    """Return what a sweep would do, and what it would take.

    Args:
        forecast: ``rows``: for each cell and phase ``cell``, ``phase``, ``runs``, ``steps`` of all these runs and
            ``seconds`` (None where not known); ``seconds``: of the whole sweep as it would be run, executor and
            workers considered, or None; ``memory_bytes``: of one process, or None; ``notes``: sentences, first of
            which real steps the figures come from.

    Returns:
        Something that rich prints.
    """
    rows: Sequence[Record] = forecast["rows"]
    seconds = [row["seconds"] for row in rows]
    whole: dict[str, Any] = {"cell": "in all", "phase": "", "seconds": None if None in seconds else sum(seconds)}
    whole |= {key: sum(row[key] for row in rows) for key in ("runs", "steps")}
    texts = [
        (row["cell"], row["phase"], f"{row['runs']:,}", f"{row['steps']:,}", _about(row["seconds"]))
        for row in (*rows, whole)
    ]
    title = "Runs of the first grid; a grid whose best rate is at its end grows"
    table = drawn(Sheet(title, ("cell", "phase", "runs", "steps", "time"), tuple(texts)))
    lines = [f"Time of the whole sweep: {_about(forecast['seconds'])}"]
    lines.append(f"Memory of a process: {_about_size(forecast['memory_bytes'])}")
    return Group(table, Text(), *map(Text, lines), *[_item(note) for note in forecast["notes"]])


# Words and figures ---------------------------------------------------------------------------------------------------


def metric_text(summary: Record, value: float | None, *, sign: bool = False) -> str:
    """Return a value of the summary's metric as it is printed, or a dash.

    Args:
        summary: As for `sweep_tables`: its ``scale`` is 100 for fractions.
        value: In the metric's own units.
        sign: Whether it is a difference, whose sign is always shown.

    Example:
        >>> metric_text({"scale": 100.0}, 0.8125), metric_text({"scale": 1.0}, 13.367)
        ('81.2%', '13.37')
        >>> metric_text({"scale": 100.0}, 0.0125, sign=True), metric_text({"scale": 1.0}, -0.5, sign=True)
        ('+1.2', '-0.500')
    """
    if value is None:
        return "-"
    plus = "+" if sign else ""
    if summary["scale"] == 100:
        return f"{100 * value:{plus}.1f}{'' if sign else '%'}"
    return f"{value:{plus}.{2 if abs(value) >= 10 else 3}f}"


def interval_text(summary: Record, interval: Record | None) -> str:
    """Return an interval as it is printed, or a dash.

    Args:
        summary: As for `sweep_tables`.
        interval: ``low`` and ``high``, or None.
    """
    if interval is None:
        return "-"
    return f"{metric_text(summary, interval['low'])} to {metric_text(summary, interval['high'])}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    Example:
        >>> duration(0.42), duration(59.6), duration(125), duration(2700), duration(7500)
        ('0.4 s', '60 s', '125 s', '45 min', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 180:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"


def gain(summary: Record, cell: Record) -> float | None:
    """Return by how much a cell's metric on the test part is better than before the first step, or None.

    Args:
        summary: As for `sweep_tables`.
        cell: One of its cells.
    """
    before = cell["before"].get(summary["metric"])
    if before is None or cell["mean"] is None:
        return None
    return (cell["mean"] - before) * (1 if summary["greater_is_better"] else -1)


def _result(summary: Record, cell: Record, *, wide: bool) -> list[str]:
    values = [each["value"] for each in cell["closing"]]
    texts = [str(len(values)) if values else "-", rate_or_dash(cell["closing_rate"])]
    texts += [metric_text(summary, cell["mean"]), interval_text(summary, cell["interval"])]
    texts.append(metric_text(summary, gain(summary, cell), sign=True))
    if wide:
        ends = (None, None) if not values else (min(values), max(values))
        worst, best = ends if summary["greater_is_better"] else reversed(ends)
        deviation = cell["deviation"]
        texts.append("-" if deviation is None else metric_text(summary, deviation, sign=True).removeprefix("+"))
        texts.append("-" if cell["closing_loss"] is None else f"{cell['closing_loss']:.3f}")
        texts += [metric_text(summary, worst), metric_text(summary, best)]
    return texts


def _rates(summary: Record, cell: Record, *, wide: bool) -> list[str]:
    texts = [rate_or_dash(cell["best_rate"]), place_text(cell), metric_text(summary, cell["best_validation"])]
    texts += [octaves_text(cell["basin"]), rate_or_dash(cell["divergence_edge"])]
    if wide:
        texts += [rate_or_dash(cell["largest_stable"]), str(len(cell["rates"]))]
        texts += [str(sum(len(rate[how]) for rate in cell["rates"])) for how in ("pruned", "collapsed", "diverged")]
    return texts


def _costs(cell: Record, *, wide: bool) -> list[str]:
    spent = [cell["cost"][phase] for phase in PHASES if phase in cell["cost"]]
    texts = [f"{cell['trained_parameters']:,}" if cell["trained_parameters"] else "-"]
    texts += [f"{sum(each[key] for each in spent):,}" for key in ("runs", "steps", "saved_steps")]
    texts.append(duration(sum(each["seconds"] for each in spent)))
    if wide:
        texts += [_seconds(cell["cost"].get(phase)) for phase in ("tuning", "closing")]
        flops = [each["flops"] for each in spent]
        texts.append(f"{sum(flops):.2e}" if flops and None not in flops else "-")
    return texts


def octaves_text(basin: Record | None) -> str:
    """Return the width of a basin: a number, or what bounds it, or a dash.

    Example:
        >>> octaves_text({"octaves": 1.25, "most_octaves": 1.25}), octaves_text({"octaves": 2.0, "most_octaves": None})
        ('1.2', 'at least 2.0')
        >>> octaves_text({"octaves": 0.0, "most_octaves": 1.66}), octaves_text(None)
        ('0.0 to 1.7', '-')
    """
    if basin is None:
        return "-"
    least, most = f"{basin['octaves']:.1f}", basin["most_octaves"]
    if most is None:
        return f"at least {least}"
    return least if f"{most:.1f}" == least else f"{least} to {most:.1f}"


def interval_head(summary: Record) -> str:
    """Return the head of a column of intervals, with their level where all have the same.

    Args:
        summary: As for `sweep_tables`.
    """
    levels = {cell["interval"]["level"] for cell in summary["cells"] if cell["interval"]}
    return f"{100 * levels.pop():g} % interval" if len(levels) == 1 else "interval"


def rate_or_dash(rate: float | None) -> str:
    """Return a rate as it is printed, or a dash.

    Args:
        rate: The rate, or None where it is not known.
    """
    return "-" if rate is None else rate_text(rate)


def place_text(cell: Record) -> str:
    """Return where a cell's best rate lies among the tried ones, or a dash.

    Args:
        cell: One of the summary's.

    Example:
        >>> place_text({"best_at": "upper end", "at_bound": True}), place_text({"best_at": None, "at_bound": False})
        ('upper end, bound', '-')
    """
    return f"{cell['best_at'] or '-'}{', bound' if cell['at_bound'] else ''}"


def _item(line: str) -> Table:
    # Two columns, so that what is folded stands under the words and not under the mark.
    item = Table.grid(padding=(0, 1, 0, 0))
    item.add_column()
    item.add_column(overflow="fold")
    item.add_row("-", Text(line))
    return item


def _seconds(spent: Record | None) -> str:
    return "-" if spent is None else duration(spent["seconds"])


def _about(seconds: float | None) -> str:
    return "not known" if seconds is None else f"about {duration(seconds)}"


def _about_size(count: int | None) -> str:
    return "not known" if count is None else f"about {size(count)}"
