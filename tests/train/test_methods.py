from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asymlora.attaching import count_parameters
from asymlora.errors import AdapterFileError, SpecError
from asymlora.train.methods import ADAPTER, METHODS, Method
from asymlora.train.optimizers import build_optimizer
from asymlora.train.recipe import METHODS as NAMES
from asymlora.train.recipe import Recipe
from cases import MODELS

BERT = MODELS[0]
HEADS = ("classifier",)


def _recipe(method: str, **adapter: Any) -> Recipe:
    read = {"ia3": (), "full": (), "head": ()}.get(method.removeprefix("peft:"), ("rank", "targets"))
    fields = {"rank": 2, "targets": ["query", "value"]}
    given = {**{k: v for k, v in fields.items() if k in read}, **adapter}
    return Recipe.from_dict({"method": method, "adapter": given, "train": {"steps": 6, "lr": 0.01}})


def _put_on(recipe: Recipe) -> tuple[Method, nn.Module]:
    method = METHODS[recipe.method]
    method.refuse_unused(recipe)
    return method, method.put_on(BERT.build(), recipe, HEADS).train()


def _optimizer(method: Method, network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    own = method.optimizer(network, recipe.train)
    return own or build_optimizer("adamw", method.groups(network, recipe.train))


def _steps(
    method: Method, network: nn.Module, optimizer: torch.optim.Optimizer, *, first: int = 1, last: int = 3
) -> None:
    labels = torch.tensor([0, 1, 2])
    for step in range(first, last + 1):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(**BERT.inputs()).logits, labels)
        penalty = method.penalty(network)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.after_step(network, step)


def _logits(network: nn.Module) -> Tensor:
    logits = BERT.logits(network)
    network.train()
    return logits


def _trained(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters() if p.requires_grad]


def test_the_table_has_the_names_that_a_recipe_may_hold() -> None:
    assert tuple(METHODS) == NAMES
    assert all(method.name == name for name, method in METHODS.items())
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    assert METHODS["adapter"] is ADAPTER


