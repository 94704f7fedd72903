from __future__ import annotations

from typing import Any

import pytest

from asymlora.errors import DataError
from asymlora.tasks.causal_models import token_ids
from asymlora.tasks.chat_format import ChatFormat, Message
from small_causal import small_tokenizer


def _talk(*contents: str, system: str | None = None) -> list[Message]:
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    return turns + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def _learned(tokenizer: Any, form: ChatFormat, talk: list[Message]) -> tuple[str, list[str]]:
    """The whole text, and the learned stretches of it."""
    encoded = form.encode(talk)
    stretches: list[list[int]] = []
    for i, (token, learned) in enumerate(zip(encoded.ids, encoded.learned, strict=True)):
        if learned and not (i and encoded.learned[i - 1]):
            stretches.append([])
        if learned:
            stretches[-1].append(token)
    return tokenizer.decode(encoded.ids), [tokenizer.decode(stretch) for stretch in stretches]


def test_every_answer_and_its_end_token_are_learned_and_nothing_else() -> None:
    tokenizer = small_tokenizer()
    text, learned = _learned(tokenizer, ChatFormat(tokenizer), _talk("q1", "a one", "q2", "a two", system="be kind"))
    assert learned == ["a one<|end|>", "a two<|end|>"]
    assert text == (
        "<|system|>be kind<|end|>\n<|user|>q1<|end|>\n<|assistant|>a one<|end|>\n<|user|>q2<|end|>\n"
        "<|assistant|>a two<|end|>"
    )


def test_answer_is_read_behind_the_very_prompt_that_generation_gets() -> None:
    tokenizer = small_tokenizer()
    form, talk = ChatFormat(tokenizer), _talk("q1", "a one", "q2", "a two")
    encoded = form.encode(talk)
    assert encoded.ids[: encoded.last_answer] == form.prompt(talk[:-1])
    assert tokenizer.decode(encoded.ids[encoded.last_answer :]) == "a two<|end|>"


def test_what_stands_behind_the_last_answer_is_left_out() -> None:
    tokenizer = small_tokenizer()
    form = ChatFormat(tokenizer)
    assert form.encode(_talk("q", "a", "and?")) == form.encode(_talk("q", "a"))


def test_without_a_template_the_plain_one_is_written_and_the_end_learned() -> None:
    tokenizer = small_tokenizer(chat=False)
    form = ChatFormat(tokenizer)
    text, learned = _learned(tokenizer, form, _talk("q1", "a one", "q2", "a two"))
    assert form.is_plain
    assert learned == ["a one<|end|>", "a two<|end|>"]
    assert text == "User:\nq1\n\nAssistant:\na one<|end|>\n\nUser:\nq2\n\nAssistant:\na two<|end|>"


def test_plain_format_begins_with_the_start_token_of_the_tokenizer() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = small_tokenizer(chat=False)
    start = tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", start)]
    )
    form = ChatFormat(tokenizer)
    ids = form.encode(_talk("q1", "a1", "q2", "a2")).ids
    assert ids[0] == form.prompt(_talk("q1"))[0] == start
    assert start not in ids[1:]


def test_template_that_writes_no_end_token_gets_one() -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    assert _learned(tokenizer, ChatFormat(tokenizer), _talk("q", "an answer"))[1] == ["an answer\n<|end|>"]


def test_template_that_ends_turns_with_another_token_keeps_it() -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|system|>")
    form = ChatFormat(tokenizer)
    assert _learned(tokenizer, form, _talk("q", "a"))[1] == ["a<|system|>"]
    assert form.ends() == (tokenizer.convert_tokens_to_ids("<|system|>"),)


def test_ends_are_the_end_token_if_there_is_one() -> None:
    tokenizer = small_tokenizer(chat=False)
    assert ChatFormat(tokenizer).ends() == (tokenizer.eos_token_id,)
    assert ChatFormat(small_tokenizer(chat=False, end=None, padding="<|pad|>")).ends() == ()


def test_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(DataError, match="writes earlier turns anew"):
        ChatFormat(tokenizer).encode(_talk("q", "a"))


def test_what_a_template_refuses_is_told_with_its_words() -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(DataError, match=r"turns user, assistant \(turns must alternate\)\. Let turns"):
        ChatFormat(tokenizer).render(_talk("q", "a"), ask=False)


def test_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="no turn of the assistant"):
        ChatFormat(small_tokenizer()).encode(_talk("q"))


def test_plain_reply_ends_where_the_user_would_speak_again() -> None:
    plain, own = ChatFormat(small_tokenizer(chat=False)), ChatFormat(small_tokenizer())
    assert plain.cut_reply(" 42\n\nUser:\nnext? 7") == "42"
    assert own.cut_reply(" 42\n\nUser:\nnext? 7") == "42\n\nUser:\nnext? 7"


def test_prompt_is_the_tokens_of_the_rendered_text() -> None:
    tokenizer = small_tokenizer()
    form = ChatFormat(tokenizer)
    assert form.render(_talk("hi"), ask=True) == "<|user|>hi<|end|>\n<|assistant|>"
    assert form.prompt(_talk("hi")) == token_ids(tokenizer, "<|user|>hi<|end|>\n<|assistant|>")
