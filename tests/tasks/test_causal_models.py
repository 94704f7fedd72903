from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel, T5Config

from asymlora.errors import DataError, DataNotFoundError, SpecError
from asymlora.tasks.causal_models import (
    TokenCollator,
    TokenRows,
    continuations,
    evaluating,
    load_causal,
    next_token_logits,
    padding_of,
    save_causal,
    token_ids,
    unwrapped,
    window_of,
)
from asymlora.tasks.inputs import ModelRecipe
from asymlora.tasks.token_loss import IGNORED, TARGETS
from small_causal import blind_llama, small_llama, small_tokenizer, write_small_causal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_causal(tmp_path_factory.mktemp("models") / "small-llama")


# --- loading --------------------------------------------------------------------------------------------------------


def test_model_is_loaded_whole_and_gives_token_losses(folder: Path) -> None:
    model, tokenizer = load_causal(ModelRecipe(name=str(folder)))
    assert not model.training
    for name, parameter in small_llama().named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
    model.requires_grad_(False)
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids, **{TARGETS: ids}).loss.shape == (1, 3)
    assert window_of(model, tokenizer) == 512


def test_base_is_stored_as_asked(folder: Path) -> None:
    model, _ = load_causal(ModelRecipe(name=str(folder), base="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_end_token_pads_where_there_is_no_padding_token(tmp_path: Path) -> None:
    model, tokenizer = load_causal(ModelRecipe(name=str(write_small_causal(tmp_path / "m"))))
    assert padding_of(tokenizer) == tokenizer.eos_token_id == model.config.pad_token_id
    own = load_causal(ModelRecipe(name=str(write_small_causal(tmp_path / "padded", padding="<|pad|>"))))[1]
    assert own.pad_token == "<|pad|>"


def test_tokenizer_with_neither_end_nor_padding_token_is_refused(tmp_path: Path) -> None:
    name = str(write_small_causal(tmp_path / "m", end=None))
    with pytest.raises(DataNotFoundError, match=r"neither a padding nor an end token.*Save one with a pad_token"):
        load_causal(ModelRecipe(name=name))


def test_lacking_weights_are_refused_and_not_drawn(tmp_path: Path) -> None:
    folder = write_small_causal(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(DataError, match=r"lack weights that would start at random: model.layers.1.mlp"):
        load_causal(ModelRecipe(name=str(folder)))


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "m")
    with pytest.raises(DataNotFoundError, match=r"language model .* could not be loaded"):
        load_causal(ModelRecipe(name=str(tmp_path / "m")))


def test_models_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    for name, config in (("bert", BertConfig()), ("t5", T5Config())):
        config.save_pretrained(tmp_path / name)
        small_tokenizer().save_pretrained(tmp_path / name)
    with pytest.raises(DataNotFoundError, match="bert does not continue texts; its task is text_classification"):
        load_causal(ModelRecipe(name=str(tmp_path / "bert")))
    with pytest.raises(DataNotFoundError, match="t5 is an encoder-decoder; its task is seq2seq"):
        load_causal(ModelRecipe(name=str(tmp_path / "t5")))


def test_bert_that_was_trained_as_a_decoder_is_taken(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=265,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        is_decoder=True,
        max_position_embeddings=64,
    )
    BertLMHeadModel(config).save_pretrained(tmp_path / "m")
    small_tokenizer().save_pretrained(tmp_path / "m")
    assert isinstance(load_causal(ModelRecipe(name=str(tmp_path / "m")))[0], BertLMHeadModel)


def test_saved_model_loads_without_asymlora_and_tells_no_path(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal(ModelRecipe(name=str(folder)))
    (tmp_path / "out").mkdir()
    save_causal(model, tokenizer, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")("a text", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, model(**inputs).logits)
    assert "_name_or_path" not in json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))


# --- rows and batches -----------------------------------------------------------------------------------------------


def test_first_token_of_a_row_is_never_predicted() -> None:
    rows = TokenRows([([5, 6, 7], [True, True, True]), ([8, 9], [False, True])])
    assert rows[0] == {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}
    assert (len(rows), rows.lengths, rows.targets) == (2, [3, 2], 3)


def test_fingerprint_changes_with_tokens_and_with_what_is_predicted() -> None:
    given = [([5, 6, 7], [False, True, True]), ([5, 6, 8], [False, True, True]), ([5, 6, 7], [False, False, True])]
    assert len({tuple(TokenRows([row]).fingerprint()) for row in given}) == 3
    assert list(TokenRows(given[:1]).fingerprint()) == list(TokenRows([([5, 6, 7], [True] * 3)]).fingerprint())


def test_batch_is_padded_on_the_right_and_tells_what_comes_next() -> None:
    batch = TokenCollator(9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [-100]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100] * 3]
    assert batch[TARGETS].tolist() == [[2, 3, -100], [-100] * 3]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_tokens_come_without_an_end_token_of_the_tokenizers_own() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = small_tokenizer()
    plain = token_ids(tokenizer, "ab")
    names = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|system|>", "<|end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A <|end|>", special_tokens=names
    )
    assert token_ids(tokenizer, "ab") == plain
    assert token_ids(tokenizer, "ab", start=True) == [names[0][1], *plain]


