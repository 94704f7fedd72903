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
        make_contiguous,
        print_trainable_parameters,
        swap_adapter,
        unfused,
    )
    from asymlora.checkpoint import save_adapter
    from asymlora.converting import convert_adapter
    from asymlora.diagnostics.adapter_pairs import compare_adapters
    from asymlora.diagnostics.adapter_records import adapter_records
    from asymlora.diagnostics.dynamics import FeatureDynamics
    from asymlora.diagnostics.health_monitor import HealthMonitor
    from asymlora.factor_spec import FactorSpec
    from asymlora.gradient_correction import GradientCorrection, correct_gradients
    from asymlora.merging import MergeError, merge, merge_errors, merged
    from asymlora.optim import param_groups
    from asymlora.peft_bridge import SpeedUp, freeze, initialize, restore_forward, speed_up, unfreeze
    from asymlora.peft_conversion import from_peft_model, to_peft_model
    from asymlora.peft_sites import sites
    from asymlora.site_view import Site
    from asymlora.spec import AdapterSpec
    from asymlora.train.dynamics_callback import DynamicsCallback
    from asymlora.train.recipe import Recipe
    from asymlora.train.run import RunResult, finetune

__version__ = "0.1.0.dev0"

_HOME = {
    # what an adapter is
    "AdapterSpec": "spec",
    "FactorSpec": "factor_spec",
    # adapters on a model
    "attach": "attaching",
    "detach": "attaching",
    "disabled": "attaching",
    "unfused": "attaching",
    "make_contiguous": "attaching",
    "swap_adapter": "attaching",
    "merge": "merging",
    "merged": "merging",
    "merge_errors": "merging",
    "MergeError": "merging",
    "print_trainable_parameters": "attaching",
    "sites": "peft_sites",
    "Site": "site_view",
    # PEFT's models
    "freeze": "peft_bridge",
    "unfreeze": "peft_bridge",
    "initialize": "peft_bridge",
    "speed_up": "peft_bridge",
    "restore_forward": "peft_bridge",
    "SpeedUp": "peft_bridge",
    "from_peft_model": "peft_conversion",
    "to_peft_model": "peft_conversion",
    # training and files
    "param_groups": "optim",
    "correct_gradients": "gradient_correction",
    "GradientCorrection": "gradient_correction",
    "save_adapter": "checkpoint",
    "load_adapter": "attaching",
    "convert_adapter": "converting",
    # what the factors do
    "FeatureDynamics": "diagnostics.dynamics",
    "HealthMonitor": "diagnostics.health_monitor",
    "adapter_records": "diagnostics.adapter_records",
    "compare_adapters": "diagnostics.adapter_pairs",
    "DynamicsCallback": "train.dynamics_callback",
    # whole runs
    "Recipe": "train.recipe",
    "RunResult": "train.run",
    "finetune": "train.run",
}

__all__ = [
    "AdapterSpec",
    "DynamicsCallback",
    "FactorSpec",
    "FeatureDynamics",
    "GradientCorrection",
    "HealthMonitor",
    "MergeError",
    "Recipe",
    "RunResult",
    "Site",
    "SpeedUp",
    "adapter_records",
    "attach",
    "compare_adapters",
    "convert_adapter",
    "correct_gradients",
    "detach",
    "disabled",
    "errors",
    "finetune",
    "freeze",
    "from_peft_model",
    "initialize",
    "load_adapter",
    "make_contiguous",
    "merge",
    "merge_errors",
    "merged",
    "param_groups",
    "print_trainable_parameters",
    "restore_forward",
    "save_adapter",
    "sites",
    "speed_up",
    "swap_adapter",
    "to_peft_model",
    "unfreeze",
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
