from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import asymlora as al
from asymlora.errors import AdapterFileError, AttachError, MissingPackageError, NoTargetError
from asymlora.targets import match_targets
from asymlora.train.optimizers import build_optimizer
from asymlora.train.peft_methods import PEFT_METHODS
from asymlora.train.recipe import Recipe
from cases import KIND_MODELS, MODELS, ModelCase

BERT = MODELS[0]
CASES = {case.name: case for case in (*MODELS, *KIND_MODELS)}
NAMES = tuple(PEFT_METHODS)


def _recipe(name: str, *, steps: int = 10, **adapter: Any) -> Recipe:
    given = adapter if name == "peft:ia3" else {"rank": 2, **adapter}
    return Recipe.from_dict({"method": name, "adapter": given, "train": {"steps": steps, "lr": 0.05}})


def _put_on(name: str, case: ModelCase = BERT, *, heads: tuple[str, ...] = ("classifier",), **given: Any) -> Any:
    recipe = _recipe(name, **given)
    PEFT_METHODS[name].refuse_unused(recipe)
    return PEFT_METHODS[name].put_on(case.build(), recipe, heads)


def _steps(name: str, network: Any, count: int, *, total: int = 10) -> torch.optim.Optimizer:
    method, train = PEFT_METHODS[name], _recipe(name, steps=total).train
    optimizer = method.optimizer(network, train) or build_optimizer("adamw", method.groups(network, train))
    for step in range(1, count + 1):
        optimizer.zero_grad()
        loss = network(**BERT.inputs()).logits.square().mean()
        penalty = method.penalty(network)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.after_step(network, step)
    return optimizer


def _wrapped(network: Any) -> set[str]:
    tuner = peft.tuners.tuners_utils.BaseTunerLayer
    return {n for n, m in network.get_base_model().named_modules() if isinstance(m, tuner)}


@pytest.mark.parametrize("name", ["peft:lora", "peft:lora_fa", "peft:adalora"])
@pytest.mark.parametrize("case", ["bert", "llama", "vit", "gpt2"])
def test_all_linear_means_the_layers_that_our_own_adapter_takes(name: str, case: str) -> None:
    chosen = CASES[case]
    heads = ("classifier",) if case in ("bert", "vit") else ()
    model = chosen.build()
    wanted = set(match_targets(model, al.AdapterSpec(rank=2), heads))
    assert _wrapped(_put_on(name, chosen, heads=heads)) == wanted


def test_a_path_that_is_the_ending_of_another_is_matched_alone() -> None:
    network = _put_on("peft:lora", CASES["small-net"], heads=("head",), targets=["table", "line"])
    assert _wrapped(network) == {"table", "line"}
    both = _put_on("peft:lora", CASES["small-net"], heads=("head",), targets=["q"])
    assert _wrapped(both) == {"q", "block.q"}
    inner = _put_on("peft:lora", CASES["small-net"], heads=("head",), targets=["block.q"])
    assert _wrapped(inner) == {"block.q"}


def test_ranks_alphas_and_scale_are_those_of_the_spec_at_each_site() -> None:
    fields = {
        "targets": ["query", "value"],
        "rank_pattern": {"value": 4},
        "alpha_pattern": {"0.attention.self.query": 3},
    }
    network = _put_on("peft:lora", **fields, scaling="rank_stabilized", dropout=0.1)
    spec = al.AdapterSpec.lora(rank=2, **fields, scaling="rank_stabilized")  # pyright: ignore[reportArgumentType]
    for site in al.sites(network):
        assert (site.A.shape[0], site.scaling) == (spec.at(site.name).rank, spec.at(site.name).scaling_factor)
        assert site.layer.lora_dropout["default"].p == 0.1  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]


def test_more_targets_than_peft_keeps_as_a_list_are_the_same_layers() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 6}
    model = BertForSequenceClassification(BertConfig(**shape, vocab_size=20))
    wanted = set(match_targets(model, al.AdapterSpec(rank=2), ("classifier",)))
    assert len(wanted) > 30
    assert _wrapped(PEFT_METHODS["peft:lora"].put_on(model, _recipe("peft:lora"), ("classifier",))) == wanted


