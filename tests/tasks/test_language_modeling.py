from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import asymlora as al
from asymlora.errors import DataError, EmptyDataError, UnknownNameError
from asymlora.tasks.causal_models import TokenCollator, TokenRows, load_causal, padding_of, token_ids
from asymlora.tasks.embedded_models import cache_folder
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.language_modeling import divide_texts, hold_out_end, load, prepare, token_blocks
from asymlora.tasks.token_loss import TokenScoring
from small_causal import small_tokenizer, write_small_causal

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared research data are not beside this checkout")
needs_smollm2 = pytest.mark.skipif(
    not list(cache_folder().glob("smollm2-135m-*/model.safetensors")),
    reason="SmolLM2 was not converted on this machine yet",
)
WORDS = "the quick brown fox jumps over the lazy dog and runs away "


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_causal(tmp_path_factory.mktemp("models") / "small-llama")


def _prepare(model: Path, data: Path, **fields: Any) -> Any:
    recipe = DataRecipe(**{"name": str(data), "max_tokens": 16, **fields})
    return prepare(ModelRecipe(name=str(model)), recipe, task="language_modeling", head_seed=0)


# --- dividing -------------------------------------------------------------------------------------------------------


def test_one_text_is_cut_in_contiguous_pieces_that_share_no_character() -> None:
    text = "".join(f"word{i} " for i in range(1000))
    parts = divide_texts({"train": [text]}, validation_fraction=1 / 9, test_fraction=0.1)
    assert parts["train"][0] + parts["validation"][0] + parts["test"][0] == text
    shares = [len(parts[part][0]) / len(text) for part in ("train", "validation", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=2e-3)
    assert all(parts[part][0].startswith("word") for part in parts)


def test_whole_documents_are_held_out_where_they_are_many() -> None:
    texts = [f"document {i} " * 5 for i in range(100)]
    rest, held = hold_out_end(texts, fraction=0.2)
    assert rest + held == texts
    assert len(held) == 20


def test_document_is_cut_where_whole_ones_would_miss_the_share() -> None:
    texts = ["short one", WORDS * 100, "short two"]
    rest, held = hold_out_end(texts, fraction=0.25)
    assert "".join(rest + held) == "".join(texts)
    assert len("".join(held)) / len("".join(texts)) == pytest.approx(0.25, abs=0.01)


def test_text_without_blanks_is_cut_all_the_same() -> None:
    assert hold_out_end(["x" * 10], fraction=0.3) == (["x" * 7], ["x" * 3])


def test_parts_of_the_source_stay() -> None:
    parts = {"train": ["one two three four "], "validation": ["five"], "test": ["six"]}
    assert divide_texts(parts, validation_fraction=0.5, test_fraction=0.5) == parts


@pytest.mark.parametrize("texts", [[], ["x"], ["    "]])
def test_too_little_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="too few to hold out"):
        hold_out_end(texts, fraction=0.1)


# --- packing --------------------------------------------------------------------------------------------------------


def test_documents_are_joined_with_the_end_token_and_packed_without_a_gap() -> None:
    tokenizer = small_tokenizer()
    blocks = token_blocks(tokenizer, ["abcd", "ef", "ghijk"], size=5)
    assert [len(block) for block in blocks] == [5, 5, 4]
    assert tokenizer.decode(np.concatenate(blocks)) == "abcd<|end|>ef<|end|>ghijk<|end|>"


def test_pieces_of_a_file_are_joined_as_they_are() -> None:
    tokenizer = small_tokenizer()
    pieces = ["one\n\n", "two\n\n", "three"]
    blocks = token_blocks(tokenizer, pieces, size=100)
    assert [b.tolist() for b in blocks] == [[*token_ids(tokenizer, "one\n\ntwo\n\nthree"), tokenizer.eos_token_id]]


def test_last_token_alone_makes_no_block() -> None:
    assert [len(b) for b in token_blocks(small_tokenizer(), ["abcdef"], size=3)] == [3, 3]
    assert [len(b) for b in token_blocks(small_tokenizer(), ["abcdefg"], size=3)] == [3, 3, 2]


def test_without_an_end_token_documents_stand_side_by_side() -> None:
    tokenizer = small_tokenizer(end=None)
    (block,) = token_blocks(tokenizer, ["ab", "cd"], size=10)
    assert block.tolist() == token_ids(tokenizer, "abcd")


