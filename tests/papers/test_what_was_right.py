from __future__ import annotations

from asymlora.papers import catalogue
from asymlora.papers.what_was_right import PAPERS


def test_every_sentence_stands_on_claims_of_its_own_paper() -> None:
    for paper in PAPERS:
        known = {
            f"{artefact.name}.{claim.key}"
            for artefact in catalogue.every() if paper.arxiv in artefact.source
            for claim in artefact.claims
        }  # fmt: skip
        named = {name for one in paper.in_words for name in one.when}
        assert named, paper.name
        assert named <= known


def test_sentences_on_the_same_claims_are_alternatives() -> None:
    # Some claim of both has verdicts that exclude each other.
    for paper in PAPERS:
        seen: dict[frozenset[str], list[list[set[str]]]] = {}
        for one in paper.in_words:
            names = sorted(one.when)
            verdicts = [{wanted} if isinstance(wanted := one.when[name], str) else set(wanted) for name in names]
            for other in seen.setdefault(frozenset(names), []):
                assert any(not (mine & theirs) for mine, theirs in zip(verdicts, other, strict=True)), one.says
            seen[frozenset(names)].append(verdicts)
