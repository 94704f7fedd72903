"""The records of sweeps and runs in other forms than a page: Markdown, CSV, JSON. They lose nothing that they name."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, cast

from asymlora import __version__
from asymlora.report.sweep_tables import Sheet, cost_line, metric_text, sentences, sheets
from asymlora.sweep.rates import rate_text
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.sweep_folder import SweepRecords
from asymlora.train.recipe import yaml_text

FORMAT_VERSION = 1
_CURVES = ("losses", "scores", "dynamics")
"""Fields of a row that hold a value a step; one line of a CSV cannot."""
_NESTED = ("axes", "test", "before", "recipe")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a text begins with that spreadsheets take for a formula."""
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")
_INSIDE_A_WORD = re.compile(r"(?<=\w)\\_(?=\w)")


class Analysed(NamedTuple):
    """The records of a folder, and what was found in them.

    Attributes:
        records: The records.
        summary: As `asymlora.sweep.summary.Summary.to_dict` gives it.
    """

    records: SweepRecords
    summary: Mapping[str, Any]


def json_text(results: Sequence[Analysed], *, command: str) -> str:
    """Return everything as one JSON object: plan, environment, rows, similarity and summary of each folder.

    Args:
        results: The folders.
        command: What was typed.
    """
    content = {
        "kind": "asymlora report",
        "version": FORMAT_VERSION,
        "asymlora": __version__,
        "command": command,
        "results": [
            {
                "name": records.name,
                "plan": records.plan,
                "environment": records.environment,
                "sessions": records.sessions,
                "rows": [row.to_dict() for row in records.rows],
                "similarity": list(records.similarity),
                "summary": summary,
                "warnings": list(records.warnings),
            }
            for records, summary in results
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def csv_text(results: Sequence[Analysed]) -> str:
    """Return one line a run: what it was, how it ended, its metrics, its recipe under dotted names; no curves.

    A text that a spreadsheet would take for a formula has an apostrophe before it.

    Args:
        results: The folders.
    """
    lines = [{"folder": _cell(records.name), **_flat_row(row)} for records, _ in results for row in records.rows]
    # One order for all: the recipes of some rows have keys that others have not.
    own = list(dict.fromkeys(key for line in lines for key in line if not key.startswith("recipe.")))
    heads = own + sorted({key for line in lines for key in line if key.startswith("recipe.")})
    if not lines:
        heads = ["folder", *(field.name for field in fields(RunRow) if field.name not in (*_CURVES, *_NESTED))]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def markdown(results: Sequence[Analysed], *, command: str) -> str:
    """Return tables, verdicts and provenance as Markdown (tables as GitHub and most others read them).

    Args:
        results: The folders.
        command: What was typed.
    """
    parts = [_folder(records, summary) for records, summary in results]
    return "\n".join([*parts, f"Made by asymlora {__version__} with `{command.replace('`', chr(39))}`.", ""])


def _folder(records: SweepRecords, summary: Mapping[str, Any]) -> str:
    lines = [f"# {escaped(records.name)}", "", escaped(summary["answer"]), ""]
    if not summary["finished"]:
        lines += ["This sweep has not ended: what follows goes as far as it went.", ""]
    for sheet in (*sheets(summary, wide=True), _every_rate(summary)):
        lines += _table(sheet)
    lines += [escaped(cost_line(summary)), ""]
    for heading, said in (*sentences(summary).items(), ("Warnings", list(records.warnings))):
        if said:
            lines += [f"## {heading}", "", *(f"- {escaped(line)}" for line in said), ""]
    return "\n".join([*lines, *_provenance(records)])


def _every_rate(summary: Mapping[str, Any]) -> Sheet:
    rows = [
        (
            cell["label"],
            rate_text(point["lr"]),
            point["status"],
            metric_text(summary, point["mean"]),
            ", ".join(f"{value['seed']}: {metric_text(summary, value['value'])}" for value in point["values"]) or "-",
            "-" if point["mean_loss"] is None else f"{point['mean_loss']:.3f}",
        )
        for cell in summary["cells"]
        for point in cell["rates"]
    ]
    heads = ("cell", "rate", "ended", "validation, mean", "by seed", "training loss")
    return Sheet("Every rate that was tried", heads, tuple(rows))


def _table(sheet: Sheet) -> list[str]:
    if not sheet.rows:
        return []
    rows = [sheet.heads, ("---",) * len(sheet.heads), *[tuple(map(escaped, row)) for row in sheet.rows]]
    return [f"## {sheet.title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _provenance(records: SweepRecords) -> list[str]:
    environment = _items(records.environment)
    commands = [f"- {escaped(str(each['command']))}" for each in records.sessions if each.get("command")]
    plan = _items({key: value for key, value in records.plan.items() if key != "recipe"})
    recipe = yaml_text(records.plan.get("recipe") or {})
    # Longer than any in the recipe: a prompt's template may hold one.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0))
    return [
        f"## Where the figures of {escaped(records.name)} come from",
        "",
        f"{len(records.rows)} rows of `runs.jsonl`." if len(records.rows) != 1 else "One run.",
        "",
        *(["### Commands", "", *commands, ""] if commands else []),
        *(["### Environment", "", *environment, ""] if environment else []),
        *(["### Plan", "", *plan, ""] if plan else []),
        *("### Recipe", "", f"{fence}yaml", recipe.rstrip(), fence, ""),
    ]


def _items(mapping: Mapping[str, Any]) -> list[str]:
    return [
        f"- {escaped(key)}: {escaped(json.dumps(value, ensure_ascii=False))}" for key, value in flat(mapping).items()
    ]


def _flat_row(row: RunRow) -> dict[str, Any]:
    plain = row.to_dict()
    single = {key: _cell(value) for key, value in plain.items() if key not in (*_CURVES, *_NESTED)}
    nested = {key: _cell(value) for name in _NESTED for key, value in flat(plain[name] or {}, f"{name}.").items()}
    return {**single, **nested}


def flat(mapping: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under their dotted names; an empty mapping is a leaf.

    Args:
        mapping: The mapping.
        where: What stands before the names.

    Example:
        >>> flat({"a": {"b": 1, "c": {}}, "d": [2]})
        {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            leaves.update(flat(cast("Mapping[str, Any]", value), f"{where}{key}."))
        else:
            leaves[f"{where}{key}"] = value
    return leaves


def _cell(value: Any) -> Any:
    # JSON's words, so that a reader tells true from "true" by the column alone and lists come back as they were.
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | tuple | dict) else value


def escaped(value: Any) -> str:
    r"""Return a value as Markdown text on one line, in which nothing is markup.

    Example:
        >>> escaped("b_only | <b>*x*")
        'b_only \\| \\<b\\>\\*x\\*'
    """
    return _INSIDE_A_WORD.sub("_", _SPECIAL.sub(r"\\\1", " ".join(str(value).split())))
