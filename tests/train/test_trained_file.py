from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from asymlora.errors import AdapterFileError
from asymlora.train.trained_file import check_trained, header_of, read_trained, trained_tensors, write_trained


def _net(width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def test_what_is_trained_and_its_running_statistics_come_back(tmp_path: Path) -> None:
    net = _net()
    net[2].requires_grad_(False)
    for _ in range(3):
        net(torch.randn(5, 4))
    with torch.no_grad():
        net[0].weight.add_(1.0)
    write_trained(net, tmp_path / "kept", method="full", base_model="some/base")
    again = _net()
    again[2].requires_grad_(False)
    read_trained(again, tmp_path / "kept", method="full")
    assert all(
        torch.equal(one, other)
        for one, other in zip(net.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert int(again[1].num_batches_tracked) == 3
    assert not any(name.startswith("2.") for name in trained_tensors(net))


def test_a_tied_weight_is_kept_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert set(trained_tensors(net)) == {"0.weight", "0.bias", "1.bias"}


def test_wrapped_networks_have_the_same_names() -> None:
    net = _net()
    wrapped = nn.Module()
    wrapped._orig_mod = net
    assert set(trained_tensors(wrapped)) == set(trained_tensors(net))


def test_all_that_does_not_fit_is_named_at_once_and_nothing_changes(tmp_path: Path) -> None:
    write_trained(_net(), tmp_path / "kept", method="full")
    other = nn.Sequential(*_net(5), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(AdapterFileError, match=r"3\.weight is missing; .*0\.weight is \(3, 4\), not \(5, 4\)"):
        read_trained(other, tmp_path / "kept", method="full")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_two_files_of_different_saves_are_refused(tmp_path: Path) -> None:
    write_trained(_net(), tmp_path / "one", method="full")
    write_trained(_net(5), tmp_path / "other", method="full")
    (tmp_path / "one" / "trained.safetensors").write_bytes((tmp_path / "other" / "trained.safetensors").read_bytes())
    with pytest.raises(AdapterFileError, match="not of one save"):
        check_trained(tmp_path / "one", method="full")


@pytest.mark.parametrize("content", [None, b"", b"not a tensor file"])
def test_a_missing_or_torn_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(AdapterFileError, match=r"x\.safetensors is missing or torn"):
        header_of(file)
