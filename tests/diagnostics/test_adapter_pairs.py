from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import asymlora as al
from asymlora.diagnostics.adapter_pairs import compare_adapters
from asymlora.diagnostics.similarity import (
    A_similarity,
    B_similarity,
    balanced_factors,
    chance_cka,
    linear_cka,
    principal_angles,
)
from asymlora.diagnostics.site_factors import SiteFactors, site_factors
from asymlora.errors import AdapterFileError
from cases import fill_factors, small_net
from frozen_draws import FLOAT, gaussian


def _site(name: str, rank: int = 3, *, seed: int = 0, inputs: int = 16, outputs: int = 12) -> SiteFactors:
    A, B = gaussian(rank, inputs, seed=seed), gaussian(outputs, rank, seed=seed + 1)
    return SiteFactors(name=name, kind="linear", A=A, B=B, scaling=1.0)


def _row(records: list[dict[str, Any]], site: str, factor: str, pair: str = "one ~ two") -> dict[str, Any]:
    (row,) = [r for r in records if (r["site"], r["factor"], r["pair"]) == (site, factor, pair)]
    return row


def test_rows_hold_what_the_functions_of_two_factors_give() -> None:
    one, two = _site("h.4.q", 3), _site("h.4.q", 5, seed=7)
    records, alone = compare_adapters({"one": [one], "two": [two]})
    assert not alone
    assert len(records) == 2
    of_A, of_B = _row(records, "h.4.q", "A"), _row(records, "h.4.q", "B")
    assert of_A["cca"] == pytest.approx(A_similarity(one.A, two.A), abs=1e-12)
    assert of_B["cca"] == pytest.approx(B_similarity(one.B, two.B), abs=1e-12)
    assert (of_A["cca_chance"], of_B["cca_chance"]) == (5 / 16, 5 / 12)
    balanced = [balanced_factors(site.A, site.B) for site in (one, two)]
    for row, side, columns in ((of_A, 0, (one.A.T, two.A.T)), (of_B, 1, (one.B, two.B))):
        assert row["cka"] == pytest.approx(linear_cka(balanced[0][side], balanced[1][side]), abs=1e-12)
        assert row["cka_chance"] == pytest.approx(chance_cka(balanced[0][side], balanced[1][side]), abs=1e-12)
        angles = principal_angles(*columns)
        assert row["smallest_angle"] == pytest.approx(angles[0].item(), abs=1e-12)
        assert row["largest_angle"] == pytest.approx(angles[-1].item(), abs=1e-12)
        assert (row["rank_first"], row["rank_second"], row["zero"]) == (3, 5, [])
        assert (row["group"], row["layer"], row["first"], row["second"]) == ("h.*.q", 4, "one", "two")
    assert (of_A["width"], of_B["width"]) == (16, 12)
    json.dumps(records, allow_nan=False)


def test_a_mixed_copy_is_the_same_adapter() -> None:
    one, mixing = _site("q"), gaussian(3, 3, seed=5)
    same = SiteFactors(name="q", kind="linear", A=torch.linalg.solve(mixing, one.A), B=one.B @ mixing, scaling=2.0)
    for row in compare_adapters({"one": [one], "two": [same]}).records:
        assert (row["cca"], row["cka"]) == pytest.approx((1.0, 1.0), abs=1e-10)
        assert row["largest_angle"] <= 1e-6


def test_every_pair_of_all_adapters_is_compared() -> None:
    adapters = {name: [_site("q", seed=10 * i)] for i, name in enumerate(("one", "two", "three"))}
    records = compare_adapters(adapters).records
    assert [row["pair"] for row in records if row["factor"] == "A"] == ["one ~ two", "one ~ three", "two ~ three"]


def test_a_zero_factor_is_named_and_the_other_compared() -> None:
    one, two = _site("q"), _site("q", seed=5)
    two.B.zero_()
    records = compare_adapters({"one": [one], "two": [two]}).records
    of_A, of_B = _row(records, "q", "A"), _row(records, "q", "B")
    assert of_A["cca"] == pytest.approx(A_similarity(one.A, two.A), abs=1e-12)
    assert of_A["zero"] == []
    assert of_B["zero"] == ["two"]
    assert of_B["cca"] is of_B["cca_chance"] is of_B["smallest_angle"] is of_B["largest_angle"] is None
    # The update is zero, so that A is not used at all.
    assert of_A["cka"] is of_A["cka_chance"] is of_B["cka"] is None
    assert of_B["rank_second"] == 0


