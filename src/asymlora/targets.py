"""Which modules of a model an adapter goes to, and what to say when none fits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from asymlora.errors import AttachError, NoTargetError, RankError
from asymlora.kinds import kind_of
from asymlora.layers import LinearAdapter
from asymlora.spec import ALL_LINEAR, AdapterSpec

# These read the weights of their linear layers and do not call them (the encoder layer in evaluation only): an adapter
# inside would silently do nothing.
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def ends_with(name: str, ending: str) -> bool:
    """Whether a module path is ``ending`` or ends in ``.ending`` (PEFT's rule for a list of targets).

    Example:
        >>> ends_with("encoder.layer.0.query", "query"), ends_with("encoder.subquery", "query")
        (True, False)
    """
    return name == ending or name.endswith("." + ending)


def match_saved_modules(model: nn.Module, endings: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of the modules that are trained in full.

    Args:
        model: The model.
        endings: Endings of module paths.

    Returns:
        The outermost matching paths.

    Raises:
        NoTargetError: An ending matches nothing, or only modules without parameters.
        AttachError: A parameter in a matching module is shared with another place.
    """
    paths: list[str] = []
    missing: list[str] = []
    named = {name: module for name, module in model.named_modules() if name}
    for ending in endings:
        matching = [n for n, m in named.items() if ends_with(n, ending) and any(True for _ in m.parameters())]
        paths += [n for n in matching if n not in paths]
        if not matching:
            missing.append(ending)
    if missing:
        owners = [n for n, m in model.named_children() if any(True for _ in m.parameters())]
        raise NoTargetError(
            f"modules_to_save={tuple(missing)} matches no module with parameters. Modules here: {', '.join(owners)}."
        )
    outermost = tuple(n for n in paths if not any(n.startswith(other + ".") for other in paths))
    _refuse_tied(model, outermost)
    return outermost


def _refuse_tied(model: nn.Module, saved: Sequence[str]) -> None:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name)
    inside = tuple(f"{path}." for path in saved)
    tied = [names for names in owners.values() if len(names) > 1 and any(n.startswith(inside) for n in names)]
    if tied and inside:
        listed = "; ".join(" = ".join(names) for names in tied)
        raise AttachError(
            f"modules_to_save would train weights that stand in several places ({listed}), and an adapter file cannot"
            " say so. Untie them, or give these layers an adapter instead."
        )


def match_targets(model: nn.Module, spec: AdapterSpec, saved: Sequence[str]) -> dict[str, nn.Module]:
    """Return the layers that the adapter goes to, by path, all checked.

    Args:
        model: The model.
        spec: The adapter.
        saved: Paths of the modules trained in full; their inside takes no adapter.

    Returns:
        Base layers by path, in the model's order.

    Raises:
        NoTargetError: A target, or an ending in a pattern, matches no layer that can take an adapter.
        RankError: The rank is larger than a layer allows.
        AttachError: A target is a layer that cannot take an adapter, is used in several places, or has no weight yet.
    """
    _refuse_lazy(model, spec)
    possible = adaptable(model, saved)
    if spec.targets == ALL_LINEAR:
        chosen = {n: m for n, m in possible.items() if kind_of(m) is LinearAdapter and not _is_head(model, n)}
        missing = () if chosen else (ALL_LINEAR,)
    else:
        chosen = {n: m for n, m in possible.items() if any(ends_with(n, t) for t in spec.targets)}
        missing = tuple(t for t in spec.targets if not any(ends_with(n, t) for n in possible))
    if missing:
        endings = sorted({name.rpartition(".")[2] for name in possible})
        can = f"Layers here that can take an adapter end in: {', '.join(endings)}."
        if not endings:
            can = (
                "No layer here can take an adapter: linear layers, embeddings and convolutions can, outside of torch's"
                " own attention layers."
            )
        reasons = _why_not(model, missing, possible)
        raise NoTargetError(f"no layer matches targets={missing}. {reasons}{can}")
    _refuse_unmatched_patterns(spec, chosen)
    _refuse_shared(model, chosen)
    _refuse_unfit(chosen, spec)
    return chosen


