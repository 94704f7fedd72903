"""One artefact's page of results, as Markdown: what was run, its figure, each claim with its test.

Everything is from the artefact and from kept results; the same results give the same text. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asymlora.reproduce.artefact import Artefact, Scale
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.kept_results import Kept
from asymlora.reproduce.remarks import NEED_ONE, Remark

KINDS: Mapping[str, str] = {
    "abstract": "the paper's abstract",
    "paper": "elsewhere in the paper",
    "derived": "derived from its theory, by us",
    "question": "left open by the paper",
}
"""Where a claim stands, for people."""
PAGES = "results"
"""Folder of the artefacts' pages, beside the page of all results."""
_REMARKED = ("Explanation", "What would decide it")
_QUALIFIED = ("What limits it", "What would tell more")
"""Heads of the two parts of a remark: of a claim that needs one, and of any other."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """All that is said of one artefact.

    Attributes:
        artefact: The artefact.
        kept: Its kept results.
        remarks: What is said of claims that fail or are undecided, by key.
    """

    artefact: Artefact
    kept: Kept
    remarks: Mapping[str, Remark] = field(default_factory=dict[str, Remark])

    @property
    def claims(self) -> Iterator[tuple[Claim, Finding]]:
        """Yield each claim with what was found."""
        for claim in self.artefact.claims:
            yield claim, self.kept.findings[claim.key]

    @property
    def scale(self) -> Scale:
        """The scale that was run."""
        return self.artefact.scale(self.kept.scale)

    @property
    def figure(self) -> str:
        """Name of the figure's file."""
        return f"results_{self.artefact.name}.svg"

    @property
    def page(self) -> str:
        """Path of its page, seen from the page of all results."""
        return page_of(self.artefact.name)


def page_of(name: str) -> str:
    """Return the path of an artefact's page, seen from the page of all results.

    Args:
        name: Of the artefact.
    """
    return f"{PAGES}/{name}.md"


