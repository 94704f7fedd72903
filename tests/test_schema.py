from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, strategies

from asymlora.errors import SpecError, UnknownKeyError, UnknownNameError, nearest
from asymlora.schema import answers_wrong_names, from_mapping, refuse_unknown_fields, refuse_values, to_mapping


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Wheel:
    OTHER_NAMES: ClassVar[Mapping[str, str]] = {"diameter": "radius"}

    radius: float
    spokes: int = 32


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Bicycle:
    colour: Literal["red", "green"] = "red"
    bell: bool = True
    name: str = "bicycle"
    front: Wheel = Wheel(radius=0.3)
    rear: Wheel = field(default_factory=lambda: Wheel(radius=0.4, spokes=36))
    gears: tuple[int, ...] = (1, 2, 3)
    owners: str | tuple[str, ...] = "nobody"
    price: float | None = None


@answers_wrong_names
@dataclass(frozen=True, kw_only=True)
class Words:
    words: tuple[str, ...] = ()


EVERYTHING = {
    "colour": "green",
    "bell": False,
    "name": "my own",
    "front": {"radius": 0.25, "spokes": 20},
    "rear": {"radius": 0.5, "spokes": 24},
    "gears": [1, 5],
    "owners": ["me", "you"],
    "price": 12.5,
}


def test_mapping_holds_plain_values_only_and_keeps_the_order_of_the_fields() -> None:
    mapping = to_mapping(Bicycle(owners=("me",), rear=Wheel(radius=0.5)))
    assert mapping == {
        "colour": "red",
        "bell": True,
        "name": "bicycle",
        "front": {"radius": 0.3, "spokes": 32},
        "rear": {"radius": 0.5, "spokes": 32},
        "gears": [1, 2, 3],
        "owners": ["me"],
        "price": None,
    }
    assert list(mapping) == ["colour", "bell", "name", "front", "rear", "gears", "owners", "price"]
    assert type(mapping["gears"]) is list
    assert type(mapping["front"]) is dict


def test_every_kind_of_field_is_read() -> None:
    assert from_mapping(Bicycle, EVERYTHING) == Bicycle(
        colour="green",
        bell=False,
        name="my own",
        front=Wheel(radius=0.25, spokes=20),
        rear=Wheel(radius=0.5, spokes=24),
        gears=(1, 5),
        owners=("me", "you"),
        price=12.5,
    )


def test_left_out_fields_take_their_defaults() -> None:
    assert from_mapping(Bicycle, {}) == Bicycle()
    assert from_mapping(Bicycle, {"front": {"radius": 1.0}}).front == Wheel(radius=1.0, spokes=32)


@given(
    strategies.builds(
        Bicycle,
        colour=strategies.sampled_from(["red", "green"]),
        bell=strategies.booleans(),
        name=strategies.text(),
        front=strategies.builds(
            Wheel, radius=strategies.floats(allow_nan=False, allow_infinity=False), spokes=strategies.integers()
        ),
        gears=strategies.lists(strategies.integers(), max_size=3).map(tuple),
        owners=strategies.one_of(strategies.text(), strategies.lists(strategies.text(), max_size=3).map(tuple)),
        price=strategies.none() | strategies.floats(allow_nan=False),
    )
)
def test_from_mapping_undoes_to_mapping(bicycle: Bicycle) -> None:
    assert from_mapping(Bicycle, to_mapping(bicycle)) == bicycle


def test_equal_objects_give_equal_mappings_however_their_numbers_were_written() -> None:
    # repr: 1 == 1.0, but their YAML differs.
    assert repr(to_mapping(Wheel(radius=1))) == repr(to_mapping(Wheel(radius=1.0)))


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("2", 2.0), ("-.5", -0.5), (3, 3.0)])
def test_number_written_as_text_counts_as_a_number(text: object, number: float) -> None:
    # PyYAML follows YAML 1.1, where 1e-4 has no dot and so is text.
    radius = from_mapping(Wheel, {"radius": text}).radius
    assert radius == number
    assert type(radius) is float


WRONG = [
    ("bell", "yes", "true or false"),
    ("bell", 1, "true or false"),
    ("name", 5, "text"),
    ("price", "dear", "a number"),
    ("price", True, "a number"),
    ("price", [1.0], "a number"),
    ("gears", "123", "a list"),
    ("gears", 4, "a list"),
    ("gears", [1, 2.5], "a whole number"),
    ("gears", [True], "a whole number"),
    ("front", 0.3, "a mapping of its fields"),
    ("front", None, "a mapping of its fields"),
    ("owners", 7, "text"),
]