@pytest.mark.parametrize("name", NAMES)
def test_starts_as_the_pretrained_model_and_learns(name: str) -> None:
    recipe = _recipe(name)
    method, network = _put_on(recipe)
    torch.testing.assert_close(_logits(network), BERT.logits(BERT.build()), rtol=1e-5, atol=1e-6)
    before = _trained(network)
    labels = torch.tensor([0, 1, 2])
    start = nn.functional.cross_entropy(_logits(network), labels)
    _steps(method, network, _optimizer(method, network, recipe), last=6)
    assert nn.functional.cross_entropy(_logits(network), labels) < start
    assert any(not torch.equal(one, other) for one, other in zip(before, _trained(network), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_trained_value_is_in_one_group_with_rate_and_decay(name: str) -> None:
    recipe = _recipe(name)
    recipe = replace(recipe, train=replace(recipe.train, weight_decay=0.1, lr_head=0.02 if "fa" not in name else None))
    method, network = _put_on(recipe)
    groups = method.groups(network, recipe.train)
    grouped = [p for group in groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert count_parameters(network)[0] == sum(p.numel() for p in grouped)
    assert all(group["params"] and group["name"] for group in groups)
    by_name = {group["name"]: group for group in groups}
    assert by_name["head"]["weight_decay"] == 0.1
    assert by_name["head"]["lr"] == by_name["norm"]["lr"] == (0.02 if "fa" not in name else 0.01)
    flat = [group for group in groups if all(p.dim() < 2 for p in group["params"])]
    assert flat
    assert all(group["weight_decay"] == 0.0 for group in flat)


@pytest.mark.parametrize("name", NAMES)
def test_resuming_from_a_saved_folder_and_optimizer_is_bit_equal(name: str, tmp_path: Path) -> None:
    recipe = _recipe(name)
    method, network = _put_on(recipe)
    optimizer = _optimizer(method, network, recipe)
    _steps(method, network, optimizer, last=3)
    method.save(network, tmp_path / "kept")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert all((tmp_path / "kept" / file).is_file() for file in method.files)
    _steps(method, network, optimizer, first=4, last=6)

    method.check(tmp_path / "kept")
    _, again = _put_on(recipe)
    resumed = _optimizer(method, again, recipe)
    method.fill(again, tmp_path / "kept")
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=False))
    _steps(method, again, resumed, first=4, last=6)
    assert all(torch.equal(one, other) for one, other in zip(_trained(network), _trained(again), strict=True))
    assert torch.equal(_logits(network), _logits(again))


@pytest.mark.parametrize("name", NAMES)
def test_loading_gives_the_trained_logits_and_merging_keeps_them(name: str, tmp_path: Path) -> None:
    recipe = _recipe(name)
    method, network = _put_on(recipe)
    _steps(method, network, _optimizer(method, network, recipe))
    method.save(network, tmp_path / "kept")
    model = BERT.build()
    again = method.load(model, recipe, HEADS, tmp_path / "kept")
    wanted = BERT.logits(network)
    assert torch.equal(BERT.logits(again), wanted)
    method.merge(again)
    assert type(model.bert.encoder.layer[0].attention.self.query) is nn.Linear
    torch.testing.assert_close(BERT.logits(model), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_saving_again_replaces_and_leaves_nothing_else(name: str, tmp_path: Path) -> None:
    recipe = _recipe(name)
    method, network = _put_on(recipe)
    method.save(network, tmp_path / "kept")
    names = sorted(f.name for f in (tmp_path / "kept").iterdir())
    _steps(method, network, _optimizer(method, network, recipe))
    method.save(network, tmp_path / "kept", base_model="some/base", task_type="SEQ_CLS")
    assert sorted(f.name for f in (tmp_path / "kept").iterdir()) == names
    _, again = _put_on(recipe)
    method.fill(again, tmp_path / "kept")
    assert torch.equal(_logits(network), _logits(again))


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_or_is_torn_is_refused_and_nothing_changes(name: str, tmp_path: Path) -> None:
    recipe = _recipe(name)
    method, network = _put_on(recipe)
    method.save(network, tmp_path / "kept")
    other = method.put_on(
        MODELS[1].build(), _recipe(name, **({"targets": ["query"]} if recipe.adapter.rank == 2 else {})), HEADS
    )
    before = _trained(other)
    with pytest.raises(AdapterFileError, match=r"missing|no place|not \("):
        method.fill(other, tmp_path / "kept")
    assert all(torch.equal(one, new) for one, new in zip(before, _trained(other), strict=True))
    weights = next(tmp_path / "kept" / file for file in method.files if file.endswith(".safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterFileError):
        method.check(tmp_path / "kept")
    weights.unlink()
    with pytest.raises(AdapterFileError):
        method.check(tmp_path / "kept")


def test_full_trains_everything_and_the_head_alone_its_head() -> None:
    _, network = _put_on(_recipe("full"))
    assert all(p.requires_grad for p in network.parameters())
    _, network = _put_on(_recipe("head"))
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}
    _, network = _put_on(_recipe("head", modules_to_save=["pooler"]))
    assert "bert.pooler.dense.weight" in {n for n, p in network.named_parameters() if p.requires_grad}


def test_a_head_alone_needs_a_head() -> None:
    with pytest.raises(SpecError, match=r"gives this model none.*modules_to_save"):
        METHODS["head"].put_on(BERT.build(), _recipe("head"), ())


@pytest.mark.parametrize("name", ["full", "head"])
def test_groups_are_found_through_wrappers(name: str) -> None:
    recipe = _recipe(name)
    method, network = _put_on(recipe)
    wrapped = nn.Module()
    wrapped.module = network
    plain = [(g["name"], len(g["params"])) for g in method.groups(network, recipe.train)]
    assert [(g["name"], len(g["params"])) for g in method.groups(wrapped, recipe.train)] == plain


def _change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("method", "adapter", "train", "words"),
    [
        ("full", {"rank": 4}, {}, r"does not read adapter\.rank; .* adapter\.modules_to_save"),
        ("head", {"preset": "lora"}, {}, r"does not read adapter\.A;"),
        ("full", {}, {"lr_B": 0.1}, r"train\.lr_B"),
        ("full", {}, {"gradient_correction": True}, r"train\.gradient_correction"),
        ("peft:lora", {"preset": "init_b"}, {}, r"adapter\.A, adapter\.B"),
        ("peft:lora", {"shared_A": [["query", "value"]]}, {}, r"adapter\.shared_A"),
        ("peft:lora_fa", {}, {"lr_head": 0.1, "optimizer": "sgd"}, r"train\.lr_head, train\.optimizer"),
        ("peft:adalora", {"scaling": "rank_stabilized", "rank_pattern": {"query": 4}}, {}, r"scaling, adapter\.rank_p"),
        ("peft:ia3", {"rank": 4, "alpha": 3, "dropout": 0.1}, {}, r"adapter\.rank, adapter\.alpha, adapter\.dropout"),
        ("peft:ia3", {"preset": "lora"}, {}, r"does not read adapter\.A;"),
        ("adapter", {"preset": "lora"}, {"gradient_correction": True}, "constant A, and this adapter trains A"),
    ],
)
def test_fields_that_a_method_would_not_read_are_refused_by_name(
    method: str, adapter: dict[str, Any], train: dict[str, Any], words: str
) -> None:
    recipe = Recipe.from_dict({"method": method, "adapter": adapter, "train": train})
    with pytest.raises(SpecError, match=words):
        METHODS[method].refuse_unused(recipe)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_recipe_and_plain_lora_suit_every_method_that_has_factors(name: str) -> None:
    METHODS[name].refuse_unused(Recipe.from_dict({"method": name}))
    if name in ("adapter", "peft:lora", "peft:lora_fa", "peft:adalora"):
        METHODS[name].refuse_unused(Recipe.from_dict({"method": name, "adapter": {"preset": "lora", "rank": 4}}))


@pytest.mark.parametrize("name", ["full", "head"])
@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_a_packed_base_is_not_trained(name: str, base: str) -> None:
    with pytest.raises(SpecError, match=f"model.base='{base}': packed weights are not trained"):
        METHODS[name].refuse_unused(Recipe.from_dict({"method": name, "model": {"base": base}}))


def test_weights_in_bfloat16_are_warned_of() -> None:
    recipe = Recipe.from_dict({"method": "full", "model": {"base": "bfloat16"}})
    assert "rounded away" in METHODS["full"].notes(recipe)[0]
    assert METHODS["full"].notes(Recipe.from_dict({"method": "full"})) == ()
    assert "adapter.targets" in METHODS["peft:ia3"].notes(Recipe.from_dict({"method": "peft:ia3"}))[0]


def test_the_list_names_the_method_and_another_one_is_refused(tmp_path: Path) -> None:
    method, network = _put_on(_recipe("head"))
    method.save(network, tmp_path / "kept")
    with pytest.raises(AdapterFileError, match="method='head' wrote it, and method='full' is asked for"):
        METHODS["full"].check(tmp_path / "kept")
    _change(tmp_path / "kept" / "trained.json", lambda content: content.pop("tensors"))
    with pytest.raises(AdapterFileError, match="no list of tensors"):
        method.check(tmp_path / "kept")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_in_memory_is_what_a_file_keeps(name: str, tmp_path: Path) -> None:
    recipe = _recipe(name)
    method, network = _put_on(recipe)
    optimizer = _optimizer(method, network, recipe)
    _steps(method, network, optimizer, last=4)
    put_back, logits = method.keep(network), _logits(network)
    method.save(network, tmp_path / "kept")
    _steps(method, network, optimizer, first=5, last=6)
    assert not torch.equal(_logits(network), logits)
    put_back()
    assert torch.equal(_logits(network), logits)
    method.save(network, tmp_path / "put-back")
    for file in method.files:
        assert (tmp_path / "kept" / file).read_bytes() == (tmp_path / "put-back" / file).read_bytes()
