r"""Verdicts on a saved adapter: a cheap screen for what is broken or suspicious, from rows of `adapter_records`.

==================== ===================================================================== =========================
name                 holds when                                                            where the number is from
==================== ===================================================================== =========================
not_finite           a factor holds NaN or infinity                                        exact
no_update            a factor is exactly zero                                              exact
norm_outlier         the size of A, B or the update, in the logarithm, lies 5 robust       ours; see below
                     deviations and a factor of 3 from the median of its group, which has
                     5 sites or more
rank_one_spike       at rank 4 or more, one direction holds 0.9 of the squared norm        ours; see below
dead_directions      the update has fewer directions than the rank, beyond rounding        rounding
half_precision_range the entries of a factor have an rms below 2**-14, or one above 65504  float16's normal numbers
missing_sites        a group has sites in at least half of the layers, and not in all      exact
larger_than_base     ``|s B A| > |W0|``                                                    exact; needs the base
lost_in_merge        merging in bfloat16 adds an error of half the update's norm or more   ours; needs the base
==================== ===================================================================== =========================

*Outliers.* A group is the sites whose paths differ in numbers alone. A robust deviation is 1.4826 times the median
absolute deviation. Five of them are passed by chance once in 1.7 million Gaussian values; logarithms of norms are not
quite Gaussian, and equal ones have no spread at all, so the size must differ by a factor of 3 as well.

*Spikes.* Where one direction holds 0.9 of the squared norm, a cut to rank 1 loses at most 0.32 of the update, and the
direction is three times as large as all others together: the rank is paid for and not used, and what such adapters of
several tasks add up to is dominated by single directions. After few steps it is also what a low-rank gradient gives.

A verdict says what stands out, not that an adapter does harm; an adapter without any can.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from asymlora.diagnostics.health import Factor, Verdict, named

Row = Mapping[str, Any]
Rows = Sequence[Row]

DEVIATIONS, LEAST_RATIO, LEAST_GROUP = 5.0, 3.0, 5
SPIKE_SHARE, SPIKE_RANK = 0.9, 4
SMALLEST_NORMAL, LARGEST_HALF = 2.0**-14, 65504.0
"""Of float16."""
MERGE_ERROR = 0.5
_MAD = 1.4826


def screen(rows: Iterable[Row]) -> tuple[Verdict, ...]:
    """Return what stands out in an adapter.

    Args:
        rows: Rows of `adapter_records`, of one adapter.

    Returns:
        Verdicts, one for each name and factor that holds anywhere, in the order of the table at the top; their ``step``
        is 0. Empty where nothing stands out.

    Raises:
        KeyError: A row lacks a field.
    """
    every = list(rows)
    finite = [row for row in every if row["finite"]]
    found = [verdict for rule in _RULES for verdict in rule(every, finite)]
    return tuple(found)


def _verdict(
    name: str,
    sites: Sequence[str],
    numbers: tuple[float | None, float | None],
    texts: tuple[str, str, str],
    factor: Factor | None = None,
) -> Verdict:
    says, means, remedy = texts
    value, threshold = numbers
    return Verdict(
        name=name,
        factor=factor,
        sites=tuple(sites),
        step=0,
        value=value,
        threshold=threshold,
        says=says,
        means=means,
        remedy=remedy,
    )


def _not_finite(every: Rows, finite: Rows) -> list[Verdict]:
    sites = [row["site"] for row in every if not row["finite"]]
    if not sites:
        return []
    texts = (
        f"Factors of {named(sites, len(every))} hold NaN or infinity.",
        "Every output of the model is NaN with this adapter.",
        "Take an earlier checkpoint, and train with a lower rate or in a wider type.",
    )
    return [_verdict("not_finite", sites, (None, None), texts)]


def _no_update(every: Rows, finite: Rows) -> list[Verdict]:
    found: list[Verdict] = []
    for letter in ("A", "B"):
        sites = [row["site"] for row in finite if row[f"norm_{letter}"] == 0]
        if not sites:
            continue
        all_of_them = len(sites) == len(every)
        texts = (
            f"{letter} is exactly zero at {named(sites, len(every))}.",
            "The adapter was not trained: the model gives what its base gives."
            if all_of_them
            else "These sites add nothing to the model.",
            "Train it; where it was trained, look whether the right folder or checkpoint was saved."
            if all_of_them
            else "Look whether their tensors were lost in a conversion or their layers took part in the training; if"
            " it is as wanted, leave them out of the targets.",
        )
        found.append(_verdict("no_update", sites, (0.0, 0.0), texts, letter))
    return found


_SIZES: tuple[tuple[str, Factor | None, str], ...] = (
    ("norm_A", "A", "|A|"),
    ("norm_B", "B", "|B|"),
    ("norm_update", None, "|s B A|"),
)


def _norm_outlier(every: Rows, finite: Rows) -> list[Verdict]:
    found: list[Verdict] = []
    for field, factor, shown in _SIZES:
        seen = _outliers(finite, field)
        if not seen:
            continue
        site, (ratio, deviations) = max(seen.items(), key=lambda item: abs(math.log(item[1][0])))
        texts = (
            f"{shown} stands out at {named(list(seen), len(every))}: at {site} it is {ratio:.3g} times the median of"
            f" its group, {deviations:,.0f} robust deviations away.",
            "Sites that do the same in other layers seldom differ so: the training went astray there, tensors were"
            " changed afterwards, or the site was given a rate, rank or scale of its own.",
            "If none of these is meant, compare with an earlier checkpoint, or leave the site out and look whether the"
            " score changes.",
        )
        found.append(_verdict("norm_outlier", list(seen), (ratio, LEAST_RATIO), texts, factor))
    return found


def _outliers(rows: Rows, field: str) -> dict[str, tuple[float, float]]:
    """Return the sites that stand out in their group: ratio to its median, and robust deviations."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        if row[field] > 0:
            groups.setdefault(row["group"], {})[row["site"]] = math.log(row[field])
    found: dict[str, tuple[float, float]] = {}
    for sizes in groups.values():
        if len(sizes) < LEAST_GROUP:
            continue
        middle = statistics.median(sizes.values())
        spread = _MAD * statistics.median(abs(size - middle) for size in sizes.values())
        for site, size in sizes.items():
            off = abs(size - middle)
            if off > math.log(LEAST_RATIO) and off > DEVIATIONS * spread:
                found[site] = math.exp(size - middle), off / spread if spread else math.inf
    return found


