"""What a task is given: which model, which data. Part of the recipe; no torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from asymlora.errors import UnknownNameError, nearest
from asymlora.schema import answers_wrong_names, refuse_values


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A task as the recipe knows it.

    Attributes:
        module: Where its functions ``prepare`` and ``load`` are.
        reads: Fields of the data recipe that it reads besides those of `READ_BY_ALL`.
        defaults: What its recipe holds where the user says nothing, nested plain values.
    """

    module: str
    reads: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)


READ_BY_ALL = (
    "name",
    "subset",
    "metric",
    "max_rows",
    "max_scored_rows",
    "validation_fraction",
    "test_fraction",
    "seed",
)
"""Fields of the data recipe that every task reads."""
_TEXTS = ("text", "text_pair", "label", "environment", "train_environment", "group", "max_tokens")
_ANSWERS = ("text", "target", "group", "max_tokens", "max_target_tokens")
_SMALL_STEPS = {"steps": 60, "evaluate_every": 20, "batch_size": 8, "head_start": "random", "lr": 1e-3}
TASKS: dict[str, TaskRow] = {
    "text_classification": TaskRow(module="asymlora.tasks.text_classification", reads=_TEXTS),
    "text_regression": TaskRow(module="asymlora.tasks.text_classification", reads=_TEXTS),
    "language_modeling": TaskRow(
        module="asymlora.tasks.language_modeling",
        reads=("text", "max_tokens", "max_target_tokens"),
        defaults={
            "model": {"name": "embedded:smollm2-135m"},
            "data": {"name": "embedded:brown", "max_rows": 2000, "max_scored_rows": 200},
            "train": _SMALL_STEPS,
        },
    ),
    "instruction_tuning": TaskRow(
        module="asymlora.tasks.instruction_tuning",
        reads=(*_ANSWERS, "choices", "problems", "shots"),
        defaults={"model": {"name": "embedded:smollm2-135m"}, "data": {"max_tokens": 256}, "train": _SMALL_STEPS},
    ),
    "seq2seq": TaskRow(
        module="asymlora.tasks.seq2seq",
        reads=(*_ANSWERS, "beams"),
        defaults={"model": {"name": "self-pretrained:denoiser"}, "train": {**_SMALL_STEPS, "lr": 5e-3}},
    ),
    "image_classification": TaskRow(
        module="asymlora.tasks.image_classification",
        reads=("image", "label", "environment", "train_environment", "group", "image_size", "augment"),
        defaults={
            "model": {"name": "embedded:vit-s14"},
            # 28 pixels doubled: 4 x 4 patches.
            "data": {"name": "embedded:fashion-mnist", "max_rows": 2000, "max_scored_rows": 500, "image_size": 56},
            # Ours, from a look at digits: 3e-4 and more over all linear layers undo the fitted head.
            "train": {"steps": 60, "evaluate_every": 20, "batch_size": 16, "lr": 1e-4},
        },
    ),
}
"""Every task by name. A further one is a file and a row."""


