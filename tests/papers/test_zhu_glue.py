"""The plans on GLUE by factor, start and rank, at both scales, and the figure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from asymlora.factor_spec import FactorSpec, InitName
from asymlora.papers.zhu_glue import ARTEFACT, PRINTED, paper_parts, small_parts
from asymlora.papers.zhu_glue_claims import MAIN_NAMES, ROW_NAMES
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.reproduce.forecasting import part_runs
from asymlora.spec import AdapterSpec
from asymlora.sweep.grid import cells
from asymlora.sweep.rates import rate_text
from papers.made_sweeps import Behaviour, made

ROOT = Path("nowhere")
SMALL = {part.name: part for part in small_parts(ROOT)}
PAPER = {part.name: part for part in paper_parts(ROOT)}
RANDOM, KAIMING, SINGULAR = "orthonormal", "kaiming_uniform", "top_singular"


def test_it_loads_no_heavy_package() -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from asymlora.papers import zhu_glue, zhu_singular\n"
        "for one in (zhu_glue, zhu_singular):\n"
        "    one.small_parts(Path('nowhere')), one.paper_parts(Path('nowhere'))\n"
        "sys.exit(bool({'torch', 'transformers', 'plotly', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_small_scale_has_two_sets_of_main_arms_and_all_rows_on_one() -> None:
    counts = {name: (part_runs(part).first, part_runs(part).both) for name, part in SMALL.items()}
    # Four rates; two tuning seeds and six closing runs, then ten; of rows one and three.
    main, row = (4 * (4 * 2 + 6), 4 * (4 * 2 + 10)), 4 + 3
    one_look = {"trec6_rows": 12, "trec6_full": 1, "trec6_light": 2, "sst2_light": 1}
    new = dict.fromkeys(("trec6_fresh", "sst2_fresh"), (2 * 10, None))
    rows = {name: (arms * row, None) for name, arms in one_look.items()}
    assert counts == {"trec6": main, "sst2": main, **rows, **new}
    assert sum(first for first, _ in counts.values()) == 224 + 40


@pytest.mark.parametrize("name", ["trec6", "sst2"])
def test_new_seeds_repeat_the_single_factors_at_the_rate_that_was_chosen_and_no_seed_of_before(name: str) -> None:
    main, new = SMALL[name], SMALL[f"{name}_fresh"]
    assert main.second is not None
    assert not set(new.plan.closing_seeds) & set(main.second.closing_seeds)
    assert (new.plan.recipe, [arm.name for arm in new.plan.arms]) == (main.plan.recipe, ["b_only", "a_only"])
    assert [rate_text(rate) for rate in new.plan.rates] == ["3.16e-3"]
    assert new.plan.rates[0] in main.plan.rates


def test_every_arm_has_a_row_and_every_row_an_arm() -> None:
    assert {arm.name for part in PAPER.values() for arm in part.plan.arms} == set(ROW_NAMES)
    of_the_paper = {"b_V_16", "a_km_16", "a_U_16"}
    assert {arm.name for part in SMALL.values() for arm in part.plan.arms} == set(ROW_NAMES) - of_the_paper


@pytest.fixture(scope="module")
def specs() -> Mapping[str, list[AdapterSpec]]:
    """What each arm is, at both scales and on each of some sets."""
    found: dict[str, list[AdapterSpec]] = {}
    for part in (SMALL["trec6"], SMALL["trec6_rows"], PAPER["rte"], PAPER["rte_rows"]):
        for cell in cells(part.plan):
            found.setdefault(cell.arm, []).append(cell.recipe.adapter)
    return found


@pytest.mark.parametrize(
    ("arm", "starts", "trained"),
    [
        ("both", (KAIMING, "zeros"), "AB"),
        ("b_only", (RANDOM, "zeros"), "B"),
        ("a_only", ("zeros", RANDOM), "A"),
        ("b_km", (KAIMING, "zeros"), "B"),
        ("b_V", (SINGULAR, "zeros"), "B"),
        ("a_km", ("zeros", KAIMING), "A"),
        ("a_U", ("zeros", SINGULAR), "A"),
        ("both_A_rand", (RANDOM, "zeros"), "AB"),
        ("both_A_V", (SINGULAR, "zeros"), "AB"),
        ("both_B_U", ("zeros", SINGULAR), "AB"),
        ("both_B_rand", ("zeros", RANDOM), "AB"),
        ("both_B_km", ("zeros", KAIMING), "AB"),
    ],
)
def test_an_arm_is_the_row_of_the_table(
    specs: Mapping[str, list[AdapterSpec]], arm: str, starts: tuple[InitName, InitName], trained: str
) -> None:
    A, B = (FactorSpec(init=start, trainable=name in trained) for name, start in zip("AB", starts, strict=True))
    small, paper = specs[arm]
    assert (small.A, small.B, small.rank, small.scaling_factor) == (A, B, 8, 2.0)
    assert (paper.A, paper.B, paper.rank, paper.scaling_factor) == (A, B, 8, 2.0)


def test_full_fine_tuning_has_smaller_rates_and_head_and_ia3_larger_ones() -> None:
    for parts, base in ((SMALL, "trec6"), (PAPER, "rte")):
        full, rows, light = (parts[base + end].plan.rates for end in ("_full", "_rows", "_light"))
        assert max(full) <= min(rows) * 1.001
        assert max(light) > max(rows)


def test_the_papers_scale_has_all_of_it_on_seven_sets() -> None:
    sets = ("mnli", "sst2", "mrpc", "cola", "qnli", "rte", "stsb")
    assert tuple(PAPER) == tuple(name + end for name in sets for end in ("", "_rows", "_full", "_light"))
    assert {part.plan.recipe.model.name for part in PAPER.values()} == {"FacebookAI/roberta-large"}
    assert all(PAPER[name].second is not None for name in sets)


def test_counts_that_the_paper_prints_stand_beside_arms_that_there_are() -> None:
    assert set(PRINTED) <= {arm.name for part in PAPER.values() for arm in part.plan.arms}
    assert all("millions" in printed.where for printed in PRINTED.values())
    assert {name for name, part in PAPER.items() if part.printed} == {"mnli", "mnli_rows"}


def test_every_set_that_is_read_is_a_data_set_of_the_artefact() -> None:
    read = {part.plan.recipe.data.name for part in SMALL.values()}
    assert read == {str(ROOT / data.place) for data in ARTEFACT.small.data}


def test_each_setting_is_told_once_and_in_full() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(all(vars(setting).values()) for setting in scale.settings)
        assert len({setting.what for setting in scale.settings}) == len(scale.settings)


def test_the_figure_has_a_panel_for_each_set_that_was_run() -> None:
    with pytest.raises(MissingEvidenceError):
        ARTEFACT.figure(Evidence())
    sweeps = {
        "trec6": made(SMALL["trec6"].plan, {arm: Behaviour() for arm in MAIN_NAMES}),
        "sst2": made(SMALL["sst2"].plan, {arm: Behaviour() for arm in MAIN_NAMES}),
    }
    drawn = ARTEFACT.figure(Evidence(sweeps=sweeps)).plotly
    assert [note.text for note in drawn.layout.annotations[:2]] == ["TREC-6", "SST-2"]
    assert set(MAIN_NAMES.values()) <= {trace.name for trace in drawn.data}
