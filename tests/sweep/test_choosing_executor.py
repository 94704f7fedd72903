"""Words of the command line to executors: sizes, names, and options that would be passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.errors import SpecError, UnknownNameError
from asymlora.sweep.choosing_executor import make_executor, parse_bytes, workers_of
from asymlora.sweep.executors import InProcess
from asymlora.sweep.local_processes import LocalProcesses


def test_names_give_executors(tmp_path: Path) -> None:
    with make_executor("inline", tmp_path, threads=1) as inline:
        assert isinstance(inline, InProcess)
    with make_executor("processes", tmp_path, workers=2, memory="4GiB") as processes:
        assert isinstance(processes, LocalProcesses)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("2kB", 2000), ("2KiB", 2048), ("1.5GB", 1_500_000_000), (" 12 GiB ", 12 * 2**30), ("3Mi", 3 * 2**20)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "0", "-1GB", "1.2.3GB", "4 lots", "nanGB", "1iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"--memory .* is no size\. Write"):
        parse_bytes(text)


def test_an_executor_that_is_none_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'rey'\. Did you mean 'ray'\? Known: inline, processes, ray"):
        make_executor("rey", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("inline", {"workers": 2}, "inline does not read --workers"),
        ("inline", {"memory": "1GB", "address": "auto"}, "inline does not read --memory and --address"),
        ("processes", {"address": "auto"}, "processes does not read --address"),
        ("ray", {"workers": 2}, "ray does not read --workers"),
        ("processes", {"workers": 0}, "--workers 0 must be at least 1"),
        ("processes", {"memory": "much"}, "--memory much is no size"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(
    tmp_path: Path, name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        make_executor(name, tmp_path, **options)  # pyright: ignore[reportArgumentType]


def test_workers_that_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert workers_of("inline", workers=None, threads=2) == 1
    assert workers_of("processes", workers=3, threads=2) == 3
    assert workers_of("processes", workers=None, threads=2) == 4
    assert workers_of("ray", workers=None, threads=None) == 8
    assert workers_of("ray", workers=None, threads=16) == 1
