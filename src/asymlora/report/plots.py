"""Figures from records: a line plot with bands and a heat map, as a page of their own (HTML) or a drawing (SVG).

The only door to Plotly. What is drawn is what the records hold; nothing is smoothed, and nothing is left out unsaid.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asymlora.atomic import write_file
from asymlora.errors import DataError, MissingPackageError, SpecError

Record = Mapping[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's, which most colour-blind readers tell apart; each line has a dash and a marker of its own as well."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star")
SIZE = (760, 440)
"""Width and height of a figure of one panel, pixels."""


class Figure:
    """A figure that can be saved.

    Args:
        figure: A Plotly figure.
    """

    def __init__(self, figure: Any) -> None:
        self.plotly = figure

    def save(self, path: str | Path) -> Path:
        """Write the figure to a file that needs no network to be shown.

        Args:
            path: Ends in ``.html`` (interactive, Plotly's script inside) or ``.svg`` (needs Chrome or Chromium).

        Returns:
            The path.

        Raises:
            SpecError: The ending is another one, or the folder does not exist.
            MissingPackageError: SVG is asked for, and no browser can draw it.
        """
        path = Path(path)
        if path.suffix not in (".html", ".svg"):
            raise SpecError(f"A figure cannot be saved as {path.name!r}. Allowed endings: .html, .svg.")
        if not path.parent.is_dir():
            raise SpecError(f"There is no folder {str(path.parent)!r} to save {path.name!r} in. Make it first.")
        write_file(path, self.html() if path.suffix == ".html" else self.svg())
        return path

    def html(self) -> str:
        """Return a whole page."""
        return self.plotly.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})

    def svg(self) -> bytes:
        """Return the drawing.

        Raises:
            MissingPackageError: No browser can draw it.
        """
        try:
            return self.plotly.to_image(format="svg")
        except (ValueError, ImportError, RuntimeError) as error:
            raise MissingPackageError(
                "Plotly draws SVG with Kaleido and Chrome or Chromium, and could not: "
                f"{str(error).strip().splitlines()[0]} Install them (pip install 'asymlora[report]', and a browser), or"
                " save the figure as .html."
            ) from error


def line_plot(
    records: Iterable[Record],
    *,
    x: str,
    y: str,
    by: str | None = None,
    title: str,
    labels: Mapping[str, str] | None = None,
    log: str = "",
) -> Figure:
    """Draw one line for each value of ``by``: the median over records with the same ``x``, and their range as a band.

    Args:
        records: Flat records.
        x: Field of the horizontal axis; numbers.
        y: Field of the vertical axis; numbers. Values that are not finite are gaps, and the title counts them.
        by: Field whose values are lines; None draws one.
        title: Sentence above the figure.
        labels: What the axes and the legend call a field; by default its name.
        log: The axes on a logarithmic scale: ``""``, ``"x"``, ``"y"`` or ``"xy"``.

    Returns:
        The figure.

    Raises:
        DataError: A field is missing from a record, or there is nothing to draw.
        SpecError: ``log`` is none of the four.
    """
    graph = plotly_graph()
    rows = _checked(records, [x, y, *([by] if by else [])])
    if log not in ("", "x", "y", "xy"):
        raise SpecError(f"log is {log!r}. Allowed: '', 'x', 'y', 'xy'.")
    names = labels or {}
    figure = graph.Figure()
    lines: dict[Any, dict[float, list[float]]] = {}
    missing = 0
    for row in rows:
        value = float(row[y])
        drawable = math.isfinite(value) and (value > 0 or "y" not in log)
        missing += not drawable
        seen = lines.setdefault(row[by] if by else y, {}).setdefault(float(row[x]), [])
        if drawable:
            seen.append(value)
    if missing == len(rows):
        raise DataError(f"No value of {y!r} can be drawn: all {missing} are not finite, or not positive on a log axis.")
    for number, (name, points) in enumerate(lines.items()):
        add_line(figure, str(name), points, number)
    left_out = f"<br><sup>{missing} of {len(rows)} values cannot be drawn and are left out</sup>" if missing else ""
    lay_out(figure, title + left_out, names.get(x, x), names.get(y, y), names.get(by or "", by or ""))
    if "x" in log:
        figure.update_xaxes(type="log", dtick=_steps_of_a_log_axis([float(row[x]) for row in rows]))
    if "y" in log:
        step = _steps_of_a_log_axis([float(row[y]) for row in rows])
        figure.update_yaxes(type="log", exponentformat="power", dtick=step)
    return Figure(figure)


def heat_map(
    records: Iterable[Record],
    *,
    x: str,
    y: str,
    value: str,
    title: str,
    labels: Mapping[str, str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw one cell for each pair of ``x`` and ``y``: the median of ``value``, written into it.

    Args:
        records: Flat records.
        x: Field of the columns, in the order in which its values come.
        y: Field of the rows, likewise, from the top.
        value: Field of the cells; numbers. A cell without a finite value stays empty.
        title: Sentence above the figure.
        labels: What the axes call a field; by default its name.
        limits: Values of the two ends of the colour scale; by default the smallest and the largest.

    Returns:
        The figure.

    Raises:
        DataError: A field is missing from a record, or there is nothing to draw.
    """
    graph = plotly_graph()
    rows = _checked(records, [x, y, value])
    names = labels or {}
    across = list(dict.fromkeys(row[x] for row in rows))
    down = list(dict.fromkeys(row[y] for row in rows))
    cells: dict[tuple[Any, Any], list[float]] = {}
    for row in rows:
        if math.isfinite(float(row[value])):
            cells.setdefault((row[x], row[y]), []).append(float(row[value]))
    if not cells:
        raise DataError(f"No value of {value!r} can be drawn: none of {len(rows)} is finite.")
    table = [[statistics.median(cells[a, d]) if (a, d) in cells else None for a in across] for d in down]
    low, high = limits or (None, None)
    figure = graph.Figure(
        graph.Heatmap(
            z=table,
            x=[str(a) for a in across],
            y=[str(d) for d in down],
            zmin=low,
            zmax=high,
            colorscale="Cividis",
            texttemplate="%{z:.3g}" if len(across) * len(down) <= 400 else None,
            colorbar={"title": {"text": names.get(value, value)}},
            hoverongaps=False,
        )
    )
    lay_out(figure, title, names.get(x, x), names.get(y, y), "")
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    return Figure(figure)


def add_line(
    figure: Any, name: str, points: Mapping[float, Sequence[float]], number: int, *, marked: bool = True,
    joined: bool = True, colour: str | None = None, **place: Any,
) -> None:  # fmt: skip
    """Add a line through the medians of some values, and their range as a band where there are several.

    Args:
        figure: A Plotly figure.
        name: What the legend calls the line.
        points: Values by place on the horizontal axis; a place without values is a gap.
        number: Which of the colours, dashes and markers.
        marked: Whether the points have markers.
        joined: Whether a line joins them; without one each value has a marker of its own, and there is no band.
        colour: Another colour than that of the number.
        place: ``row`` and ``col`` of a figure of several panels, and ``showlegend``.
    """
    graph = plotly_graph()
    listed = place.pop("showlegend", True)
    colour = colour or COLOURS[number % len(COLOURS)]
    at = sorted(x for x, values in points.items() if values)
    if joined and any(len(points[x]) > 1 for x in at):
        edges = [max(points[x]) for x in at] + [min(points[x]) for x in reversed(at)]
        band = graph.Scatter(
            x=[*at, *reversed(at)], y=edges, fill="toself", fillcolor=colour, opacity=0.15,
            line={"width": 0}, mode="lines", hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
        figure.add_trace(band, **place)
    shown = [(x, value) for x in at for value in ([statistics.median(points[x])] if joined else points[x])]
    mode = ("lines+markers" if marked else "lines") if joined else "markers"
    line = graph.Scatter(
        x=[x for x, _ in shown], y=[y for _, y in shown], name=name, legendgroup=name, mode=mode, showlegend=listed,
        line={"color": colour, "dash": _DASHES[number % len(_DASHES)], "width": 2},
        marker={"symbol": _MARKERS[number % len(_MARKERS)], "size": 7},
    )  # fmt: skip
    figure.add_trace(line, **place)


def lay_out(figure: Any, title: str, x_title: str, y_title: str, legend: str) -> None:
    """Give a figure the look of all others.

    Args:
        figure: A Plotly figure.
        title: Sentence above it.
        x_title: What its horizontal axis is called.
        y_title: What its vertical axis is called.
        legend: What its lines are.
    """
    figure.update_layout(
        title={"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 16}},
        xaxis_title=x_title,
        yaxis_title=y_title,
        legend_title_text=legend,
        template="plotly_white",
        font={"family": "Inter, Helvetica, Arial, sans-serif", "size": 13},
        margin={"l": 70, "r": 20, "t": 70, "b": 60},
        width=SIZE[0],
        height=SIZE[1],
    )
    figure.update_xaxes(showline=True, linecolor="#444", ticks="outside", automargin=True)
    figure.update_yaxes(showline=True, linecolor="#444", ticks="outside", automargin=True)


def _steps_of_a_log_axis(values: Sequence[float]) -> Any:
    # Widths are powers of two, and a reader looks for them; a short axis has 1, 2 and 5, a long one the powers of ten.
    drawn = [value for value in values if math.isfinite(value) and value > 0]
    span = max(drawn) / min(drawn)
    if span < 2**12 and all(value >= 1 and math.log2(value).is_integer() for value in drawn):
        return math.log10(2)
    return "D2" if span <= 1000 else 1


def _checked(records: Iterable[Record], needed: Sequence[str]) -> list[Record]:
    rows = list(records)
    if not rows:
        raise DataError("There are no records to draw.")
    for number, row in enumerate(rows):
        if absent := [name for name in needed if name not in row]:
            raise DataError(
                f"Record {number} has no {', '.join(map(repr, absent))}. It has: {', '.join(map(repr, row))}."
            )
    return rows


def plotly_graph() -> Any:
    """Return Plotly's module of figures.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import plotly.graph_objects as graph  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise MissingPackageError("Figures need Plotly: pip install 'asymlora[report]'") from None
    return graph
