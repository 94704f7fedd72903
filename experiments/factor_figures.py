"""Draw the figures and print the tables of docs/diagnostics.md, from what the two factor experiments have stored."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asymlora.report.plots import COLOURS, Figure, heat_map, line_plot
from factor_dynamics import ARMS, FULL, QUANTITIES
from factor_similarity import MOMENTS, STARTS
from pair_statistics import PANELS
from paired_runs import RESULTS, read_records

# Figures -------------------------------------------------------------------------------------------------------------

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
SPREAD = ("0.25", "median", "0.75")
"""Quantiles that are drawn; their median is the line, their range the band."""
GRID = (("Z_A", "Z_B", ""), ("delta1", "delta2", "delta3"))
PANEL_TITLES = {
    "Z_A": "Z_A",
    "Z_B": "Z_B",
    "delta1": "delta1: A moves, B held",
    "delta2": "delta2: B moves, A held",
    "delta3": "delta3: both move",
}
DASHES = ("solid", "dash", "dot", "dashdot")
START_WORDS = {"standard": "A random, B zero", "reversed": "A zero, B random (reversed)"}
PANEL_WORDS = {
    "same task": "same task,<br>other start",
    "shared start": "other task,<br>shared start",
    "both other": "both other",
}
_LAYER = re.compile(r".*layer\.(\d+)\.(.*?)(?:\.dense)?$")


def similarity_map(records: Sequence[Mapping[str, Any]], start: str) -> Figure:
    """Return the map of layers by kind of pair, both factors side by side, after the last step.

    Args:
        records: Those of factor_similarity.py.
        start: ``standard`` or ``reversed``.
    """
    mine = [r for r in records if r["kind"] == "site" and (r["start"], r["moment"]) == (start, "end")]
    cells = [
        {"column": f"{letter}: {PANEL_WORDS[panel]}", "layer": layer_name(r["site"]), "similarity": r[f"sim_{letter}"]}
        for letter in "AB"
        for panel in PANELS.names
        for r in mine
        if r["panel"] == panel
    ]
    title = f"How alike factors are after the last step: {START_WORDS[start]}"
    labels = {"column": "factor and kind of pair", "layer": "", "similarity": "similarity"}
    drawn = heat_map(cells, x="column", y="layer", value="similarity", title=title, labels=labels, limits=(0, 1))
    drawn.plotly.update_layout(width=960, height=160 + 19 * len({cell["layer"] for cell in cells}))
    drawn.plotly.update_traces(texttemplate="%{z:.2f}")
    drawn.plotly.update_xaxes(tickangle=0)
    return drawn


def layer_name(site: str) -> str:
    """Return what the figure calls a site of a BERT encoder.

    Example:
        >>> layer_name("base.encoder.layer.3.attention.output.dense")
        '3 attention.output'
    """
    found = _LAYER.match(site)
    return f"{found[1]} {found[2]}" if found else site


def courses(records: Sequence[Mapping[str, Any]], model: str) -> Figure:
    """Return every quantity over the steps, a panel a quantity and a line an arm; what is exactly 0 is not drawn.

    Args:
        records: Those of factor_dynamics.py.
        model: Its name there.
    """
    drawn = {q: _course(records, model, q).plotly for q in QUANTITIES}
    grid = type(drawn["Z_A"])()
    titles = [PANEL_TITLES[q] if q else "" for row in GRID for q in row]
    grid.set_subplots(rows=2, cols=3, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=0.14)
    named: set[str] = set()
    for (row, column), quantity in _places():
        for trace in drawn[quantity].data:
            if trace.showlegend is not False:
                trace.showlegend = trace.name not in named
                named.add(trace.name)
            trace.mode = "lines"  # markers of a hundred steps would hide each other
            grid.add_trace(trace, row=row, col=column)
        axis = {"type": "log", "exponentformat": "power", "dtick": 1, "showline": True, "linecolor": "#444"}
        grid.update_yaxes(**axis, row=row, col=column)
        grid.update_xaxes(title_text="step" if row == 2 else "", showline=True, linecolor="#444", row=row, col=column)
    _one_range(grid, [trace.y for q in QUANTITIES[2:] for trace in drawn[q].data])
    title = (
        f"{model}: Z_A over the layer's input, the others over the output of the layer's own weight"
        "<br><sup>medians over layers, band: quartiles; what is exactly 0 is not drawn</sup>"
    )
    grid.update_layout(
        title={"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 15}},
        template="plotly_white",
        font={"family": "Inter, Helvetica, Arial, sans-serif", "size": 12},
        legend={"x": 0.72, "y": 0.98, "font": {"size": 14}},
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        width=1000,
        height=620,
    )
    return Figure(grid)


def _course(records: Sequence[Mapping[str, Any]], model: str, quantity: str) -> Figure:
    mine = [
        r for r in records
        if r["kind"] == "step" and r["model"] == model and r["quantile"] in SPREAD and r[quantity] > 0
    ]  # fmt: skip
    ordered = sorted(mine, key=lambda r: list(ARMS).index(r["arm"]))
    figure = line_plot(ordered, x="step", y=quantity, by="arm", title=quantity, log="y")
    # An arm in which the quantity is always 0 has no line, and the others keep their colours.
    style = {arm: (COLOURS[i], DASHES[i]) for i, arm in enumerate(ARMS)}
    for trace in figure.plotly.data:
        colour, dash = style[trace.name or trace.legendgroup]
        if trace.fill:
            trace.fillcolor = colour
        else:
            trace.line.color, trace.line.dash = colour, dash
    return figure


def _places() -> Iterator[tuple[tuple[int, int], str]]:
    for row, quantities in enumerate(GRID, start=1):
        for column, quantity in enumerate(quantities, start=1):
            if quantity:
                yield (row, column), quantity


def _one_range(grid: Any, values: Sequence[Sequence[float]]) -> None:
    drawn = [math.log10(v) for part in values for v in part]
    for column in (1, 2, 3):
        grid.update_yaxes(range=[min(drawn) - 0.1, max(drawn) + 0.1], row=2, col=column)


# Tables --------------------------------------------------------------------------------------------------------------


def similarity_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return means over layers and pairs, by start, moment and kind of pair.

    Args:
        records: Those of factor_similarity.py.
    """
    lines = ["| start | pairs | A, first step | A, end | over chance | B, first step | B, end | over chance |"]
    lines.append("|" + "---|" * 8)
    pairs = [r for r in records if r["kind"] == "pair"]
    for start, panel in itertools.product(STARTS, PANELS.names):
        mine = [r for r in pairs if (r["start"], r["panel"]) == (start, panel)]
        cells = [start, panel]
        for letter in "AB":
            of = {m: [r for r in mine if r["moment"] == m] for m in MOMENTS}
            cells += [f"{_mean(of[m], f'sim_{letter}'):.3f}" for m in MOMENTS]
            cells.append(f"{_mean(of['end'], f'over_chance_{letter}'):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claims_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return each claim of Z12 with its figures and its word.

    Args:
        records: Those of factor_similarity.py, the verdict last.
    """
    lines = ["| start | claim | figure | 95 % interval | |", "|" + "---|" * 5]
    for start in STARTS:
        claims = records[-1][start]
        for claim, panel, words in _CLAIMS:
            found = claims[claim] if panel is None else claims[claim][panel]
            low, high = found["interval"]
            said = words.format(letter=claims[claim]["factor"])
            lines.append(
                f"| {start} | {said} | {found['value']:.3f} | {low:.3f} to {high:.3f} | {claims[claim]['word']} |"
            )
    return "\n".join(lines) + "\n"


_CLAIMS = (
    ("shared", None, "sim({letter}), other task, shared start, above 0.5"),
    ("chance", "same task", "sim({letter}) over r/d, same task, other start, within 1/3 to 3"),
    ("chance", "both other", "sim({letter}) over r/d, both other, within 1/3 to 3"),
    ("task", "shared start", "sim({letter}), same task less other task with shared start, above 0"),
    ("task", "both other", "sim({letter}), same task less both other, above 0"),
)


def movement_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the factor that starts random moved, and what the runs learned: means over seeds.

    Args:
        records: Those of factor_similarity.py.
    """
    lines = [
        "| start | task | rate | moved | like its start | training loss | head alone | with the adapter |",
        "|" + "---|" * 8,
    ]
    rates, heads = records[0]["rates"], {r["task"]: r["score_of_head_alone"] for r in records if r["kind"] == "task"}
    runs = [r for r in records if r["kind"] == "run"]
    for start, task in dict.fromkeys(
        (r["start"], r["task"]) for r in sorted(runs, key=lambda r: r["start"], reverse=True)
    ):
        mine = [r for r in runs if (r["start"], r["task"]) == (start, task)]
        mean = {key: _mean(mine, key) for key in ("moved", "like_its_start", "first_loss", "last_loss", "score")}
        losses = f"{mean['first_loss']:.3f} to {mean['last_loss']:.3f}"
        scores = f"{100 * heads[task]:.1f} % | {100 * mean['score']:.1f} %"
        size = f"{mean['moved']:.3f} | {mean['like_its_start']:.3f}"
        lines.append(f"| {start} | {task} | {rates[start]:g} | {size} | {losses} | {scores} |")
    return "\n".join(lines) + "\n"


def dynamics_table(records: Sequence[Mapping[str, Any]], model: str) -> str:
    """Return the sizes after the last step, medians over layers, and how far the factors moved.

    Args:
        records: Those of factor_dynamics.py.
        model: Its name there.
    """
    last = max(r["step"] for r in records if r["kind"] == "step")
    lines = [
        f"| {model}, step {last} | Z_A | Z_B | delta1 | delta2 | delta3 | A moved | B moved | training loss |",
        "|" + "---|" * 9,
    ]
    for run in (r for r in records if r["kind"] == "run"):
        key = (run["arm"], last, "median")
        (row,) = [r for r in records if r["kind"] == "step" and (r["arm"], r["step"], r["quantile"]) == key]
        moved = ["-" if run[name] is None else f"{run[name]:.2g}" for name in ("moved_A", "moved_B")]
        cells = [f"{row[q]:.2g}" for q in QUANTITIES] + moved
        lines.append(f"| {run['arm']} | {' | '.join(cells)} | {run['first_loss']:.3f} to {run['last_loss']:.3f} |")
    return "\n".join(lines) + "\n"


def expectations_table(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return each expectation with what came of it on each model.

    Args:
        verdicts: Of factor_dynamics.py, by model.
    """
    lines = [f"| expected | | {' | '.join(verdicts)} |", "|" + "---|" * (2 + len(verdicts))]
    for name, (words, figures) in _EXPECTED.items():
        cells: list[str] = []
        for found in verdicts.values():
            shown = ", ".join(f"{found[name][key]:.3g}" for key in figures)
            cells.append(f"{shown}{': ' if shown else ''}{'holds' if found[name]['holds'] else 'fails'}")
        lines.append(f"| `{name}` | {words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_EXPECTED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "first_step": (
        "exactly: after the first step `delta1 = delta3 = 0` if `B` starts at zero, `delta2 = delta3 = 0` if `A` does",
        (),
    ),
    "b_only": ("exactly: under `B` alone `delta1 = delta3 = 0` and `Z_A` is constant at every step", ()),
    "identity": ("the parts sum to the change of `Z_B`, within 1e-5 of it, at every layer and step", ("largest",)),
    "internal": (
        "`Z_A` over its first value is largest under Init[A], less under LoRA+ but above 1, and 1 under `B` alone",
        ("Init[A]", "LoRA+", "B alone"),
    ),
    "one_sided": (
        "`delta2/delta1` is below 1/4 under Init[B], and nearer to 1 under LoRA+, in octaves",
        ("Init[B]", "LoRA+"),
    ),
    "undertrained": (
        "`B` under Init[B] moves less than `A` under Init[A], relative to the start",
        ("B under Init[B]", "A under Init[A]"),
    ),
}


def _mean(records: Sequence[Mapping[str, Any]], column: str) -> float:
    return statistics.mean(r[column] for r in records)


def main() -> None:
    """Draw and print all of them."""
    similarity = read_records(RESULTS / "factor_similarity.jsonl")
    for start in STARTS:
        similarity_map(similarity, start).save(FIGURES / f"factor_similarity_{start}.svg")
    for made in (similarity_table, claims_table, movement_table):
        print(made(similarity))
    verdicts: dict[str, Mapping[str, Any]] = {}
    for model in FULL:
        name = f"factor_dynamics_{model.lower()}"
        records = read_records(RESULTS / f"{name}.jsonl")
        courses(records, model).save(FIGURES / f"{name}.svg")
        print(dynamics_table(records, model))
        verdicts[model] = records[-1][f"{model}, seed 0"]
    print(expectations_table(verdicts))


if __name__ == "__main__":
    main()
