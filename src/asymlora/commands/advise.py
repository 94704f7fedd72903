"""``asymlora advise``: one short pass over a model and its data, and a recipe with its reasons."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asymlora.atomic import write_file
from asymlora.commands.theory import check_file
from asymlora.errors import MissingPackageError, RunExistsError

RECIPE = "advised.yaml"
RECIPE_ENDINGS, PAGE_ENDINGS = (".yaml", ".yml"), (".html",)
SHORT_NAMES = {"--data": "--data.name", "--rank": "--adapter.rank", "--targets": "--adapter.targets"}
"""Options that may be typed for a recipe's field; the parser would take ``--data`` for all fields of the data."""
_NOT_READ = ("method", "model.config", "train.lr_A", "train.gradient_correction", "train.sharding")
"""Fields of a recipe that advice chooses or does without."""
_SAID_FIRST = {"train.lr": "is found by advice; given, it is what train.lr_B and train.lr_head are in a ratio to. "}
"""What an option does here, before what the field is."""


def parser(recipe_options: Iterator[tuple[str, Any, Any, str]]) -> Any:
    """Return the parser.

    Args:
        recipe_options: Name, type, default and help of each field of a recipe.
    """
    from jsonargparse import ArgumentParser

    from asymlora.train.advice_options import KEPT

    made = ArgumentParser(
        usage="asymlora advise [MODEL] [--data NAME_OR_FILE] [--dotted.key value ...] [--out RECIPE.yaml]",
        description="Look at a model and its data for a minute or two, and advise which factor to train where, at what"
        " rank, from which learning rate. Without arguments: the embedded model and data.",
        exit_on_error=False,
    )
    made.add_argument("model_name", nargs="?", metavar="MODEL", help="embedded:..., a folder, or a hub id")
    made.add_argument("--recipe", type=str, help="recipe to begin from; options and MODEL win over it")
    made.add_argument(
        "--out", type=str, help=f"file for the advised recipe, .yaml; default: {RECIPE}, with --json none"
    )
    made.add_argument("--page", type=str, help="file for the page of reasons, .html")
    made.add_argument("--overwrite", action="store_true", help="replace the files of --out and --page")
    made.add_argument("--steps", type=int, help="steps of the range test's ramp, at least 12 (default: 60)")
    made.add_argument("--batches", type=int, help="batches to gather gradients over, at least 2 (default: 8)")
    made.add_argument("--rows", type=int, help="training rows to read for it, at least 8 (default: 1000)")
    made.add_argument("--values", type=int, help="most trained values; default: what the rank costs everywhere")
    made.add_argument(
        "--ranks-by-layer", action="store_true", help="let ranks differ from layer to layer, where they reach more"
    )
    made.add_argument("--only-targets", action="store_true", help="measure no layers besides the adapter's")
    made.add_argument("--all", action="store_true", help="show each layer, not each kind of layer")
    made.add_argument("--json", action="store_true", help="print everything as one JSON object")
    for name, hint, default, help_text in recipe_options:
        adapter = name.removeprefix("adapter.")
        if name in _NOT_READ or (adapter != name and adapter not in KEPT):
            continue
        first = next((f"or {short}: " for short, whole in SHORT_NAMES.items() if whole == f"--{name}"), "")
        first += _SAID_FIRST.get(name, "")
        made.add_argument(f"--{name}", type=hint, default=default, help=f"{first}{help_text}")
    return made


def run(options: dict[str, Any]) -> int:
    """Measure, advise, print, and write recipe and page.

    Args:
        options: What the user gave.

    Returns:
        The exit code.
    """
    given = dict(options)
    own = {name: given.pop(name, None) for name in _OWN}
    own["out"] = own["out"] or (None if own["json"] else RECIPE)
    out, page = (_file(own[name], name, bool(own["overwrite"])) for name in ("out", "page"))
    recipe = _recipe(given, own)
    settings = _settings(own)
    from rich.console import Console

    from asymlora.report.advice_tables import advice_tables
    from asymlora.report.console import RunDisplay
    from asymlora.tasks.sources import find_model
    from asymlora.train.advised_record import advised_record
    from asymlora.train.advising import advise_recipe
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    find_model(recipe.model.name, revision=recipe.model.revision)
    with RunDisplay(Console(stderr=bool(own["json"]))) as display:
        record = advised_record(advise_recipe(recipe, settings=settings, observer=display))
    command = f"asymlora finetune {shlex.quote(str(out or 'recipe.yaml'))}"
    if out:
        write_file(out, f"# Advised by: asymlora advise. Run it with: {command}\n{record['yaml']}")
    if page:
        from asymlora.report.advice_page import advice_page

        write_file(page, advice_page(record, command=command))
    if own["json"]:
        print(json.dumps(record, indent=1, allow_nan=False))
        return 0
    console = Console()
    console.print()
    console.print(advice_tables(record, every=bool(own["all"])))
    _say(console, out=out, page=page, command=command)
    return 0


_OWN = (
    *("model_name", "recipe", "out", "page", "overwrite", "steps", "batches", "rows", "values"),
    *("ranks_by_layer", "only_targets", "all", "json"),
)


def _say(console: Any, *, out: Path | None, page: Path | None, command: str) -> None:
    console.print()
    for line in ([f"Reasons: {page}"] if page else []) + [f"Recipe: {out}", f"Next: {command}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _recipe(given: dict[str, Any], own: Mapping[str, Any]) -> Any:
    from asymlora.train.recipe import Recipe

    if own["model_name"]:
        given["model"] = {**given.get("model", {}), "name": own["model_name"]}
    return Recipe.load(own["recipe"], given) if own["recipe"] else Recipe.from_dict(given)


def _settings(own: Mapping[str, Any]) -> Any:
    from asymlora.train.advice_options import AdvisingSettings
    from asymlora.train.range_rules import RangeSettings

    chosen = {name: own[name] for name in ("batches", "rows", "values") if own[name] is not None}
    if own["steps"] is not None:
        chosen["range_test"] = RangeSettings.of_length(own["steps"])
    return AdvisingSettings(everywhere=not own["only_targets"], ranks_by_layer=own["ranks_by_layer"], **chosen)


def _file(path: str | None, option: str, overwrite: bool) -> Path | None:
    check_file(path, option, RECIPE_ENDINGS if option == "out" else PAGE_ENDINGS)
    if path is None:
        return None
    if Path(path).exists() and not overwrite:
        raise RunExistsError(f"--{option} {path} exists. Choose another name, or replace it with --overwrite.")
    if option == "page" and importlib.util.find_spec("plotly") is None:
        raise MissingPackageError("--page needs Plotly: pip install 'asymlora[report]'")
    return Path(path)
