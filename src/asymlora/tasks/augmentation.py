"""Random changes of training images, drawn anew for each row and epoch and the same in every process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a training image: DomainBed's, done with Pillow.

    What is drawn follows from the seed, the epoch and the row alone: a resumed run and several processes see the same.

    Attributes:
        seed: Seed of all draws.
        area: Share of the image's area that the crop keeps, least and most.
        ratio: Width by height of the crop, least and most.
        flip: Probability of left for right, in [0, 1].
        jitter: Brightness, contrast and saturation change by up to this share, the hue by up to it of a full turn.
        grey: Probability of losing all colour, in [0, 1].

    Source:
        Gulrajani and Lopez-Paz, 2021, "In Search of Lost Domain Generalization"; values read in the authors' code
        (bilinear there, bicubic here).
    """

    seed: int
    area: tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.3
    grey: float = 0.1

    def apply(self, image: Image.Image, *, size: int, epoch: int, row: int) -> np.ndarray:
        """Return the changed image.

        Args:
            image: In RGB.
            size: Pixels of a side of the result.
            epoch: Passes over the rows before this one.
            row: Which row it is.

        Returns:
            Shape ``(size, size, 3)``, uint8.
        """
        draws = np.random.default_rng((self.seed, epoch, row))
        box = self._box(image.size, draws)
        changed = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        if draws.random() < self.flip:
            changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        changed = self._tinted(changed, draws)
        if draws.random() < self.grey:
            changed = changed.convert("L").convert("RGB")
        return np.asarray(changed)

    def _box(self, size: tuple[int, int], draws: np.random.Generator) -> tuple[int, int, int, int]:
        width, height = size
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area = draws.uniform(*self.area) * width * height
            ratio = math.exp(draws.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1))
                return left, top, left + w, top + h
        # No such crop fits into a long, narrow image: its centre, at the ratio that comes closest.
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def _tinted(self, image: Image.Image, draws: np.random.Generator) -> Image.Image:
        strengths = draws.uniform(1 - self.jitter, 1 + self.jitter, size=3)
        turn = draws.uniform(-self.jitter, self.jitter)
        changes = [
            *(partial(_enhanced, kind, float(strength)) for kind, strength in zip(_KINDS, strengths, strict=True)),
            partial(_turned, turn),
        ]
        for which in draws.permutation(len(changes)):
            image = changes[which](image)
        return image


_KINDS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _enhanced(kind: type[Any], strength: float, image: Image.Image) -> Image.Image:
    return kind(image).enhance(strength)


def _turned(turn: float, image: Image.Image) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    steps = round(turn * 255) % 256
    turned = Image.fromarray(np.asarray(hue) + np.uint8(steps))  # bytes wrap around, as hues do
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
