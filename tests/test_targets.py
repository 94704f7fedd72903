from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from asymlora.errors import AttachError, NoTargetError, RankError
from asymlora.layers import LinearAdapter
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules, match_targets
from cases import MODELS, ModelCase


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 6)
        self.k_proj = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv1d(6, 6, 1)
        self.head = nn.Linear(6, 2)


def _match(model: nn.Module, **fields: object) -> list[str]:
    spec = AdapterSpec.b_only(**{"rank": 2, **fields})  # pyright: ignore[reportArgumentType]
    return list(match_targets(model, spec, match_saved_modules(model, spec.modules_to_save)))


def test_endings_choose_by_whole_path_parts() -> None:
    assert _match(Net(), targets=("q_proj",)) == ["q_proj"]
    with pytest.raises(NoTargetError):
        _match(Net(), targets=("proj",))


def test_unmatched_target_lists_what_could_match() -> None:
    with pytest.raises(NoTargetError, match=r"targets=\('q_prj',\).* end in: head, k_proj, q_proj"):
        _match(Net(), targets=("q_prj",))


def test_one_wrong_target_among_right_ones_is_an_error() -> None:
    with pytest.raises(NoTargetError, match=r"\('v_proj',\)"):
        _match(Net(), targets=("q_proj", "v_proj"))


def test_a_target_of_another_kind_says_what_it_is() -> None:
    with pytest.raises(NoTargetError, match="'norm' is a LayerNorm, which cannot take an adapter"):
        _match(Net(), targets=("norm",))


def test_all_linear_leaves_out_what_is_trained_in_full() -> None:
    assert _match(Net(), modules_to_save=("head",)) == ["q_proj", "k_proj"]


def test_all_linear_leaves_out_the_output_head_of_a_language_model() -> None:
    llama = next(case for case in MODELS if case.name == "llama").build()
    chosen = _match(llama)
    assert "lm_head" not in chosen
    assert len(chosen) == 2 * 7


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_all_linear_stays_in_the_trunk_of_a_transformers_model(case: ModelCase) -> None:
    model = case.build()
    chosen = _match(model)
    trunk = f"{model.base_model_prefix}."
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert chosen == [n for n in linear if n.startswith(trunk)]
    assert any(not n.startswith(trunk) for n in linear)


def test_a_tied_module_cannot_be_trained_in_full() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = next(case for case in MODELS if case.name == "llama").build()
    tied = LlamaForCausalLM(LlamaConfig(**{**llama.config.to_dict(), "tie_word_embeddings": True}))
    with pytest.raises(AttachError, match=r"model\.embed_tokens\.weight = lm_head\.weight"):
        match_saved_modules(tied, ("lm_head",))
    assert match_saved_modules(llama, ("lm_head",)) == ("lm_head",)


def test_a_layer_whose_weight_is_computed_anew_is_refused() -> None:
    model = nn.ModuleDict({"normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "plain": nn.Linear(4, 4)})
    assert _match(model) == ["plain"]
    with pytest.raises(NoTargetError, match="cannot take an adapter"):
        _match(model, targets=("normed",))


def test_no_linear_layer_at_all() -> None:
    with pytest.raises(NoTargetError, match=r"only nn\.Linear can"):
        _match(nn.Sequential(nn.ReLU()))


def test_the_projection_that_multihead_attention_never_calls_is_refused() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 8)})
    assert _match(model) == ["out"]
    with pytest.raises(NoTargetError, match="out_proj"):
        _match(model, targets=("out_proj",))


def test_the_encoder_layer_whose_fast_path_skips_its_linear_layers_is_refused() -> None:
    model = nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(8, 2, batch_first=True), "out": nn.Linear(8, 8)})
    # The reason, so that the rule can go when torch changes: in evaluation an adapter there is passed over.
    encoder, x = model["encoder"].eval(), torch.randn(1, 3, 8)
    bypassing = copy.deepcopy(encoder)
    bypassing.linear1 = LinearAdapter(bypassing.linear1, A=torch.ones(1, 8), B=torch.ones(2048, 1), scaling=9.0)
    with torch.inference_mode():
        assert torch.equal(bypassing(x), encoder(x))
    assert _match(model) == ["out"]
    with pytest.raises(NoTargetError, match=r"'encoder\.linear1' is a Linear, which cannot take an adapter"):
        _match(model, targets=("linear1",))


def test_rank_beyond_a_layer_names_the_layer_and_the_largest_rank() -> None:
    with pytest.raises(RankError, match=r"rank=5 .* k_proj \(6 -> 4\).*largest rank for these targets is 4"):
        _match(Net(), rank=5, targets=("q_proj", "k_proj"))
    assert _match(Net(), rank=4, targets=("q_proj", "k_proj")) == ["q_proj", "k_proj"]


def test_a_layer_in_two_places_is_refused_with_both() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(AttachError, match="first = second"):
        _match(nn.ModuleDict({"first": shared, "second": shared}), targets=("first",))


def test_saved_modules_must_exist_and_are_outermost() -> None:
    model = nn.ModuleDict({"head": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    assert match_saved_modules(model, ("head", "0")) == ("head",)
    with pytest.raises(NoTargetError, match=r"\('haed',\) matches no module.*Modules here: head"):
        match_saved_modules(model, ("haed",))
    with pytest.raises(NoTargetError):
        match_saved_modules(model, ("1",))  # ReLU has nothing to train


def test_matching_changes_nothing() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _match(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
