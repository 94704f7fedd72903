from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from asymlora.errors import SpecError
from asymlora.train.advice_options import KEPT, AdvisingSettings, refuse_chosen
from asymlora.train.recipe import Recipe


@pytest.mark.parametrize(("name", "value"), [("batches", 1), ("rows", 7), ("values", 0)])
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(SpecError, match=f"{name}={value} must be at least"):
        AdvisingSettings(**{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"adapter": "lora"}, "adapter.A is what advice chooses"),
        ({"adapter": "a_only"}, "adapter.A, adapter.B is what advice chooses"),
        ({"adapter": {"rank_pattern": {"query": 2}}}, "adapter.rank_pattern is what advice chooses"),
        ({"method": "full"}, "method='full' has no factors"),
        ({"train": {"gradient_correction": True}}, "gradient_correction"),
        ({"train": {"sharding": "fsdp"}}, "one process"),
    ],
)
def test_what_advice_is_to_choose_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        refuse_chosen(Recipe.from_dict(given))


def test_what_is_left_to_the_user_is_taken() -> None:
    fields = {"rank": 4, "alpha": 4.0, "dropout": 0.1, "targets": ["query"], "modules_to_save": ["norm"], "seed": 3}
    assert set(fields) | {"scaling"} == set(KEPT)
    refuse_chosen(Recipe.from_dict({"adapter": {**fields, "scaling": "rank_stabilized"}}))


def test_the_options_load_no_torch() -> None:
    light = "import sys, asymlora.train.advice_options, asymlora.commands.advise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