def test_a_rank_deficient_factor_counts_its_own_dimensions() -> None:
    one, two = _site("q"), _site("q", seed=5)
    two.A[2] = two.A[0] + two.A[1]
    row = _row(compare_adapters({"one": [one], "two": [two]}).records, "q", "A")
    assert (row["rank_first"], row["rank_second"]) == (3, 2)
    assert row["cca"] == pytest.approx(A_similarity(one.A, two.A[:2]), abs=1e-10)


def test_sites_that_only_some_have_are_listed_and_shared_ones_compared() -> None:
    adapters = {
        "one": [_site("q"), _site("v")],
        "two": [_site("q", seed=3), _site("k")],
        "three": [_site("q", seed=4), _site("v", seed=5)],
    }
    records, alone = compare_adapters(adapters)
    assert alone == {"one": ["v"], "two": ["k"], "three": ["v"]}
    assert {(row["pair"], row["site"]) for row in records} == {
        ("one ~ two", "q"), ("one ~ three", "q"), ("one ~ three", "v"), ("two ~ three", "q"),
    }  # fmt: skip


def test_paths_of_a_model_that_was_wrapped_are_the_same_sites() -> None:
    plain = [_site("encoder.layer.0.q"), _site("pooler")]
    wrapped = [_site("encoder.encoder.layer.0.q", seed=5), _site("encoder.encoder.layer.1.q", seed=6)]
    for adapters in ({"one": plain, "two": wrapped}, {"one": wrapped, "two": plain}):
        records, alone = compare_adapters(adapters)
        (site,) = {row["site"] for row in records}
        assert site == adapters["one"][0].name
        assert {len(sites) for sites in alone.values()} == {1}


def test_movement_stands_beside_the_similarity() -> None:
    start = gaussian(3, 16, seed=0)
    moved = [
        SiteFactors(
            name="q", kind="linear", A=size * start, B=gaussian(12, 3, seed=i), scaling=1.0,
            starts=(start, torch.zeros(12, 3, dtype=FLOAT)),
        )
        for i, size in enumerate((1.25, 1.5))
    ]  # fmt: skip
    records = compare_adapters({"one": [moved[0]], "two": [moved[1]]}).records
    of_A = _row(records, "q", "A")
    assert (of_A["moved_first"], of_A["moved_second"]) == pytest.approx((0.25, 0.5), rel=1e-12)
    assert of_A["cca"] == pytest.approx(1.0, abs=1e-12)
    assert _row(records, "q", "B")["moved_first"] is None


def test_adapters_of_different_models_are_refused_with_both_shapes() -> None:
    adapters = {"one": [_site("q"), _site("v")], "two": [_site("q"), _site("v", inputs=20)]}
    with pytest.raises(
        AdapterFileError, match=r"different models: v is \(12, 16\) \(out, in\) in the one and \(12, 20\)"
    ):
        compare_adapters(adapters)
    with pytest.raises(AdapterFileError, match="no site in common: one has q, v, two k"):
        compare_adapters({"one": adapters["one"], "two": [_site("k")]})
    with pytest.raises(AdapterFileError, match="two or more"):
        compare_adapters({"one": adapters["one"]})


def test_folders_of_any_origin_and_live_models_are_compared(tmp_path: Path) -> None:
    ours = al.attach(small_net(), al.AdapterSpec.b_only(rank=2, targets=["block.q", "block.v"]))
    fill_factors(ours)
    al.save_adapter(ours, tmp_path / "ours", compress=False)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=3, target_modules=["block.q", "block.v"], rank_pattern={"block.v": 1})
    theirs: Any = peft.get_peft_model(small_net(), config)  # pyright: ignore
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    compared = compare_adapters({"ours": tmp_path / "ours", "theirs": str(tmp_path / "theirs"), "live": theirs})
    row = _row(compared.records, "block.v", "B", "theirs ~ live")
    assert row["cca"] == pytest.approx(1.0, abs=1e-6)
    other = _row(compared.records, "block.v", "B", "ours ~ theirs")
    assert (other["rank_first"], other["rank_second"]) == (2, 1)
    A = {site.name: site.A for site in site_factors(theirs)}
    mine = {site.name: site.A for site in site_factors(ours)}
    wanted = A_similarity(mine["block.q"], A["block.q"])
    assert _row(compared.records, "block.q", "A", "ours ~ live")["cca"] == pytest.approx(wanted, abs=1e-9)
    assert not math.isclose(wanted, 1.0)


def test_a_factor_that_is_not_finite_is_named_with_its_adapter() -> None:
    broken = _site("h.1.q", seed=9)
    broken.B[0, 0] = math.nan
    with pytest.raises(AdapterFileError, match=r"^two cannot be compared: .* NaN or infinity at h\.1\.q"):
        compare_adapters({"one": [_site("h.1.q")], "two": [broken]})
