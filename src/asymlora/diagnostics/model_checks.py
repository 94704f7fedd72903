"""Verdicts on a model itself, before and beside its rows: heads, targets, frozen factors, sites that are never called.

Nothing here has a threshold: bits are equal or not, a name matches a layer or not. What was true when watching began is
taken as facts (digests, flags) and compared later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from asymlora.adapter_reading import read_adapter
from asymlora.diagnostics.verdict import Factor, Verdict, named
from asymlora.draws import digest
from asymlora.errors import UnknownNameError
from asymlora.peft_sites import FACTORS, WRAPPERS, adapters_of, lora_layers, peft_root, sites
from asymlora.site_view import Site, find_attached
from asymlora.targets import ends_with

Bits = dict[tuple[str, Factor], str]
"""Digest of each frozen factor, by site and factor."""


# Frozen factors ------------------------------------------------------------------------------------------------------


def frozen_bits(of: Iterable[Site]) -> Bits:
    """Return the digests of the factors that are frozen now: buffers, and parameters that require no gradient.

    Args:
        of: Sites of a model.
    """
    return {(s.name, f): digest(getattr(s, f)) for s in of for f in FACTORS if not getattr(s, f).requires_grad}


def judge_frozen(start: Bits, of: Iterable[Site], *, step: int) -> tuple[Verdict, ...]:
    """Return which factors were frozen at the start and are not what they were.

    Args:
        start: What `frozen_bits` gave.
        of: The sites of the same model now.
        step: Optimizer step, for the verdict.

    Returns:
        For each factor up to two verdicts ``frozen_changed``: of bits that differ, and of factors that require a
        gradient.
    """
    changed: dict[Factor, list[str]] = {f: [] for f in FACTORS}
    thawed: dict[Factor, list[str]] = {f: [] for f in FACTORS}
    for site in of:
        for factor in FACTORS:
            was = start.get((site.name, factor))
            tensor = getattr(site, factor)
            if was is not None and tensor.requires_grad:
                thawed[factor].append(site.name)
            if was is not None and digest(tensor) != was:
                changed[factor].append(site.name)
    found: list[Verdict] = []
    for factor in FACTORS:
        total = sum(f == factor for _, f in start)
        said = (
            (changed[factor], f"{factor} was frozen when watching began, and its bits are others at step {step}", 1.0),
            (thawed[factor], f"{factor} was frozen when watching began, and requires a gradient at step {step}", None),
        )
        found += [
            _verdict(
                "frozen_changed",
                where,
                factor=factor,
                step=step,
                value=value,
                says=f"{what}, at {named(where, total)}.",
                means=(
                    "The freeze was a flag, and something undid it (PEFT's set_adapter and disable_adapter do), or"
                    " wrote into the factor. A shared or seeded factor is no longer the one that others have."
                ),
                remedy=(
                    f"Freeze it as a buffer, which no call thaws: asymlora.freeze(model, {factor!r}) on a PEFT model,"
                    " adapter.preset=b_only or a_only here. Then begin again from the factor as it was."
                ),
            )
            for where, what, value in said
            if where
        ]
    return tuple(found)


# Sites and targets ---------------------------------------------------------------------------------------------------


def judge_uncalled(of: Sequence[str], called: Iterable[str]) -> tuple[Verdict, ...]:
    """Return a verdict on the sites that the model did not call.

    Args:
        of: Names of all sites.
        called: Names of those that were.
    """
    here = set(called)
    uncalled = [name for name in of if name not in here]
    if not uncalled:
        return ()
    return (
        _verdict(
            "uncalled_site",
            uncalled,
            says=f"The model did not call {named(uncalled, len(of))} in a forward pass over the probe batch.",
            means="An adapter there changes nothing and learns nothing. (An expert may be called by other inputs.)",
            remedy="Leave these layers out of the targets, or give a probe batch that reaches them.",
        ),
    )


def judge_targets(model: nn.Module, adapter: str | None = None) -> tuple[Verdict, ...]:
    """Return a verdict on the listed targets of a PEFT model that no adapted layer matches.

    PEFT passes over them in silence where another entry matches. `asymlora.attach` refuses such a list, so a model of
    our own has none.

    Args:
        model: Any model.
        adapter: Name of the adapter; default: all that are there.
    """
    configs: Mapping[str, Any] = getattr(_tuner(model), "peft_config", {})
    layers = lora_layers(model)
    found: list[Verdict] = []
    for name, config in configs.items():
        listed = getattr(config, "target_modules", None)
        if adapter not in (None, name) or not isinstance(listed, (list, set, tuple)):
            continue
        paths = [path for path, layer in layers.items() if name in adapters_of(layer)]
        unmatched = sorted(entry for entry in listed if not any(ends_with(path, entry) for path in paths))
        if unmatched and paths:
            found.append(
                _verdict(
                    "unmatched_target",
                    unmatched,
                    says=f"No adapted layer matches {', '.join(map(repr, unmatched))} of target_modules ({name!r}).",
                    means="PEFT passed over it, as other entries match: less is adapted than was asked for.",
                    remedy=f"Correct or remove it. Adapted layers end in: {', '.join(_endings(paths))}.",
                )
            )
    return tuple(found)


def judge_folder(model: nn.Module, folder: str | Path) -> tuple[Verdict, ...]:
    """Return a verdict on the factors of an adapter folder for which a model has no module.

    `PeftModel.from_pretrained` warns at most; `asymlora.load_adapter` refuses such a folder.

    Args:
        model: The base model, or one with an adapter on it.
        folder: Written by `save_adapter` or by PEFT.
    """
    stored = list(read_adapter(folder).factors)
    found = find_attached(model)
    root = found[0] if found else peft_root(model)
    here = {_plain(path) for path, _ in root.named_modules()}
    nowhere = [site for site in stored if site not in here]
    if not nowhere:
        return ()
    return (
        _verdict(
            "unmatched_target",
            nowhere,
            says=f"This {type(root).__name__} has no module for {named(nowhere, len(stored))} of {folder}.",
            means="These factors are not used; what PEFT puts on other layers instead stays at its random start.",
            remedy="Load the base model that the adapter was trained on, of the same class.",
        ),
    )


# Heads ---------------------------------------------------------------------------------------------------------------


def task_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model of transformers that stand outside its base model and start at random.

    A head over a vocabulary is pretrained (and often tied) and none of them. A model that names no base model has none.

    Args:
        model: A model, adapted or not, or a wrapper around it.

    Returns:
        Direct children with parameters, by path in the unwrapped model.
    """
    found = find_attached(model)
    root = found[0] if found else peft_root(model)
    base = getattr(root, str(getattr(root, "base_model_prefix", "") or "."), None)
    if not isinstance(base, nn.Module) or base is root:
        return {}
    vocabulary = _output_embeddings(root)
    return {
        name: child
        for name, child in root.named_children()
        if child is not base
        and any(True for _ in child.parameters())
        and not any(vocabulary is module for module in child.modules())
    }


