"""Write `docs/results.md`, a page for each artefact, and figures from the kept results; a test holds them to these.

Plain: the pages and the figures whose records have changed. `--judge` judges the kept records again first, where claims
or their tests have changed since. `--figures` draws all figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from asymlora.errors import AsymloraError, DataError
from asymlora.papers import catalogue
from asymlora.papers.what_was_right import PAPERS
from asymlora.reproduce.kept_results import KEPT, judge_again
from asymlora.reproduce.results_page import PAGE, drawn_from, pages, read_entries, save_figure
from asymlora.reproduce.results_sections import PAGES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"


def written(results: Path = RESULTS) -> Mapping[str, str]:
    """Return the pages that belong to kept results, by path below `docs`; none where nothing is kept.

    Args:
        results: Folder with a folder for each artefact.
    """
    kept = _kept_names(results)
    entries = read_entries(map(catalogue.find, kept), results)
    not_run = [name for name in catalogue.NAMES if name not in kept]
    return pages(entries, papers=PAPERS, not_run=not_run) if entries else {}


def _kept_names(results: Path) -> list[str]:
    there = {path.parent.name for path in results.glob(f"*/{KEPT}")}
    if others := sorted(there - set(catalogue.NAMES)):
        raise DataError(
            f"{results} holds results that the page does not show: {', '.join(others)}. It shows those of the artefacts"
            " at the small scale; keep others in another folder."
        )
    return [name for name in catalogue.NAMES if name in there]


def main() -> None:
    """Read what is asked for, and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", action="store_true", help="judge the kept records by the claims as they are now")
    parser.add_argument("--figures", action="store_true", help="draw every figure, not only those of changed records")
    options = parser.parse_args()
    try:
        write(judge=options.judge, figures=options.figures)
    except AsymloraError as error:
        sys.exit(str(error))


def write(*, judge: bool, figures: bool) -> None:
    """Judge where that is asked for, draw, and write.

    Args:
        judge: Whether the kept records are judged again.
        figures: Whether every figure is drawn.
    """
    kept = [catalogue.find(name) for name in _kept_names(RESULTS)]
    for artefact in kept if judge else ():
        judge_again(artefact, RESULTS / artefact.name)
    for entry in read_entries(kept, RESULTS):
        if figures or drawn_from(FIGURES / entry.figure) != entry.kept.digest:
            print(save_figure(entry, FIGURES))
    texts = written()
    if not texts:
        print("There are no kept results yet: asymlora reproduce NAME --keep experiments/results.")
        return
    (DOCS / PAGES).mkdir(exist_ok=True)
    for path, text in texts.items():
        (DOCS / path).write_text(text, encoding="utf-8")
    print(DOCS / PAGE)


if __name__ == "__main__":
    main()
