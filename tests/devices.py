"""The kinds of devices that this machine has."""

from __future__ import annotations

import torch

_FOUND = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICES = tuple(kind for kind, there in _FOUND.items() if there)
