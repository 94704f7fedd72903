"""A PEFT model into our own layers, and back: the base layers are handed over, never copied."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from asymlora import site_view
from asymlora.attaching import detach
from asymlora.errors import AttachError, MissingPackageError
from asymlora.factor_spec import PRESETS, FactorSpec
from asymlora.installing import install
from asymlora.kinds import kind_of
from asymlora.layers import AdapterLayer
from asymlora.peft_bridge import freeze_factor
from asymlora.peft_sites import (
    FACTORS,
    is_frozen,
    lora_layers,
    peft_root,
    place_of,
    plain_layers,
    trained_in_full,
)
from asymlora.site_view import attached, refuse_folded
from asymlora.spec import AdapterSpec
from asymlora.targets import ends_with

V = TypeVar("V")


def from_peft_model(model: nn.Module, adapter: str | None = None) -> nn.Module:
    """Turn a PEFT model into its base model with our own layers, in place: use the returned model, not the old one.

    The base layers are the same objects. Factors keep their values, their scale as it is now, and whether `freeze`
    froze them. Modules trained in full (``modules_to_save``) stand where they belong. Other adapters are dropped.

    Args:
        model: A `PeftModel`, or any model with PEFT's LoRA layers in it.
        adapter: Name of the adapter; default: the active one.

    Returns:
        The base model, attached as by `attach`, with the same outputs.

    Raises:
        NotAttachedError: The model holds no LoRA layer of PEFT.
        UnknownNameError: There is no such adapter, or not exactly one is active.
        AttachError: The adapter is not plain LoRA, is merged, or uses what own layers do not have; all is listed.
            Nothing was changed.
    """
    root = peft_root(model)
    adapter, layers = plain_layers(model, adapter)
    wrappers = trained_in_full(model)
    saved = tuple(path for path, wrapper in wrappers.items() if adapter in wrapper.modules_to_save)
    _refuse_unlike_ours(root, adapter, layers)
    spec = _spec_of(layers, adapter, saved)
    factors = {n: tuple(place_of(layer, f, adapter).tensor.detach() for f in FACTORS) for n, layer in layers.items()}
    scales = {name: layer.scaling[adapter] for name, layer in layers.items()}
    for path, layer in lora_layers(model).items():
        root.set_submodule(path, layer.get_base_layer())
    for path, wrapper in wrappers.items():
        own = wrapper.modules_to_save[adapter] if path in saved else wrapper.original_module
        root.set_submodule(path, own)
    _forget_peft(root)
    install(root, spec, factors, saved)  # pyright: ignore[reportArgumentType]
    for site in site_view.sites(root):
        site.layer.scaling = scales[site.name]
    return root


def _forget_peft(root: nn.Module) -> None:
    for name in ("peft_config", "_hf_peft_config_loaded"):  # PEFT's mark, and transformers' own
        root.__dict__.pop(name, None)


def _refuse_unlike_ours(root: nn.Module, adapter: str, layers: Mapping[str, Any]) -> None:
    """Refuse what own layers cannot honour, all of it at once.

    Raises:
        AttachError: There is something.
    """
    problems: list[str] = []
    for name, layer in layers.items():
        base = layer.get_base_layer()
        kind = kind_of(base)
        assert kind is not None
        if layer.merged:
            problems.append(f"{name} is merged (call unmerge_adapter())")
        if layer.lora_bias.get(adapter):
            problems.append(f"{name} has a bias on B (lora_bias)")
        if why := kind.why_not(base, place_of(layer, "A", adapter).tensor.shape[0]) or _why_not_both(base):
            problems.append(f"{name} {why}")
    config = getattr(root, "peft_config", {}).get(adapter)
    for key, plain in (("bias", ("none",)), ("trainable_token_indices", (None,)), ("target_parameters", (None, []))):
        if (value := getattr(config, key, plain[0])) not in plain:
            problems.append(f"{key}={value!r} trains weights of the base")
    if len({_dropout_of(layer, adapter) for layer in layers.values()}) > 1:
        problems.append("dropout differs between layers")
    _refuse(problems, f"The adapter {adapter!r} cannot become asymlora's own layers")


def _why_not_both(base: Any) -> str | None:
    # PEFT's convolution for A has the base's kernel, stride and padding only (read in 0.21.2).
    if any(step != 1 for step in getattr(base, "dilation", ())):
        return f"is dilated by {base.dilation}, which PEFT's adapter is not"
    return None


def _refuse(problems: list[str], what: str) -> None:
    """Refuse if there are problems.

    Raises:
        AttachError: There are.
    """
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise AttachError(f"{what}: {shown}. Nothing was changed. Stay with the model that you have, or change these.")


def _dropout_of(layer: Any, adapter: str) -> float:
    return float(getattr(layer.lora_dropout[adapter], "p", 0.0))


def _spec_of(layers: Mapping[str, Any], adapter: str, saved: tuple[str, ...]) -> AdapterSpec:
    ranks = {name: place_of(layer, "A", adapter).tensor.shape[0] for name, layer in layers.items()}
    one = next(iter(layers.values()))
    rslora = bool(one.use_rslora.get(adapter))
    alphas = {
        name: _alpha(layer.scaling[adapter], ranks[name], rslora, stated=layer.lora_alpha[adapter])
        for name, layer in layers.items()
    }
    presets = {name: _PRESET_OF[_trains(layer, adapter)] for name, layer in layers.items()}
    preset = _commonest(presets)
    start = _STARTS.get(preset, PRESETS[preset])
    return AdapterSpec(
        A=start["A"],
        B=start["B"],
        rank=_commonest(ranks),
        alpha=_commonest(alphas),
        scaling="rank_stabilized" if rslora else "standard",
        dropout=_dropout_of(one, adapter),
        targets=tuple(layers),
        modules_to_save=saved,
        rank_pattern=_pattern(ranks),
        alpha_pattern=_pattern(alphas),
        factor_pattern=_pattern(presets),
    )


# What a frozen factor started from is not known, and its values are not to be drawn again from an address.
_STARTS = {
    "b_only": {"A": FactorSpec(init="custom", trainable=False), "B": FactorSpec(init="zeros")},
    "a_only": {"A": FactorSpec(init="zeros"), "B": FactorSpec(init="custom", trainable=False)},
}
_PRESET_OF = {(True, True): "lora", (False, True): "b_only", (True, False): "a_only"}


def _trains(layer: Any, adapter: str) -> tuple[bool, bool]:
    return not is_frozen(layer, "A", adapter), not is_frozen(layer, "B", adapter)


def _commonest(values: Mapping[str, V]) -> V:
    return Counter(values.values()).most_common(1)[0][0]


def _pattern(values: Mapping[str, V]) -> dict[str, V]:
    # Of all sites or none: the path of a site that is left out might end in another's.
    return dict(values) if len(set(values.values())) > 1 else {}


def _alpha(scaling: float, rank: int, rslora: bool, *, stated: float) -> float:
    """Return the alpha that gives a scale: the stated one, unless the scale was changed since."""
    divisor = math.sqrt(rank) if rslora else rank
    return float(stated) if stated / divisor == scaling else scaling * divisor


def to_peft_model(model: nn.Module, *, task_type: str | None = None) -> Any:
    """Turn an attached model into a `PeftModel`, in place: use the returned model, whose base is the one given.

    The base layers are the same objects. Factors keep their values and scale; a frozen one is frozen by `freeze`, which
    no call of PEFT thaws. The adapter's name is ``default``.

    Args:
        model: A model that `attach` was called with, or a wrapper around it.
        task_type: PEFT's task type (``CAUSAL_LM``, ...), which picks the class of the `PeftModel`. Some make PEFT train
            a head: name it in ``modules_to_save`` of the spec too.

    Returns:
        The `PeftModel`, with the same outputs.

    Raises:
        MissingPackageError: PEFT is not installed.
        NotAttachedError: The model carries no adapter of ours.
        AttachError: The adapter uses what PEFT does not have; all is listed. Nothing was changed.
    """
    peft = _peft()
    root, record = attached(model)
    refuse_folded(root, "convert it")
    layers = {site.name: site.layer for site in site_view.sites(root)}
    _refuse_unlike_peft(root, layers, record.saved_modules)
    config = _config_of(peft, record.spec, layers, record.saved_modules, task_type)
    training = root.training
    detach(root)
    wrapped = peft.get_peft_model(root, config, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    for name, layer in lora_layers(wrapped).items():
        _fill(layer, layers[name])
    return wrapped.train(training)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError(
            f"A PeftModel needs PEFT, which cannot be imported ({error}): pip install peft."
        ) from None
    return peft


def _fill(layer: Any, own: AdapterLayer) -> None:
    for factor in FACTORS:
        value: Tensor = getattr(own, f"lora_{factor}")
        holder, key = place_of(layer, factor, "default")
        # PEFT made it on the meta device: there is nothing to keep but the name.
        setattr(holder, key, nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format)))
        if not isinstance(value, nn.Parameter):
            freeze_factor(layer, factor, "default")
    layer.scaling["default"] = own.scaling


def _config_of(
    peft: Any,
    spec: AdapterSpec,
    layers: Mapping[str, AdapterLayer],
    saved: tuple[str, ...],
    task_type: str | None,
) -> Any:
    rslora = spec.scaling == "rank_stabilized"
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {
        name: _alpha(layer.scaling, layer.rank, rslora, stated=spec.at(name).alpha) for name, layer in layers.items()
    }
    linear = [layer.base_layer for layer in layers.values() if layer.KIND == "linear"]
    return peft.LoraConfig(
        r=_commonest(ranks),
        lora_alpha=_commonest(alphas),
        lora_dropout=spec.dropout,
        target_modules=list(layers),
        modules_to_save=list(saved) or None,
        use_rslora=rslora,
        fan_in_fan_out=bool(linear) and not any(hasattr(base, "in_features") for base in linear),
        rank_pattern=_escaped(_pattern(ranks)),
        alpha_pattern=_escaped(_pattern(alphas)),
        task_type=task_type,
    )


def _escaped(pattern: Mapping[str, V]) -> dict[str, V]:
    # PEFT takes the first key, a regular expression, that the path ends in: anchored where it would be another's.
    return {
        ("^" if any(ends_with(other, name) for other in pattern if other != name) else "") + re.escape(name): value
        for name, value in pattern.items()
    }


def _refuse_unlike_peft(root: nn.Module, layers: Mapping[str, AdapterLayer], saved: tuple[str, ...]) -> None:
    """Refuse what PEFT cannot honour, all of it at once.

    Raises:
        AttachError: There is something.
    """
    problems: list[str] = []
    for name, layer in layers.items():
        if layer.corrected is not None:
            problems.append(
                f"{name} holds a base weight corrected for its non-zero start, which PEFT's files cannot say"
            )
        if why := _why_not_both(layer.base_layer):
            problems.append(f"{name} {why}")
    inside = tuple(f"{name}." for name in layers)
    others = [name for name, _ in root.named_modules() if not name.startswith(inside)]
    problems += _strays(others, tuple(layers), ends_with, "an adapter on")
    problems += _strays(others, saved, str.endswith, "the module trained in full")  # PEFT's rule for these
    _refuse(problems, "This adapter cannot become PEFT's")


def _strays(names: list[str], meant: tuple[str, ...], rule: Callable[[str, str], bool], what: str) -> list[str]:
    return [
        f"PEFT would take {name} for {what} {path}"
        for name in names
        for path in meant
        if name not in meant and rule(name, path)
    ]