def _rank_one_spike(every: Rows, finite: Rows) -> list[Verdict]:
    asked = [row for row in finite if row["rank"] >= SPIKE_RANK and row["largest_share"] is not None]
    rows = [row for row in asked if row["largest_share"] >= SPIKE_SHARE]
    if not rows:
        return []
    worst = max(row["largest_share"] for row in rows)
    texts = (
        f"One direction holds at least {SPIKE_SHARE:.0%} of the update's squared norm at"
        f" {named([row['site'] for row in rows], len(every))}; {worst:.1%} at most.",
        f"The rank is next to unused: cut to rank 1, these sites lose at most {math.sqrt(1 - SPIKE_SHARE):.0%} of their"
        " update. After few steps that is what a low-rank gradient gives. After many, one direction grew away from the"
        " others, and adapters like that disturb each other when several are added.",
        "Train with a smaller rank at these sites, or a lower rate and weight decay, and look whether the score keeps.",
    )
    return [_verdict("rank_one_spike", [row["site"] for row in rows], (worst, SPIKE_SHARE), texts)]


def _dead_directions(every: Rows, finite: Rows) -> list[Verdict]:
    rows = [row for row in finite if row["norm_update"] > 0 and row["directions"] < row["rank"]]
    if not rows:
        return []
    fewest = min(rows, key=lambda row: row["directions"] / row["rank"])
    texts = (
        f"The update has fewer directions than its rank at {named([row['site'] for row in rows], len(every))}; at"
        f" {fewest['site']} {fewest['directions']} of {fewest['rank']}, the others no more than rounding.",
        "Parts of the factors do nothing: components that were never trained, are copies of each other, or were padded"
        " when the adapter was converted or combined.",
        "Nothing is wrong with the output. A cut to the used rank loses nothing and makes the file smaller.",
    )
    share = fewest["directions"] / fewest["rank"]
    return [_verdict("dead_directions", [row["site"] for row in rows], (share, 1.0), texts)]


