from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asymlora.errors import DataError, SpecError
from asymlora.reproduce.by_paper import Paper
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.kept_results import keep
from asymlora.reproduce.plain_findings import all_of
from asymlora.reproduce.results_page import PAGE, drawn_from, pages, read_entries, save_figure
from asymlora.reproduce.results_sections import Entry
from reproduce.made_artefact import ARTEFACT, NAME, REMARKS, TYPED, run_folder


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("once")
    keep(ARTEFACT, "small", run_folder(path / "run"), path / "results" / NAME, command=TYPED)
    (path / "results" / NAME / "remarks.yaml").write_text(REMARKS)
    return path / "results"


@pytest.fixture
def results(tmp_path: Path, once: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "results"))


def _overview(entries: Sequence[Entry], **options: Any) -> str:
    return pages(entries, **options)[PAGE]


def _rows(page: str, heading: str) -> list[list[str]]:
    lines = [line for line in page.split(heading)[1].split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_begins_with_counts_and_every_claim(results: Path) -> None:
    page = _overview(read_entries([ARTEFACT], results), not_run=["other"])
    assert "4 claims of 1 artefact, 1 minute of two cores: 2 hold, 0 fail, 1 undecided, 1 not testable here." in page
    assert "Not run yet: `other`." in page
    assert "These levels are for each claim" in page
    assert "not finished" not in page
    table = _rows(page, "## All claims")
    assert table[:3] == [
        ["paper", "claims from", "holds", "fails", "undecided", "not testable here"],
        ["Beyond the papers", "the paper's abstract", "1", "0", "0", "0"],
        ["Beyond the papers", "elsewhere in the paper", "1", "0", "1", "1"],
    ]
    assert table[3] == ["artefact", "claim", "paper", "ours", "test", "verdict"]
    assert [row[-1] for row in table[4:]] == ["**holds**", "**holds**", "**undecided**", "**not testable here**"]
    assert table[4][:3] == ["[made_up](results/made_up.md)", "Init[A] is better.", "90.69 against 89.47"]
    assert table[4][4] == "p 0.031, 6 pairs"
    assert [row[4] for row in table[5:]] == ["as stated", "2 pairs, no test", "-"]
    assert table[5][1:3] == ["Wider layers take smaller rates: &#124;r&#124; &lt; 1.", "-"]


def test_what_the_abstract_says_stands_by_itself(results: Path) -> None:
    page = _overview(read_entries([ARTEFACT], results)).split("Figures, settings")[0]
    rows = _rows(page, "What the abstract says")
    assert [row[:2] for row in rows[1:]] == [["Init[A] is better.", "**holds**"]]


def test_the_table_of_all_claims_comes_first_and_each_paper_has_its_section(results: Path) -> None:
    (entry,) = read_entries([ARTEFACT], results)
    first, second = (
        replace(entry, artefact=replace(ARTEFACT, name=name, source=f"Somebody, arXiv:{number}, section 4"))
        for name, number in (("one", "2406.08447"), ("two", "2402.16842"))
    )
    paper = Paper(arxiv="2402.16842", name="Zhu et al. 2024", title="Asymmetry")
    page = _overview([first, entry, second], papers=[paper])
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "# The papers' claims, judged", "## All claims", "## What the papers got right", "## How they were judged",
        "## arXiv:2406.08447", "## Zhu et al. 2024: Asymmetry", "## Beyond the papers",
    ]  # fmt: skip
    below = page.split("## arXiv:2406.08447")[1]
    assert re.findall(r"^\| \[(\w+)\]\(results/\1\.md\) \| A made-up table", below, re.MULTILINE) == [
        "one",
        "two",
        "made_up",
    ]
    right = page.split("## What the papers got right")[1].split("\n## ")[0]
    assert "**Zhu et al. 2024.** Of its 4 claims here 3 could be tested" in right
    assert list(pages([first, entry, second])) == [PAGE, "results/one.md", "results/made_up.md", "results/two.md"]


