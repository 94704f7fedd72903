"""The sites of a PEFT model, read from its live layers, and the view over models of both kinds.

PEFT is not imported in here: a model that holds PEFT's layers has imported it. What changes such a model is elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from asymlora import site_view
from asymlora.errors import AttachError, NotAttachedError, SpecError, UnknownNameError
from asymlora.kinds import kind_of
from asymlora.site_view import Site, find_attached

Factor = Literal["A", "B"]
FACTORS: tuple[Factor, Factor] = ("A", "B")
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PLAIN_LAYERS = frozenset(
    {
        *("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d", "Linear8bitLt", "Linear4bit"),
        *("AqlmLoraLinear", "AwqLoraLinear", "EetqLoraLinear", "GPTQLoraLinear", "HqqLoraLinear"),
    }
)
"""PEFT's LoRA layer classes that add ``s * B A`` and nothing else (read in 0.21.2); subclasses included."""


class Place(NamedTuple):
    """Where PEFT keeps a factor: a module, and the name of the tensor in it."""

    holder: nn.Module
    key: str

    @property
    def tensor(self) -> Tensor:
        """The factor itself."""
        return getattr(self.holder, self.key)


def sites(model: nn.Module, adapter: str | None = None) -> Iterator[Site]:
    """Return the adapted places of a model, in its own order: own layers or PEFT's LoRA layers.

    Args:
        model: A model that `attach` was called with, a `PeftModel` or any model with PEFT's LoRA layers in it, or a
            wrapper around one.
        adapter: Name of the adapter, of a PEFT model; default: its active one.

    Returns:
        An iterator over one `Site` each. Names are paths in the base model. Of a PEFT layer, ``layer`` is that layer.

    Raises:
        SpecError: ``adapter`` is given for a model of our own, which has one without a name.
        NotAttachedError: The model carries no adapter.
        UnknownNameError: There is no such adapter, or not exactly one is active.
        AttachError: A layer is not plain LoRA (DoRA, aLoRA, ...); it is named.
    """
    if find_attached(model) is not None or not lora_layers(model):
        if adapter is not None and find_attached(model) is not None:
            raise SpecError(f"adapter={adapter!r} is given, but this model carries one adapter without a name.")
        return site_view.sites(model)
    adapter, layers = plain_layers(model, adapter)
    return (_site(name, layer, adapter) for name, layer in layers.items())


def _site(name: str, layer: Any, adapter: str) -> Site:
    base = layer.get_base_layer()
    kind = kind_of(base)
    assert kind is not None
    return Site(
        name=name,
        kind=kind.KIND,
        weight=getattr(base, "weight", None),  # pyright: ignore[reportArgumentType]
        A=place_of(layer, "A", adapter).tensor,
        B=place_of(layer, "B", adapter).tensor,
        scaling=layer.scaling[adapter],
        layer=layer,
    )


def place_of(layer: Any, factor: Factor, adapter: str) -> Place:
    """Return where a PEFT layer keeps a factor.

    Args:
        layer: A LoRA layer of PEFT that has the adapter.
        factor: Which factor.
        adapter: Name of the adapter.

    Returns:
        The holder and the key in it.
    """
    if adapter in layer.lora_embedding_A:
        return Place(getattr(layer, f"lora_embedding_{factor}"), adapter)
    return Place(getattr(layer, f"lora_{factor}")[adapter], "weight")


def is_frozen(layer: Any, factor: Factor, adapter: str) -> bool:
    """Whether `asymlora.freeze` froze a factor: it is a buffer then.

    Args:
        layer: A LoRA layer of PEFT that has the adapter.
        factor: Which factor.
        adapter: Name of the adapter.

    Returns:
        False for a factor whose ``requires_grad`` flag alone is off.
    """
    return not isinstance(place_of(layer, factor, adapter).tensor, nn.Parameter)


def adapters_of(layer: Any) -> tuple[str, ...]:
    """Return the names of the adapters of a PEFT layer."""
    return (*layer.lora_A, *layer.lora_embedding_A)


def peft_root(model: nn.Module) -> nn.Module:
    """Return the module that names of sites are relative to: the model that PEFT's layers were put into."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    for module in model.modules():
        if tuners is not None and isinstance(module, tuners.BaseTuner):
            return module.model  # pyright: ignore[reportReturnType]
    root = model
    while len(children := dict(root.named_children())) == 1 and WRAPPERS & children.keys():
        (root,) = children.values()
    return root


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's LoRA layers by path in the base model, those inside of another's base layer left out.

    Args:
        model: Any model.

    Returns:
        Layers of every kind, variants included; empty if there is none.
    """
    found: dict[str, Any] = {}
    outer = "."
    for path, layer in _every_layer(model):
        if not path.startswith(outer):  # parents come first
            outer = f"{path}."
            found[".".join(part for part in path.split(".") if part not in WRAPPERS - {"module"})] = layer
    return found


