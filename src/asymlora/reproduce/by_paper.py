"""Which paper each artefact of the page of results is of, and what a paper got right, from its verdicts. No torch.

Every word that depends on results follows from verdicts. The names of the papers are given by who writes the page, and
the sentences that are said while verdicts are there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from asymlora.reproduce.claim import Claim, Finding, Kind
from asymlora.reproduce.factor_guide import Answer, Backing
from asymlora.reproduce.results_sections import Entry, plain

BEYOND = "Beyond the papers"
"""What is of no paper."""
_FAILS: Mapping[tuple[Kind, ...], str] = {
    ("abstract", "paper"): "Wrong here",
    ("derived",): "Fails, of what follows from its theory",
    ("question",): "Fails, of what it leaves open",
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
        in_words: What is to be said of it, each while the verdicts are there that it stands on.
    """

    arxiv: str
    name: str
    title: str
    in_words: Sequence[Answer] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """The artefacts of one paper, or of none.

    Attributes:
        name: What the paper is called, short.
        heading: The same with its title.
        entries: Its artefacts, in the order of the page.
        in_words: As of the paper.
    """

    name: str
    heading: str
    entries: Sequence[Entry]
    in_words: Sequence[Answer] = ()

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
    known = {paper.arxiv: paper for paper in papers}
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        found = _ARXIV.search(entry.artefact.source)
        groups.setdefault(found[1] if found else "", []).append(entry)
    beyond = groups.pop("", [])
    made = [_group(known.get(number), number, of_it) for number, of_it in groups.items()]
    return [*made, *([Group(name=BEYOND, heading=BEYOND, entries=beyond)] if beyond else [])]


def _group(paper: Paper | None, number: str, entries: Sequence[Entry]) -> Group:
    if paper is None:
        return Group(name=f"arXiv:{number}", heading=f"arXiv:{number}", entries=entries)
    heading = f"{paper.name}: {paper.title}"
    return Group(name=paper.name, heading=heading, entries=entries, in_words=paper.in_words)


def got_right(group: Group) -> list[str]:
    """Return what a paper got right, what not, and what is open.

    Args:
        group: Its artefacts.

    Returns:
        Paragraphs: counts, what is said in words with these verdicts, and every claim that fails. None where no claim
        of its own was judged, and where it is no paper.
    """
    own = [found for _, claim, found in group.claims if claim.kind in ("abstract", "paper")]
    if not own or group.name == BEYOND:
        return []
    counts = Counter(found.verdict for found in own)
    tested = len(own) - counts["not testable here"]
    said = [
        f"Of its {len(own)} claims here {tested} could be tested on these models and data: {verdicts_said(counts)}."
    ]
    for kind, what in _NOT_ITS_OWN.items():
        found = Counter(f.verdict for _, claim, f in group.claims if claim.kind == kind)
        if found:
            said.append(f"Of {sum(found.values())} that {what}: {verdicts_said(found)}.")
    backings = {
        f"{entry.artefact.name}.{claim.key}": Backing(artefact=entry.artefact.name, claim=claim, finding=found)
        for entry, claim, found in group.claims
    }
    words = " ".join(one.says for one in group.in_words if one.fits(backings))
    failing = (_failing(group, kinds, head) for kinds, head in _FAILS.items())
    return [text for text in (" ".join(said), plain(words), *failing) if text]


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


def _failing(group: Group, kinds: Sequence[Kind], head: str) -> str:
    told = [
        f"{plain(claim.says.rstrip('.'))} ({link(entry)})"
        for entry, claim, found in group.claims
        if claim.kind in kinds and found.verdict == "fails"
    ]
    return f"{head}: {'; '.join(told)}." if told else ""
