"""``asymlora diagnose``: look inside of saved adapters, alone or beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.atomic import staged_folder, write_file
from asymlora.commands.theory import check_file
from asymlora.errors import AdapterFileError, AttachError, DataNotFoundError, SpecError

if TYPE_CHECKING:
    from asymlora.diagnostics.adapter_pairs import Comparison
    from asymlora.diagnostics.site_factors import SiteFactors
    from asymlora.report.plots import Figure

Record = dict[str, Any]
_FIGURES = (".html", ".svg")
_RECORDS = "records.json"
_NO_MODEL = "left out, as it needs the base weights. Add --model with the model that the adapter was trained on."


def parser() -> Any:
    """Return the parser."""
    from jsonargparse import ArgumentParser

    made = ArgumentParser(
        usage="asymlora diagnose ADAPTER [--against ADAPTER ...] [options]",
        description="Norms, spectra and a screen of one adapter; or how alike the factors of several are, pair by pair."
        " Adapters are folders that asymlora or PEFT wrote, or runs of asymlora finetune.",
        exit_on_error=False,
    )
    made.add_argument("adapter", metavar="ADAPTER", help="adapter folder, or folder of a run")
    made.add_argument("--against", type=str, nargs="+", metavar="ADAPTER", help="adapters of the same base model")
    made.add_argument(
        "--model",
        type=str,
        help="base model (embedded:..., folder, hub id), for what merging loses; a run names its own",
    )
    made.add_argument("--save", type=str, help="figure (.html, .svg), or a folder for all figures and the records")
    made.add_argument("--sites", action="store_true", help="a line for each site, instead of medians and extremes")
    made.add_argument("--json", action="store_true", help="print records instead of tables")
    return made


def run(options: dict[str, Any]) -> int:
    """Measure, print, and save what is asked for.

    Args:
        options: What the user gave.

    Returns:
        The exit code.

    Raises:
        SpecError: Options do not go together, or a place to save is none.
        AdapterFileError: An adapter cannot be read, or they are of different models.
    """
    against: list[str] = options.get("against") or []
    _check_place(options.get("save"))
    if against and options.get("model"):
        raise SpecError("--model is for what merging one adapter loses; it says nothing beside --against. Drop one.")
    paths = [Path(path).expanduser() for path in (options["adapter"], *against)]
    adapters = _read(paths)
    if against:
        return _compare(adapters, options)
    return _inspect(adapters, paths[0], options)


def _inspect(adapters: Mapping[str, tuple[SiteFactors, ...]], path: Path, options: Mapping[str, Any]) -> int:
    from asymlora.diagnostics.adapter_records import adapter_records
    from asymlora.diagnostics.adapter_screen import screen

    ((name, sites),) = adapters.items()
    weights, note = _weights(sites, path, options.get("model"))
    records = adapter_records(sites, weights=weights)
    findings = [verdict.to_dict() for verdict in screen(records)]
    content = {"adapter": name, "merging": note, "findings": findings, "sites": records}
    if options.get("json"):
        _print_json(content)
    else:
        from rich.console import Console

        from asymlora.report.adapter_tables import adapter_tables, findings_table

        console = Console()
        console.print(
            adapter_tables(records, name=name, every_site=bool(options.get("sites")), merge_note=note), highlight=False
        )
        console.print()
        console.print(findings_table(findings, name=name))
    if options.get("save"):
        from asymlora.report.adapter_figures import spectrum_map

        _save(Path(options["save"]), content, {"spectra": lambda: spectrum_map(records)}, quiet=options.get("json"))
    return 0


def _compare(adapters: Mapping[str, tuple[SiteFactors, ...]], options: Mapping[str, Any]) -> int:
    from asymlora.diagnostics.adapter_pairs import compare_adapters
    from asymlora.diagnostics.adapter_records import adapter_records
    from asymlora.diagnostics.adapter_screen import screen

    compared = compare_adapters(adapters)
    findings = {name: [v.to_dict() for v in screen(adapter_records(sites))] for name, sites in adapters.items()}
    content: Record = {"adapters": list(adapters), "findings": findings, "alone": compared.alone}
    content["pairs"] = compared.records
    if options.get("json"):
        _print_json(content)
    else:
        from rich.console import Console

        from asymlora.report.adapter_tables import findings_table, pair_tables

        console = Console()
        tables = pair_tables(compared.records, alone=compared.alone, every_site=bool(options.get("sites")))
        console.print(tables, highlight=False)
        for name, found in findings.items():
            console.print()
            console.print(findings_table(found, name=name))
    if options.get("save"):
        _save(Path(options["save"]), content, _maps(compared), quiet=options.get("json"))
    return 0


def _maps(compared: Comparison) -> dict[str, Any]:
    from asymlora.report.adapter_figures import similarity_map

    def drawn(factor: str | None, measure: str) -> Any:
        return lambda: similarity_map(compared.records, factor=factor, measure=measure)

    separate = {f"similarity_{f}_{m}": drawn(f, m) for m in ("cca", "cka") for f in ("A", "B")}
    return {"similarity": drawn(None, "cca"), **separate}


# Reading -------------------------------------------------------------------------------------------------------------


def _read(paths: Sequence[Path]) -> dict[str, tuple[SiteFactors, ...]]:
    from asymlora.diagnostics.site_factors import site_factors

    names = adapter_names(paths)
    return {name: site_factors(adapter_folder(path)) for name, path in zip(names, paths, strict=True)}


def adapter_folder(path: Path) -> Path:
    """Return the adapter folder that a path stands for: itself, or that of a run.

    Args:
        path: An adapter folder, or the folder of a run.

    Returns:
        A folder.

    Raises:
        AdapterFileError: There is no such folder, the run has not ended, or it trained no adapter.
    """
    from asymlora.train.run_folder import ADAPTER, RECIPE, stored_recipe

    if not path.is_dir():
        raise AdapterFileError(
            f"There is no adapter folder at {path}. Give a folder with adapter_config.json or asymlora.json in it, or"
            " that of a run; an adapter on the hub has to be downloaded first."
        )
    if not (path / RECIPE).is_file():
        return path
    method = stored_recipe(path).method
    if method in ("full", "head"):
        raise AdapterFileError(f"The run in {path} trained {method!r}, which has no factors A and B. Give another run.")
    if not (path / ADAPTER).is_dir():
        raise AdapterFileError(
            f"The run in {path} has not ended and has no adapter yet. Go on with it: asymlora finetune --output {path}"
            " --resume"
        )
    return path / ADAPTER


def adapter_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest endings of paths that tell them apart; a run's ``adapter`` is called by the run.

    Args:
        paths: Adapters.

    Returns:
        A name for each.

    Raises:
        SpecError: A path is given twice.

    Example:
        >>> adapter_names([Path("runs/one/adapter"), Path("runs/two/adapter"), Path("other/two")])
        ['one', 'runs/two', 'other/two']
    """
    whole = [path.absolute() for path in paths]
    real = [path.resolve() for path in paths]
    twice = [str(path) for path, known in zip(paths, real, strict=True) if real.count(known) > 1]
    if twice:
        raise SpecError(f"{twice[0]} is given twice. An adapter is always like itself; name each one once.")
    parts = [path.parts[:-1] if path.name == "adapter" else path.parts for path in whole]
    if len(set(parts)) < len(parts):
        parts = [path.parts for path in whole]
    names: list[str] = []
    for own in parts:
        count = 1
        while any(other is not own and other[-count:] == own[-count:] for other in parts):
            count += 1
        names.append("/".join(own[-count:]))
    return names


