"""Tables and figures of the papers' simulations, from their records."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asymlora.report.plots import Figure, line_plot
from asymlora.report.tables import plain_table
from asymlora.theory.best_rates import best_rate
from asymlora.theory.width_fits import fit_slope
from asymlora.theory.width_scaling import Exponent, scaling_exponents, stability_edge

Record = Mapping[str, Any]
STARTS = {
    "init_a": "Init[A]",
    "init_b": "Init[B]",
    "init_b_small": "Init[B] 1/n",
    "init_ab": "Init[AB]",
    "b_only": "B only",
    "a_only": "A only",
}
"""Names of `asymlora.theory.width_scaling.SCHEMES` for people; the variance of ``B`` is 1/r where no 1/n is said."""


def stability_table(records: Sequence[Record]) -> RenderableType:
    """Return measured exponents beside those of the calculus, and the slopes of the largest stable rates.

    Args:
        records: Of ``asymlora theory stability``.
    """
    fits = [r for r in records if r["kind"] == "exponents"]
    parts = {"Z_A": "Z_A", "Z_B": "Z_B", "delta1": "δ1", "delta2": "δ2", "delta3": "δ3"}
    table = plain_table(
        f"Exponents in the width after {fits[0]['step'] + 1} updates, and those of the calculus",
        "n^: the learning rate, of A and of B where they differ. Init[B] has variance 1/r, the others 1/n. Where"
        " measurement and calculus differ a sum of two orders is still settling at these widths.",
    )
    table.add_column("start", no_wrap=True)
    for head in ("n^", *parts.values()):
        table.add_column(head, justify="right", no_wrap=True)
    for row in fits:
        rate_A, rate_B = row["rate_A"], row["rate_A"] if row["rate_B"] is None else row["rate_B"]
        by_rule = scaling_exponents(
            row["scheme"], Exponent.of(str(rate_A)), Exponent.of(str(rate_B)), updates=row["step"] + 1
        )
        rates = f"{rate_A:g}" if rate_A == rate_B else f"{rate_A:g}, {rate_B:g}"
        cells = [f"{row[part]:.2f} [dim]{_shown(getattr(by_rule, part)):>4}[/dim]" for part in parts]
        table.add_row(STARTS[row["scheme"]], rates, *cells)
    return Group(table, Text(), _edges([r for r in records if r["kind"] == "largest stable rate"]))


def _edges(records: Sequence[Record]) -> Table:
    table = plain_table("Largest stable learning rate: slope in the width")
    for head, justify in (("start", "left"), ("measured", "right"), ("by the calculus", "right")):
        table.add_column(head, justify=justify)  # pyright: ignore[reportArgumentType]
    for scheme in dict.fromkeys(r["scheme"] for r in records):
        rates: dict[int, list[float]] = {}
        for row in records:
            if row["scheme"] == scheme:
                rates.setdefault(row["width"], []).append(row["rate"])
        slope = fit_slope(list(rates), [statistics.geometric_mean(found) for found in rates.values()])
        table.add_row(STARTS[scheme], f"{slope.exponent:.2f} ± {slope.error:.2f}", _shown(stability_edge(scheme)))
    return table


def _shown(exponent: Exponent) -> str:
    return "-inf" if exponent.value is None else str(exponent.value)


def stability_figure(records: Sequence[Record]) -> Figure:
    """Return the largest stable learning rate against the width, a line a start.

    Args:
        records: Of ``asymlora theory stability``.
    """
    edges = [dict(r) | {"scheme": STARTS[r["scheme"]]} for r in records if r["kind"] == "largest stable rate"]
    return line_plot(
        edges,
        x="width",
        y="rate",
        by="scheme",
        title="Largest stable learning rate of one LoRA layer under SignSGD, against its width",
        labels={"width": "width n", "rate": "largest stable learning rate", "scheme": "start"},
        log="xy",
    )


def toy_table(records: Sequence[Record]) -> RenderableType:
    """Return the best learning rate and what it reaches, by width and start.

    Args:
        records: Of ``asymlora theory toy``.
    """
    table = plain_table(
        f"Teacher and student: best of {len({r['rate'] for r in records})} learning rates by training loss",
        "Losses: mean over seeds. * The best rate is the grid's first or last: another may be better."
        " between: the lowest point of a parabola through the best rate and its neighbours.",
    )
    table.add_column("width", justify="right")
    table.add_column("start", no_wrap=True)
    for head in ("best rate", "between", "train loss", "± s.e.", "test loss", "|Z_A|", "|Z_B|"):
        table.add_column(head, justify="right")
    arms = dict.fromkeys((r["width"], r["scheme"]) for r in records)
    for width, scheme in arms:
        arm = [r for r in records if (r["width"], r["scheme"]) == (width, scheme)]
        best = best_rate(arm)
        there = [r for r in arm if r["rate"] == best.argmin]
        means = {name: statistics.fmean(r[name] for r in there) for name in ("test_loss", "Z_A", "Z_B")}
        table.add_row(
            str(width),
            STARTS.get(scheme, scheme),
            f"{best.argmin:.3g}{'*' if best.at_edge else ''}",
            f"{best.parabola:.3g}" if best.parabola else "-",
            f"{best.loss:.2e}",
            f"{best.standard_error:.0e}" if best.seeds > 1 else "-",
            f"{means['test_loss']:.2e}",
            f"{means['Z_A']:.2f}",
            f"{means['Z_B']:.2f}",
        )
    return table


def toy_figure(records: Sequence[Record]) -> Figure:
    """Return the training loss against the learning rate, a line for each start at the smallest and largest width.

    Args:
        records: Of ``asymlora theory toy``.
    """
    ends = sorted({r["width"] for r in records})
    chosen = [
        dict(r) | {"arm": f"{STARTS.get(r['scheme'], r['scheme'])}, n = {r['width']}"}
        for r in records
        if r["width"] in (ends[0], ends[-1])
    ]
    return line_plot(
        chosen,
        x="rate",
        y="train_loss",
        by="arm",
        title="Teacher and student: training loss after each learning rate (median and range over seeds)",
        labels={"rate": "learning rate", "train_loss": "training loss", "arm": "start and width"},
        log="xy",
    )


def gap_table(records: Sequence[Record]) -> RenderableType:
    """Return how often training ``B`` alone wins, and the criterion's prediction, case by case.

    Args:
        records: Of ``asymlora theory gap``.
    """
    table = plain_table(
        "Which factor to train: B alone over a frozen A, or A alone under a frozen B",
        "by B, by A: fraction explained of what the wanted update moves. by rule: the ratio that the criterion gives.",
    )
    for head in ("in, out", "decay", "wanted", "rank", "B wins", "by B", "by A", "ratio", "by rule"):
        table.add_column(head, justify="left" if head == "wanted" else "right", no_wrap=True)
    keys = ("inputs", "outputs", "decay", "wanted", "rank")
    for case in dict.fromkeys(tuple(r[k] for k in keys) for r in records):
        rows = [r for r in records if tuple(r[k] for k in keys) == case]
        by_B, by_A = (statistics.fmean(r[name] for r in rows) for name in ("explained_A", "explained_B"))
        table.add_row(
            f"{case[0]}, {case[1]}", f"{case[2]:g}", str(case[3]), str(case[4]),
            f"{statistics.fmean(r['B_only_wins'] for r in rows):.2f}", f"{by_B:.3f}", f"{by_A:.3f}",
            f"{by_B / by_A:.2f}", f"{statistics.fmean(r['predicted_ratio'] for r in rows):.2f}",
        )  # fmt: skip
    return table


def gap_figure(records: Sequence[Record]) -> Figure:
    """Return the ratio of what the factors explain against the decay of the input variances, with both predictions.

    Args:
        records: Of ``asymlora theory gap``.
    """
    names = {
        "ratio": "measured",
        "predicted_ratio": "criterion at the rank",
        "simple_ratio": "criterion, limit of small rank",
    }
    square = [r for r in records if r["inputs"] == r["outputs"] and r["wanted"] == "generic"]
    rank = min(r["rank"] for r in square)
    rows = [
        {"decay": r["decay"], "value": r[name], "which": words}
        for name, words in names.items()
        for r in square
        if r["rank"] == rank
    ]
    return line_plot(
        rows,
        x="decay",
        y="value",
        by="which",
        title=f"What training B alone explains over what A alone does (square layer, rank {rank})",
        labels={
            "decay": "exponent of the power law of the input variances",
            "value": "explained by B / by A",
            "which": "",
        },
        log="y",
    )


TABLES: dict[str, Callable[[Sequence[Record]], RenderableType]] = {
    "toy": toy_table,
    "stability": stability_table,
    "gap": gap_table,
}
FIGURES: dict[str, Callable[[Sequence[Record]], Figure]] = {
    "toy": toy_figure,
    "stability": stability_figure,
    "gap": gap_figure,
}
