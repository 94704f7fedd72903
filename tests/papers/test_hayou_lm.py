from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from asymlora.papers.hayou_lm import ARTEFACT, PART, paper_parts, small_parts, with_parts_named
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.evidence import Evidence
from asymlora.tasks.data_files import read_parts


def test_it_loads_no_heavy_package() -> None:
    code = (
        "import sys, asymlora.papers.hayou_lm, asymlora.papers.hayou_llama\n"
        "sys.exit(bool({'torch', 'transformers', 'plotly', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plans_build_without_any_data() -> None:
    (small,) = small_parts(Path("nowhere"))
    (paper,) = paper_parts(Path("nowhere"))
    assert isinstance(small, SweepPart)
    assert isinstance(paper, SweepPart)
    assert (small.name, paper.name) == (PART, PART)
    assert small.plan.recipe.data.name == "nowhere/wikitext2"
    assert small.plan.recipe.train.evaluate_every == small.plan.recipe.train.steps
    assert paper.plan.recipe.model.name.startswith("TinyLlama/")


def test_the_files_at_hand_become_parts_and_nothing_is_copied(tmp_path: Path) -> None:
    (tmp_path / "data" / "lm").mkdir(parents=True)
    for part in ("valid", "test"):
        (tmp_path / "data" / "lm" / f"wikitext2-{part}.txt").write_text(f" = {part} = \n", encoding="utf-8")
    with_parts_named(tmp_path / "data", tmp_path / "run")
    root = with_parts_named(tmp_path / "data", tmp_path / "run")  # the links stand already
    files = sorted((root / PART).iterdir())
    assert [file.name for file in files] == ["test.txt", "train.txt"]
    assert all(file.is_symlink() for file in files)
    parts, _ = read_parts(root / PART, {"text": "text"})
    assert {part: rows["text"] for part, rows in parts.items()} == {
        "train": [" = valid = \n"],
        "test": [" = test = \n"],
    }


def test_every_data_set_names_its_source_and_what_is_linked_is_among_them(tmp_path: Path) -> None:
    root = with_parts_named(tmp_path, tmp_path / "run")
    targets = {file.resolve() for file in (root / PART).iterdir()}
    assert targets == {(tmp_path / data.place).resolve() for data in ARTEFACT.small.data}
    assert all(data.source for scale in (ARTEFACT.small, ARTEFACT.paper) for data in scale.data)


def test_claims_have_names_of_their_own_and_read_parts_that_there_are() -> None:
    keys = [claim.key for claim in ARTEFACT.claims]
    assert keys == ["larger_rate", "lower_loss", "smallest_rate"]
    assert {part for claim in ARTEFACT.claims for part in claim.parts} == {PART}
    assert all(claim.finding(Evidence()).verdict == "undecided" for claim in ARTEFACT.claims)
