"""``asymlora reproduce``: the figures and tables of a paper run again, and a verdict on each of its claims."""

from __future__ import annotations

import importlib.util
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.errors import SpecError, UnknownNameError, nearest

if TYPE_CHECKING:
    from asymlora.reproduce.artefact import Artefact, Part, Scale
    from asymlora.reproduce.artefact_folder import ArtefactFolder
    from asymlora.reproduce.kept_results import Kept
    from asymlora.reproduce.running import Outcome

SCALES = ("small", "paper")
KEPT = Path("experiments") / "results"
"""Where the results of this repository stand, from its root."""
EXIT_OUTSIDE = 1
"""Exit code where a claim does not agree with the kept results, or none could be compared."""
_LINES_EVERY = 2.0
"""Seconds between two lines on measured points."""
_OF_RUNS = (
    *("out", "part", "executor", "workers", "memory", "address", "threads", "overwrite", "keep", "against", "no_page"),
)
"""Options that a list and a dry run do nothing with; but the list reads ``keep``."""


def parser() -> Any:
    """Return the parser."""
    from jsonargparse import ArgumentParser

    made = ArgumentParser(
        usage="asymlora reproduce NAME [--scale small|paper] [--dry-run] [options]\n       asymlora reproduce --list",
        description="Run a figure or table of a paper again, on the models and data at hand or at the paper's scale,"
        " and judge each of its claims by the test that was stated before. Begun runs are gone on with.",
        exit_on_error=False,
    )
    made.add_argument("name", nargs="?", metavar="NAME", help="which one: asymlora reproduce --list")
    made.add_argument("--list", action="store_true", help="list them: minutes, memory, status, verdicts")
    made.add_argument("--scale", type=str, help="small (default; two cores) or paper (the paper's models and data)")
    made.add_argument("--dry-run", action="store_true", help="print what would be run and what it costs")
    made.add_argument("--data-root", type=str, metavar="FOLDER", help="local data sets; default: ../shared/data")
    made.add_argument("--out", type=str, metavar="FOLDER", help="folder of the run; default: reproductions/NAME")
    made.add_argument(
        "--part", type=str, action="append", metavar="NAME", help="run this part in this session, once for each"
    )
    made.add_argument("--executor", type=str, help="inline (this process, default), processes, or ray")
    made.add_argument("--workers", type=int, help="processes at a time; default: as cores and memory allow")
    made.add_argument("--memory", type=str, metavar="SIZE", help="memory for all processes, like 12GiB")
    made.add_argument("--address", type=str, help="of a running Ray cluster; default: one on this machine")
    made.add_argument("--threads", type=int, help="threads of each run; default: torch's, in workers one")
    made.add_argument("--overwrite", action="store_true", help="remove the run in --out and begin anew")
    made.add_argument("--keep", type=str, metavar="FOLDER", help="write the results in short form to FOLDER/NAME")
    made.add_argument(
        "--against", type=str, metavar="FOLDER", help="compare with the results in FOLDER/NAME; exit code 1 if outside"
    )
    made.add_argument("--no-page", action="store_true", help="write no report.html at the end")
    return made


def run(options: dict[str, Any]) -> int:
    """List, forecast or run artefacts.

    Args:
        options: What the user gave.

    Returns:
        The exit code: 0, or 1 where a claim does not agree with the results it is compared with, or none was compared.

    Raises:
        SpecError: No artefact is named, or options do nothing beside the others.
        UnknownNameError: There is no such scale.
    """
    from asymlora.papers.catalogue import NAMES, find
    from asymlora.reproduce.missing_inputs import DATA_ROOT

    _refuse_idle(options)
    root = Path(options.get("data_root") or DATA_ROOT)
    if options.get("list"):
        return _list(root, Path(options.get("keep") or KEPT))
    name = options.get("name")
    if name is None:
        raise SpecError(f"Which artefact? Name one of: {', '.join(NAMES)}. About them: asymlora reproduce --list.")
    artefact = find(name)
    scale_name = options.get("scale") or "small"
    if scale_name not in SCALES:
        raise UnknownNameError(
            f"--scale {scale_name} is none.{nearest(scale_name, SCALES)} Known: {', '.join(SCALES)}."
        )
    if options.get("dry_run"):
        return _forecast(artefact, scale_name, root)
    return _Reproduction(artefact, scale_name, root, options).run()


