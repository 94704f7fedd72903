"""Our verbs on a PEFT model as it stands: freeze a factor, start it anew, run its layers through our product.

What PEFT's layers are is read in `asymlora.peft_sites`; conversion to own layers and back is in
`asymlora.peft_conversion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from asymlora.errors import (
    AttachError,
    BothFrozenError,
    BothZeroError,
    NonZeroStartError,
    RankError,
    SpecError,
)
from asymlora.installing import drawn_factors
from asymlora.kinds import kind_of
from asymlora.layers import LinearAdapter
from asymlora.peft_sites import FACTORS, Factor, adapters_of, is_frozen, place_of, plain_layers, required_layers
from asymlora.spec import AdapterSpec

M = TypeVar("M", bound=nn.Module)


def freeze(model: M, factor: Factor, adapter: str | None = None) -> M:
    """Freeze a factor of a PEFT model for good, in place; no call of PEFT or the Trainer thaws it.

    The factor becomes a buffer under the name that it had, so files keep their keys and plain PEFT reads them. Nothing
    in PEFT's files says that it is frozen: after reloading, freeze again. DDP broadcasts buffers and FSDP does not
    shard them. Optimizers made before hold a parameter that the model no longer has: make them afterwards. Of factors
    in half precision `load_adapter` casts the trained ones alone to float32: give it ``autocast_adapter_dtype=False``.

    Args:
        model: A `PeftModel`, or any model with PEFT's LoRA layers in it.
        factor: ``A`` or ``B``.
        adapter: Name of the adapter; default: the active one.

    Returns:
        The same model. Freezing a frozen factor changes nothing.

    Raises:
        SpecError: ``factor`` is neither.
        BothFrozenError: The other factor is frozen, or this one is zero: nothing could train.
        NotAttachedError: The model holds no LoRA layer of PEFT.
        UnknownNameError: There is no such adapter, or not exactly one is active.
        AttachError: A layer is not plain LoRA.
    """
    if factor not in FACTORS:
        raise SpecError(f"factor={factor!r} is neither 'A' nor 'B'. A reads the input, B writes the output.")
    adapter, layers = plain_layers(model, adapter)
    other: Factor = "B" if factor == "A" else "A"
    _refuse_untrainable(
        {name: is_frozen(layer, other, adapter) for name, layer in layers.items()},
        f"{other} is frozen already",
        f"Unfreeze it first: asymlora.unfreeze(model, {other!r}).",
    )
    _refuse_untrainable(
        {name: _is_zero(place_of(layer, factor, adapter).tensor) for name, layer in layers.items()},
        f"{factor} is zero",
        f"Frozen there, B*A would stay zero and no gradient reach the other factor. Freeze {other}, or start {factor}"
        " elsewhere first: asymlora.initialize(model, ...).",
    )
    for layer in layers.values():
        freeze_factor(layer, factor, adapter)
    return model


def unfreeze(model: M, factor: Factor, adapter: str | None = None) -> M:
    """Undo `freeze`, in place: the factor is a parameter again, and is trained if the other factor is.

    Args:
        model: A model that `freeze` was called with.
        factor: ``A`` or ``B``.
        adapter: Name of the adapter; default: the active one.

    Returns:
        The same model. A factor that was not frozen stays as it is.

    Raises:
        SpecError: ``factor`` is neither.
        NotAttachedError: The model holds no LoRA layer of PEFT.
        UnknownNameError: There is no such adapter, or not exactly one is active.
        AttachError: A layer is not plain LoRA.
    """
    if factor not in FACTORS:
        raise SpecError(f"factor={factor!r} is neither 'A' nor 'B'. A reads the input, B writes the output.")
    adapter, layers = plain_layers(model, adapter)
    for layer in layers.values():
        if is_frozen(layer, factor, adapter):
            _thaw(layer, factor, adapter)
    return model


class PartlyFrozen(nn.ParameterDict):
    """A `ParameterDict` some of whose entries are buffers, which its readers see and cannot thaw.

    PEFT sets the ``requires_grad`` flag of whatever it reads here, and writes entries back when it casts or moves them.
    """

    def __getitem__(self, key: str) -> Tensor:
        """Return the entry; of a frozen one a view, so that its flag is not the buffer's."""
        held = self._buffers.get(key)
        return super().__getitem__(key) if held is None else held.detach()

    def __setitem__(self, key: str, value: Any) -> None:
        """Set the entry; a frozen one stays frozen."""
        if key in self._buffers and isinstance(value, Tensor):
            self._buffers[key] = value.detach()
        else:
            super().__setitem__(key, value)


