"""Methods of PEFT as they are, to compare with: LoRA, LoRA-FA, AdaLoRA and (IA)^3, trained and saved by its own code.

PEFT is imported when one of them is used.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asymlora.atomic import staged_folder
from asymlora.errors import AsymloraError, AttachError, MissingPackageError
from asymlora.factor_spec import PRESETS
from asymlora.kinds import kind_of
from asymlora.layers import LinearAdapter
from asymlora.optim import param_groups
from asymlora.peft_format import ALL_LINEAR, CONFIG_FILE, WEIGHTS_FILE
from asymlora.peft_patterns import exact_pattern
from asymlora.targets import match_saved_modules, match_targets
from asymlora.train.method import Method, refuse_unread
from asymlora.train.recipe import Recipe, TrainRecipe
from asymlora.train.trained_file import differences, header_of
from asymlora.untrusted_files import refuse

Kind = Literal["lora", "lora_fa", "adalora", "ia3"]
ALLOCATOR_FILE = "rank_allocator.safetensors"
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_COMMON = ("targets", "modules_to_save", "seed")
_LORA = ("rank", "alpha", "scaling", "dropout", "rank_pattern", "alpha_pattern", *_COMMON)
_READS: dict[Kind, tuple[str, ...]] = {
    "lora": _LORA,
    "lora_fa": _LORA,
    "adalora": ("rank", "alpha", "dropout", *_COMMON),
    "ia3": _COMMON,
}
_OPTIMIZER = ("optimizer", "optimizer_options")
_RATES: dict[Kind, tuple[str, ...]] = {
    "lora": ("lr_A", "lr_B", "lr_head", *_OPTIMIZER),
    "lora_fa": (),
    "adalora": ("lr_head", *_OPTIMIZER),
    "ia3": ("lr_head", *_OPTIMIZER),
}


@dataclass(frozen=True, kw_only=True)
class PeftMethod(Method):
    """A method of PEFT.

    The start of the factors is PEFT's, drawn by ``adapter.seed``. What AdaLoRA and (IA)^3 need beyond a recipe's
    fields: AdaLoRA begins with 1.5 times the rank (the ratio of its paper) and takes ranks away from a tenth of the
    steps on until 7 tenths (ours); (IA)^3 goes to the layers that PEFT lists for the architecture, else to all linear
    layers, as on feed-forward layers on those that are wider on the input's side.

    Attributes:
        name: In a recipe.
        label: In tables.
        kind: Which one.
    """

    name: str
    label: str
    kind: Kind
    files: tuple[str, ...] = (CONFIG_FILE, WEIGHTS_FILE)

    def refuse_unused(self, recipe: Recipe) -> None:
        """Refuse fields of adapter and training that PEFT's method has no place for, and a missing PEFT.

        Args:
            recipe: The recipe.

        Raises:
            MissingPackageError: PEFT is not installed.
        """
        if importlib.util.find_spec("peft") is None:
            raise MissingPackageError(f"method={self.name!r} needs PEFT. Install it with: pip install peft")
        lora = (PRESETS["lora"]["A"], PRESETS["lora"]["B"])
        refuse_unread(
            recipe,
            adapter=_READS[self.kind],
            train=_RATES[self.kind],
            factors=() if self.kind == "ia3" else (lora,),
        )

    def notes(self, recipe: Recipe) -> tuple[str, ...]:
        """Tell which fields of the adapter count, as its default is one of ours."""
        read = ", ".join(f"adapter.{name}" for name in _READS[self.kind])
        return (f"{self.label}: of the adapter {read} are used; the start of the factors is PEFT's.",)

    def put_on(self, model: nn.Module, recipe: Recipe, heads: tuple[str, ...]) -> nn.Module:
        """Let PEFT wrap the model, with heads as modules to save.

        Args:
            model: The pretrained model; its layers are replaced in place.
            recipe: The recipe.
            heads: Paths of its heads.

        Returns:
            A `PeftModel`.

        Raises:
            AttachError: PEFT refuses the model, with PEFT's words.
            AsymloraError: A target matches nothing, as `asymlora.attach` says.
        """
        import peft

        saved = match_saved_modules(model, tuple(dict.fromkeys((*recipe.adapter.modules_to_save, *heads))))
        try:
            config = self._config(model, recipe, saved)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.adapter.seed)
                network = peft.get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        except AsymloraError:
            raise
        except ValueError as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise AttachError(f"PEFT refuses {self.label} on this {type(model).__name__}: {said}.") from error
        if self.kind == "lora_fa":  # its optimizer does it too late for a count of what is trained
            for path, parameter in network.named_parameters():
                if ".lora_A." in path or ".lora_embedding_A." in path:
                    parameter.requires_grad_(False)
        return network

    def _config(self, model: nn.Module, recipe: Recipe, saved: tuple[str, ...]) -> Any:
        import peft

        spec = recipe.adapter
        chosen = match_targets(model, spec, saved)
        common: dict[str, Any] = {
            "target_modules": _exact_targets(model, chosen),
            "modules_to_save": list(saved) or None,
            "fan_in_fan_out": any(type(layer).__name__ == "Conv1D" for layer in chosen.values()),
        }
        if self.kind == "ia3":
            targets, inner = _ia3_targets(model, chosen, known=spec.targets == ALL_LINEAR)
            return peft.IA3Config(**{**common, "target_modules": targets, "feedforward_modules": inner})
        common |= {"lora_dropout": spec.dropout, "lora_alpha": spec.effective_alpha}
        if self.kind == "adalora":
            return peft.AdaLoraConfig(**common, target_r=spec.rank, **_budget(spec.rank, recipe.train.steps))
        stated = {name: spec.at(name) for name in chosen}
        return peft.LoraConfig(
            **common,
            r=spec.rank,
            use_rslora=spec.scaling == "rank_stabilized",
            rank_pattern=exact_pattern({name: site.rank for name, site in stated.items()}, spec.rank),
            alpha_pattern=exact_pattern({name: site.alpha for name, site in stated.items()}, spec.effective_alpha),
        )

    def groups(self, network: nn.Module, train: TrainRecipe) -> list[dict[str, Any]]:
        """Return factors, heads and norms by name; factors of (IA)^3 and AdaLoRA's singular values get no decay."""
        if self.kind in ("lora", "lora_fa"):
            rates = {"lr_A": train.lr_A, "lr_B": train.lr_B, "lr_head": train.lr_head}
            return param_groups(network, lr=train.lr, weight_decay=train.weight_decay, **rates)
        sorted_by: dict[str, list[nn.Parameter]] = {name: [] for name in ("A", "B", "E", "vector", "head", "norm")}
        for path, parameter in network.named_parameters():
            if parameter.requires_grad:
                sorted_by[_group_of(path, parameter)].append(parameter)
        head = train.lr if train.lr_head is None else train.lr_head
        return [
            {
                "name": name,
                "params": found,
                "lr": head if name in ("head", "norm") else train.lr,
                "weight_decay": train.weight_decay if name in ("A", "B", "head") else 0.0,
            }
            for name, found in sorted_by.items()
            if found
        ]

    def optimizer(self, network: nn.Module, train: TrainRecipe) -> torch.optim.Optimizer | None:
        """Return PEFT's optimizer of LoRA-FA; the others take any."""
        if self.kind != "lora_fa":
            return None
        from peft.optimizers import create_lorafa_optimizer

        config: Any = _tuned(network).peft_config["default"]
        made = create_lorafa_optimizer(
            network,  # pyright: ignore[reportArgumentType]
            r=config.r,
            lora_alpha=config.lora_alpha,
            lr=train.lr,
            weight_decay=train.weight_decay,
        )
        made.param_groups[0]["name"] = "lora_fa"
        return made

    def penalty(self, network: nn.Module) -> Tensor | None:
        """Return what AdaLoRA adds to a loss: how far its factors are from orthogonal.

        A plain `PeftModel` does not add it to the model's own loss (read and measured in 0.21.2).

        Args:
            network: What `put_on` gave.

        Returns:
            A scalar for AdaLoRA, None for the others.
        """
        if self.kind != "adalora":
            return None
        tuned = _tuned(network)
        distances: list[Tensor] = []
        for path, factor in tuned.named_parameters():
            if ".lora_A." in path or ".lora_B." in path:
                gram = factor @ factor.T if ".lora_A." in path else factor.T @ factor
                distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
        return tuned.peft_config["default"].orth_reg_weight * torch.stack(distances).mean()

    def after_step(self, network: nn.Module, step: int) -> None:
        """Let AdaLoRA move its budget."""
        if self.kind == "adalora":
            _tuned(network).base_model.update_and_allocate(step)

    def save(
        self,
        network: nn.Module,
        folder: Path,
        *,
        base_model: str | None = None,
        task_type: str | None = None,
        **_: Any,
    ) -> None:
        """Write PEFT's own folder; of AdaLoRA at its full width, and what its allocator has counted beside it."""
        tuned = _tuned(network)
        config = tuned.peft_config["default"]
        told = {"base_model_name_or_path": base_model or config.base_model_name_or_path, "task_type": task_type}
        if self.kind == "adalora":
            # With it PEFT writes narrower factors than it trains, which no longer fit the network and its optimizer.
            told["rank_pattern"] = None
        with staged_folder(folder, last=WEIGHTS_FILE) as staging, _changed(config, told):
            # Not "auto", which asks the hub for the base's vocabulary.
            tuned.save_pretrained(str(staging), save_embedding_layers=False)
            (staging / "README.md").unlink(missing_ok=True)
        if self.kind == "adalora":
            _save_allocator(tuned, folder / ALLOCATOR_FILE)

    def check(self, folder: Path) -> None:
        """Read configuration and the header of the tensor file."""
        problems: list[str] = []
        try:
            content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            wanted = "LORA" if self.kind == "lora_fa" else self.kind.upper()
            if content.get("peft_type") != wanted:
                problems = [f"its peft_type is {content.get('peft_type')!r}, and {wanted!r} is needed"]
        except (OSError, ValueError, AttributeError) as error:
            problems = [f"{CONFIG_FILE} is missing or no JSON object ({type(error).__name__})"]
        refuse(folder, problems, "Give the recipe that the folder was written with.")
        header_of(folder / WEIGHTS_FILE)

    def fill(self, network: nn.Module, folder: Path) -> None:
        """Load PEFT's folder into the adapter that the network carries."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        self.check(folder)
        tuned = _tuned(network)
        with _changed(tuned.peft_config["default"], {"rank_pattern": None} if self.kind == "adalora" else {}):
            own = get_peft_model_state_dict(tuned, save_embedding_layers=False)
            wanted = {key: tuple(value.shape) for key, value in own.items()}
            problems = differences(header_of(folder / WEIGHTS_FILE), wanted)
            refuse(folder, problems, "Give the recipe that the folder was written with.")
            set_peft_model_state_dict(tuned, load_file(folder / WEIGHTS_FILE))
        if self.kind == "adalora":
            _fill_allocator(tuned, folder / ALLOCATOR_FILE)

    def keep(self, network: nn.Module) -> Callable[[], None]:
        """Copy the trained values, and of AdaLoRA what its allocator has counted."""
        put_values_back = super().keep(network)
        if self.kind != "adalora":
            return put_values_back
        tuned = _tuned(network)
        allocator, config = tuned.base_model.rankallocator, tuned.peft_config["default"]
        counted, pattern = {kind: dict(getattr(allocator, kind)) for kind in _IMPORTANCE}, config.rank_pattern

        def put_back() -> None:
            put_values_back()
            for kind, values in counted.items():
                setattr(allocator, kind, dict(values))
            config.rank_pattern = pattern

        return put_back

    def merge(self, network: nn.Module) -> None:
        """Let PEFT fold the adapter into the layers it replaced."""
        network.merge_and_unload()  # pyright: ignore[reportCallIssue]


def _tuned(network: nn.Module) -> Any:
    """Return the `PeftModel`, looking through wrappers."""
    import peft

    return next(module for module in network.modules() if isinstance(module, peft.PeftModel))


def _exact_targets(model: nn.Module, chosen: Mapping[str, nn.Module]) -> list[str] | str:
    # PEFT reads a list as endings: full paths, but for a path that another one ends in, which takes one expression.
    inside = tuple(f"{path}." for path in chosen)
    others = [path for path, _ in model.named_modules() if path not in chosen and not path.startswith(inside)]
    if any(other.endswith(f".{path}") for path in chosen for other in others):
        return "|".join(re.escape(path) for path in chosen)
    return list(chosen)


def _ia3_targets(
    model: nn.Module, chosen: Mapping[str, nn.Module], *, known: bool
) -> tuple[list[str] | str | None, list[str] | None]:
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as LISTED

    if known and getattr(getattr(model, "config", None), "model_type", None) in LISTED:
        return None, None
    linear = {path: layer for path, layer in chosen.items() if kind_of(layer) is LinearAdapter}
    widths = {path: LinearAdapter.matrix_shapes(layer, 1) for path, layer in linear.items()}
    return list(chosen), [path for path, ((_, n), (m, _)) in widths.items() if n > m]


def _budget(rank: int, steps: int) -> dict[str, Any]:
    # PEFT takes ranks away by what it has counted in a step before, so one has to come before the last budget.
    total = max(2, steps)
    final = min(max(1, steps * 3 // 10), total - 2)
    return {"init_r": max(rank + 1, round(1.5 * rank)), "tinit": steps // 10, "tfinal": final, "total_step": total}


def _group_of(path: str, parameter: nn.Parameter) -> str:
    for name in ("A", "B", "E"):
        if f".lora_{name}." in path:
            return name
    if ".ia3_l." in path:
        return "vector"
    return "norm" if parameter.dim() < 2 else "head"


@contextmanager
def _changed(config: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


# AdaLoRA's allocator, without whose counts a resumed run would take other ranks away ---------------------------------


def _save_allocator(tuned: Any, file: Path) -> None:
    allocator, pattern = tuned.base_model.rankallocator, tuned.peft_config["default"].rank_pattern
    tensors = {f"{kind}/{path}": t.contiguous() for kind in _IMPORTANCE for path, t in getattr(allocator, kind).items()}
    staging = file.with_name(f".incomplete-{file.name}")
    save_file(tensors, staging, metadata={"rank_pattern": json.dumps(pattern)})
    staging.replace(file)


def _fill_allocator(tuned: Any, file: Path) -> None:
    from safetensors import safe_open

    header_of(file)
    allocator, own = tuned.base_model.rankallocator, dict(tuned.base_model.model.named_parameters())
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in _IMPORTANCE}
    with safe_open(file, framework="pt") as opened:
        pattern = json.loads((opened.metadata() or {}).get("rank_pattern", "null"))
        for key in opened.keys():  # noqa: SIM118
            kind, _, path = key.partition("/")
            found[kind][path] = opened.get_tensor(key).to(own[path].device)
    for kind, values in found.items():
        setattr(allocator, kind, values)
    tuned.peft_config["default"].rank_pattern = pattern


PEFT_METHODS: dict[str, Method] = {
    "peft:lora": PeftMethod(name="peft:lora", label="LoRA by PEFT", kind="lora"),
    "peft:lora_fa": PeftMethod(name="peft:lora_fa", label="LoRA-FA by PEFT", kind="lora_fa"),
    "peft:adalora": PeftMethod(name="peft:adalora", label="AdaLoRA by PEFT", kind="adalora"),
    "peft:ia3": PeftMethod(name="peft:ia3", label="(IA)^3 by PEFT", kind="ia3"),
}
"""By name in a recipe."""