def _every_layer(model: nn.Module) -> list[tuple[str, Any]]:
    lora = sys.modules.get("peft.tuners.lora")
    if lora is None:
        return []
    return [(path, module) for path, module in peft_root(model).named_modules() if isinstance(module, lora.LoraLayer)]


def trained_in_full(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's wrappers of modules trained in full (``modules_to_save``), by path in the base model."""
    others = sys.modules.get("peft.utils.other")
    if others is None:
        return {}
    wrapper = others.ModulesToSaveWrapper
    return {path: module for path, module in peft_root(model).named_modules() if isinstance(module, wrapper)}


def required_layers(model: nn.Module) -> dict[str, Any]:
    """Return what `lora_layers` does.

    Args:
        model: A model with PEFT's LoRA layers in it.

    Returns:
        At least one layer.

    Raises:
        NotAttachedError: There is none.
    """
    layers = lora_layers(model)
    if layers:
        return layers
    kind = type(model).__name__
    if find_attached(model) is not None:
        raise NotAttachedError(
            f"The adapter of this {kind} is asymlora's own, not PEFT's. Its factors are chosen in its spec: detach, and"
            " attach with AdapterSpec.b_only() or FactorSpec(trainable=False)."
        )
    raise NotAttachedError(
        f"This {kind} holds no LoRA layer of PEFT. Needed is a PeftModel with a LoraConfig: call"
        " peft.get_peft_model(model, LoraConfig(...)) first, or asymlora.attach(model, spec)."
    )


def plain_layers(model: nn.Module, adapter: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the layers of one adapter, all plain LoRA.

    Args:
        model: A model with PEFT's LoRA layers in it.
        adapter: Its name; default: the active one.

    Returns:
        The adapter's name, and its layers by path in the base model.

    Raises:
        NotAttachedError: There is no LoRA layer.
        UnknownNameError: There is no such adapter, or not exactly one is active.
        AttachError: A layer is not plain LoRA; it is named.
    """
    everywhere = required_layers(model)
    adapter = _chosen(everywhere, adapter)
    layers = {name: layer for name, layer in everywhere.items() if adapter in adapters_of(layer)}
    problems = [f"{name} is {why}" for name, layer in layers.items() if (why := why_not_plain(layer, adapter))]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise AttachError(
            f"The adapter {adapter!r} is not plain LoRA, which is all that asymlora handles: {shown}. Use PEFT's own"
            " tools for it, or start a plain LoraConfig."
        )
    return adapter, layers


def _chosen(layers: Mapping[str, Any], adapter: str | None) -> str:
    names = list(dict.fromkeys(name for layer in layers.values() for name in adapters_of(layer)))
    if adapter is not None:
        if adapter not in names:
            raise UnknownNameError(f"There is no adapter {adapter!r}. Adapters of this model: {', '.join(names)}.")
        return adapter
    active = [name for name in names if any(name in layer.active_adapters for layer in layers.values())]
    if len(active) != 1:
        state = f"{len(active)} adapters are active ({', '.join(active)})" if active else "No adapter is active"
        raise UnknownNameError(f"{state}; say which is meant: adapter= one of {', '.join(names)}.")
    return active[0]


def why_not_plain(layer: Any, adapter: str) -> str | None:
    """Return what a PEFT layer is if it is not plain LoRA, or None.

    Args:
        layer: A LoRA layer of PEFT that has the adapter.
        adapter: Name of the adapter.
    """
    if (variant := layer.lora_variant.get(adapter)) is not None:
        return type(variant).__name__.removesuffix("Variant")
    ancestors = type(layer).__mro__
    if not any(c.__name__ in _PLAIN_LAYERS and c.__module__.startswith("peft.tuners.lora.") for c in ancestors):
        return f"PEFT's {type(layer).__name__}"
    if kind_of(base := layer.get_base_layer()) is None:
        return f"on a {type(base).__name__}, whose widths are not known"
    return None


Role = Literal["A", "B", "embedding_A", "embedding_B", "trained_in_full", "vector"]


def parameter_roles(model: nn.Module) -> Iterator[tuple[Role, nn.Parameter]]:
    """Yield the parameters that PEFT put into a model with what each is, for every adapter and variant.

    Args:
        model: A model with PEFT's LoRA layers in it.

    Yields:
        ``A``, ``B`` (with the bias that PEFT may give ``B``), factors of embeddings, parameters of ``modules_to_save``
        copies, and ``vector`` for DoRA's magnitudes.
    """
    for _, layer in _every_layer(model):
        parts: tuple[tuple[Role, nn.Module], ...] = (
            ("A", layer.lora_A),
            ("B", layer.lora_B),
            ("embedding_A", layer.lora_embedding_A),
            ("embedding_B", layer.lora_embedding_B),
            ("vector", layer.lora_magnitude_vector),
        )
        for role, holder in parts:
            for parameter in holder.parameters():
                yield role, parameter
    for wrapper in trained_in_full(model).values():
        for parameter in wrapper.modules_to_save.parameters():
            yield "trained_in_full", parameter
