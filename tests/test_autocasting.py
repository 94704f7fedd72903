from __future__ import annotations

import torch

from asymlora.autocasting import as_written, autocasts


def test_autocast_is_seen_and_set_aside() -> None:
    x = torch.randn(2, 2)
    assert not autocasts("cpu")
    assert not autocasts("meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert autocasts("cpu")
        assert (x @ x).dtype is torch.bfloat16
        with as_written("cpu"):
            assert (x @ x).dtype is torch.float32
    with as_written("cpu"):
        assert (x @ x).dtype is torch.float32
