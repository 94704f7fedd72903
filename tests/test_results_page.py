"""`docs/results.md` and its figures are those of the kept results, and every listed claim has its verdict there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from asymlora.errors import DataError
from asymlora.papers import catalogue
from asymlora.reproduce.kept_results import KEPT, read_kept
from asymlora.reproduce.results_page import drawn_from

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "experiments" / "results", ROOT / "docs"
NAMES = [name for name in catalogue.NAMES if (RESULTS / name / KEPT).is_file()]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import results_page

    return results_page


def test_the_page_is_what_the_script_writes_from_the_kept_results(script: Any) -> None:
    there = (DOCS / "results.md").is_file()
    assert script.page() == ((DOCS / "results.md").read_text(encoding="utf-8") if there else None)
    assert ("- results.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")) == there


def test_every_claim_of_what_was_run_has_its_verdict_on_the_page() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8") if NAMES else ""
    for name in NAMES:
        findings = read_kept(RESULTS / name).findings
        for claim in catalogue.find(name).claims:
            assert f"`{claim.key}`: **{findings[claim.key].verdict}**" in page, (name, claim.key)


def test_results_that_the_page_would_not_show_are_refused(script: Any, tmp_path: Path) -> None:
    (tmp_path / f"{catalogue.NAMES[0]}-paper").mkdir()
    (tmp_path / f"{catalogue.NAMES[0]}-paper" / KEPT).write_text("{}")
    with pytest.raises(DataError, match=rf"that the page does not show: {catalogue.NAMES[0]}-paper"):
        script.page(tmp_path)


def test_figures_are_those_of_the_kept_records() -> None:
    drawn = {file.stem.removeprefix("results_"): drawn_from(file) for file in (DOCS / "figures").glob("results_*.svg")}
    assert drawn == {name: read_kept(RESULTS / name).digest for name in NAMES}


def test_links_within_the_page_lead_to_its_headings() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8") if NAMES else ""
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) == set(NAMES)