def _refuse_idle(options: Mapping[str, Any]) -> None:
    given = [name for name in _OF_RUNS if options.get(name)]
    what = "--list" if options.get("list") else "--dry-run" if options.get("dry_run") else None
    if options.get("list"):
        given = [*(name for name in given if name != "keep"), *(n for n in ("scale", "dry_run") if options.get(n))]
        if options.get("name"):
            raise SpecError(f"--list lists all artefacts; leave {options['name']} out, or --list.")
    if what and given:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SpecError(f"{what} does nothing with {shown}. Leave it out.")
    if options.get("overwrite") and options.get("part"):
        raise SpecError("--overwrite removes the whole run, and --part runs some of it: give one of them.")


# The list and the forecasts ------------------------------------------------------------------------------------------


def _list(root: Path, kept: Path) -> int:
    from rich.console import Console

    from asymlora.papers.catalogue import every
    from asymlora.report.reproduction_tables import list_table
    from asymlora.reproduce.artefact_folder import REPRODUCTIONS
    from asymlora.reproduce.forecasting import status

    rows: list[dict[str, Any]] = []
    for artefact in every():
        rows.append(
            {
                "name": artefact.name,
                "title": artefact.title,
                "minutes": artefact.small.minutes,
                "memory_gib": artefact.small.memory_gib,
                "status": status(artefact.small.parts(root), REPRODUCTIONS / artefact.name),
                "verdicts": _kept_verdicts(kept / artefact.name),
            }
        )
    Console().print(list_table(rows))
    return 0


def _kept_verdicts(path: Path) -> dict[str, int] | None:
    from asymlora.reproduce.claim import VERDICTS
    from asymlora.reproduce.kept_results import kept_findings

    counted = Counter(found.verdict for found in kept_findings(path).values())
    return {verdict: counted[verdict] for verdict in VERDICTS} if counted else None


def _forecast(artefact: Artefact, scale_name: Any, root: Path) -> int:
    from rich.console import Console

    from asymlora.report.reproduction_tables import claim_list, runs_table
    from asymlora.reproduce.artefact import SweepPart
    from asymlora.reproduce.forecasting import part_runs

    console, scale = Console(), artefact.scale(scale_name)
    parts = scale.parts(root)
    shown = parts if scale_name == "small" else [part for part in parts if not isinstance(part, SweepPart)]
    _print(console, f"{artefact.name}, {scale_name} scale: {artefact.title}")
    console.print()
    if scale_name == "paper" and len(shown) < len(parts):
        _print_arms(console, parts)
    if shown:
        console.print(runs_table([asdict(part_runs(part)) for part in shown]))
    console.print()
    console.print(claim_list([asdict(claim) for claim in artefact.claims], title="Claims and their tests"))
    for line in (*_stated(scale), *_data_lines(scale, root), *_lacking(scale, parts, root)):
        _print(console, line)
    return 0


def _print_arms(console: Any, parts: Sequence[Part]) -> None:
    from asymlora.report.reproduction_tables import arms_tables
    from asymlora.reproduce.arm_costs import ArmCosts
    from asymlora.reproduce.artefact import SweepPart

    costs = ArmCosts()
    arms = [arm for part in parts if isinstance(part, SweepPart) for arm in costs.of(part)]
    console.print(arms_tables([{**asdict(arm), "agreement": arm.agreement} for arm in arms]))
    labels: dict[tuple[str, str], list[str]] = {}
    for arm in arms:
        if arm.printed is not None:
            labels.setdefault((arm.printed.text, arm.printed.where), []).append(arm.arm)
    for (text, where), names in labels.items():
        _print(console, f"Printed, {text} for {', '.join(dict.fromkeys(names))}: {where}.")
    if not labels:
        _print(console, "Of the paper's counts of trained values none is known to us.")


def _stated(scale: Scale) -> list[str]:
    time_text = "not stated" if scale.minutes is None else f"about {scale.minutes:g} minutes of two cores"
    memory = "" if scale.memory_gib is None else f", {scale.memory_gib:g} GiB for the largest process"
    return [f"Model: {scale.model}"] * bool(scale.model) + [f"Time, as the artefact states it: {time_text}{memory}."]


