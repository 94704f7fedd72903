from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from asymlora.errors import DataNotFoundError, SpecError
from asymlora.tasks.image_models import ImageModel, head_features, load_image_model, patch_size
from asymlora.tasks.inputs import ModelRecipe

LABELS = ("cat", "dog", "owl")
SHAPE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def _dinov2() -> PreTrainedModel:
    return Dinov2Model(Dinov2Config(**SHAPE, mlp_ratio=2, image_size=16, patch_size=4))


def _vit() -> PreTrainedModel:
    return ViTModel(ViTConfig(**SHAPE, intermediate_size=24, image_size=16, patch_size=4), add_pooling_layer=False)


def _resnet() -> PreTrainedModel:
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))


def _clip() -> PreTrainedModel:
    tower = {**SHAPE, "intermediate_size": 24}
    return CLIPModel(
        CLIPConfig(
            text_config={**tower, "vocab_size": 20, "max_position_embeddings": 8},
            vision_config={**tower, "image_size": 16, "patch_size": 4},
            projection_dim=8,
        )
    )


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageModel]:
    """Write a small random base, and load it with a head: by what builds it, size and seed."""

    def load(
        build: Callable[[], PreTrainedModel], *, size: int = 16, seed: int = 0, labels: tuple[str, ...] = LABELS
    ) -> ImageModel:
        torch.manual_seed(0)
        build().save_pretrained(tmp_path)
        torch.manual_seed(seed)
        return load_image_model(ModelRecipe(name=str(tmp_path)), label_names=labels, size=size)

    return load


def _pixels(size: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("build", "head"), [(_dinov2, "classifier"), (_vit, "classifier"), (_resnet, "classifier.1")])
def test_a_base_gets_a_head_that_reads_its_features(
    load: Callable[..., ImageModel], build: Callable[[], PreTrainedModel], head: str
) -> None:
    loaded = load(build)
    assert not loaded.model.training
    assert loaded.heads == ("classifier",)
    assert loaded.head == head
    assert loaded.reads_head
    assert loaded.model.config.id2label == dict(enumerate(LABELS))
    pixels, linear = _pixels(16), loaded.model.get_submodule(head)
    told: list[int] = []
    features = head_features(
        loaded.model, head, [{"pixel_values": pixels[:2]}, {"pixel_values": pixels[2:]}], done=told.append
    )
    assert told == [2, 1]
    assert features.dtype == np.float32
    with torch.no_grad():
        expected = loaded.model(pixel_values=pixels).logits
        torch.testing.assert_close(linear(torch.tensor(features)), expected, rtol=1e-5, atol=1e-5)
    assert not linear._forward_pre_hooks


def test_dinov2s_features_are_the_class_token_and_the_mean_of_the_patches(load: Callable[..., ImageModel]) -> None:
    loaded = load(_dinov2)
    pixels = _pixels(16)
    features = head_features(loaded.model, loaded.head, [{"pixel_values": pixels}])
    with torch.no_grad():
        hidden = loaded.model.base_model(pixels).last_hidden_state
    expected = torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(torch.tensor(features), expected)


