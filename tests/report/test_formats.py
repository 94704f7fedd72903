from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import small_sweep
from asymlora.report.formats import Analysed, csv_text, escaped, flat, json_text, markdown
from asymlora.sweep.analysis import analyse
from asymlora.sweep.run_folders import read_results
from asymlora.sweep.run_record import RunRow
from asymlora.train.recipe import Recipe
from small_run import write_run


def analysed(*paths: Path) -> list[Analysed]:
    return [Analysed(found, analyse(found.plan, found.rows, resamples=99).to_dict()) for found in read_results(paths)]


@pytest.fixture
def results(tmp_path: Path) -> list[Analysed]:
    return analysed(small_sweep.write_folder(tmp_path / "sweep"))


def _tables(text: str) -> dict[str, list[list[str]]]:
    """The tables of a Markdown text by their headings, a list of cells a line."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| "):
            found.setdefault(heading, []).append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_holds_everything_and_rows_come_back(results: list[Analysed]) -> None:
    content = json.loads(json_text(results, command="asymlora report sweep"))
    assert (content["kind"], content["command"]) == ("asymlora report", "asymlora report sweep")
    (found,) = content["results"]
    assert (found["name"], found["plan"], found["environment"]) == (
        "sweep", json.loads(json.dumps(small_sweep.plan())), small_sweep.environment(),
    )  # fmt: skip
    assert [RunRow.from_dict(row).id for row in found["rows"]] == [row.id for row in small_sweep.rows()]
    assert found["rows"][0]["losses"] == small_sweep.rows()[0].losses
    assert found["summary"] == results[0].summary
    assert len(found["similarity"]) == len(small_sweep.similarity(small_sweep.rows()))


# --- CSV -------------------------------------------------------------------------------------------------------------


def _csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_line_a_run_with_its_metrics_and_its_recipe(results: list[Analysed]) -> None:
    lines, rows = _csv_rows(csv_text(results)), small_sweep.rows()
    assert [line["id"] for line in lines] == [row.id for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert (line["folder"], line["arm"], line["status"]) == ("sweep", row.arm, row.status)
        assert float(line["lr"]) == row.lr == float(line["recipe.train.lr"])
        assert line["validation"] == ("" if row.validation is None else repr(row.validation))
        assert line["test.accuracy"] == ("" if row.test is None else repr(row.test["accuracy"]))
        assert json.loads(line["health"]) == list(row.health)
    assert lines[0]["greater_is_better"] == "true"
    assert json.loads(lines[0]["recipe.adapter.rank_pattern"]) == {}
    assert not {"losses", "scores", "dynamics"} & set(lines[0])


def test_csv_of_folders_of_both_kinds_has_one_head(tmp_path: Path) -> None:
    axes = small_sweep.rows(arms=("init_a",), ranks=(4, 8))
    sweep = small_sweep.write_folder(tmp_path / "sweep", axes, arms=("init_a",), axes={"adapter.rank": [4, 8]})
    lines = _csv_rows(csv_text(analysed(sweep, write_run(tmp_path / "run"))))
    assert {line["axes.adapter.rank"] for line in lines} == {"4", "8", ""}
    assert lines[-1]["folder"] == lines[-1]["arm"] == "run"
    assert lines[-1]["test.f1"] == "0.8"
    assert lines[0]["test.f1"] == ""


def test_csv_keeps_commas_quotes_and_lines_inside_a_cell(tmp_path: Path) -> None:
    name = 'a "quoted", arm\nof two lines'
    rows = [small_sweep.row(name, lr=1e-3, seed=0, phase="closing")]
    (line,) = _csv_rows(csv_text(analysed(small_sweep.write_folder(tmp_path / "sweep", rows, arms=(name,)))))
    assert line["arm"] == name


def test_csv_of_no_run_is_a_head_alone(tmp_path: Path) -> None:
    text = csv_text(analysed(small_sweep.write_folder(tmp_path / "begun", [])))
    assert text.startswith("folder,id,phase,arm,")  # as `asymlora report` knows its own files
    assert text.count("\n") == 1


def test_csv_holds_no_formula(tmp_path: Path) -> None:
    rows = [small_sweep.row("=1+1", lr=1e-3, seed=0, phase="closing")]
    (line,) = _csv_rows(csv_text(analysed(small_sweep.write_folder(tmp_path / "@sweep", rows, arms=("=1+1",)))))
    assert (line["folder"], line["arm"], line["lr"]) == ("'@sweep", "'=1+1", "0.001")


# --- Markdown --------------------------------------------------------------------------------------------------------


def test_markdown_has_the_tables_with_all_cells(results: list[Analysed]) -> None:
    text = markdown(results, command="asymlora report sweep --format md")
    tables = _tables(text)
    assert [len(rows) for rows in tables.values()] == [2 + 3, 2 + 3, 2 + 3, 2 + 3 * 6]
    assert all(len(row) == len(rows[0]) for rows in tables.values() for row in rows)
    assert [row[0] for row in next(iter(tables.values()))] == ["cell", "---", "init_a", "init_b", "b_only"]
    every = tables["Every rate that was tried"]
    found = small_sweep.quality("init_a", 1e-3, 100), small_sweep.quality("init_a", 1e-3, 101)
    assert ["init_a", "1e-3", "finished", f"{sum(found) / 2:.1%}"] in [row[:4] for row in every]
    assert every[-1][:3] == ["b_only", "3e-2", "finished"]
    assert ["init_b", "3e-2", "diverged", "-"] in [row[:4] for row in every]


def test_markdown_says_where_its_figures_come_from(results: list[Analysed]) -> None:
    text = markdown(results, command="asymlora report sweep")
    (said,) = [escaped(sentence) for sentence in results[0].summary["verdicts"][:1]]
    assert f"- {said}" in text
    assert f"{len(small_sweep.rows())} rows of `runs.jsonl`." in text
    assert '- packages.torch: "2.6.0"' in text
    assert "with `asymlora report sweep`" in text
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert recipe.strip() == Recipe().to_yaml().strip()
    assert "has not ended" not in text


def test_markdown_of_an_unfinished_sweep_says_so(tmp_path: Path) -> None:
    some = small_sweep.rows()[:5]
    text = markdown(analysed(small_sweep.write_folder(tmp_path / "begun", some)), command="")
    assert "This sweep has not ended: what follows goes as far as it went." in text
    nothing = markdown(analysed(small_sweep.write_folder(tmp_path / "empty", [])), command="")
    assert "No run has ended." in nothing


def test_markdown_of_a_run_has_no_table_of_rates(tmp_path: Path) -> None:
    text = markdown(analysed(write_run(tmp_path / "run")), command="")
    assert "# run" in text
    assert "One run." in text
    assert len(_tables(text)) == 2


def test_names_are_no_markup(tmp_path: Path) -> None:
    name = "a|b <script>alert(1)</script> `x` *y* [z](u)"
    rows = [small_sweep.row(name, lr=1e-3, seed=seed, phase="closing") for seed in (0, 1)]
    text = markdown(analysed(small_sweep.write_folder(tmp_path / "sweep", rows, arms=(name,))), command="a`b`")
    assert "<script" not in text.replace("\\<script", "")
    first = next(iter(_tables(text).values()))
    assert all(len(row) == len(first[0]) for row in first)
    assert first[2][0] == r"a\|b \<script\>alert(1)\</script\> \`x\` \*y\* \[z\](u)"
    assert "with `a'b'`" in text


def test_a_recipe_does_not_end_its_own_block(results: list[Analysed]) -> None:
    import yaml

    (records, summary), template = results[0], "```` <script>\n"
    plan = {**records.plan, "recipe": {"template": template}}
    text = markdown([Analysed(replace(records, plan=plan), summary)], command="")
    (recipe,) = re.findall(r"^`````yaml\n(.*?)^`````$", text, re.DOTALL | re.MULTILINE)
    assert yaml.safe_load(recipe) == {"template": template}


def test_text_that_needs_no_escape_is_left_alone() -> None:
    assert escaped("b_only, train.batch_size 16") == "b_only, train.batch_size 16"
    assert escaped("two\nlines") == "two lines"
    assert escaped("_emphasis_") == r"\_emphasis\_"


def test_flat_names_are_dotted_to_the_leaves() -> None:
    assert flat({}) == {}
    assert flat({"a": {"b": {"c": 1}}}, "x.") == {"x.a.b.c": 1}
