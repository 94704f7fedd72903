"""The page of one or several sweeps: one HTML file from records alone that needs no network and allows none.

Its policy (CSP) lets run the scripts that it carries, told by their SHA-256, and nothing else; no request is allowed.
What its script draws from is in `asymlora.report.page_data`, its tables in `asymlora.report.page_tables`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from asymlora.errors import DataError, MissingPackageError
from asymlora.report.page_data import page_data, spans
from asymlora.report.page_tables import (
    best_cell,
    cost_table,
    environment_table,
    pairs_table,
    results_table,
    runs_table,
)
from asymlora.report.plots import COLOURS
from asymlora.report.sweep_tables import cost_line, duration, interval_head, interval_text, metric_text, sentences
from asymlora.sweep.analysis import analyse
from asymlora.sweep.rates import rate_text
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.sweep_folder import SweepRecords
from asymlora.train.recipe import yaml_text

SCRIPTS = ("drawing.js", "figures.js", "page.js")
_TUNING = ("tuning", "search")
_FIGURES = {
    "metric": _TUNING,
    "loss": _TUNING,
    "closing": ("closing",),
    "curves": ("closing",),
    "dynamics": ("closing",),
}
"""Figures by the phases of the runs that they show at first; the page says what is drawn after another choice."""

_INSTEAD = {"metric": ("closing",), "loss": ("closing",), "curves": _TUNING, "dynamics": _TUNING}
"""What they show where there are none of these."""


def sweep_page(records: Sequence[SweepRecords], *, command: str) -> str:
    """Return the page.

    Args:
        records: What sweeps have left, as `asymlora.sweep.sweep_folder.read_sweep` reads it; finished or not.
        command: What wrote the page.

    Returns:
        A whole HTML document.

    Raises:
        DataError: There is nothing to show.
        MissingPackageError: Jinja2 or Plotly is not installed.
    """
    if not records:
        raise DataError("There is no sweep to show. Give at least one folder of a sweep.")
    template = _template()
    names = _names(records)
    sweeps = [_sweep(each, name) for each, name in zip(records, names, strict=True)]
    data: dict[str, Any] = {"sweeps": [sweep.pop("data") for sweep in sweeps], "colours": COLOURS}
    scripts = [_plotly_script(), *(_read(name) for name in SCRIPTS)]
    return template.render(
        sweeps=sweeps,
        title=f"Sweep {names[0]}" if len(names) == 1 else f"Sweeps {', '.join(names)}",
        command=command,
        style=_read("page.css"),
        scripts=scripts,
        policy=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        data=inert_json(data),
        has_similarity=any(sweep["similarity"]["pairs"] for sweep in data["sweeps"]),
    )


def inert_json(value: Any) -> str:
    r"""Return JSON that no HTML parser takes for anything else, wherever it stands.

    Args:
        value: Plain values; numbers are finite.

    Example:
        >>> inert_json({"name": "</script>"})
        '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _sweep(records: SweepRecords, name: str) -> dict[str, Any]:
    """Return what the template says of one sweep, and ``data`` for the script."""
    rows = list(records.rows)
    summary = records.summary or analyse(records.plan, rows).to_dict()
    said = sentences(summary)
    said.pop("Verdicts")
    recipe: Mapping[str, Any] = records.plan.get("recipe") or {}
    similarity = list(records.similarity)
    sources = _sources(rows, similarity)
    return {
        "data": page_data(rows, similarity=similarity, summary=summary, name=name) | {"sources": sources},
        "name": name,
        "answer": summary["answer"],
        "verdicts": [_led(pair) for pair in summary["comparisons"]],
        "remarks": [*records.warnings, *(line for lines in said.values() for line in lines)],
        "finished": summary["finished"],
        "tiles": _tiles(summary, rows),
        "results": results_table(summary),
        "pairs": pairs_table(summary),
        "cost": cost_table(summary, rows),
        "cost_line": cost_line(summary),
        "runs": runs_table(summary, rows),
        "environment": environment_table(records.environment),
        "commands": [str(each["command"]) for each in records.sessions if each.get("command")],
        "recipe": yaml_text(recipe),
        "plan": yaml_text({key: value for key, value in records.plan.items() if key != "recipe"}),
        "sources": sources,
    }


