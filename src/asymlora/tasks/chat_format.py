"""Conversations as tokens, by the tokenizer's chat template: what is read and what the assistant learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from asymlora.errors import DataError
from asymlora.tasks.causal_models import token_ids

Message = dict[str, str]
"""``role`` (system, user or assistant) and ``content``."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""For tokenizers without a template: ``User:``, a line break, the text, a blank line, ``Assistant:``, a line break."""
_PLAIN_STOP = "\n\nUser:\n"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        ids: Token ids up to the end of the last answer.
        learned: For each token, whether it is part of an answer: its text and the end token of the turn.
        last_answer: Where the last answer begins, an index into ``ids``.
    """

    ids: list[int]
    learned: list[bool]
    last_answer: int


class ChatFormat:
    """How a model's conversations are written.

    Args:
        tokenizer: The model's; its chat template is used, or `PLAIN_TEMPLATE` if it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.is_plain = not tokenizer.chat_template
        self.special = frozenset(tokenizer.all_special_ids)

    def render(self, messages: Sequence[Message], *, ask: bool) -> str:
        """Return a conversation as text.

        Args:
            messages: The turns so far.
            ask: Whether the assistant's next turn is opened.

        Returns:
            The text, with the special tokens that the template writes.

        Raises:
            DataError: The template refuses the conversation.
        """
        template = PLAIN_TEMPLATE if self.is_plain else None
        given: list[dict[str, Any]] = [dict(message) for message in messages]
        try:
            written = self.tokenizer.apply_chat_template(
                given, chat_template=template, tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:
            # A template is a program of the model's author; what it raises is any kind of error.
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"The chat template of the tokenizer refuses a conversation of the turns {roles} ({error}). Let turns"
                " of user and assistant alternate, the user's first."
            ) from error
        assert isinstance(written, str)
        return written

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens after which the assistant answers.

        Args:
            messages: The turns so far, the last one the user's.

        Returns:
            Token ids.
        """
        return self._tokens(self.render(messages, ask=True), first=True)

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Return a conversation as tokens, each answer tokenised as it is written: behind the prompt before it.

        Args:
            messages: The turns; what stands behind the last answer is left out.

        Returns:
            Tokens, and which of them are learned.

        Raises:
            DataError: No turn is the assistant's, or the template writes earlier turns anew in longer conversations.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise DataError("no turn of the assistant is there to learn from")
        ids: list[int] = []
        learned: list[bool] = []
        written, last, behind = "", 0, 0
        for turn in turns:
            asked, told = self.render(messages[:turn], ask=True), self.render(messages[: turn + 1], ask=False)
            if not asked.startswith(written) or not told.startswith(asked):
                raise DataError(
                    "the chat template of the tokenizer writes earlier turns anew in a longer conversation, so its"
                    " answers cannot be told apart. Give rows of one question and one answer"
                )
            question = self._tokens(asked[len(written) :], first=not ids)
            answer, kept = self._answer(told[len(asked) :])
            last = len(ids) + len(question)
            ids += [*question, *answer]
            learned += [*[False] * len(question), *[i < kept for i in range(len(answer))]]
            written, behind = told, len(answer) - kept
        return Encoded(ids=ids[: len(ids) - behind], learned=learned[: len(learned) - behind], last_answer=last)

    def _tokens(self, text: str, *, first: bool) -> list[int]:
        # A template writes its own start token; the plain one leaves it to the tokenizer.
        return token_ids(self.tokenizer, text, start=self.is_plain and first)

    def _answer(self, text: str) -> tuple[list[int], int]:
        # Tokens, and how many of them up to the end token: what a template writes behind it is never generated.
        ids, end = token_ids(self.tokenizer, text), self.tokenizer.eos_token_id
        special = [i for i, token in enumerate(ids) if token in self.special]
        ends = [i for i in special if ids[i] == end] or special
        if ends or not isinstance(end, int):
            return ids, ends[-1] + 1 if ends else len(ids)
        return [*ids, end], len(ids) + 1

    def ends(self) -> tuple[int, ...]:
        """Return the token that ends an answer, as it is learned; nothing if the format has none."""
        encoded = self.encode([{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}])
        return tuple({encoded.ids[-1]} & self.special)

    def cut_reply(self, text: str) -> str:
        """Return a generated reply without the turns that a model without an end token writes on for the user."""
        return text.split(_PLAIN_STOP)[0].strip() if self.is_plain else text.strip()
