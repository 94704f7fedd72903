"""Draw the figure and print the tables of the advice in docs/diagnostics.md, from what advised_rates.py has stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asymlora.report.advice_page import curves_figure
from paired_runs import RESULTS, read_records

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
COMPARED = 8
"""Rank at which the two shares of a layer are told."""


def reach_table(advice: Sequence[Mapping[str, Any]]) -> str:
    """Return, by set and kind of layer, what the inputs fill and what a random factor leaves in reach, as ranges.

    Args:
        advice: Records of the kind ``advice``.
    """
    lines = [
        "| set | layers | inputs fill | of | outputs | random held `A` | random held `B` | rank | train |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in advice:
        for role, sites in _by_role(record["sites"]).items():
            at = [next((c for c in s["curve"] if c["rank"] == COMPARED), s["curve"][-1]) for s in sites]
            cells = (
                record["set"].partition("/")[2],
                f"{len(sites)} `{role}`" if len(sites) > 1 else f"`{role}`",
                _span([s["input_ratio"] for s in sites], "{:.0f}"),
                _span([s["fan_in"] for s in sites], "{:,}"),
                _span([s["outputs"] for s in sites], "{}"),
                _span([100 * c["random_A"] for c in at], "{:.0f}") + " %",
                _span([100 * c["random_B"] for c in at], "{:.1f}") + " %",
                _span([s["rank"] for s in sites], "{}") if sites[0]["in_recipe"] else "-",
                " or ".join(f"`{name}`" for name in sorted({s["train"] for s in sites})),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rates_table(verdict: Mapping[str, Any]) -> str:
    """Return the advised rate of each set beside the sweep's best one.

    Args:
        verdict: The last record.
    """
    lines = [
        "| set | edge | advised | best of the sweep | octaves | loss lost there | seconds of advice |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in verdict["sets"].items():
        lines.append(
            f"| {name.partition('/')[2]} | {found['edge']:.1e} | {found['advised']:.1e} | {found['best']:.1e} |"
            f" {found['octaves']:+.1f} | {found['excess_loss']:+.3f} | {found['seconds_of_advice']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _by_role(sites: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for site in sites:
        found.setdefault(site["role"], []).append(site)
    return found


def _span(values: Sequence[float], form: str) -> str:
    ends = [form.format(end) for end in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def main() -> None:
    """Draw and print all of them."""
    records = read_records(RESULTS / "advised_rates.jsonl")
    advice = [r for r in records if r["kind"] == "advice"]
    for record in advice:
        figure = curves_figure([site for site in record["sites"] if site["in_recipe"]])
        assert figure is not None
        figure.save(FIGURES / f"advice_reach_{record['set'].partition('/')[2]}.svg")
    print(reach_table(advice))
    print(rates_table(records[-1]))


if __name__ == "__main__":
    main()