def _data_lines(scale: Scale, root: Path) -> Iterator[str]:
    for data in scale.data:
        where = f", at {(root / data.place).as_posix()}" if data.place else ""
        yield f"Data: {data.name}{where}; public source: {data.source}"


def _lacking(scale: Scale, parts: Sequence[Part], root: Path) -> list[str]:
    from asymlora.reproduce.missing_inputs import missing_inputs

    missing = missing_inputs(scale, parts, data_root=root)
    if not missing:
        return ["All that it reads is here: run it without --dry-run."]
    return [f"Missing here: {said}." for said in (*missing.packages, *missing.data)]


# Runs ----------------------------------------------------------------------------------------------------------------


class _Reproduction:
    """One session: what is to be run, and what is said of it."""

    def __init__(self, artefact: Artefact, scale_name: Any, root: Path, options: Mapping[str, Any]) -> None:
        from rich.console import Console

        self.artefact, self.scale_name, self.root, self.options = artefact, scale_name, root, options
        self.short_name = artefact.name if scale_name == "small" else f"{artefact.name}-{scale_name}"
        self.typed: str = options.get("typed") or f"asymlora reproduce {artefact.name}"
        self.console = Console()

    def run(self) -> int:
        from asymlora.reproduce.artefact_folder import REPRODUCTIONS, claim_artefact
        from asymlora.sweep.choosing_executor import refuse_places

        option = self.options.get
        executor = option("executor") or "inline"
        refuse_places(executor, workers=option("workers"), memory=option("memory"), address=option("address"))
        kept = self._read_kept()
        path = Path(option("out") or REPRODUCTIONS / self.short_name)
        folder = claim_artefact(
            path, name=self.artefact.name, scale=self.scale_name, overwrite=bool(option("overwrite"))
        )
        self._refuse_missing(folder, executor)
        outcome = self._outcome(folder, executor)
        self._show(outcome, folder)
        if option("keep"):
            self._keep(folder)
        code = 0 if kept is None else self._compare(kept, outcome, folder)
        if not option("no_page"):
            self._write_page(folder.path)  # last: nothing else is lost with it
        return code

    def _refuse_missing(self, folder: ArtefactFolder, executor: str) -> None:
        from asymlora.reproduce.missing_inputs import missing_inputs, refuse_missing
        from asymlora.reproduce.running import to_be_run

        scale = self.artefact.scale(self.scale_name)
        names = to_be_run(self.artefact, folder, data_root=self.root, only=self.options.get("part") or ())
        parts = scale.parts(self.root)
        asked = [part for part in parts if part.name in names]
        others = [part for part in parts if part.name not in names]
        missing = missing_inputs(scale, asked, data_root=self.root, executor=executor, others=others)
        refuse_missing(missing, name=self.artefact.name, data_root=self.root)

    def _outcome(self, folder: ArtefactFolder, executor: str) -> Outcome:
        from asymlora.reproduce.measuring import measuring_in
        from asymlora.reproduce.running import Means, run_artefact
        from asymlora.sweep.choosing_executor import make_executor
        from asymlora.train.callbacks import quiet_transformers

        option = self.options.get
        quiet_transformers()
        threads: int | None = option("threads")
        if threads is not None:
            import torch

            torch.set_num_threads(threads)  # for what is measured in this process
        places = {name: option(name) for name in ("workers", "memory", "address")}
        means = Means(
            executor=lambda path: make_executor(executor, path, threads=threads, **places),
            threads=threads,
            command=self.typed,
            watcher=_Watcher(self.console),
            measuring=measuring_in(
                executor, workers=option("workers"), threads=threads, memory=option("memory"),
                memory_gib=self.artefact.scale(self.scale_name).memory_gib,
            ),
        )  # fmt: skip
        self._say(f"Folder of the run: {folder.path}")
        try:
            return run_artefact(self.artefact, folder, data_root=self.root, means=means, only=option("part") or ())
        except KeyboardInterrupt:
            again = shlex.join(word for word in shlex.split(self.typed) if word != "--overwrite")
            raise KeyboardInterrupt(f"Go on with: {again}") from None

    def _show(self, outcome: Outcome, folder: ArtefactFolder) -> None:
        from asymlora.report.reproduction_tables import verdict_list

        rows = [
            {"says": claim.says, "paper": claim.paper, **outcome.findings[claim.key].to_dict()}
            for claim in self.artefact.claims
        ]
        self.console.print()
        self.console.print(verdict_list(rows, title=f"{self.artefact.title}, {self.scale_name} scale"))
        self.console.print()
        for part, count in outcome.failed.items():
            self._say(f"{count} runs of part {part} have failed; the same command does them again.")
        if outcome.second:
            self._say(f"Gone on with after the first look: {', '.join(outcome.second)}.")
        if not outcome.finished:
            self._say("Not all of it has been run: the same command without --part goes on.")
        self._say(f"Records: {folder.path}")

    def _write_page(self, path: Path) -> None:
        folders = [str(part) for part in sorted(path.iterdir()) if (part / "sweep.yaml").is_file()]
        if not folders:
            return
        if importlib.util.find_spec("plotly") is None or importlib.util.find_spec("jinja2") is None:
            self._say("No page was written: it needs pip install 'asymlora[report]', then the same command again.")
            return
        from asymlora.commands.report import run as report

        report({"folders": folders, "out": str(path / "report.html"), "overwrite": True})

    def _read_kept(self) -> Kept | None:
        from asymlora.reproduce.kept_results import read_kept

        if not self.options.get("against"):
            return None
        kept = read_kept(Path(self.options["against"]) / self.short_name)
        if kept.scale != self.scale_name:
            raise SpecError(
                f"The results in {self.options['against']} are of the {kept.scale} scale, and this is the"
                f" {self.scale_name} scale. Give --scale {kept.scale}, or leave --against out."
            )
        return kept

    def _compare(self, kept: Kept, outcome: Outcome, folder: ArtefactFolder) -> int:
        from asymlora.report.reproduction_tables import agreement_table
        from asymlora.reproduce.agreement import compared
        from asymlora.reproduce.artefact_folder import read_evidence

        now = read_evidence(folder.path)
        known = {*now.sweeps, *now.measured} & set(kept.parts)
        parts = self.artefact.scale(self.scale_name).parts(self.root)
        unknown = [part.name for part in parts if part.name not in known]
        found = compared(self.artefact, kept=kept.findings, new=outcome.findings, unknown=unknown)
        rows = [
            {
                "key": each.key,
                "kept": None if each.kept is None else each.kept.to_dict(),
                "new": each.new.to_dict(),
                "agreement": each.agreement,
            }
            for each in found
        ]
        self.console.print()
        self.console.print(agreement_table(rows, title=f"Against {self.options['against']}/{self.short_name}"))
        if not outcome.new:
            self._say(
                f"Nothing was run now: these are the records that {folder.path} held before. For new ones give another"
                " --out."
            )
        outside = [each.key for each in found if each.agreement in ("outside", "another verdict")]
        if outside:
            self._say(f"Not as kept: {', '.join(outside)}.")
        nothing = all(each.agreement == "not compared" for each in found)
        if nothing:
            self._say("No claim was compared: no part that one reads has records both here and there.")
        return EXIT_OUTSIDE if outside or nothing else 0

    def _keep(self, folder: ArtefactFolder) -> None:
        from asymlora.reproduce.kept_results import keep

        target = Path(self.options["keep"]) / self.short_name
        keep(self.artefact, self.scale_name, folder.path, target, command=self.typed)
        self._say(f"Kept results: {target}")

    def _say(self, text: str) -> None:
        _print(self.console, text)


class _Watcher:
    """Tells a terminal how an artefact goes on."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._last = float("-inf")

    def stage(self, text: str) -> None:
        _print(self._console, text)

    @contextmanager
    def sweeping(self, part: str) -> Iterator[Any]:
        from asymlora.report.sweep_display import SweepDisplay

        with SweepDisplay(self._console) as display:
            yield display

    def measured(self, part: str, done: int, points: int) -> None:
        # Points may take a hundredth of a second.
        now = time.monotonic()
        if done == points or now - self._last > _LINES_EVERY:
            self._last = now
            self.stage(f"{part}: {done} of {points} points")


def _print(console: Any, text: str) -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
