from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from asymlora.errors import UnknownNameError
from asymlora.papers.catalogue import NAMES, every, find
from asymlora.reproduce.artefact import Artefact, SweepPart
from asymlora.reproduce.forecasting import part_runs

ROOT = Path("nowhere")


def test_the_seven_of_the_first_paper_and_thirteen_of_the_second_are_listed() -> None:
    assert [artefact.name for artefact in every()] == list(NAMES)
    assert [name.partition("_")[0] for name in NAMES] == ["hayou"] * 7 + ["zhu"] * 12 + ["advice"]
    assert len(set(NAMES)) == 20


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'hayou_gleu'\. Did you mean 'hayou_glue'\? Known: hayou_toy, "):
        find("hayou_gleu")


@pytest.fixture(params=NAMES)
def artefact(request: pytest.FixtureRequest) -> Artefact:
    """Each artefact."""
    return find(request.param)


def test_parts_and_claims_have_names_of_their_own(artefact: Artefact) -> None:
    for scale in (artefact.small, artefact.paper):
        names = [part.name for part in scale.parts(ROOT)]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)
        assert "data" not in names
    keys = [claim.key for claim in artefact.claims]
    assert len(keys) == len(set(keys)) > 0
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in keys)


def test_claims_read_parts_of_both_scales_or_say_which(artefact: Artefact) -> None:
    small = {part.name for part in artefact.small.parts(ROOT)}
    paper = {part.name for part in artefact.paper.parts(ROOT)}
    for claim in artefact.claims:
        assert set(claim.parts) <= small | paper, claim.key


def test_claims_of_the_abstract_have_six_seeds_and_a_second_look(artefact: Artefact) -> None:
    parts = {part.name: part for part in artefact.small.parts(ROOT)}
    for claim in artefact.claims:
        read = [name for name in claim.parts if claim.kind == "abstract" and name in parts]
        # The head alone tells by its tuning runs whether a set counts; no claim tests it.
        for part in (parts[name] for name in read if artefact.name != "zhu_glue" or not name.endswith("_light")):
            assert part.second, (claim.key, part.name)
            if isinstance(part, SweepPart):
                assert part.second is not None
                assert len(part.plan.closing_seeds) == 6, (claim.key, part.name)
                assert len(part.second.closing_seeds) == 10, (claim.key, part.name)


def test_a_second_look_adds_to_the_first(artefact: Artefact) -> None:
    for part in artefact.small.parts(ROOT):
        counts = part_runs(part)
        assert counts.both is None or counts.both > counts.first
        if isinstance(part, SweepPart) and part.second is not None:
            first, second = part.plan, part.second
            assert set(first.closing_seeds) <= set(second.closing_seeds)
            assert set(first.tuning_seeds) <= set(second.tuning_seeds)
            assert (first.recipe, first.arms, first.rates) == (second.recipe, second.arms, second.rates)
            # A choice is made on seeds that are never quoted.
            assert not set(second.tuning_seeds) & set(second.closing_seeds)


def test_the_small_scale_states_its_cost_and_its_sources(artefact: Artefact) -> None:
    assert artefact.small.minutes is not None
    assert artefact.small.minutes > 0
    assert artefact.small.memory_gib is not None
    assert all(data.source for scale in (artefact.small, artefact.paper) for data in scale.data)


def test_the_catalogue_loads_no_heavy_package() -> None:
    heavy = ("torch", "transformers", "plotly", "scipy", "datasets")
    code = (
        "import sys\nfrom pathlib import Path\nfrom asymlora.papers.catalogue import every\n"
        "parts = [a.small.parts(Path('nowhere')) + a.paper.parts(Path('nowhere')) for a in every()]\n"
        f"sys.exit(', '.join(name for name in {heavy!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
