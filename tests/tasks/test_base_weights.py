from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertModel

from asymlora.errors import AttachError, DataNotFoundError, UnknownNameError
from asymlora.tasks.base_weights import base_weights, weights_at
from cases import KIND_MODELS, small_net

SITES = ["encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense", "embeddings.word_embeddings"]


def test_weights_are_those_of_the_file_as_matrices(small_encoder: Path) -> None:
    stored = load_file(small_encoder / "model.safetensors")
    found = base_weights(str(small_encoder), SITES)
    assert list(found) == SITES
    for site in SITES[:2]:
        assert torch.equal(found[site], stored[f"{site}.weight"])
    # (entries, dim) in the file; (dim, entries) is the form of an update.
    assert torch.equal(found[SITES[2]], stored[f"{SITES[2]}.weight"].T)


def test_the_type_is_that_of_the_file(small_encoder: Path, tmp_path: Path) -> None:
    BertModel.from_pretrained(small_encoder).to(torch.bfloat16).save_pretrained(tmp_path)
    assert base_weights(str(tmp_path), SITES[:1])[SITES[0]].dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", ["bert.", "encoder.", "base.model."])
def test_a_model_that_was_wrapped_when_it_was_trained_is_found(prefix: str, small_encoder: Path) -> None:
    plain = base_weights(str(small_encoder), SITES)
    wrapped = base_weights(str(small_encoder), [prefix + site for site in SITES])
    assert all(torch.equal(wrapped[prefix + site], plain[site]) for site in SITES)


def test_sites_of_the_inside_are_found_in_the_whole() -> None:
    inner = small_net()
    whole = nn.ModuleDict({"a": small_net(), "b": nn.ModuleDict({"net": inner})})
    # Both have these sites; the naming that fits all of them and comes first wins.
    found = weights_at(whole["b"], ["block.q", "q"], name="it")
    assert torch.equal(found["block.q"], inner.block.q.weight)
    assert torch.equal(found["q"], inner.q.weight)


@pytest.mark.parametrize("case", KIND_MODELS[:2], ids=lambda case: case.name)
def test_every_kind_has_the_shape_of_its_update(case: Any) -> None:
    import asymlora as al
    from asymlora.diagnostics.site_factors import site_factors

    model = al.attach(case.build(), al.AdapterSpec.lora(rank=2, targets=case.targets))
    for site in site_factors(model):
        weight = weights_at(case.build(), [site.name], name="it")[site.name]
        if site.name != "grouped":  # its base reads half of the channels, its update all
            assert weight.shape == (site.B.shape[0], site.A.shape[1])


def test_sites_that_the_model_lacks_are_named(small_encoder: Path) -> None:
    with pytest.raises(AttachError, match=r"has no encoder\.layer\.7\.output\.dense, where the adapter has factors"):
        base_weights(str(small_encoder), [*SITES, "encoder.layer.7.output.dense"])


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="no model folder"):
        base_weights(str(tmp_path / "nowhere"), SITES)
    with pytest.raises(UnknownNameError, match="embedded:nothing"):
        base_weights("embedded:nothing", SITES)


def test_a_folder_without_weights_is_refused(small_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((small_encoder / "config.json").read_bytes())
    with pytest.raises(DataNotFoundError, match="could not be read"):
        base_weights(str(tmp_path), SITES)


def test_a_packed_weight_is_refused() -> None:
    net = small_net()
    net.q.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(AttachError, match="stored packed"):
        weights_at(net, ["q"], name="it")
