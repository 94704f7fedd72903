"""The rule that CI fails on a skip that it did not expect."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("reason", "options", "code"),
    [
        ("the moon is full", [], 0),
        ("the moon is full", ["--expect-skips"], 1),
        ("no CUDA device", ["--expect-skips"], 0),
    ],
)
def test_an_unexpected_skip_fails_only_where_skips_are_watched(
    tmp_path: Path, reason: str, options: list[str], code: int
) -> None:
    for name in ("conftest.py", "cases.py"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "test_x.py").write_text(
        f"import pytest\n\ndef test_one():\n    pytest.skip({reason!r})\n\ndef test_two():\n    pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, *options, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    assert ("UNEXPECTED SKIP" in done.stdout) == bool(code)
