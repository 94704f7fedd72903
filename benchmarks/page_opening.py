"""How long the page of a sweep of 504 made-up runs takes to open in headless Chromium, until a first figure is drawn.

Beside it a page with nothing but Plotly's script, which is most of it. By the clock, and as seconds of the page's main
thread, which other programs on the machine disturb less. Writes ``results/page_opening.json``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
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
ARMS = ("init_a", "init_b", "b_only", "a_only", "full", "peft:lora")


def pages(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write both pages; each with what is there when it has opened."""
    rates = [1e-4 * 10 ** (n / 3) for n in range(9)]
    rows = small_sweep.rows(arms=ARMS, rates=rates, seeds=range(12), tuning_seeds=range(100, 108))
    (folder / "sweep.html").write_text(
        sweep_page([small_sweep.records(rows, arms=ARMS)], command="made-up"), encoding="utf-8"
    )
    bare = f"<!doctype html><meta charset='utf-8'><script>{get_plotlyjs()}</script><p id='there'>there</p>"
    (folder / "bare.html").write_text(bare, encoding="utf-8")
    drawn = "#figure-metric[data-drawn] .main-svg"
    return {f"{len(rows)} runs": (folder / "sweep.html", drawn), "Plotly alone": (folder / "bare.html", "#there")}


def opening(browser: Any, path: Path, there: str) -> tuple[float, float]:
    """Return seconds by the clock and of the main thread until a page has opened."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    begun = time.monotonic()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector(there)
    clock = time.monotonic() - begun
    found = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    page.close()
    return clock, found["TaskDuration"]


def main() -> None:
    """Open both pages in turn, print the medians and write them."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("This needs Chrome or Chromium: make browser")
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        made = pages(Path(folder))
        sizes = {name: file.stat().st_size for name, (file, _) in made.items()}
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            for name, (file, there) in made.items():
                taken.setdefault(name, []).append(opening(browser, file, there))
        browser.close()
    rows = [
        {
            "page": name,
            "bytes": sizes[name],
            "seconds": median([clock for clock, _ in times]),
            "seconds_least": min(clock for clock, _ in times),
            "seconds_most": max(clock for clock, _ in times),
            "main_thread_seconds": median([thread for _, thread in times]),
        }
        for name, times in taken.items()
    ]
    for row in rows:
        spread = f"{row['seconds']:.2f} s ({row['seconds_least']:.2f}-{row['seconds_most']:.2f})"
        thread = f"{row['main_thread_seconds']:.2f} s of the main thread"
        print(f"{row['page']}: {spread} by the clock, {thread}, {row['bytes'] / 2**20:.1f} MiB")
    print(f"Below {LIMIT:g} s: {'yes' if rows[0]['seconds'] < LIMIT else 'NO'}")
    write("page_opening", rows, limit=LIMIT, rounds=ROUNDS)


if __name__ == "__main__":
    main()
