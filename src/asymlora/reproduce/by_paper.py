"""Which paper each artefact of the page of results is of, and what a paper got right, from its verdicts. No torch.

Every word that depends on results follows from verdicts; the names of the papers are given by who writes the page.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from asymlora.reproduce.claim import Claim, Finding, Kind, Verdict
from asymlora.reproduce.results_sections import Entry, plain

BEYOND = "Beyond the papers"
"""What is of no paper."""
_HEADS: Mapping[str, Verdict] = {
    "Right": "holds",
    "Wrong here": "fails",
    "Neither shown nor refuted": "undecided",
}
_NOT_ITS_OWN: Mapping[Kind, str] = {"derived": "follow from its theory, by us", "question": "it leaves open"}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What a paper is called.

    Attributes:
        arxiv: Its number, as the sources of its artefacts have it: ``2406.08447``.
        name: Authors and year, short.
        title: Its title.
    """

    arxiv: str
    name: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """The artefacts of one paper, or of none.

    Attributes:
        name: What the paper is called, short.
        heading: The same with its title.
        entries: Its artefacts, in the order of the page.
    """

    name: str
    heading: str
    entries: Sequence[Entry]

    @property
    def claims(self) -> Iterator[tuple[Entry, Claim, Finding]]:
        """Yield each claim with what was found."""
        for entry in self.entries:
            for claim, found in entry.claims:
                yield entry, claim, found


def by_paper(entries: Sequence[Entry], papers: Sequence[Paper] = ()) -> list[Group]:
    """Return the artefacts paper by paper, in the order of the first of each; those of none come last.

    Args:
        entries: What is known of each artefact. Its paper is the first number of arXiv in its source.
        papers: What the papers are called; others go by their number.
    """
    names = {paper.arxiv: (paper.name, f"{paper.name}: {paper.title}") for paper in papers}
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        found = _ARXIV.search(entry.artefact.source)
        groups.setdefault(found[1] if found else "", []).append(entry)
    beyond = groups.pop("", [])
    made = [
        Group(name=name, heading=heading, entries=of_it)
        for number, of_it in groups.items()
        for name, heading in [names.get(number, (f"arXiv:{number}",) * 2)]
    ]
    return [*made, *([Group(name=BEYOND, heading=BEYOND, entries=beyond)] if beyond else [])]


def got_right(group: Group) -> str:
    """Return in sentences what a paper got right, what not, and what is open: counts, and the claims by name.

    Claims of its abstract are told in full, those that stand elsewhere in it by their keys. What we derived from it and
    what it leaves open is counted apart.

    Args:
        group: Its artefacts.

    Returns:
        One paragraph; empty where none of its own claims was judged, and where it is no paper.
    """
    own = [(entry, claim, found) for entry, claim, found in group.claims if claim.kind in ("abstract", "paper")]
    if not own or group.name == BEYOND:
        return ""
    counts = Counter(found.verdict for _, _, found in own)
    tested = len(own) - counts["not testable here"]
    said = [
        f"Of its {len(own)} claims here {tested} could be tested on these models and data: {verdicts_said(counts)}."
    ]
    for head, verdict in _HEADS.items():
        said += _named(head, group, verdict)
    for kind, what in _NOT_ITS_OWN.items():
        found = Counter(f.verdict for _, claim, f in group.claims if claim.kind == kind)
        if found:
            said.append(f"Of {sum(found.values())} that {what}: {verdicts_said(found)}.")
            said += _by_key(group, kind, {"Holds": "holds", "Fails": "fails"})
    return " ".join(said)


def verdicts_said(counts: Mapping[str, int]) -> str:
    """Return how many claims hold, fail and are undecided.

    Args:
        counts: Claims by verdict.

    Example:
        >>> verdicts_said({"holds": 1, "fails": 2})
        '1 holds, 2 fail, 0 undecided'
    """
    holds, fails = counts.get("holds", 0), counts.get("fails", 0)
    verbs = ("holds" if holds == 1 else "hold", "fails" if fails == 1 else "fail")
    return f"{holds} {verbs[0]}, {fails} {verbs[1]}, {counts.get('undecided', 0)} undecided"


def link(entry: Entry) -> str:
    """Return a link to an artefact's page.

    Args:
        entry: The artefact.
    """
    return f"[{entry.artefact.name}]({entry.page})"


def _named(head: str, group: Group, verdict: Verdict) -> Iterator[str]:
    in_abstract = [
        f"{plain(claim.says.rstrip('.'))} ({link(entry)})"
        for entry, claim, found in group.claims
        if (claim.kind, found.verdict) == ("abstract", verdict)
    ]
    if in_abstract:
        yield f"{head}, of its abstract: {'; '.join(in_abstract)}."
    yield from _by_key(group, "paper", {f"{head}, elsewhere in it": verdict})


def _by_key(group: Group, kind: Kind, heads: Mapping[str, Verdict]) -> Iterator[str]:
    for head, verdict in heads.items():
        keys: dict[str, list[str]] = {}
        for entry, claim, found in group.claims:
            if (claim.kind, found.verdict) == (kind, verdict):
                keys.setdefault(link(entry), []).append(f"`{claim.key}`")
        if keys:
            said = (f"in {where} {', '.join(of_it)}" for where, of_it in keys.items())
            yield f"{head}: {'; '.join(said)}."
