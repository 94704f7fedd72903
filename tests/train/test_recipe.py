from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings, strategies

from asymlora.errors import DataNotFoundError, SpecError, UnknownKeyError, UnknownNameError
from asymlora.factor_spec import FactorSpec
from asymlora.spec import AdapterSpec
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.train.recipe import Recipe, TrainRecipe, differing_keys, merged, read_yaml
from cases import PRESET_NAMES


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write text as a recipe file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


RECIPES = [
    Recipe(),
    *(Recipe(adapter=AdapterSpec.parse(name, rank=4)) for name in PRESET_NAMES),
    Recipe(
        model=ModelRecipe(name="owner/model", revision="v1.0", pooling="native"),
        data=DataRecipe(
            name="a file.csv", subset="größe", text="yes", label="1e-4", group="null", max_tokens=7, seed=3
        ),
        adapter=AdapterSpec.lora(alpha=1, targets=["query", "123"], modules_to_save=["norm"], dropout=0.1),
        train=TrainRecipe(lr=1e-5, lr_A=3e-7, lr_B=1e16, lr_head=1, schedule="cosine", weight_decay=0.01, seed=9),
    ),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_yaml_and_back_gives_the_same_recipe_and_the_same_bytes(recipe: Recipe, file: Any) -> None:
    path = file(recipe.to_yaml())
    again = Recipe.load(path)
    assert again == recipe
    assert again.to_yaml().encode() == path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(strategies.text(min_size=1), strategies.floats(1e-12, 1e12), strategies.lists(strategies.text(min_size=1)))
@example("a\x85b", 1e-4, [])  # PyYAML with allow_unicode reads it back as "a b"
def test_any_text_and_number_survives_the_yaml(column: str, rate: float, endings: list[str]) -> None:
    recipe = Recipe(
        data=DataRecipe(text=column),
        adapter=AdapterSpec.lora(modules_to_save=endings),
        train=TrainRecipe(lr=rate),
    )
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


def test_yaml_writes_every_field_out_in_the_order_of_the_dataclasses() -> None:
    content = yaml.safe_load(Recipe().to_yaml())
    assert list(content) == ["task", "method", "model", "data", "adapter", "train"]
    for part in ("model", "data", "adapter", "train"):
        assert list(content[part]) == [field.name for field in dataclasses.fields(getattr(Recipe(), part))]


def test_numbers_written_as_whole_or_with_a_point_give_the_same_bytes() -> None:
    assert Recipe(train=TrainRecipe(lr=1)).to_yaml() == Recipe(train=TrainRecipe(lr=1.0)).to_yaml()


def test_default_is_the_embedded_first_run_of_b_only() -> None:
    assert Recipe.from_dict({}) == Recipe()
    assert Recipe().adapter == AdapterSpec.b_only(rank=8)
    assert (Recipe().model.name, Recipe().data.name) == ("embedded:minilm-l6", "embedded:reviews")


def test_empty_file_is_the_default(file: Any) -> None:
    assert Recipe.load(file("")) == Recipe()
    assert Recipe.load(file("# only a comment\n")) == Recipe()


def test_single_fields_are_changed_and_their_neighbours_kept(file: Any) -> None:
    recipe = Recipe.load(file("train: {steps: 7}\nadapter: {B: {lr_ratio: 4}}\n"))
    assert recipe.train == TrainRecipe(steps=7)
    assert recipe.adapter == AdapterSpec(B=FactorSpec(init="zeros", lr_ratio=4.0))


def test_rate_in_the_form_that_yaml_takes_for_text_is_a_number(file: Any) -> None:
    path = file("train: {lr: 1e-4, lr_head: 5e-3, warmup_fraction: 1e-1}\n")
    assert yaml.safe_load(path.read_text())["train"]["lr"] == "1e-4"
    train = Recipe.load(path).train
    assert (train.lr, train.lr_head, train.warmup_fraction) == (1e-4, 5e-3, 0.1)


# --- presets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*PRESET_NAMES, "hB_zero_A_km", "A_rand_hB_zero"])
def test_adapter_may_be_a_presets_name_or_a_shorthand(text: str, file: Any) -> None:
    assert Recipe.load(file(f"adapter: {text}\n")).adapter == AdapterSpec.parse(text)
    assert Recipe.load(file(f"adapter: {{preset: {text}}}\n")).adapter == AdapterSpec.parse(text)


def test_fields_beside_a_preset_are_merged_into_it_down_to_single_ones(file: Any) -> None:
    recipe = Recipe.load(file("adapter:\n  preset: lora\n  rank: 4\n  B: {lr_ratio: 8}\n"))
    lora = AdapterSpec.lora(rank=4)
    assert recipe.adapter == dataclasses.replace(lora, B=dataclasses.replace(lora.B, lr_ratio=8.0))


def test_preset_that_fields_beside_it_make_impossible_is_refused(file: Any) -> None:
    with pytest.raises(SpecError, match="A is frozen at zero"):
        Recipe.load(file("adapter: {preset: init_b, A: {trainable: false}}\n"))


def test_unknown_preset_lists_the_known_ones(file: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"'b_olny' names no adapter\. Did you mean 'b_only'\? Presets: lora"):
        Recipe.load(file("adapter: b_olny\n"))


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(file: Any) -> None:
    path = file("train: {steps: 7, lr: 0.5}\n")
    recipe = Recipe.load(path, {"train": {"lr": 0.25}, "adapter": {"rank": 3}})
    assert recipe.train == TrainRecipe(steps=7, lr=0.25)
    assert recipe.adapter == AdapterSpec(rank=3)


def test_override_beside_a_preset_of_the_file_keeps_the_preset(file: Any) -> None:
    for text in ("adapter: lora\n", "adapter: {preset: lora}\n"):
        assert Recipe.load(file(text), {"adapter": {"rank": 3}}).adapter == AdapterSpec.lora(rank=3)


@pytest.mark.parametrize("override", ["init_a", {"preset": "init_a"}])
def test_preset_of_the_overrides_replaces_the_factors_of_the_file_and_keeps_the_rest(override: Any, file: Any) -> None:
    # A file that a run wrote states both factors: they must not win over the preset that the user asks for now.
    for text in (
        Recipe(adapter=AdapterSpec.b_only(rank=3)).to_yaml(),
        "adapter: {preset: lora, rank: 3, B: {lr_ratio: 8}}\n",
    ):
        assert Recipe.load(file(text), {"adapter": override}).adapter == AdapterSpec.init_a(rank=3)


def test_single_field_of_the_overrides_changes_the_factors_of_the_file(file: Any) -> None:
    path = file(Recipe(adapter=AdapterSpec.lora(rank=3)).to_yaml())
    adapter = Recipe.load(path, {"adapter": {"A": {"trainable": False}}}).adapter
    assert FactorSpec(init="kaiming_uniform", trainable=False) == adapter.A
    assert adapter.B == AdapterSpec.lora().B


def test_reading_changes_neither_file_content_nor_overrides(file: Any) -> None:
    overrides = {"adapter": {"preset": "lora", "B": {"lr_ratio": 2}}, "train": {"steps": 3}}
    before = repr(overrides)
    Recipe.load(file("adapter: b_only\n"), overrides)
    Recipe.from_dict(overrides)
    assert repr(overrides) == before


# --- what is refused -----------------------------------------------------------------------------------------------


def test_unknown_keys_are_refused_by_path_with_the_nearest(file: Any) -> None:
    with pytest.raises(UnknownKeyError, match=r"Recipe: 'trian' is unknown\. Did you mean 'train'\?"):
        Recipe.load(file("trian: {steps: 3}\n"))
    with pytest.raises(UnknownKeyError) as caught:
        Recipe.load(file("train: {stpes: 3, learning: 2}\n"))
    assert "'train.stpes' is unknown. Did you mean 'steps'?" in str(caught.value)
    assert "'train.learning' is unknown." in str(caught.value)


def test_pefts_names_in_a_file_are_answered_with_ours(file: Any) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        Recipe.load(file("adapter: {r: 8, lora_alpha: 16, target_modules: [q]}\n"))
    assert "'adapter.r' is PEFT's name for rank." in str(caught.value)
    assert "'adapter.target_modules' is PEFT's name for targets." in str(caught.value)


@pytest.mark.parametrize("part", ["model", "data", "adapter", "train"])
@pytest.mark.parametrize("value", ["null", "5", "[1, 2]"])
def test_part_that_is_no_mapping_is_refused_by_name(part: str, value: str, file: Any) -> None:
    with pytest.raises(SpecError, match=f"'{part}' is .*; a mapping of its fields is needed"):
        Recipe.load(file(f"{part}: {value}\n"))


def test_numbers_out_of_range_are_listed_together(file: Any) -> None:
    with pytest.raises(SpecError) as caught:
        Recipe.load(file("train: {steps: 0, batch_size: -1, lr: -1, lr_B: .inf, warmup_fraction: 1, seed: -2}\n"))
    message = str(caught.value)
    for words in (
        "train.steps=0 must be at least 1",
        "train.batch_size=-1 must be at least 1",
        "train.lr=-1.0 must be a number above 0",
        "train.lr_B=inf must be a number above 0",
        "train.warmup_fraction=1.0 must lie in [0, 1)",
        "train.seed=-2 must lie between",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("steps", "batch_size", "gradient_accumulation", "evaluate_every", "keep_checkpoints")),
        *((name, value) for name in ("lr", "lr_A", "lr_B", "lr_head") for value in (0.0, -1e-3, float("nan"))),
        *((name, value) for name in ("weight_decay", "max_grad_norm") for value in (-0.1, float("nan"))),
        ("dynamics_every", -1),
        ("warmup_fraction", -0.1),
        ("warmup_fraction", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
        ("steps", 2.5),
        ("lr", True),
        ("schedule", "exponential"),
        ("head_start", "prob"),
    ],
)
def test_each_number_and_word_of_the_training_is_checked(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"\b{field}\b"):
        TrainRecipe(**{field: value})


