from __future__ import annotations

import math
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import asymlora.report.plots as plots
from asymlora.errors import DataError, MissingPackageError, SpecError
from asymlora.report.plots import Figure, heat_map, line_plot

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chrome or Chromium here")
RATES = [
    {"width": width, "rate": factor / width, "start": start}
    for start, factors in (("Init[A]", (1.0, 2.0, 6.0)), ("Init[B]", (0.5, 0.5, 0.5)))
    for factor in factors
    for width in (512, 128, 2048)
]
CELLS = [{"site": site, "pair": pair, "similarity": 0.25 * i} for i, (site, pair) in enumerate(
    (s, p) for s in ("layer.10", "layer.2") for p in ("a-b", "a-c")
)]  # fmt: skip


def _lines(figure: Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.plotly.data if trace.name}


def _bands(figure: Figure) -> list[Any]:
    return [trace for trace in figure.plotly.data if trace.fill == "toself"]


def _rates(**fields: Any) -> Figure:
    return line_plot(RATES, x="width", y="rate", by="start", title="Rates", **fields)


def test_a_line_is_the_median_and_its_band_the_range_in_the_order_of_x() -> None:
    figure = _rates(log="xy")
    line = _lines(figure)["Init[A]"]
    assert list(line.x) == [128, 512, 2048]
    assert list(line.y) == [2 / 128, 2 / 512, 2 / 2048]
    band = _bands(figure)[0]
    assert list(band.x) == [128, 512, 2048, 2048, 512, 128]
    assert list(band.y) == [6 / 128, 6 / 512, 6 / 2048, 1 / 2048, 1 / 512, 1 / 128]


def test_lines_differ_by_more_than_their_colour() -> None:
    many = [{"x": x, "y": x * k, "by": k} for k in range(1, 8) for x in (1, 2)]
    lines = _lines(line_plot(many, x="x", y="y", by="by", title="t")).values()
    assert len({line.line.color for line in lines}) == 7
    assert len({(line.line.dash, line.marker.symbol) for line in lines}) == 7


def test_a_single_value_at_each_x_has_no_band() -> None:
    assert not _bands(line_plot(RATES[:3], x="width", y="rate", title="Rates"))


def test_values_that_cannot_be_drawn_are_gaps_and_are_counted() -> None:
    rows = [{"x": 1, "y": 1.0}, {"x": 2, "y": math.nan}, {"x": 3, "y": 0.0}]
    figure = line_plot(rows, x="x", y="y", title="Loss", log="y")
    assert list(_lines(figure)["y"].x) == [1]
    assert "2 of 3 values cannot be drawn" in figure.plotly.layout.title.text
    assert list(_lines(line_plot(rows, x="x", y="y", title="Loss"))["y"].x) == [1, 3]


def test_a_cell_holds_the_median_and_one_without_a_value_is_empty() -> None:
    rows = [*CELLS[:3], {"site": "layer.10", "pair": "a-b", "similarity": 1.0}]
    (trace,) = heat_map(rows, x="pair", y="site", value="similarity", title="t", limits=(0, 1)).plotly.data
    assert [list(row) for row in trace.z] == [[0.5, 0.25], [0.5, None]]
    assert (tuple(trace.x), tuple(trace.y)) == (("a-b", "a-c"), ("layer.10", "layer.2"))
    assert (trace.zmin, trace.zmax) == (0, 1)


def test_labels_replace_field_names() -> None:
    layout = _rates(labels={"rate": "learning rate", "start": "init"}).plotly.layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("width", "learning rate")
    assert layout.legend.title.text == "init"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no records to draw"),
        ([{"x": 1.0}], "Record 0 has no 'y'. It has: 'x'"),
        ([{"x": 1.0, "y": math.inf}], "No value of 'y' can be drawn"),
    ],
)
def test_what_cannot_be_drawn_is_named(rows: list[dict[str, float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        line_plot(rows, x="x", y="y", title="t")


def test_an_empty_heat_map_is_refused() -> None:
    with pytest.raises(DataError, match="No value of 'v' can be drawn: none of 1"):
        heat_map([{"x": 1, "y": 1, "v": math.nan}], x="x", y="y", value="v", title="t")


def test_an_axis_is_logarithmic_or_not() -> None:
    with pytest.raises(SpecError, match=r"log is 'z'\. Allowed"):
        _rates(log="z")


@pytest.mark.parametrize(
    ("name", "message"), [("a.png", r"Allowed endings: \.html, \.svg"), ("no/a.html", "no folder")]
)
def test_a_file_that_cannot_be_written_is_named_first(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _rates().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    page = _rates().save(tmp_path / "rates.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert "Plotly.newPlot" in page
    assert [file.name for file in tmp_path.iterdir()] == ["rates.html"]


def test_without_a_browser_svg_says_what_to_install(tmp_path: Path) -> None:
    figure = _rates()

    class Blind:
        @staticmethod
        def to_image(**_: Any) -> bytes:
            raise RuntimeError("Kaleido requires Google Chrome to be installed.\n more")

    figure.plotly = Blind()
    with pytest.raises(MissingPackageError, match=r"requires Google Chrome.*asymlora\[report\].*\.html"):
        figure.save(tmp_path / "rates.svg")
    assert not list(tmp_path.iterdir())


def test_without_plotly_the_command_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.graph_objects", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'asymlora\[report\]'"):
        plots.line_plot(RATES, x="width", y="rate", title="t")


@needs_browser
def test_a_drawing_holds_every_line_and_word(tmp_path: Path) -> None:
    drawn = _rates(log="xy", labels={"rate": "learning rate"}).save(tmp_path / "rates.svg").read_bytes()
    root = ET.fromstring(drawn)
    text = " ".join(root.itertext())
    assert root.tag.endswith("svg")
    assert all(word in text for word in ("Rates", "Init[A]", "Init[B]", "learning rate", "128", "2048"))
    assert len(root.findall(".//{*}path[@class='js-line']")) >= 2


@needs_browser
def test_a_page_is_drawn_by_a_browser(tmp_path: Path) -> None:
    page = heat_map(CELLS, x="pair", y="site", value="similarity", title="Similar").save(tmp_path / "cells.html")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shown = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert "main-svg" in shown
    assert "layer.10" in shown.split("main-svg", 1)[1]
