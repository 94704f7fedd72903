from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.diagnostics.site_factors import SiteFactors, natural_order, site_factors
from asymlora.errors import AdapterFileError, AsymloraError
from asymlora.site_view import sites as own_sites
from cases import EVERY_KIND, edit_json, edit_tensors, fill_factors, move_trained, small_net
from frozen_draws import gaussian

STORED = Path(__file__).parents[1] / "peft_files"
TARGETS = ("table", "line", "plane", "grouped", "q")


def _attached(**fields: Any) -> nn.Module:
    preset = fields.pop("preset", "lora")
    return al.attach(small_net(), getattr(al.AdapterSpec, preset)(**{"rank": 2, "targets": TARGETS, **fields}))


def _by_name(adapter: Any) -> dict[str, SiteFactors]:
    return {site.name: site for site in site_factors(adapter)}


@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.name)
def test_factors_of_a_folder_give_the_update_that_a_merge_adds(case: Any, tmp_path: Path) -> None:
    model = al.attach(case.build(), al.AdapterSpec.lora(rank=2, alpha=3, targets=case.targets))
    fill_factors(model)
    al.save_adapter(model, tmp_path / "adapter")
    found = _by_name(tmp_path / "adapter")
    assert set(found) == {site.name for site in own_sites(model)}
    for site in own_sites(model):
        layer, base = site.layer, site.layer.base_layer
        if layer.why_not_merge():
            continue  # grouped: see below
        A, B = layer.update()
        saved = found[site.name]
        assert torch.equal(saved.scaling * saved.B @ saved.A, site.scaling * B @ A)
        assert layer.matrix_of(base, layer.original_weight()).shape == (saved.B.shape[0], saved.A.shape[1])


def test_a_grouped_convolution_has_a_block_for_each_group() -> None:
    model = _attached(targets=("grouped",))
    fill_factors(model)
    (site,) = site_factors(model)
    base: Any = model.get_submodule("grouped")
    base.base_layer.weight.data.zero_()
    base.base_layer.bias.data.zero_()
    x = torch.randn(1, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    dense = (site.scaling * site.B @ site.A).reshape(8, 12, 3, 3)
    with torch.no_grad():
        assert torch.allclose(base(x), nn.functional.conv2d(x, dense, padding=1), atol=1e-5)


def test_groups_that_do_not_divide_the_outputs_are_refused(tmp_path: Path) -> None:
    model = _attached(targets=("grouped",))
    al.save_adapter(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "asymlora.json").unlink()
    key = "base_model.model.grouped.lora_B.weight"
    edit_tensors(tmp_path / "adapter", lambda tensors: tensors.update({key: torch.ones(7, 1, 1, 1)}))
    with pytest.raises(AdapterFileError, match="2 groups, which do not divide its 7 outputs"):
        site_factors(tmp_path / "adapter")


@pytest.mark.parametrize("preset", ["lora", "init_a", "init_b", "b_only", "a_only"])
@pytest.mark.parametrize("compress", [False, True])
def test_starts_are_those_that_the_model_was_attached_with(preset: str, compress: bool, tmp_path: Path) -> None:
    model = _attached(preset=preset, seed=7)
    before = {site.name: site.layer.update() for site in own_sites(model)}
    before = {name: (A.clone(), B.clone()) for name, (A, B) in before.items()}
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(gaussian(*parameter.shape, seed=number).float(), alpha=0.02)
    al.save_adapter(model, tmp_path / "adapter", compress=compress and preset in ("b_only", "a_only"))
    assert (tmp_path / "adapter" / "factors.safetensors").exists() == (compress and preset in ("b_only", "a_only"))
    for name, site in _by_name(tmp_path / "adapter").items():
        for start, wanted, factor in zip(site.starts, before[name], (site.A, site.B), strict=True):
            assert start is not None
            assert start.shape == factor.shape
            if name != "grouped":
                assert torch.equal(start, wanted)
        assert site.trained == (preset != "b_only", preset != "a_only")


def test_a_shared_frozen_A_has_the_start_of_its_group(tmp_path: Path) -> None:
    model = _attached(preset="b_only", targets=("block.q", "block.v"), shared_A=(("q", "v"),))
    al.save_adapter(model, tmp_path / "adapter")
    found = _by_name(tmp_path / "adapter")
    assert all(torch.equal(site.starts[0], site.A) for site in found.values())  # pyright: ignore[reportArgumentType]
    assert torch.equal(found["block.q"].A, found["block.v"].A)


def test_a_start_that_the_factor_belies_is_not_believed(tmp_path: Path) -> None:
    # What PEFT drew, saved by us: the spec names an init that these values never came from.
    torch.manual_seed(0)
    model: Any = peft.get_peft_model(small_net(), peft.LoraConfig(r=2, target_modules=["block.q"]))  # pyright: ignore
    model.save_pretrained(str(tmp_path / "theirs"))
    ours = al.load_adapter(small_net(), tmp_path / "theirs")
    al.save_adapter(ours, tmp_path / "ours")
    assert (tmp_path / "ours" / "asymlora.json").exists()
    (theirs,), (saved,) = site_factors(tmp_path / "theirs"), site_factors(tmp_path / "ours")
    assert theirs.starts == (None, None)
    assert theirs.trained is None
    assert saved.starts[0] is None
    # B started at zero in the one as in the other.
    assert saved.starts[1] is not None


def test_a_corrected_start_is_taken_off_the_update(tmp_path: Path) -> None:
    model = _attached(
        A=al.FactorSpec(init="gaussian"), B=al.FactorSpec(init="gaussian"), nonzero_start="correct_base",
        targets=("block.q", "line"),
    )  # fmt: skip
    for site in site_factors(model):  # at the start the update is zero, and the factors are not
        down, up = site.update()
        assert torch.allclose(up @ down, torch.zeros(len(up), down.shape[1]), atol=1e-6)
        assert (site.B @ site.A).norm() > 0.1
    move_trained(model)
    al.save_adapter(model, tmp_path / "adapter")
    live, saved = _by_name(model), _by_name(tmp_path / "adapter")
    for site in own_sites(model):
        A, B = site.layer.update()
        for found in (live[site.name], saved[site.name]):
            assert found.corrected
            down, up = found.update()
            assert torch.allclose(up @ down, B @ A, atol=1e-6)
            assert not torch.allclose(up @ down, found.B @ found.A, atol=1e-2)


@pytest.mark.parametrize("version", ["0.10.0", "0.21.2"])
@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "embedding-conv2d", "conv1d", "modules-to-save"])
def test_folders_of_peft_give_what_its_layers_hold(version: str, name: str) -> None:
    from make_peft_files import base_of

    found = _by_name(STORED / version / name)
    if version != "0.21.2":
        assert found
        return
    model: Any = peft.PeftModel.from_pretrained(base_of(name), str(STORED / version / name))  # pyright: ignore
    live = _by_name(model)
    assert set(found) == set(live)
    for site, saved in found.items():
        assert torch.equal(saved.A, live[site].A)
        assert torch.equal(saved.B, live[site].B)
        assert saved.scaling == pytest.approx(live[site].scaling, rel=1e-12)
        assert saved.kind == live[site].kind


