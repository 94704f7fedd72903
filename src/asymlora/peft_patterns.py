"""PEFT's patterns of module names, read and written without running any regular expression that a file holds.

A key of a pattern is an expression that PEFT matches against paths. It is read here only if it is a plain name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asymlora.errors import SpecError

_MOST_COMPARISONS = 4_000_000


@dataclass(frozen=True)
class LiteralKey:
    """A key of a PEFT pattern that is a plain name.

    Attributes:
        text: The name, an ending of module paths by whole parts.
        wild: Positions at which any character may stand, where the key has a dot that is not escaped.
        anchored: Whether it is the whole path.
    """

    text: str
    wild: tuple[int, ...]
    anchored: bool

    def matches(self, path: str) -> bool:
        r"""Whether ``re.match(r"(.*\.)?(KEY)$", path)`` finds the key, without running it.

        Example:
            >>> key = literal_key(r"block\.q")
            >>> key.matches("a.block.q"), key.matches("a.myblock.q")
            (True, False)
        """
        before, tail = path[: len(path) - len(self.text)], path[-len(self.text) :]
        if len(tail) != len(self.text) or (before and (self.anchored or not before.endswith("."))):
            return False
        return tail == self.text or (
            bool(self.wild)
            and all(a == b or i in self.wild for i, (a, b) in enumerate(zip(tail, self.text, strict=True)))
        )


def literal_key(key: str) -> LiteralKey | None:
    """Return a key of a PEFT pattern as a plain name, or None if it is more of a regular expression than that."""
    body = key.removeprefix("^")
    if body.endswith("$") and not body.endswith("\\$"):
        body = body[:-1]
    pieces = re.findall(r"\\.|.", body, flags=re.DOTALL)
    text = "".join(piece[-1] for piece in pieces)
    regex = [p for p in pieces if p in tuple("[]{}()*+?|^$\\") or (len(p) == 2 and (p[1].isalnum() or p[1] == "_"))]
    if regex or not text:
        return None
    return LiteralKey(text, tuple(i for i, piece in enumerate(pieces) if piece == "."), key.startswith("^"))


class Rule:
    r"""PEFT's rule for one pattern: the first key in file order that matches the site, else the default.

    Where ``proper``, a key is the whole path only if no other matches (PEFT before 0.14:
    ``re.match(r".*\.KEY$", path)``, and the path itself where that finds none).

    Args:
        pattern: Values by key, in file order.
        sites: How many sites will be asked for.
        proper: Whether the rule is the old one.

    Raises:
        SpecError: So many keys hold unescaped dots that asking would take long.
    """

    def __init__(self, pattern: Mapping[str, Any], *, sites: int, proper: bool) -> None:
        self.proper = proper
        self.values = list(pattern.values())
        self.keys = list(pattern)
        self.places = {key: index for index, key in enumerate(pattern)}
        self.exact: dict[tuple[str, bool], int] = {}
        self.wild: list[tuple[int, LiteralKey]] = []
        self.regexes: list[int] = []
        for index, key in enumerate(self.keys):
            literal = literal_key(key)
            if literal is None:
                self.regexes.append(index)
            else:
                self.exact.setdefault((literal.text, literal.anchored), index)
                if literal.wild:
                    self.wild.append((index, literal))
        slow = len(self.wild) + len(self.regexes)
        if slow * sites > _MOST_COMPARISONS:
            raise SpecError(
                f"A pattern of {slow} keys with unescaped dots or expressions for {sites} sites is not read."
            )

    def value(self, site: str, default: Any) -> tuple[Any, list[str]]:
        """Return the value for a site; None where a regular expression would have to be run, and those keys."""
        parts = site.split(".")
        endings = [(".".join(parts[i:]), False) for i in range(int(self.proper), len(parts))]
        whole = [] if self.proper else [(site, True)]
        found = [self.exact[ending] for ending in [*endings, *whole] if ending in self.exact]
        found += [i for i, key in self.wild if key.matches(site) and not (self.proper and len(key.text) == len(site))]
        if self.proper and not found and site in self.places:
            found = [self.places[site]]
        first = min(found, default=len(self.keys))
        value = self.values[first] if found else default
        needed = [i for i in self.regexes if i < first and self.values[i] != value]
        return (None if needed else value), [self.keys[i] for i in needed]


def endings_of(pattern: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a pattern of PEFT as endings, of which the longest wins, and the keys that are regular expressions.

    Keys behind a shorter ending are never reached by PEFT's rule (the first that matches), and are left out.
    """
    kept: dict[str, Any] = {}
    regexes: list[str] = []
    for key, value in pattern.items():
        literal = literal_key(key)
        if literal is None:
            regexes.append(key)
        elif not any(literal.text == end or literal.text.endswith(f".{end}") for end in kept):
            kept[literal.text] = value
    return kept, regexes


def pattern_of(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return the shortest pattern of endings (ours: the longest ending wins) that gives each site its value.

    Example:
        >>> pattern_of({"a.q": 2, "b.q": 2, "a.v": 4, "b.v": 8}, 8)
        {'q': 2, 'a.v': 4}
    """
    groups: dict[str, list[str]] = {}
    for site in values:
        groups.setdefault(site.rpartition(".")[2], []).append(site)
    pattern: dict[str, Any] = {}
    for last, sites in groups.items():
        if len({values[site] for site in sites}) == 1:
            pattern |= {last: values[sites[0]]} if values[sites[0]] != default else {}
            continue
        explicit = {site for site in sites if values[site] != default}
        # A path may itself be the ending of another.
        explicit |= {
            s for s in sites if any(".".join(s.split(".")[i:]) in explicit for i in range(1, s.count(".") + 1))
        }
        pattern |= {site: values[site] for site in sites if site in explicit}
    return pattern


def exact_pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    r"""Return a pattern of PEFT that gives each site its value: one escaped full path for each that differs.

    Each key is anchored, so that it is exact where one path is the ending of another, in whatever order it is read.

    Example:
        >>> exact_pattern({"a.q": 2, "q": 4}, 4)
        {'^a\\.q': 2}
    """
    return {f"^{re.escape(site)}": value for site, value in values.items() if value != default}
