from __future__ import annotations

import hashlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asymlora.errors import DataError
from asymlora.tasks import images as module
from asymlora.tasks.augmentation import Augmentation
from asymlora.tasks.images import ImageItems, ImageSettings, decode, read_settings, refuse_broken


def _array(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _file(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def _items(images: list[Any], *, size: int = 16, **options: Any) -> ImageItems:
    return ImageItems(images, list(range(len(images))), settings=ImageSettings(size=size), **options)


# --- decoding ------------------------------------------------------------------------------------------------------


def test_bytes_paths_and_arrays_give_the_same_image(tmp_path: Path) -> None:
    array = _array()
    path = tmp_path / "one.png"
    path.write_bytes(_file(array))
    for given in (_file(array), str(path), path, array):
        image = decode(given)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), array)


def test_grey_images_have_three_equal_channels() -> None:
    grey = _array()[..., 0]
    for given in (grey, _file(grey)):
        np.testing.assert_array_equal(np.asarray(decode(given)), np.repeat(grey[..., None], 3, axis=2))


def test_images_of_sixteen_bits_keep_their_upper_eight() -> None:
    deep = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(decode(_file(deep)))[..., 0], (deep >> 8).astype(np.uint8))


def test_a_palette_with_a_transparent_colour_is_read_without_a_warning() -> None:
    image = Image.fromarray(_array()).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(255)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(buffer.getvalue())
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_an_image_is_turned_the_way_up_that_its_camera_noted() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    array = _array(4, 6)
    np.testing.assert_array_equal(np.asarray(decode(_file(array, exif=exif))), np.rot90(array, -1))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"no image", "it is in no format that Pillow reads"),
        (b"", "it is in no format that Pillow reads"),
        (_file(_array(60, 60), "JPEG")[:-400], "truncated"),
        (_file(_array(60, 60))[:-400], "truncated"),
        ("nowhere/one.png", r"The image \(nowhere/one.png\) cannot be read: there is no such file"),
        (_array().astype(np.float32), r"an array of float32 and shape \(20, 30, 3\); uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (7, "a int is neither bytes, a path nor an array"),
        (_file(_array()[..., 0].astype(np.float32), "TIFF"), "32-bit numbers"),
    ],
)
def test_what_is_no_image_says_why(image: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(image)


# --- settings ------------------------------------------------------------------------------------------------------


def test_the_shorter_side_is_resized_and_the_centre_kept() -> None:
    halves = np.zeros((10, 30, 3), np.uint8)
    halves[:, 10:20] = 255
    pixels = ImageSettings(size=20).centre(Image.fromarray(halves))
    assert pixels.shape == (20, 20, 3)
    assert pixels[:, 2:-2].min() == 255


def test_tiny_images_are_enlarged() -> None:
    assert ImageSettings(size=32).centre(decode(_array(8, 8))).shape == (32, 32, 3)


def test_bytes_are_scaled_and_normalised_by_channel() -> None:
    settings = ImageSettings(size=2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    values = settings.values(np.full((2, 2, 3), 255, np.uint8))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor([1.0, 3.0, 0.5])[:, None, None].expand(3, 2, 2))


@pytest.mark.parametrize("shape", [(20, 30), (45, 31), (16, 16), (9, 50)])
def test_the_saved_settings_give_the_same_numbers_in_transformers(tmp_path: Path, shape: tuple[int, int]) -> None:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    settings = ImageSettings(size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    settings.save_pretrained(tmp_path)
    image = decode(_array(*shape))
    theirs = BitImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(settings.values(settings.centre(image)), theirs)
    assert read_settings(tmp_path / module.SETTINGS_FILE, size=16) == settings


def test_without_a_file_the_settings_are_imagenets(tmp_path: Path) -> None:
    for file in (None, tmp_path / "none.json"):
        settings = read_settings(file, size=8)
        assert (settings.mean, settings.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_what_a_folder_switches_off_is_not_done(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"do_normalize": False, "image_mean": [0.5] * 3, "do_rescale": False}))
    settings = read_settings(file, size=8)
    assert (settings.mean, settings.std, settings.scale) == ((0.0,) * 3, (1.0,) * 3, 1.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "preprocessor_config.json of the model cannot be used"),
        ("[]", "cannot be used"),
        ('{"image_mean": [0.5]}', "three numbers each"),
        ('{"image_std": [1, 1, 0]}', "deviations above 0"),
        ('{"image_mean": 0.5}', "cannot be used"),
        ('{"do_flip_channel_order": true}', "blue first"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(content)
    with pytest.raises(DataError, match=reason):
        read_settings(file, size=8)


# --- items ---------------------------------------------------------------------------------------------------------


def test_items_are_what_the_settings_make_of_each_image() -> None:
    images = [_array(seed=seed) for seed in range(3)]
    items = _items(images, tokens=5)
    assert len(items) == 3
    assert items.lengths == [5, 5, 5]
    for row, image in enumerate(images):
        expected = items.settings.values(items.settings.centre(decode(image)))
        for _ in range(2):  # decoded, and kept
            torch.testing.assert_close(items[row]["pixel_values"], expected, rtol=0, atol=0)
        assert items[row]["labels"] == row


def test_each_epoch_has_its_own_pixels_and_they_come_back() -> None:
    items = _items([_array()], augmentation=Augmentation(seed=3))
    first = items[0]["pixel_values"]
    items.set_epoch(1)
    assert not torch.equal(items[0]["pixel_values"], first)
    fresh = _items([_array()], augmentation=Augmentation(seed=3))  # as a resumed run has them
    fresh.set_epoch(1)
    assert torch.equal(items[0]["pixel_values"], fresh[0]["pixel_values"])
    items.set_epoch(0)
    assert torch.equal(items[0]["pixel_values"], first)


def test_plain_items_are_not_changed_at_random() -> None:
    items = _items([_array()], augmentation=Augmentation(seed=3))
    assert torch.equal(items.plain()[0]["pixel_values"], _items([_array()])[0]["pixel_values"])
    assert items.plain().labels.tolist() == items.labels.tolist()


def test_what_does_not_fit_into_the_cache_is_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [_array(seed=seed) for seed in range(3)]
    kept = _items(images)
    monkeypatch.setattr(module, "CACHE_BYTES", 16 * 16 * 3 + 1)
    crowded = _items(images)
    for row in (0, 1, 2, 1):
        assert torch.equal(kept[row]["pixel_values"], crowded[row]["pixel_values"])
    assert list(crowded._kept) == [0]
    assert list(kept._kept) == [0, 1, 2]


def test_large_training_images_are_kept_as_large_as_the_smallest_crop_needs() -> None:
    items = _items([_array(200, 300)], augmentation=Augmentation(seed=0))
    items[0]
    assert items._kept[0].shape == (20, 30, 3)


def test_the_fingerprint_tells_pixels_labels_settings_and_changes_apart(tmp_path: Path) -> None:
    def digest(items: ImageItems) -> str:
        return hashlib.sha256(b"|".join(items.fingerprint())).hexdigest()

    path = tmp_path / "one.png"
    path.write_bytes(_file(_array()))
    images = [_array(), str(path), path.read_bytes()]
    first = digest(_items(images))
    assert first == digest(_items(list(images)))
    seen = {
        first,
        digest(_items([_array(seed=1), *images[1:]])),
        digest(_items(images, size=8)),
        digest(_items(images, augmentation=Augmentation(seed=0))),
        digest(_items(images, augmentation=Augmentation(seed=1))),
        digest(ImageItems(images, [0, 1, 1], settings=ImageSettings(size=16))),
    }
    path.write_bytes(_file(_array(seed=2)))
    assert len({*seen, digest(_items(images))}) == 7


def test_of_very_many_files_name_and_size_are_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(b"12345")
    monkeypatch.setattr(module, "DECODED_FIRST", 0)
    assert list(_items([str(path)]).fingerprint())[1] == b"one.png 5 0"


# --- broken images -------------------------------------------------------------------------------------------------


def test_all_broken_images_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "torn.jpg"
    path.write_bytes(_file(_array(60, 60), "JPEG")[:-400])
    train = _items([_array(), b"no image", str(path), *([b"x"] * 4)])
    test = _items([str(tmp_path / "none.png"), _array()])
    with pytest.raises(DataError) as caught:
        refuse_broken({"train": train, "test": test})
    told = str(caught.value)
    assert told.startswith("7 images cannot be read (train, row 2: it is in no format that Pillow reads; ")
    assert f"train, row 3 ({path}): image file is truncated" in told
    assert told.count("row ") == 5
    assert "and 2 more" in told


def test_sound_images_pass_and_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    items = _items([_array(), _file(_array())])
    refuse_broken({"train": items})
    monkeypatch.setattr(module, "_opened", None)
    assert items[1]["pixel_values"].shape == (3, 16, 16)


def test_of_very_many_images_headers_are_read_first_and_the_rest_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DECODED_FIRST", 1)
    torn = _file(_array(60, 60), "JPEG")[:-400]
    items = _items([_array(), torn])
    refuse_broken({"train": items})
    assert not items._kept
    with pytest.raises(DataError, match=r"Image 2 of 2 cannot be read: .*truncated.* Mend or remove it"):
        items[1]
    with pytest.raises(DataError, match=r"^1 image cannot be read"):
        refuse_broken({"train": _items([_array(), b"no image"])})
