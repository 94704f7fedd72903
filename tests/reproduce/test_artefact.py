from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import small_artefact as small
from asymlora.reproduce.artefact import FIRST_SEEDS, MOST_SEEDS


def test_a_scale_is_taken_by_its_name() -> None:
    what = small.artefact()
    what = replace(what, paper=replace(what.paper, minutes=None))
    assert what.scale("small") is what.small
    assert what.scale("paper") is what.paper


def test_six_pairs_are_the_least_that_can_decide_at_the_level_of_the_first_look() -> None:
    # All pairs of one sign are two of 2^n ways; both looks together stay at 5 %.
    assert 2 / 2**FIRST_SEEDS + 0.01875 == 0.05
    assert 2 / 2 ** (FIRST_SEEDS - 1) > 0.05
    assert 2 / 2**MOST_SEEDS < 0.01875


def test_parts_are_made_of_the_data_root() -> None:
    roots: list[Path] = []
    what = small.artefact(parts=[])
    scale = replace(what.small, parts=lambda root: tuple(roots.append(root) or ()))
    assert scale.parts(Path("data")) == ()
    assert roots == [Path("data")]


def test_words_of_artefacts_load_no_torch() -> None:
    names = ("artefact", "artefact_folder", "running", "forecasting", "arm_costs", "agreement", "missing_inputs")
    modules = ", ".join(f"asymlora.reproduce.{name}" for name in names)
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'scipy', 'plotly')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
