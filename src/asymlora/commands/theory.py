"""``asymlora theory``: the papers' simulations, from a terminal to records and figures."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asymlora.atomic import write_file
from asymlora.errors import SpecError, UnwritableFolderError

Record = dict[str, Any]
Progress = Callable[[int, int, Mapping[str, Any]], None]

SIMULATIONS = {
    "toy": "teacher and student: the best learning rate of Init[A] and Init[B] against the width",
    "stability": "one layer: exponents in the width, and the largest stable learning rate of each start",
    "gap": "least squares: when training B alone beats training A alone",
}
WIDTHS = {"toy": [128, 256, 512, 1024], "stability": [128, 256, 512, 1024, 2048, 4096, 8192]}


EDGES = ("init_a", "init_b", "init_b_small")
"""Starts whose largest stable rate is searched."""


def parser(simulation: str = "", settings: Iterable[tuple[str, Any, Any, str]] = ()) -> Any:
    """Return the parser; its options are those of one simulation.

    Args:
        simulation: Which one; any other text leaves what all of them have.
        settings: Name, type, default and help of each setting of the toy model.
    """
    from jsonargparse import ArgumentParser

    made = ArgumentParser(
        description=f"Simulate. {'; '.join(f'{name}: {words}' for name, words in SIMULATIONS.items())}.",
        exit_on_error=False,
    )
    made.add_argument("simulation", choices=list(SIMULATIONS), help="more options: asymlora theory SIMULATION --help")
    made.add_argument("--seeds", type=int, help="seeds, or draws of each case; default: toy 3, stability 6, gap 40")
    made.add_argument("--figure", type=str, help="file to draw into: .html or .svg")
    made.add_argument("--records", type=str, help="file for the records, JSON Lines")
    if simulation in WIDTHS:
        made.add_argument("--widths", type=list[int], help=f"like [128,512]; default: {WIDTHS[simulation]}")
    if simulation == "toy":
        made.add_argument("--schemes", type=list[str], help="starts, like [init_a,b_only]; default: [init_a,init_b]")
        made.add_argument("--rates", type=list[float], help="learning rates; default: 2^-11 to 2^-3, by octaves")
        for field, hint, default, words in settings:
            made.add_argument(f"--{field}", type=hint, default=default, help=words)
    return made


def run(options: dict[str, Any]) -> int:
    """Simulate, print, and save what is asked for.

    Args:
        options: What the user gave.

    Returns:
        The exit code.
    """
    from rich.console import Console

    from asymlora.report.console import RunDisplay

    name = options["simulation"]
    given = {key: value for key, value in options.items() if key != "simulation"}
    files = {key: given.pop(key, None) for key in ("figure", "records")}
    for key, endings in (("figure", (".html", ".svg")), ("records", (".jsonl",))):
        check_file(files[key], key, endings)
    console = Console()
    with RunDisplay(console) as display:

        def progress(done: int, total: int, record: Mapping[str, Any]) -> None:
            display.progress(SIMULATIONS[name].partition(":")[0], done, total, {})

        records = list(RUNS[name](given, progress))
    from asymlora.report import theory_figures

    # First what took the time, whatever a table makes of it.
    if files["records"]:
        lines = (json.dumps(_finite(record), allow_nan=False) for record in records)
        write_file(Path(files["records"]), "".join(f"{line}\n" for line in lines))
        display.stage(f"Records: {files['records']}")
    console.print(theory_figures.TABLES[name](records))
    if files["figure"]:
        theory_figures.FIGURES[name](records).save(files["figure"])
        display.stage(f"Figure: {files['figure']}")
    return 0


def _finite(record: Mapping[str, Any]) -> Record:
    # JSON has no infinity and no not-a-number: null, as for what was not measured.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _checked(given: Mapping[str, Any], name: str, default: Sequence[Any] | int) -> Any:
    """Return a chosen list of numbers above zero, or a number of seeds, or the default where none was given.

    Raises:
        SpecError: It is empty, or holds a number that is not above zero.
    """
    value = default if given.get(name) is None else given[name]
    numbers = [value] if isinstance(value, int) else value
    if not numbers or not all(0 < number < 1e30 for number in numbers):
        raise SpecError(f"--{name} {value} must hold numbers above 0. Leave it out for the default: {default}.")
    return value


def check_file(path: str | None, option: str, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written, before anything is simulated.

    Args:
        path: What was given, or None.
        option: Its option.
        endings: Allowed ones.

    Raises:
        SpecError: The ending is another one, or there is no such folder.
        UnwritableFolderError: Nothing can be written there.
    """
    if path is None:
        return
    if Path(path).suffix not in endings:
        raise SpecError(f"--{option} {path} has no ending that is known. Allowed: {', '.join(endings)}.")
    if Path(path).is_dir():
        raise SpecError(f"--{option} {path} is a folder. Name a file.")
    if not Path(path).parent.is_dir():
        raise SpecError(f"--{option} {path}: there is no folder {Path(path).parent}. Make it first.")
    try:
        tempfile.TemporaryFile(dir=Path(path).parent).close()
    except OSError as error:
        raise UnwritableFolderError(
            f"--{option} {path} cannot be written ({error.strerror or error}). Choose another folder."
        ) from None


