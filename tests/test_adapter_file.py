from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asymlora.adapter_file import (
    AdapterFile,
    draws_of,
    factor_of,
    is_corrected,
    redrawn,
    start_key,
    start_of,
    write_adapter,
)
from asymlora.factor_spec import FactorSpec
from asymlora.peft_format import factor_key, written_config
from asymlora.spec import AdapterSpec

CORRECTED = AdapterSpec(
    A=FactorSpec(init="gaussian"), B=FactorSpec(init="gaussian"), nonzero_start="correct_base", rank=2
)


def _file(**fields: Any) -> AdapterFile:
    given: dict[str, Any] = {
        "folder": Path(),
        "spec": AdapterSpec.b_only(rank=2),
        "factors": {"q": (torch.ones(2, 6), torch.ones(4, 2)), "words": (torch.ones(2, 9), torch.ones(4, 2))},
        "kinds": {"q": "linear", "words": "embedding"},
        "modules": {"head.weight": torch.ones(1)},
        "modules_to_save": ("head",),
        "config": written_config(r=2, lora_alpha=4.0, target_modules=["q", "words"]),
    }
    return AdapterFile(**{**given, **fields})


def test_parts_have_pefts_keys() -> None:
    assert set(_file().parts()) == {
        *(factor_key("q", letter, embedding=False) for letter in "AB"),
        *(factor_key("words", letter, embedding=True) for letter in "AB"),
        "base_model.model.head.weight",
    }


def test_a_corrected_site_gives_twice_the_rank_for_the_original_base() -> None:
    A, B, A_0, B_0 = torch.randn(2, 6), torch.randn(4, 2), torch.randn(2, 6), torch.randn(4, 2)
    file = _file(spec=CORRECTED, factors={"q": (A, B)}, starts={"q": (A_0, B_0)})
    tensors = file.peft_tensors()
    wide_A, wide_B = (tensors[factor_key("q", letter, embedding=False)] for letter in "AB")
    assert torch.allclose(wide_B.double() @ wide_A.double(), B.double() @ A.double() - B_0.double() @ A_0.double())
    assert set(file.parts()) - set(tensors) == {start_key("q", "A"), start_key("q", "B")}


def test_start_keys_and_sites_undo_each_other() -> None:
    assert start_of(start_key("a.b", "B")) == ("a.b", "B")
    assert factor_of(start_key("a", "A")) == ("a", "A")
    assert factor_of(factor_key("a", "A", embedding=True)) == ("a", "A")
    assert factor_of("base_model.model.head.weight") is None
    assert start_of("a.start_A") is None


@pytest.mark.parametrize(("spec", "corrected"), [(AdapterSpec.b_only(), False), (CORRECTED, True)])
def test_only_two_non_zero_starts_are_corrected(spec: AdapterSpec, corrected: bool) -> None:
    assert is_corrected(spec, "q") is corrected


def test_frozen_draws_have_addresses_and_trained_factors_none() -> None:
    file = _file()
    draws = draws_of(file.spec, file.parts(), groups={"q": "q+k"})
    assert {key: (d.site, d.factor) for key, d in draws.items()} == {
        factor_key("q", "A", embedding=False): ("q+k", "A"),
        factor_key("words", "A", embedding=True): ("words", "A"),
    }


def test_only_values_that_are_the_draw_bit_for_bit_count_as_drawn() -> None:
    file = _file()
    draws = draws_of(file.spec, file.parts(), groups={})
    key = factor_key("q", "A", embedding=False)
    A = draws[key].values(file.spec.A)
    drawn = _file(factors={**file.factors, "q": (A, torch.ones(4, 2))}, draws=draws)
    assert redrawn(drawn) == {key}
    A[0, 0] = torch.nextafter(A[0, 0], torch.tensor(2.0))
    assert redrawn(drawn) == set()


def test_writing_the_seed_form_leaves_out_what_is_drawn(tmp_path: Path) -> None:
    file = _file()
    draws = draws_of(file.spec, file.parts(), groups={})
    pairs = {
        s: (draws[factor_key(s, "A", embedding=s == "words")].values(file.spec.A), B)
        for s, (_, B) in file.factors.items()
    }
    left_out = write_adapter(_file(factors=pairs, draws=draws), tmp_path / "seed", form="seed", card=b"")
    assert left_out == set(draws)
    assert set(load_file(tmp_path / "seed" / "factors.safetensors")) == set(file.parts()) - left_out
