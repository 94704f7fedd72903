"""Problems solved by generation and scored by exact match of the last number, as GSM8K's are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from torch import nn

from asymlora.errors import DataError
from asymlora.tasks.causal_models import continuations
from asymlora.tasks.chat_format import ChatFormat, Message
from asymlora.tasks.likelihood_choice import after_shots, read_columns

_FINAL = "####"
# A minus behind a letter, a digit or a bracket is a hyphen or a difference.
_NUMBER = re.compile(r"(?:(?<![\w)\]])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with its solution.

    Attributes:
        question: Its text.
        solution: Worked out, with the final number behind ``####`` or at its end.
        answer: The final number.
    """

    question: str
    solution: str
    answer: Decimal


@dataclass(frozen=True, kw_only=True)
class Problems:
    """Problems to be scored.

    Attributes:
        examples: Shown with their solutions before each problem.
        scored: Those that are asked.
    """

    examples: tuple[Problem, ...]
    scored: tuple[Problem, ...]


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text, without thousands separators and dollar signs, or None.

    Args:
        text: Any text.

    Returns:
        The number, exact.

    Example:
        >>> last_number("16 - 3 - 4 = 9 eggs, so she makes $1,234.50 a day.")
        Decimal('1234.50')
        >>> last_number("nothing") is None
        True
    """
    found = _NUMBER.findall(text)
    return Decimal(re.sub("[$,]", "", found[-1])) if found else None


def read_problems(path: Path, *, shots: int) -> Problems:
    """Read a file of problems.

    Args:
        path: CSV, JSON Lines or Parquet with the columns question and answer; the answer ends in its final number, in
            GSM8K's form behind ``####``.
        shots: Problems from the head of the file that serve as examples and are not scored.

    Returns:
        The problems.

    Raises:
        DataError: A row has no question, or no number in its answer; it is named.
    """
    rows = read_columns(path, ("question", "answer"), "data.problems")
    made: list[Problem] = []
    for i, (question, solution) in enumerate(zip(rows["question"], rows["answer"], strict=True)):
        answer = last_number(str(solution).rpartition(_FINAL)[2])
        if answer is None or not isinstance(question, str) or not question.strip():
            raise DataError(
                f"Row {i + 1} of {path} is no problem: question={str(question)[:40]!r}, answer={str(solution)[-40:]!r}."
                f" It needs a question, and an answer with a number behind {_FINAL} or at its end."
            )
        made.append(Problem(question=question.strip(), solution=str(solution).strip(), answer=answer))
    return Problems(examples=tuple(made[:shots]), scored=tuple(after_shots(made, shots, path)))


def solve(
    model: nn.Module, *, form: ChatFormat, problems: Problems, max_new_tokens: int, limit: int
) -> dict[str, float]:
    """Let the model solve problems, greedily, and measure how often its last number is the right one.

    Args:
        model: A causal language model, possibly wrapped.
        form: Its chat format; examples are earlier turns.
        problems: What is asked.
        max_new_tokens: The longest solution, in tokens.
        limit: Tokens that the model can see. Of a longer prompt the beginning is cut.

    Returns:
        ``exact_match``, a fraction in [0, 1], and the number of ``problems``.

    Raises:
        SpecError: Solutions of this length leave no room for a prompt.

    Source:
        Cobbe et al., 2021, "Training Verifiers to Solve Math Word Problems": the form of the answers. That the last
        number of a greedy solution counts is common use; not compared with other implementations.
    """
    prompts = [form.prompt(_turns(problem, problems.examples)) for problem in problems.scored]
    written = continuations(
        model, form.tokenizer, prompts, max_new_tokens=max_new_tokens, limit=limit, ends=form.ends()
    )
    right = [
        last_number(form.cut_reply(text)) == problem.answer
        for text, problem in zip(written, problems.scored, strict=True)
    ]
    return {"exact_match": sum(right) / len(right), "problems": float(len(right))}


def _turns(problem: Problem, examples: Sequence[Problem]) -> list[Message]:
    turns: list[Message] = []
    for example in examples:
        turns.append({"role": "user", "content": example.question})
        turns.append({"role": "assistant", "content": example.solution})
    return [*turns, {"role": "user", "content": problem.question}]