# --- prepared -------------------------------------------------------------------------------------------------------


def test_every_token_but_the_first_of_a_block_is_predicted_once(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(WORDS * 40, encoding="utf-8")
    prepared = _prepare(model_folder, tmp_path / "text.txt")
    tokenizer = prepared.processor
    seen = ["".join(tokenizer.decode(ids) for ids in prepared.parts[p].ids) for p in ("train", "validation", "test")]
    assert "".join(text.removesuffix("<|end|>") for text in seen) == WORDS * 40
    for items in prepared.parts.values():
        assert items.targets == sum(length - 1 for length in items.lengths)
        assert set(items.lengths[:-1]) == {16}
    assert (prepared.task_type, prepared.heads, prepared.label_names) == ("CAUSAL_LM", (), ())


def test_perplexity_is_that_of_all_blocks_by_hand(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(WORDS * 10, encoding="utf-8")
    prepared = _prepare(model_folder, tmp_path / "text.txt", test_fraction=0.5)
    kept = _kept(prepared.model, prepared.scoring, prepared.test, prepared.collator)
    total, count = 0.0, 0
    for ids in prepared.test.ids:
        row = torch.tensor([ids.tolist()])
        with torch.no_grad():
            logits = prepared.model(input_ids=row).logits
        total += float(cross_entropy(logits[0, :-1], row[0, 1:], reduction="sum"))
        count += row.shape[1] - 1
    score = prepared.scoring.score(prepared.scoring.evidence(kept, prepared.test))
    assert score["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert score["loss"] == pytest.approx(total / count, rel=1e-5)
    assert prepared.scoring.metric == "perplexity"


def _kept(model: Any, scoring: TokenScoring, rows: TokenRows, collator: TokenCollator, batch: int = 3) -> np.ndarray:
    with torch.inference_mode():
        starts = range(0, len(rows), batch)
        batches = [collator([rows[i] for i in range(s, min(s + batch, len(rows)))]) for s in starts]
        return torch.cat([scoring.keep(model, each) for each in batches]).numpy()


def test_notes_count_texts_tokens_and_blocks(model_folder: Path, tmp_path: Path) -> None:
    for part, text in (("train", "abc" * 21), ("validation", "abcd"), ("test", "ab" * 10)):
        (tmp_path / f"{part}.txt").write_text(text, encoding="utf-8")
    notes = _prepare(model_folder, tmp_path, max_rows=2).notes
    assert notes[0] == (
        "train: 1 texts, 64 tokens, 4 blocks of up to 16 tokens, of which 2 are used; 30 tokens are predicted, all but"
        " the first of a block."
    )
    assert notes[2].startswith("test: 1 texts, 21 tokens, 2 blocks of up to 16 tokens; 19 tokens are predicted")
    assert len(notes) == 3


def test_scored_blocks_are_drawn_too(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"word{i} " for i in range(300)), encoding="utf-8")
    whole, part = (_prepare(model_folder, tmp_path / "text.txt", max_scored_rows=n) for n in (None, 5))
    assert (len(part.validation), len(part.test)) == (5, 5)
    assert set(part.test.fingerprint()) < set(whole.test.fingerprint())
    assert list(part.train.fingerprint()) == list(whole.train.fingerprint())


def test_seed_draws_the_training_blocks_and_nothing_else(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"word{i} " for i in range(300)), encoding="utf-8")
    one, same, other = (_prepare(model_folder, tmp_path / "text.txt", max_rows=9, seed=s) for s in (0, 0, 1))
    assert one.digest() == same.digest() != other.digest()
    assert list(one.test.fingerprint()) == list(other.test.fingerprint())
    assert (len(one.train), len(other.train)) == (9, 9)


def test_blocks_end_where_the_model_has_no_more_positions(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(WORDS * 10, encoding="utf-8")
    small = write_small_causal(tmp_path / "m", positions=8)
    assert max(_prepare(small, tmp_path / "text.txt", max_tokens=64).train.lengths) == 8


def test_part_that_predicts_nothing_and_wrong_metric_are_refused(model_folder: Path, tmp_path: Path) -> None:
    for part, text in (("train", "abc" * 20), ("validation", "abcd"), ("test", "x")):
        (tmp_path / f"{part}.txt").write_text(text, encoding="utf-8")
    small = write_small_causal(tmp_path / "m", end=None, padding="<|pad|>")
    with pytest.raises(EmptyDataError, match=r"The test part of .* has fewer than two tokens"):
        _prepare(small, tmp_path)
    with pytest.raises(UnknownNameError, match=r"data.metric='accuracy'"):
        _prepare(model_folder, tmp_path, metric="accuracy")


def test_training_on_a_repeated_text_lowers_its_perplexity(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(WORDS * 60, encoding="utf-8")
    prepared = _prepare(model_folder, tmp_path / "text.txt")
    model, rows = prepared.model, prepared.train
    torch.manual_seed(0)
    al.attach(model, al.AdapterSpec.lora(rank=4, targets="all-linear"))

    def perplexity() -> float:
        kept = _kept(model, prepared.scoring, prepared.test, prepared.collator)
        return prepared.scoring.score(prepared.scoring.evidence(kept, prepared.test))["perplexity"]

    before, optimizer = perplexity(), torch.optim.AdamW(al.param_groups(model, lr=1e-2))
    for step in range(25):
        batch = prepared.collator([rows[i % len(rows)] for i in range(8 * step, 8 * step + 8)])
        loss = prepared.loss(model(**batch), batch["labels"], None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert perplexity() < 0.5 * before


# --- asked ----------------------------------------------------------------------------------------------------------


def test_answer_is_the_greedy_continuation_alone(model_folder: Path) -> None:
    data = DataRecipe(max_target_tokens=5)
    loaded = load(ModelRecipe(name=str(model_folder)), data, task="language_modeling", label_names=())
    texts = ["once upon", "a time", "there was", "x"]
    answers = loaded.answer(texts)
    by_hand: list[str] = []
    for text in texts:
        ids, written = token_ids(loaded.processor, text), []
        while len(written) < 5 and loaded.processor.eos_token_id not in written:
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
            written.append(int(logits.argmax()))
        by_hand.append(loaded.processor.decode(written, skip_special_tokens=True))
    assert [answer.answer for answer in answers] == by_hand
    assert [answer.given for answer in answers] == texts
    assert len(set(by_hand)) > 1


def test_saved_model_is_the_one_that_answers(model_folder: Path, tmp_path: Path) -> None:
    loaded = load(ModelRecipe(name=str(model_folder)), DataRecipe(), task="language_modeling", label_names=())
    (tmp_path / "out").mkdir()
    loaded.save(tmp_path / "out")
    again = load(ModelRecipe(name=str(tmp_path / "out")), DataRecipe(), task="language_modeling", label_names=())
    assert again.answer(["once"]) == loaded.answer(["once"])


# --- real texts and weights -----------------------------------------------------------------------------------------


@needs_shared
def test_tinyshakespeare_is_one_text_in_three_contiguous_parts(model_folder: Path) -> None:
    source = SHARED / "lm" / "tinyshakespeare.txt"
    prepared = _prepare(model_folder, source, test_fraction=0.1, validation_fraction=1 / 9, max_tokens=512)
    tokens = {part: sum(items.lengths) for part, items in prepared.parts.items()}
    whole = source.stat().st_size + 3  # one token a byte, but for " A" to " D"; an end token a part
    assert 0.97 * whole < sum(tokens.values()) <= whole
    assert tokens["train"] / whole == pytest.approx(0.8, abs=0.02)
    assert tokens["test"] / whole == pytest.approx(0.1, abs=0.005)
    assert prepared.processor.decode(prepared.train.ids[0]).startswith("First Citizen:\nBefore we proceed")


@needs_smollm2
def test_smollm2_has_the_perplexity_that_was_measured_on_a_sentence() -> None:
    model, tokenizer = load_causal(ModelRecipe(name="embedded:smollm2-135m"))
    sentence = (
        "The history of the United States begins with the arrival of the first people in the Americas around 15,000"
        " years ago. Numerous indigenous cultures formed, and many saw transformations in the 16th century."
    )
    ids = token_ids(tokenizer, sentence)
    rows, scoring = TokenRows([(ids, [True] * len(ids))]), TokenScoring("perplexity")
    kept = _kept(model, scoring, rows, TokenCollator(padding_of(tokenizer)))
    assert scoring.score(scoring.evidence(kept, rows))["perplexity"] == pytest.approx(13.367, rel=0.01)
    assert kept[0, 1] == 44  # 45 tokens, the first is not predicted
