from __future__ import annotations

import math
import re
from typing import Any

import pytest

from asymlora.errors import DataError, SpecError
from asymlora.report.plots import COLOURS, Figure
from asymlora.report.reproduction_figures import Panel, lines_over, metric_against_rate, over_steps

RATES = (1e-4, 1e-3, 1e-2)
LINES = {"Init[A]": {1e-4: [0.2, 0.4], 1e-3: [0.5, 0.9], 1e-2: [0.8, 0.8]}, "Init[B]": {1e-4: [0.3], 1e-3: [0.7]}}
TASK = Panel(
    title="TREC-6", lines=LINES, best={"Init[A]": 1e-3, "Init[B]": 1e-3}, edge={"Init[A]": 1e-2, "Init[B]": 1e-2},
    lost={"Init[B]": [1e-2], "Init[A]": [1e-1]}, level=(0.25, "chance"),
)  # fmt: skip
OTHER = Panel(title="SST-2", lines={"Init[B]": {1e-4: [0.6], 1e-3: [0.5]}, "LoRA+": {1e-4: [0.1], 1e-3: [0.2]}})
WIDTHS = {"Init[A]": {float(n): [n**-0.5] for n in (128, 512, 2048)}, "Init[B]": {128.0: [1 / 128], 2048.0: [1 / 2048]}}


def _named(figure: Figure, name: str) -> list[Any]:
    return [trace for trace in figure.plotly.data if trace.name == name]


def _marks(figure: Figure, symbol: str) -> list[tuple[float, float, str]]:
    found = [trace for trace in figure.plotly.data if trace.mode == "markers" and trace.marker.symbol == symbol]
    return [(x, y, trace.marker.color) for trace in found for x, y in zip(trace.x, trace.y, strict=True)]


def _rates(*panels: Panel, log_y: bool = False) -> Figure:
    return metric_against_rate(panels, title="Rates", y="accuracy", log_y=log_y)


def test_a_line_is_the_median_over_seeds_on_a_logarithmic_axis_of_rates() -> None:
    figure = _rates(TASK)
    (line,) = _named(figure, "Init[A]")
    assert (list(line.x), list(line.y)) == (list(RATES), [pytest.approx(0.3), 0.7, 0.8])
    assert figure.plotly.layout.xaxis.type == "log"
    assert figure.plotly.layout.yaxis.type is None
    assert (figure.plotly.layout.xaxis.title.text, figure.plotly.layout.yaxis.title.text) == (
        "learning rate", "accuracy",
    )  # fmt: skip


def test_runs_that_have_no_order_are_not_joined() -> None:
    runs = {3e-4: [0.3], 2e-4: [0.5, 0.1]}
    figure = _rates(
        Panel(title="TREC-6", lines={"LoRA": {1e-4: [0.2]}, "advised": runs}, unjoined=frozenset({"advised"}))
    )
    (trace,) = _named(figure, "advised")
    assert trace.mode == "markers"
    assert list(zip(trace.x, trace.y, strict=True)) == [(2e-4, 0.5), (2e-4, 0.1), (3e-4, 0.3)]
    assert not [each for each in figure.plotly.data if each.fill]
    assert "marker without a line: one run" in figure.plotly.layout.title.text
    assert "median" not in figure.plotly.layout.title.text


def test_the_best_rate_has_a_ring_on_its_line() -> None:
    assert _marks(_rates(TASK), "circle-open") == [(1e-3, 0.7, COLOURS[0]), (1e-3, 0.7, COLOURS[1])]


def test_marks_of_arms_at_one_rate_do_not_hide_each_other_nor_the_data() -> None:
    figure = _rates(TASK)
    edges, lost = _marks(figure, "triangle-down"), _marks(figure, "x-thin")
    assert [(x, colour) for x, _, colour in edges] == [(1e-2, COLOURS[0]), (1e-2, COLOURS[1])]
    assert {(x, colour) for x, _, colour in lost} == {(1e-2, COLOURS[1]), (1e-1, COLOURS[0])}
    heights = [y for _, y, _ in edges]
    assert heights[0] != heights[1]
    low, high = figure.plotly.layout.yaxis.range
    assert all(0.9 < y < high for y in heights)
    assert all(low < y < 0.2 for _, y, _ in lost)