def test_the_same_results_give_the_same_text(results: Path) -> None:
    first, second = (_overview(read_entries([ARTEFACT], results)) for _ in range(2))
    assert first == second
    assert first.endswith("\n")
    assert not first.endswith("\n\n")


def test_artefacts_without_results_are_passed_over(tmp_path: Path) -> None:
    assert read_entries([ARTEFACT], tmp_path) == []


def test_one_of_each_verdict_is_one_that_holds_or_fails(results: Path) -> None:
    (entry,) = read_entries([ARTEFACT], results)
    findings = {**entry.kept.findings, "smaller": Finding(verdict="fails", ours="x")}
    page = _overview([replace(entry, kept=replace(entry.kept, findings=findings))])
    assert "1 holds, 1 fails, 1 undecided, 1 not testable here." in page


def test_results_of_a_run_that_was_not_finished_say_so(results: Path) -> None:
    (entry,) = read_entries([ARTEFACT], results)
    page = _overview([replace(entry, kept=replace(entry.kept, finished=False))])
    assert "Begun and not finished, so that verdicts may change: `made_up`." in page
    page = pages([replace(entry, kept=replace(entry.kept, finished=False))])["results/made_up.md"]
    assert "- **Not finished**: not all that the artefact asks for has been run." in page


def test_a_claim_of_several_tests_shows_what_came_of_each(results: Path) -> None:
    (entry,) = read_entries([ARTEFACT], results)
    first = Finding(verdict="holds", ours="Mean 1 point, p 0.031.", estimate=0.01, p=0.03125, pairs=6)
    joined = all_of(
        {"SST-2": first, "RTE": replace(first, verdict="fails", ours="Mean -2 points, p 0.031.", estimate=-0.02)}
    )
    kept = replace(entry.kept, findings={**entry.kept.findings, "smaller": joined})
    row = _rows(_overview([replace(entry, kept=kept)]), "## All claims")[5]
    assert row[3:] == ["Holds: SST-2 (0.01). Fails: RTE (-0.02).", "2 tests", "**fails**"]


def test_a_figure_without_its_records_is_an_error_that_says_so(results: Path, tmp_path: Path) -> None:
    def figure(evidence: Evidence) -> None:
        evidence.sweep("gone")

    (entry,) = read_entries([replace(ARTEFACT, figure=figure)], results)
    with pytest.raises(DataError, match=r"figure of made_up cannot be drawn: its kept records lack gone\."):
        save_figure(entry, tmp_path)


def test_a_claim_without_a_needed_remark_is_refused(results: Path) -> None:
    (results / NAME / "remarks.yaml").unlink()
    with pytest.raises(SpecError, match=r"says nothing of shown, which fail or are undecided"):
        read_entries([ARTEFACT], results)


def test_findings_of_other_claims_are_refused(results: Path) -> None:
    fewer = replace(ARTEFACT, claims=ARTEFACT.claims[1:])
    with pytest.raises(SpecError, match=r"other claims than made_up has now \(ahead\).*--judge"):
        read_entries([fewer], results)


def test_a_figure_that_is_not_there_was_drawn_from_nothing(tmp_path: Path) -> None:
    assert drawn_from(tmp_path / "x.svg") is None
    (tmp_path / "x.svg").write_text("<svg></svg>")
    assert drawn_from(tmp_path / "x.svg") is None


def test_a_figure_is_that_of_the_kept_records_and_says_so(results: Path, tmp_path: Path) -> None:
    drawn_of: list[Evidence] = []

    def figure(evidence: Evidence) -> SimpleNamespace:
        drawn_of.append(evidence)
        return SimpleNamespace(svg=lambda: "<svg>δ1</svg>\n".encode())

    (entry,) = read_entries([replace(ARTEFACT, figure=figure)], results)
    drawn = save_figure(entry, tmp_path)
    assert drawn_of == [entry.kept.evidence]
    assert drawn.name == "results_made_up.svg"
    assert drawn.read_text(encoding="utf-8").startswith("<svg>δ1</svg>\n<!-- drawn from records")
    assert drawn_from(drawn) == entry.kept.digest
