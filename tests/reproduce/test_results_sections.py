from __future__ import annotations

from dataclasses import replace

import pytest

from asymlora.reproduce.artefact import Scale
from asymlora.reproduce.kept_results import keep, read_kept
from asymlora.reproduce.remarks import read_remarks
from asymlora.reproduce.results_sections import Entry, artefact_page, core_seconds, plain
from reproduce.made_artefact import ARTEFACT, NAME, REMARKS, SCALE, TYPED, run_folder


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    target = tmp_path_factory.mktemp("results") / NAME
    keep(ARTEFACT, "small", run_folder(tmp_path_factory.mktemp("run") / "x"), target, command=TYPED)
    (target / "remarks.yaml").write_text(REMARKS)
    kept = read_kept(target)
    return Entry(artefact=ARTEFACT, kept=kept, remarks=read_remarks(target, kept.findings))


def _text(entry: Entry) -> str:
    return artefact_page(entry)


def test_what_was_run_is_told(entry: Entry) -> None:
    text = _text(entry)
    for said in (
        "# made_up", "**A made-up table** (Nobody, 2026).", "That A &#124; B.", "- Model: MiniLM.",
        "- Scale: small; `task`: 24 runs, `toy`: 6 measurements at 2 points.",
        "0.6 minutes of two cores (stated beforehand: 3), from 2026-11-29 to 2026-11-30; the largest process held 1.0"
        " GiB.",
        "Linux x86_64, 2 processors, no accelerator; Python 3.11.7, asymlora 0.1, torch 2.6.",
        "- In a later session (first / later): cpus: 2 / 4.", f"```\n{TYPED}\n```",
        "![A made-up table](../figures/results_made_up.svg)",
    ):  # fmt: skip
        assert said in text


def test_every_claim_has_its_verdict_test_and_numbers(entry: Entry) -> None:
    text = _text(entry)
    for claim, found in entry.claims:
        assert f"`{claim.key}`: **{found.verdict}**" in text
        assert f"- Ours: {plain(found.ours).rstrip('.')}." in text
    (numbers,) = [line for line in text.splitlines() if line.startswith("| `ahead` |")]
    cells = [cell.strip() for cell in numbers.strip("|").split("|")]
    found = entry.kept.findings["ahead"]
    assert cells[:3] == ["`ahead`", "**holds**", "abstract"]
    assert cells[3] == f"{found.estimate:.3g}"
    assert cells[5:7] == ["0.031", "6"]
    assert "Paper: 90.69 against 89.47." in text
    assert text.count("- Test, stated before the runs: a test.") == 4


def test_a_remark_stands_below_its_claim(entry: Entry) -> None:
    below = _text(entry).split("`shown`: **undecided**")[1].split("\n\n")[1]
    assert "- Explanation: Two seeds only." in below
    assert "- What would decide it: Six seeds." in below
    assert _text(entry).count("- Explanation:") == 1


def test_settings_data_cuts_and_the_command_are_told(entry: Entry) -> None:
    text = _text(entry)
    assert "| steps | unknown | 64 | two cores |" in text
    assert "| TREC-6 | github.com/x/y | `text/trec6` |" in text
    assert "- ranks above 8" in text
    again = "asymlora reproduce made_up --data-root FOLDER --out reproductions/made_up-again"
    assert f"{again} --against experiments/results" in text


def test_what_an_artefact_has_not_is_left_out(entry: Entry) -> None:
    bare = Scale(parts=SCALE.parts, minutes=None, memory_gib=None, data=(), settings=())
    kept = replace(entry.kept, stated={})
    text = _text(replace(entry, kept=kept, artefact=replace(ARTEFACT, small=bare)))
    for head in ("- Model", "## Data", "## Settings", "Cut to fit", "stated beforehand"):
        assert head not in text
    assert "asymlora reproduce made_up --out" in text


def test_a_test_that_is_another_than_was_stated_is_told(entry: Entry) -> None:
    stated = {"minutes": 2.0, "tests": {"ahead": "an older test", "smaller": "a test"}}
    text = _text(replace(entry, kept=replace(entry.kept, stated=stated)))
    assert "- Test, changed since the runs: a test.\n- Test, as it was stated before them: an older test." in text
    assert text.count("- Test, stated before the runs: a test.") == 1
    assert text.count("- Test, which was not noted before the runs: a test.") == 2
    assert "(stated beforehand: 2; the artefact says 3 now)" in text


def test_the_look_that_decided_is_told_where_there_were_two(entry: Entry) -> None:
    decided = {"ahead": "first", "smaller": "second"}
    assert "- Decided at the" not in _text(replace(entry, kept=replace(entry.kept, decided=decided)))
    text = _text(replace(entry, kept=replace(entry.kept, decided=decided, second_look=["task"])))
    assert [text.count(f"- Decided at the {look} look.") for look in ("first", "second")] == [1, 1]


def test_runs_count_their_threads_and_measurements_all(entry: Entry) -> None:
    assert core_seconds(entry.kept) == pytest.approx(24 * 2.75 * 1 + 2.46912 * 2)


def test_a_second_look_is_told(entry: Entry) -> None:
    text = _text(replace(entry, kept=replace(entry.kept, second_look=["task"])))
    assert "- Undecided after six paired seeds, so gone on with to ten: `task`." in text
