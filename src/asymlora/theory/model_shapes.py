"""Sizes of a model read off an `nn.Module`, on the meta device too: its blocks, adapted layers and everything else.

Blocks are known by the paths of their linear layers, so that no model library is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from asymlora.errors import SpecError
from asymlora.kinds import kind_of
from asymlora.layers import LinearAdapter
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules, match_targets, shared_groups
from asymlora.theory.block_cost import Block, BlockKind
from asymlora.theory.cost import AdaptedLayer, Branch

_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
BLOCK_PATHS: tuple[tuple[tuple[str, ...], BlockKind, Mapping[str, str]], ...] = (
    (
        ("BertLayer", "RobertaLayer"),
        "post_norm",
        {
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "o": "attention.output.dense",
            "up": "intermediate.dense",
            "down": "output.dense",
        },
    ),
    (
        ("ViTLayer",),
        "pre_norm",
        {**{role: f"attention.{end}" for role, end in _PROJECTIONS.items()}, "up": "mlp.fc1", "down": "mlp.fc2"},
    ),
    (
        ("ViTLayer",),  # of transformers before it named ViT's layers as those of other models
        "pre_norm",
        {
            "q": "attention.attention.query",
            "k": "attention.attention.key",
            "v": "attention.attention.value",
            "o": "attention.output.dense",
            "up": "intermediate.dense",
            "down": "output.dense",
        },
    ),
    (
        ("LlamaDecoderLayer",),
        "gated",
        {
            **{role: f"self_attn.{end}" for role, end in _PROJECTIONS.items()},
            **{role: f"mlp.{role}_proj" for role in ("gate", "up", "down")},
        },
    ),
    (
        ("GPT2Block",),
        "fused_qkv",
        {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    ),
)
"""Class names, kind, and path of each linear layer by its role."""


HEADS: Mapping[str, tuple[Literal["layer", "rms"] | None, bool, tuple[str, ...]]] = {
    "BertForSequenceClassification": (None, True, ("bert.pooler.dense", "classifier")),
    "RobertaForSequenceClassification": (None, True, ("classifier.dense", "classifier.out_proj")),
    "ViTForImageClassification": ("layer", True, ("classifier",)),
    "LlamaForCausalLM": ("rms", False, ("lm_head",)),
    "GPT2LMHeadModel": ("layer", False, ("lm_head",)),
}
"""By class name: the norm after the last block, whether only the first token goes on, paths of the linear layers."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What comes after the last block; between its layers stands a tanh.

    Attributes:
        norm: Kind of the norm before it.
        pools: Whether only the first token of each sequence goes on.
        layers: Its linear layers in order; the last gives the logits.
    """

    norm: Literal["layer", "rms"] | None
    pools: bool
    layers: tuple[AdaptedLayer, ...]


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the cost of training a model follows from.

    Attributes:
        blocks: Its transformer blocks, in order.
        adapted: Every layer that carries an adapter, by path; those outside of blocks too.
        base_values: Entries of all base parameters, each once.
        matrix_values: Of these, entries of the weights of linear layers outside of heads and embeddings, which a
            quantised base packs.
        saved_values: Entries of each parameter trained in full beside the adapter.
        buffer_bytes: Bytes of the base's buffers.
        itemsize: Bytes of one entry of the base.
        head: What comes after the blocks; None where the model's class has no row in `HEADS`.
    """

    blocks: tuple[Block, ...]
    adapted: Mapping[str, AdaptedLayer] = field(hash=False)
    base_values: int
    matrix_values: tuple[tuple[int, int], ...]
    saved_values: tuple[int, ...]
    buffer_bytes: int
    itemsize: int
    head: Head | None = None

    @property
    def trained_shapes(self) -> tuple[int, ...]:
        """Entries of each trained tensor."""
        return (*self.saved_values, *(size for layer in self.adapted.values() for size in layer.trained_shapes))

    @property
    def trained_values(self) -> int:
        """Entries that are trained."""
        return sum(self.trained_shapes)


