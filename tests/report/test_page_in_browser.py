"""The page in a real browser: the system's Chromium, by its path, driven by Playwright."""

from __future__ import annotations

import csv
import io
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import small_sweep
from asymlora.report.sweep_page import sweep_page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chrome or Chromium here")
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
ARMS = (HOSTILE, '"it\'s" & %{x} $y$ <b>b</b> \U0001f600', "a name of two hundred letters " * 7, "=1+1")
FIGURES = ("metric", "loss", "closing", "curves", "dynamics", "similarity")

SLOW = pytest.mark.optional  # a second or more each in a browser; the page's promises in short stay in the default part


class Opened:
    """A page, and all that it complained of or asked for."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.path = page, path
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())

    def draw_all(self) -> None:
        self.page.evaluate("sweepPage.drawAll()")

    def traces(self, figure: str) -> list[dict[str, Any]]:
        """Return what Plotly shows in a figure, drawn as it would be when it comes into view."""
        self.page.evaluate(f"sweepPage.drawNow('{figure}')")
        return self.page.evaluate(f"document.querySelector('#figure-{figure} .plot').data")

    def legend(self, figure: str) -> list[str]:
        return [trace["name"] for trace in self.traces(figure) if trace.get("showlegend", True) and trace.get("name")]

    def tick(self, kind: str, value: object) -> None:
        self.page.locator(f'fieldset[data-filter="{kind}"] input[value="{value}"]').click()

    def saved(self, figure: str, form: str) -> str:
        with self.page.expect_download() as download:
            self.page.locator(f'#figure-{figure} button[data-save="{form}"]').click()
        assert download.value.suggested_filename.endswith(f"{figure}.{form}")
        return Path(download.value.path()).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages")
    made = sweep_page([small_sweep.records()], command="asymlora report made-up")
    (path / "page.html").write_text(made, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shared(browser: Any, folder: Path) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield Opened(page, folder / "page.html")
    page.close()


@pytest.fixture
def opened(shared: Opened) -> Opened:
    """The page with everything shown, as it was opened."""
    for kind in ("arms", "ranks", "seeds"):
        shared.page.evaluate(f"document.querySelector('fieldset[data-filter=\"{kind}\"] button').click()")
    return shared


def test_it_opens_without_a_complaint_or_a_request_and_draws_every_figure(opened: Opened) -> None:
    for figure in FIGURES:
        assert opened.traces(figure), figure
        assert opened.page.locator(f"#figure-{figure} .main-svg").count()
    assert opened.complaints == []
    assert opened.requests == [opened.path.as_uri()]


@SLOW
def test_figures_are_drawn_by_themselves_when_they_come_into_view(browser: Any, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 400})
    opened = Opened(page, folder / "page.html")
    last = opened.page.locator("#figure-similarity")
    assert last.get_attribute("data-drawn") is None
    last.scroll_into_view_if_needed()
    opened.page.wait_for_selector("#figure-similarity[data-drawn] .main-svg")
    page.close()


def test_what_is_drawn_are_the_values_of_the_runs(opened: Opened) -> None:
    rows = small_sweep.rows()
    (line,) = [t for t in opened.traces("metric") if t.get("name") == "init_a" and t["mode"] == "lines+markers"]
    expected = {
        lr: mean(
            100 * (row.validation or 0) for row in rows if (row.arm, row.lr, row.phase) == ("init_a", lr, "tuning")
        )
        for lr in (3e-4, 1e-3, 3e-3, 1e-2)
    }  # 1e-4 was stopped early, and 3e-2 diverged
    assert dict(zip(line["x"], line["y"], strict=True)) == pytest.approx(expected)
    by_kind = {kind: [t for t in opened.traces("metric") if t.get("meta") == kind] for kind in
               ("pruned", "diverged", "edge", "chosen")}  # fmt: skip
    assert sum(len(t["x"]) for t in by_kind["pruned"]) == sum(row.status == "pruned" for row in rows)
    assert sum(len(t["x"]) for t in by_kind["diverged"]) == sum(row.status == "diverged" for row in rows)
    assert [t["x"][0] for t in by_kind["edge"]] == pytest.approx([3e-2, 1e-2], rel=0.03)
    assert [t["x"] for t in by_kind["chosen"]] == [[3e-3], [1e-3], [3e-3]]


def test_filters_change_every_figure_and_the_address_keeps_them(opened: Opened) -> None:
    opened.tick("arms", 1)
    for figure in ("metric", "loss", "curves", "dynamics"):
        assert opened.legend(figure) == ["init_a", "b_only"]
    assert opened.page.locator(".count").inner_text() == "36 of 54 runs"
    assert opened.page.locator("#figure-curves .said").inner_text() == "Drawn now: runs 37-42, 49-54."
    opened.tick("seeds", 101)
    (line,) = [t for t in opened.traces("metric") if t.get("name") == "init_a" and t["mode"] == "lines+markers"]
    (alone,) = [r for r in small_sweep.rows() if (r.arm, r.lr, r.seed) == ("init_a", 1e-3, 100)]
    assert line["y"][line["x"].index(1e-3)] == pytest.approx(100 * (alone.validation or 0))
    assert "no-arms=init_b" in opened.page.url
    assert "no-seeds=101" in opened.page.url
    opened.page.locator('fieldset[data-filter="arms"] button', has_text="none").click()
    assert opened.legend("metric") == []


@SLOW
def test_an_interval_is_shown_of_all_seeds_and_a_range_of_fewer(opened: Opened) -> None:
    summary = small_sweep.records().summary
    assert summary is not None
    (whole,) = [t for t in opened.traces("closing") if t["meta"] == "95 % interval"][:1]
    cell = summary["cells"][0]
    assert whole["x"][0] == pytest.approx(100 * cell["mean"])
    assert whole["error_x"]["array"][0] == pytest.approx(100 * (cell["interval"]["high"] - cell["mean"]))
    opened.tick("seeds", 0)
    assert not [t for t in opened.traces("closing") if t["meta"] == "95 % interval"]
    assert len([t for t in opened.traces("closing") if t["meta"] == "range of seeds"]) == 3
    assert "range of the seeds" in opened.page.locator("#figure-closing .said").inner_text()


@SLOW
def test_closing_runs_at_an_older_rate_and_points_of_a_search_do_not_mix_with_what_was_found(
    browser: Any, folder: Path
) -> None:
    older = [small_sweep.row("init_a", lr=1e-2, seed=seed, phase="closing") for seed in small_sweep.CLOSING_SEEDS]
    points = [small_sweep.row("init_b", lr=lr, seed=100, phase="search") for lr in (2e-4, 4e-2)]  # the latter diverged
    records = small_sweep.records([*small_sweep.rows(), *older, *points])
    path = folder / "older.html"
    path.write_text(sweep_page([records], command="x"), encoding="utf-8")
    opened = Opened(browser.new_page(), path)
    assert records.summary is not None
    shown = [t["x"][0] for t in opened.traces("closing") if t["meta"] == "95 % interval"]
    assert shown == pytest.approx([100 * cell["mean"] for cell in records.summary["cells"]])
    said = opened.page.locator("#figure-closing .said").inner_text()
    assert said == "Closing runs at another rate than the arm's are not drawn. Drawn now: runs 37-54."
    edges = [t["hovertext"] for t in opened.traces("metric") if t.get("meta") == "edge"]
    assert edges == ["init_a: unstable from 3e-2 on", "init_b: unstable from 1e-2 on"]
    opened.page.close()


def test_every_figure_downloads_as_a_table_of_what_it_shows(opened: Opened) -> None:
    opened.tick("arms", 0)
    tables = {figure: list(csv.DictReader(io.StringIO(opened.saved(figure, "csv")))) for figure in FIGURES}
    for figure, table in tables.items():
        assert {row.get("arm") or row.get("first") for row in table} == {"init_b", "b_only"}, figure
    seeds = [float(row["accuracy_percent"]) for row in tables["closing"] if row["what"] == "seed"]
    assert seeds == [x for t in opened.traces("closing") if t["meta"] == "seeds" for x in t["x"]]


def test_a_figure_downloads_as_svg(opened: Opened) -> None:
    drawing = ElementTree.fromstring(opened.saved("metric", "svg"))
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(node.itertext()) for node in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {"init_a", "init_b", "b_only", "1e-3", "learning rate (train.lr)"} <= texts


@SLOW
def test_light_and_dark_follow_the_system_and_the_button(opened: Opened) -> None:
    def papers() -> tuple[str, str]:
        opened.traces("metric")
        page = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return page, opened.page.evaluate("document.querySelector('#figure-metric .plot').layout.paper_bgcolor")

    light = papers()
    assert light == ("rgb(255, 255, 255)", "#ffffff")
    opened.page.emulate_media(color_scheme="dark")
    dark = papers()
    assert dark == ("rgb(21, 24, 28)", "#15181c")
    opened.page.locator("button.theme").click()
    assert papers() == light
    opened.page.locator("button.theme").click()
    assert papers() == dark
    opened.page.emulate_media(color_scheme="light")
    opened.page.evaluate("delete document.documentElement.dataset.theme")


@SLOW
def test_the_keyboard_reaches_filters_and_downloads(opened: Opened) -> None:
    box = opened.page.locator('fieldset[data-filter="arms"] input').first
    box.focus()
    opened.page.keyboard.press("Space")
    assert not box.is_checked()
    reached = set()
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        reached.add(opened.page.evaluate("document.activeElement.dataset.save || document.activeElement.tagName"))
    assert {"svg", "csv", "INPUT", "SELECT"} <= reached


@SLOW
def test_on_paper_figures_are_light_and_fit_and_controls_are_gone(opened: Opened) -> None:
    opened.page.emulate_media(media="print", color_scheme="dark")
    opened.page.wait_for_function("() => document.querySelector('#figure-metric .plot').layout.width === 680")
    assert opened.page.evaluate("document.querySelector('#figure-metric .plot').layout.paper_bgcolor") == "#ffffff"
    for hidden in ("aside", ".tools"):
        assert not opened.page.locator(hidden).first.is_visible()
    assert opened.page.locator("pre", has_text="task: text_classification").is_visible()
    assert not opened.page.locator(".runs table").is_visible()
    assert opened.page.evaluate("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"
    assert opened.page.pdf(format="A4").startswith(b"%PDF")
    opened.page.emulate_media(media="screen", color_scheme="light")
    opened.page.wait_for_function("() => document.querySelector('#figure-metric .plot').layout.width !== 680")
    assert not opened.page.locator("pre", has_text="task: text_classification").is_visible()


def test_names_from_outside_are_shown_and_run_nothing_even_on_a_phone(browser: Any, folder: Path) -> None:
    path = folder / "hostile.html"
    rows = small_sweep.rows(arms=ARMS, seeds=(0, 1), rates=(1e-3, 3e-3), ranks=(4, 8))
    made = [small_sweep.records(rows, name=HOSTILE, arms=ARMS)]
    path.write_text(sweep_page(made, command=HOSTILE), encoding="utf-8")
    page = browser.new_page(viewport={"width": 360, "height": 740})
    opened = Opened(page, path)
    assert HOSTILE in opened.page.locator("h1, .kind").all_inner_texts()[0]
    opened.draw_all()
    for figure in FIGURES:
        opened.page.locator(f"#figure-{figure}").scroll_into_view_if_needed()
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("img").count() == 0
    assert (opened.complaints, opened.requests) == ([], [path.as_uri()])
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 360
    assert "'=1+1, adapter.rank 4" in opened.saved("metric", "csv")
    opened.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}))"
    )
    assert opened.page.evaluate("window.hacked") is None  # not even a script that found a way in
    page.close()


@pytest.fixture(scope="module")
def big(folder: Path) -> Path:
    rates = [1e-4 * 10 ** (n / 3) for n in range(9)]
    arms = ("init_a", "init_b", "b_only", "a_only", "full", "peft:lora")
    rows = small_sweep.rows(arms=arms, rates=rates, seeds=range(12), tuning_seeds=range(100, 108))
    assert len(rows) >= 500
    path = folder / "big.html"
    path.write_text(sweep_page([small_sweep.records(rows, arms=arms)], command="x"), encoding="utf-8")
    return path


def test_a_page_of_five_hundred_runs_opens_and_is_filtered(browser: Any, big: Path) -> None:
    # How long that takes is measured by benchmarks/page_opening.py.
    opened = Opened(browser.new_page(viewport={"width": 1280, "height": 900}), big)
    opened.page.wait_for_selector("#figure-metric[data-drawn] .main-svg")
    assert len(opened.legend("metric")) == 6
    opened.tick("arms", 0)
    assert len(opened.legend("metric")) == 5
    assert opened.complaints == []
    opened.page.close()
