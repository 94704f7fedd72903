"""The page of reasons of an advice: one HTML file that needs no network, readable in light and dark and on paper."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asymlora.report.advice_tables import LEGEND, STARTS, notes, rise_of_ramp
from asymlora.report.plots import COLOURS, Figure, line_plot
from asymlora.train.advised_record import percent

Record = Mapping[str, Any]
CURVES = {
    "random_A": "random A held, B trained",
    "activation_A": "A from activations (PCA) held, B trained",
    "best": "the best update of that rank",
    "random_B": "random B held, A trained",
}
"""Lines of the figure over ranks, by column of a curve."""
_START = (
    "start of A: PCA or SVD where an A from the activations, or from the weight, would reach more of the first gradient"
    " than a random one; the recipe's A is random."
)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star")


def advice_page(record: Record, *, command: str) -> str:
    """Return the page.

    Args:
        record: As `asymlora.train.advised_record.advised_record` returns it.
        command: What runs the recipe.

    Returns:
        A whole HTML document.
    """
    said = record["summary"]
    inside = [site for site in record["sites"] if site["in_recipe"]]
    outside = [site for site in record["sites"] if not site["in_recipe"]]
    figures = [
        figure for figure in (curves_figure(inside), ratios_figure(record["sites"]), range_figure(record)) if figure
    ]
    parts = [
        f"<h1>{_text(said['verdict'])}</h1>",
        f"<p class='lead'>{_text(said['pair'])}</p>",
        f"<p class='about'>{_text(_about(record))}</p>",
        _list(notes(record)),
        "<h2>What is in reach</h2>",
        *(_framed(figure, first=number == 0) for number, figure in enumerate(figures[:-1])),
        "<h2>Learning rate</h2>",
        _rates(record),
        _framed(figures[-1], first=len(figures) == 1),
        "<h2>Layer by layer</h2>",
        f"<p class='about'>{_text(f'{LEGEND} {_START}')}</p>",
        _layers(inside),
        *(("<h3>Layers that are not in the recipe, for a look</h3>", _layers(outside)) if outside else ()),
        "<h2>The recipe</h2>",
        f"<pre>{_text(command)}</pre><pre>{_text(record['yaml'].rstrip())}</pre>",
        "<h2>Measured on</h2>",
        _environment(record),
    ]
    title = f"Advice for {_named(record['model'])} on {_named(record['data'])}"
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{_STYLE}</style></head><body>"
        f"<main><p class='kind'>{_text(title)}</p>{''.join(parts)}</main></body></html>\n"
    )


# Figures -------------------------------------------------------------------------------------------------------------


def curves_figure(sites: Sequence[Record]) -> Figure | None:
    """Return what is in reach over the rank: the median over layers, their range as a band; None without gradients.

    Args:
        sites: Layers of the adapter.
    """
    records = [
        {"rank": shares["rank"], "share": 100 * shares[column], "held": words}
        for column, words in CURVES.items()
        for site in sites
        for shares in site["curve"]
    ]
    if not records:
        return None
    figure = line_plot(
        records,
        x="rank",
        y="share",
        by="held",
        title="Share of the first update's energy within reach (median, range of layers)",
        labels={"rank": "rank", "share": "within reach, %", "held": ""},
        log="x",
    )
    figure.plotly.update_yaxes(range=[0, 102])
    return _legend_below(figure)


def ratios_figure(sites: Sequence[Record]) -> Figure | None:
    """Return how many dimensions each layer's inputs fill, against its outputs; a line shows where the two are equal.

    Args:
        sites: All layers of the record.
    """
    shown = [site for site in sites if site["input_ratio"]]
    if not shown:
        return None
    ends = [value for site in shown for value in (site["outputs"], site["input_ratio"])]
    low, high = min(ends) / 1.5, max(ends) * 1.5
    figure = line_plot(
        [{"outputs": end, "ratio": end} for end in (low, high)],
        x="outputs",
        y="ratio",
        title="Dimensions that the inputs fill, against the number of outputs (below the line: train B)",
        labels={"outputs": "outputs of the layer (d_out)", "ratio": "dimensions that inputs fill"},
        log="xy",
    )
    line = figure.plotly.data[0]
    line.update(mode="lines", name="as many as outputs", showlegend=True, line={"color": "#555", "dash": "dash"})
    groups = _by_role(shown)
    for number, (name, group) in enumerate(groups.items()):
        figure.plotly.add_scatter(
            x=[site["outputs"] for site in group],
            y=[site["input_ratio"] for site in group],
            text=[site["site"] for site in group],
            hovertemplate="%{text}<br>d_out %{x}, inputs fill %{y:.3g}<extra></extra>",
            mode="markers",
            name=name,
            marker={
                "color": COLOURS[number % len(COLOURS)],
                "symbol": _symbol(number) + ("" if group[0]["in_recipe"] else "-open"),
                "size": 9,
            },
        )
    drawn = _legend_below(figure)
    drawn.plotly.update_layout(height=500 + 12 * len(groups))  # each may take a line of the legend
    return drawn


def _symbol(number: int) -> str:
    # Shifted by one each time the colours begin again, or the eighth would look like the first.
    return _SYMBOLS[(number + number // len(COLOURS)) % len(_SYMBOLS)]


def range_figure(record: Record) -> Figure:
    """Return the losses of the range test over the rate, with the edge and the advised rate.

    Args:
        record: The record.
    """
    test = record["range_test"]
    rows: list[dict[str, Any]] = [
        {"rate": point["rate"], "loss": math.nan if point[name] is None else point[name], "what": words}
        for name, words in (("loss", "one batch"), ("smoothed", "mean of five"))
        for point in test["points"]
    ]
    figure = line_plot(
        rows,
        x="rate",
        y="loss",
        by="what",
        title="Range test: loss while the rate rises, and the runs at one rate that decide",
        labels={"rate": "learning rate (train.lr)", "loss": "training loss", "what": ""},
        log="x",
    )
    drawn = figure.plotly
    for trace in drawn.data:
        trace.update(mode="markers" if trace.name == "one batch" else "lines", marker={"size": 5})
    probes = [probe for probe in test["probes"] if probe["change"] is not None]
    for stable, words, colour, symbol in (
        (True, "stable", COLOURS[2], "triangle-up"),
        (False, "not stable", "#000", "x"),
    ):
        group = [probe for probe in probes if probe["stable"] == stable]
        drawn.add_scatter(
            x=[probe["rate"] for probe in group],
            y=[test["start_loss"] + probe["change"] for probe in group],
            mode="markers",
            name=f"a run at one rate: {words}",
            marker={"color": colour, "symbol": symbol, "size": 12},
        )
    heights = [row["loss"] for row in rows if math.isfinite(row["loss"])]
    heights += [test["start_loss"] + probe["change"] for probe in probes if probe["stable"]]
    drawn.update_yaxes(range=[0 if min(heights) > 0 else min(heights), 1.3 * max(heights)])
    marks = [(record["rate"]["lr"], "start", COLOURS[0], "dot"), (test["edge"], "edge", COLOURS[1], "dash")]
    for rate, words, colour, dash in marks:
        drawn.add_vline(x=rate, line={"color": colour, "dash": dash, "width": 2})
        # Of a logarithmic axis, a shape takes the value and an annotation its logarithm.
        side = "right" if words == "start" else "left"
        drawn.add_annotation(
            x=math.log10(rate), y=1, yref="paper", yanchor="top", text=f"{words} {rate:.2g}", xanchor=side,
            showarrow=False, font={"color": colour}, bgcolor="#fff",
        )  # fmt: skip
    drawn.update_xaxes(exponentformat="power")
    return _legend_below(figure)


def _legend_below(figure: Figure) -> Figure:
    # Of the container, not of the plot: below whatever height the axis takes on a narrow screen.
    figure.plotly.update_layout(
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0}, width=None, height=500,
        autosize=True, title={"font": {"size": 15}},
    )  # fmt: skip
    return figure


def _framed(figure: Figure, *, first: bool) -> str:
    # A figure's own title is cut where it is wider than the screen.
    title = str(figure.plotly.layout.title.text)
    figure.plotly.update_layout(title=None, margin={"t": 20})
    inner = figure.plotly.to_html(
        include_plotlyjs=first, full_html=False, config={"displayModeBar": False, "responsive": True}
    )
    return f"<figure><figcaption>{_text(title)}</figcaption>{inner}</figure>"


# Words and tables ----------------------------------------------------------------------------------------------------


def _about(record: Record) -> str:
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in record["seconds"].items() if name != "in all")
    whole = record["seconds"]["in all"]
    return f"Task {record['task']}; {record['rows']:,} training rows were read. {stages}; {whole:.0f} s in all."


def _rates(record: Record) -> str:
    test, rate = record["range_test"], record["rate"]
    outcome = {
        "found": "the next octave above it was not stable",
        "highest stable": "no rate that was tried was unstable, so the edge lies above",
        "none stable": "no rate that was tried was stable, so the edge lies below",
    }[test["outcome"]]
    rows = [
        ["advised start", f"{rate['lr']:.2g}", "try half and double as well"],
        ["edge", f"{test['edge']:.2g}", outcome],
        list(rise_of_ramp(test)),
    ]
    rows += [[f"for {other['what']}", f"{other['rate']:.2g}", _law(other)] for other in record["other_rates"]]
    doubts = " ".join(rate["doubts"])
    words = f"{rate['reason']} Confidence: {rate['confidence']}. {doubts}"
    return f"<p>{_text(words)}</p>" + _table(["what", "train.lr", "why"], rows, numbers=(1,))


def _law(other: Record) -> str:
    return f"{other['law']} ({other['status']}{'' if other['confirmed'] else ', not confirmed'})"


def _layers(sites: Sequence[Record]) -> str:
    heads = [
        "layer",
        "train",
        "rank",
        "start of A",
        "inputs fill",
        "of",
        "d_out",
        "held A",
        "held B",
        "confidence",
        "why",
    ]
    rows = [
        [
            site["site"],
            site["train"],
            str(site["rank"]),
            STARTS[site["A_start"]],
            f"{site['input_ratio']:.3g}",
            str(site["fan_in"]),
            str(site["outputs"]),
            percent(site["random_A"]),
            percent(site["random_B"]),
            site["confidence"],
            " ".join([site["reason"], *site["doubts"]]),
        ]
        for site in sites
    ]
    return _table(heads, rows, numbers=(2, 4, 5, 6, 7, 8), folded=10)


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int], folded: int | None = None
) -> str:
    def cell(column: int, text: str) -> str:
        kind = " class='n'" if column in numbers else ""
        inner = _text(text)
        if column == folded:
            inner = f"<details><summary>reason</summary>{inner}</details>"
        return f"<td{kind}>{inner}</td>"

    head = "".join(f"<th{' class=n' if i in numbers else ''}>{_text(name)}</th>" for i, name in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _environment(record: Record) -> str:
    machine = record["environment"]
    rows = [["Python", machine["python"]], *([name, version] for name, version in machine["packages"].items())]
    rows += [["system", machine["system"]], ["processors", str(machine["cpus"])], ["threads", str(machine["threads"])]]
    rows += [["accelerator", machine["accelerator"] or "none"]]
    return _table(["what", "which"], rows, numbers=())


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(sentence.removeprefix('* '))}</li>" for sentence in sentences)
    return f"<ul class='notes'>{items}</ul>"


def _by_role(sites: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for site in sites:
        groups.setdefault(site["role"], []).append(site)
    return groups


def _named(source: str) -> str:
    # A file's or folder's own name; the recipe below has the whole path.
    path = Path(source)
    return path.name if path.is_absolute() or path.exists() else source


def _text(words: str) -> str:
    return html.escape(words)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --soft: #555; --line: #ccc; --shade: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --soft: #aaa; --line: #444; --shade: #23262c; }
}
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.5 Inter, Helvetica, Arial, sans-serif; }
main { max-width: 900px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 4px 0 12px; } h2 { font-size: 1.2rem; margin: 36px 0 8px; }
h3 { font-size: 1rem; margin: 24px 0 8px; } .kind, .about, .notes { color: var(--soft); } .kind { margin: 0; }
.lead { font-size: 1.1rem; } .notes { padding-left: 1.2em; }
figure { margin: 16px 0; padding: 4px; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; break-inside: avoid; } figcaption { color: #1b1b1b; padding: 8px 10px 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; width: 100%; }
th, td { text-align: left; padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { white-space: nowrap; } .n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
pre { background: var(--shade); padding: 10px 12px; border-radius: 6px; overflow-x: auto; font-size: 0.82rem; }
details { min-width: 6em; } details[open] { min-width: 22em; } summary { cursor: pointer; }
@media print {
  :root { --ink: #000; --paper: #fff; --soft: #333; --shade: #f3f4f6; } main { max-width: none; padding: 0; }
  table { font-size: 0.7rem; } pre { white-space: pre-wrap; } }
"""
