"""The page "Which factor should I train?": sentences that stand on kept findings and are not there without them.

An answer names the verdicts that it stands on; of a question's answers the first whose verdicts are the kept ones is
given, with the findings below it. What has not been run is said to be so. No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from asymlora.errors import SpecError
from asymlora.reproduce.artefact import Artefact
from asymlora.reproduce.claim import Claim, Finding, Verdict
from asymlora.reproduce.kept_results import kept_findings
from asymlora.reproduce.results_sections import first_sentence, ours, page_of, plain, table, verdict_text
from asymlora.reproduce.tuned_rates import TunedRates

RESULTS = "results.md"
"""Page that the findings are linked to."""
Wanted = Verdict | Literal["fails below", "fails above", "holds below", "holds above"]
"""A verdict; of a claim that two things are alike also on which side, by the sign of the difference."""
OPEN = "What was run does not answer this."
"""Where no answer fits the verdicts."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A sentence, and what it stands on.

    Attributes:
        when: The verdict that each finding must have, by ``artefact.claim``; several are alternatives. At least one.
        says: What a practitioner does then, as sentences.
    """

    when: Mapping[str, Wanted | tuple[Wanted, ...]]
    says: str

    def fits(self, backings: Mapping[str, Backing]) -> bool:
        """Return whether every finding is kept and has one of its verdicts.

        Args:
            backings: By ``artefact.claim``.
        """
        return all(
            name in backings and _is_one_of(backings[name].finding, (wanted,) if isinstance(wanted, str) else wanted)
            for name, wanted in self.when.items()
        )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of a practitioner.

    Attributes:
        title: The question.
        asks: Findings that bear on it, each ``artefact.claim``, in the order of the table below the answer.
        answers: The first that fits is given.
        all_that_fit: Whether every answer that fits is given instead, one after another.
    """

    title: str
    asks: tuple[str, ...]
    answers: tuple[Answer, ...]
    all_that_fit: bool = False

    def __post_init__(self) -> None:
        """Refuse answers that stand on nothing, or on what is not shown below them.

        Raises:
            SpecError: There is one.
        """
        for answer in self.answers:
            if not answer.when or not set(answer.when) <= set(self.asks):
                raise SpecError(
                    f"Question {self.title!r}: the answer {answer.says!r} stands on {sorted(answer.when)}. Give one or"
                    f" more of what it asks: {', '.join(self.asks)}."
                )


@dataclass(frozen=True, kw_only=True)
class Default:
    """A default of ``asymlora finetune``.

    Attributes:
        what: What it is the default of.
        value: What it is, read from the code.
        asks: Findings that bear on it, each ``artefact.claim``.
    """

    what: str
    value: str
    asks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Backing:
    """A kept finding.

    Attributes:
        artefact: Of which artefact.
        claim: What was claimed.
        finding: What was found.
    """

    artefact: str
    claim: Claim
    finding: Finding


