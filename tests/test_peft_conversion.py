from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import AttachError, MissingPackageError, NotAttachedError
from asymlora.peft_sites import is_frozen, lora_layers, trained_in_full
from cases import fill_factors
from peft_models import BERT, CASES, GPT2, IDS, WORDS, PeftCase, Words, add_second, factors, fill_peft

PRESETS = ("lora", "b_only", "a_only")


def quiet(case: PeftCase, model: Any) -> Tensor:
    """Output in evaluation mode."""
    with torch.no_grad():
        return case.output(model.eval())


def base_weights(model: Any) -> dict[str, int]:
    """Address of every base weight, by its name in the base model."""
    return {
        name.replace("base_model.model.", "").replace("base_layer.", ""): p.data_ptr()
        for name, p in model.named_parameters()
        if "lora_" not in name and "modules_to_save" not in name and "original_module" not in name
    }


def own_model(case: PeftCase, preset: str = "lora", **given: Any) -> nn.Module:
    spec = al.AdapterSpec.parse(preset, **{"rank": 2, "alpha": 3.0, "targets": case.targets, **given})
    model = al.attach(case.build(), spec)
    fill_factors(model)
    return model


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_from_peft_keeps_everything(case: PeftCase, preset: str) -> None:
    model = case.peft(modules_to_save=[case.head], use_rslora=preset == "lora")
    if preset != "lora":
        al.freeze(model, "A" if preset == "b_only" else "B")
    with torch.no_grad():
        for wrapper in trained_in_full(model).values():
            for parameter in wrapper.modules_to_save["default"].parameters():
                parameter.add_(0.1)
    expected, theirs, weights = quiet(case, model), list(al.sites(model)), base_weights(model)
    copied = trained_in_full(model)[case.head].modules_to_save["default"]
    own = al.from_peft_model(model)
    assert type(own) is type(case.build())
    assert (quiet(case, own) - quiet(case, case.build())).abs().max() > 1e-2
    # Two layers of products in another order: a few dozen roundings of 6e-8 each.
    assert torch.allclose(quiet(case, own), expected, rtol=0, atol=4e-6 * float(expected.abs().max()))
    for one, other in zip(al.sites(own), theirs, strict=True):
        assert (one.name, one.kind, one.scaling) == (other.name, other.kind, other.scaling)
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
        assert one.weight.data_ptr() == other.weight.data_ptr()
        assert one.A.requires_grad is (preset != "b_only")
        assert one.B.requires_grad is (preset != "a_only")
    assert weights.items() <= base_weights(own).items()
    assert own.get_submodule(case.head) is copied
    assert all(p.requires_grad for p in copied.parameters())


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_to_peft_keeps_everything(case: PeftCase, preset: str, tmp_path: Path) -> None:
    scaling = "rank_stabilized" if preset == "lora" else "standard"
    own = own_model(case, preset, modules_to_save=(case.head,), scaling=scaling)
    expected, weights = quiet(case, own), base_weights(own)
    ours = [(s.name, s.A.detach().clone(), s.B.detach().clone(), s.weight, s.scaling) for s in al.sites(own)]
    model = al.to_peft_model(own)
    assert isinstance(model, PeftModel)
    assert torch.allclose(quiet(case, model), expected, rtol=0, atol=4e-6 * float(expected.abs().max()))
    for site, (name, A, B, weight, scale) in zip(al.sites(model), ours, strict=True):
        assert (site.name, site.scaling) == (name, scale)
        assert torch.equal(site.A, A)
        assert torch.equal(site.B, B)
        assert site.weight is weight
    assert base_weights(model).items() <= weights.items()
    model.set_adapter("default")
    for factor in ("A", "B"):
        free = preset != ("b_only" if factor == "A" else "a_only")
        assert {is_frozen(layer, factor, "default") for layer in lora_layers(model).values()} == {not free}
        assert {t.requires_grad for t in factors(model, factor).values()} == {free}
    assert set(trained_in_full(model)) == {case.head}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(case.build(), str(tmp_path))
    assert torch.allclose(quiet(case, again), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_there_and_back_is_where_it_was(case: PeftCase) -> None:
    own = own_model(case, "b_only")
    expected = quiet(case, own)
    back = al.from_peft_model(al.to_peft_model(own))
    assert back is own
    assert torch.equal(quiet(case, back), expected)
    assert all(not site.A.requires_grad for site in al.sites(back))
    assert torch.equal(quiet(case, al.detach(back)), quiet(case, case.build()))


def test_ranks_scales_and_trained_factors_of_each_site_go_along(tmp_path: Path) -> None:
    own = own_model(
        BERT,
        rank_pattern={"query": 3},
        alpha_pattern={"layer.1.attention.self.value": 7.0},
        factor_pattern={"layer.0.attention.self.query": "b_only"},
    )
    next(iter(al.sites(own))).layer.scaling = 0.1  # and 0.1 * 3 / 3 is another number
    expected = quiet(BERT, own)
    facts = [(s.name, s.A.shape[0], s.scaling, s.A.requires_grad) for s in al.sites(own)]
    assert len({rank for _, rank, _, _ in facts}) == 2
    model = al.to_peft_model(own)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(BERT.build(), str(tmp_path))
    assert torch.allclose(quiet(BERT, plain), expected, atol=1e-6)
    back: Any = al.from_peft_model(model)
    assert [(s.name, s.A.shape[0], s.scaling, s.A.requires_grad) for s in al.sites(back)] == facts
    assert torch.equal(quiet(BERT, back), expected)


def test_a_scale_changed_at_run_time_is_kept() -> None:
    model = WORDS.peft()
    model.base_model.model.dense.scaling["default"] = 0.7
    expected = quiet(WORDS, model)
    own = al.from_peft_model(model)
    assert [site.scaling for site in al.sites(own)] == [1.5, 0.7]
    assert torch.allclose(quiet(WORDS, own), expected, atol=1e-6)


def test_dropout_and_mode_go_along() -> None:
    own: Any = al.from_peft_model(BERT.peft(lora_dropout=0.25).train())
    assert {site.layer.dropout for site in al.sites(own)} == {0.25}
    assert all(module.training for module in own.modules())
    model = al.to_peft_model(own.eval())
    assert {layer.lora_dropout["default"].p for layer in lora_layers(model).values()} == {0.25}
    assert not any(module.training for module in model.modules())


def test_a_converted_model_is_saved_and_merged_as_our_own(tmp_path: Path) -> None:
    own = al.from_peft_model(al.freeze(BERT.peft(modules_to_save=["classifier"]), "A"))
    expected = quiet(BERT, own)
    al.save_adapter(own, tmp_path)
    assert torch.allclose(quiet(BERT, al.load_adapter(BERT.build(), tmp_path)), expected, atol=1e-6)
    assert torch.allclose(quiet(BERT, PeftModel.from_pretrained(BERT.build(), str(tmp_path))), expected, atol=1e-6)
    assert torch.allclose(quiet(BERT, al.merge(own)), expected, atol=1e-5)


def test_the_adapter_that_is_named_is_taken() -> None:
    model = WORDS.peft()
    add_second(WORDS, model)
    model.set_adapter("second")
    expected = quiet(WORDS, model)
    model.set_adapter("default")
    own = al.from_peft_model(model, adapter="second")
    assert torch.allclose(quiet(WORDS, own), expected, atol=1e-6)


def test_models_that_peft_changed_without_wrapping_are_taken_too() -> None:
    injected = inject_adapter_in_model(WORDS.config(), WORDS.build())
    added = BERT.build()
    added.add_adapter(BERT.config())
    for case, model in ((WORDS, injected), (BERT, added)):
        fill_peft(model)
        expected = quiet(case, model)
        own = al.from_peft_model(model)
        assert own is model
        assert torch.allclose(quiet(case, own), expected, atol=1e-6)
        assert torch.allclose(quiet(case, al.to_peft_model(own)), expected, atol=1e-6)


def test_a_fast_model_converts() -> None:
    model = BERT.peft()
    al.speed_up(model)
    expected = quiet(BERT, model)
    assert torch.equal(quiet(BERT, al.from_peft_model(model)), expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lora_bias": True}, r"dense has a bias on B \(lora_bias\)"),
        ({"bias": "lora_only"}, r"bias='lora_only' trains weights of the base"),
        ({"use_dora": True}, "dense is DoraLinear"),
    ],
)
def test_what_own_layers_cannot_do_is_refused_and_nothing_changed(given: dict[str, Any], words: str) -> None:
    model = WORDS.peft(target_modules=["dense"], **given)
    expected, before = quiet(WORDS, model), [id(m) for m in model.modules()]
    with pytest.raises(AttachError, match=words):
        al.from_peft_model(model)
    assert [id(m) for m in model.modules()] == before
    assert torch.equal(quiet(WORDS, model), expected)


