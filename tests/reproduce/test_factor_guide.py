from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.errors import SpecError
from asymlora.reproduce.claim import Finding, Verdict
from asymlora.reproduce.factor_guide import OPEN, Answer, Backing, Default, Guide, Question, read_backings, render
from asymlora.reproduce.kept_results import keep
from asymlora.reproduce.tuned_rates import TunedRates
from reproduce.made_artefact import ARTEFACT, CLAIMS, NAME, TYPED, run_folder

WHICH = Question(
    title="Which factor?",
    asks=("glue.b_better", "glue.a_as_good", "vision.b_better"),
    answers=(
        Answer(when={"glue.b_better": "holds", "glue.a_as_good": "holds"}, says="Train B alone. It costs less."),
        Answer(when={"glue.b_better": "holds"}, says="Of one factor, train B."),
        Answer(when={"glue.b_better": ("fails", "undecided"), "glue.a_as_good": "fails"}, says="Train both."),
    ),
)
GUIDE = Guide(
    title="Which factor", opening="Of small models.", questions=(WHICH,), command="python x.py",
    defaults=(Default(what="rank", value="8", asks=("rank.small", "glue.b_better")),),
)  # fmt: skip


def _backings(verdicts: Mapping[str, Verdict]) -> dict[str, Backing]:
    return {
        name: Backing(
            artefact=name.partition(".")[0], claim=replace(CLAIMS[0], says=f"So says {name}."),
            finding=Finding(verdict=verdict, ours=f"Mean {len(name)} points. More of it."),
        )
        for name, verdict in verdicts.items()
    }  # fmt: skip


def _page(verdicts: Mapping[str, Verdict]) -> str:
    return render(GUIDE, _backings(verdicts))


@pytest.mark.parametrize(
    ("b_better", "a_as_good", "answer"),
    [
        ("holds", "holds", "Train B alone. It costs less."),
        ("holds", "fails", "Of one factor, train B."),
        ("holds", "undecided", "Of one factor, train B."),
        ("fails", "fails", "Train both."),
        ("undecided", "fails", "Train both."),
        ("undecided", "undecided", OPEN),
    ],
)
def test_the_verdicts_choose_the_answer(b_better: Verdict, a_as_good: Verdict, answer: str) -> None:
    page = _page({"glue.b_better": b_better, "glue.a_as_good": a_as_good})
    (line,) = page.split("## Which factor?\n\n")[1].splitlines()[:1]
    assert line == answer
    assert f"| Which factor? | {answer.split('. ')[0].rstrip('.')}. |" in page


def test_the_findings_stand_below_the_answer_and_what_is_missing_is_named() -> None:
    page = _page({"glue.b_better": "holds", "glue.a_as_good": "holds"})
    row = "| So says glue.b_better. | **holds** | Mean 13 points. | [glue](results/glue.md) |"
    assert row in page
    assert "Not run yet: `vision`." in page
    assert "| rank | 8 | So says glue.b_better: **holds** ([glue](results/glue.md)); Not run yet: `rank` |" in page


def test_without_a_finding_there_is_no_answer() -> None:
    page = _page({})
    assert "| Which factor? | Not run yet: `glue`, `vision`. |" in page
    assert not [answer.says for answer in WHICH.answers if answer.says in page]
    assert "So says" not in page
    # A single finding is not enough for an answer that stands on two.
    assert OPEN in _page({"glue.a_as_good": "holds"})


def test_an_answer_that_stands_on_nothing_is_refused() -> None:
    for when in ({}, {"glue.other": "holds"}):
        with pytest.raises(SpecError, match=r"'Which factor\?': the answer 'x' stands on .* Give one or more"):
            replace(WHICH, answers=(Answer(when=when, says="x"),))  # pyright: ignore[reportArgumentType]


def test_claims_that_no_artefact_has_are_refused_and_absent_artefacts_count_as_not_run() -> None:
    known = replace(ARTEFACT, name="glue")
    with pytest.raises(SpecError, match=r"claims that no artefact has: glue\.b_better, glue\.a_as_good\."):
        GUIDE.refuse_unknown([known])
    GUIDE.refuse_unknown([ARTEFACT])
    claims = tuple(replace(CLAIMS[0], key=key) for key in ("b_better", "a_as_good"))
    GUIDE.refuse_unknown([replace(known, claims=claims)])


def test_backings_are_the_kept_findings(tmp_path: Path) -> None:
    assert read_backings([ARTEFACT], tmp_path) == {}
    keep(ARTEFACT, "small", run_folder(tmp_path / "run"), tmp_path / "results" / NAME, command=TYPED)
    found = read_backings([replace(ARTEFACT, name="absent"), ARTEFACT], tmp_path / "results")
    assert {name: one.finding.verdict for name, one in found.items()} == {
        "made_up.ahead": "holds", "made_up.smaller": "holds", "made_up.shown": "undecided",
        "made_up.large": "not testable here",
    }  # fmt: skip


def test_of_a_claim_that_fails_the_side_is_told_by_its_estimate() -> None:
    answers = (
        Answer(when={"glue.a_as_good": "fails above"}, says="It is better."),
        Answer(when={"glue.a_as_good": "fails below"}, says="It is worse."),
    )
    guide = replace(GUIDE, questions=(replace(WHICH, answers=answers),), defaults=())
    for estimate, answer in ((0.1, "It is better."), (-0.1, "It is worse."), (None, OPEN)):
        (backing,) = _backings({"glue.a_as_good": "fails"}).values()
        found = replace(backing, finding=replace(backing.finding, estimate=estimate))
        assert f"| Which factor? | {answer} |" in render(guide, {"glue.a_as_good": found})


def test_every_answer_that_fits_is_given_where_that_is_asked() -> None:
    guide = replace(GUIDE, questions=(replace(WHICH, all_that_fit=True),))
    page = render(guide, _backings({"glue.b_better": "holds", "glue.a_as_good": "holds"}))
    whole = "Train B alone. It costs less. Of one factor, train B."
    assert f"\n{whole}\n" in page
    assert f"| Which factor? | {whole} |" in page


def test_best_rates_stand_in_a_table_by_model_and_only_where_there_are_some() -> None:
    told = [
        TunedRates(
            artefact="hayou_lm", part="wikitext2", model="smollm2", training="24 x 4",
            rates={"init_a": "3.16e-3"},
        ),
        TunedRates(
            artefact="zhu_rank", part="trec6", model="minilm", training="64 x 16",
            rates={"both": "1e-3", "b_only": "at least 1e-2"},
        ),
    ]  # fmt: skip
    page = render(GUIDE, {}, rates=told)
    first = "| minilm | [zhu_rank](results/zhu_rank.md) | `trec6` | 64 x 16 | both: 1e-3; b_only: at least 1e-2 |"
    second = "| smollm2 | [hayou_lm](results/hayou_lm.md) | `wikitext2` | 24 x 4 | init_a: 3.16e-3 |"
    assert f"{first}\n{second}\n" in page
    assert "best rate" not in render(GUIDE, {})