def test_a_folder_with_a_regular_expression_for_targets_is_read(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=r"block\.(q|v)", rank_pattern={"block.v": 3})
    model: Any = peft.get_peft_model(small_net(), config)  # pyright: ignore
    model.save_pretrained(str(tmp_path))
    assert {name: site.A.shape[0] for name, site in _by_name(tmp_path).items()} == {"block.q": 2, "block.v": 3}


def test_a_folder_of_another_method_is_refused_by_name(tmp_path: Path) -> None:
    model: Any = peft.get_peft_model(small_net(), peft.LoraConfig(r=2, target_modules=["q"], use_dora=True))  # pyright: ignore
    model.save_pretrained(str(tmp_path / "dora"))
    with pytest.raises(AdapterFileError, match=r"DoRA|use_dora"):
        site_factors(tmp_path / "dora")
    shutil.copytree(STORED / "0.21.2" / "plain", tmp_path / "other")
    edit_json(tmp_path / "other" / "adapter_config.json", peft_type="IA3")
    with pytest.raises(AdapterFileError, match="peft_type='IA3'"):
        site_factors(tmp_path / "other")


def test_a_folder_with_nan_is_refused_with_the_place(tmp_path: Path) -> None:
    shutil.copytree(STORED / "0.21.2" / "plain", tmp_path / "broken")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        next(value for key, value in tensors.items() if "block.v.lora_B" in key)[0, 0] = float("nan")

    edit_tensors(tmp_path / "broken", spoil)
    with pytest.raises(AdapterFileError, match=r"block\.v\.lora_B\.weight holds NaN"):
        site_factors(tmp_path / "broken")


def test_a_model_without_adapter_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    for nothing in (small_net(), tmp_path / "nowhere"):
        with pytest.raises(AsymloraError):
            site_factors(nothing)


def test_sites_of_a_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)])
    model = al.attach(net, al.AdapterSpec.lora(rank=1, targets="all-linear"))
    al.save_adapter(model, tmp_path / "adapter")
    assert [site.name for site in site_factors(tmp_path / "adapter")] == [str(number) for number in range(12)]
    assert sorted(["a.10", "a.b", "a.9"], key=natural_order) == ["a.b", "a.9", "a.10"]


def test_group_and_layer_are_read_from_the_path() -> None:
    one = {"kind": "linear", "A": torch.eye(2), "B": torch.eye(2), "scaling": 1.0}
    names = ("h.3.attn.q", "down.1.block.12.to_q", "head", "layer10.q")
    sites = [SiteFactors(name=name, **one) for name in names]
    assert [site.group for site in sites] == ["h.*.attn.q", "down.*.block.*.to_q", "head", "layer10.q"]
    assert [site.layer for site in sites] == [3, 1, None, None]