def test_the_head_follows_the_seed_and_the_base_does_not(load: Callable[..., ImageModel]) -> None:
    one, same, other = (load(_vit, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert [key for key in one if not torch.equal(one[key], other[key])] == ["classifier.weight"]


@pytest.mark.parametrize("build", [_dinov2, _vit])
@pytest.mark.parametrize("size", [8, 24])
def test_positions_are_interpolated_at_other_sizes(
    load: Callable[..., ImageModel], build: Callable[[], PreTrainedModel], size: int
) -> None:
    loaded = load(build, size=size)
    assert loaded.tokens == (size // 4) ** 2
    assert loaded.model(pixel_values=_pixels(size)).logits.shape == (3, 3)


def test_interpolation_is_the_models_own_and_survives_a_copy(load: Callable[..., ImageModel]) -> None:
    loaded = load(_vit, size=24)
    plain = ViTForImageClassification(loaded.model.config).eval()
    plain.load_state_dict(loaded.model.state_dict())
    pixels = _pixels(24)
    with torch.no_grad():
        expected = plain(pixel_values=pixels, interpolate_pos_encoding=True).logits
        for model in (loaded.model, copy.deepcopy(loaded.model)):
            torch.testing.assert_close(model(pixel_values=pixels).logits, expected)
            # As PEFT calls it: the forward of the outermost module, past its hooks.
            torch.testing.assert_close(model.forward(pixel_values=pixels).logits, expected)


def test_at_the_models_own_size_nothing_is_hooked(load: Callable[..., ImageModel]) -> None:
    assert not any(module._forward_pre_hooks for module in load(_vit).model.modules())


def test_a_size_that_cuts_patches_names_the_sizes_around_it(load: Callable[..., ImageModel]) -> None:
    with pytest.raises(SpecError, match=r"data.image_size=18 is no multiple of the 4 pixels .* Give 16 or 20\."):
        load(_dinov2, size=18)
    with pytest.raises(SpecError, match=r"Give 4\."):
        load(_dinov2, size=3)


def test_a_model_of_one_size_says_which(load: Callable[..., ImageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    # A class whose forward does not know the option.
    monkeypatch.setattr("asymlora.tasks.image_models._FLAG", "no_such_option")
    with pytest.raises(SpecError, match=r"does not take images of data.image_size=24 .*Give data.image_size=16, its"):
        load(_vit, size=24)


def test_a_vision_tower_inside_a_larger_model_is_loaded(load: Callable[..., ImageModel]) -> None:
    loaded = load(_clip)
    assert loaded.heads == ("classifier",)
    assert loaded.tokens == 16
    assert loaded.model(pixel_values=_pixels(16)).logits.shape == (3, 3)


def test_convolutions_have_no_patches(load: Callable[..., ImageModel]) -> None:
    loaded = load(_resnet, size=17)
    assert loaded.tokens == 1
    assert patch_size(loaded.model) == 1


def test_a_saved_model_loads_without_us_and_with_us(load: Callable[..., ImageModel], tmp_path: Path) -> None:
    loaded = load(_dinov2)
    folder = tmp_path / "saved"
    folder.mkdir()
    loaded.save(folder)
    pixels = _pixels(16)
    with torch.no_grad():
        expected = loaded.model(pixel_values=pixels).logits
        theirs = AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits
        torch.testing.assert_close(theirs, expected)
        # Its head is in the files: the seed has no say.
        torch.manual_seed(9)
        again = load_image_model(ModelRecipe(name=str(folder)), label_names=LABELS, size=16)
        torch.testing.assert_close(again.model(pixel_values=pixels).logits, expected)
    assert again.settings == loaded.settings


def test_a_head_for_other_labels_is_started_anew(load: Callable[..., ImageModel], tmp_path: Path) -> None:
    loaded = load(_dinov2)
    folder = tmp_path / "saved"
    folder.mkdir()
    loaded.save(folder)
    other = load_image_model(ModelRecipe(name=str(folder)), label_names=("a", "b"), size=16)
    assert other.model.get_submodule("classifier").out_features == 2
    assert other.heads == ("classifier",)


def test_weights_that_are_missing_in_the_base_are_refused(load: Callable[..., ImageModel], tmp_path: Path) -> None:
    load(_dinov2)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    gone = next(key for key in weights if key.endswith("norm1.weight"))
    save_file({key: value for key, value in weights.items() if key != gone}, file, metadata={"format": "pt"})
    with pytest.raises(DataNotFoundError, match=r"its files lack weights that would start at random: dinov2.*norm1"):
        load_image_model(ModelRecipe(name=str(tmp_path)), label_names=LABELS, size=16)


def test_a_text_model_is_not_loaded_for_images(small_encoder: Path) -> None:
    with pytest.raises(DataNotFoundError, match="could not be loaded for images"):
        load_image_model(ModelRecipe(name=str(small_encoder)), label_names=LABELS, size=16)


@pytest.mark.parametrize("base", ["bfloat16"])
def test_a_base_in_bfloat16_takes_float32_images(load: Callable[..., ImageModel], tmp_path: Path, base: Any) -> None:
    for build in (_dinov2, _vit, _resnet):
        load(build)
        loaded = load_image_model(ModelRecipe(name=str(tmp_path), base=base), label_names=LABELS, size=16)
        assert loaded.model.dtype == torch.bfloat16
        features = head_features(loaded.model, loaded.head, [{"pixel_values": _pixels(16)}])
        assert features.dtype == np.float32
