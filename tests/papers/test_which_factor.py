from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.factor_spec import FactorSpec
from asymlora.papers import catalogue, which_factor
from asymlora.papers.which_factor import GUIDE
from asymlora.reproduce.claim import Finding, Verdict
from asymlora.reproduce.factor_guide import OPEN, Backing, render
from asymlora.spec import AdapterSpec
from reproduce.made_artefact import CLAIMS


def _page(verdicts: dict[str, Verdict], *, estimate: float = 1.0) -> str:
    backings = {
        name: Backing(artefact=name.partition(".")[0], claim=CLAIMS[0],
                      finding=Finding(verdict=verdict, ours="x.", estimate=estimate))
        for name, verdict in verdicts.items()
    }  # fmt: skip
    return render(GUIDE, backings)


def test_every_claim_that_is_asked_for_is_one_of_the_catalogue() -> None:
    GUIDE.refuse_unknown(catalogue.every())
    (glue,) = [artefact for artefact in catalogue.every() if artefact.name == "hayou_glue"]
    with pytest.raises(SpecError, match=r"hayou_glue\.better_on_average"):
        GUIDE.refuse_unknown([replace(glue, claims=())])


@pytest.mark.parametrize("verdict", ["holds", "fails", "undecided"])
def test_whatever_is_found_each_question_that_decides_anything_is_answered(verdict: Verdict) -> None:
    page = _page(dict.fromkeys(GUIDE.names, verdict))
    unanswered = [
        question.title for question in GUIDE.questions if page.split(f"## {question.title}\n\n")[1].startswith(OPEN)
    ]
    # Of theory that fails, or of arms that no seed tells apart, there is nothing to advise.
    few = {"At which layers is A the one to train?", "For writing texts with an encoder-decoder?",
           "For tuning a decoder on instructions?", "For images, in the domain that is trained on?",
           "Where are both factors the better choice?"}  # fmt: skip
    assert set(unanswered) <= (set() if verdict == "holds" else few)


def test_answers_follow_the_findings() -> None:
    both = {"zhu_glue.frozen_a_as_good": "holds", "zhu_glue.frozen_a_as_good_at_equal_values": "holds"}
    assert "\nB alone. It is as good as both within the margin" in _page(both)  # pyright: ignore[reportArgumentType]
    assert "\nBoth. B alone is behind by more than the margin.\n" in _page(dict.fromkeys(both, "fails"))
    assert "B alone. It is as good" not in _page({})


@pytest.mark.parametrize(("estimate", "answer"), [(1.0, "From the leading singular vectors of the pretrained weight."),
                                                  (-1.0, "Singular vectors of the pretrained weight are")])  # fmt: skip
def test_a_difference_that_is_found_is_told_by_its_side(estimate: float, answer: str) -> None:
    assert answer in _page({"zhu_singular.informed_as_random": "fails"}, estimate=estimate)


def test_the_defaults_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AdapterSpec()
    rows: Any = which_factor.defaults()
    assert [row.value for row in rows] == ["A: orthonormal, held; B: zeros, trained", "8 at every layer", "2e-3"]
    other = replace(spec, rank=4, A=FactorSpec(init="gaussian"))
    monkeypatch.setattr(which_factor, "AdapterSpec", lambda: other)
    assert [row.value for row in which_factor.defaults()][:2] == [
        "A: gaussian, trained; B: zeros, trained", "4 at every layer",
    ]  # fmt: skip