def artefact_page(entry: Entry) -> str:
    """Return the page of an artefact.

    Args:
        entry: The artefact and what is known of it.
    """
    artefact, scale = entry.artefact, entry.scale
    lines = [
        f"# {artefact.name}", "", f"**{plain(artefact.title)}** ({plain(artefact.source)}).", "",
        plain(artefact.shows), "", f"![{plain(artefact.title)}](../figures/{entry.figure})", "",
        "## Claims", "", *_numbers(entry), *(line for pair in entry.claims for line in _claim(entry, *pair)),
        *_run(entry), *_settings(scale), *_data(scale),
        *_listed("Cut to fit, first what went first:", scale.cut), *_again(entry),
        "All claims, and how they were judged: [Results](../results.md).",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    r"""Return a text on one line in which nothing but code between backticks is markup.

    Example:
        >>> plain("|Z_A| < 1 and\n`a | b`")
        '&#124;Z_A&#124; &lt; 1 and `a \\| b`'
    """
    # Entities are read alike by GitHub and MkDocs, in tables and outside; in code none is.
    parts = " ".join(text.split()).split("`")
    for number, part in enumerate(parts):
        if number % 2:
            parts[number] = part.replace("|", r"\|")
        else:
            parts[number] = part.replace("<", "&lt;").replace("*", r"\*").replace("|", "&#124;")
    return "`".join(parts)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table and an empty one; texts are as `plain` gives them.

    Args:
        heads: Names of the columns.
        rows: Texts of the cells.
    """
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *lines, ""]


def verdict_text(finding: Finding) -> str:
    """Return a verdict, in bold."""
    return f"**{finding.verdict}**"


def p_text(p: float | None) -> str:
    """Return a p-value, or a dash.

    Example:
        >>> p_text(0.03125), p_text(1e-9), p_text(None)
        ('0.031', '< 0.001', '-')
    """
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def first_sentence(text: str) -> str:
    """Return the first sentence of a text.

    Example:
        >>> first_sentence("Mean 0.5 points, p 0.031. Left out: none.")
        'Mean 0.5 points, p 0.031.'
    """
    return re.split(r"(?<=[.])\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]


def ours(finding: Finding) -> str:
    """Return what was found as it stands in a table: the first sentence of one finding, the verdicts of joined ones.

    Args:
        finding: The finding.
    """
    # The numbers of ten parts fill a screen, and those of the first would stand beside the verdict on all of them.
    return finding.brief or first_sentence(finding.ours)


def _run(entry: Entry) -> list[str]:
    kept, scale = entry.kept, entry.scale
    lines = [
        *([] if kept.finished else ["- **Not finished**: not all that the artefact asks for has been run."]),
        *([f"- Model: {plain(scale.model)}."] if scale.model else []),
        f"- Scale: {kept.scale}; {_amount(kept)}.",
        *(f"- {line}" for line in (_time(entry), _machine(kept)) if line),
        *(f"- In a later session (first / later): {plain(change)}." for change in kept.changes),
    ]
    if kept.second_look:
        names = ", ".join(f"`{name}`" for name in kept.second_look)
        lines.append(f"- Undecided after six paired seeds, so gone on with to ten: {names}.")
    return ["## What was run", "", *lines, "", "```", *kept.commands, "```", ""]


def _amount(kept: Kept) -> str:
    said = [
        f"`{name}`: {head['runs']} runs" if head["kind"] == "sweep"
        else f"`{name}`: {head['records']:,} measurements at {head['points']} points"
        for name, head in kept.parts.items()
    ]  # fmt: skip
    return ", ".join(said)


def _time(entry: Entry) -> str:
    kept, now = entry.kept, entry.scale.minutes
    stated: float | None = kept.stated.get("minutes")
    minutes = core_seconds(kept) / 120
    shown = f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}"
    days = sorted({day for head in kept.parts.values() for day in head["ended"]})
    changed = "" if now in (stated, None) else f"; the artefact says {now:g} now"
    beforehand = "" if stated is None else f" (stated beforehand: {stated:g}{changed})"
    when = "" if not days else f", on {days[0]}" if days[0] == days[-1] else f", from {days[0]} to {days[-1]}"
    memory = max((head.get("memory_gib") or 0.0 for head in kept.parts.values()), default=0.0)
    held = f"; the largest process held {memory:.1f} GiB" if memory else ""
    return f"{shown} minutes of two cores{beforehand}{when}{held}."


def core_seconds(kept: Kept) -> float:
    """Return the seconds of one core that runs and measurements took; the latter had all of torch's threads.

    Args:
        kept: The results.
    """
    threads = kept.environment.get("threads") or 1
    return sum(head["seconds"] * max(head.get("threads") or [threads]) for head in kept.parts.values())


def _machine(kept: Kept) -> str:
    found = kept.environment
    if not found:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items())
    hardware = found.get("accelerator") or "no accelerator"
    cpus = f"{found.get('cpus')} processors"
    return plain(f"{found.get('system')}, {cpus}, {hardware}; Python {found.get('python')}, {versions}.")


def _numbers(entry: Entry) -> list[str]:
    heads = ("claim", "verdict", "kind", "effect", "interval", "p", "pairs", "detectable", "seeds needed")
    rows = [
        (
            f"`{claim.key}`", verdict_text(found), claim.kind, _number(found.estimate), _interval(found),
            p_text(found.p).replace("<", "&lt;"), _count(found.pairs), _number(found.detectable),
            _count(found.seeds_needed),
        )
        for claim, found in entry.claims
    ]  # fmt: skip
    kinds = "; ".join(f"{kind}, {where}" for kind, where in KINDS.items())
    said = (
        f"*Kind*: {kinds}. Effects are in the unit of what is measured (a fraction for accuracies); the sentences below"
        " give them with units. *Interval*: at 1 less the level of the test, so 96.9 % with six seeds and 98.1 % with"
        " ten; of 95 % where there is no test. *Detectable*: the effect that so many pairs find with 80 % power; *seeds"
        " needed*: to decide the effect as it was measured."
    )
    return [*table(heads, rows), said, ""]


def _claim(entry: Entry, claim: Claim, found: Finding) -> list[str]:
    paper = f" Paper: {_ended(plain(claim.paper))}" if claim.paper else ""
    lines = [
        f"**{plain(claim.says)}** `{claim.key}`: {verdict_text(found)}", "",
        f"- Source: {_ended(plain(claim.source))}{paper}",
        *_stated_test(entry, claim),
        f"- Ours: {_ended(plain(found.ours))}",
    ]  # fmt: skip
    if entry.kept.second_look and claim.key in entry.kept.decided:
        lines.append(f"- Decided at the {entry.kept.decided[claim.key]} look.")
    remark = entry.remarks.get(claim.key)
    if remark is not None:
        explains, asks = _REMARKED if remark.verdict in NEED_ONE else _QUALIFIED
        lines.append(f"- {explains}: {_ended(plain(remark.explanation))}")
        lines.append(f"- {asks}: {_ended(plain(remark.would_decide))}")
    return [*lines, ""]


def _stated_test(entry: Entry, claim: Claim) -> list[str]:
    now, before = _ended(plain(claim.test)), entry.kept.stated.get("tests", {}).get(claim.key)
    if before is None:
        return [f"- Test, which was not noted before the runs: {now}"]
    if before == claim.test:
        return [f"- Test, stated before the runs: {now}"]
    return [f"- Test, changed since the runs: {now}", f"- Test, as it was stated before them: {_ended(plain(before))}"]


def _settings(scale: Scale) -> list[str]:
    rows = [(plain(s.what), plain(s.paper), plain(s.ours), plain(s.why)) for s in scale.settings]
    heads = ("setting", "paper", "ours", "why")
    return ["## Settings that differ or are unknown", "", *table(heads, rows)] if rows else []


def _data(scale: Scale) -> list[str]:
    rows = [
        (plain(data.name), plain(data.source), f"`{data.place}`" if data.place else "with its package")
        for data in scale.data
    ]
    return ["## Data", "", *table(("data", "public source", "below `--data-root`"), rows)] if rows else []


def _listed(head: str, items: Sequence[str]) -> list[str]:
    return [head, "", *(f"- {plain(item)}" for item in items), ""] if items else []


def _again(entry: Entry) -> list[str]:
    artefact, scale = entry.artefact, "" if entry.kept.scale == "small" else f" --scale {entry.kept.scale}"
    root = " --data-root FOLDER" if any(data.place for data in entry.scale.data) else ""
    command = f"asymlora reproduce {artefact.name}{scale}{root} --out reproductions/{artefact.name}-again"
    return [
        "## How to run it again", "", "```", f"{command} --against experiments/results", "```", "",
        f"That holds each new number against the interval of the kept one (`experiments/results/{artefact.name}`). The"
        " folder must be a new one: of a finished run nothing is done again.", "",
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(found: Finding) -> str:
    return "-" if found.interval is None else f"{found.interval[0]:.3g} to {found.interval[1]:.3g}"


def _count(value: Any) -> str:
    return "-" if value is None else str(value)


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