def test_edges_of_the_ranges_are_allowed() -> None:
    edges = TrainRecipe(steps=1, batch_size=1, warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=0.0, seed=2**32 - 1)
    assert TrainRecipe(dynamics_every=0).dynamics_every == 0
    assert (edges.steps, edges.warmup_fraction, edges.max_grad_norm) == (1, 0.0, 0.0)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seed_of_the_division_must_be_one_that_numpy_takes_twice(seed: int) -> None:
    with pytest.raises(SpecError, match=rf"data\.seed={seed} must lie between 0 and"):
        DataRecipe(seed=seed)


@pytest.mark.parametrize(("preset", "frozen"), [("b_only", "A"), ("a_only", "B")])
def test_rate_of_a_frozen_factor_is_refused(preset: str, frozen: str) -> None:
    rates: dict[str, Any] = {f"lr_{frozen}": 1e-3}
    with pytest.raises(SpecError, match=f"train.lr_{frozen} is given, but {frozen} is frozen"):
        Recipe(adapter=AdapterSpec.parse(preset), train=TrainRecipe(**rates))
    trained: dict[str, Any] = {f"lr_{'B' if frozen == 'A' else 'A'}": 1e-3}
    assert Recipe(adapter=AdapterSpec.parse(preset), train=TrainRecipe(**trained)).train == TrainRecipe(**trained)


