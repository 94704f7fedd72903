"""`docs/diagnostics.md`: its example runs, its tables are those of the code and of the stored results."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from asymlora.diagnostics import health, model_checks
from asymlora.diagnostics.dynamics import FeatureDynamics

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
PLAIN = " ".join(PAGE.split())


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import factor_figures

    return factor_figures


def _first_column(heading: str) -> list[str]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def test_the_example_runs_and_its_rows_have_the_fields_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code, names)
    dynamics = names["dynamics"]
    assert isinstance(dynamics, FeatureDynamics)
    assert sorted({row["step"] for row in dynamics.records}) == [1, 2, 3, 20, 40, 60]
    assert capsys.readouterr().out.splitlines()[0].startswith("60 0 ")
    fields = _first_column("What is measured")
    assert len(fields) >= 15
    assert set(fields) <= set(dynamics.records[0])


def test_every_verdict_has_its_row_and_every_row_its_verdict() -> None:
    source = Path(model_checks.__file__).read_text(encoding="utf-8")
    of_models = set(re.findall(r'^\s+"([a-z_]+)",$', source, flags=re.MULTILINE))
    told = _first_column("When something is wrong")
    assert len(told) == len(set(told))
    assert set(told) == {rule.name for rule in health.RULES} | of_models


def test_thresholds_are_those_of_the_code() -> None:
    assert "`n^(1/4)`" in PAGE
    assert health.GROWTH_EXPONENT == 1 / 4
    assert "`n^(-1/2)`" in PAGE
    assert health.EFFICIENCY_EXPONENT == -1 / 2
    assert f"below `n = {health.MIN_WIDTH}` it counts as {health.MIN_WIDTH}" in PLAIN
    assert "three at least" in PAGE
    assert health.MIN_STEPS == 3


def test_tables_of_the_experiments_are_what_their_script_prints_from_the_stored_results(figures: ModuleType) -> None:
    similarity = figures.read_records(figures.RESULTS / "factor_similarity.jsonl")
    made = [f(similarity) for f in (figures.similarity_table, figures.claims_table, figures.movement_table)]
    verdicts: dict[str, Any] = {}
    for model in figures.FULL:
        records = figures.read_records(figures.RESULTS / f"factor_dynamics_{model.lower()}.jsonl")
        made.append(figures.dynamics_table(records, model))
        verdicts[model] = records[-1][f"{model}, seed 0"]
    made.append(figures.expectations_table(verdicts))
    assert all(len(set(found)) == 6 for found in verdicts.values())
    for table in made:
        assert table.count("\n") >= 6
        assert table in PAGE


def test_what_the_texts_say_of_similarities_is_what_was_stored(figures: ModuleType) -> None:
    _, *records, found = figures.read_records(figures.RESULTS / "factor_similarity.jsonl")
    readme = " ".join((ROOT / "experiments" / "README.md").read_text(encoding="utf-8").split())
    assert f"Z12: {found['Z12']}." in PLAIN
    assert f"Z12: {found['Z12']}, in all six parts." in readme

    def mean(start: str, panel: str, letter: str) -> float:
        rows = [r for r in records if r["kind"] == "pair" and r["moment"] == "end"]
        return statistics.mean(r[f"sim_{letter}"] for r in rows if (r["start"], r["panel"]) == (start, panel))

    assert f"shared ({mean('standard', 'shared start', 'A'):.3f})" in readme
    within, across = (mean("standard", panel, "B") for panel in ("same task", "both other"))
    assert f"within a task ({within:.3f}) than across tasks ({across:.3f})" in readme
    reversed_B = mean("reversed", "shared start", "B")
    reversed_A = [mean("reversed", panel, "A") for panel in ("same task", "both other")]
    assert f"{reversed_B:.3f} for `B`, and {reversed_A[0]:.3f} against {reversed_A[1]:.3f} for `A`" in readme
    assert f"share little: {within:.2f} and {reversed_A[0]:.2f} where 1" in PLAIN
    moved = {
        start: max(r["moved"] for r in records if r.get("start") == start and "moved" in r)
        for start in found
        if start != "Z12" and start != "kind"
    }
    assert f"by {moved['standard']:.2f} of its norm at most, the reversed `B` by {moved['reversed']:.3f}" in readme
    assert [found[start]["task"]["p"] for start in moved] == pytest.approx([1 / 36] * 2, rel=1e-3)


def test_what_the_texts_say_of_the_courses_is_what_was_stored(figures: ModuleType) -> None:
    for model in figures.FULL:
        *records, verdict = figures.read_records(figures.RESULTS / f"factor_dynamics_{model.lower()}.jsonl")
        claims = verdict[f"{model}, seed 0"]
        assert [name for name, claim in claims.items() if not claim["holds"]] == ["internal"]
        assert 0.005 < 1 - claims["internal"]["LoRA+"] < 0.025  # "a hundredth or two"
        assert claims["internal"]["Init[A]"] > 1
        rows = [r for r in records if r["kind"] == "step" and r["quantile"] == "median"]
        assert all(r["delta2"] > r["delta1"] for r in rows if r["arm"] in ("Init[A]", "LoRA+"))
        assert all(r["delta1"] > 100 * r["delta2"] for r in rows if r["arm"] == "Init[B]")


def test_figures_of_the_page_are_there_and_draw_what_was_stored(figures: ModuleType) -> None:
    named = re.findall(r"\]\((figures/factor_\w+\.svg)\)", PAGE)
    assert len(named) == 4
    assert all((ROOT / "docs" / name).stat().st_size < 200_000 for name in named)
    records = figures.read_records(figures.RESULTS / "factor_similarity.jsonl")
    drawn = figures.similarity_map(records, "standard").plotly.data[0]
    assert len(drawn.x) == 6
    assert len(drawn.y) == 36
    assert all(value is not None and 0 <= value <= 1 for row in drawn.z for value in row)


def test_a_panel_of_the_courses_leaves_out_what_is_exactly_zero_and_keeps_the_colours(figures: ModuleType) -> None:
    rows = [
        {"kind": "step", "model": "net", "arm": arm, "seed": 0, "step": step, "quantile": quantile}
        | dict.fromkeys(figures.QUANTITIES, 0.1 * step)
        | ({"delta1": 0.0, "delta3": 0.0} if arm == "B alone" else {})
        for arm in figures.ARMS
        for step in (1, 2, 4)
        for quantile in (*figures.SPREAD, "largest")
    ]
    traces = figures.courses(rows, "net").plotly.data
    lines = [trace for trace in traces if not trace.fill]
    assert len(lines) == 3 * 4 + 2 * 3
    assert [trace.name for trace in lines if trace.showlegend] == list(figures.ARMS)
    colours = {name: {t.line.color for t in lines if t.name == name} for name in figures.ARMS}
    assert all(len(found) == 1 for found in colours.values())
    assert len(set(map(tuple, colours.values()))) == 4
    assert all(math.isclose(max(trace.y), 0.4) for trace in lines)


def test_what_the_texts_say_of_the_advice_is_what_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import advice_figures

    *records, verdict = advice_figures.read_records(advice_figures.RESULTS / "advised_rates.jsonl")
    advice = [r for r in records if r["kind"] == "advice"]
    assert advice_figures.reach_table(advice) in PAGE
    assert advice_figures.rates_table(verdict) in PAGE
    found = list(verdict["sets"].values())
    assert all(f["agrees"] and f["interior"] and f["octaves"] < 0 for f in found)
    assert all(abs(math.log2(2e-3 / f["best"])) < -f["octaves"] for f in found)  # the default is the nearer one
    readme = " ".join((ROOT / "experiments" / "README.md").read_text(encoding="utf-8").split())
    octaves, losses, seconds = ([f[name] for f in found] for name in ("octaves", "excess_loss", "seconds_of_advice"))
    assert f"interior: {-octaves[0]:.1f} and {-octaves[1]:.1f} octaves above" in readme
    assert f"costs {losses[0]:.3f} on TREC-6 and {losses[1]:.3f} on SST-2" in readme
    assert f"Advice took {seconds[0]:.0f} and {seconds[1]:.0f} s" in readme
    assert advice_figures.read_records(advice_figures.RESULTS / "advised_rates.jsonl")[0]["advising"]["rows"] == 1000
    assert {2.0 ** round(math.log2(f["advised"])) for f in found} == {2.0**-10}  # 9.8e-04
    runs = [r for r in records if r["kind"] == "run" and r["rate"] == found[0]["best"] == found[1]["best"]]
    apart = [abs(a["validation_loss"] - b["validation_loss"]) for a, b in (runs[:2], runs[2:])]
    assert f"the two seeds differ by {apart[0]:.3f} and {apart[1]:.3f}" in PLAIN
    assert losses[1] < apart[1]
    layers = [s for r in advice for s in r["sites"] if s["in_recipe"]]
    assert max(s["input_ratio"] for s in layers) < 100 < min(s["outputs"] for s in layers)


def test_the_cost_is_what_was_measured() -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "dynamics_overhead.json").read_text(encoding="utf-8"))
    assert (stored["every"], stored["environment"]["threads"]) == (20, 2)
    for row, trained in zip(stored["rows"], ("`B`", "`A` and `B`"), strict=True):
        middle, low, high = (100 * share for share in row["interval_adds"])
        cells = (
            trained,
            f"{row['plain_ms']:,.0f} ms",
            f"{row['measuring_ms']:.0f} ms",
            f"{abs(100 * row['counted_adds'][0]):.1f} %",
            f"{middle:.2f} % ({low:.2f} to {high:.2f} %)",
            f"{row['kept_bytes'] / 2**20:.1f} MiB",
        )
        assert f"| {' | '.join(cells)} |" in PAGE
        assert high < 100 * stored["limit"]
