"""Figures of reproductions: panels of lines against the learning rate, the width or the step, an arm a line.

A panel holds plain numbers by arm and place; `asymlora.report.reproduction_panels` makes some from the rows of a sweep.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from asymlora.errors import DataError, SpecError
from asymlora.report.plots import COLOURS, SIZE, Figure, add_line, lay_out, plotly_graph

Lines = Mapping[str, Mapping[float, Sequence[float]]]
"""By arm and place on the horizontal axis: one value a seed. Drawn are their median, and their range as a band."""
Log = Literal["", "x", "y", "xy"]
_COLUMNS = 3
_PANEL = (330, 290)
"""Pixels of one of several panels, its titles and axes included."""
_TITLE_LETTER, _MARKS_LETTER, _LINE = 8.5, 6.2, 18
"""Pixels: about the width of a letter in the title and in the line below it, and the height of a line."""
_GREY = "#666666"
_OF_A_RATE = {
    "best": "ring: best rate",
    "edge": "triangle: largest stable rate tried",
    "lost": "cross: a run diverged, collapsed or failed there",
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel of a figure.

    Attributes:
        title: What it shows, in a few words: a task, a model, a quantity.
        lines: The numbers. An arm has the same colour, dash and marker in every panel; arms whose names are alike up to
            a comma (``Init[A], n = 128``) share the colour.
        best: By arm: the place (rate) that is quoted as its best; a ring on its line.
        edge: By arm: the largest place (rate) that counts as stable; a triangle at the upper edge.
        lost: By arm: places at which at least one run diverged, collapsed or failed; crosses at the lower edge.
        guides: Slopes that theory gives, by name (``n^-1/2``): -0.5; thin grey lines from where the data begin. Only
            where both axes are logarithmic.
        level: Value of a horizontal line, and its name: ``(0.25, "chance")``.
        diagonal: Name of the line on which both axes have the same value; empty: not drawn.
        unjoined: Arms whose places are those of single runs, as of a rate that follows from the seed: a marker a value,
            and no line, which would join runs that have no order.
    """

    title: str
    lines: Lines
    best: Mapping[str, float] = field(default_factory=dict[str, float])
    edge: Mapping[str, float] = field(default_factory=dict[str, float])
    lost: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    guides: Mapping[str, float] = field(default_factory=dict[str, float])
    level: tuple[float, str] | None = None
    diagonal: str = ""
    unjoined: frozenset[str] = frozenset()


def metric_against_rate(panels: Sequence[Panel], *, title: str, y: str, log_y: bool = False) -> Figure:
    """Draw a metric against the learning rate, which is logarithmic; at most three panels in a row.

    Args:
        panels: One a task or model.
        title: Sentence above the figure.
        y: What the vertical axes are called, with its unit.
        log_y: Whether they are logarithmic.

    Returns:
        The figure; what rings, triangles and crosses mean stands below its title.

    Raises:
        DataError: There is nothing to draw.
    """
    return _Grid(panels, log="xy" if log_y else "x", marked=True).drawn(title, "learning rate", y)


def lines_over(panels: Sequence[Panel], *, title: str, x: str, y: str, log: Log = "xy") -> Figure:
    """Draw anything against anything: a stable rate against the width with guide lines, say.

    Args:
        panels: The panels.
        title: Sentence above the figure.
        x: What the horizontal axes are called, with its unit.
        y: What the vertical axes are called, with its unit.
        log: The logarithmic axes.

    Returns:
        The figure.

    Raises:
        DataError: There is nothing to draw.
        SpecError: ``log`` is none of the four, or guide lines are asked for on other axes than ``xy``.
    """
    if log not in ("", "x", "y", "xy"):
        raise SpecError(f"log is {log!r}. Allowed: '', 'x', 'y', 'xy'.")
    return _Grid(panels, log=log, marked=True).drawn(title, x, y)


