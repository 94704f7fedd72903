"""How long the page of a sweep of 504 made-up runs takes to open in headless Chromium, until a first figure is drawn.

Beside it a page with nothing but Plotly's script, which is most of it. The seconds are the page's own (from the start
of its navigation), read after it has opened: a debugger that is attached while a page opens, as Playwright's is, makes
V8 read Plotly's script several times over. Its seconds are shown too. Writes ``results/page_opening.json``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from asymlora.report.sweep_page import sweep_page
from side_by_side import median, write

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import small_sweep

LIMIT = 3.0
"""Seconds."""
ROUNDS = 7
PAUSE = 5.0
"""Seconds until a page that opens by itself is asked for its times."""
TIMES = ("painted", "opened", "attached")
ARMS = ("init_a", "init_b", "b_only", "a_only", "full", "peft:lora")


def pages(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """Write both pages; each with its own mark of having opened (none: when it has loaded) and what is there then."""
    rates = [1e-4 * 10 ** (n / 3) for n in range(9)]
    rows = small_sweep.rows(arms=ARMS, rates=rates, seeds=range(12), tuning_seeds=range(100, 108))
    (folder / "sweep.html").write_text(
        sweep_page([small_sweep.records(rows, arms=ARMS)], command="made-up"), encoding="utf-8"
    )
    bare = f"<!doctype html><meta charset='utf-8'><script>{get_plotlyjs()}</script><p id='there'>there</p>"
    (folder / "bare.html").write_text(bare, encoding="utf-8")
    drawn = "#figure-metric[data-drawn] .main-svg"
    return {
        f"{len(rows)} runs": (folder / "sweep.html", "drawn metric", drawn),
        "Plotly alone": (folder / "bare.html", "", "#there"),
    }


def opened_alone(playwright: Any, port: str, path: Path, mark: str) -> dict[str, float]:
    """Return a page's seconds until its first paint and until it has opened, with no debugger at it until then."""
    address = f"http://127.0.0.1:{port}"
    asked = urllib.request.Request(f"{address}/json/new?{path.as_uri()}", method="PUT")
    urllib.request.urlopen(asked).close()
    time.sleep(PAUSE)
    browser = playwright.chromium.connect_over_cdp(address)
    try:
        page = next(each for each in browser.contexts[0].pages if each.url == path.as_uri())
        times = page.evaluate(
            """mark => ({
                painted: performance.getEntriesByName("first-contentful-paint").map((entry) => entry.startTime)[0],
                opened: performance.getEntriesByName(mark).map((entry) => entry.startTime)[0],
                loaded: performance.getEntriesByType("navigation")[0].loadEventEnd,
            })""",
            mark,
        )
        page.close()
    finally:
        browser.close()
    return {"painted": times["painted"] / 1000, "opened": (times["opened"] if mark else times["loaded"]) / 1000}


def opened_attached(browser: Any, path: Path, there: str) -> float:
    """Return seconds by the clock until a page has opened under Playwright."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    begun = time.monotonic()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector(there)
    seconds = time.monotonic() - begun
    page.close()
    return seconds


@contextmanager
def waiting_browser(path: str, folder: Path) -> Iterator[str]:
    """Start Chromium with an empty page, and give the port at which it takes addresses."""
    words = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--window-size=1280,900"]
    command = [path, *words, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            yield next(found[1] for line in process.stderr if (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
        finally:
            process.kill()


def spread(taken: list[float]) -> dict[str, float]:
    """Return the median, the least and the most."""
    return {"median": median(taken), "least": min(taken), "most": max(taken)}


def main() -> None:
    """Open both pages in turn, print the medians and write them."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("This needs Chrome or Chromium: make browser")
    taken: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as playwright:
        made = pages(Path(folder))
        sizes = {name: file.stat().st_size for name, (file, _, _) in made.items()}
        with waiting_browser(path, Path(folder)) as port:
            for _ in range(ROUNDS):
                for name, (file, mark, _) in made.items():
                    for what, seconds in opened_alone(playwright, port, file, mark).items():
                        taken.setdefault(name, {}).setdefault(what, []).append(seconds)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            for name, (file, _, there) in made.items():
                taken[name].setdefault("attached", []).append(opened_attached(browser, file, there))
        browser.close()
    rows: list[dict[str, Any]] = [
        {"page": name, "bytes": sizes[name], **{what: spread(seconds) for what, seconds in times.items()}}
        for name, times in taken.items()
    ]
    for row in rows:
        told = ", ".join(
            f"{what} {t['median']:.2f} s ({t['least']:.2f}-{t['most']:.2f})" for what, t in row.items() if what in TIMES
        )
        print(f"{row['page']}, {row['bytes'] / 2**20:.1f} MiB: {told}")
    print(f"Opened in less than {LIMIT:g} s: {'yes' if rows[0]['opened']['median'] < LIMIT else 'NO'}")
    write("page_opening", rows, limit=LIMIT, rounds=ROUNDS)


if __name__ == "__main__":
    main()