def freeze_factor(layer: Any, factor: Factor, adapter: str) -> None:
    """Freeze a factor of one PEFT layer; what `freeze` checks is not checked.

    Args:
        layer: A LoRA layer of PEFT that has the adapter.
        factor: Which factor.
        adapter: Name of the adapter.
    """
    holder, key = place_of(layer, factor, adapter)
    if isinstance(holder, nn.ParameterDict):
        holder.__class__ = PartlyFrozen
        _make_buffer(holder, key)
        return
    for name in [name for name, _ in holder.named_parameters(recurse=False)]:  # PEFT may give B a bias
        _make_buffer(holder, name)


def _make_buffer(holder: nn.Module, key: str) -> None:
    value = getattr(holder, key)
    if isinstance(value, nn.Parameter):
        delattr(holder, key)
        # A copy: an optimizer that was made before may still step the parameter.
        holder.register_buffer(key, value.detach().clone())


def _thaw(layer: Any, factor: Factor, adapter: str) -> None:
    holder, _ = place_of(layer, factor, adapter)
    trained = place_of(layer, "B" if factor == "A" else "A", adapter).tensor.requires_grad
    embedding = isinstance(holder, nn.ParameterDict)
    for key in [adapter] if embedding else [name for name, _ in holder.named_buffers(recurse=False)]:
        value = getattr(holder, key)
        delattr(holder, key)
        holder.register_parameter(key, nn.Parameter(value.detach(), requires_grad=trained))
    if embedding and not holder._buffers:
        holder.__class__ = nn.ParameterDict


def _is_zero(factor: Tensor) -> bool:
    return not factor.is_meta and not bool(factor.detach().any())


def _refuse_untrainable(at: Mapping[str, bool], what: str, remedy: str) -> None:
    """Refuse a freeze that would leave a site without anything to train.

    Raises:
        BothFrozenError: At one site it would.
    """
    if bad := [name for name, wrong in at.items() if wrong]:
        raise BothFrozenError(f"{what} at {len(bad)} of {len(at)} sites ({', '.join(bad[:3])}). {remedy}")


def initialize(model: M, start: AdapterSpec | str, *, seed: int | None = None, adapter: str | None = None) -> M:
    """Start both factors of a PEFT model anew, in place, with the bits that `attach` gives at the same addresses.

    A factor that the start freezes is frozen (`freeze`); one that is frozen already stays so. Rank, scale, dropout and
    targets stay PEFT's.

    Args:
        model: A `PeftModel`, or any model with PEFT's LoRA layers in it.
        start: A preset (``init_b``), a shorthand (``hB_zero_A_rand``), or a spec whose ranks are the model's.
        seed: Seed of the draws; default: the spec's, or 0.
        adapter: Name of the adapter; default: the active one.

    Returns:
        The same model; it gives the base's own output.

    Raises:
        SpecError: A start cannot be drawn; the site is named. Nothing was changed.
        RankError: The spec has another rank than the model.
        NonZeroStartError: Both factors would start non-zero.
        BothZeroError: Both factors came out zero.
        BothFrozenError: No factor would be trained, or one would be frozen at zero.
        AttachError: A layer is not plain LoRA, or the adapter is merged.
        NotAttachedError: The model holds no LoRA layer of PEFT.
        UnknownNameError: There is no such adapter or start.
    """
    adapter, layers = plain_layers(model, adapter)
    if merged := [name for name, layer in layers.items() if adapter in layer.merged_adapters]:
        raise AttachError(
            f"The adapter {adapter!r} is merged into the base ({len(merged)} sites), which new factors could not undo."
            " Call unmerge_adapter() first."
        )
    spec = _start_of(layers, adapter, start, seed)
    frozen = _frozen_after(layers, adapter, spec)
    factors = drawn_factors({name: layer.get_base_layer() for name, layer in layers.items()}, spec)
    for name, pair in factors.items():
        _refuse_dead_start(name, pair, frozen[name])
    with torch.no_grad():
        for name, layer in layers.items():
            for factor, value in zip(FACTORS, factors[name], strict=True):
                place_of(layer, factor, adapter).tensor.copy_(value)
            if layer.lora_bias.get(adapter):
                layer.lora_B[adapter].bias.zero_()
            for factor in frozen[name]:
                freeze_factor(layer, factor, adapter)
    return model


def _start_of(layers: Mapping[str, Any], adapter: str, start: AdapterSpec | str, seed: int | None) -> AdapterSpec:
    """Return the spec of a start at the ranks that the layers have.

    Raises:
        RankError: A given spec has other ranks.
        NonZeroStartError: It would correct the base.
    """
    ranks = {name: place_of(layer, "A", adapter).tensor.shape[0] for name, layer in layers.items()}
    if isinstance(start, str):
        return AdapterSpec.parse(start, rank=next(iter(ranks.values())), rank_pattern=ranks, seed=seed or 0)
    if wrong := [f"{name} has {rank}" for name, rank in ranks.items() if start.at(name).rank != rank]:
        raise RankError(
            f"The spec has rank {start.rank}, but {', '.join(wrong[:3])}. Give it the ranks of the model (rank=,"
            " rank_pattern=), or only the name of a preset."
        )
    if start.nonzero_start != "refuse":
        raise NonZeroStartError(
            f"nonzero_start={start.nonzero_start!r} would change base weights that PEFT takes for the original ones."
            " Start one factor at zero, or attach the spec with asymlora.attach."
        )
    return start if seed is None else replace(start, seed=seed)


