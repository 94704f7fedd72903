"""PEFT's LoRA layer for dense bases with our product inside. Importing this module imports PEFT: only `speed_up` does.

A class and not a replaced method, so that copies, pickles, `torch.compile` and PEFT's own ``isinstance`` tests see an
ordinary PEFT layer; reading such a pickle needs asymlora.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from asymlora.layers import run_adapted


class FastLinear(Linear):
    """`peft.tuners.lora.Linear` whose plain case runs as in `LinearAdapter`; anything else runs PEFT's own forward.

    All state is read when it is called: adapters that are active, disabled or merged, scale, mode.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``base_layer(x) + s * dropout(x) A^T B^T``, shape ``(..., out)``, in the base output's dtype."""
        branch = None if args or kwargs else self._branch()
        if branch is None:
            return super().forward(x, *args, **kwargs)
        A, B, scaling, dropout = branch
        return run_adapted(self.base_layer, x, A, B, scaling=scaling, dropout=dropout)

    def _branch(self) -> tuple[Tensor, Tensor, float, float] | None:
        """Return factors, scale and dropout of the one active plain adapter; None where PEFT's forward has to run."""
        if self.disable_adapters or self.merged:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:
            return None
        A, B, dropout = (part[active[0]] for part in (self.lora_A, self.lora_B, self.lora_dropout))
        if not (_is_bare(A) and _is_bare(B) and type(dropout) in (nn.Identity, nn.Dropout)):
            return None
        p = float(getattr(dropout, "p", 0.0))
        if p >= 1.0 or dropout._forward_hooks or dropout._forward_pre_hooks:
            return None
        weight_A, weight_B = cast(Tensor, A.weight), cast(Tensor, B.weight)
        return weight_A, weight_B, self.scaling[active[0]], p if dropout.training else 0.0


def _is_bare(factor: nn.Module) -> bool:
    """Whether a factor's module does no more than multiply: no bias, no hook, no forward of its own."""
    if type(factor) is not nn.Linear or factor.bias is not None or "forward" in factor.__dict__:
        return False
    if not torch.compiler.is_compiling() and torch_module._has_any_global_hook():
        return False
    hooks = factor._forward_hooks, factor._forward_pre_hooks, factor._backward_hooks, factor._backward_pre_hooks
    return not any(hooks)
