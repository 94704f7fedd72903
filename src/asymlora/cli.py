"""The command line: argument parsing only. Every option is a recipe's field."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from asymlora import __version__
from asymlora.errors import (
    AsymloraError,
    MissingPackageError,
    NothingToResumeError,
    SpecError,
    UnknownKeyError,
    nearest,
)
from asymlora.schema import to_mapping
from asymlora.spec import PEFT_NAMES

DESCRIPTION = "Fine-tune pretrained models with low-rank adapters, each factor under its own control."
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes the process's own.

    Returns:
        The exit code: 0, 2 for a mistake that the message names, 130 after an interruption.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except AsymloraError as error:
        if _is_first():
            print(f"asymlora: {error}", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        print(f"asymlora: {error}. Nothing half-written was left under a final name.", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupted:
        print(" ".join(["\nInterrupted.", *map(str, interrupted.args)]), file=sys.stderr)
        return EXIT_INTERRUPTED


def _is_first() -> bool:
    # Of the processes that torchrun starts, one speaks. (train.processes has the same, but imports torch.)
    return int(os.environ.get("RANK", "0")) == 0


def _run(argv: list[str]) -> int:
    for name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao, which tells what it has no use for
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError:
        raise MissingPackageError("The command line needs more packages: pip install 'asymlora[train]'") from None

    parser = ArgumentParser(prog="asymlora", description=DESCRIPTION, version=__version__, exit_on_error=False)
    commands = parser.add_subcommands(required=True, dest="command", metavar="COMMAND")
    blank = ArgumentParser(exit_on_error=False)  # of commands that are not typed: a recipe's many options take time
    typed = argv[0] if argv else ""
    commands.add_subcommand(
        "finetune",
        finetune_parser() if typed == "finetune" else blank,
        help="fine-tune a model; without arguments, the embedded one",
    )
    commands.add_subcommand("predict", _predict_parser(), help="ask a finished run, or a merged model")
    commands.add_subcommand("merge", _merge_parser(), help="fold a run's adapter into its model and save that")
    commands.add_subcommand(
        "convert", _convert_parser(), help="compress an adapter folder to seeds, or expand it for PEFT"
    )
    for name, help_text in _FILES.items():
        commands.add_subcommand(name, _parser_of(name, argv) if typed == name else blank, help=help_text)
    _refuse_unknown_options(argv)
    if argv[:1] == ["advise"]:
        argv = _long_names(argv, _load("asymlora.commands.advise").SHORT_NAMES)
    try:
        given = parser.parse_args(argv, defaults=False)
    except ArgumentError as error:
        about = typed if typed and not typed.startswith("-") else "finetune"
        raise SpecError(f"{_readable(str(error))} See: asymlora --help, asymlora {about} --help.") from None
    options = given[given["command"]].as_dict() if given.get(given["command"]) else {}
    if given["command"] in ("sweep", "reproduce"):
        options["typed"] = shlex.join(["asymlora", *argv])
    if given["command"] in _FILES:
        return _load(f"asymlora.commands.{given['command']}").run(options)
    return {"finetune": _finetune, "predict": _predict, "merge": _merge, "convert": _convert}[given["command"]](options)


_FILES = {
    "estimate": "what training a model would cost, before anything is loaded",
    "advise": "which factor to train where, at what rank and rate, from a short look at model and data",
    "theory": "run the papers' simulations and draw them",
    "diagnose": "look inside of adapters, or compare them",
    "sweep": "compare arms, each at its own best learning rate, with statistics and a page",
    "compare": "arms of a sweep, or results of several folders, beside each other",
    "report": "write what sweeps and runs found: a page, Markdown, CSV or JSON",
    "reproduce": "run what the papers claim again, with a verdict on each claim",
}
"""Commands with a file of their own in `asymlora.commands`."""


def _parser_of(name: str, argv: list[str]) -> Any:
    from importlib import import_module

    from asymlora.train.recipe import Recipe

    parser = import_module(f"asymlora.commands.{name}").parser
    if name == "estimate":
        return parser(recipe_options(Recipe().adapter, "adapter."))
    if name in ("advise", "sweep"):
        return parser(recipe_options(Recipe()))
    if name != "theory":
        return parser()
    if argv[:2] != ["theory", "toy"]:
        return parser(*argv[1:2] if argv[:1] == ["theory"] else ())
    # The toy model's settings stand beside torch code, which takes two seconds to import.
    return parser("toy", recipe_options(_load("asymlora.theory.teacher_student").TeacherStudent()))


def _long_names(argv: Sequence[str], short: Mapping[str, str]) -> list[str]:
    # Up to the equals sign, which a value may hold too.
    parts = (word.partition("=") for word in argv)
    return ["".join((short.get(name, name), equals, value)) for name, equals, value in parts]


def _readable(message: str) -> str:
    # jsonargparse names Python's types; a user of the command line knows options and numbers.
    kinds = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}
    for kind, words in kinds.items():
        message = message.replace(f"a <class '{kind}'>", words)
    return " ".join(re.sub(r'Parser key "([\w.]+)":', r"--\1:", message).split())


def _finetune(options: dict[str, Any]) -> int:
    from asymlora.train.recipe import Recipe
    from asymlora.train.run_folder import claim, stored_recipe

    dry = bool(options.pop("dry_run", None))
    run = {key: options.pop(key, None) for key in ("output", "resume", "overwrite")}
    file = options.pop("recipe", None)
    resume, overwrite = bool(run["resume"]), bool(run["overwrite"])
    strict = bool(options.pop("strict", None))
    if resume and not file and not options:
        folder = claim(run["output"], resume=True, overwrite=overwrite)
        run["output"] = folder.path
        if not folder.resumes:
            raise NothingToResumeError(
                f"There is no run in {folder.path} to go on with. Begin it without --resume, or repeat its recipe and"
                " options beside --resume."
            )
        recipe = stored_recipe(folder.path)
    else:
        recipe = Recipe.load(file, options) if file else Recipe.from_dict(options)
    if dry:
        return _load("asymlora.commands.dry_run").run(recipe)

    console = _load("rich.console").Console(quiet=not _is_first())
    from asymlora.report.console import RunDisplay
    from asymlora.report.tables import closing_table

    _load("asymlora.train.callbacks").quiet_transformers()
    with RunDisplay(console) as display:
        try:
            finetune = _load("asymlora.train.run").finetune
            result = finetune(
                recipe, output=run["output"], resume=resume, overwrite=overwrite, observer=display, strict=strict
            )
        except KeyboardInterrupt:
            how = f" Go on with: {_command()} finetune --output {display.folder} --resume" if display.folder else ""
            print(f"\nInterrupted.{how}", file=sys.stderr)
            return EXIT_INTERRUPTED
    console.print()
    console.print(closing_table(result.to_dict(), to_mapping(recipe.adapter)))
    loads = result.method not in ("full", "head")
    display.stage(
        f"\n{'Adapter' if loads else 'Weights'}: {result.folder}/adapter{' (PEFT loads it too)' if loads else ''}"
    )
    display.stage(f'Next: {_command()} predict {result.folder} "an input of yours"')
    return 0


def _command() -> str:
    # As the user can type it again: `make finetune` calls the one in .venv, which is on no path.
    return sys.argv[0] if sys.argv[0].startswith(".") else "asymlora"


def _predict(options: dict[str, Any]) -> int:
    _load("asymlora.train.callbacks").quiet_transformers()
    run = _load("asymlora.train.saved_run").load_run(options["run"])
    for said in run.answer(options["text"]):
        probability = [] if said.probability is None else [f"{said.probability:.3f}"]
        print("\t".join([" ".join(text.split()) for text in (said.answer, *probability, said.given)]))
    return 0


def _merge(options: dict[str, Any]) -> int:
    _load("asymlora.train.callbacks").quiet_transformers()
    print(_load("asymlora.train.saved_run").merge_run(options["run"], options["out"]))
    return 0


def _convert(options: dict[str, Any]) -> int:
    drawn = _load("asymlora.converting").convert_adapter(options["source"], options["target"], to=options.get("to"))
    print(f"{options['target']}: {len(drawn)} factors stand in the seed-compressed folder as the address of their draw")
    return 0


def finetune_parser() -> Any:
    """Return the parser of ``finetune``: one option for each field of a recipe, with its docstring as help."""
    from jsonargparse import ArgumentParser

    from asymlora.train.recipe import Recipe

    parser = ArgumentParser(
        usage="asymlora finetune [RECIPE.yaml] [--dotted.key value ...]",
        description="Fine-tune a pretrained model with an adapter. Without arguments: the embedded model and data.",
        exit_on_error=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help="recipe; options below win over it")
    parser.add_argument("--output", type=str, help="folder of the run; default: a new one below runs/")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the unfinished run in --output, or the newest"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    parser.add_argument("--strict", action="store_true", help="stop at the first verdict on the health of A, B, head")
    parser.add_argument("--dry-run", action="store_true", help="print cost and what is missing; load and write nothing")
    parser.add_argument("--adapter.preset", type=str, help="lora, init_a, init_b, b_only, a_only, or hB_zero_A_rand")
    for name, hint, default, help_text in recipe_options(Recipe()):
        parser.add_argument(f"--{name}", type=hint, default=default, help=help_text)
    return parser


def _predict_parser() -> Any:
    from jsonargparse import ArgumentParser

    description = "Print the answer (label, number or text), a label's probability, and the input, tab-separated."
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, or of a merged model")
    parser.add_argument("text", metavar="TEXT", nargs="+", help="a text (two with a tab between), or an image's path")
    return parser


def _merge_parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description="Write the model with the adapter folded in.", exit_on_error=False)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("out", metavar="OUT", help="folder to write; must not exist")
    return parser


def _convert_parser() -> Any:
    from jsonargparse import ArgumentParser

    description = (
        "Turn an adapter folder into the other form: frozen factors as the address of their draw (seed), or everything"
        " as tensors (peft). No base model is needed; nothing is lost."
    )
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("source", metavar="SRC", help="adapter folder")
    parser.add_argument("target", metavar="DST", help="folder to write; must not exist")
    parser.add_argument("--to", choices=["peft", "seed"], help="form of DST; default: the one that SRC has not")
    return parser


def recipe_options(obj: Any, where: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield every field of a recipe, down to the parts: dotted name, type, default, help from the docstring.

    Args:
        obj: A dataclass instance; its values are the defaults.
        where: Dotted path of the instance.

    Yields:
        One tuple for each field that holds a plain value.
    """
    helps = _attribute_docs(type(obj))
    hints = typing.get_type_hints(type(obj))
    for field in fields(obj):
        value, name = getattr(obj, field.name), f"{where}{field.name}"
        if is_dataclass(value):
            yield from recipe_options(value, f"{name}.")
        else:
            yield name, _typed(hints[field.name]), value, helps[field.name]