def test_what_the_marks_mean_stands_below_the_title_and_nothing_else() -> None:
    title = _rates(TASK).plotly.layout.title.text.replace("</sup><br><sup>", " ")
    assert (
        "ring: best rate; triangle: largest stable rate tried; cross: a run diverged, collapsed or failed there"
        in title
    )
    assert _rates(OTHER).plotly.layout.title.text == "Rates"


def test_an_arm_looks_the_same_in_every_panel_and_is_named_once() -> None:
    figure = _rates(TASK, OTHER)
    first, second = _named(figure, "Init[B]")
    assert (first.line.color, first.line.dash, first.marker.symbol) == (
        second.line.color, second.line.dash, second.marker.symbol,
    )  # fmt: skip
    assert [trace.name for trace in figure.plotly.data if trace.name and trace.showlegend] == [
        "Init[A]", "Init[B]", "LoRA+",
    ]  # fmt: skip
    assert len({_named(figure, arm)[0].line.dash for arm in ("Init[A]", "Init[B]", "LoRA+")}) == 3


def test_arms_that_are_alike_up_to_a_comma_share_the_colour_and_nothing_else() -> None:
    names = [f"{start}, n = {n}" for start in ("Init[A]", "Init[B]") for n in (128, 4096)]
    figure = _rates(Panel(title="", lines={name: LINES["Init[A]"] for name in names}, best=dict.fromkeys(names, 1e-3)))
    lines = [_named(figure, name)[0] for name in names]
    assert [line.line.color for line in lines] == [COLOURS[0]] * 2 + [COLOURS[1]] * 2
    assert len({(line.line.dash, line.marker.symbol) for line in lines}) == 4
    assert [colour for _, _, colour in _marks(figure, "circle-open")] == [COLOURS[0]] * 2 + [COLOURS[1]] * 2


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_stand_in_rows_of_three_with_their_titles(count: int, shape: tuple[int, int]) -> None:
    panels = [Panel(title=f"task {number}", lines=LINES) for number in range(count)]
    figure = _rates(*panels)
    grid = figure.plotly._grid_ref
    assert (len(grid), len(grid[0])) == shape
    titles = [note.text for note in figure.plotly.layout.annotations]
    assert titles == ([panel.title for panel in panels] if count > 1 else [])


def test_only_outer_axes_have_titles() -> None:
    layout = _rates(*[TASK] * 5).plotly.layout
    below = [layout[f"xaxis{n}"].title.text for n in ("", 2, 3, 4, 5)]
    assert below == ["", "", "learning rate", "learning rate", "learning rate"]
    assert [layout[f"yaxis{n}"].title.text for n in ("", 2, 3, 4, 5)] == ["accuracy", "", "", "accuracy", ""]


def test_a_level_is_a_line_across_the_panel_with_its_name() -> None:
    (level,) = [trace for trace in _rates(TASK).plotly.data if trace.text]
    assert set(level.y) == {0.25}
    assert level.text[-1] == "chance"


def test_guides_have_the_slope_that_theory_gives_and_begin_above_the_data() -> None:
    panel = Panel(title="", lines=WIDTHS, guides={"n^-1/2": -0.5, "n^-1": -1.0})
    figure = lines_over([panel], title="Edges", x="width n", y="rate")
    guides = [trace for trace in figure.plotly.data if trace.text]
    assert [guide.text[-1] for guide in guides] == ["n<sup>-1/2</sup>", "n<sup>-1</sup>"]
    for guide, slope in zip(guides, (-0.5, -1.0), strict=True):
        assert math.log(guide.y[-1] / guide.y[0]) / math.log(guide.x[-1] / guide.x[0]) == pytest.approx(slope)
        assert guide.y[0] > 128**-0.5
    assert list(figure.plotly.layout.xaxis.ticktext) == ["128", "512", "2048"]


