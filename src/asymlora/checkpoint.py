"""Adapter folders in PEFT's format: write them from an attached model, read them into one.

What PEFT's format cannot say (which factor is frozen, how each started) stands beside it in ``asymlora.json``; the
folder is complete for PEFT without that file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asymlora import __version__
from asymlora.atomic import staged_folder
from asymlora.errors import AdapterFileError, SpecError, UnknownKeyError, WholeModelSaveError
from asymlora.site_view import Attachment, attached, saved_modules, sites
from asymlora.spec import AdapterSpec
from asymlora.targets import ends_with

CONFIG_FILE, WEIGHTS_FILE, OWN_FILE, CARD_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "asymlora.json",
    "README.md",
)
_PREFIX = "base_model.model."
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_FACTORS = ("lora_A", "lora_B")
_FORMAT = 1
_PEFT_VERSION = "0.21.2"  # whose format this is
_PEFT_EMPTY = (
    *("alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "exclude_modules"),
    *("kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "lora_ga_config"),
    *("megatron_config", "monteclora_config", "revision", "target_parameters", "trainable_token_indices"),
    *("use_bdlora", "velora_config"),
)
_PEFT_OFF = ("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora")
# What PEFT may say of the start without changing what a trained file means; others alter the base weights on load.
_HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what an adapter file holds, by PEFT's keys: both factors of every site and the modules trained in full.

    Args:
        model: An attached model.

    Returns:
        Detached tensors on CPU, in the dtype they have in the model.
    """
    tensors = {f"{_PREFIX}{s.name}.{f}.weight": getattr(s.layer, f) for s in sites(model) for f in _FACTORS}
    for path, module in saved_modules(model).items():
        tensors |= {f"{_PREFIX}{path}.{name}": value for name, value in module.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
) -> Path:
    """Write the adapter of a model as a folder that PEFT loads.

    A new folder appears whole or not at all. In an existing one the files are replaced one by one, the configuration
    last, so that an interrupted write leaves no folder that loads.

    Args:
        model: An attached model, or a wrapper around it.
        folder: Where to write.
        base_model: Name of the base for the configuration; default: the name that the model's own config holds.
        task_type: PEFT's task type, for instance ``SEQ_CLS``, which picks the class of ``AutoPeftModel``.

    Returns:
        The folder.

    Raises:
        WholeModelSaveError: ``model`` holds the attached model as a part; names in the file would not be its own.
    """
    root, record = attached(model)
    _refuse_parent(model, root)
    folder = Path(folder)
    if base_model is None:
        base_model = getattr(getattr(root, "config", None), "name_or_path", None) or None
    with staged_folder(folder, last=CONFIG_FILE) as staging:
        save_file(adapter_tensors(root), staging / WEIGHTS_FILE, metadata={"format": "pt"})
        own = {"asymlora_version": __version__, "format": _FORMAT, "spec": record.spec.to_dict()}
        _write_json(staging / OWN_FILE, own)
        (staging / CARD_FILE).write_text(_card(record.spec, base_model), encoding="utf-8")
        _write_json(staging / CONFIG_FILE, peft_config(root, record, base_model=base_model, task_type=task_type))
    return folder


def _refuse_parent(model: nn.Module, root: nn.Module) -> None:
    path = next(name for name, module in model.named_modules() if module is root)
    if path and not set(path.split(".")) <= _WRAPPERS:
        raise WholeModelSaveError(
            f"The adapter is attached to the part {path!r} of this {type(model).__name__}, and would load on that part"
            " only. Save it from there, or attach to the whole model."
        )


