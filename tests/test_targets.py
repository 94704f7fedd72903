from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from asymlora.errors import AttachError, NoTargetError, RankError
from asymlora.layers import LinearAdapter
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules, match_targets, shared_groups
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
    with pytest.raises(NoTargetError, match=r"targets=\('q_prj',\).* end in: conv, head, k_proj, q_proj"):
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
    with pytest.raises(
        NoTargetError, match=r"No layer here can take an adapter: linear layers, embeddings and convolutions can"
    ):
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
    with pytest.raises(
        RankError,
        match=r"rank=5 does not fit 1 of 2 layers: k_proj is 6 -> 4, and the rank may be at most 4.*rank_pattern",
    ):
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


def test_other_kinds_are_taken_when_they_are_named_and_never_by_all_linear() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(9, 6), "net": Net()})
    assert _match(model, targets=("words", "conv")) == ["words", "net.conv"]
    assert _match(model) == ["net.q_proj", "net.k_proj", "net.head"]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Embedding(9, 6, max_norm=1.0), "layer has max_norm, which rewrites its weight as it is read"),
        (nn.Conv1d(4, 6, 3, padding_mode="reflect"), "layer pads by 'reflect'"),
    ],
    ids=["max_norm", "padding_mode"],
)
def test_a_layer_that_no_rank_would_fit_is_no_matter_of_the_rank(layer: nn.Module, why: str) -> None:
    with pytest.raises(AttachError, match=f"{why}.*Leave them out") as refused:
        _match(nn.ModuleDict({"layer": layer}), targets="layer")
    assert not isinstance(refused.value, RankError)


def test_groups_must_divide_the_rank() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3, groups=4)})
    with pytest.raises(RankError, match="conv has 4 groups, which must divide the rank"):
        _match(model, targets="conv", rank=2)
    assert _match(model, targets="conv", rank=4) == ["conv"]


def test_a_layer_without_a_weight_yet_is_refused_until_it_has_seen_an_input() -> None:
    model = nn.ModuleDict({"lazy": nn.LazyLinear(4), "plain": nn.Linear(4, 4)})
    for targets in ("all-linear", ("lazy",)):
        with pytest.raises(AttachError, match=r"no weight before their first input: lazy\. Run the model"):
            _match(model, targets=targets)
    assert _match(model, targets=("plain",)) == ["plain"]
    model["lazy"](torch.zeros(1, 6))
    assert _match(model) == ["lazy", "plain"]


def test_a_block_that_knows_its_widths_is_no_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 4, 4
            self.inner = nn.Linear(4, 4)

    assert _match(nn.ModuleDict({"block": Block()})) == ["block.inner"]


def test_patterns_that_match_no_adapted_layer_are_errors() -> None:
    for pattern in (
        {"rank_pattern": {"v_proj": 2}},
        {"alpha_pattern": {"head": 2.0}},
        {"factor_pattern": {"conv": "a_only"}},
    ):
        with pytest.raises(NoTargetError, match=r"_pattern\['\w+'\] matches no adapted layer.*end in: k_proj, q_proj"):
            _match(Net(), targets=("q_proj", "k_proj"), **pattern)
    assert _match(Net(), targets=("q_proj",), rank_pattern={"q_proj": 6}) == ["q_proj"]


def test_a_pattern_gives_a_layer_the_rank_that_fits() -> None:
    with pytest.raises(RankError, match="k_proj"):
        _match(Net(), rank=5, targets=("q_proj", "k_proj"), rank_pattern={"q_proj": 6})
    assert len(_match(Net(), rank=5, targets=("q_proj", "k_proj"), rank_pattern={"k_proj": 4})) == 2


# Groups of layers that share one A.


class Blocks(nn.Module):
    """Two blocks of projections, and projections at the top."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Net(), Net()])
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 3)


def _groups(model: nn.Module, **fields: object) -> dict[str, tuple[str, ...]]:
    spec = AdapterSpec.b_only(**{"rank": 2, **fields})  # pyright: ignore[reportArgumentType]
    return shared_groups(spec, match_targets(model, spec, ()))


def test_layers_of_one_parent_share_under_an_address_of_the_group() -> None:
    assert _groups(Blocks(), shared_A=(("q_proj", "k_proj"),)) == {
        "q_proj+k_proj": ("q_proj", "k_proj"),
        "layer.0.q_proj+k_proj": ("layer.0.q_proj", "layer.0.k_proj"),
        "layer.1.q_proj+k_proj": ("layer.1.q_proj", "layer.1.k_proj"),
    }
    assert _groups(Blocks()) == {}


def test_an_ending_of_several_parts_finds_its_parent_also_at_the_top() -> None:
    model = nn.ModuleDict({"self": nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)})})
    assert _groups(model, shared_A=(("self.query", "self.key"),)) == {"self.query+self.key": ("self.query", "self.key")}
    nested = nn.ModuleDict({"layer": model})
    assert _groups(nested, shared_A=(("self.query", "self.key"),)) == {
        "layer.self.query+self.key": ("layer.self.query", "layer.self.key")
    }


def test_a_group_needs_two_adapted_layers_of_one_parent() -> None:
    with pytest.raises(NoTargetError, match=r"matches no two adapted layers of one parent.*Adapted here: q_proj"):
        _groups(Blocks(), targets=("q_proj",), shared_A=(("q_proj", "k_proj"),))
    with pytest.raises(NoTargetError, match="matches no two"):
        _groups(Net(), shared_A=(("q_proj", "v_proj"),))


def test_what_cannot_share_says_why() -> None:
    mixed = nn.ModuleDict({"q_proj": nn.Linear(6, 6), "k_proj": nn.Linear(5, 6)})
    group = {"shared_A": (("q_proj", "k_proj"),)}
    with pytest.raises(AttachError, match=r"one rank and one input width: q_proj \(2, 6\), k_proj \(2, 5\)"):
        _groups(mixed, **group)
    with pytest.raises(AttachError, match=r"one rank and one input width: q_proj \(3, 6\), k_proj \(2, 6\)"):
        _groups(Net(), rank_pattern={"q_proj": 3}, targets=("q_proj", "k_proj"), **group)
    with pytest.raises(AttachError, match=r"trained at k_proj by factor_pattern"):
        _groups(Net(), factor_pattern={"k_proj": "lora"}, targets=("q_proj", "k_proj"), **group)
    with pytest.raises(AttachError, match="for linear layers, and one of q_proj, conv is none"):
        _groups(Net(), targets=("q_proj", "conv"), shared_A=(("q_proj", "conv"),))
