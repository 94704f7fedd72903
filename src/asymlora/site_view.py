"""The view that every tool takes of an adapted model: its sites, and the record of what was attached to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from asymlora.errors import AttachError, NotAttachedError
from asymlora.layers import AdapterLayer
from asymlora.spec import AdapterSpec

_RECORD = "asymlora_attachment"


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """What `attach` did to a model: kept on the model, so that saving and detaching need nothing else.

    Attributes:
        spec: The adapter.
        sites: Paths of the adapted modules, in the model's order.
        saved_modules: Paths of the modules trained in full beside the adapter.
        trained_before: Names of the base parameters that required a gradient before.
    """

    spec: AdapterSpec
    sites: tuple[str, ...]
    saved_modules: tuple[str, ...]
    trained_before: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One adapted place in a model.

    Attributes:
        name: Path of the module in the model.
        kind: ``linear``, ``embedding`` or ``convolution``.
        weight: Base weight ``W0``, in the base layer's own shape: ``(out, in)`` for `nn.Linear`.
        A: Down factor, shape ``(rank, in)``; of a convolution ``(rank, in, kernel...)``.
        B: Up factor, shape ``(out, rank)``; of a convolution ``(out, rank/groups, 1...)``.
        scaling: The whole multiplier ``s`` on ``B A``, as it is now.
        layer: The adapter layer itself.
    """

    name: str
    kind: str
    weight: Tensor
    A: Tensor
    B: Tensor
    scaling: float
    layer: AdapterLayer


def set_attachment(model: nn.Module, record: Attachment | None) -> None:
    """Put the record on the model, or take it away."""
    if record is None:
        delattr(model, _RECORD)
    else:
        setattr(model, _RECORD, record)


def find_attached(model: nn.Module) -> tuple[nn.Module, Attachment] | None:
    """Return the module that carries the record and the record, looking through wrappers (DDP, compile), or None."""
    for module in model.modules():
        record = vars(module).get(_RECORD)  # not getattr: a compiled module answers for the one inside it
        if isinstance(record, Attachment):
            return module, record
    return None


def attached(model: nn.Module) -> tuple[nn.Module, Attachment]:
    """Return what `find_attached` does.

    Args:
        model: A model, or a wrapper around it.

    Returns:
        The module that `attach` was called with, and the record.

    Raises:
        NotAttachedError: The model carries no adapter.
    """
    found = find_attached(model)
    if found is None:
        raise NotAttachedError(
            f"This {type(model).__name__} carries no asymlora adapter. Call asymlora.attach(model, spec) or"
            " asymlora.load_adapter(model, folder) first."
        )
    return found


def sites(model: nn.Module) -> Iterator[Site]:
    """Yield the adapted places of a model, in its own order.

    Args:
        model: A model that `attach` was called with, or a wrapper around it.

    Yields:
        One `Site` each.
    """
    root, record = attached(model)
    for name in record.sites:
        layer = root.get_submodule(name)
        assert isinstance(layer, AdapterLayer)
        yield Site(
            name=name,
            kind=layer.KIND,
            weight=getattr(layer.base_layer, "weight", None),  # pyright: ignore[reportArgumentType]
            A=layer.lora_A,
            B=layer.lora_B,
            scaling=layer.scaling,
            layer=layer,
        )


def refuse_folded(model: nn.Module, action: str) -> None:
    """Refuse what cannot be done while `asymlora.merged` holds the update in the base.

    Args:
        model: An attached model.
        action: What was asked for, to end the sentence.

    Raises:
        AttachError: The adapter is folded in.
    """
    if any(site.layer.folded is not None for site in sites(model)):
        raise AttachError(
            f"The adapter of this {type(model).__name__} is folded into the base for a while. Leave `with"
            f" asymlora.merged(model):` first, then {action}."
        )


def saved_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules trained in full beside the adapter, by path."""
    root, record = attached(model)
    return {name: root.get_submodule(name) for name in record.saved_modules}