@dataclass(frozen=True, kw_only=True)
class Guide:
    """All of the page that does not depend on results.

    Attributes:
        title: Its title.
        opening: Sentences that are true whatever was found.
        questions: In their order.
        defaults: Of ``asymlora finetune``.
        command: What writes the page.
    """

    title: str
    opening: str
    questions: tuple[Question, ...]
    defaults: tuple[Default, ...] = field(default=())
    command: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every finding that it asks for, each once."""
        return tuple(dict.fromkeys(name for one in (*self.questions, *self.defaults) for name in one.asks))

    def refuse_unknown(self, artefacts: Iterable[Artefact]) -> None:
        """Refuse to ask an artefact for a claim that it does not have.

        Args:
            artefacts: Those that there are; what is asked of others counts as not run.

        Raises:
            SpecError: Claims are unknown; all of them are named.
        """
        known = {artefact.name: {claim.key for claim in artefact.claims} for artefact in artefacts}
        asked = [name.partition(".") for name in self.names]
        if unknown := [f"{name}.{key}" for name, _, key in asked if name in known and key not in known[name]]:
            raise SpecError(
                f"The page {self.title!r} asks for claims that no artefact has: {', '.join(unknown)}. Name claims as"
                " they are called now, ARTEFACT.CLAIM."
            )


def read_backings(artefacts: Iterable[Artefact], results: Path) -> dict[str, Backing]:
    """Read the kept findings of artefacts.

    Args:
        artefacts: The artefacts; those without kept results are passed over.
        results: Folder with a folder for each artefact.

    Returns:
        By ``artefact.claim``.

    Raises:
        RunFolderError: Results are damaged.
    """
    found: dict[str, Backing] = {}
    for artefact in artefacts:
        kept = kept_findings(results / artefact.name)
        for claim in artefact.claims:
            if claim.key in kept:
                name = f"{artefact.name}.{claim.key}"
                found[name] = Backing(artefact=artefact.name, claim=claim, finding=kept[claim.key])
    return found


def render(guide: Guide, backings: Mapping[str, Backing], *, rates: Sequence[TunedRates] = ()) -> str:
    """Return the page.

    Args:
        guide: Its questions and answers.
        backings: Kept findings by ``artefact.claim``.
        rates: Best rates of kept sweeps; none: there is no table of them.

    Returns:
        Markdown, the same for the same findings.
    """
    short = [(plain(one.title), plain(_in_short(one, backings))) for one in guide.questions]
    lines = [
        f"# {guide.title}", "", plain(guide.opening), "",
        f"Every answer stands on findings that are kept with their records ([Results]({RESULTS})), shown below it; the"
        f" page is written from them by `{guide.command}`. Where there is no finding there is no answer.", "",
        "## In short", "", *table(("question", "answer"), short),
        *(line for one in guide.questions for line in _section(one, backings)), *_rates(rates),
        *_defaults(guide.defaults, backings),
    ]  # fmt: skip
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(question: Question, backings: Mapping[str, Backing]) -> Iterator[str]:
    yield from (f"## {plain(question.title)}", "", plain(_answer(question, backings)), "")
    kept = [backings[name] for name in question.asks if name in backings]
    if not kept:
        return
    rows = [
        (plain(one.claim.says), verdict_text(one.finding), plain(ours(one.finding)), _link(one.artefact))
        for one in kept
    ]
    yield from table(("claim", "verdict", "ours", "artefact"), rows)
    if missing := _not_run(question.asks, backings):
        yield from (missing, "")


def _in_short(question: Question, backings: Mapping[str, Backing]) -> str:
    whole = _answer(question, backings)
    return whole if question.all_that_fit else first_sentence(whole)


def _answer(question: Question, backings: Mapping[str, Backing]) -> str:
    fitting = [answer.says for answer in question.answers if answer.fits(backings)]
    if fitting:
        return " ".join(fitting if question.all_that_fit else fitting[:1])
    return OPEN if any(name in backings for name in question.asks) else _not_run(question.asks, backings)


def _is_one_of(found: Finding, wanted: Sequence[Wanted]) -> bool:
    side = f"{found.verdict} {'above' if (found.estimate or 0.0) > 0 else 'below'}"
    return found.verdict in wanted or (found.estimate is not None and side in wanted)


def _not_run(asks: Sequence[str], backings: Mapping[str, Backing]) -> str:
    names = dict.fromkeys(name.partition(".")[0] for name in asks if name not in backings)
    return f"Not run yet: {', '.join(f'`{name}`' for name in names)}." if names else ""


def _rates(rates: Sequence[TunedRates]) -> list[str]:
    if not rates:
        return []
    rows = [
        (
            plain(one.model),
            _link(one.artefact),
            f"`{one.part}`",
            plain(one.training),
            plain("; ".join(f"{a}: {r}" for a, r in one.rates.items())),
        )
        for one in sorted(rates, key=lambda one: one.model)
    ]
    heads = ("model", "artefact", "part", "training", "best rate by arm")
    told = (
        "The rate with the best mean on validation over the tuning seeds, of those that were tried; the artefact says"
        " which, and what its arms are. Start a sweep of your own around the one that is nearest to your case."
    )
    return ["## The best rates that sweeps found", "", told, "", *table(heads, rows)]


def _defaults(defaults: Sequence[Default], backings: Mapping[str, Backing]) -> list[str]:
    if not defaults:
        return []
    rows = [(plain(one.what), plain(one.value), _findings(one, backings)) for one in defaults]
    heads = ("of", "default", "findings that bear on it")
    return ["## What `asymlora finetune` does if nothing is said", "", *table(heads, rows)]


def _findings(default: Default, backings: Mapping[str, Backing]) -> str:
    said = [
        f"{plain(one.claim.says.rstrip('.'))}: {verdict_text(one.finding)} ({_link(one.artefact)})"
        for name in default.asks
        if (one := backings.get(name)) is not None
    ]
    return "; ".join([*said, *filter(None, [_not_run(default.asks, backings).rstrip(".")])])


def _link(artefact: str) -> str:
    return f"[{artefact}]({page_of(artefact)})"
