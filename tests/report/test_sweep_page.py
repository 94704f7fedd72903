from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import replace

import pytest

import small_sweep
from asymlora.errors import DataError
from asymlora.report.sweep_page import inert_json, sweep_page
from asymlora.sweep.sweep_folder import read_sweep

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def page() -> str:
    return sweep_page([small_sweep.records()], command="asymlora report sweeps/made-up")


def scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)


def embedded(page: str) -> dict[str, object]:
    (text,) = re.findall(r'<script type="application/json" id="records">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)


def test_the_page_is_whole_and_names_nothing_outside(page: str) -> None:
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    plotly, *own = scripts(page)
    assert len(own) == 3
    rest = page.replace(plotly, "")
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?(?:https?:)?//", rest)
    assert page.count('<meta name="generator" content="asymlora"') == 1  # by which a report is known
    assert "@import" not in rest
    assert "url(" not in rest


def test_its_policy_allows_the_scripts_that_it_carries_and_nothing_else(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert allowed == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts(page)]
    assert policy.startswith("default-src 'none';")
    assert "'unsafe-eval'" not in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_it_says_what_was_found_and_where_everything_comes_from(page: str) -> None:
    records = small_sweep.records()
    assert records.summary is not None
    text = re.sub(r"<[^>]+>", "", page).replace("&#39;", "'")
    for sentence in (records.summary["answer"], *records.summary["notes"], "asymlora report sweeps/made-up"):
        assert sentence in text
    for words in ("From runs 1-36 of runs.jsonl (tuning) in made-up", "runs 37-54 of runs.jsonl (closing) in made-up",
                  "1,836 rows of similarity.jsonl", "embedded:minilm-l6", "3.11.9"):  # fmt: skip
        assert words in text, words
    assert all(run.id in text for run in records.rows)


def test_its_recipe_can_be_typed_again() -> None:
    import yaml

    awkward = {"train": {"lr": 1e-5}, "adapter": {"rank_pattern": {"*.q: 1": 4, "0": 2}}, "text": "-1", "no": "yes"}
    page = sweep_page([small_sweep.records(recipe=awkward)], command="x")
    (shown,) = re.findall(r"start from</summary><pre>(.*?)</pre>", page, flags=re.DOTALL)
    assert yaml.safe_load(html.unescape(shown)) == awkward


def test_a_seed_that_chose_the_rate_is_not_called_fresh(page: str) -> None:
    assert "none of them chose the rate" in page
    rows = small_sweep.rows(tuning_seeds=(0, 1))
    shared = sweep_page([small_sweep.records(rows, tuning_seeds=[0, 1])], command="x")
    assert "some of them chose the rate too" in shared
    closing = [row for row in rows if row.phase == "closing"]
    assert "the rate was not tuned" in sweep_page([small_sweep.records(closing)], command="x")


def test_verdicts_are_whole_with_their_first_sentence_in_bold(page: str) -> None:
    summary = small_sweep.records().summary
    assert summary is not None
    said = [re.sub(r"<[^>]+>", "", item) for item in re.findall(r"<li><strong>.*?</li>", page)]
    assert said == summary["verdicts"]
    assert "<li><strong>init_a and init_b: not decided.</strong>" in page


def test_tables_are_there_without_any_script(page: str) -> None:
    still = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<noscript>" in still
    for cell in ("init_a", "init_b", "b_only"):
        assert f'<td class="w">{cell}</td>' in still


def test_every_figure_has_words_buttons_and_its_records(page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 6
    for figure in figures:
        assert 'role="img" aria-label="' in figure
        assert 'data-save="svg"' in figure
        assert 'data-save="csv"' in figure
        assert ".jsonl" in figure


def test_the_page_embeds_exactly_the_runs(page: str) -> None:
    (sweep,) = embedded(page)["sweeps"]  # type: ignore[misc]
    assert [run["v"] for run in sweep["runs"] if "v" in run] == [
        row.validation for row in small_sweep.rows() if row.validation is not None
    ]


def test_names_and_errors_from_outside_stay_text() -> None:
    rows = [replace(row, error=HOSTILE) for row in small_sweep.rows(arms=(HOSTILE, "b_only"))]
    page = sweep_page([small_sweep.records(rows, name=HOSTILE, arms=(HOSTILE, "b_only"))], command=HOSTILE)
    assert HOSTILE not in page
    assert "<img" not in page.replace(scripts(page)[0], "")
    assert len(scripts(page)) == 4
    (sweep,) = embedded(page)["sweeps"]  # type: ignore[misc]
    assert sweep["name"] == HOSTILE


def test_json_in_the_page_reads_back_and_holds_no_markup() -> None:
    value = {"name": "</script><!-- & \u2028 '\"", "numbers": [1.5, None]}
    text = inert_json(value)
    assert json.loads(text) == value
    assert not re.search(r"[<>&\u2028]", text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        inert_json([float("nan")])


def test_several_folders_share_a_page_and_two_of_one_name_are_told_apart() -> None:
    one = small_sweep.records(small_sweep.rows(arms=("init_a",)), arms=("init_a",))
    page = sweep_page([one, one], command="x")
    assert [sweep["name"] for sweep in embedded(page)["sweeps"]] == ["made-up", "made-up (2)"]  # type: ignore[union-attr]
    assert page.count("<h1") == 2


def test_a_sweep_that_has_just_begun_has_a_page() -> None:
    page = sweep_page([small_sweep.records([])], command="x")
    assert "not finished" in page
    assert "From nothing yet in made-up" in page
    assert 'id="figure-similarity"' not in page


def test_before_closing_runs_curves_are_of_tuning_runs() -> None:
    tuning = [row for row in small_sweep.rows() if row.phase == "tuning"]
    page = sweep_page([small_sweep.records(tuning)], command="x")
    curves = page[page.index('id="figure-curves"') :]
    assert "From runs 1-36 of runs.jsonl (tuning)" in curves[: curves.index("</figure>")]


def test_runs_that_were_never_tuned_are_shown_by_their_closing_runs() -> None:
    closing = [row for row in small_sweep.rows(arms=("init_a",)) if row.phase == "closing"]
    page = sweep_page([small_sweep.records(closing, arms=("init_a",))], command="x")
    metric = page[page.index('id="figure-metric"') :]
    assert "From runs 1-6 of runs.jsonl (closing)" in metric[: metric.index("</figure>")]


def test_without_a_sweep_there_is_no_page() -> None:
    with pytest.raises(DataError, match="at least one folder"):
        sweep_page([], command="x")


def test_a_folder_on_disk_gives_the_same_page_as_its_records(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = small_sweep.write_folder(tmp_path_factory.mktemp("sweeps") / "made-up")
    read = read_sweep(folder)
    made = small_sweep.records()
    assert read.summary is None
    assert sweep_page([replace(read, summary=made.summary)], command="x") == sweep_page([made], command="x")