def _weights(sites: Sequence[SiteFactors], path: Path, model: str | None) -> tuple[Any, str | None]:
    """Return the base weights and None, or None and why there are none.

    Raises:
        AttachError: The model that was named is another one.
        DataNotFoundError: It cannot be found.
    """
    from asymlora.train.run_folder import RECIPE, stored_recipe

    revision = None
    named = model is not None
    if model is None:
        if not (path / RECIPE).is_file():
            return None, _NO_MODEL
        recipe = stored_recipe(path).model
        model, revision = recipe.name, recipe.revision
    from asymlora.tasks.base_weights import base_weights
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    try:
        return base_weights(model, [site.name for site in sites], revision=revision), None
    except (AttachError, DataNotFoundError) as error:
        if named:
            raise
        return None, f"left out: {error}"


# Output --------------------------------------------------------------------------------------------------------------


def _check_place(place: str | None) -> None:
    if place is None:
        return
    path = Path(place).expanduser()
    if path.suffix in _FIGURES:
        check_file(place, "save", _FIGURES)
    elif path.is_file() or path.suffix in (".png", ".pdf", ".jpg", ".json", ".jsonl"):
        raise SpecError(f"--save {place} is neither a figure nor a folder. Allowed: .html, .svg, or a folder for all.")


def _save(place: Path, content: Record, figures: Mapping[str, Any], *, quiet: Any) -> None:
    from asymlora.errors import DataError

    place = place.expanduser()
    if place.suffix in _FIGURES:
        next(iter(figures.values()))().save(place)
    else:
        with staged_folder(place, last=_RECORDS) as staging:
            for name, draw in figures.items():
                try:
                    figure: Figure = draw()
                except DataError:
                    continue  # a map of zero factors has no cell; the records say so
                figure.save(staging / f"{name}.html")
            write_file(staging / _RECORDS, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    if not quiet:
        print(f"\nSaved: {place}")


def _print_json(content: Record) -> None:
    print(json.dumps(_finite(content), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    """Return plain values with None in the place of numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
