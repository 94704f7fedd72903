"""Adapter folders and models: write the adapter of an attached model, fit a read one to a model.

What PEFT's format cannot say (which factor is frozen, how each started) stands beside it in ``asymlora.json``; a folder
in PEFT's form is complete for PEFT without that file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asymlora.adapter_file import AdapterFile, draws_of, write_adapter
from asymlora.adapter_reading import read_adapter
from asymlora.errors import AdapterFileError, WholeModelSaveError
from asymlora.layers import kind_of
from asymlora.peft_format import CONFIG_FILE, WEIGHTS_FILE, exact_pattern, most_common, written_config
from asymlora.site_view import Attachment, attached, saved_modules, sites
from asymlora.spec import AdapterSpec
from asymlora.targets import ends_with, shared_groups
from asymlora.untrusted_files import DTYPES, refuse

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterFile",
    "AdapterSaver",
    "PartSaveRefusal",
    "adapter_tensors",
    "fill",
    "match_spec",
    "read_adapter",
    "refuse_unfit",
    "save_adapter",
]
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_FACTORS = ("lora_A", "lora_B")


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what an adapter file holds, by PEFT's keys: both factors of every site and the modules trained in full.

    Args:
        model: An attached model.

    Returns:
        Detached tensors on CPU, in the dtype they have in the model.
    """
    root, record = attached(model)
    return _file_of(root, record, base_model=None, task_type=None).peft_tensors()


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
    compress: bool = False,
) -> Path:
    """Write the adapter of a model as a folder that PEFT loads, or as a smaller one that only asymlora loads.

    A new folder appears whole or not at all. In an existing one the files are replaced one by one, the one without
    which nothing loads at the end, so that an interrupted write leaves no folder that loads half.

    Args:
        model: An attached model.
        folder: Where to write.
        base_model: Name of the base for the configuration; default: the name that the model's own config holds.
        task_type: PEFT's task type, for instance ``SEQ_CLS``, which picks the class of ``AutoPeftModel``.
        compress: Leave out every frozen factor that is still what was drawn at its address (seed, site), and write the
            address and a digest instead. `asymlora.convert_adapter` turns the folder into PEFT's form.

    Returns:
        The folder.

    Raises:
        WholeModelSaveError: ``model`` holds the attached model as a part; names in the file would not be its own.
        AdapterFileError: A factor is no float of 16 or 32 bits.
    """
    root, record = attached(model)
    _refuse_parent(model, root)
    folder = Path(folder)
    if base_model is None:
        base_model = getattr(getattr(root, "config", None), "name_or_path", None) or None
    file = _file_of(root, record, base_model=base_model, task_type=task_type)
    wrong = [f"{key} is {value.dtype}" for key, value in file.parts().items() if not _storable(key, value)]
    refuse(folder, wrong, "Adapter files hold floats of 16 and 32 bits: call model.float() before saving.")
    card = _card(file.spec, base_model).encode()
    write_adapter(file, folder, form="seed" if compress else "peft", card=card)
    return folder


def _storable(key: str, value: Tensor) -> bool:
    return value.dtype in DTYPES.values() or (value.dim() == 0 and not value.is_floating_point() and "lora_" not in key)


def _refuse_parent(model: nn.Module, root: nn.Module) -> None:
    path = next(name for name, module in model.named_modules() if module is root)
    if path and not set(path.split(".")) <= _WRAPPERS:
        raise WholeModelSaveError(
            f"The adapter is attached to the part {path!r} of this {type(model).__name__}, and would load on that part"
            " only. Save it from there, or attach to the whole model."
        )


