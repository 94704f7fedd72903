"""Images as a model sees them: checked, decoded, resized, normalised. Random changes are in `augmentation`."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from asymlora.errors import DataError
from asymlora.tasks.augmentation import Augmentation

SETTINGS_FILE = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CACHE_BYTES = 256 * 2**20
"""Decoded and resized images that one set of rows keeps in memory; further ones are decoded each time."""
DECODED_FIRST = 5000
"""Up to as many images are decoded before the training; of more, the headers are read."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How a decoded image becomes numbers.

    Attributes:
        size: Pixels of a side: the shorter one is resized to it, and the centre is kept.
        mean: Subtracted from each channel after scaling.
        std: Divides each channel after that.
        scale: Factor of the bytes.
    """

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1 / 255

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the settings as transformers reads them.

        Args:
            folder: An existing folder.
        """
        side = {"height": self.size, "width": self.size}
        settings = {
            "image_processor_type": "BitImageProcessor",  # the one that resizes the shorter side and crops the centre
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")

    def centre(self, image: Image.Image) -> np.ndarray:
        """Return the resized centre of an image, shape ``(size, size, 3)``, uint8."""
        resized = image.resize(_shorter_side(image.size, self.size), Image.Resampling.BICUBIC)
        left, top = ((side - self.size) // 2 for side in resized.size)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))

    def values(self, pixels: np.ndarray) -> Tensor:
        """Return the model's input, shape ``(3, size, size)``, float32, of pixels ``(size, size, 3)``, uint8."""
        scaled = pixels.astype(np.float32) * np.float32(self.scale)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))


def read_settings(file: Path | None, *, size: int) -> ImageSettings:
    """Return the settings of a model's folder, at a size of ours.

    Args:
        file: Its ``preprocessor_config.json``; None, or a file that is not there: ImageNet's mean and deviation.
        size: Pixels of a side.

    Returns:
        The settings.

    Raises:
        DataError: The file cannot be read, or asks for what is not done here.
    """
    if file is None or not file.is_file():
        return ImageSettings(size=size)
    try:
        return _settings(json.loads(file.read_text(encoding="utf-8")), size)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{file.name} of the model cannot be used: {error}. Mend it, or give another model.") from None


def _settings(content: dict[str, Any], size: int) -> ImageSettings:
    normal = content.get("do_normalize", True)
    mean = tuple(map(float, content.get("image_mean") or IMAGENET_MEAN)) if normal else (0.0,) * 3
    std = tuple(map(float, content.get("image_std") or IMAGENET_STD)) if normal else (1.0,) * 3
    scale = float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"image_mean={mean} and image_std={std} must be three numbers each, deviations above 0")
    if content.get("do_flip_channel_order"):
        raise ValueError("do_flip_channel_order=True: models that read blue first are not fed here")
    return ImageSettings(size=size, mean=mean, std=std, scale=scale)


