"""What is inside of adapters, and how alike they are, as a terminal shows it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asymlora.report.tables import plain_table

Record = Mapping[str, Any]
Records = Sequence[Record]
LONGEST_LABEL = 26
_FRACTIONS = ("1/2", "1/4", "1/8", "1/16", "1/32", "1/64")


class _Measure(NamedTuple):
    """A column: its head, its words, the value of a row, and how it is written."""

    head: str
    words: str
    value: Callable[[Record], float | None]
    shown: Callable[[float], str]


def _number(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 0.1 or abs(value) >= 1000 else f"{value:.2f}"


def _one_digit(value: float) -> str:
    return f"{value:.1f}"


def _share(value: float) -> str:
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{value:.0%}" if value >= 0.1 or not value else f"{value:.1%}"


def _field(name: str) -> Callable[[Record], float | None]:
    return lambda row: row[name]


def _half_cut(row: Record) -> float | None:
    return (row["truncation_errors"] or [None])[0]


_MEASURES = (
    _Measure("|A|", "size of A", _field("norm_A"), _number),
    _Measure("|B|", "size of B", _field("norm_B"), _number),
    _Measure("|sBA|", "size of the update", _field("norm_update"), _number),
    _Measure("spec.", "spectral norm", _field("spectral_norm"), _number),
    _Measure("eff.", "effective rank", _field("effective_rank"), _one_digit),
    _Measure("st.", "stable rank", _field("stable_rank"), _one_digit),
    _Measure("top", "largest share", _field("largest_share"), _share),
    _Measure("cut", "cut to half", _half_cut, _share),
    _Measure("A-A0", "movement of A", _field("moved_A"), _number),
    _Measure("B-B0", "movement of B", _field("moved_B"), _number),
)


def adapter_tables(records: Records, *, name: str, every_site: bool = False, merge_note: str | None = None) -> Group:
    """Return the tables of one adapter.

    Args:
        records: Rows of `asymlora.diagnostics.adapter_records`.
        name: What the adapter is called.
        every_site: A line for each site, instead of the median of each group and the extremes.
        merge_note: Why nothing is said of merging; None where the rows say it.

    Returns:
        Something that rich prints. Names of sites are the file's, and no markup.
    """
    parts: list[Any] = [Text(_summary(records, name)), _sites(records, every_site=every_site)]
    if not every_site and len(records) > 1:
        parts.append(_extremes(records))
    parts += [table for table in (_cuts(records),) if table.row_count]
    parts.append(Text(f"Merging: {merge_note}") if merge_note else _merging(records))
    return _stacked(parts)


def findings_table(findings: Records, *, name: str) -> Table | Text:
    """Return what stands out in an adapter.

    Args:
        findings: Verdicts as plain values, of `asymlora.diagnostics.adapter_screen`.
        name: What the adapter is called.

    Returns:
        Something that rich prints.
    """
    if not findings:
        return Text(f"Screen of {plain(name)}: nothing stands out")
    count = f"{len(findings)} {'verdict' if len(findings) == 1 else 'verdicts'}"
    table = Table(
        title=Text(f"Screen of {plain(name)}: {count}"), title_justify="left", show_header=False, show_lines=True
    )
    table.add_column("verdict", style="bold", no_wrap=True)
    table.add_column("what was seen, what it means, what to change")
    for found in findings:
        text = f"{found['says']} {found['means']}\n-> {found['remedy']}"
        table.add_row(Text(found["name"]), Text("\n".join(plain(line) for line in text.split("\n"))))
    return table


def pair_tables(records: Records, *, alone: Mapping[str, Sequence[str]], every_site: bool = False) -> Group:
    """Return the tables of a comparison.

    Args:
        records: Rows of `asymlora.diagnostics.adapter_pairs.compare_adapters`.
        alone: Sites that not every adapter has, by adapter.
        every_site: A line for each site, factor and pair, instead of medians and extremes.

    Returns:
        Something that rich prints.
    """
    pairs = list(dict.fromkeys(row["pair"] for row in records))
    parts: list[Any] = []
    if every_site:
        parts += [_pairs([r for r in records if r["pair"] == pair], "site", title=pair) for pair in pairs]
    elif len(pairs) == 1:
        parts += [_pairs(records, "group", title=pairs[0]), _extreme_pairs(records)]
    else:
        parts += [_pairs(records, "pair", title=f"{len(pairs)} pairs"), _extreme_pairs(records)]
    for name, sites in alone.items():
        listed = ", ".join(sites[:3]) + (f" and {len(sites) - 3} more" if len(sites) > 3 else "")
        parts.append(Text(plain(f"Not in every adapter, of {name}: {listed}")))
    return _stacked(parts)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the shortest endings, by whole parts of a path, that still tell the names apart.

    Example:
        >>> short_names(["h.*.attn.out", "h.*.attn.q", "h.*.mlp.out"])
        {'h.*.attn.out': 'attn.out', 'h.*.attn.q': 'q', 'h.*.mlp.out': 'mlp.out'}
    """
    every = list(dict.fromkeys(names))
    endings: dict[str, int] = {}
    for name in every:
        parts = name.split(".")
        for start in range(len(parts)):
            ending = ".".join(parts[start:])
            endings[ending] = endings.get(ending, 0) + 1
    short: dict[str, str] = {}
    for name in every:
        parts = name.split(".")
        own = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        short[name] = next((ending for ending in own if endings[ending] == 1), name)
    return short