def _file_of(root: nn.Module, record: Attachment, *, base_model: str | None, task_type: str | None) -> AdapterFile:
    """Return the adapter of a model as it is now, its tensors detached on CPU."""
    spec = _spec_now(root, record.spec)
    modules = {
        f"{path}.{name}": _on_cpu(value)
        for path, module in saved_modules(root).items()
        for name, value in module.state_dict().items()
    }
    found = list(sites(root))
    file = AdapterFile(
        folder=Path(),
        spec=spec,
        factors={s.name: (_on_cpu(s.A), _on_cpu(s.B)) for s in found},
        kinds={s.name: s.kind for s in found},
        modules=modules,
        modules_to_save=record.saved_modules,
        starts={s.name: (_on_cpu(c.A), _on_cpu(c.B)) for s in found if (c := s.layer.corrected) is not None},
        config=_config(root, record, spec, base_model=base_model, task_type=task_type),
    )
    shared = shared_groups(spec, {s.name: s.layer.base_layer for s in found})
    groups = {name: address for address, names in shared.items() for name in names}
    return replace(file, draws=draws_of(spec, file.parts(), groups=groups))


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _spec_now(root: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    # A scale that was changed on the layer is written as the alpha that gives it.
    changed = {
        s.name: s.scaling * (s.layer.rank if spec.scaling == "standard" else math.sqrt(s.layer.rank))
        for s in sites(root)
        if s.scaling != spec.at(s.name).scaling_factor
    }
    return replace(spec, alpha_pattern={**spec.alpha_pattern, **changed}) if changed else spec


def _config(
    root: nn.Module, record: Attachment, spec: AdapterSpec, *, base_model: str | None, task_type: str | None
) -> dict[str, Any]:
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for site in sites(root):
        stated = spec.at(site.name)
        # Where the base was corrected the file's factors are twice as wide, at the same scale.
        widened = 1 if site.layer.corrected is None else 2
        ranks[site.name] = widened * stated.rank
        alphas[site.name] = stated.alpha * (widened if spec.scaling == "standard" else math.sqrt(widened))
    rank, alpha = most_common(ranks.values()), most_common(alphas.values())
    return written_config(
        base_model_name_or_path=base_model,
        fan_in_fan_out=any(type(s.layer.base_layer).__name__ == "Conv1D" for s in sites(root)),
        r=rank,
        rank_pattern=exact_pattern(ranks, rank),
        lora_alpha=alpha,
        alpha_pattern=exact_pattern(alphas, alpha),
        lora_dropout=spec.dropout,
        modules_to_save=list(record.saved_modules) or None,
        target_modules=_peft_targets(root, record.sites),
        task_type=task_type,
        use_rslora=spec.scaling == "rank_stabilized",
    )


def _peft_targets(model: nn.Module, adapted: Sequence[str]) -> list[str] | str:
    # Short endings if they pick exactly the adapted layers by PEFT's rule, else full paths, which a path that ends in
    # another one makes inexact too: then one expression, which PEFT matches whole.
    inside = tuple(f"{name}." for name in adapted)
    others = [n for n, _ in model.named_modules() if n and n not in set(adapted) and not n.startswith(inside)]
    for endings in (sorted({name.rpartition(".")[2] for name in adapted}), sorted(adapted)):
        wanted = set(endings)
        if not any(_is_ended(name, wanted) for name in others):
            return endings
    return "|".join(re.escape(name) for name in sorted(adapted))


def _is_ended(name: str, endings: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[i:]) in endings for i in range(len(parts)))


def refuse_unfit(model: nn.Module, file: AdapterFile, spec: AdapterSpec) -> None:
    """Refuse an adapter whose sites or shapes are not those of a base model; its values are not needed.

    Args:
        model: The base model.
        file: What `read_adapter` returned, or gave to its ``check``.
        spec: What `match_spec` returned.

    Raises:
        AdapterFileError: A site is no layer of the kind and size that the file says, or a module trained in full has
            other tensors; all are listed.
    """
    named = dict(model.named_modules())
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] = places.get(id(module), 0) + 1
    problems: list[str] = []
    for site, pair in file.factors.items():
        base = named.get(site)
        kind = None if base is None else kind_of(base)
        if base is None or kind is None or file.kinds[site] != kind.KIND:
            what = "" if base is None else f" as {file.kinds[site]}: it is a {type(base).__name__}"
            problems.append(f"{site} has no place in the model{what}")
            continue
        if why := kind.why_not(base, pair[0].shape[0]):
            problems.append(f"{site} {why}")
        shapes = kind.factor_shapes(base, pair[0].shape[0])
        problems += _other_shapes({f"{site}.{f}": s for f, s in zip(_FACTORS, shapes, strict=True)}, site, pair)
        if places[id(base)] > 1:
            problems.append(f"{site} is a layer that stands in several places")
    for path in spec.modules_to_save:
        own = {f"{path}.{name}": value for name, value in named[path].state_dict().items()}
        given = {key: value for key, value in file.modules.items() if key.startswith(f"{path}.")}
        problems += _differences({key: tuple(value.shape) for key, value in own.items()}, given)
    _refuse_misfit(model, file, problems)


