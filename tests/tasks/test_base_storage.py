from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import asymlora as al
from asymlora.errors import MissingPackageError
from asymlora.layers import LinearAdapter
from asymlora.packed_base import keep_trainable
from asymlora.tasks.base_storage import HEADS, loading_options
from asymlora.tasks.inputs import ModelRecipe
from asymlora.tasks.sources import find_model

STORAGES = ("float32", "bfloat16", "nf4", "int8")
PACKED = ("nf4", "int8")


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
    shape = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
    config = BertConfig(**shape, vocab_size=50, max_position_embeddings=32, initializer_range=0.2, num_labels=3)
    folder = tmp_path_factory.mktemp("models") / "encoder"
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def _load(folder: Any, base: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    options = loading_options(ModelRecipe(base=base))
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, **options).eval()


def _logits(model: Any, tokens: int = 50) -> Tensor:
    ids = torch.randint(5, tokens, (4, 12), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def _is_packed(layer: Any) -> bool:
    return type(layer).__name__ == "Linear4bit" or type(layer.weight) is not torch.nn.Parameter


@pytest.mark.parametrize("base", STORAGES)
def test_the_trunk_is_stored_as_asked_and_heads_are_plain(encoder: Path, base: str) -> None:
    model = _load(encoder, base)
    linear = {n: m for n, m in model.named_modules() if LinearAdapter.takes(m)}
    packed = {name for name, layer in linear.items() if _is_packed(layer)}
    plain = {"bert.pooler.dense", "classifier"}
    assert packed == (set(linear) - plain if base in PACKED else set())
    floats = {p.dtype for n, p in model.named_parameters() if n.startswith(("classifier", "bert.pooler", "bert.emb"))}
    assert floats == {torch.bfloat16 if base == "bfloat16" else torch.float32}


@pytest.mark.parametrize("base", STORAGES)
def test_nothing_is_hooked_or_placed_by_accelerate(encoder: Path, base: str) -> None:
    model = _load(encoder, base)
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    assert not hasattr(model, "hf_device_map")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("base", STORAGES)
def test_an_adapter_with_a_frozen_A_starts_as_the_base_and_trains_on_it(encoder: Path, base: str) -> None:
    model = _load(encoder, base)
    keep_trainable(model)
    before = _logits(model).detach()
    al.attach(model, al.AdapterSpec.b_only(rank=4, modules_to_save=("classifier",)))
    assert torch.equal(_logits(model).detach(), before)
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.01))
    labels = torch.tensor([0, 1, 2, 0])
    losses: list[float] = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(_logits(model).float(), labels)
        loss.backward()
        assert all(site.B.grad is not None and site.B.grad.isfinite().all() for site in al.sites(model))
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("base", "most"), [("bfloat16", 0.05), ("int8", 0.05), ("nf4", 0.4)])
def test_logits_of_the_real_encoder_stay_near_those_in_float32(base: str, most: float) -> None:
    try:
        folder = find_model("embedded:minilm-l6")[1]
    except MissingPackageError:
        pytest.skip("the embedded encoder is not installed")
    from transformers import AutoModel

    def features(base: Any) -> Tensor:
        model = AutoModel.from_pretrained(folder, local_files_only=True, **loading_options(ModelRecipe(base=base)))
        ids = torch.randint(1000, 20000, (4, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()

    plain, stored = features("float32"), features(base)
    gap = float((stored - plain).norm() / plain.norm())
    # Rounding to 8 bits of mantissa, 8 and 4 bits a weight, through six layers.
    assert 1e-4 < gap < most


@pytest.mark.parametrize(("base", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, base: Any, package: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(MissingPackageError, match=f"model.base='{base}' needs {package}.*pip install {package}"):
        loading_options(ModelRecipe(base=base))


def test_no_head_that_a_task_trains_is_packed() -> None:
    assert {"classifier", "score", "lm_head", "pooler"} <= set(HEADS)