# --- asking ---------------------------------------------------------------------------------------------------------


def _alone(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    written = list(ids)
    for _ in range(count):
        with torch.no_grad():
            written.append(int(model(input_ids=torch.tensor([written])).logits[0, -1].argmax()))
    return written[len(ids) :]


def test_continuations_of_unequal_prompts_are_those_of_each_alone() -> None:
    model, tokenizer = small_llama(), small_tokenizer(padding="<|pad|>")
    prompts = [token_ids(tokenizer, text) for text in ("one", "a much longer text", "x")]
    model.train()
    given = continuations(model, tokenizer, prompts, max_new_tokens=4, limit=100)
    assert model.training
    model.eval()
    by_hand = [tokenizer.decode(_alone(model, ids, 4), skip_special_tokens=True) for ids in prompts]
    assert given == by_hand
    assert len(set(given)) > 1


def test_next_token_logits_of_unequal_prompts_are_those_of_each_alone() -> None:
    model, tokenizer = small_llama(), small_tokenizer()
    prompts = [token_ids(tokenizer, "t" * length) for length in (3, 7, 1, 7, 2, 9, 4, 5, 6, 8)]
    with evaluating(model):
        given = next_token_logits(model, prompts, pad_token_id=0)
        by_hand = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in prompts])
    torch.testing.assert_close(given, by_hand, rtol=1e-4, atol=1e-5)


def test_continuation_ends_at_the_end_token_and_hides_it() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    model = blind_llama({tokenizer.eos_token_id: 5.0})
    assert continuations(model, tokenizer, [[5, 6]], max_new_tokens=9, limit=20) == [""]
    talker = blind_llama({token_ids(tokenizer, "7")[0]: 5.0})
    assert continuations(talker, tokenizer, [[5, 6]], max_new_tokens=3, limit=20) == ["777"]


def test_end_token_of_the_tokenizer_counts_where_the_saved_one_is_no_special_token() -> None:
    tokenizer = small_tokenizer(padding="<|pad|>")
    model = blind_llama({2: 5.0})
    assert model.generation_config.eos_token_id == 2  # the configuration's default, here a letter
    assert continuations(model, tokenizer, [[5]], max_new_tokens=3, limit=20) == [tokenizer.decode([2, 2, 2])]
    assert continuations(model, tokenizer, [[5]], max_new_tokens=3, limit=20, ends=[2]) == [tokenizer.decode([2])]


def test_of_a_prompt_that_is_too_long_the_end_is_read() -> None:
    model, tokenizer = small_llama(), small_tokenizer(padding="<|pad|>")
    ids = token_ids(tokenizer, "the beginning is left out, the end is not")
    whole, end = (continuations(model, tokenizer, [p], max_new_tokens=4, limit=16) for p in (ids, ids[-12:]))
    assert whole == end


def test_no_room_for_a_prompt_and_no_prompt_are_refused() -> None:
    model, tokenizer = small_llama(), small_tokenizer(padding="<|pad|>")
    with pytest.raises(SpecError, match=r"data.max_target_tokens=20 leaves no room for a prompt: the model sees 20"):
        continuations(model, tokenizer, [[5]], max_new_tokens=20, limit=20)
    with pytest.raises(SpecError, match="An empty text cannot be gone on with"):
        continuations(model, tokenizer, [[]], max_new_tokens=2, limit=20)


def test_model_is_found_inside_a_wrapper() -> None:
    model = small_llama()
    wrapper = torch.nn.Sequential(torch.nn.Sequential(model))
    assert unwrapped(wrapper) is model
    assert unwrapped(model) is model
