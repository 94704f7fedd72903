from __future__ import annotations

import math
import re

import pytest

from asymlora.report.advice_page import advice_page, curves_figure, range_figure, ratios_figure
from small_advice import small_record


def test_the_page_is_whole_and_needs_no_network() -> None:
    page = advice_page(small_record(), command="asymlora finetune recipe.yaml")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert page.count("Plotly.newPlot") == 3
    outside = page.replace(re.search(r"<script[^>]*>/\*\*.*?</script>", page, flags=re.DOTALL)[0], "")  # type: ignore
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?https?:", outside)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_it_holds_the_verdict_the_pair_the_open_question_the_recipe_and_what_it_ran_on() -> None:
    record = small_record()
    page = advice_page(record, command="asymlora finetune mine.yaml")
    for words in (
        "Train B alone at 3 of 3 layers",
        "leaves 60 % within reach of B",
        "was not shown to beat",
        "asymlora finetune mine.yaml",
        "lr: 0.005",
        record["environment"]["packages"]["torch"],
        "net.layer.2.dense",
        "10 s in all",
    ):
        assert words in page, words


def test_on_a_narrow_screen_titles_wrap_and_legends_stand_below_the_axis() -> None:
    page = advice_page(small_record(), command="x")
    assert page.count("<figcaption>") == 3
    assert "<figcaption>Range test: loss while the rate rises" in page
    assert page.count('"yref":"container"') == 3


def test_a_path_gives_the_title_its_last_part_and_an_id_stays_whole() -> None:
    page = advice_page({**small_record(), "model": "/home/me/bert", "data": "org/set"}, command="x")
    assert "<title>Advice for bert on org/set</title>" in page


def test_names_from_outside_are_escaped() -> None:
    page = advice_page(small_record(), command="x")
    assert "head&lt;b&gt;" in page
    assert "a &lt;small&gt; model" in page
    assert "<small>" not in page
    assert "<td>head<b>" not in page


def test_without_gradients_there_is_no_figure_of_shares() -> None:
    record = small_record()
    bare = [{**site, "curve": []} for site in record["sites"]]
    assert curves_figure(bare) is None
    assert advice_page({**record, "sites": bare}, command="x").count("Plotly.newPlot") == 2


def test_curves_are_the_medians_of_the_records_in_per_cent() -> None:
    figure = curves_figure([site for site in small_record()["sites"] if site["in_recipe"]])
    assert figure is not None
    (line,) = [trace for trace in figure.plotly.data if trace.name == "random A held, B trained"]
    assert list(line.x) == [1, 2, 4, 8]
    assert line.y[-1] == 60.0
    assert {trace.name for trace in figure.plotly.data if trace.name} >= {"random B held, A trained"}


def test_every_layer_has_its_point_and_the_line_is_where_outputs_and_ratio_are_equal() -> None:
    record = small_record()
    figure = ratios_figure(record["sites"])
    assert figure is not None
    line, *groups = figure.plotly.data
    assert list(line.x) == list(line.y)
    assert sum(len(trace.x) for trace in groups) == len(record["sites"])
    assert [trace.marker.symbol.endswith("-open") for trace in groups] == [False, True, True]


def test_no_two_of_many_kinds_of_layers_look_alike() -> None:
    site = small_record()["sites"][0]
    figure = ratios_figure([{**site, "site": f"{role}", "role": f"role{role}"} for role in range(20)])
    assert figure is not None
    looks = [(trace.marker.color, trace.marker.symbol) for trace in figure.plotly.data[1:]]
    assert len(set(looks)) == 20


def test_edge_and_start_are_marked_where_they_are() -> None:
    figure = range_figure(small_record()).plotly
    assert [shape.x0 for shape in figure.layout.shapes] == [0.005, 0.02]
    notes = {note.text: note.x for note in figure.layout.annotations}
    assert notes == {"start 0.005": pytest.approx(math.log10(0.005)), "edge 0.02": pytest.approx(math.log10(0.02))}
    by_name = {trace.name: trace for trace in figure.data if trace.name}
    assert list(by_name["a run at one rate: stable"].x) == [0.02]