class ImageItems(Dataset[dict[str, Any]]):
    """Images and labels as a model sees them, decoded when first asked for.

    What is kept in memory is the decoded image, resized and not yet augmented, up to `CACHE_BYTES`.

    Args:
        images: Bytes of files, paths, or uint8 arrays ``(height, width)`` or ``(height, width, 3)``.
        labels: Their labels, as indices.
        settings: How they become numbers.
        augmentation: Random changes, for training rows; None: none.
        tokens: Patches of an image, the length of each row.
    """

    def __init__(
        self,
        images: Sequence[Any],
        labels: Sequence[int],
        *,
        settings: ImageSettings,
        augmentation: Augmentation | None = None,
        tokens: int = 1,
    ) -> None:
        self.images = images
        self.labels = np.asarray(labels)
        self.settings = settings
        self.augmentation = augmentation
        self.tokens = tokens
        self.epoch = 0
        self._kept: dict[int, np.ndarray] = {}
        self._room = CACHE_BYTES

    def set_epoch(self, epoch: int) -> None:
        """Choose the random changes; to be called at the start of each epoch, also of a resumed one.

        Args:
            epoch: Passes over the rows before this one. Worker processes that outlive an epoch do not learn of it.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            pixels = self._pixels(index)
        except Exception as error:
            raise DataError(
                f"Image {index + 1} of {len(self)}{_file_of(self.images[index])} cannot be read: {_reason(error)}. Mend"
                " or remove it."
            ) from error
        if self.augmentation is not None:
            image = Image.fromarray(pixels)
            pixels = self.augmentation.apply(image, size=self.settings.size, epoch=self.epoch, row=index)
        return {"pixel_values": self.settings.values(pixels), "labels": int(self.labels[index])}

    @property
    def lengths(self) -> list[int]:
        """Patches of each image: all have the same."""
        return [self.tokens] * len(self)

    def plain(self) -> ImageItems:
        """Return the same rows without random changes."""
        return ImageItems(self.images, self.labels.tolist(), settings=self.settings, tokens=self.tokens)

    def fingerprint(self) -> Iterator[bytes]:
        """Yield the settings, and of each row the digest of its image and its label.

        Of more than `DECODED_FIRST` files on the disk, name and size stand for the content.
        """
        changes = asdict(self.augmentation) if self.augmentation else None
        yield json.dumps([asdict(self.settings), changes]).encode()
        for image, label in zip(self.images, self.labels.tolist(), strict=True):
            yield _identity(image, whole=len(self) <= DECODED_FIRST) + str(label).encode()

    def broken(self, *, decode_all: bool) -> list[tuple[int, str]]:
        """Return row and reason of each image that cannot be read.

        Args:
            decode_all: Decode each image; else read headers only.

        Returns:
            Rows counted from 0, in order.
        """
        found: list[tuple[int, str]] = []
        for row, image in enumerate(self.images):
            try:
                if decode_all:
                    self._pixels(row)
                else:
                    _opened(image).close()
            except Exception as error:
                found.append((row, _reason(error)))
        return found

    def _pixels(self, index: int) -> np.ndarray:
        if (kept := self._kept.get(index)) is not None:
            return kept
        image = _decoded(self.images[index])
        if self.augmentation is None:
            pixels = self.settings.centre(image)
        else:
            # As large as the smallest crop needs: it is never enlarged more than from the file.
            side = math.ceil(self.settings.size / math.sqrt(self.augmentation.area[0]))
            if min(image.size) > side:
                image = image.resize(_shorter_side(image.size, side), Image.Resampling.BICUBIC)
            pixels = np.asarray(image)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[index] = pixels
        return pixels


def refuse_broken(sets: Mapping[str, ImageItems]) -> None:
    """Refuse images that cannot be read, all of them at once.

    Args:
        sets: The images by what their part is called.

    Raises:
        DataError: Some are broken; the first ones and their number are told.
    """
    decode_all = sum(map(len, sets.values())) <= DECODED_FIRST
    broken = [
        f"{name}, row {row + 1}{_file_of(items.images[row])}: {reason}"
        for name, items in sets.items()
        for row, reason in items.broken(decode_all=decode_all)
    ]
    if broken:
        count = f"{len(broken)} image{'s' if len(broken) > 1 else ''}"
        more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise DataError(
            f"{count} cannot be read ({'; '.join(broken[:_SHOWN])}{more}). Rows are counted from 1 in the part as it is"
            " used. Give the bytes or paths of files that Pillow reads, or uint8 arrays; mend or remove these rows."
        )


def decode(image: Any) -> Image.Image:
    """Return an image in RGB, the way up that its camera noted.

    Args:
        image: Bytes of a file, a path, or a uint8 array ``(height, width)`` or ``(height, width, 3)``.

    Returns:
        The image.

    Raises:
        DataError: It cannot be read; the reason is told.
    """
    try:
        return _decoded(image)
    except Exception as error:
        raise DataError(f"The image{_file_of(image)} cannot be read: {_reason(error)}.") from error


def _decoded(image: Any) -> Image.Image:
    with _opened(image) as opened:
        opened.load()
        return _in_colour(ImageOps.exif_transpose(opened))


def _opened(image: Any) -> Image.Image:
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, str | Path):
        return Image.open(Path(image).expanduser())
    if not isinstance(image, np.ndarray):
        raise ValueError(f"a {type(image).__name__} is neither bytes, a path nor an array")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0 or image.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"an array of {image.dtype} and shape {image.shape}; uint8 and (height, width) or (height, width, 3)"
            " are read"
        )
    return Image.fromarray(np.ascontiguousarray(image))


def _in_colour(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}); save it with 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _identity(image: Any, *, whole: bool) -> bytes:
    if isinstance(image, np.ndarray):
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    path = Path(image).expanduser()
    return hashlib.sha256(path.read_bytes()).digest() if whole else f"{path.name} {path.stat().st_size} ".encode()


def _file_of(image: Any) -> str:
    return f" ({image})" if isinstance(image, str | Path) else ""


def _reason(error: Exception) -> str:
    # What Pillow makes of a user's broken file is any kind of error.
    if isinstance(error, UnidentifiedImageError):
        return "it is in no format that Pillow reads"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return " ".join(str(error).split()) or type(error).__name__
