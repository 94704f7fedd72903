"""The plans on GLUE, at both scales, and the figure."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.papers.hayou_glue import ARTEFACT, paper_parts, small_parts
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.forecasting import part_runs
from papers.made_sweeps import Behaviour, made

ROOT = Path("nowhere")
SMALL = {part.name: part for part in small_parts(ROOT)}


def test_it_loads_no_heavy_package() -> None:
    code = (
        "import sys, asymlora.papers.hayou_glue, asymlora.papers.hayou_loraplus, asymlora.papers.hayou_variance\n"
        "sys.exit(bool({'torch', 'transformers', 'plotly', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_small_scale_has_five_sets_and_rates_by_seed_on_one() -> None:
    counts = {name: (part_runs(part).first, part_runs(part).both) for name, part in SMALL.items()}
    # Two arms: 7 rates on 6 tuning seeds and 6 closing runs; 4 rates on 2 and 6. Then 10 and 10; 2 and 10.
    others = dict.fromkeys(("sst2", "cola", "mrpc", "rte"), (2 * (4 * 2 + 6), 2 * (4 * 2 + 10)))
    assert counts == {"trec6": (2 * (7 * 6 + 6), 2 * (7 * 10 + 10)), **others}
    assert [part.plan.recipe.data.metric for part in SMALL.values()] == ["accuracy"] * 2 + ["matthews"] + [
        "accuracy"
    ] * 2


def test_tuning_seeds_are_from_200_on_and_closing_seeds_from_0_on() -> None:
    first, second = SMALL["trec6"].plan, SMALL["trec6"].second
    assert second is not None
    assert (first.tuning_seeds, first.closing_seeds) == (tuple(range(200, 206)), tuple(range(6)))
    assert (second.tuning_seeds, second.closing_seeds) == (tuple(range(200, 210)), tuple(range(10)))
    assert SMALL["rte"].plan.tuning_seeds == (200, 201)


def test_the_papers_scale_is_roberta_large_on_four_sets_for_ten_epochs() -> None:
    plans = {part.name: part.plan for part in paper_parts(ROOT)}
    assert {name: plan.recipe.train.steps for name, plan in plans.items()} == {
        "mnli": 785_400,
        "sst2": 134_690,
        "qnli": 209_480,
        "qqp": 727_690,
    }
    assert {plan.recipe.model.name for plan in plans.values()} == {"FacebookAI/roberta-large"}
    assert plans["sst2"].recipe.data.text_pair is None
    assert (plans["qqp"].recipe.data.subset, plans["qqp"].recipe.data.text_pair) == ("qqp", "question2")
    assert all({1e-5, 8e-5} < set(plan.rates) for plan in plans.values())


def test_nothing_is_judged_without_records() -> None:
    verdicts = {claim.finding(Evidence()).verdict for claim in ARTEFACT.claims if claim.key not in ("mnli", "qnli")}
    assert verdicts == {"undecided"}
    with pytest.raises(MissingEvidenceError):
        ARTEFACT.figure(Evidence())


def test_the_figure_has_a_panel_for_each_set_that_was_run() -> None:
    arms = {"init_a": Behaviour(), "init_b": Behaviour(best=1e-3)}
    sweeps = {name: made(SMALL[name].plan, arms) for name in ("trec6", "cola")}
    sweeps["rte"] = replace(sweeps["cola"], rows=[])
    drawn = ARTEFACT.figure(Evidence(sweeps=sweeps)).plotly.to_json()
    assert "TREC-6" in drawn
    assert "CoLA" in drawn
    assert "RTE" not in drawn
