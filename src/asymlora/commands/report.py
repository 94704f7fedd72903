"""``asymlora report``: sweeps and runs as a page, or as Markdown, CSV or JSON, from their records alone."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.atomic import write_file
from asymlora.commands.theory import check_file
from asymlora.errors import RunExistsError, SpecError

if TYPE_CHECKING:
    from asymlora.report.formats import Analysed

ENDINGS = {"html": ".html", "md": ".md", "csv": ".csv", "json": ".json"}
_MARKS = {
    "html": '<meta name="generator" content="asymlora"',
    "md": "Made by asymlora ",
    "csv": "folder,id,phase,arm,",
    "json": '"kind": "asymlora report"',
}
"""What stands in every file of a format that was written here, and hardly in another."""


def parser() -> Any:
    """Return the parser."""
    from jsonargparse import ArgumentParser

    made = ArgumentParser(
        usage="asymlora report FOLDER [FOLDER ...] [options]",
        description="Write what sweeps and runs of asymlora finetune found, ended or not: as a page that needs no"
        " network, as Markdown, as CSV with a line a run, or as JSON with everything.",
        exit_on_error=False,
    )
    made.add_argument("folders", nargs="+", metavar="FOLDER", help="folder of a sweep or of a run")
    made.add_argument(
        "--out", type=str, metavar="FILE", help="default: report.html in the folder; of several folders, here"
    )
    made.add_argument("--format", type=str, metavar="NAME", help="html, md, csv or json; default: by --out, or html")
    made.add_argument("--overwrite", action="store_true", help="replace --out even where it is no report")
    return made


def run(options: dict[str, Any]) -> int:
    """Read, analyse and write.

    Args:
        options: What the user gave.

    Returns:
        The exit code.
    """
    form = _format(options.get("format"), options.get("out"))
    folders: list[str] = options["folders"]
    endings = tuple(ENDINGS.values()) if options.get("format") is None else (ENDINGS[form],)
    out = _out(options.get("out"), folders, form=form, endings=endings)
    _refuse_foreign(out, form, named=options.get("out") is not None, overwrite=bool(options.get("overwrite")))
    from rich.console import Console

    from asymlora.sweep.run_folders import read_results

    results = [_analysed(records) for records in read_results(folders)]
    write_file(out, _WRITERS[form](results, _command(options)))
    console = Console()
    for records, summary in results:
        for warning in (
            *records.warnings,
            *([] if summary["finished"] or records.warnings else [_unfinished(records)]),
        ):
            console.print(warning, markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.print(f"Report: {out}", markup=False, highlight=False, emoji=False, soft_wrap=True)
    return 0


def _format(asked: str | None, out: str | None) -> str:
    by_ending = {ending: name for name, ending in ENDINGS.items()}
    if asked is None:
        return by_ending.get(Path(out).suffix, "html") if out else "html"
    if asked not in ENDINGS:
        raise SpecError(f"--format {asked} is none. Allowed: {', '.join(ENDINGS)}.")
    return asked


def _out(out: str | None, folders: Sequence[str], *, form: str, endings: Sequence[str]) -> Path:
    if out is not None:
        check_file(out, "out", endings)
        return Path(out)
    return (Path(folders[0]) if len(folders) == 1 else Path()) / f"report{ENDINGS[form]}"


def _refuse_foreign(out: Path, form: str, *, named: bool, overwrite: bool) -> None:
    if not out.exists() or overwrite:
        return
    # A report beside its own records may always be made anew; a file that was named may be wanted as it is.
    if named or not _was_written_here(out, form):
        raise RunExistsError(f"{out} exists. Choose another name with --out, or replace it with --overwrite.")


def _was_written_here(path: Path, form: str) -> bool:
    return path.is_file() and _MARKS[form] in path.read_text(encoding="utf-8", errors="replace")


def _analysed(records: Any) -> Analysed:
    from asymlora.report.formats import Analysed
    from asymlora.sweep.analysis import analyse
    from asymlora.sweep.run_folders import is_run
    from asymlora.sweep.sweep_folder import SweepFolder

    summary = analyse(records.plan, records.rows).to_dict()
    if summary != records.summary and not is_run(records.path):
        with contextlib.suppress(OSError):  # results may lie where nothing can be written; the report says the same
            SweepFolder(path=records.path).write_summary(summary)
    return Analysed(replace(records, summary=summary), summary)


def _page(results: Sequence[Analysed], command: str) -> str:
    from asymlora.report.sweep_page import sweep_page

    return sweep_page([records for records, _ in results], command=command)


def _markdown(results: Sequence[Analysed], command: str) -> str:
    from asymlora.report.formats import markdown

    return markdown(results, command=command)


def _csv(results: Sequence[Analysed], command: str) -> str:
    from asymlora.report.formats import csv_text

    return csv_text(results)


def _json(results: Sequence[Analysed], command: str) -> str:
    from asymlora.report.formats import json_text

    return json_text(results, command=command)


_WRITERS: dict[str, Callable[[Sequence[Analysed], str], str]] = {
    "html": _page, "md": _markdown, "csv": _csv, "json": _json,
}  # fmt: skip


def _unfinished(records: Any) -> str:
    return f"The sweep in {records.path} has not ended; the report goes as far as it went."


def _command(options: dict[str, Any]) -> str:
    words = ["asymlora", "report", *options["folders"]]
    words += [part for name in ("out", "format") if options.get(name) for part in (f"--{name}", options[name])]
    return shlex.join([*words, *(["--overwrite"] if options.get("overwrite") else [])])
