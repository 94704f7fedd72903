from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from asymlora.errors import SpecError
from asymlora.tasks.beam_search import generation_for, written_ids
from small_seq2seq import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "bart")


@pytest.fixture
def network(folder: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def _inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[0, 20, 30, 40, 2], [0, 50, 60, 2, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


@pytest.mark.parametrize(
    ("saved", "beams", "words"),
    [
        ({"do_sample": True}, 4, r"generation_config\.do_sample=True draws words, but data\.beams=4 asks for a search"),
        ({"do_sample": True}, 1, r"do_sample=True"),
        ({"early_stopping": True}, 1, r"generation_config\.early_stopping=True needs beams, but data\.beams=1"),
        ({"length_penalty": 2.0}, 1, r"generation_config\.length_penalty=2\.0 needs beams"),
        ({"min_length": 9}, 2, r"generation_config\.min_length=9 is above data\.max_target_tokens=8"),
        ({"min_new_tokens": 9}, 2, r"generation_config\.min_new_tokens=9 is above"),
        ({"decoder_start_token_id": 5}, 2, r"decoder_start_token_id=5 is not 2, config's"),
        ({"num_return_sequences": 2}, 2, r"num_return_sequences=2 must be 1"),
        ({"forced_bos_token_id": 50_000}, 2, r"forced_bos_token_id=50000 is outside the vocabulary of 340 tokens"),
        ({"forced_eos_token_id": [2, 777]}, 2, r"forced_eos_token_id=777 is outside"),
        ({"eos_token_id": -3}, 2, r"eos_token_id=-3 is outside"),
        ({"forced_eos_token_id": 2, "suppress_tokens": [2, 9]}, 2, r"suppress_tokens holds \[2\], which is forced"),
        ({"forced_eos_token_id": [2], "suppress_tokens": [2]}, 2, r"suppress_tokens holds \[2\], which is forced"),
    ],
)
def test_settings_that_conflict_are_refused_by_name(
    network: Any, saved: dict[str, Any], beams: int, words: str
) -> None:
    for name, value in saved.items():
        setattr(network.generation_config, name, value)
    with pytest.raises(SpecError, match=words):
        generation_for(network, beams=beams, max_target_tokens=8)


def test_all_conflicts_are_told_at_once(network: Any) -> None:
    network.generation_config.do_sample = True
    network.generation_config.min_length = 20
    network.generation_config.length_penalty = 0.5
    with pytest.raises(SpecError, match=r"do_sample.*min_length.*length_penalty"):
        generation_for(network, beams=1, max_target_tokens=8)


def test_a_model_without_a_start_token_is_refused(network: Any) -> None:
    network.generation_config.decoder_start_token_id = network.config.decoder_start_token_id = None
    with pytest.raises(SpecError, match="decoder_start_token_id is in neither"):
        generation_for(network, beams=2, max_target_tokens=8)


def test_settings_that_fit_a_search_are_kept(network: Any) -> None:
    network.generation_config.update(early_stopping=True, length_penalty=2.0, min_length=4, no_repeat_ngram_size=3)
    generation = generation_for(network, beams=4, max_target_tokens=8)
    assert (generation.early_stopping, generation.length_penalty, generation.min_length) == (True, 2.0, 4)
    assert (generation.num_beams, generation.max_new_tokens, generation.do_sample) == (4, 8, False)
    assert network.generation_config.num_beams is None  # the model's own are not touched


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_generate_writes(network: Any, beams: int) -> None:
    generation = generation_for(network, beams=beams, max_target_tokens=8)
    written = written_ids(network, {**_inputs(), "labels": torch.zeros(2, 3)}, generation)
    own = network.generate(**_inputs(), num_beams=beams, max_new_tokens=8, do_sample=False)[:, 1:]
    assert written.shape == (2, 8)
    assert torch.equal(written[:, : own.shape[1]], own)
    assert torch.equal(written_ids(network, _inputs(), generation), written)


def test_shorter_texts_are_filled_up_with_padding(network: Any) -> None:
    with torch.no_grad():
        network.final_logits_bias[0, 2] = 100.0  # it always ends at once
    written = written_ids(network, _inputs(), generation_for(network, beams=2, max_target_tokens=6))
    assert written.tolist() == [[2, 1, 1, 1, 1, 1]] * 2