def peft_config(
    model: nn.Module, record: Attachment, *, base_model: str | None, task_type: str | None
) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``: every key that PEFT writes for a plain LoRA adapter.

    ``init_lora_weights`` is always true: PEFT runs the named start again when it loads, and some change the base.

    Args:
        model: The attached module.
        record: Its attachment.
        base_model: Name of the base, or None.
        task_type: PEFT's task type, or None.

    Returns:
        Plain values, by PEFT's names.
    """
    spec = record.spec
    return {
        **dict.fromkeys(_PEFT_EMPTY),
        **dict.fromkeys(_PEFT_OFF, False),
        "alpha_pattern": {},
        "rank_pattern": {},
        "loftq_config": {},
        "base_model_name_or_path": base_model,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": spec.effective_alpha,
        "lora_dropout": spec.dropout,
        "megatron_core": "megatron.core",
        "modules_to_save": list(record.saved_modules) or None,
        "peft_type": "LORA",
        "peft_version": _PEFT_VERSION,
        "qalora_group_size": 16,
        "r": spec.rank,
        "target_modules": _peft_targets(model, record.sites),
        "task_type": task_type,
        "use_rslora": spec.scaling == "rank_stabilized",
    }


def _peft_targets(model: nn.Module, adapted: Sequence[str]) -> list[str]:
    # Short endings if they pick exactly the adapted layers by PEFT's rule, else full paths.
    endings = sorted({name.rpartition(".")[2] for name in adapted})
    inside = tuple(f"{name}." for name in adapted)
    others = [n for n, _ in model.named_modules() if n and n not in adapted and not n.startswith(inside)]
    exact = not any(ends_with(name, ending) for name in others for ending in endings)
    return endings if exact else sorted(adapted)


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """What an adapter folder holds, checked in itself but not yet against a model.

    Attributes:
        folder: Where it was read.
        spec: The adapter. Of a folder that PEFT wrote: both factors trained.
        factors: ``A`` and ``B`` by module path.
        modules: Tensors of the modules trained in full, by path and name.
        modules_to_save: Endings of module paths that ``modules`` may belong to.
    """

    folder: Path
    spec: AdapterSpec
    factors: dict[str, tuple[Tensor, Tensor]]
    modules: dict[str, Tensor]
    modules_to_save: tuple[str, ...]
    starts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read an adapter folder written by `save_adapter` or by PEFT.

    Args:
        folder: The folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        Its content.

    Raises:
        AdapterFileError: A file is missing or damaged, the configuration is not plain LoRA, a factor lacks its other,
            has another rank than the configuration says, or holds NaN or infinity. All such problems are listed.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG_FILE)
    own = _read_json(folder / OWN_FILE) if (folder / OWN_FILE).exists() else {}
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        reason = _missing_or(folder / WEIGHTS_FILE, error)
        raise AdapterFileError(f"{folder / WEIGHTS_FILE}: {reason} Only safetensors files are read.") from None
    spec = _read_spec(folder, config, own)
    factors, modules, problems = _sort_tensors(tensors)
    for name, (A, B) in factors.items():
        if A.shape[0] != spec.rank or B.shape[1] != spec.rank:
            problems.append(f"{name}: A is {tuple(A.shape)} and B {tuple(B.shape)}, but the rank is {spec.rank}")
    problems += [
        f"{k}: is {t.dtype}, not a float of 16 or 32 bits" for k, t in tensors.items() if t.dtype not in _DTYPES
    ]
    problems += [f"{key}: holds NaN or infinity" for key, t in tensors.items() if not torch.isfinite(t).all()]
    if not factors:
        problems.append("no tensor is a LoRA factor")
    if problems:
        raise AdapterFileError(f"{folder} cannot be used: {'; '.join(problems)}. Save the adapter again.")
    heads = config.get("modules_to_save") or []
    if not isinstance(heads, list) or not all(isinstance(head, str) and head for head in heads):
        raise AdapterFileError(f"{folder / CONFIG_FILE}: modules_to_save is {heads!r}; a list of names is needed.")
    return AdapterFile(folder=folder, spec=spec, factors=factors, modules=modules, modules_to_save=tuple(heads))


def _read_spec(folder: Path, config: Mapping[str, Any], own: Mapping[str, Any]) -> AdapterSpec:
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise AdapterFileError(f"{folder / CONFIG_FILE}: peft_type is {kind!r}; only 'LORA' is read.")
    start = config.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        raise AdapterFileError(
            f"{folder / CONFIG_FILE}: init_lora_weights={start!r} changes the base weights when PEFT loads it. Convert"
            " it with PEFT (save_pretrained with path_initial_model_for_weight_conversion) first."
        )
    try:
        # Sites come from the tensors, so a pattern of targets is neither needed nor run.
        targets = config.get("target_modules")
        plain = {**config, "init_lora_weights": True}
        plain["target_modules"] = targets if isinstance(targets, list) and targets else ["all-linear"]
        spec = AdapterSpec.from_peft(plain)
        if not own:
            return spec
        if own.get("format") != _FORMAT or not isinstance(own.get("spec"), dict):
            raise AdapterFileError(
                f"{folder / OWN_FILE} is of format {own.get('format')!r}; this version reads {_FORMAT}. Update"
                " asymlora, or delete the file: the folder is complete without it."
            )
        stated = AdapterSpec.from_dict(own["spec"])
    except (SpecError, UnknownKeyError) as error:
        raise AdapterFileError(f"{folder}: {error}") from None
    if (stated.rank, stated.scaling_factor) != (spec.rank, spec.scaling_factor):
        raise AdapterFileError(
            f"{folder}: {OWN_FILE} says rank {stated.rank} and scale {stated.scaling_factor:g}, {CONFIG_FILE} says rank"
            f" {spec.rank} and scale {spec.scaling_factor:g}. Delete {OWN_FILE} if PEFT's file is the right one."
        )
    return stated


def _sort_tensors(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor], list[str]]:
    halves: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, tensor in tensors.items():
        path = key.removeprefix(_PREFIX)
        site, _, rest = path.rpartition(".lora_")
        if path == key:
            problems.append(f"{key}: does not start with {_PREFIX!r}")
        elif site and rest in ("A.weight", "B.weight") and tensor.dim() == 2:
            halves.setdefault(site, {})[rest[0]] = tensor
        elif "lora_" in path or ".base_layer." in path:
            problems.append(f"{key}: not a factor of a linear layer")
        else:
            modules[path] = tensor
    problems += [f"{site}: only lora_{next(iter(half))} is there" for site, half in halves.items() if len(half) == 1]
    factors = {site: (half["A"], half["B"]) for site, half in halves.items() if len(half) == 2}
    return factors, modules, problems


def fill(model: nn.Module, file: AdapterFile) -> None:
    """Copy the tensors of an adapter file into an attached model of the same sites, or change nothing.

    Args:
        model: An attached model.
        file: What `read_adapter` returned.

    Raises:
        AdapterFileError: The file and the model differ in their sites, trained modules or shapes; all are listed.
    """
    root, _ = attached(model)
    wanted = {f"{s.name}.{f}": getattr(s.layer, f) for s in sites(root) for f in _FACTORS}
    for path, module in saved_modules(root).items():
        wanted |= {f"{path}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}
    given = {f"{site}.{f}": t for site, pair in file.factors.items() for f, t in zip(_FACTORS, pair, strict=True)}
    given |= file.modules
    problems = [f"{key} is missing" for key in wanted if key not in given]
    problems += [f"{key} has no place in the model" for key in given if key not in wanted]
    problems += [
        f"{key} is {tuple(given[key].shape)}, the model needs {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AdapterFileError(f"{file.folder} does not fit this {type(root).__name__}: {shown}.")
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(given[key])


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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path}: {_missing_or(path, error)}") from None
    if not isinstance(content, dict):
        raise AdapterFileError(f"{path}: holds a {type(content).__name__}; an object is needed.")
    return content


def _missing_or(path: Path, error: Exception) -> str:
    return f"cannot be read ({error})." if path.exists() else "is not there. An adapter folder holds it."
