from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asymlora.papers.input_claims import LAYER_GROUPS
from asymlora.papers.zhu_inputs import ARTEFACT, BLOCKS, arms, paper_parts, small_parts
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record
from asymlora.spec import AdapterSpec
from asymlora.sweep.grid import cells
from asymlora.targets import match_targets
from cases import MODELS

ROOT = Path("nowhere")
BERT_BLOCKS = 2


def test_groups_share_no_layer_and_the_attentions_output_is_in_none() -> None:
    model = MODELS[0].build()
    found: dict[str, set[str]] = {}
    for arm in arms(BERT_BLOCKS):
        spec = AdapterSpec.parse(arm.word, rank=1, targets=tuple(arm.options["adapter.targets"]))
        found.setdefault(arm.name.partition("_")[0], set()).update(match_targets(model, spec, ()))
    assert list(found) == list(LAYER_GROUPS)
    assert not found["qv"] & found["up"] | found["up"] & found["down"] | found["qv"] & found["down"]
    assert all(name.endswith((".query", ".value")) for name in found["qv"])
    assert all(name.endswith(".output.dense") and "attention" not in name for name in found["down"])


def test_arms_differ_in_layers_and_factor_alone() -> None:
    for parts, blocks in ((small_parts(ROOT), 6), (paper_parts(ROOT), 24)):
        (swept,) = [part for part in parts if isinstance(part, SweepPart)]
        recipes = {cell.label: cell.recipe.to_dict() for cell in cells(swept.plan)}
        assert list(recipes) == [f"{group}_{letter}_only" for group in LAYER_GROUPS for letter in "ab"]
        assert swept.second is None
        assert len(swept.plan.closing_seeds) == 6
        assert {recipe["data"]["metric"] for recipe in recipes.values()} == {"loss"}
        for recipe in recipes.values():
            assert len(recipe["adapter"].pop("targets")) in (1, 2, blocks)
            del recipe["adapter"]["A"], recipe["adapter"]["B"]
        assert all(recipe == recipes["qv_a_only"] for recipe in recipes.values())
    assert BLOCKS == 6


def test_a_run_is_scored_once_at_its_end() -> None:
    (swept,) = [part for part in small_parts(ROOT) if isinstance(part, SweepPart)]
    assert swept.plan.recipe.train.steps == swept.plan.recipe.train.evaluate_every == 48


def test_settings_stand_once_and_have_a_reason() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(row.what and row.paper and row.ours and row.why for row in scale.settings)
        assert len({row.what for row in scale.settings}) == len(scale.settings)


def test_claims_read_parts_of_both_scales() -> None:
    read = {name for claim in ARTEFACT.claims for name in claim.parts}
    assert {part.name for part in small_parts(ROOT)} == {part.name for part in paper_parts(ROOT)} == read


def test_the_figure_has_a_panel_a_model_and_one_name_for_a_kind_of_layer() -> None:
    rows: list[Record] = [
        {"model": model, "block": block, "role": role, "random_A": 0.5, "random_B": 0.1}
        for model, roles in (
            ("minilm", ("attention.self.query", "output.dense", "attention.output.dense", "classifier")),
            ("smollm2", ("self_attn.q_proj", "mlp.down_proj")),
        )
        for role in roles
        for block in ((0, 1) if role != "classifier" else (None,))
    ]
    drawn = ARTEFACT.figure(Evidence(measured={"sites": rows})).plotly
    assert [note.text for note in drawn.layout.annotations if note.text] == ["MiniLM", "SmolLM2"]
    assert {trace.name for trace in drawn.data if trace.name} == {"query", "down", "attention's output"}
    with pytest.raises(MissingEvidenceError, match="sites"):
        ARTEFACT.figure(Evidence())


def test_it_loads_no_heavy_package() -> None:
    code = (
        "import sys, asymlora.papers.zhu_inputs, asymlora.papers.zhu_bounds, asymlora.papers.zhu_least_squares\n"
        "from pathlib import Path\n"
        "for name in ('zhu_inputs', 'zhu_bounds', 'zhu_least_squares'):\n"
        "    artefact = sys.modules[f'asymlora.papers.{name}'].ARTEFACT\n"
        "    artefact.small.parts(Path('nowhere')), artefact.paper.parts(Path('nowhere'))\n"
        "sys.exit(', '.join({'torch', 'transformers', 'plotly', 'scipy', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
