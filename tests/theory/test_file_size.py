from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

import asymlora as al
from asymlora.errors import UnknownNameError
from asymlora.own_file import FACTORS_FILE
from asymlora.peft_format import WEIGHTS_FILE
from asymlora.theory.file_size import adapter_file_bytes, safetensors_bytes
from asymlora.theory.model_shapes import read_model


def _bert() -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**shape, intermediate_size=384, vocab_size=99))


@pytest.mark.parametrize("preset", ["lora", "b_only", "a_only"])
@pytest.mark.parametrize("options", [{}, {"targets": ("query", "value")}, {"rank_pattern": {"query": 2}}], ids=str)
@pytest.mark.parametrize("form", ["peft", "seed"])
def test_adapter_files_have_the_predicted_size(preset: str, options: Any, form: Any, tmp_path: Path) -> None:
    spec = getattr(al.AdapterSpec, preset)(rank=4, **options)
    base = _bert()
    predicted = adapter_file_bytes(read_model(base, spec).adapted, form=form)
    folder = al.save_adapter(al.attach(base, spec), tmp_path / "adapter", compress=form == "seed")
    assert predicted == (folder / (WEIGHTS_FILE if form == "peft" else FACTORS_FILE)).stat().st_size


def test_a_shared_A_is_written_for_each_site_or_not_at_all(tmp_path: Path) -> None:
    spec = al.AdapterSpec.b_only(rank=4, targets=("query", "key", "value"), shared_A=(("query", "key", "value"),))
    base = _bert()
    layers = read_model(base, spec).adapted
    model = al.attach(base, spec)
    for form, name in (("peft", WEIGHTS_FILE), ("seed", FACTORS_FILE)):
        folder = al.save_adapter(model, tmp_path / form, compress=form == "seed")
        assert adapter_file_bytes(layers, form=form) == (folder / name).stat().st_size  # pyright: ignore[reportArgumentType]


def test_modules_trained_in_full_and_narrow_types_are_counted(tmp_path: Path) -> None:
    spec = al.AdapterSpec.lora(rank=4, modules_to_save=("classifier",))
    base = _bert()
    layers = read_model(base, spec).adapted
    model = al.attach(base, spec)
    head = {f"classifier.{n}": (tuple(p.shape), "float32") for n, p in model.classifier.named_parameters()}
    folder = al.save_adapter(model, tmp_path / "wide")
    assert adapter_file_bytes(layers, modules=head) == (folder / WEIGHTS_FILE).stat().st_size
    folder = al.save_adapter(model.to(torch.bfloat16), tmp_path / "narrow")
    head = {name: (shape, "bfloat16") for name, (shape, _) in head.items()}
    predicted = adapter_file_bytes(layers, dtype="bfloat16", modules=head)
    assert predicted == (folder / WEIGHTS_FILE).stat().st_size


def test_pefts_own_file_has_the_predicted_size(tmp_path: Path) -> None:
    base = _bert()
    layers = read_model(base, al.AdapterSpec.lora(rank=4, targets=("query", "value"))).adapted
    get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"])).save_pretrained(tmp_path)
    assert adapter_file_bytes(layers) == (tmp_path / WEIGHTS_FILE).stat().st_size


@pytest.mark.parametrize("seed", range(5))
def test_files_of_mixed_types_have_the_predicted_size(seed: int, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(seed)
    types = ("float64", "float32", "float16", "bfloat16")
    tensors: dict[str, torch.Tensor] = {}
    for at in range(12):
        shape = torch.randint(1, 12, (int(torch.randint(0, 4, (), generator=draw)),), generator=draw).tolist()
        tensors["layer." * (at % 3) + f"{at}"] = torch.zeros(shape, dtype=getattr(torch, types[at % 4]))
    save_file(tensors, tmp_path / "f", metadata={"format": "pt"})
    described = {key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in tensors.items()}
    assert safetensors_bytes(described) == (tmp_path / "f").stat().st_size


def test_unknown_types_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Known: float64, float32"):
        safetensors_bytes({"w": ((1,), "complex64")})