def over_steps(panels: Sequence[Panel], *, title: str, y: str, log_y: bool = True) -> Figure:
    """Draw quantities over the optimizer steps, without markers.

    Args:
        panels: One a quantity or model.
        title: Sentence above the figure.
        y: What the vertical axes are called, with its unit.
        log_y: Whether they are logarithmic.

    Returns:
        The figure.

    Raises:
        DataError: There is nothing to draw.
    """
    return _Grid(panels, log="y" if log_y else "", marked=False).drawn(title, "optimizer step", y)


class _Span(NamedTuple):
    """What an axis shows, in values."""

    low: float
    high: float
    log: bool

    def at(self, share: float) -> float:
        """Return the value at a share of the way from the lower end."""
        low, high = self.as_drawn
        place = low + share * (high - low)
        return 10**place if self.log else place

    @property
    def as_drawn(self) -> tuple[float, float]:
        """Both ends as Plotly's ``range`` takes them."""
        return (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)


def _span(values: Sequence[float], *, log: bool, below: float, above: float) -> _Span:
    """Return the axis over some values with room at both ends, in shares of what they span."""
    low, high = (_Span(min(values), max(values), log)).as_drawn
    width = high - low or abs(high) * 0.1 or 1.0
    ends = (low - below * width, high + above * width)
    return _Span(*(10**end for end in ends), log=True) if log else _Span(*ends, log=False)