def read_model(
    model: nn.Module,
    spec: AdapterSpec | None = None,
    *,
    full: bool = False,
    branch: Branch = "ours",
    factor_itemsize: int = 4,
) -> ModelShape:
    """Return the sizes of a model without an adapter, for the adapter that it would get.

    Args:
        model: The base model; values are not read.
        spec: The adapter; None: none.
        full: Whether the base is trained in full, in place of an adapter.
        branch: Whose layers would carry the adapter.
        factor_itemsize: Bytes of one entry of a factor.

    Returns:
        Its sizes. A model without known blocks has none, and its parameters are counted all the same.

    Raises:
        SpecError: ``spec`` and ``full`` are both given, or a target is no linear layer.
        NoTargetError: A target matches no layer.
        RankError: The rank is larger than a layer allows.
    """
    if spec is not None and full:
        raise SpecError("full=True trains the base in place of an adapter, and spec is given. Give one of them.")
    adapted: dict[str, AdaptedLayer] = {}
    saved: tuple[str, ...] = ()
    if spec is not None:
        saved = match_saved_modules(model, spec.modules_to_save)
        chosen = match_targets(model, spec, saved)
        groups = {name: address for address, names in shared_groups(spec, chosen).items() for name in names}
        for name, module in chosen.items():
            shared = groups.get(name)
            adapted[name] = _adapted(module, spec, name, shared=shared, branch=branch, itemsize=factor_itemsize)
    parameters = dict(model.named_parameters())
    if full:
        trained = tuple(p.numel() for p in parameters.values())
    else:
        trained = tuple(p.numel() for path in saved for p in model.get_submodule(path).parameters())
    blocks = tuple(_block(path, module, *row, adapted=adapted, full=full) for path, module, row in _found(model))
    floats = [p for p in parameters.values() if p.is_floating_point()]
    return ModelShape(
        blocks=blocks,
        adapted=adapted,
        base_values=sum(p.numel() for p in parameters.values()),
        matrix_values=tuple(_matrices(model)),
        saved_values=trained,
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
        itemsize=floats[0].element_size() if floats else 4,
        head=_head(model, adapted=adapted, full=full, saved=saved),
    )


def _head(model: nn.Module, *, adapted: Mapping[str, AdaptedLayer], full: bool, saved: tuple[str, ...]) -> Head | None:
    if type(model).__name__ not in HEADS:
        return None
    norm, pools, paths = HEADS[type(model).__name__]
    layers = [
        adapted.get(path)
        or _plain(model.get_submodule(path), full=full or any(f"{path}.".startswith(f"{end}.") for end in saved))
        for path in paths
    ]
    return Head(norm=norm, pools=pools, layers=tuple(layers))


def _matrices(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Yield entries and rows of every linear weight of the trunk."""
    trunk = getattr(model, "base_model", model)
    for module in trunk.modules():
        if kind_of(module) is LinearAdapter and not any(kind_of(part) for part in module.children()):
            (_, n), (m, _) = LinearAdapter.factor_shapes(module, 1)
            yield m * n, m


def _adapted(
    module: nn.Module, spec: AdapterSpec, name: str, *, shared: str | None, branch: Branch, itemsize: int
) -> AdaptedLayer:
    kind, site = kind_of(module), spec.at(name)
    assert kind is not None
    if kind is not LinearAdapter:
        raise SpecError(
            f"{name} is an {kind.KIND}, and costs are known of adapters on linear layers only. Leave it out of targets."
        )
    (_, n), (m, _) = kind.matrix_shapes(module, site.rank)
    return AdaptedLayer(
        fan_in=n,
        fan_out=m,
        rank=site.rank,
        trains_A=site.A.trainable,
        trains_B=site.B.trainable,
        bias=getattr(module, "bias", None) is not None,
        dropout=spec.dropout,
        shared_A=shared,
        factor_itemsize=itemsize,
        branch=branch,
        B_along_rows=site.B.trainable,
    )


def _plain(module: nn.Module, *, full: bool) -> AdaptedLayer:
    (_, n), (m, _) = LinearAdapter.factor_shapes(module, 1)
    return AdaptedLayer(fan_in=n, fan_out=m, trains_weight=full, bias=getattr(module, "bias", None) is not None)


def _found(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[BlockKind, Mapping[str, str]]]]:
    for path, module in model.named_modules():
        for names, kind, roles in BLOCK_PATHS:
            if type(module).__name__ in names and all(_has(module, end) for end in roles.values()):
                yield path, module, (kind, roles)
                break


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _block(
    path: str,
    module: nn.Module,
    kind: BlockKind,
    roles: Mapping[str, str],
    *,
    adapted: Mapping[str, AdaptedLayer],
    full: bool,
) -> Block:
    layers = {
        role: adapted.get(f"{path}.{end}") or _plain(module.get_submodule(end), full=full)
        for role, end in roles.items()
    }
    config: Any = next(part.config for part in module.modules() if hasattr(part, "config"))
    heads = config.num_attention_heads
    return Block(
        kind=kind,
        layers=layers,
        heads=heads,
        kv_heads=_first(config, ("num_key_value_heads",), heads),
        head_dim=_first(config, ("head_dim",), 0) or config.hidden_size // heads,
        activation=_first(config, ("hidden_act", "activation_function"), ""),
        hidden_dropout=_first(config, ("hidden_dropout_prob", "resid_pdrop"), 0.0),
        attention_dropout=_first(config, ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"), 0.0),
        trains_norms=full,
    )


def _first(config: Any, names: tuple[str, ...], default: Any) -> Any:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), default)