def _toy(given: dict[str, Any], progress: Progress) -> Iterator[Record]:
    from asymlora.theory.teacher_student import TeacherStudent, sweep

    chosen = {key: given.pop(key, None) for key in ("widths", "schemes", "rates", "seeds")}
    if chosen["schemes"] == []:
        raise SpecError("--schemes [] names no start. Leave it out for the default: [init_a,init_b].")
    return sweep(
        TeacherStudent(**given),
        widths=_checked(chosen, "widths", WIDTHS["toy"]),
        schemes=chosen["schemes"] or ["init_a", "init_b"],
        rates=_checked(chosen, "rates", [2.0**power for power in range(-11, -2)]),
        seeds=range(_checked(chosen, "seeds", 3)),
        progress=progress,
    )


def _stability(given: dict[str, Any], progress: Progress) -> Iterator[Record]:
    from asymlora.theory.one_layer import OneLayerSettings
    from asymlora.theory.width_fits import PowerLaw, exponents, largest_stable_rate

    widths, seeds = _checked(given, "widths", WIDTHS["stability"]), tuple(range(_checked(given, "seeds", 6)))
    if len(set(widths)) < 2:
        raise SpecError(f"--widths {widths} allow no slope. Give two different ones or more.")
    rows = [(scheme, -power, None) for scheme in ("init_a", "init_b") for power in (1, 0.75, 0.5)]
    rows += [("init_a", -0.25, None), ("init_b_small", -0.5, None), ("init_ab", -0.5, None), ("init_ab", -1, None)]
    rows += [(scheme, -1, 0.0) for scheme in ("init_a", "init_b")]
    edges = [(scheme, width, seed) for scheme in EDGES for width in widths for seed in seeds]
    total, made = len(rows) + len(edges), 0
    for scheme, rate_A, rate_B in rows:
        fit = exponents(
            OneLayerSettings(scheme=scheme, seeds=seeds),
            PowerLaw(rate_A),
            None if rate_B is None else PowerLaw(rate_B),
            widths=widths,
        )
        record: Record = {"kind": "exponents", "scheme": scheme, "rate_A": rate_A, "rate_B": rate_B}
        record |= {name: slope.exponent for name, slope in fit.slopes.items()}
        record |= {"widths": list(widths), "seeds": len(seeds), "step": fit.step, "flipped": list(fit.flipped)}
        made += 1
        progress(made, total, record)
        yield record
    for scheme, width, seed in edges:
        rate = largest_stable_rate(OneLayerSettings(scheme=scheme, seeds=(seed,)), width, octaves=0.01)
        record = {"kind": "largest stable rate", "scheme": scheme, "width": width, "seed": seed, "rate": rate}
        made += 1
        progress(made, total, record)
        yield record


def _gap(given: dict[str, Any], progress: Progress) -> Iterator[Record]:
    from asymlora.theory.gap_draws import gap_draws

    return gap_draws(draws=_checked(given, "seeds", 40), progress=progress)


RUNS: dict[str, Callable[[dict[str, Any], Progress], Iterator[Record]]] = {
    "toy": _toy,
    "stability": _stability,
    "gap": _gap,
}