def _typed(hint: Any) -> Any:
    # A tuple is typed as a list in brackets, or as one word; a function cannot be typed, and a name of one would be
    # imported.
    if "tuple[tuple" in str(hint):
        return list[list[str]]
    if "tuple" in str(hint):
        return list[str] | str
    members = [m for m in typing.get_args(hint) if typing.get_origin(m) is not Callable]
    return members[0] if len(members) == 1 and typing.get_origin(hint) in (typing.Union, types.UnionType) else hint


def _attribute_docs(cls: type) -> dict[str, str]:
    section = (cls.__doc__ or "").partition("Attributes:")[2].split("\n    Example:")[0]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "").replace("%", "%%") for name, text in entries}


def _refuse_unknown_options(argv: list[str]) -> None:
    if not argv or argv[0] != "finetune":
        return
    from asymlora.train.recipe import Recipe

    own = ("output", "resume", "overwrite", "strict", "dry-run", "help", "adapter.preset")
    known = [*own, *(n for n, *_ in recipe_options(Recipe()))]
    for word in argv[1:]:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and name and name not in known:
            ours = PEFT_NAMES.get(name.rpartition(".")[2])
            last = {k.rpartition(".")[2]: k for k in known}
            meant = last.get(name.replace("-", "_").rpartition(".")[2])
            hint = f" Did you mean '--{meant}'?" if meant else nearest(name, known).replace("mean '", "mean '--")
            field = next((k for k in known if ours and k.startswith(f"adapter.{ours.partition('=')[0]}")), None)
            if name in ("adapter", "preset"):
                hint = " Did you mean '--adapter.preset'?"
            answer = f" That is PEFT's name for {ours}: --{field}." if field else hint
            raise UnknownKeyError(f"There is no option --{name}.{answer} All options: asymlora finetune --help.")


def _load(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("asymlora"):
            raise
        raise MissingPackageError(f"{error.name} is not installed: pip install 'asymlora[train]'") from None
