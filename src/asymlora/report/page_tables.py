"""Tables of a sweep's page, as plain texts: what closing runs reached, pairs, cost, runs and what they ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asymlora.report.cost_tables import size
from asymlora.report.page_data import row_label
from asymlora.report.sweep_tables import (
    PHASES,
    duration,
    gain,
    interval_head,
    interval_text,
    metric_text,
    octaves_text,
    place_text,
    rate_or_dash,
)
from asymlora.sweep.rates import rate_text
from asymlora.sweep.run_record import RunRow

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table in plain texts.

    Attributes:
        caption: What it shows.
        heads: Names of the columns.
        rows: Texts, one for each column.
        words: Numbers of the columns that hold words; the others hold numbers.
        strong: Numbers of the rows that stand out.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
    strong: Sequence[int] = ()


def results_table(summary: Record) -> PageTable:
    """Return what the closing runs of each cell reached on the test part, and what was found of its rate.

    Args:
        summary: As `asymlora.sweep.summary.Summary.to_dict` gives it.
    """
    metric = summary["metric"] or "metric"
    heads = ["arm", f"test {metric}", interval_head(summary), "gain", "seeds", "best rate", "which lies", "validation"]
    heads += ["octaves", "unstable from", "trained"]
    rows = [
        [
            cell["label"],
            metric_text(summary, cell["mean"]),
            interval_text(summary, cell["interval"]),
            metric_text(summary, gain(summary, cell), sign=True),
            str(len(cell["closing"])),
            rate_or_dash(cell["closing_rate"] or cell["best_rate"]),
            place_text(cell),
            metric_text(summary, cell["best_validation"]),
            octaves_text(cell["basin"]),
            rate_or_dash(cell["divergence_edge"]),
            f"{cell['trained_parameters']:,}" if cell["trained_parameters"] else "-",
        ]
        for cell in summary["cells"]
    ]
    best = best_cell(summary)
    strong = [number for number, cell in enumerate(summary["cells"]) if best and cell["label"] == best["label"]]
    less = "" if summary["greater_is_better"] else " Less is better."
    caption = (
        f"Test part, fresh seeds at each arm's best rate; the arm with the best mean in bold.{less} Gain: over the"
        " model before the first step. Octaves: width of the rates within one noise floor of the best."
    )
    return PageTable(caption=caption, heads=heads, rows=rows, words=(0, 6), strong=strong)


def pairs_table(summary: Record) -> PageTable:
    """Return every comparison of two cells.

    Args:
        summary: As for `results_table`.
    """
    rows = [
        [
            pair["first"],
            pair["second"],
            metric_text(summary, pair["mean"], sign=True),
            _difference_interval(summary, pair["interval"]),
            str(len(pair["differences"])),
            _p_text(pair["p"]),
            _p_text(pair["p_adjusted"]),
            _p_text(pair["p_beyond"]),
            pair["outcome"],
            "-" if pair["seeds_needed"] is None else f"{pair['seeds_needed']:,}",
        ]
        for pair in summary["comparisons"]
    ]
    heads = ["first", "second", "first less second", "interval", "pairs", "p", "p, Holm", "p, beyond", "outcome"]
    heads.append("pairs needed")
    caption = (
        "Differences on the test part, paired by seed; p of the sign-flip test. Beyond: p, corrected by Holm, of what"
        " is left of the difference once another rate is allowed for; it decides which arm is better. Pairs needed: to"
        " find a difference as large as this one with a probability of 80 %."
    )
    return PageTable(caption=caption, heads=heads, rows=rows, words=(0, 1, 8))


def cost_table(summary: Record, rows: Sequence[RunRow]) -> PageTable:
    """Return what each cell trains and what its runs took.

    Args:
        summary: As for `results_table`.
        rows: Rows of the sweep.
    """
    texts = [_cost(cell, [row for row in rows if row_label(row) == cell["label"]]) for cell in summary["cells"]]
    whole, searching = summary["cost"].get("all"), _searching(summary)
    if searching:
        texts.append(["searching", "", "", *_spent([searching]), ""])
    if whole:
        texts.append(["all", "", "", *_spent([whole]), ""])
    heads = [
        "arm",
        "trained values",
        "of them head",
        "runs",
        "steps",
        "not taken",
        "run time",
        "FLOPs",
        "largest memory",
    ]
    caption = (
        "What was trained and what it took. Not taken: steps that early stopping saved, of those planned. Run time:"
        " setup, steps and scoring, summed over runs. Memory: of the process that ran them."
    )
    strong = [len(texts) - 1] if whole else []
    return PageTable(caption=caption, heads=heads, rows=texts, strong=strong)


def runs_table(summary: Record, rows: Sequence[RunRow]) -> PageTable:
    """Return one line for each run; its number is what figures name.

    Args:
        summary: As for `results_table`.
        rows: Rows of the sweep, in the order of the store.
    """
    metric = summary["metric"]
    texts = [
        [
            str(number),
            row.id,
            row.phase,
            row_label(row),
            rate_text(row.lr),
            str(row.seed),
            row.status,
            f"{row.steps:,}",
            metric_text(summary, row.validation),
            metric_text(summary, (row.test or {}).get(metric)),
            duration(row.setup_seconds + row.train_seconds + row.evaluate_seconds),
            " ".join([*([row.error] if row.error else []), *row.health]),
        ]
        for number, row in enumerate(rows, 1)
    ]
    heads = ["run", "id", "phase", "arm", "rate", "seed", "status", "steps", "validation", "test", "time", "remarks"]
    return PageTable(
        caption="Every run of runs.jsonl, in the order in which they ended.",
        heads=heads,
        rows=texts,
        words=(1, 2, 3, 6, 11),
    )


def environment_table(environment: Record) -> PageTable:
    """Return what the sweep ran on.

    Args:
        environment: As `asymlora.train.run_folder.environment` gives it; empty where it is not known.
    """
    packages: Record = environment.get("packages", {})
    named = {"python": "Python", "system": "system", "cpus": "processors", "threads": "threads"}
    rows = [[words, str(environment[key])] for key, words in named.items() if key in environment]
    if environment:
        rows.append(["accelerator", str(environment.get("accelerator") or "none")])
    rows += [[name, str(version)] for name, version in packages.items()]
    return PageTable(caption="Versions and hardware", heads=["what", "which"], rows=rows, words=(0, 1))


def best_cell(summary: Record) -> Record | None:
    """Return the cell with the best mean on the test part, or None while there is none.

    Args:
        summary: As for `results_table`.
    """
    known = [cell for cell in summary["cells"] if cell["mean"] is not None]
    sign = 1 if summary["greater_is_better"] else -1
    return max(known, key=lambda cell: sign * cell["mean"], default=None)


def _cost(cell: Record, rows: Sequence[RunRow]) -> list[str]:
    peaks = [row.peak_memory_bytes for row in rows if row.peak_memory_bytes is not None]
    spent = [cell["cost"][phase] for phase in PHASES if phase in cell["cost"]]
    trained, head = cell["trained_parameters"], cell["head_parameters"]
    return [
        cell["label"],
        f"{trained:,}" if trained else "-",
        f"{head:,}" if trained else "-",
        *_spent(spent),
        size(max(peaks)) if peaks else "-",
    ]


def _searching(summary: Record) -> Record | None:
    """What searches have taken that have not ended: before that, their points belong to no cell."""
    whole = summary["cost"].get("search")
    inside = [cell["cost"]["search"] for cell in summary["cells"] if "search" in cell["cost"]]
    if whole is None or sum(each["runs"] for each in inside) >= whole["runs"]:
        return None
    return {key: None if value is None else value - sum(each[key] for each in inside) for key, value in whole.items()}


def _spent(spent: Sequence[Record]) -> list[str]:
    runs, steps, planned, saved = (
        sum(each[key] for each in spent) for key in ("runs", "steps", "planned_steps", "saved_steps")
    )
    flops = [each["flops"] for each in spent]
    known = flops and None not in flops
    share = f"{saved:,} ({saved / planned:.0%})" if saved else "0"
    seconds = duration(sum(each["seconds"] for each in spent))
    return [f"{runs:,}", f"{steps:,}", share, seconds, f"{sum(flops):.2e}" if known else "-"]


def _difference_interval(summary: Record, interval: Record | None) -> str:
    if interval is None:
        return "-"
    return " to ".join(metric_text(summary, interval[end], sign=True) for end in ("low", "high"))


def _p_text(p: float | None) -> str:
    return "-" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"
