"""All of one run as frozen dataclasses, as YAML, and as the command line's options. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from asymlora.errors import DataNotFoundError, MissingPackageError, SpecError, UnknownNameError, nearest
from asymlora.factor_spec import factors_named
from asymlora.schema import answers_wrong_names, from_mapping, refuse_values, to_mapping
from asymlora.spec import AdapterSpec
from asymlora.tasks.inputs import DataRecipe, ModelRecipe, task_row

METHODS = ("adapter", "full", "head", "peft:lora", "peft:lora_fa", "peft:adalora", "peft:ia3")


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How the adapter is trained.

    Attributes:
        steps: Optimizer steps, at least 1.
        batch_size: Rows per forward pass over all processes, at least 1.
        gradient_accumulation: Forward passes per optimizer step, at least 1.
        lr: Learning rate per step. Default: ours, for ``B``-only over an orthonormal ``A`` (docs/first-run.md).
        lr_A: Absolute rate of ``A``; None: ``lr`` times the factor's ``lr_ratio``.
        lr_B: Absolute rate of ``B``; None: ``lr`` times the factor's ``lr_ratio``.
        lr_head: Rate of the head; None: ``lr``.
        weight_decay: Decay of factors and matrices; vectors get none.
        optimizer: A class of ``torch.optim`` by name, in any case.
        optimizer_options: Its options besides rate and decay, by name.
        gradient_correction: Give ``B`` over a frozen ``A`` the gradient by which the update follows that of the whole
            weight (LoRA-FA).
        schedule: Course of the rate after the warm-up.
        warmup_fraction: Share of the steps over which the rate rises from 0, in [0, 1).
        max_grad_norm: Gradients are scaled down to this norm; 0 is no limit.
        precision: ``bfloat16``: products in bfloat16 by autocast, weights in float32.
        gradient_checkpointing: Keep each block's input only, and run the block again for the backward pass.
        sharding: ``fsdp``: parameters, gradients and optimizer state are divided over the accelerators.
        head_start: Start of the head: ``probe``: fitted on the frozen model's features; ``random``.
        evaluate_every: Steps between two scores on the validation part, each with a checkpoint.
        patience: Stop after this many scores in a row without a better one; None: go on to the last step.
        keep_checkpoints: Checkpoints kept while the run goes on, besides the best; at least 1.
        dynamics_every: Steps between two measurements of what ``A`` and ``B`` do, besides the first three; more where
            that would give over 20,000 rows in a run. 0: none, and no verdicts on them.
        report_to: Trackers that transformers knows: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio`` and others.
        memory_check: Refuse to start where a step needs more memory than is free.
        seed: Seed of the head, the order of the rows and the dropout.
    """

    steps: int = 250
    batch_size: int = 32
    gradient_accumulation: int = 1
    lr: float = 2e-3
    lr_A: float | None = None
    lr_B: float | None = None
    lr_head: float | None = None
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    gradient_correction: bool = False
    schedule: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt"] = "linear"
    warmup_fraction: float = 0.06
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    head_start: Literal["probe", "random"] = "probe"
    evaluate_every: int = 50
    patience: int | None = None
    keep_checkpoints: int = 1
    dynamics_every: int = 20
    report_to: tuple[str, ...] = ()
    memory_check: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SpecError: A number is out of range.
        """
        problems: list[str] = []
        for name in ("steps", "batch_size", "gradient_accumulation", "evaluate_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                problems.append(f"train.{name}={getattr(self, name)} must be at least 1")
        if self.patience is not None and self.patience < 1:
            problems.append(f"train.patience={self.patience} must be at least 1")
        for name in ("lr", "lr_A", "lr_B", "lr_head"):
            rate = getattr(self, name)
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                problems.append(f"train.{name}={rate} must be a number above 0")
        for name in ("weight_decay", "max_grad_norm", "dynamics_every"):
            if not getattr(self, name) >= 0:
                problems.append(f"train.{name}={getattr(self, name)} must be at least 0")
        if not 0 <= self.seed < 2**32:  # NumPy's range
            problems.append(f"train.seed={self.seed} must lie between 0 and 2**32 - 1")
        if not 0 <= self.warmup_fraction < 1:
            problems.append(f"train.warmup_fraction={self.warmup_fraction} must lie in [0, 1)")
        refuse_values(problems)


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All of one run. The default is the embedded first run.

    Attributes:
        task: ``text_classification``, ``text_regression``, ``language_modeling``, ``instruction_tuning``, ``seq2seq``
            or ``image_classification``. Each has defaults of its own for model and data (`from_dict`).
        method: What is trained: ``adapter``: ours; ``full``: every weight; ``head``: the head alone; or a method of
            PEFT's, to compare with: ``peft:lora``, ``peft:lora_fa``, ``peft:adalora``, ``peft:ia3``.
        model: The pretrained model.
        data: The rows.
        adapter: The adapter. In YAML also a preset's name (``b_only``) or a shorthand (``hB_zero_A_rand``), or a
            mapping with the key ``preset``.
        train: How it is trained.
    """

    task: str = "text_classification"
    method: str = "adapter"
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    train: TrainRecipe = field(default_factory=TrainRecipe)

    def __post_init__(self) -> None:
        """Check what concerns several parts.

        Raises:
            UnknownNameError: There is no such task or method.
        """
        task_row(self.task)
        if self.method not in METHODS:
            raise UnknownNameError(
                f"No method is called {self.method!r}.{nearest(self.method, METHODS)} Known: {', '.join(METHODS)}."
            )
        if self.method != "adapter":
            return
        frozen = [name for name, trained in self.adapter.trains.items() if not trained]
        given = [name for name in frozen if getattr(self.train, f"lr_{name}") is not None]
        refuse_values([f"train.lr_{name} is given, but {name} is frozen" for name in given])

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, the inverse of `from_dict`."""
        return to_mapping(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Recipe:
        """Build a recipe from nested plain values; what is left out keeps its default, down to single fields.

        Args:
            mapping: Fields by name; ``adapter`` may be text, or hold the key ``preset``.

        Returns:
            The recipe.
        """
        given = _with_preset(mapping)
        base = _with_task_defaults(cls().to_dict(), given)
        if "adapter" in given:
            base["adapter"], given["adapter"] = _adapter_base(given["adapter"], base["adapter"])
        return from_mapping(cls, merged(base, given))

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe from YAML.

        Args:
            path: The file.
            overrides: Nested values that win over the file's; a preset among them replaces the file's factors.

        Returns:
            The recipe.
        """
        content, over = _with_preset(read_yaml(Path(path))), _with_preset(overrides or {})
        below, above = content.get("adapter"), over.get("adapter")
        if isinstance(below, Mapping) and isinstance(above, Mapping) and "preset" in above:
            content["adapter"] = {key: value for key, value in below.items() if key not in ("preset", "A", "B")}
        return cls.from_dict(merged(content, over))

    def to_yaml(self) -> str:
        """Return the recipe as YAML, every field written out."""
        return yaml_text(self.to_dict())


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``, mapping by mapping.

    Example:
        >>> merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}, "b": 4})
        {'a': {'x': 1, 'y': 3}, 'b': 4}
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(cast("Mapping[str, Any]", below), value) if both else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.

    Returns:
        Its content; an empty file is an empty mapping.

    Raises:
        DataNotFoundError: The file is not there.
        SpecError: It is no YAML, or no mapping.
    """
    yaml = _yaml()
    if not path.is_file():
        raise DataNotFoundError(f"There is no recipe at {path}. Give a YAML file, or none for the embedded default.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SpecError(f"{path} holds {type(content).__name__}; a mapping of recipe keys is needed.")
    return content


def at_rate(train: TrainRecipe, lr: float) -> TrainRecipe:
    """Return training settings with another learning rate, and every absolute rate in its old ratio to it.

    Args:
        train: The settings.
        lr: The new ``train.lr``.

    Example:
        >>> at_rate(TrainRecipe(lr=1e-3, lr_head=5e-4), 2e-3).lr_head
        0.001
    """
    given = {name: getattr(train, name) for name in ("lr_A", "lr_B", "lr_head")}
    moved = {name: rate * lr / train.lr for name, rate in given.items() if rate is not None}
    # A recipe is read by people: 0.00023, not 0.00022999999999999998.
    return replace(train, lr=lr, **{name: float(f"{rate:.12g}") for name, rate in moved.items()})


def yaml_text(content: Mapping[str, Any]) -> str:
    """Return plain nested values as YAML, in their order, the inverse of `read_yaml`.

    Args:
        content: Mappings, lists, text, numbers, booleans, None.
    """
    # Not allow_unicode: PyYAML then writes some control characters in a form that it reads back as another.
    return _yaml().safe_dump(dict(content), sort_keys=False)


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """Return the dotted keys whose values differ, with both values.

    Example:
        >>> differing_keys({"a": {"x": 1}}, {"a": {"x": 2}})
        ['a.x: 1 / 2']
    """
    differing: list[str] = []
    for key in one.keys() | other.keys():
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            differing += differing_keys(mine, theirs, f"{where}{key}.")
        elif mine != theirs:
            differing.append(f"{where}{key}: {mine!r} / {theirs!r}")
    return sorted(differing)


def _with_task_defaults(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    # What a task's own data need (how many of their rows, say) is nothing to the user's.
    defaults = dict(task_row(str(given.get("task", base["task"]))).defaults)
    data = given.get("data")
    if isinstance(data, Mapping) and "name" in data:
        defaults["data"] = {key: value for key, value in defaults.get("data", {}).items() if key not in _OF_OWN_DATA}
    return merged(base, defaults)


_OF_OWN_DATA = ("name", "max_rows", "max_scored_rows", "image_size")


def _with_preset(mapping: Mapping[str, Any]) -> dict[str, Any]:
    adapter = mapping.get("adapter")
    return {**mapping, "adapter": {"preset": adapter}} if isinstance(adapter, str) else dict(mapping)


def _adapter_base(given: Any, default: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    if not isinstance(given, Mapping) or "preset" not in given:
        return default, given
    rest = {key: value for key, value in given.items() if key != "preset"}
    factors = {letter: to_mapping(factor) for letter, factor in factors_named(str(given["preset"])).items()}
    return {**default, **factors}, rest


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingPackageError("Recipes need PyYAML. Install it with: pip install 'asymlora[train]'") from None
    return yaml
