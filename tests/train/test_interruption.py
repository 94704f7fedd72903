"""Interrupted at any moment, a run leaves nothing half-written and resumes to the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")


def _report(recipe: dict[str, Any], root: Path, *, number: int, how: str) -> dict[str, Any]:
    # Dropout in the encoder and in the adapter, and an epoch that ends on the way: the random state must come back. A
    # constant rate, so that a step too many shows.
    recipe["adapter"]["dropout"] = 0.1
    recipe["train"] |= {"steps": 26, "evaluate_every": 4, "schedule": "constant"}
    given = json.dumps({"recipe": recipe, "root": str(root), "number": number, "how": how})
    done = subprocess.run([sys.executable, str(DRIVER), given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("how", "number"), [("SIGKILL", 3), ("SIGINT", 3)])
def test_interrupted_runs_resume_to_the_same_bits(
    small_recipe: dict[str, Any], tmp_path: Path, how: str, number: int
) -> None:
    report = _report(small_recipe, tmp_path, number=number, how=how)
    assert report["problems"] == []
    assert len(report["tried"]) == number
    assert report["resumed_from_checkpoint"] >= number // 2


@pytest.mark.optional  # two runs for each moment: five minutes for sixty of them (ASYMLORA_KILLS=60)
@pytest.mark.timeout(1800)
def test_killed_at_many_moments(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    number = int(os.environ.get("ASYMLORA_KILLS", "6"))
    report = _report(small_recipe, tmp_path, number=number, how="SIGKILL")
    assert report["problems"] == []
    assert len(report["tried"]) == number