@pytest.mark.parametrize("name", ["peft:lora", "peft:adalora"])
def test_the_seed_alone_decides_the_start(name: str) -> None:
    def start(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        return next(p for n, p in _put_on(name, seed=seed).named_parameters() if ".lora_A." in n)

    assert torch.equal(start(3, noise=0), start(3, noise=1))
    assert not torch.equal(start(3, noise=0), start(4, noise=0))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = BERT.build()
    torch.set_rng_state(before)
    PEFT_METHODS[name].put_on(model, _recipe(name), ("classifier",))
    assert torch.equal(torch.get_rng_state(), before)


def test_lora_fa_trains_B_and_the_head_alone_by_pefts_optimizer() -> None:
    network = _put_on("peft:lora_fa")
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert {n.split(".")[-3] if "lora" in n else "head" for n in trained} == {"lora_B", "head"}
    frozen = {n: p.clone() for n, p in network.named_parameters() if ".lora_A." in n}
    optimizer = _steps("peft:lora_fa", network, 3)
    assert type(optimizer).__name__ == "LoraFAOptimizer"
    assert optimizer.param_groups[0]["name"] == "lora_fa"
    assert all(torch.equal(p, frozen[n]) for n, p in network.named_parameters() if n in frozen)


def test_adalora_ends_with_the_ranks_that_were_asked_for() -> None:
    network = _put_on("peft:adalora", targets=["query", "value"])
    widths = [len(p) for n, p in network.named_parameters() if ".lora_E." in n]
    assert widths == [3] * 4  # one and a half times the rank
    _steps("peft:adalora", network, 10)
    kept = sum(int((p != 0).sum()) for n, p in network.named_parameters() if ".lora_E." in n)
    assert kept == 2 * 4


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_adalora_runs_for_any_number_of_steps(steps: int) -> None:
    network = _put_on("peft:adalora", targets=["query"], steps=steps)
    _steps("peft:adalora", network, steps, total=steps)


def test_adaloras_penalty_is_what_pefts_tuner_adds_and_its_plain_model_forgets() -> None:
    network = _put_on("peft:adalora").eval()
    given = {**BERT.inputs(), "labels": torch.tensor([0, 1, 2])}
    own = network(**given).loss
    penalty = PEFT_METHODS["peft:adalora"].penalty(network)
    assert penalty is not None
    assert penalty > 0
    torch.testing.assert_close(network.base_model(**given).loss, own + penalty)
    assert PEFT_METHODS["peft:lora"].penalty(network) is None


@pytest.mark.parametrize("case", ["bert", "llama", "gpt2"])
def test_ia3_goes_where_peft_lists_it(case: str) -> None:
    heads = ("classifier",) if case == "bert" else ()
    network = _put_on("peft:ia3", CASES[case], heads=heads)
    stock = peft.get_peft_model(CASES[case].build(), peft.IA3Config(fan_in_fan_out=case == "gpt2"))  # pyright: ignore[reportArgumentType]
    assert _wrapped(network) == _wrapped(stock)


def test_ia3_goes_to_all_linear_layers_where_peft_lists_none() -> None:
    network = _put_on("peft:ia3", CASES["vit"])
    assert _wrapped(network) == set(match_targets(CASES["vit"].build(), al.AdapterSpec(rank=2), ("classifier",)))
    shapes = {n.split(".")[-3]: tuple(p.shape) for n, p in network.named_parameters() if "ia3_l" in n}
    assert shapes["fc2"] == (1, 24)  # the hidden units of the feed-forward part, as the paper scales them
    assert shapes["fc1"] == (24, 1)


@pytest.mark.parametrize("name", NAMES)
def test_peft_loads_what_is_saved_to_the_same_logits(name: str, tmp_path: Path) -> None:
    network = _put_on(name)
    _steps(name, network, 4)
    PEFT_METHODS[name].save(network, tmp_path / "kept", base_model="some/base", task_type="SEQ_CLS")
    config = json.loads((tmp_path / "kept" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("some/base", "SEQ_CLS")
    assert network.peft_config["default"].task_type is None
    again = peft.PeftModel.from_pretrained(BERT.build(), str(tmp_path / "kept"))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(BERT.logits(again), BERT.logits(network), rtol=1e-6, atol=1e-6)


def test_the_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    PEFT_METHODS["peft:ia3"].save(_put_on("peft:ia3"), tmp_path / "kept")
    with pytest.raises(AdapterFileError, match="peft_type is 'IA3', and 'LORA' is needed"):
        PEFT_METHODS["peft:lora"].check(tmp_path / "kept")
    (tmp_path / "kept" / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterFileError, match="no JSON object"):
        PEFT_METHODS["peft:ia3"].check(tmp_path / "kept")


def test_targets_are_checked_as_for_our_own_adapter_and_peft_has_the_last_word() -> None:
    with pytest.raises(NoTargetError, match="qurey"):
        _put_on("peft:lora", targets=["qurey"])
    with pytest.raises(AttachError, match="PEFT refuses AdaLoRA by PEFT on this SmallNet"):
        _put_on("peft:adalora", CASES["small-net"], heads=("head",), targets=["table"])


def test_a_missing_peft_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install peft"):
        PEFT_METHODS["peft:lora"].refuse_unused(_recipe("peft:lora"))