def test_both_rates_are_allowed_where_both_factors_are_trained() -> None:
    train = TrainRecipe(lr_A=1e-4, lr_B=2e-3)
    assert Recipe(adapter=AdapterSpec.lora(), train=train).train is train


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"No task is called 'translation'.*Known: text_classification"):
        Recipe.from_dict({"task": "translation"})


def test_missing_file_is_named_and_the_default_pointed_at(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no recipe at .*absent\.yaml\. Give a YAML file, or none for the"):
        Recipe.load(tmp_path / "absent.yaml")
    with pytest.raises(DataNotFoundError, match="no recipe at"):
        Recipe.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"train: [1, 2", b"a: b: c", b"\tx: 1", b"\xff\xfe\x00", b"x: !!python/object:os.x"]
)
def test_file_that_is_no_yaml_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"recipe\.yaml is not YAML: ") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "kind"), [("- 1\n", "list"), ("text\n", "str"), ("3\n", "int")])
def test_file_that_holds_no_mapping_is_refused_by_what_it_holds(content: str, kind: str, file: Any) -> None:
    with pytest.raises(SpecError, match=f"holds {kind}; a mapping of recipe keys is needed"):
        read_yaml(file(content))


# --- mappings ------------------------------------------------------------------------------------------------------


def test_merging_goes_down_mapping_by_mapping_and_replaces_everything_else() -> None:
    base = {"a": {"x": 1, "y": {"z": 2, "w": 3}}, "b": [1, 2], "c": {"d": 1}}
    over = {"a": {"y": {"z": 9}}, "b": [3], "c": None, "e": {"f": 1}}
    assert merged(base, over) == {"a": {"x": 1, "y": {"z": 9, "w": 3}}, "b": [3], "c": None, "e": {"f": 1}}
    assert base == {"a": {"x": 1, "y": {"z": 2, "w": 3}}, "b": [1, 2], "c": {"d": 1}}


def test_differences_are_named_by_dotted_key_with_both_values_in_order() -> None:
    one = Recipe(train=TrainRecipe(steps=3), adapter=AdapterSpec.b_only(rank=2))
    other = Recipe(train=TrainRecipe(steps=4), adapter=AdapterSpec.lora(rank=2))
    assert differing_keys(one.to_dict(), other.to_dict()) == [
        "adapter.A.init: 'orthonormal' / 'kaiming_uniform'",
        "adapter.A.trainable: False / True",
        "train.steps: 3 / 4",
    ]
    assert differing_keys(one.to_dict(), one.to_dict()) == []
    assert differing_keys({"a": 1}, {"b": 2}) == ["a: 1 / None", "b: None / 2"]
