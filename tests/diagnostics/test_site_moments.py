"""What is kept of one layer: counts of one-hot inputs, patches, masks. A whole model's are in test_covariance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import nn

from asymlora.diagnostics.site_moments import EntryCounts, SiteMoments, patches
from asymlora.errors import SpecError


def test_counts_do_not_depend_on_how_the_entries_come() -> None:
    entries = torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(0))
    once, parts = EntryCounts(9), EntryCounts(9)
    once.update(entries)
    for part in entries.split(7):
        parts.update(part)
    assert torch.equal(once.counts, torch.bincount(entries, minlength=9).double())
    assert torch.equal(once.counts, parts.counts)
    assert once.count == parts.count == 40


def test_the_participation_ratio_of_entries_read_alike_is_their_number() -> None:
    counts = EntryCounts(10)
    counts.update(torch.arange(6).repeat(3))
    assert counts.participation_ratio() == pytest.approx(6.0, rel=1e-15)
    assert counts.missed_trace() == 0.0
    with pytest.raises(SpecError, match="No entry"):
        EntryCounts(3).participation_ratio()


def test_patches_are_those_of_torchs_own_unfold() -> None:
    conv = nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    x = torch.randn(2, 3, 9, 8)
    expected = F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 2), stride=(2, 1)).mT.flatten(0, 1)
    assert torch.equal(patches(conv, x), expected)


def test_a_mask_counts_where_it_fits_the_positions_also_in_one_row() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    x = torch.randn(2, 3, 4)
    for shaped in (x, x.flatten(0, 1)):
        moments = SiteMoments.of("layer", nn.Linear(4, 2))
        moments.add_inputs(shaped, mask)
        assert moments.rows == 3
        assert torch.allclose(moments.inputs.mean, x[mask.bool()].double().mean(0))
    pooled = SiteMoments.of("head", nn.Linear(4, 2))
    pooled.add_inputs(x[:, 0], mask)
    assert pooled.rows == 2


def test_calls_of_one_batch_are_summed_and_their_noise_is_not_told() -> None:
    moments = SiteMoments.of("layer", nn.Linear(4, 2))
    x, gradient = torch.randn(3, 4), torch.randn(3, 2)
    for _ in range(2):
        moments.add_gradient(x, gradient, None)
        moments.add_gradient(x, gradient, None)
        moments.end_batch()
    moments.finish()
    assert torch.allclose(moments.gradient, 2 * gradient.T @ x, atol=1e-6)
    assert moments.batches == 2
    assert moments.noise is None


def test_half_precision_is_summed_in_float32() -> None:
    moments = SiteMoments.of("layer", nn.Linear(4, 2).bfloat16())
    x, gradient = torch.randn(64, 4).bfloat16(), torch.randn(64, 2).bfloat16()
    moments.add_gradient(x, gradient, None)
    moments.end_batch()
    moments.finish()
    assert moments.gradient.dtype == torch.float32
    assert torch.allclose(moments.gradient, gradient.float().T @ x.float(), atol=1e-5)


def test_a_weight_of_codes_is_none() -> None:
    layer = nn.Linear(4, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.int8), requires_grad=False)
    assert SiteMoments.of("layer", layer).weight is None
    assert SiteMoments.of("table", nn.Embedding(5, 3)).weight.shape == (3, 5)
