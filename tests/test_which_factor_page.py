"""`docs/which_factor.md` is what the kept findings say; every answer on it has its findings below it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from asymlora.papers import catalogue
from asymlora.papers.which_factor import COMMAND, GUIDE
from asymlora.reproduce.factor_guide import read_backings

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "experiments" / "results", ROOT / "docs" / "which_factor.md"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import which_factor_page

    return which_factor_page


def test_the_page_is_what_the_script_writes_from_the_kept_findings(script: Any) -> None:
    assert script.page() == (PAGE.read_text(encoding="utf-8") if PAGE.is_file() else None)


def test_the_page_and_its_place_in_the_menu_are_there_or_not_together() -> None:
    assert ("- which_factor.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")) == PAGE.is_file()


def test_without_kept_findings_there_is_no_page(script: Any, tmp_path: Path) -> None:
    assert script.page(tmp_path) is None


def test_what_stands_on_the_page_is_named_by_its_script(script: Any) -> None:
    assert f"python experiments/{Path(script.__file__).name}" == COMMAND


def test_every_answer_has_a_finding_below_it(script: Any) -> None:
    kept = read_backings(catalogue.every(), RESULTS)
    text = script.page() or ""
    for question in GUIDE.questions if text else ():
        below = text.split(f"## {question.title}\n")[1].split("\n## ")[0]
        assert bool(re.search(r"\| \*\*(holds|fails|undecided|not testable here)\*\* \|", below)) == any(
            name in kept for name in question.asks
        )