def _frozen_after(layers: Mapping[str, Any], adapter: str, spec: AdapterSpec) -> dict[str, tuple[Factor, ...]]:
    """Return the factors that will be frozen, by site.

    Raises:
        BothFrozenError: Both will be, at some site.
    """
    frozen: dict[str, tuple[Factor, ...]] = {}
    for name, layer in layers.items():
        kept = {"A": not spec.at(name).A.trainable, "B": not spec.at(name).B.trainable}
        frozen[name] = tuple(factor for factor in FACTORS if kept[factor] or is_frozen(layer, factor, adapter))
    _refuse_untrainable(
        {name: len(factors) == len(FACTORS) for name, factors in frozen.items()},
        "A and B would both be frozen",
        "Unfreeze one first (asymlora.unfreeze), or take a start that trains it.",
    )
    return frozen


def _refuse_dead_start(site: str, factors: tuple[Tensor, Tensor], frozen: tuple[Factor, ...]) -> None:
    """Refuse values from which nothing could learn, or that would change the model.

    Raises:
        NonZeroStartError: Neither factor is zero.
        BothZeroError: Both are.
        BothFrozenError: One is zero and frozen.
    """
    if any(value.is_meta for value in factors):
        return
    zero = [factor for factor, value in zip(FACTORS, factors, strict=True) if _is_zero(value)]
    if not zero:
        raise NonZeroStartError(f"{site}: A and B both start non-zero. Start one of them with init='zeros'.")
    if len(zero) == len(FACTORS):
        raise BothZeroError(f"{site}: A and B both start at zero, so neither could ever learn. Draw one of them.")
    if zero[0] in frozen:
        raise BothFrozenError(
            f"{site}: {zero[0]} is frozen and would start at zero, so nothing could train. Unfreeze it first"
            f" (asymlora.unfreeze(model, {zero[0]!r})), or take a start that has the other factor at zero."
        )


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """What `speed_up` did.

    Attributes:
        sped_up: Number of layers that run our product now.
        left: Why a layer keeps PEFT's forward, by its path.
    """

    sped_up: int
    left: Mapping[str, str]


def speed_up(model: nn.Module) -> SpeedUp:
    """Run PEFT's LoRA layers on dense bases through our product, in place: equal results, less time and memory.

    State is read at each call, so everything of PEFT's goes on working. Several active adapters, mixed batches
    (``adapter_names``), variants and biases on ``B`` run PEFT's own forward, as before. For second derivatives call
    `restore_forward` first.

    Args:
        model: A `PeftModel`, or any model with PEFT's LoRA layers in it.

    Returns:
        How many layers were sped up, and which were left and why. A second call changes nothing.

    Raises:
        NotAttachedError: The model holds no LoRA layer of PEFT.
    """
    layers = required_layers(model)
    from asymlora.peft_forward import FastLinear

    left: dict[str, str] = {}
    for name, layer in layers.items():
        if why := _why_not_fast(layer):
            left[name] = why
        else:
            layer.__class__ = FastLinear
    return SpeedUp(sped_up=len(layers) - len(left), left=left)


def restore_forward(model: nn.Module) -> int:
    """Undo `speed_up`, in place: PEFT's layers are exactly what they were.

    Args:
        model: A model that `speed_up` was called with.

    Returns:
        How many layers were restored.

    Raises:
        NotAttachedError: The model holds no LoRA layer of PEFT.
    """
    layers = required_layers(model)
    from asymlora.peft_forward import FastLinear, Linear

    fast: list[Any] = [layer for layer in layers.values() if type(layer) is FastLinear]
    for layer in fast:
        layer.__class__ = Linear
    return len(fast)


def _why_not_fast(layer: Any) -> str | None:
    from asymlora.peft_forward import FastLinear, Linear

    if type(layer) not in (Linear, FastLinear):
        return f"PEFT's {type(layer).__name__}; only its Linear is sped up"
    if kind_of(base := layer.get_base_layer()) is not LinearAdapter or layer.base_layer is not base:
        return f"on a {type(base).__name__}; only plain dense layers are sped up"
    if "forward" in layer.__dict__:
        return "its forward is replaced already (by accelerate, for instance)"
    special = [name for name in adapters_of(layer) if name in layer.lora_variant or layer.lora_bias.get(name)]
    if special and len(special) == len(adapters_of(layer)):
        variant = layer.lora_variant.get(special[0])
        return type(variant).__name__.removesuffix("Variant") if variant is not None else "has a bias on B"
    return None
