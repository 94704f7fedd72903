from __future__ import annotations

import pytest

from asymlora.papers.factor_by_task import OPEN, QUESTIONS
from asymlora.reproduce.claim import VERDICTS


def test_titles_are_questions_that_stand_once() -> None:
    titles = [question.title for question in QUESTIONS]
    assert len(titles) == len(set(titles))
    assert all(title.endswith("?") for title in titles)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.title)
def test_each_answer_names_verdicts_that_there_are(question: object) -> None:
    for answer in question.answers:  # pyright: ignore[reportAttributeAccessIssue]
        wanted = {w for given in answer.when.values() for w in ((given,) if isinstance(given, str) else given)}
        sided = {f"{verdict} {side}" for verdict in ("holds", "fails") for side in ("above", "below")}
        assert wanted <= {*VERDICTS, *sided}
        assert answer.says.endswith(".")
    assert set(OPEN) < set(VERDICTS)
