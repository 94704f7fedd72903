from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from asymlora.reproduce.by_paper import BEYOND, Paper, by_paper, got_right
from asymlora.reproduce.claim import Claim, Finding, Kind, Verdict
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.factor_guide import Answer
from asymlora.reproduce.kept_results import Kept
from asymlora.reproduce.plain_findings import described
from asymlora.reproduce.results_sections import Entry
from reproduce.made_artefact import ARTEFACT


def _claim(key: str, kind: Kind) -> Claim:
    return Claim(
        key=key, says=f"So says {key}.", kind=kind, source="x", test="x", parts=(), judge=lambda _: described("x")
    )


def _entry(name: str, source: str, claims: Mapping[str, tuple[Kind, Verdict]]) -> Entry:
    told = tuple(_claim(key, kind) for key, (kind, _) in claims.items())
    findings = {key: Finding(verdict=verdict, ours="x") for key, (_, verdict) in claims.items()}
    kept = Kept(artefact=name, scale="small", evidence=Evidence(), findings=findings)
    return Entry(artefact=replace(ARTEFACT, name=name, source=source, claims=told), kept=kept)


PAPER = Paper(arxiv="2402.16842", name="Zhu et al. 2024", title="Asymmetry")
TABLE = _entry("table", "Zhu, arXiv:2402.16842, as arXiv:1111.11111 has it", {
    "trained_b": ("abstract", "holds"), "random_a": ("abstract", "fails"), "row": ("paper", "holds"),
    "line": ("paper", "holds"),
    "large": ("paper", "not testable here"), "open": ("question", "undecided"),
})  # fmt: skip


def test_an_artefact_is_of_the_first_paper_that_its_source_names() -> None:
    none, other = _entry("none", "of no paper", {}), _entry("other", "arXiv:2406.08447", {})
    groups = by_paper([none, TABLE, other], [PAPER])
    assert [(group.heading, [e.artefact.name for e in group.entries]) for group in groups] == [
        ("Zhu et al. 2024: Asymmetry", ["table"]), ("arXiv:2406.08447", ["other"]), (BEYOND, ["none"]),
    ]  # fmt: skip


def test_what_a_paper_got_right_is_told_by_its_verdicts() -> None:
    figure = _entry("figure", "arXiv:2402.16842", {"slope": ("derived", "fails"), "gap": ("abstract", "undecided")})
    words = (
        Answer(when={"table.trained_b": "holds", "figure.gap": ("fails", "undecided")}, says="Right in the table."),
        Answer(when={"table.random_a": "holds"}, says="Not said."),
        Answer(when={"other.line": "holds"}, says="Not run, so not said."),
    )
    (group,) = by_paper([TABLE, figure], [replace(PAPER, in_words=words)])
    assert got_right(group) == [
        "Of its 6 claims here 5 could be tested on these models and data: 3 hold, 1 fails, 1 undecided."
        " Of 1 that follow from its theory, by us: 0 hold, 1 fails, 0 undecided."
        " Of 1 that it leaves open: 0 hold, 0 fail, 1 undecided.",
        "Right in the table.",
        "Wrong here: So says random_a ([table](results/table.md)).",
        "Fails, of what follows from its theory: So says slope ([figure](results/figure.md)).",
    ]


def test_nothing_is_said_where_no_claim_of_its_own_was_judged() -> None:
    (group,) = by_paper([_entry("own", "of no paper", {"better": ("question", "holds")})])
    assert got_right(group) == []
