"""Advice for a terminal, from its record: the verdict, a row a kind of layer, the learning rate, what is not known."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asymlora.report.tables import plain_table
from asymlora.targets import ends_with
from asymlora.train.advised_record import percent

Record = Mapping[str, Any]
STARTS = {"": "-", "orthonormal": "random", "activation_pca": "PCA", "top_singular": "SVD"}
"""What a held ``A`` had best be, in the page's table."""
LEVELS = ("low", "medium", "high")


def advice_tables(record: Record, *, every: bool = False) -> RenderableType:
    """Return the whole of an advice.

    Args:
        record: As `asymlora.train.advised_record.advised_record` returns it.
        every: Whether to show each layer in a row of its own, not each kind of layer.

    Returns:
        Something that rich prints, readable from 80 columns.
    """
    said = record["summary"]
    inside = [site for site in record["sites"] if site["in_recipe"]]
    outside = [site for site in record["sites"] if not site["in_recipe"]]
    parts: list[RenderableType] = [Text(said["verdict"], style="bold"), Text(said["pair"])]
    parts.append(layer_table(f"The adapter's {len(inside)} layers, at rank {record['rank']}", inside, every=every))
    if outside:
        parts.append(
            layer_table(
                "Other layers that could take one, for a look; not in the recipe", outside, every=every, legend=False
            )
        )
    parts += [_ranks(record), rate_table(record), Text("\n".join(notes(record)))]
    return Group(*[piece for part in parts for piece in (part, Text())][:-1])


def layer_table(title: str, sites: Sequence[Record], *, every: bool, legend: bool = True) -> Table:
    """Return a table with a row a kind of layer, or a row a layer.

    Args:
        title: Line above it.
        sites: Layers of the record.
        every: A row a layer.
        legend: Whether to say below what the columns are.
    """
    table = plain_table(title, LEGEND if legend else None)
    table.add_column("layers", overflow="fold", ratio=1 if every else None)
    for head in ("train", "rank", "inputs fill", "d_out", "held A", "held B", "sure"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, group in _grouped(sites, every=every):
        table.add_row(
            Text(name),
            _words(site["train"] for site in group),
            _range([site["rank"] for site in group]),
            f"{_range([site['input_ratio'] for site in group])}/{_range([site['fan_in'] for site in group])}",
            _range([site["outputs"] for site in group]),
            _shares(group, "random_A"),
            _shares(group, "random_B"),
            min((site["confidence"] for site in group), key=LEVELS.index),
        )
    return table


LEGEND = (
    "inputs fill: participation ratio of the inputs / their dimensions. held A, held B: share of the first update that"
    " a random, held factor leaves within reach of the other (median). sure: the least confidence among them."
)
"""What the columns of `layer_table` are."""


def _grouped(sites: Sequence[Record], *, every: bool) -> Iterable[tuple[str, list[Record]]]:
    groups: dict[str, list[Record]] = {}
    for site in sites:
        groups.setdefault(site["site" if every else "role"], []).append(site)
    return [(name if every else shortest_ending(name, list(groups)), group) for name, group in groups.items()]


def shortest_ending(name: str, names: Sequence[str]) -> str:
    """Return the shortest ending of a path, by whole parts, that no other of the paths has.

    Args:
        name: One of them.
        names: All, each once.

    Example:
        >>> paths = ["attention.self.query", "attention.output.dense", "output.dense"]
        >>> [shortest_ending(path, paths) for path in paths]
        ['query', 'attention.output.dense', 'output.dense']
    """
    parts = name.split(".")
    endings = (".".join(parts[start:]) for start in reversed(range(len(parts))))
    return next((e for e in endings if sum(ends_with(other, e) for other in names) == 1), name)


def _words(values: Iterable[str]) -> str:
    counts = Counter(values)
    return "/".join(word for word, _ in counts.most_common())


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value}" if isinstance(value, int) else f"{value:.2g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"


def _shares(group: Sequence[Record], name: str) -> str:
    known = [site[name] for site in group if site[name] is not None]
    return percent(statistics.median(known) if known else None)


def _ranks(record: Record) -> Text:
    if record["mean_share"] is None:
        return Text(f"Ranks: {record['uniform_rank']} everywhere.")
    values, reached = f"{record['values']:,} trained values", percent(record["mean_share"])
    uniform, shared = f"rank {record['uniform_rank']} everywhere", percent(record["uniform_mean_share"])
    if not record["per_site_ranks"]:
        by_layer = record["by_site_mean_share"]
        said = f"would reach {percent(by_layer)} (--ranks-by-layer); that they train better has not been shown"
        if by_layer is None:
            said = "would gain too little"
        return Text(
            f"Ranks: {uniform}, {values}; {reached} of the first update is within reach in the mean. Ranks by layer"
            f" {said}."
        )
    return Text(
        f"Ranks: by layer. For {values} they reach {reached} of the first update in the mean; {uniform} reaches"
        f" {shared}."
    )


def rate_table(record: Record) -> Table:
    """Return the learning rate, the range test behind it, and what theory makes of it for other choices.

    Args:
        record: The record.
    """
    test, rate = record["range_test"], record["rate"]
    edge = {
        "found": "stable on its own, the next octave was not",
        "highest stable": "no rate that was tried was unstable: the edge lies above",
        "none stable": "no rate that was tried was stable: the edge lies below",
    }[test["outcome"]]
    table = plain_table(
        "Learning rate", f"{rate['reason']} Confidence: {rate['confidence']}. {' '.join(rate['doubts'])}"
    )
    table.add_column("what", no_wrap=True)
    table.add_column("train.lr", justify="right", no_wrap=True)
    table.add_column("why")
    table.add_row("advised start", f"[bold]{rate['lr']:.2g}[/bold]", "try half and double as well")
    table.add_row("edge", f"{test['edge']:.2g}", edge)
    table.add_row(*rise_of_ramp(test))
    if test["steepest"] is not None:
        table.add_row("steepest fall", f"{test['steepest']:.2g}", "of the ramp's loss; nothing follows")
    for other in record["other_rates"]:
        doubt = "" if other["confirmed"] else ", not confirmed"
        table.add_row(Text(f"for {other['what']}"), f"{other['rate']:.2g}", f"by theory ({other['status']}{doubt})")
    return table


def rise_of_ramp(test: Record) -> tuple[str, str, str]:
    """Return where the loss of the ramp began to rise, as a row: what, rate, why.

    Args:
        test: The range test of a record.
    """
    steps = len(test["points"])
    if test["ramp_edge"] >= test["points"][-1]["rate"]:
        return "rise began", "-", f"not in a ramp of {steps} steps, up to {test['ramp_edge']:.2g}"
    return "rise began", f"{test['ramp_edge']:.2g}", f"in a ramp of {steps} steps"


def notes(record: Record) -> list[str]:
    """Return what a reader should keep in mind, the open question first.

    Args:
        record: The record.
    """
    head = "a fitted head" if record["head_fitted"] else "the head as it came"
    seen = (
        f"Measured on {record['batches']} batches of {record['batch_size']} training rows with {head}, in"
        f" {record['seconds']['in all']:.0f} s."
    )
    return [f"* {text}" for text in (*record["caveats"], *record["notes"], seen)]