def without_shared_start(names: Iterable[str]) -> dict[str, str]:
    """Return the names of sites without the parts that all of them begin with.

    Example:
        >>> without_shared_start(["model.h.0.q", "model.h.1.q"])
        {'model.h.0.q': '0.q', 'model.h.1.q': '1.q'}
    """
    every = list(dict.fromkeys(names))
    paths = [name.split(".") for name in every]
    shared, most = 0, min((len(path) - 1 for path in paths), default=0)
    while len(every) > 1 and shared < most and len({tuple(path[: shared + 1]) for path in paths}) == 1:
        shared += 1
    return {name: ".".join(path[shared:]) for name, path in zip(every, paths, strict=True)}


def plain(text: str) -> str:
    """Return a text without what would steer a terminal: the names in a file are anyone's."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _stacked(parts: Sequence[Any]) -> Group:
    return Group(*[piece for part in parts for piece in (part, Text())][:-1])


def _summary(records: Records, name: str) -> str:
    ranks = sorted({row["rank"] for row in records})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    values = sum(row["rank"] * (row["fan_in"] + row["outputs"]) for row in records)
    sites = f"{len(records):,} {'site' if len(records) == 1 else 'sites'}"
    return plain(f"{name}: {sites}, {rank}, {values:,} values")


def _sites(records: Records, *, every_site: bool) -> Table:
    measures = [measure for measure in _MEASURES if any(measure.value(row) is not None for row in records)]
    short = without_shared_start(_names(records, "site")) if every_site else short_names(_names(records, "group"))
    moved = " A-A0: how far A is from its start, over the size of the start." if _has(measures, "A-A0") else ""
    moved += " B-B0: of B." if _has(measures, "B-B0") else ""
    table = plain_table(
        "Sites" if every_site else "Medians over the sites of a group",
        "Frobenius norms; of s*B*A also spec.: spectral norm, eff. and st.: effective and stable rank, top: share of"
        f" the largest direction in the squared norm, cut: what half the rank would lose.{moved}",
    )
    _label_column(table, "site" if every_site else "group")
    if not every_site:
        table.add_column("n", justify="right", no_wrap=True)
    for measure in measures:
        table.add_column(measure.head, justify="right", no_wrap=True)
    for label, rows in _grouped(records, "site" if every_site else "group").items():
        cells = [_cell([measure.value(row) for row in rows], measure.shown) for measure in measures]
        table.add_row(Text(plain(short[label])), *([] if every_site else [str(len(rows))]), *cells)
    return table


def _extremes(records: Records) -> Table:
    short = without_shared_start(_names(records, "site"))
    table = plain_table("Extremes")
    _end_columns(table, "what", width=max(len(measure.words) for measure in _MEASURES))
    for measure in _MEASURES:
        known = [(value, row["site"]) for row in records if (value := measure.value(row)) is not None]
        if known:
            low, high = min(known), max(known, key=lambda item: item[0])
            ends = [piece for value, site in (low, high) for piece in (measure.shown(value), plain(short[site]))]
            table.add_row(measure.words, *(Text(end) for end in ends))
    return table


def _cuts(records: Records) -> Table:
    """What cutting every site to half of its rank would lose, and to a quarter, and so on."""
    table = plain_table(
        "Cut to a smaller rank: the part of s*B*A that is lost",
        "Relative Frobenius error of the best cut, exact. All sites: of the update as a whole, each site cut so far or"
        " to rank 1.",
    )
    for head, justify in (
        ("rank", "left"),
        ("all sites", "right"),
        ("median", "right"),
        ("worst", "right"),
        ("at", "left"),
    ):
        table.add_column(head, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    short = without_shared_start(_names(records, "site"))
    for step, fraction in enumerate(_FRACTIONS):
        rows = [
            r for r in records if len(r["truncation_errors"] or ()) > step and r["truncation_errors"][step] is not None
        ]
        if not rows:
            break
        ranks = sorted({row["truncation_ranks"][step] for row in rows})
        label = str(ranks[0]) if len(ranks) == 1 and len(rows) == len(records) else fraction
        errors = [row["truncation_errors"][step] for row in rows]
        lost = sum((row["norm_update"] * _lost(row, step)) ** 2 for row in records if row["norm_update"])
        whole = sum((row["norm_update"] or 0.0) ** 2 for row in records)
        worst = max(zip(errors, (row["site"] for row in rows), strict=True), key=lambda item: item[0])
        shares = [_share(value) for value in (math.sqrt(lost / whole), statistics.median(errors), worst[0])]
        table.add_row(label, *shares, Text(plain(short[worst[1]])))
    return table


def _lost(row: Record, step: int) -> float:
    """Return what a site loses at some cut, or at its last one where its rank allows no such cut."""
    errors = row["truncation_errors"]
    return errors[min(step, len(errors) - 1)] if errors else 0.0


def _merging(records: Records) -> Table:
    table = plain_table(
        "Merged into the base: what the rounding costs",
        "Error: Frobenius norm of what the rounding changes, over that of the update. Still: entries that the update"
        " should move and that stay what they were. Update: its size over that of the weight.",
    )
    table.add_column("type", no_wrap=True)
    for head in ("error", "worst", "at", "still", "update"):
        table.add_column(head, justify="left" if head == "at" else "right", no_wrap=True)
    short = without_shared_start(_names(records, "site"))
    for field in [key for key in records[0] if key.startswith("merge_error_")]:
        dtype = field.removeprefix("merge_error_")
        known = [(row[field], row["site"]) for row in records if row[field] is not None and row["norm_update"]]
        if not known:
            continue
        worst = max(known, key=lambda item: item[0])
        still = [row[f"merge_lost_{dtype}"] for row in records]
        cells = [_cell([error for error, _ in known], _share), _cell([worst[0]], _share), Text(plain(short[worst[1]]))]
        relative = _cell([row["relative_update"] for row in records], lambda value: f"{value:.2%}")
        table.add_row(dtype, *cells, _cell(still, _share), relative)
    return table


def _pairs(records: Records, by: str, *, title: str) -> Table:
    started = any(row["moved_first"] is not None or row["moved_second"] is not None for row in records)
    table = plain_table(
        "",
        "CCA: mean squared cosine of the principal angles between the row spaces of A, the column spaces of B; CKA:"
        " weighs each direction by how much s*B*A uses it. ch.: by chance. Angles: smallest and largest, degrees."
        + (" Moved: distance from the start over its size; a shared start alone makes A alike." if started else ""),
    )
    table.title = Text(plain(f"How alike: {title}"), style="italic")
    _label_column(table, by)
    for head in ("", "n", "CCA", "ch.", "CKA", "ch.", "angles", *(["moved"] if started else [])):
        table.add_column(head, justify="right", no_wrap=True)
    names = _names(records, by)
    short = {"group": short_names, "site": without_shared_start, "pair": _same}[by](names)
    split = by == "pair" and max(map(len, names)) > LONGEST_LABEL
    for label, rows in _grouped(records, by).items():
        # Cut at its end, a long pair would no longer say who the second is.
        heads = (f"{rows[0]['first']} ~", rows[0]["second"]) if split else (short[label], "")
        for factor, head in zip("AB", heads, strict=True):
            own = [row for row in rows if row["factor"] == factor]
            table.add_row(Text(plain(head)), factor, *_alike_cells(own, started=started))
    return table


def _alike_cells(rows: Records, *, started: bool) -> list[str]:
    empty = "zero" if any(row["zero"] for row in rows) else "-"
    numbers = [
        _cell([row[field] for row in rows], shown, empty=empty)
        for field, shown in (("cca", _unit), ("cca_chance", _unit), ("cka", _unit), ("cka_chance", _unit))
    ]
    ends = [_cell([row[f"{end}_angle"] for row in rows], _degrees, empty="") for end in ("smallest", "largest")]
    moved = [_cell([row[f"moved_{which}"] for row in rows], _number) for which in ("first", "second")]
    return [str(len(rows)), *numbers, "-".join(ends) if all(ends) else "-", *([" ".join(moved)] if started else [])]


def _extreme_pairs(records: Records) -> Table:
    several = len({row["pair"] for row in records}) > 1
    short = without_shared_start(_names(records, "site"))
    table = plain_table("Extremes of CCA")
    _end_columns(table, "", width=1)
    for factor in ("A", "B"):
        known = [row for row in records if row["factor"] == factor and row["cca"] is not None]
        if not known:
            table.add_row(factor, "zero", "everywhere", "", "")
            continue
        cells: list[Text] = []
        for row in (min(known, key=lambda r: r["cca"]), max(known, key=lambda r: r["cca"])):
            where = short[row["site"]] + (f", {row['pair']}" if several else "")
            cells += [Text(_unit(row["cca"])), Text(plain(where))]
        table.add_row(factor, *cells)
    return table


def _end_columns(table: Table, what: str, *, width: int) -> None:
    """Add the columns of extremes; in a narrow terminal the names of sites give way, not the numbers."""
    table.add_column(what, no_wrap=True, min_width=width)
    for head in ("least", "most"):
        table.add_column(head, justify="right", no_wrap=True, min_width=5)
        table.add_column("at", overflow="ellipsis")  # rich narrows what may wrap before what may not


def _label_column(table: Table, head: str) -> None:
    table.add_column(head, no_wrap=True, overflow="ellipsis", max_width=LONGEST_LABEL)
    table.box = box.SIMPLE_HEAD


def _names(records: Records, field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in records))


def _grouped(records: Records, field: str) -> dict[str, list[Record]]:
    grouped: dict[str, list[Record]] = {}
    for row in records:
        grouped.setdefault(row[field], []).append(row)
    return grouped


def _same(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _has(measures: Iterable[_Measure], head: str) -> bool:
    return any(measure.head == head for measure in measures)


def _unit(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _degrees(value: float) -> str:
    return f"{math.degrees(value):.0f}"


def _cell(values: Iterable[float | None], shown: Callable[[float], str], *, empty: str = "-") -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return shown(statistics.median(known)) if known else empty