def test_a_merged_adapter_is_refused() -> None:
    model = WORDS.peft()
    model.merge_adapter()
    with pytest.raises(AttachError, match=r"words is merged \(call unmerge_adapter\(\)\)"):
        al.from_peft_model(model)


def test_a_corrected_base_is_refused_by_peft() -> None:
    both = {"A": al.FactorSpec(init="gaussian"), "B": al.FactorSpec(init="gaussian"), "rank": 2, "targets": "dense"}
    own = al.attach(WORDS.build(), al.AdapterSpec(**both, nonzero_start="correct_base"))  # pyright: ignore
    with pytest.raises(AttachError, match="dense holds a base weight corrected for its non-zero start"):
        al.to_peft_model(own)
    assert len(list(al.sites(own))) == 1


class Twice(nn.Module):
    """A layer whose path is the ending of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.block = nn.ModuleDict({"dense": nn.Linear(4, 4)})
        self.subdense = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.subdense(self.block["dense"](self.dense(x)))


def test_paths_that_end_in_others_are_told_apart() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    own = al.attach(Twice(), al.AdapterSpec.lora(rank=2, targets="dense", rank_pattern={"block.dense": 3}))
    fill_factors(own)
    expected = own(x)
    model = al.to_peft_model(own)
    assert [site.A.shape[0] for site in al.sites(model)] == [2, 3]
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_what_peft_would_read_otherwise_is_refused() -> None:
    spec = al.AdapterSpec.lora(rank=2, targets="subdense", modules_to_save=("dense",))
    own = al.attach(Twice(), spec)
    with pytest.raises(AttachError, match="PEFT would take subdense for the module trained in full dense"):
        al.to_peft_model(own)
    assert [site.name for site in al.sites(own)] == ["subdense"]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: al.from_peft_model(Words()), "no LoRA layer of PEFT"),
        (lambda: al.from_peft_model(own_model(WORDS)), "asymlora's own"),
        (lambda: al.to_peft_model(Words()), r"attach\(model, spec\)"),
        (lambda: al.to_peft_model(WORDS.peft()), r"attach\(model, spec\)"),
    ],
)
def test_a_model_of_the_wrong_kind_is_refused(act: Callable[[], object], words: str) -> None:
    with pytest.raises(NotAttachedError, match=words):
        act()


def test_a_missing_peft_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_model(WORDS)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match="pip install peft"):
        al.to_peft_model(own)


def test_a_task_type_picks_the_class() -> None:
    model = al.to_peft_model(own_model(GPT2), task_type="CAUSAL_LM")
    assert type(model).__name__ == "PeftModelForCausalLM"


def test_layers_that_lack_the_adapter_become_plain_again() -> None:
    model: Any = get_peft_model(Words(), LoraConfig(target_modules=["dense"], r=2))  # pyright: ignore
    model.add_adapter("second", LoraConfig(target_modules=["head"], r=2))
    own: Any = al.from_peft_model(model)
    assert type(own.head) is nn.Linear
    assert [site.name for site in al.sites(own)] == ["dense"]