def chosen_heads(model: nn.Module, paths: Sequence[str]) -> dict[str, nn.Module]:
    """Return modules by their paths.

    Args:
        model: A model, adapted or not, or a wrapper around it.
        paths: Paths in the unwrapped model.

    Returns:
        The modules by path.

    Raises:
        UnknownNameError: There is no such module.
    """
    found = find_attached(model)
    root = found[0] if found else peft_root(model)
    modules = {_plain(path): module for path, module in root.named_modules(remove_duplicate=False) if path}
    if missing := [path for path in paths if path not in modules]:
        outermost = ", ".join(path for path in modules if "." not in path)
        raise UnknownNameError(
            f"heads names {', '.join(map(repr, missing))}, and this {type(root).__name__} has no such module. Give"
            f" paths of modules; the outermost here: {outermost}."
        )
    return {path: modules[path] for path in paths}


def head_bits(heads: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return the digests of what is trained in each head, by path; a head in which nothing is trained has none.

    Args:
        heads: Modules by path. Of one that PEFT trains (``modules_to_save``), its copy is what is trained.
    """
    return {path: tuple(digest(p) for p in head.parameters() if p.requires_grad) for path, head in heads.items()}


def judge_untrained_heads(heads: Mapping[str, nn.Module]) -> tuple[Verdict, ...]:
    """Return a verdict on the heads in which nothing is trained.

    Args:
        heads: Modules by path.
    """
    frozen = [path for path, bits in head_bits(heads).items() if not bits]
    if not frozen:
        return ()
    return (
        _verdict(
            "frozen_head",
            frozen,
            says=f"Nothing in the head {named(frozen)} is trained.",
            means="It stands outside the pretrained model: at its random start, the adapter learns to serve noise.",
            remedy=(
                f"Train it beside the adapter: modules_to_save=[{frozen[0]!r}], or the task's own task_type in PEFT. If"
                " it was fitted before and is frozen on purpose, say so: HealthMonitor(model, heads=())."
            ),
        ),
    )


def judge_still_heads(still: Sequence[str], *, step: int) -> tuple[Verdict, ...]:
    """Return a verdict on the heads that are marked as trained and have the bits that they began with.

    Args:
        still: Their paths.
        step: Optimizer steps that were taken.
    """
    if not still:
        return ()
    return (
        _verdict(
            "frozen_head",
            still,
            step=step,
            value=0.0,
            says=f"The head {named(still)} is marked as trained, and has not changed by one bit after {step} steps.",
            means="No optimizer steps it, or by less than its numbers can show.",
            remedy="Build the optimizer over asymlora.param_groups(model, lr=...), and raise its rate (train.lr_head).",
        ),
    )


def judge_parameters(model: nn.Module, *, step: int) -> tuple[Verdict, ...]:
    """Return a verdict on the trained parameters that hold NaN or infinity, for methods that have no rows.

    Args:
        model: Any model.
        step: Optimizer steps that were taken.
    """
    bad = [name for name, p in model.named_parameters() if p.requires_grad and not bool(p.isfinite().all())]
    if not bad:
        return ()
    return (
        _verdict(
            "non_finite",
            bad,
            step=step,
            says=f"{named(bad)} holds NaN or infinity at step {step}.",
            means="A number has run over, and what is computed from it is lost.",
            remedy="Lower train.lr to a third, or look at the data of the steps before.",
        ),
    )


def sites_of(model: nn.Module, adapter: str | None = None) -> list[Site]:
    """Return the sites of a model as a list, in its own order; see `asymlora.sites`."""
    return list(sites(model, adapter))


def _verdict(name: str, where: Sequence[str], *, says: str, means: str, remedy: str, **more: Any) -> Verdict:
    given = {"factor": None, "step": 0, "value": None, "threshold": None, **more}
    return Verdict(name=name, sites=tuple(where), says=says, means=means, remedy=remedy, **given)


def _tuner(model: nn.Module) -> nn.Module:
    # Of a PeftModel and of a model with adapters injected alike: the module that PEFT keeps its configurations on.
    return next((m for m in model.modules() if isinstance(vars(m).get("peft_config"), dict)), model)


def _output_embeddings(root: nn.Module) -> nn.Module | None:
    get: Any = getattr(root, "get_output_embeddings", None)
    try:
        return get() if callable(get) else None  # pyright: ignore[reportReturnType]
    except (NotImplementedError, AttributeError):  # transformers raises one of them for models without
        return None


def _plain(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def _endings(paths: Sequence[str]) -> list[str]:
    return sorted({path.rpartition(".")[2] for path in paths})
