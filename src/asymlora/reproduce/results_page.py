"""The page of results, every claim with its verdict, and a page for each artefact, as Markdown. No torch in here.

Figures are drawings (SVG) of the same records; each says in a comment which ones by their SHA-256.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from asymlora.atomic import write_file
from asymlora.errors import DataError, SpecError
from asymlora.reproduce.artefact import Artefact
from asymlora.reproduce.by_paper import Group, Paper, by_paper, got_right, link, verdicts_said
from asymlora.reproduce.claim import VERDICTS, Claim, Finding
from asymlora.reproduce.evidence import MissingEvidenceError
from asymlora.reproduce.kept_results import KEPT, read_kept
from asymlora.reproduce.remarks import REMARKS, read_remarks, without_remark
from asymlora.reproduce.results_sections import (
    KINDS,
    Entry,
    artefact_page,
    core_seconds,
    ours,
    p_text,
    plain,
    table,
    verdict_text,
)

PAGE = "results.md"
COMMAND = "python experiments/results_page.py"
_DRAWN_FROM = re.compile(r"<!-- drawn from records with SHA-256 ([0-9a-f]{64}) -->")


def read_entries(artefacts: Iterable[Artefact], results: Path) -> list[Entry]:
    """Read the kept results of artefacts, with the remarks beside them.

    Args:
        artefacts: In the order of the page; those without kept results are passed over.
        results: Folder with a folder for each artefact.

    Returns:
        What the page is made from.

    Raises:
        SpecError: A claim has no finding or the other way round, a remark is stale, or a claim that fails or is
            undecided has none.
        RunFolderError: Results are damaged.
    """
    return [
        _entry(artefact, results / artefact.name)
        for artefact in artefacts
        if (results / artefact.name / KEPT).is_file()
    ]


def pages(entries: Sequence[Entry], *, papers: Sequence[Paper] = (), not_run: Sequence[str] = ()) -> Mapping[str, str]:
    """Return the page of all results and that of each artefact.

    Args:
        entries: What is known of each artefact.
        papers: What the papers are called that artefacts are of.
        not_run: Names of artefacts that have no kept results.

    Returns:
        Markdown by path, the page of all results first; the same for the same results.
    """
    overview = _overview(entries, by_paper(entries, papers), not_run)
    return {PAGE: overview} | {entry.page: artefact_page(entry) for entry in entries}


def _overview(entries: Sequence[Entry], groups: Sequence[Group], not_run: Sequence[str]) -> str:
    lines = ["# The papers' claims, judged", "", *_opening(entries, not_run), *_all(entries, groups)]
    lines += [*_got_right(groups), *_how_judged()]
    for group in groups:
        lines += [f"## {plain(group.heading)}", "", *_abstract(group), *_artefacts(group)]
    return "\n".join(lines).rstrip("\n") + "\n"


def save_figure(entry: Entry, folder: Path) -> Path:
    """Draw the figure of an artefact, and note in it which records it was drawn from.

    Args:
        entry: What is known of the artefact.
        folder: Where it goes.

    Returns:
        The file.

    Raises:
        DataError: The kept records lack what the figure shows.
        MissingPackageError: Plotly, Kaleido or a browser is missing.
    """
    try:
        drawing: bytes = entry.artefact.figure(entry.kept.evidence).svg()
    except MissingEvidenceError as missing:
        raise DataError(
            f"The figure of {entry.artefact.name} cannot be drawn: its kept records lack {missing}. Run the whole"
            " artefact, and keep it again."
        ) from None
    comment = f"<!-- drawn from records with SHA-256 {entry.kept.digest} -->"
    path = folder / entry.figure
    write_file(path, f"{drawing.decode().rstrip()}\n{comment}\n")
    return path


def drawn_from(figure: Path) -> str | None:
    """Return the SHA-256 of the records that a figure was drawn from; None where it says none, or is not there.

    Args:
        figure: The file.
    """
    found = _DRAWN_FROM.search(figure.read_text(encoding="utf-8")) if figure.is_file() else None
    return found[1] if found else None


def _entry(artefact: Artefact, folder: Path) -> Entry:
    kept = read_kept(folder)
    claims = [claim.key for claim in artefact.claims]
    if list(kept.findings) != claims:
        differing = ", ".join(sorted(set(claims) ^ set(kept.findings))) or "their order"
        raise SpecError(
            f"{folder} has findings of other claims than {artefact.name} has now ({differing}). Judge its records"
            f" again: {COMMAND} --judge."
        )
    remarks = read_remarks(folder, kept.findings)
    if missing := without_remark(kept.findings, remarks):
        raise SpecError(
            f"{folder / REMARKS} says nothing of {', '.join(missing)}, which fail or are undecided. Give each a"
            " verdict, an explanation and what would decide it."
        )
    return Entry(artefact=artefact, kept=kept, remarks=remarks)


def _opening(entries: Sequence[Entry], not_run: Sequence[str]) -> list[str]:
    counts = Counter(found.verdict for entry in entries for _, found in entry.claims)
    minutes = sum(core_seconds(entry.kept) for entry in entries) / 120
    claims = f"{_counted(sum(counts.values()), 'claim')} of {_counted(len(entries), 'artefact')}"
    lines = [
        f"{claims}, {_counted(round(minutes), 'minute')} of two cores: {verdicts_said(counts)},"
        f" {counts['not testable here']} not testable here. The models are"
        " small and embedded, not the papers': a claim is a relation between arms, and no number here is to be held"
        " against a number of the paper as such.",
        "",
    ]
    if unfinished := [f"`{entry.artefact.name}`" for entry in entries if not entry.kept.finished]:
        lines += [f"Begun and not finished, so that verdicts may change: {', '.join(unfinished)}.", ""]
    if not_run:
        names = ", ".join(f"`{name}`" for name in not_run)
        lines += [f"Not run yet: {names}.", ""]
    return lines


def _how_judged() -> list[str]:
    return [
        "## How they were judged", "",
        "Arms are paired by seed; learning rates are tuned for each arm, on validation, on seeds of their own. Two"
        " looks, at six and at ten pairs, use an exact two-sided sign-flip test of a difference, two one-sided ones"
        " that there is none beyond a margin, or one of them that a difference is no more than a margin for the worse,"
        " at levels 0.031 and 0.019, together 0.05. What the first look decided"
        " stands; other claims are judged on all seeds that there are. A claim that is *undecided* has neither been"
        " shown nor refuted.",
        "",
        "These levels are for each claim, and in a claim of several tests for each test: nothing is corrected for their"
        " number. Of every twenty differences that are not there about one may have been found.",
        "",
        f"The page is written by `{COMMAND}` from the records in `experiments/results`; `asymlora reproduce NAME` makes"
        " new ones.",
        "",
    ]  # fmt: skip


def _counted(count: int, one: str) -> str:
    # "1 claim", "2 claims".
    return f"{count} {one}{'' if count == 1 else 's'}"


def _got_right(groups: Sequence[Group]) -> list[str]:
    told = [(group, said) for group in groups if (said := got_right(group))]
    if not told:
        return []
    paragraphs = [text for group, (counts, *said) in told for text in (f"**{plain(group.name)}.** {counts}", *said)]
    return ["## What the papers got right", "", *(line for text in paragraphs for line in (text, ""))]


def _abstract(group: Group) -> list[str]:
    rows = [
        (plain(claim.says), verdict_text(found), plain(ours(found)), _explained(entry, claim), link(entry))
        for entry, claim, found in group.claims
        if claim.kind == "abstract"
    ]
    if not rows:
        return []
    heads = ("the abstract says", "verdict", "ours", "explanation", "artefact")
    return ["What the abstract says, and what came of it:", "", *table(heads, rows)]


def _artefacts(group: Group) -> list[str]:
    rows = [
        (
            link(entry), plain(entry.artefact.title),
            verdicts_said(Counter(found.verdict for _, found in entry.claims)),
        )
        for entry in group.entries
    ]  # fmt: skip
    return [
        "Figures, settings, tests and records, artefact by artefact:",
        "",
        *table(("artefact", "what it is", "claims"), rows),
    ]


def _all(entries: Sequence[Entry], groups: Sequence[Group]) -> list[str]:
    rows = [
        (
            link(entry), plain(claim.says), plain(claim.paper) or "-", plain(ours(found)),
            _test(found), verdict_text(found),
        )
        for entry in entries
        for claim, found in entry.claims
    ]  # fmt: skip
    heads = ("artefact", "claim", "paper", "ours", "test", "verdict")
    return ["## All claims", "", *_counts(groups), *table(heads, rows)]


def _counts(groups: Sequence[Group]) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for group in groups:
        found = Counter((claim.kind, finding.verdict) for _, claim, finding in group.claims)
        for kind in (kind for kind in KINDS if any(found[kind, verdict] for verdict in VERDICTS)):
            counts = (str(found[kind, verdict]) for verdict in VERDICTS)
            rows.append((plain(group.name), KINDS[kind], *counts))
    return table(("paper", "claims from", *VERDICTS), rows)


def _explained(entry: Entry, claim: Claim) -> str:
    remark = entry.remarks.get(claim.key)
    return "-" if remark is None else plain(remark.explanation)


def _test(found: Finding) -> str:
    if found.p is not None:
        shown = p_text(found.p).replace("<", "&lt;")
        return f"p {shown}, {found.pairs} pairs" if found.pairs else f"p {shown}"
    if found.verdict == "not testable here":
        return "-"
    if found.joined > 1:
        return f"{found.joined} tests"
    return f"{found.pairs} pairs, no test" if found.pairs else "as stated"
