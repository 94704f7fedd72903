from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from asymlora.tasks.augmentation import Augmentation

NEUTRAL = {"area": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0}


def _picture(width: int = 24, height: int = 24, seed: int = 0) -> Image.Image:
    draws = np.random.default_rng(seed)
    return Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _apply(image: Image.Image, *, size: int = 24, epoch: int = 0, row: int = 0, **options: object) -> np.ndarray:
    return Augmentation(**{"seed": 0, **options}).apply(image, size=size, epoch=epoch, row=row)  # pyright: ignore


def test_the_same_row_and_epoch_give_the_same_pixels_in_any_order() -> None:
    first = [_apply(_picture(), epoch=e, row=r) for e in range(2) for r in range(3)]
    again = [_apply(_picture(), epoch=e, row=r) for e in reversed(range(2)) for r in reversed(range(3))]
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("other", [{"epoch": 1}, {"row": 1}, {"seed": 1}])
def test_another_epoch_row_or_seed_gives_other_pixels(other: dict[str, int]) -> None:
    assert (_apply(_picture()) != _apply(_picture(), **other)).any()  # pyright: ignore[reportArgumentType]


def test_nothing_to_change_changes_nothing_but_the_rounding_of_hues() -> None:
    # Through HSV and back, bytes move by a few.
    changed = _apply(_picture(), **NEUTRAL).astype(int)
    assert np.abs(changed - np.asarray(_picture()).astype(int)).max() <= 8


def test_crops_keep_the_wanted_share_and_shape_and_reach_every_side() -> None:
    augmentation = Augmentation(seed=0)
    boxes = np.array([augmentation._box((100, 80), np.random.default_rng(seed)) for seed in range(300)])
    left, top, right, bottom = boxes.T
    assert left.min() == 0
    assert top.min() == 0
    assert right.max() == 100
    assert bottom.max() == 80
    area = (right - left) * (bottom - top) / 8000
    # A pixel of rounding on either side.
    assert area.min() > 0.68
    assert area.max() <= 1.0
    ratio = (right - left) / (bottom - top)
    assert ratio.min() > 0.73
    assert ratio.max() < 1.36
    assert len({tuple(box) for box in boxes}) > 250


@pytest.mark.parametrize(("size", "box"), [((400, 3), (198, 0, 202, 3)), ((3, 400), (0, 198, 3, 202))])
def test_a_long_narrow_image_gives_its_centre(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert Augmentation(seed=0)._box(size, np.random.default_rng(0)) == box


def test_half_of_the_images_are_mirrored() -> None:
    wedge = Image.fromarray(np.repeat(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))[..., None], 3, axis=2))
    options = {**NEUTRAL, "flip": 0.5}
    mirrored = [_apply(wedge, row=row, **options)[0, 0, 0] > 128 for row in range(300)]
    assert 120 < sum(mirrored) < 180


def test_a_tenth_of_the_images_loses_its_colour() -> None:
    grey = [bool((np.ptp(_apply(_picture(), row=row), axis=2) == 0).all()) for row in range(400)]
    assert 20 < sum(grey) < 65


def test_brightness_changes_by_up_to_the_jitter() -> None:
    plain = Image.new("RGB", (8, 8), (100, 100, 100))
    # Contrast, saturation and hue leave an even grey as it is.
    levels = [_apply(plain, size=8, row=row)[0, 0, 0] for row in range(300)]
    assert 70 <= min(levels) < 76
    assert 124 < max(levels) <= 130


def test_hues_turn_both_ways_and_wrap_around() -> None:
    red = Image.new("RGB", (8, 8), (200, 20, 20))
    pixels = np.array([_apply(red, size=8, row=row)[0, 0] for row in range(200)]).astype(int)
    # Up to 0.3 of a turn: towards green on one side, towards blue on the other.
    assert (pixels[:, 1] > pixels[:, 2] + 30).any()
    assert (pixels[:, 2] > pixels[:, 1] + 30).any()
