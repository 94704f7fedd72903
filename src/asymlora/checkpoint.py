"""Save the adapter of an attached model, and stand in for the ways that would save it as a whole model.

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

from torch import Tensor, nn

from asymlora.adapter_file import AdapterFile, draws_of, write_adapter
from asymlora.adapter_reading import read_adapter
from asymlora.errors import WholeModelSaveError
from asymlora.fitting import fill
from asymlora.peft_format import CONFIG_FILE, WEIGHTS_FILE, most_common, written_config
from asymlora.peft_patterns import exact_pattern
from asymlora.sharding import by_first_process, is_sharded, reshard, whole
from asymlora.site_view import Attachment, attached, saved_modules, sites
from asymlora.spec import AdapterSpec
from asymlora.targets import shared_groups
from asymlora.untrusted_files import DTYPES, refuse

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterSaver",
    "PartSaveRefusal",
    "adapter_tensors",
    "describe_adapter",
    "fill",
    "read_adapter",
    "save_adapter",
]
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what an adapter file holds, by PEFT's keys: both factors of every site and the modules trained in full.

    Args:
        model: An attached model.

    Returns:
        Detached tensors on CPU, in the dtype they have in the model.
    """
    return describe_adapter(model).peft_tensors()


def describe_adapter(model: nn.Module) -> AdapterFile:
    """Return the adapter of a model as a file would hold it.

    Args:
        model: An attached model, on the meta device too.

    Returns:
        Its content, detached; on CPU, or on the meta device if the model has no values.
    """
    root, record = attached(model)
    return _file_of(root, record, base_model=None, task_type=None)


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
    compress: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the adapter of a model as a folder that PEFT loads, or as a smaller one that only asymlora loads.

    A new folder appears whole or not at all. In an existing one the files are replaced one by one, the one without
    which nothing loads at the end, so that an interrupted write leaves no folder that loads half.

    Of a model divided over processes by `fully_shard` all processes must call this; the first one writes.

    Args:
        model: An attached model.
        folder: Where to write.
        base_model: Name of the base for the configuration; default: the name that the model's own config holds.
        task_type: PEFT's task type, for instance ``SEQ_CLS``, which picks the class of ``AutoPeftModel``.
        compress: Leave out every frozen factor that is still what was drawn at its address (seed, site), and write the
            address and a digest instead. `asymlora.convert_adapter` turns the folder into PEFT's form.
        state: The whole model's state dict, where one process has gathered it and saves alone; None: the values are
            taken from the model.

    Returns:
        The folder.

    Raises:
        WholeModelSaveError: ``model`` holds the attached model as a part; names in the file would not be its own.
        AdapterFileError: A factor is no float of 16 or 32 bits.
    """
    root, record = attached(model)
    _refuse_parent(model, root)
    reshard(model)
    together = is_sharded(model) and state is None
    folder = Path(folder)
    if base_model is None:
        base_model = getattr(getattr(root, "config", None), "name_or_path", None) or None
    file = _file_of(root, record, base_model=base_model, task_type=task_type, state=state)
    wrong = [f"{key} is {value.dtype}" for key, value in file.parts().items() if not _storable(key, value)]
    refuse(folder, wrong, "Adapter files hold floats of 16 and 32 bits: call model.float() before saving.")
    card = _card(file.spec, base_model).encode()
    form = "seed" if compress else "peft"
    if together:
        by_first_process(lambda: write_adapter(file, folder, form=form, card=card))
    else:
        write_adapter(file, folder, form=form, card=card)
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


def _file_of(
    root: nn.Module,
    record: Attachment,
    *,
    base_model: str | None,
    task_type: str | None,
    state: Mapping[str, Tensor] | None = None,
) -> AdapterFile:
    """Return the adapter of a model as it is now, its tensors whole, detached, on CPU."""

    def taken(key: str, value: Tensor) -> Tensor:
        return _on_cpu(value if state is None else state[key])

    spec = _spec_now(root, record.spec)
    modules = {
        f"{path}.{name}": taken(f"{path}.{name}", value)
        for path, module in saved_modules(root).items()
        for name, value in module.state_dict().items()
    }
    found = list(sites(root))
    file = AdapterFile(
        folder=Path(),
        spec=spec,
        factors={s.name: (taken(f"{s.name}.lora_A", s.A), taken(f"{s.name}.lora_B", s.B)) for s in found},
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
    # Of a model without values the shapes are enough.
    return value.detach() if value.is_meta else whole(value).cpu().contiguous()


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
            state_dict: Whole values of a model divided over processes, which one process cannot gather alone; else the
                adapter's tensors are taken from the model.
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
            save_adapter(self.model, save_directory, state=state_dict if is_sharded(self.model) else None)


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
        f"Low-rank adapter, rank {spec.rank}, scale {spec.scaling_factor:g}: A started as {spec.A.init_name} and"
        f" {state[spec.A.trainable]}, B started as {spec.B.init_name} and {state[spec.B.trainable]}.\n\n"
        "Load it with `asymlora.load_adapter(base, folder)`; where the folder has an `adapter_config.json`, also with"
        " `PeftModel.from_pretrained(base, folder)`. `asymlora convert` turns each form into the other.\n"
    )
