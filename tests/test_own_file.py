from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asymlora.draws import DRAWS_VERSION, digest
from asymlora.errors import AdapterFileError
from asymlora.factor_spec import FactorSpec
from asymlora.init import draw
from asymlora.own_file import REMEDY, Draw, OwnFile, parse_own
from asymlora.spec import AdapterSpec

KEY = "base_model.model.q.lora_A.weight"
SPEC = AdapterSpec.b_only(rank=2)


def _draw(**values: Any) -> Draw:
    return Draw(**{"seed": 0, "site": "q", "factor": "A", "init": "orthonormal", "shape": (2, 6), **values})


def test_to_dict_and_parse_undo_each_other_through_json() -> None:
    for config in (None, {"r": 2}):
        own = OwnFile(
            spec=SPEC, form="seed" if config else "peft", draws={KEY: _draw()}, digests={KEY: "0"}, peft_config=config
        )
        assert parse_own(Path("x"), json.loads(json.dumps(own.to_dict()))) == own


def test_a_draw_is_that_of_its_address_in_its_shape_and_type() -> None:
    A = draw("gaussian", (2, 12), seed=3, site="a", factor="A").reshape(2, 3, 2, 2).bfloat16()
    address = _draw(seed=3, site="a", init="gaussian", shape=(2, 3, 2, 2), dtype="bfloat16")
    assert torch.equal(address.values(FactorSpec(init="gaussian")), A)
    half = draw(FactorSpec(init="gaussian", gain=0.25), (2, 6), seed=0, site="q", factor="A")
    assert torch.equal(_draw(init="gaussian").values(FactorSpec(init="gaussian", gain=0.25)), half)


def test_digests_name_what_changed_what_is_missing_and_what_is_new() -> None:
    own = OwnFile(spec=SPEC, digests={"a": digest(torch.zeros(2)), "b": digest(torch.ones(2)), "c": "0"})
    problems = own.problems({"a": torch.zeros(2), "b": torch.zeros(2), "d": torch.zeros(1)})
    assert problems == [
        "b has other values than when asymlora.json was written",
        "c is missing, and asymlora.json has its digest",
        "d has no digest in asymlora.json",
    ]
    assert "delete asymlora.json" in REMEDY["peft"]
    assert "asymlora convert SRC DST --to peft" in REMEDY["seed"]


def test_format_1_is_the_spec_alone() -> None:
    own = parse_own(Path("x"), {"asymlora_version": "0.0", "format": 1, "spec": SPEC.to_dict()})
    assert (own.spec, own.form, own.draws, own.problems({"a": torch.zeros(1)})) == (SPEC, "peft", {}, [])


@pytest.mark.parametrize("key", ["spec", "form", "draws", "digests", "draws_version"])
def test_a_missing_part_is_named(key: str) -> None:
    content = OwnFile(spec=SPEC).to_dict()
    del content[key]
    with pytest.raises(AdapterFileError, match=f"'{key}' is missing"):
        parse_own(Path("x"), content)


def test_an_unknown_key_is_refused_by_name_in_either_format() -> None:
    with pytest.raises(AdapterFileError, match=r"'digest' is unknown\. Did you mean 'digests'"):
        parse_own(Path("x"), {**OwnFile(spec=SPEC).to_dict(), "digest": {}})
    with pytest.raises(AdapterFileError, match="'draws' is unknown in format 1"):
        parse_own(Path("x"), {"format": 1, "spec": SPEC.to_dict(), "draws": {}})


def test_the_file_says_which_draws_it_holds() -> None:
    assert OwnFile(spec=SPEC).to_dict()["draws_version"] == DRAWS_VERSION
