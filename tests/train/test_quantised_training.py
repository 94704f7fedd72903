"""The Trainer over packed bases: with an adapter on them ours trains, without one both refuse."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import asymlora as al
from asymlora.tasks.base_storage import loading_options
from asymlora.tasks.inputs import ModelRecipe
from asymlora.train.trainer import AdapterTrainer

PACKED = pytest.mark.parametrize("base", ["nf4", "int8"])


@pytest.fixture(autouse=True)
def _quiet_imports() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the two packages' own imports
        import bitsandbytes  # noqa: F401
        import torchao  # noqa: F401


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a head, saved; its width is a multiple of NF4's block."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1}
    config = BertConfig(**shape, vocab_size=50, max_position_embeddings=32, num_labels=3)
    folder = tmp_path_factory.mktemp("models") / "encoder"
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def _model(folder: Path, base: Any, *, adapted: bool) -> Any:
    options = loading_options(ModelRecipe(base=base))
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, **options)
    if adapted:
        al.attach(model, al.AdapterSpec.b_only(rank=4, modules_to_save=("classifier",)))
    return model


def _arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )


def _rows() -> list[dict[str, Any]]:
    ids = torch.randint(5, 50, (16, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 3} for i, row in enumerate(ids)]


@PACKED
def test_the_stock_trainer_refuses_a_packed_base_with_and_without_our_adapter(
    encoder: Path, tmp_path: Path, base: str
) -> None:
    for adapted in (False, True):
        with pytest.raises(ValueError, match="purely quantized"):
            Trainer(_model(encoder, base, adapted=adapted), _arguments(tmp_path), train_dataset=_rows())  # pyright: ignore[reportArgumentType]


@PACKED
def test_ours_refuses_it_without_an_adapter(encoder: Path, tmp_path: Path, base: str) -> None:
    with pytest.raises(ValueError, match="purely quantized"):
        AdapterTrainer(_model(encoder, base, adapted=False), _arguments(tmp_path), train_dataset=_rows())


@PACKED
def test_ours_trains_an_adapter_on_it_and_resumes_to_the_same_bits(encoder: Path, tmp_path: Path, base: str) -> None:
    def trained(folder: Path, resume: Path | None = None) -> Any:
        model = _model(encoder, base, adapted=True)
        trainer = AdapterTrainer(model, _arguments(folder), train_dataset=_rows())
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return model

    model = trained(tmp_path / "whole")
    frozen = _model(encoder, base, adapted=True)
    for one, start in zip(al.sites(model), al.sites(frozen), strict=True):
        assert torch.equal(one.A, start.A)
        assert one.B.abs().max() > 0
    again = trained(tmp_path / "whole", tmp_path / "whole" / "checkpoint-2")
    assert all(torch.equal(one.B, other.B) for one, other in zip(al.sites(model), al.sites(again), strict=True))
    assert torch.equal(model.classifier.weight, again.classifier.weight)
