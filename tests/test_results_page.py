"""`docs/results.md`, its pages and figures are those of the kept results, and every listed claim has its verdict."""

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


def _texts() -> dict[str, str]:
    there = [file for file in (DOCS / "results.md", *(DOCS / "results").glob("*")) if file.is_file()]
    return {file.relative_to(DOCS).as_posix(): file.read_text(encoding="utf-8") for file in there}


def test_the_pages_are_what_the_script_writes_from_the_kept_results(script: Any) -> None:
    texts = _texts()
    assert script.written() == texts
    shown = re.findall(r"^ +- (results[/.].*)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert shown == [path for path in ("results.md", *(f"results/{name}.md" for name in NAMES)) if path in texts]


def test_every_claim_of_what_was_run_has_its_verdict_on_the_page() -> None:
    for name in NAMES:
        page = (DOCS / "results" / f"{name}.md").read_text(encoding="utf-8")
        findings = read_kept(RESULTS / name).findings
        for claim in catalogue.find(name).claims:
            assert f"`{claim.key}`: **{findings[claim.key].verdict}**" in page, (name, claim.key)


def test_results_that_the_page_would_not_show_are_refused(script: Any, tmp_path: Path) -> None:
    (tmp_path / f"{catalogue.NAMES[0]}-paper").mkdir()
    (tmp_path / f"{catalogue.NAMES[0]}-paper" / KEPT).write_text("{}")
    with pytest.raises(DataError, match=rf"that the page does not show: {catalogue.NAMES[0]}-paper"):
        script.written(tmp_path)


def test_figures_are_those_of_the_kept_records() -> None:
    drawn = {file.stem.removeprefix("results_"): drawn_from(file) for file in (DOCS / "figures").glob("results_*.svg")}
    assert drawn == {name: read_kept(RESULTS / name).digest for name in NAMES}


def test_links_lead_to_the_pages() -> None:
    texts = _texts()
    assert set(re.findall(r"\]\((results/[^)]+)\)", texts.get("results.md", ""))) == set(texts) - {"results.md"}