def _tiles(summary: Mapping[str, Any], rows: Sequence[RunRow]) -> list[tuple[str, str, str]]:
    """Return name, figure and a line below it, of what is worth a large figure."""
    tiles: list[tuple[str, str, str]] = []
    best = best_cell(summary)
    if best is not None:
        level = f"; {interval_head(summary)}: {interval_text(summary, best['interval'])}" if best["interval"] else ""
        tiles.append(
            (f"best test {summary['metric']}", metric_text(summary, best["mean"]), _shortened(best["label"]) + level)
        )
        tiles.append(("its learning rate", rate_text(best["closing_rate"]), _where(best)))
        tiles.append(_seeds_tile(best, rows))
    counts = Counter(row.status for row in rows)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    tiles.append(("runs", f"{len(rows):,}", told))
    whole = summary["cost"].get("all")
    if whole:
        tiles.append(("run time", duration(whole["seconds"]), f"{whole['steps']:,} steps"))
    return tiles


def _seeds_tile(best: Mapping[str, Any], rows: Sequence[RunRow]) -> tuple[str, str, str]:
    closing = {value["seed"] for value in best["closing"]}
    choosing = {row.seed for row in rows if row.phase in _TUNING}
    if closing & choosing or not choosing:
        return "seeds", str(len(closing)), "some of them chose the rate too" if choosing else "the rate was not tuned"
    return "fresh seeds", str(len(closing)), "none of them chose the rate"


def _led(pair: Mapping[str, Any]) -> tuple[str, str]:
    """Return a verdict's first sentence, which names both arms (a name may hold anything), and the rest."""
    sentence: str = pair["sentence"]
    names = f"{pair['first']} and {pair['second']}"
    start = len(names) if sentence.startswith(names) else 0
    end = sentence.find(". ", start) + 1 or len(sentence)
    return sentence[:end], sentence[end:].strip()


def _shortened(label: str) -> str:
    return label if len(label) <= 40 else f"{label[:26]}…{label[-13:]}"


def _where(cell: Mapping[str, Any]) -> str:
    tried = len(cell["rates"])
    return f"{cell['best_at']} of {tried} rates" if cell["best_at"] and tried > 1 else ""


def _sources(rows: Sequence[RunRow], similarity: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return, by figure, which records it is drawn from."""
    sources: dict[str, str] = {}
    for figure, phases in _FIGURES.items():
        there = {row.phase for row in rows}
        shown = phases if there & set(phases) else _INSTEAD.get(figure, ())
        numbers = [number for number, row in enumerate(rows, 1) if row.phase in shown]
        found = " and ".join(phase for phase in shown if phase in there)
        some = f"runs {spans(numbers)} of runs.jsonl ({found})" if numbers else "nothing yet"
        sources[figure] = some
    # Of many closing runs, only some have their adapters compared.
    compared = {PurePosixPath(str(pair[end])).name for pair in similarity for end in ("first", "second")}
    numbers = [number for number, row in enumerate(rows, 1) if row.id in compared]
    sources["similarity"] = f"{len(similarity):,} rows of similarity.jsonl, between runs {spans(numbers)} of runs.jsonl"
    return sources


def _names(records: Sequence[SweepRecords]) -> list[str]:
    seen: Counter[str] = Counter()
    names: list[str] = []
    for each in records:
        seen[each.name] += 1
        names.append(each.name if seen[each.name] == 1 else f"{each.name} ({seen[each.name]})")
    return names


def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise MissingPackageError("The page needs Jinja2: pip install 'asymlora[report]'") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("page.html.j2"))


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs  # pyright: ignore
    except ImportError:
        raise MissingPackageError("The page needs Plotly: pip install 'asymlora[report]'") from None
    return str(get_plotlyjs())


def _read(name: str) -> str:
    return resources.files("asymlora.report").joinpath("templates", name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