def _half_precision_range(every: Rows, finite: Rows) -> list[Verdict]:
    found: list[Verdict] = []
    for letter in ("A", "B"):
        small = [row for row in finite if 0 < row[f"rms_{letter}"] < SMALLEST_NORMAL]
        large = [row for row in finite if row[f"max_{letter}"] > LARGEST_HALF]
        for rows, value, threshold in (
            (small, min((row[f"rms_{letter}"] for row in small), default=0.0), SMALLEST_NORMAL),
            (large, max((row[f"max_{letter}"] for row in large), default=0.0), LARGEST_HALF),
        ):
            if rows:
                sites = [row["site"] for row in rows]
                found.append(_range_verdict(letter, sites, len(every), value, threshold))
    return found


def _range_verdict(letter: Factor, sites: Sequence[str], total: int, value: float, threshold: float) -> Verdict:
    other = "B" if letter == "A" else "A"
    small = threshold < 1
    seen = "an rms entry of" if small else "an entry of"
    texts = (
        f"{letter} has {seen} {value:.2g} at {named(sites, total)}; float16 has its full digits only from"
        f" {SMALLEST_NORMAL:.2g} to {LARGEST_HALF:g}.",
        f"Served in float16, {letter} {'loses digits or becomes zero' if small else 'becomes infinite'}, whatever the"
        " size of the update.",
        f"Serve it in bfloat16 or float32, or multiply {letter} by {'a large' if small else 'a small'} number c and"
        f" divide {other} by it: the update stays the same.",
    )
    return _verdict("half_precision_range", sites, (value, threshold), texts, letter)


def _missing_sites(every: Rows, finite: Rows) -> list[Verdict]:
    layers: dict[str, set[int]] = {}
    for row in every:
        # Of a path with several numbers the first one counts layers; the others would need the model.
        if row["layer"] is not None and row["group"].count("*") == 1:
            layers.setdefault(row["group"], set()).add(row["layer"])
    whole: set[int] = set().union(*layers.values())
    gaps = {group: sorted(whole - have) for group, have in layers.items() if len(whole) / 2 <= len(have) < len(whole)}
    if not gaps:
        return []
    absent = [group.replace("*", str(layer)) for group, numbers in gaps.items() for layer in numbers]
    texts = (
        f"{named(absent)} {'has' if len(absent) == 1 else 'have'} no factors; the same places in other layers do.",
        "Either the model differs there or the layers were chosen, or tensors were lost in a conversion.",
        "If it is not on purpose, convert or save the adapter again.",
    )
    return [_verdict("missing_sites", absent, (float(len(absent)), 0.0), texts)]


def _larger_than_base(every: Rows, finite: Rows) -> list[Verdict]:
    rows = [row for row in finite if (row["relative_update"] or 0.0) > 1.0]
    if not rows:
        return []
    worst = max(row["relative_update"] for row in rows)
    texts = (
        f"The update is larger than the base weight at {named([row['site'] for row in rows], len(every))}, up to"
        f" {worst:.3g} times in the Frobenius norm.",
        "What the base had learnt is drowned there: the rate or the scale was far too large, or the base is another"
        " one than the adapter was trained on.",
        "Check the base; else train again with a lower rate.",
    )
    return [_verdict("larger_than_base", [row["site"] for row in rows], (worst, 1.0), texts)]


def _lost_in_merge(every: Rows, finite: Rows) -> list[Verdict]:
    field = "merge_error_bfloat16"
    rows = [row for row in finite if row[field] is not None and row[field] >= MERGE_ERROR]
    if not rows:
        return []
    worst = max(row[field] for row in rows)
    lost = statistics.median(row["merge_lost_bfloat16"] for row in rows)
    texts = (
        f"Merged in bfloat16, the rounding is {worst:.0%} of the update at worst, and {MERGE_ERROR:.0%} or more at"
        f" {named([row['site'] for row in rows], len(every))}; there the median of the entries that do not move at all"
        f" is {lost:.0%}.",
        "The update is small beside the weights, and bfloat16 has 8 significant bits.",
        "Keep the adapter apart from the base, or merge and serve in float32 or float16.",
    )
    return [_verdict("lost_in_merge", [row["site"] for row in rows], (worst, MERGE_ERROR), texts)]


_RULES: tuple[Callable[[Rows, Rows], list[Verdict]], ...] = (
    _not_finite,
    _no_update,
    _norm_outlier,
    _rank_one_spike,
    _dead_directions,
    _half_precision_range,
    _missing_sites,
    _larger_than_base,
    _lost_in_merge,
)
