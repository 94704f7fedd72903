"""The rule of PEFT's patterns, against PEFT's own function where the keys are plain names."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from asymlora.errors import SpecError
from asymlora.peft_patterns import Rule, endings_of, exact_pattern, literal_key, pattern_of
from asymlora.spec import AdapterSpec

PARTS = st.sampled_from(["q", "v", "a", "ab", "a1", "b", "0", "10", "x-y", "q_proj"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
KEYS = st.tuples(st.sampled_from(["", "^"]), PATHS, st.booleans()).map(
    lambda key: key[0] + (re.escape(key[1]) if key[2] else key[1])
)


@given(pattern=st.dictionaries(KEYS, st.integers(1, 64), max_size=6), path=PATHS)
def test_the_first_matching_key_wins_as_in_peft(pattern: dict[str, int], path: str) -> None:
    theirs = pattern.get(get_pattern_key(list(pattern), path), 99)
    assert Rule(pattern, sites=1, proper=False).value(path, 99) == (theirs, [])


@given(pattern=st.dictionaries(KEYS, st.integers(1, 64), max_size=6), path=PATHS)
def test_the_old_rule_is_that_of_pefts_code_before_0_14(pattern: dict[str, int], path: str) -> None:
    # Read in peft 0.10.0 and 0.13.2, tuners/lora/model.py, _create_and_replace.
    key = next(filter(lambda key: re.match(rf".*\.{key}$", path), pattern), path)
    assert Rule(pattern, sites=1, proper=True).value(path, 99) == (pattern.get(key, 99), [])


@given(values=st.dictionaries(PATHS, st.integers(1, 3), min_size=1, max_size=8), default=st.integers(1, 3))
def test_what_is_written_says_what_was_meant(values: dict[str, int], default: int) -> None:
    ours = AdapterSpec.b_only(rank=default, rank_pattern=pattern_of(values, default))
    theirs = exact_pattern(values, default)
    for order in (list(theirs), sorted(theirs), sorted(theirs, reverse=True)):
        pattern = {key: theirs[key] for key in order}
        assert {path: pattern.get(get_pattern_key(order, path), default) for path in values} == values
    assert {path: ours.at(path).rank for path in values} == values


@given(pattern=st.dictionaries(PATHS, st.integers(1, 64), max_size=6), path=PATHS)
def test_endings_give_our_rule_the_meaning_of_pefts(pattern: dict[str, int], path: str) -> None:
    kept, regexes = endings_of({re.escape(key): value for key, value in pattern.items()})
    assert not regexes
    theirs = pattern.get(get_pattern_key(list(map(re.escape, pattern)), path).replace("\\", ""), 99)
    assert AdapterSpec.b_only(rank=99, rank_pattern=kept).at(path).rank == theirs


@pytest.mark.parametrize("key", ["q|v", ".*q", "(a+)+$", r"\d+.q", "[qv]", "q{2}", "q?", "a^b", "a$b", "", "q\\"])
def test_more_than_a_name_is_no_literal(key: str) -> None:
    assert literal_key(key) is None


def test_an_unescaped_dot_matches_any_character_as_in_peft() -> None:
    rule = Rule({"a.q": 2}, sites=2, proper=False)
    assert [rule.value(path, 8)[0] for path in ("x.a.q", "x.a_q", "x.ba.q")] == [2, 2, 8]


def test_an_expression_matters_only_where_its_value_would_change_something() -> None:
    rule = Rule({"q": 2, "(a+)+$": 3}, sites=2, proper=False)
    assert rule.value("x.q", 8) == (2, [])
    assert rule.value("x.v", 3) == (3, [])
    assert rule.value("x.v", 8) == (None, ["(a+)+$"])


def test_no_pattern_takes_long() -> None:
    begun = time.perf_counter()
    hostile = {f"{'(a+)+' * 3}{number}$": 1 for number in range(1000)}
    Rule(hostile, sites=1, proper=False).value("a" * 5000, 8)
    with pytest.raises(SpecError, match="1000 keys with unescaped dots or expressions for 100000 sites"):
        Rule(hostile, sites=100_000, proper=False)
    many = {rf"^layers\.{n}\.q": n for n in range(20_000)}
    rule = Rule(many, sites=20_000, proper=False)
    assert all(rule.value(f"layers.{n}.q", -1)[0] == n for n in range(20_000))
    assert time.perf_counter() - begun < 5