class _Grid:
    """Panels in rows and columns, one legend for all."""

    def __init__(self, panels: Sequence[Panel], *, log: Log, marked: bool) -> None:
        self.log_x, self.log_y, self.marked = "x" in log, "y" in log, marked
        self.panels = [(panel, self._drawable(panel)) for panel in panels]
        self.arms = list(dict.fromkeys(arm for panel in panels for arm in (*panel.lines, *panel.lost)))
        heads = list(dict.fromkeys(map(_head, self.arms)))
        self.colours = {arm: COLOURS[heads.index(_head(arm)) % len(COLOURS)] for arm in self.arms}
        if not any(lines for _, lines in self.panels):
            raise DataError("There is nothing to draw: no panel has a value that its axes can show.")
        self.columns = min(len(panels), _COLUMNS) if len(panels) != 4 else 2
        self.rows = math.ceil(len(panels) / self.columns)
        self.figure: Any = plotly_graph().Figure()
        self.named: set[str] = set()

    def _drawable(self, panel: Panel) -> dict[str, dict[float, list[float]]]:
        if panel.guides and not (self.log_x and self.log_y):
            raise SpecError(f"Panel {panel.title!r} has guide lines of slopes, which need two logarithmic axes.")

        def shown(value: float, log: bool) -> bool:
            return math.isfinite(value) and (value > 0 or not log)

        found = {
            arm: {x: kept for x, values in line.items()
                  if shown(x, self.log_x) and (kept := [v for v in values if shown(v, self.log_y)])}
            for arm, line in panel.lines.items()
        }  # fmt: skip
        return {arm: line for arm, line in found.items() if line}

    def drawn(self, title: str, x: str, y: str) -> Figure:
        """Draw all panels and return the figure."""
        several = len(self.panels) > 1
        self.figure.set_subplots(
            rows=self.rows, cols=self.columns, vertical_spacing=0.32 / self.rows,
            horizontal_spacing=0.2 / self.columns,
            subplot_titles=[panel.title for panel, _ in self.panels] if several else None,
        )  # fmt: skip
        width, height = (self.columns * _PANEL[0] + 140, self.rows * _PANEL[1] + 90) if several else SIZE
        head = self._headed(title, width)
        lay_out(self.figure, head, "", "", "")
        for number, (panel, lines) in enumerate(self.panels):
            place = {"row": number // self.columns + 1, "col": number % self.columns + 1}
            self._axes(number, place, x, y)
            if lines:
                self._panel(panel, lines, place)
        further = _LINE * max(0, head.count("<br>") - 1)
        margin = {"t": (110 if several else 70) + further}
        self.figure.update_layout(width=width, height=height + further, margin=margin)
        return Figure(self.figure)

    def _headed(self, title: str, width: int) -> str:
        marks = [words for name, words in _OF_A_RATE.items() if any(getattr(panel, name) for panel, _ in self.panels)]
        if self._has_bands():
            marks.insert(0, "line: median over seeds, band: range")
        if any(panel.unjoined & lines.keys() for panel, lines in self.panels):
            marks.append("marker without a line: one run")
        dropped = self._count(panel.lines for panel, _ in self.panels) - self._count(lines for _, lines in self.panels)
        if dropped:
            marks.append(f"left out: {dropped} values that are not finite, or not above 0 on a logarithmic axis")
        # Nothing wraps a title that is wider than its figure.
        lines = textwrap.wrap(title, int(width / _TITLE_LETTER))
        lines += (f"<sup>{line}</sup>" for line in textwrap.wrap("; ".join(marks), int(width / _MARKS_LETTER)))
        return "<br>".join(lines)

    def _has_bands(self) -> bool:
        return any(
            len(values) > 1
            for panel, lines in self.panels
            for arm, line in lines.items() if arm not in panel.unjoined
            for values in line.values()
        )  # fmt: skip

    @staticmethod
    def _count(panels: Iterator[Lines]) -> int:
        return sum(len(values) for lines in panels for line in lines.values() for values in line.values())

    def _axes(self, number: int, place: Mapping[str, int], x: str, y: str) -> None:
        below = number + self.columns >= len(self.panels)
        self.figure.update_xaxes(title_text=x if below else "", **place)
        self.figure.update_yaxes(title_text=y if place["col"] == 1 else "", **place)

    def _panel(self, panel: Panel, lines: Mapping[str, Mapping[float, Sequence[float]]], place: Any) -> None:
        x_span, y_span = self._spans(panel, lines)
        self.figure.update_xaxes(**_axis([x for line in lines.values() for x in line], x_span), **place)
        self.figure.update_yaxes(**_axis([], y_span), **place)
        for name, slope in panel.guides.items():
            self._guide(name, slope, lines, (x_span, y_span), place)
        if panel.level:
            self._level(panel.level, (x_span, y_span), place)
        if panel.diagonal:
            low, high = max(x_span.low, y_span.low), min(x_span.high, y_span.high)
            # Named below its upper end, as a name at the end would be cut off.
            ends = [low, high * (low / high) ** 0.12 if self.log_x else high - 0.12 * (high - low), high]
            self._grey(ends, ends, ["", panel.diagonal, ""], place, dash="solid", where="middle left")
        for arm, line in lines.items():
            add_line(self.figure, arm, line, self.arms.index(arm), marked=self.marked, joined=arm not in panel.unjoined,
                     colour=self.colours[arm], showlegend=arm not in self.named, **place)  # fmt: skip
            self.named.add(arm)
        for arm, rate in panel.best.items():
            if rate in lines.get(arm, {}):
                self._mark(arm, [rate], [statistics.median(lines[arm][rate])], place, symbol="circle-open", size=15)
        for arm, rate in panel.edge.items():
            self._mark(arm, [rate], [y_span.at(0.97 - self._lane(arm))], place, symbol="triangle-down", size=9)
        for arm, rates in panel.lost.items():
            at = y_span.at(0.03 + self._lane(arm))
            self._mark(arm, list(rates), [at] * len(rates), place, symbol="x-thin", size=8)

    def _spans(self, panel: Panel, lines: Lines) -> tuple[_Span, _Span]:
        xs = [x for line in lines.values() for x in line]
        xs += [*panel.edge.values(), *(x for rates in panel.lost.values() for x in rates)]
        ys = [value for line in lines.values() for values in line.values() for value in values]
        if panel.level and (panel.level[0] > 0 or not self.log_y):
            ys.append(panel.level[0])
        lanes = 0.07 + 0.045 * len(self.arms)
        # A slope as steep as -1 would push the data into a corner, so guides do not widen the axis of their values.
        y_span = _span(ys, log=self.log_y, below=lanes if panel.lost else 0.06, above=lanes if panel.edge else 0.06)
        return _span(xs, log=self.log_x, below=0.04, above=0.16 if panel.guides else 0.04), y_span

    def _lane(self, arm: str) -> float:
        # Marks of arms at one rate stand below each other, not on each other.
        return 0.04 * self.arms.index(arm) if arm in self.arms else 0.0

    def _mark(self, arm: str, xs: list[float], ys: list[float], place: Any, *, symbol: str, size: int) -> None:
        colour = self.colours.get(arm, _GREY)
        self.figure.add_trace(
            plotly_graph().Scatter(
                x=xs, y=ys, mode="markers", showlegend=False, legendgroup=arm, hoverinfo="skip",
                marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 2, "color": colour}},
            ),
            **place,
        )  # fmt: skip

    def _guide(self, name: str, slope: float, lines: Lines, spans: tuple[_Span, _Span], place: Any) -> None:
        # From a little above the data, which would hide a line that they follow.
        xs = sorted({x for line in lines.values() for x in line})
        start = max(statistics.median(line[xs[0]]) for line in lines.values() if xs[0] in line)
        start = min(start * (spans[1].at(0.06) / spans[1].low), spans[1].at(0.98))
        ys = [start * (x / xs[0]) ** slope for x in xs]
        inside = [number for number, y in enumerate(ys) if spans[1].low <= y <= spans[1].high]
        texts = [""] * len(xs)
        texts[inside[-1]] = re.sub(r"\^([-\w/.]+)", r"<sup>\1</sup>", name)
        self._grey(xs, ys, texts, place, dash="solid", where="middle right")

    def _level(self, level: tuple[float, str], spans: tuple[_Span, _Span], place: Any) -> None:
        self._grey([spans[0].low, spans[0].high], [level[0]] * 2, ["", level[1]], place, dash="dash", where="top left")

    def _grey(
        self, xs: Sequence[float], ys: Sequence[float], texts: Sequence[str], place: Any, *, dash: str, where: str
    ) -> None:
        self.figure.add_trace(
            plotly_graph().Scatter(
                x=xs, y=ys, text=texts, mode="lines+text", textposition=where, showlegend=False,
                hoverinfo="skip", line={"color": _GREY, "width": 1, "dash": dash},
                textfont={"color": _GREY, "size": 11},
            ),
            **place,
        )  # fmt: skip


def _head(arm: str) -> str:
    return arm.partition(",")[0]


def _axis(drawn: Sequence[float], span: _Span) -> dict[str, Any]:
    """Return what Plotly is told of an axis; ``drawn`` are the places that may deserve ticks of their own."""
    axis: dict[str, Any] = {"range": list(span.as_drawn)}
    if not span.log:
        return axis
    axis |= {"type": "log", "exponentformat": "power"}
    if drawn and all(value >= 1 and math.log2(value).is_integer() for value in drawn):
        # Widths are powers of two, and a reader looks for them; every second one where all would stand on edge.
        widths = sorted(set(drawn), reverse=True)
        return axis | _ticks(sorted(widths[:: 2 if len(widths) > 5 else 1]))
    between = [digit * 10.0**decade for decade in range(-30, 30) for digit in (1, 2, 5)]
    shown = [value for value in between if span.low <= value <= span.high]
    if len(shown) > 5:
        # More of them would stand on edge below a panel: the powers of ten alone.
        return axis | {"dtick": 1}
    return axis | (_ticks(shown) if len(shown) > 2 else {})


def _ticks(values: Sequence[float]) -> dict[str, Any]:
    return {"tickvals": list(values), "ticktext": [f"{value:g}" for value in values]}