@pytest.mark.parametrize(("key", "value", "needed"), WRONG)
def test_wrong_type_names_key_value_and_what_is_needed(key: str, value: object, needed: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_mapping(Bicycle, {key: value}, where="mine")
    assert f"'mine.{key}' is " in str(caught.value)
    assert f"{needed} is needed" in str(caught.value)


@pytest.mark.parametrize(("key", "value", "needed"), WRONG)
def test_constructor_refuses_the_same_values_as_the_file(key: str, value: Any, needed: str) -> None:
    with pytest.raises(SpecError, match=f"'{key}' is .*{needed} is needed"):
        Bicycle(**{key: value})


def test_constructor_turns_a_list_into_the_tuple_of_its_field() -> None:
    assert Bicycle(gears=[4, 5]).gears == (4, 5)  # pyright: ignore[reportArgumentType]


def test_one_word_stands_for_a_list_of_one_where_a_list_of_words_is_kept() -> None:
    assert from_mapping(Words, {"words": "one"}).words == ("one",)
    assert Words(words=["one", "two"]).words == ("one", "two")  # pyright: ignore[reportArgumentType]


def test_word_that_is_no_choice_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"'mine\.colour' is 'blue'; allowed are 'red', 'green'\."):
        from_mapping(Bicycle, {"colour": "blue"}, where="mine")
    with pytest.raises(UnknownNameError, match=r"'colour' is 'blue'; allowed are 'red', 'green'\."):
        Bicycle(colour="blue")  # pyright: ignore[reportArgumentType]


def test_all_wrong_values_of_one_object_are_named_together() -> None:
    with pytest.raises(SpecError) as caught:
        from_mapping(Bicycle, {"bell": "yes", "colour": "blue", "gears": 4, "name": "good"}, where="mine")
    message = str(caught.value)
    assert all(f"'mine.{key}'" in message for key in ("bell", "colour", "gears"))
    assert "mine.name" not in message


def test_missing_field_without_default_is_named_beside_wrong_values() -> None:
    with pytest.raises(
        SpecError, match=r"'front\.spokes' is 1\.5; .*; 'front\.radius' is missing and has no default\."
    ):
        from_mapping(Bicycle, {"front": {"spokes": 1.5}})
    with pytest.raises(SpecError, match="'radius' is missing"):
        Wheel()  # pyright: ignore[reportCallIssue]


def test_unknown_keys_are_all_named_each_with_the_nearest_field() -> None:
    with pytest.raises(UnknownKeyError) as caught:
        from_mapping(Bicycle, {"color": "red", "bel": True, "xyzzy": 1}, where="mine")
    message = str(caught.value)
    assert "'mine.color' is unknown. Did you mean 'colour'?" in message
    assert "'mine.bel' is unknown. Did you mean 'bell'?" in message
    assert "'mine.xyzzy' is unknown. Known here: colour, bell, name," in message


def test_unknown_key_inside_a_part_is_named_by_its_whole_path() -> None:
    with pytest.raises(UnknownKeyError, match=r"Wheel: 'rear\.spoke' is unknown\. Did you mean 'spokes'\?"):
        from_mapping(Bicycle, {"rear": {"radius": 1.0, "spoke": 3}})


def test_name_from_another_library_is_answered_with_ours() -> None:
    with pytest.raises(UnknownKeyError, match=r"'front\.diameter' is PEFT's name for radius\. Known here: radius"):
        from_mapping(Bicycle, {"front": {"diameter": 1.0}})
    with pytest.raises(UnknownKeyError, match=r"'diameter' is PEFT's name for radius"):
        Wheel(diameter=1.0)  # pyright: ignore[reportCallIssue]


def test_constructor_names_unknown_arguments_and_the_nearest() -> None:
    with pytest.raises(UnknownKeyError, match=r"Bicycle: 'bels' is unknown\. Did you mean 'bell'\?"):
        Bicycle(bels=True)  # pyright: ignore[reportCallIssue]


def test_key_that_is_no_text_is_refused_by_name() -> None:
    with pytest.raises(UnknownKeyError, match=r"'mine\.1' is unknown"):
        refuse_unknown_fields(Bicycle, [1], where="mine")


def test_known_names_pass() -> None:
    refuse_unknown_fields(Bicycle, ["colour", "bell"])
    with pytest.raises(UnknownKeyError):
        refuse_unknown_fields(Bicycle, ["colour", "bel"])


def test_no_problem_raises_nothing_and_several_stand_in_one_sentence() -> None:
    refuse_values([])
    with pytest.raises(SpecError, match=r"^a is wrong; b is wrong\.$"):
        refuse_values(["a is wrong", "b is wrong"])


def test_errors_are_also_the_built_in_ones_that_older_code_catches() -> None:
    with pytest.raises(KeyError):
        from_mapping(Bicycle, {"nothing": 1})
    with pytest.raises(ValueError, match="true or false"):
        from_mapping(Bicycle, {"bell": "no"})
    # KeyError by itself would print the message in quotes.
    with pytest.raises(UnknownKeyError, match=r"^Bicycle: "):
        from_mapping(Bicycle, {"nothing": 1})


def test_nearest_word_must_be_close() -> None:
    assert nearest("colur", ["colour", "bell"]) == " Did you mean 'colour'?"
    assert nearest("q", ["colour", "bell"]) == ""