def task_row(name: str) -> TaskRow:
    """Return the row of a task.

    Args:
        name: Its name.

    Returns:
        The row.

    Raises:
        UnknownNameError: There is no such task; the names are listed.
    """
    if name not in TASKS:
        raise UnknownNameError(f"No task is called {name!r}.{nearest(name, TASKS)} Known: {', '.join(TASKS)}.")
    return TASKS[name]


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The pretrained model.

    Attributes:
        name: ``embedded:minilm-l6`` or another that a package ships, a local folder, or an id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub; None is the hub's default.
        config: A ``config.json`` that describes the model, for a dry run where its weights are out of reach;
            ``asymlora:papers/recipes/configs/NAME.json`` is one that asymlora ships.
        pooling: Texts only. How token features become one vector: ``mean`` over the tokens, ``native``: the class that
            transformers has for the model; ``auto``: ``mean`` where the folder says so, else ``native``.
        base: How the frozen base is stored: ``float32``, ``bfloat16``, ``nf4`` (bitsandbytes) or ``int8`` (torchao).
    """

    name: str = "embedded:minilm-l6"
    revision: str | None = None
    config: str | None = None
    pooling: Literal["auto", "mean", "native"] = "auto"
    base: Literal["float32", "bfloat16", "nf4", "int8"] = "float32"


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The rows and how they are divided.

    Attributes:
        name: ``embedded:reviews`` or another that a package ships; a CSV, JSON Lines, Parquet or, for language
            modelling, plain text file; a folder with files called train, validation and test; or an id on the hub.
        subset: Configuration of a hub data set, if it has several.
        text: Column of the text; of the source in sequence to sequence, of the prompt in instruction tuning.
        text_pair: Column of a second text, as in entailment and similarity.
        label: Column of the label; of a number in regression.
        target: Column of the text to be written: the target in sequence to sequence, the answer to an instruction.
        image: Column of the image: a path, or bytes of a file.
        environment: Column that names the domain of a row; a folder with one file a domain has it without a column.
        train_environment: The domain that is trained on; the others are scored one by one.
        group: Column whose rows must stay in one part (the film of a review); None splits by row.
        metric: By which choices are made, and which the closing table shows first; None: the task's own, of a GLUE data
            set on the hub the one that GLUE scores it by.
        max_tokens: Longer inputs are cut, and counted; the length of a block in language modelling. At least 2.
        max_target_tokens: The same for targets, and the longest text that is generated. At least 2.
        max_rows: Training rows that are used, drawn by ``seed``; None: all.
        max_scored_rows: Rows of validation, of test and of each further domain that are used, likewise; None: all.
        beams: Beams of the search that writes a target, at least 1.
        image_size: Pixels of a side after resizing.
        augment: Crop, flip and tint training images at random.
        choices: File of multiple-choice questions (columns question, choices, answer), scored at the end by likelihood.
        problems: File of problems (columns question, answer), scored at the end by generation and exact match.
        shots: Solved examples before each multiple-choice question or problem, taken from the head of its file.
        validation_fraction: Share of the training rows (or groups) held out for choices, where no such file is given.
        test_fraction: Share held out for the closing figures, where no such file is given.
        seed: Seed of the division.
    """

    name: str = "embedded:reviews"
    subset: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    target: str = "target"
    image: str = "image"
    environment: str | None = None
    train_environment: str | None = None
    group: str | None = None
    metric: str | None = None
    max_tokens: int = 64
    max_target_tokens: int = 64
    max_rows: int | None = None
    max_scored_rows: int | None = None
    beams: int = 4
    image_size: int = 112
    augment: bool = True
    choices: str | None = None
    problems: str | None = None
    shots: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SpecError: A number is out of range.
        """
        problems: list[str] = []
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                problems.append(f"data.{name}={getattr(self, name)} must lie between 0 and 1")
        least = {
            "max_tokens": 2,
            "max_target_tokens": 2,
            "max_rows": 1,
            "max_scored_rows": 2,
            "beams": 1,
            "image_size": 8,
            "shots": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                problems.append(f"data.{name}={value} must be at least {bound}")
        if not 0 <= self.seed < 2**31:  # two draws each, in NumPy's range
            problems.append(f"data.seed={self.seed} must lie between 0 and 2**31 - 1")
        refuse_values(problems)


def refuse_unread(task: str, data: DataRecipe) -> None:
    """Refuse fields that a task would pass over in silence.

    Args:
        task: The task's name.
        data: The recipe.

    Raises:
        SpecError: A field that the task does not read has another value than its default; all are listed.
    """
    read = {*READ_BY_ALL, *task_row(task).reads}
    unread = [f for f in fields(data) if f.name not in read and getattr(data, f.name) != f.default]
    more = f"the task {task} does not read it; it reads: {', '.join(f for f in task_row(task).reads)}. Leave it out"
    refuse_values([f"data.{f.name}={getattr(data, f.name)!r} is given, but {more}" for f in unread])