def shared_groups(spec: AdapterSpec, chosen: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return the sites that share one ``A``: by address of the draw, the paths of its sites.

    Args:
        spec: The adapter.
        chosen: Base layers by path.

    Returns:
        Paths by address, ``parent.q_proj+k_proj``; sites that share nothing are left out.

    Raises:
        NoTargetError: A group matches no two sites of one parent.
        AttachError: Sites of a group differ in input width or rank, are not linear, or train ``A``.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for endings in spec.shared_A:
        parents = {
            "" if name == e else name.removesuffix(f".{e}") for name in chosen for e in endings if ends_with(name, e)
        }
        found = {
            parent: tuple(name for e in endings if (name := f"{parent}.{e}" if parent else e) in chosen)
            for parent in sorted(parents)
        }
        found = {parent: names for parent, names in found.items() if len(names) > 1}
        if not found:
            raise NoTargetError(
                f"shared_A={endings} matches no two adapted layers of one parent. Adapted here:"
                f" {', '.join(sorted({name.rpartition('.')[2] for name in chosen}))}."
            )
        for parent, names in found.items():
            _refuse_unlike(spec, {name: chosen[name] for name in names})
            groups[f"{parent}.{'+'.join(endings)}" if parent else "+".join(endings)] = names
    return groups


def _refuse_unlike(spec: AdapterSpec, group: Mapping[str, nn.Module]) -> None:
    kinds = {kind_of(layer) for layer in group.values()}
    if kinds != {LinearAdapter}:
        raise AttachError(f"shared_A is for linear layers, and one of {', '.join(group)} is none.")
    shapes = {name: LinearAdapter.factor_shapes(layer, spec.at(name).rank)[0] for name, layer in group.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise AttachError(
            f"Layers that share A need one rank and one input width: {listed}. Leave one out of shared_A."
        )
    if trained := [name for name in group if spec.at(name).A.trainable or spec.at(name).A.starts_at_zero]:
        raise AttachError(f"shared_A shares a frozen A, but A is trained at {', '.join(trained)} by factor_pattern.")


def _refuse_unmatched_patterns(spec: AdapterSpec, chosen: Mapping[str, nn.Module]) -> None:
    unmatched = [
        f"{name}[{ending!r}]"
        for name in ("rank_pattern", "alpha_pattern", "factor_pattern")
        for ending in getattr(spec, name)
        if not any(ends_with(site, ending) for site in chosen)
    ]
    if unmatched:
        endings = sorted({name.rpartition(".")[2] for name in chosen})
        raise NoTargetError(
            f"{', '.join(unmatched)} matches no adapted layer. Adapted layers end in: {', '.join(endings)}."
        )


def adaptable(model: nn.Module, saved: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Return every layer of a kind that can take an adapter, by path; that a very layer cannot is asked later.

    Args:
        model: The model.
        saved: Paths of the modules trained in full; their inside takes no adapter.

    Returns:
        Layers in the model's order.
    """
    deaf = {id(m) for owner in model.modules() if isinstance(owner, _READS_WEIGHTS) for m in owner.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if name
        and kind_of(module) is not None
        and id(module) not in deaf
        and not any(kind_of(part) for part in module.children())  # a block that knows its widths is no layer
        and not is_parametrized(module)  # a weight that is computed anew cannot be merged into
        and not any(name == path or name.startswith(path + ".") for path in saved)
    }


def _is_head(model: nn.Module, name: str) -> bool:
    # transformers' models hold their trunk under a name of its own; what stands beside it is a head.
    trunk = getattr(model, "base_model_prefix", "")
    held = trunk and isinstance(getattr(model, trunk, None), nn.Module)
    return bool(held) and not name.startswith(f"{trunk}.")


def _why_not(model: nn.Module, missing: Sequence[str], possible: Mapping[str, nn.Module]) -> str:
    kinds = {
        f"{name!r} is a {type(module).__name__}"
        for name, module in model.named_modules()
        if name not in possible and any(ends_with(name, target) for target in missing)
    }
    shown = sorted(kinds)[:3]
    return f"{'; '.join(shown)}{' and more' if len(kinds) > 3 else ''}, which cannot take an adapter. " if kinds else ""


def _refuse_shared(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    places: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        places[id(module)].append(name)
    shared = [places[id(layer)] for layer in chosen.values() if len(places[id(layer)]) > 1]
    if shared:
        listed = "; ".join(" = ".join(names) for names in shared)
        raise AttachError(
            f"One layer stands in several places ({listed}); an adapter would reach only one of them. Give each place"
            " its own layer, or leave these out of targets."
        )


def _refuse_lazy(model: nn.Module, spec: AdapterSpec) -> None:
    lazy = [n for n, m in model.named_modules() if any(is_lazy(p) for p in m.parameters(recurse=False))]
    if spec.targets != ALL_LINEAR:
        lazy = [name for name in lazy if any(ends_with(name, target) for target in spec.targets)]
    if lazy:
        raise AttachError(
            f"These layers have no weight before their first input: {_shown(lazy)}. Run the model on one batch, then"
            " attach."
        )


def _refuse_unfit(chosen: Mapping[str, nn.Module], spec: AdapterSpec) -> None:
    never: list[str] = []
    misfits: list[str] = []
    for name, layer in chosen.items():
        kind = kind_of(layer)
        assert kind is not None
        if why := kind.why_never(layer):
            never.append(f"{name} {why}")
        elif why := kind.why_not(layer, spec.at(name).rank):
            misfits.append(f"{name} {why}")
    if never:
        raise AttachError(f"These layers cannot take an adapter: {_shown(never)}. Leave them out of targets.")
    if misfits:
        raise RankError(
            f"rank={spec.rank} does not fit {len(misfits)} of {len(chosen)} layers: {_shown(misfits)}. Lower the rank,"
            " give these layers their own in rank_pattern, or leave them out of targets."
        )


def _shown(problems: Sequence[str]) -> str:
    return "; ".join(problems[:3]) + ("; and more" if len(problems) > 3 else "")
