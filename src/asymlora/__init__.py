"""Low-rank adapters whose two factors are treated as what they are: different.

Importing this package loads no torch; each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asymlora import errors as errors
    from asymlora.attaching import (
        attach,
        detach,
        disabled,
        load_adapter,
        print_trainable_parameters,
        swap_adapter,
        unfused,
    )
    from asymlora.checkpoint import save_adapter
    from asymlora.merging import MergeError, merge, merge_errors, merged
    from asymlora.optim import param_groups
    from asymlora.site_view import Site, sites
    from asymlora.spec import AdapterSpec, FactorSpec
    from asymlora.train.recipe import Recipe
    from asymlora.train.run import RunResult, finetune

__version__ = "0.1.0.dev0"

_HOME = {
    # what an adapter is
    "AdapterSpec": "spec",
    "FactorSpec": "spec",
    # adapters on a model
    "attach": "attaching",
    "detach": "attaching",
    "disabled": "attaching",
    "unfused": "attaching",
    "swap_adapter": "attaching",
    "merge": "merging",
    "merged": "merging",
    "merge_errors": "merging",
    "MergeError": "merging",
    "print_trainable_parameters": "attaching",
    "sites": "site_view",
    "Site": "site_view",
    # training and files
    "param_groups": "optim",
    "save_adapter": "checkpoint",
    "load_adapter": "attaching",
    # whole runs
    "Recipe": "train.recipe",
    "RunResult": "train.run",
    "finetune": "train.run",
}

__all__ = [
    "AdapterSpec",
    "FactorSpec",
    "MergeError",
    "Recipe",
    "RunResult",
    "Site",
    "attach",
    "detach",
    "disabled",
    "errors",
    "finetune",
    "load_adapter",
    "merge",
    "merge_errors",
    "merged",
    "param_groups",
    "print_trainable_parameters",
    "save_adapter",
    "sites",
    "swap_adapter",
    "unfused",
]


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("asymlora.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'asymlora' has no attribute {name!r}")
    return getattr(importlib.import_module(f"asymlora.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