def _other_shapes(wanted: Mapping[str, tuple[int, ...]], site: str, pair: tuple[Tensor, Tensor]) -> list[str]:
    return _differences(wanted, {f"{site}.{f}": t for f, t in zip(_FACTORS, pair, strict=True)})


def _differences(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> list[str]:
    problems = [f"{key} is missing" for key in wanted if key not in given]
    problems += [f"{key} has no place in the model" for key in given if key not in wanted]
    problems += [
        f"{key} is {tuple(given[key].shape)}, the model needs {tuple(shape)}"
        for key, shape in wanted.items()
        if key in given and tuple(given[key].shape) != tuple(shape)
    ]
    return problems


def _refuse_misfit(model: nn.Module, file: AdapterFile, problems: Sequence[str]) -> None:
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AdapterFileError(f"{file.folder} does not fit this {type(model).__name__}: {shown}.")


def refuse_differing(model: nn.Module, file: AdapterFile) -> None:
    """Refuse an adapter whose sites, trained modules or shapes are not those of an attached model.

    Args:
        model: An attached model.
        file: What `read_adapter` returned, or gave to its ``check``.

    Raises:
        AdapterFileError: They differ; all differences are listed.
    """
    root, _ = attached(model)
    _refuse_misfit(root, file, _differences({k: tuple(v.shape) for k, v in _places(root).items()}, _given(file)))


def _places(root: nn.Module) -> dict[str, Tensor]:
    wanted = {f"{s.name}.{f}": getattr(s.layer, f) for s in sites(root) for f in _FACTORS}
    for path, module in saved_modules(root).items():
        wanted |= {f"{path}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}
    return wanted


def _given(file: AdapterFile) -> dict[str, Tensor]:
    factors = {f"{site}.{f}": t for site, pair in file.factors.items() for f, t in zip(_FACTORS, pair, strict=True)}
    return factors | file.modules


def fill(model: nn.Module, file: AdapterFile) -> None:
    """Copy the tensors of an adapter file into an attached model of the same sites, or change nothing.

    Args:
        model: An attached model.
        file: What `read_adapter` returned.

    Raises:
        AdapterFileError: The file and the model differ in their sites, trained modules, shapes or starts; all are
            listed.
    """
    root, _ = attached(model)
    refuse_differing(root, file)
    wanted, given = _places(root), _given(file)
    problems = _other_starts(root, file)
    first: dict[int, str] = {}
    for key, value in wanted.items():
        if (twin := first.setdefault(id(value), key)) != key and not torch.equal(given[twin], given[key]):
            problems.append(f"{twin} and {key} are one tensor in the model and two in the file")
    _refuse_misfit(root, file, problems)
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(given[key])


def _other_starts(root: nn.Module, file: AdapterFile) -> list[str]:
    problems: list[str] = []
    for site in sites(root):
        ours, theirs = site.layer.corrected, file.starts.get(site.name)
        pairs = zip(ours[:2], theirs, strict=True) if ours is not None and theirs is not None else ()
        if (ours is None) != (theirs is None) or not all(torch.equal(_on_cpu(a), b.to(a.dtype)) for a, b in pairs):
            problems.append(f"the base of {site.name} was corrected for another start than the file's")
    return problems


def match_spec(model: nn.Module, file: AdapterFile, allowed: Sequence[str] | None = None) -> AdapterSpec:
    """Return the spec of an adapter file with the trained modules that its tensors name and the model has.

    Args:
        model: The base model.
        file: What `read_adapter` returned.
        allowed: Endings of the module paths that the file may overwrite; None: those that it lists, by whole parts.

    Returns:
        The spec; PEFT lists heads that a model may lack, which are dropped.

    Raises:
        AdapterFileError: A tensor is neither a factor nor part of a module that the configuration lists.
    """
    # PEFT's own rule for these is a bare endswith ("r" is also "pooler"), so a file could reach any module: by whole
    # parts of the path, unless the caller names what the file may overwrite.
    matches = ends_with if allowed is None else str.endswith
    endings = file.modules_to_save if allowed is None else tuple(allowed)
    paths = [n for n, _ in model.named_modules() if any(matches(n, ending) for ending in endings)]
    heads = sorted({path for path in paths for key in file.modules if key.startswith(path + ".")})
    if stray := [key for key in file.modules if not any(key.startswith(head + ".") for head in heads)]:
        raise AdapterFileError(
            f"{file.folder}: {', '.join(stray[:5])} would overwrite the base model. Only factors, and the modules that"
            f" modules_to_save lists ({', '.join(endings) or 'none'}), may be in an adapter file. If you trust it, name"
            " them: load_adapter(..., modules_to_save=[...])."
        )
    return replace(file.spec, modules_to_save=tuple(heads))


class AdapterSaver:
    """Stands in for ``save_pretrained`` on an attached model: writes the adapter folder, as a `PeftModel` would.

    A whole-model save would hold keys like ``query.base_layer.weight``, from which ``from_pretrained`` re-initialises
    ``query.weight`` at random with no more than a warning. Kept on the instance, so copies and pickles keep it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **layout: Any,
    ) -> None:
        """Write the adapter folder; options on the layout of a whole model have no meaning for it.

        Args:
            save_directory: Where to write.
            is_main_process: Whether to write at all.
            state_dict: Not used: the adapter's tensors are taken from the model.
            push_to_hub: Must be false.
            **layout: What `transformers` passes for whole models (shard size and the like).

        Raises:
            WholeModelSaveError: ``push_to_hub`` is true.
        """
        if push_to_hub:
            raise WholeModelSaveError(
                "save_pretrained(push_to_hub=True) is not done for an adapter: call model.push_to_hub(repo_id)."
            )
        if is_main_process:
            save_adapter(self.model, save_directory)


class PartSaveRefusal:
    """Stands in for ``save_pretrained`` on a part of an attached model, whose folder would load at random."""

    def __init__(self, part: str, whole: str) -> None:
        self.part, self.whole = part, whole

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Refuse.

        Raises:
            WholeModelSaveError: Always.
        """
        raise WholeModelSaveError(
            f"{self.part!r} is a part of an attached {self.whole}: saved alone it would load with random weights where"
            " the adapters sit. Save the adapter with asymlora.save_adapter(model, folder), or call"
            " asymlora.merge(model) first and save the plain model."
        )


def _card(spec: AdapterSpec, base_model: str | None) -> str:
    state = {True: "trained", False: "frozen"}
    on_hub = base_model and ":" not in base_model and not Path(base_model).exists()
    base = f"base_model: {base_model}\n" if on_hub else ""
    return (
        f"---\nlibrary_name: peft\n{base}tags:\n- lora\n- asymlora\n---\n\n"
        f"Low-rank adapter, rank {spec.rank}, scale {spec.scaling_factor:g}: A started as {spec.A.init} and"
        f" {state[spec.A.trainable]}, B started as {spec.B.init} and {state[spec.B.trainable]}.\n\n"
        "Load it with `PeftModel.from_pretrained(base, folder)` or `asymlora.load_adapter(base, folder)`.\n"
    )
