"""What is seen on a model itself: own layers and real PEFT models, with the trouble and without it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

import asymlora as al
from asymlora.diagnostics.model_checks import (
    chosen_heads,
    frozen_bits,
    head_bits,
    judge_folder,
    judge_frozen,
    judge_parameters,
    judge_still_heads,
    judge_targets,
    judge_uncalled,
    judge_untrained_heads,
    sites_of,
    task_heads,
)
from asymlora.errors import AdapterFileError, UnknownNameError
from cases import KIND_MODELS, MODELS
from peft_models import BERT, WORDS, factors

CASES = {case.name: case for case in (*MODELS, *KIND_MODELS)}


def _frozen_A() -> Any:
    model = BERT.peft()
    for tensor in factors(model, "A").values():
        tensor.requires_grad_(False)
    return model


class TestFrozen:
    """A freeze that is a flag, and one that is a buffer."""

    @pytest.mark.parametrize("thawing", ["set_adapter", "disable_adapter"])
    def test_what_thaws_a_flag_on_a_peft_model_is_told_and_a_buffer_stays(self, thawing: str) -> None:
        flagged, held = _frozen_A(), al.freeze(BERT.peft(), "A")
        start = [frozen_bits(sites_of(model)) for model in (flagged, held)]
        assert all(len(bits) == 4 for bits in start)
        for model in (flagged, held):
            if thawing == "set_adapter":
                model.set_adapter("default")
            else:
                with model.disable_adapter():
                    pass
        (verdict,) = judge_frozen(start[0], sites_of(flagged), step=7)
        assert (verdict.name, verdict.factor, verdict.step) == ("frozen_changed", "A", 7)
        assert len(verdict.sites) == 4
        assert "requires a gradient" in verdict.says
        assert "asymlora.freeze(model, 'A')" in verdict.remedy
        assert judge_frozen(start[1], sites_of(held), step=7) == ()

    def test_one_changed_bit_is_told_by_site(self) -> None:
        model = al.attach(CASES["bert"].build(), al.AdapterSpec.b_only(rank=2, targets=["query", "value"]))
        bits = frozen_bits(sites_of(model))
        assert judge_frozen(bits, sites_of(model), step=1) == ()
        site = sites_of(model)[2]
        site.A.view(-1).view(torch.int32)[0] ^= 1
        (verdict,) = judge_frozen(bits, sites_of(model), step=1)
        assert (verdict.sites, verdict.factor) == ((site.name,), "A")
        assert "its bits are others" in verdict.says

    def test_a_trained_factor_may_change(self) -> None:
        model = al.attach(CASES["bert"].build(), al.AdapterSpec.b_only(rank=2, targets=["query"]))
        bits = frozen_bits(sites_of(model))
        for site in sites_of(model):
            site.B.data.add_(1.0)
        assert judge_frozen(bits, sites_of(model), step=1) == ()

    def test_a_frozen_nan_that_stays_has_not_changed(self) -> None:
        model = al.attach(CASES["bert"].build(), al.AdapterSpec.b_only(rank=2, targets=["query"]))
        sites_of(model)[0].A.fill_(float("nan"))
        assert judge_frozen(frozen_bits(sites_of(model)), sites_of(model), step=1) == ()


class TestTargets:
    """Names that match nothing."""

    def test_one_wrong_target_among_right_ones_is_told(self) -> None:
        model = BERT.peft(target_modules=["query", "valeu"])
        (verdict,) = judge_targets(model)
        assert (verdict.name, verdict.sites) == ("unmatched_target", ("valeu",))
        assert "'valeu'" in verdict.says
        assert "end in: query" in verdict.remedy
        assert judge_targets(BERT.peft(target_modules=["query", "value"])) == ()

    def test_a_regular_expression_an_injected_model_and_own_layers(self) -> None:
        assert judge_targets(BERT.peft(target_modules=r".*\.query")) == ()
        from peft import inject_adapter_in_model

        injected = inject_adapter_in_model(LoraConfig(r=2, target_modules=["query", "valeu"]), BERT.build())
        assert [v.sites for v in judge_targets(injected)] == [("valeu",)]
        own = al.attach(BERT.build(), al.AdapterSpec.lora(rank=2, targets=["query"]))
        assert judge_targets(own) == ()

    def test_a_folder_of_another_model_is_told_by_its_sites(self, tmp_path: Path) -> None:
        BERT.peft().save_pretrained(str(tmp_path / "folder"))
        assert judge_folder(BERT.build(), tmp_path / "folder") == ()
        assert judge_folder(BERT.peft(), tmp_path / "folder") == ()
        own = al.attach(BERT.build(), al.AdapterSpec.lora(rank=2, targets=["query"]))
        assert judge_folder(own, tmp_path / "folder") == ()
        (verdict,) = judge_folder(CASES["roberta"].build(), tmp_path / "folder")
        assert verdict.name == "unmatched_target"
        assert len(verdict.sites) == 4
        assert all(site.startswith("bert.encoder") for site in verdict.sites)
        with pytest.raises(AdapterFileError):
            judge_folder(BERT.build(), tmp_path)

    def test_sites_that_were_not_called_are_told_in_the_models_order(self) -> None:
        (verdict,) = judge_uncalled(["q", "k", "v"], {"k"})
        assert (verdict.name, verdict.sites) == ("uncalled_site", ("q", "v"))
        assert judge_uncalled(["q", "k"], ["k", "q"]) == ()


class TestHeads:
    """Modules outside the base model."""

    @pytest.mark.parametrize("name", ["bert", "roberta", "vit"])
    def test_classifiers_have_a_head_and_language_models_none(self, name: str) -> None:
        assert list(task_heads(CASES[name].build())) == ["classifier"]
        for causal in ("llama", "gpt_neox", "gpt2"):
            assert task_heads(CASES[causal].build()) == {}

    def test_a_masked_model_and_a_plain_net_have_none(self) -> None:
        from transformers import BertForMaskedLM

        assert task_heads(BertForMaskedLM(CASES["bert"].build().config)) == {}
        assert task_heads(nn.Sequential(nn.Linear(4, 4))) == {}

    def test_heads_are_found_under_peft_and_wrappers(self) -> None:
        assert list(task_heads(BERT.peft())) == ["classifier"]
        own = al.attach(BERT.build(), al.AdapterSpec.lora(rank=2, targets=["query"]))
        assert list(task_heads(torch.nn.DataParallel(own))) == ["classifier"]

    def test_a_peft_classifier_without_modules_to_save_is_told(self) -> None:
        (verdict,) = judge_untrained_heads(task_heads(BERT.peft()))
        assert (verdict.name, verdict.sites, verdict.step) == ("frozen_head", ("classifier",), 0)
        assert "modules_to_save=['classifier']" in verdict.remedy
        assert "heads=()" in verdict.remedy
        saved = BERT.peft(modules_to_save=["classifier"])
        assert judge_untrained_heads(task_heads(saved)) == ()
        by_task = get_peft_model(BERT.build(), LoraConfig(r=2, task_type=TaskType.SEQ_CLS, target_modules=["query"]))
        assert judge_untrained_heads(task_heads(by_task)) == ()

    def test_an_own_adapter_with_and_without_its_head(self) -> None:
        for saved, expected in (((), 1), (("classifier",), 0)):
            spec = al.AdapterSpec.b_only(rank=2, targets=["query"], modules_to_save=saved)
            assert len(judge_untrained_heads(task_heads(al.attach(BERT.build(), spec)))) == expected

    def test_a_head_that_carries_an_adapter_is_trained(self) -> None:
        model = get_peft_model(BERT.build(), LoraConfig(r=2, target_modules=["query", "classifier"]))
        assert judge_untrained_heads(task_heads(model)) == ()

    def test_chosen_heads_are_paths_in_the_unwrapped_model(self) -> None:
        assert list(chosen_heads(BERT.peft(), ["bert.pooler"])) == ["bert.pooler"]
        with pytest.raises(UnknownNameError, match=r"'clasifier'.*outermost here: bert, dropout, classifier"):
            chosen_heads(BERT.peft(), ["clasifier"])

    def test_digests_are_of_what_is_trained(self) -> None:
        model = BERT.peft(modules_to_save=["classifier"])
        heads = task_heads(model)
        before = head_bits(heads)
        heads["classifier"].original_module.weight.data.add_(1.0)
        assert head_bits(heads) == before
        heads["classifier"].modules_to_save["default"].bias.data.add_(1.0)
        assert head_bits(heads) != before

    def test_still_heads_are_told_with_the_steps(self) -> None:
        (verdict,) = judge_still_heads(["classifier"], step=20)
        assert "not changed by one bit after 20 steps" in verdict.says
        assert judge_still_heads([], step=20) == ()


def test_parameters_that_are_not_finite_are_named_and_frozen_ones_are_not() -> None:
    model = copy.deepcopy(BERT.build())
    assert judge_parameters(model, step=3) == ()
    model.classifier.bias.data[0] = float("inf")
    (verdict,) = judge_parameters(model, step=3)
    assert (verdict.name, verdict.sites, verdict.step) == ("non_finite", ("classifier.bias",), 3)
    model.classifier.bias.requires_grad_(False)
    assert judge_parameters(model, step=3) == ()


def test_words_case_has_no_base_model_and_so_no_head() -> None:
    assert isinstance(WORDS.peft(), PeftModel)
    assert task_heads(WORDS.peft()) == {}