def test_guides_need_two_logarithmic_axes() -> None:
    panel = Panel(title="edges", lines=WIDTHS, guides={"n^-1": -1.0})
    with pytest.raises(SpecError, match=r"Panel 'edges' has guide lines of slopes, which need two logarithmic axes"):
        lines_over([panel], title="t", x="x", y="y", log="x")


def test_an_axis_is_logarithmic_or_not() -> None:
    with pytest.raises(SpecError, match=r"log is 'z'\. Allowed"):
        lines_over([TASK], title="t", x="x", y="y", log="z")  # pyright: ignore[reportArgumentType]


def test_steps_have_no_markers_and_zeros_are_counted_out_on_a_logarithmic_axis() -> None:
    panel = Panel(title="Z_A", lines={"Init[A]": {0.0: [0.0, 0.0], 1.0: [1.0, 2.0]}})
    figure = over_steps([panel], title="Course", y="size")
    (line,) = _named(figure, "Init[A]")
    assert (line.mode, list(line.x)) == ("lines", [1.0])
    assert "left out: 2 values that are not finite, or not above 0" in figure.plotly.layout.title.text
    (whole,) = _named(over_steps([panel], title="Course", y="size", log_y=False), "Init[A]")
    assert list(whole.x) == [0.0, 1.0]


@pytest.mark.parametrize("lines", [{}, {"Init[A]": {}}, {"Init[A]": {1.0: [math.nan, math.inf]}}])
def test_nothing_to_draw_is_refused(lines: Any) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        _rates(Panel(title="", lines=lines))


def test_an_empty_panel_beside_others_stays_empty() -> None:
    figure = _rates(TASK, Panel(title="not run", lines={}))
    assert not [trace for trace in figure.plotly.data if trace.xaxis == "x2"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [((1.0, 30.0), ["1", "2", "5", "10", "20"]), ((1.0, 100.0), None), ((1e-4, 1e2), None), ((2.2, 2.6), None)],
)
def test_ticks_of_a_logarithmic_axis_are_few_round_numbers(
    values: tuple[float, float], ticks: list[str] | None
) -> None:
    panel = Panel(title="", lines={"a": {1.0: [values[0]], 2.0: [values[1]]}})
    axis = over_steps([panel], title="t", y="y").plotly.layout.yaxis
    assert (list(axis.ticktext) if axis.ticktext else None) == ticks
    assert (axis.dtick == 1) == (values[1] / values[0] > 30)


@pytest.mark.parametrize("log", ["xy", ""])
def test_a_diagonal_is_where_both_axes_have_the_same_value(log: Any) -> None:
    panel = Panel(title="", lines={"a": {1.0: [2.0], 8.0: [3.0]}}, diagonal="as predicted")
    figure = lines_over([panel], title="t", x="x", y="y", log=log).plotly
    (line,) = [trace for trace in figure.data if trace.text and "as predicted" in trace.text]
    assert list(line.x) == list(line.y)
    low, high = figure.layout.yaxis.range
    shown = (math.log10(line.x[0]), math.log10(line.x[-1])) if log else (line.x[0], line.x[-1])
    assert shown == pytest.approx((low, high))


def test_what_is_wider_than_the_figure_is_wrapped_and_the_figure_grows() -> None:
    short, long = (
        lines_over([Panel(title="", lines={"a": {1.0: [1.0, 2.0]}})], title=title, x="x", y="y").plotly.layout
        for title in ("A title", "A title of many words " * 8)
    )
    assert short.title.text == "A title<br><sup>line: median over seeds, band: range</sup>"
    lines = re.sub(r"</?sup>", "", long.title.text).split("<br>")
    assert len(lines) == 3
    assert " ".join(lines[:2]) == ("A title of many words " * 8).strip()
    assert long.height - short.height == long.margin.t - short.margin.t > 0
