from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import AttachError, NonZeroStartError, SpecError
from asymlora.factor_spec import PRESETS, FactorSpec
from asymlora.init import draw
from asymlora.installing import InputGradient, drawn_factors, starts_nonzero
from asymlora.targets import match_targets
from peft_models import GPT2, IMAGES, WORDS


class Attention(nn.Module):
    """Three projections of one input and one of their mixture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1) @ self.v(x))


SHARED = {"shared_A": (("q", "k", "v"),)}
CORRECTED = al.AdapterSpec(
    A=FactorSpec(init="orthonormal"),
    B=FactorSpec(init="gaussian"),
    rank=2,
    nonzero_start="correct_base",
)


def _factors(model: nn.Module, spec: al.AdapterSpec) -> dict[str, tuple[Tensor, Tensor]]:
    return drawn_factors(match_targets(model, spec, ()), spec)


def _x() -> Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))


def test_every_factor_is_the_draw_of_its_own_address() -> None:
    spec = al.AdapterSpec.lora(rank=2, seed=3)
    for name, (A, B) in _factors(Attention(), spec).items():
        assert torch.equal(A, draw("kaiming_uniform", tuple(A.shape), seed=3, site=name, factor="A"))  # pyright: ignore[reportArgumentType]
        assert B.abs().max() == 0


def test_singular_starts_see_the_weight_of_their_own_layer_in_its_own_form() -> None:
    model = GPT2.build()
    spec = al.AdapterSpec(
        A=FactorSpec(init="top_singular", trainable=False), rank=2, targets=("c_attn",), B=FactorSpec(init="zeros")
    )
    for name, (A, _) in _factors(model, spec).items():
        weight: Any = model.get_submodule(name).weight
        leading = torch.linalg.svd(weight.detach().t().double(), full_matrices=False).Vh[:2]  # Conv1D is (in, out)
        cosines = torch.linalg.svdvals(A.double() @ leading.T)
        torch.testing.assert_close(cosines, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)


def test_factors_have_the_shapes_that_pefts_files_have() -> None:
    shapes = {
        n: (A.shape, B.shape)
        for n, (A, B) in _factors(WORDS.build(), al.AdapterSpec.lora(rank=2, targets=WORDS.targets)).items()
    }
    assert shapes == {"words": ((2, 11), (8, 2)), "dense": ((2, 8), (6, 2))}
    shapes = {
        n: (A.shape, B.shape)
        for n, (A, B) in _factors(IMAGES.build(), al.AdapterSpec.lora(rank=2, targets=IMAGES.targets)).items()
    }
    assert shapes == {"flat": ((2, 2, 3, 3), (6, 2, 1, 1)), "long": ((2, 6, 3), (4, 2, 1))}


def test_patterns_give_each_site_its_own_rank_alpha_and_factors() -> None:
    spec = al.AdapterSpec.b_only(
        rank=4, alpha=6.0, rank_pattern={"v": 2}, alpha_pattern={"q": 1.0}, factor_pattern={"o": "a_only"}
    )
    model = al.attach(Attention(), spec)
    found = {s.name: (s.A.shape[0], s.scaling, s.A.requires_grad, s.B.requires_grad) for s in al.sites(model)}
    assert found == {
        "q": (4, 0.25, False, True),
        "k": (4, 1.5, False, True),
        "v": (2, 3.0, False, True),
        "o": (4, 1.5, True, False),
    }
    assert torch.equal(model(_x()), Attention()(_x()))


def test_the_scale_of_a_pattern_is_rank_stabilized_by_the_sites_own_rank() -> None:
    spec = al.AdapterSpec.lora(rank=4, alpha=6.0, scaling="rank_stabilized", rank_pattern={"v": 1})
    scales = {site.name: site.scaling for site in al.sites(al.attach(Attention(), spec))}
    assert scales == {"q": 3.0, "k": 3.0, "o": 3.0, "v": 6.0}


def test_a_start_that_cannot_be_drawn_names_site_and_factor_and_touches_nothing() -> None:
    model = Attention()
    before = {name: id(module) for name, module in model.named_modules()}
    spec = al.AdapterSpec(A=FactorSpec(init=lambda *args, **kwargs: torch.zeros(1)), rank=2)
    with pytest.raises(SpecError, match=r"q, A: .*returned .*shape \(1,\)"):
        al.attach(model, spec)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_factors_are_float32_whatever_the_base_is(dtype: torch.dtype) -> None:
    model = al.attach(Attention().to(dtype), al.AdapterSpec.lora(rank=2))
    assert {t.dtype for site in al.sites(model) for t in (site.A, site.B)} == {torch.float32}
    assert model(_x().to(dtype)).dtype == dtype


def test_a_layer_has_the_mode_of_its_base() -> None:
    model = Attention().eval()
    model.q.train()
    al.attach(model, al.AdapterSpec.lora(rank=2))
    assert {name: module.training for name, module in model.named_children()} == {
        "q": True,
        "k": False,
        "v": False,
        "o": False,
    }


def test_a_model_without_values_gets_factors_without_values() -> None:
    with torch.device("meta"):
        model = Attention()
    al.attach(model, al.AdapterSpec.b_only(rank=2, dropout=0.1, modules_to_save=("o",)))
    assert {t.device.type for site in al.sites(model) for t in (site.A, site.B)} == {"meta"}
    out = model(torch.empty(2, 3, 6, device="meta"))
    assert (out.shape, out.device.type) == ((2, 3, 6), "meta")


# One A for several sites.


def test_sites_of_a_group_get_the_very_tensor_of_the_groups_address() -> None:
    model = al.attach(Attention(), al.AdapterSpec.b_only(rank=2, seed=4, **SHARED))
    layers: Any = [site.layer for site in al.sites(model)]
    q, k, v, o = layers
    assert q.lora_A is k.lora_A is v.lora_A is not o.lora_A
    assert q.shared is k.shared is v.shared
    assert o.shared is None
    assert torch.equal(q.lora_A, draw("orthonormal", (2, 6), seed=4, site="q+k+v", factor="A"))
    assert torch.equal(o.lora_A, draw("orthonormal", (2, 5), seed=4, site="o", factor="A"))
    assert len({id(layer.lora_B) for layer in layers}) == 4


def test_a_group_trains_as_separate_layers_with_equal_factors_do() -> None:
    shared = al.attach(Attention(), al.AdapterSpec.b_only(rank=2, **SHARED))
    apart = al.attach(Attention(), al.AdapterSpec.b_only(rank=2))
    apart.load_state_dict(shared.state_dict())
    losses: list[list[float]] = []
    for model in (shared, apart):
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.1))
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = (model(_x()) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # float32, a few hundred roundings
    from asymlora.attaching import count_parameters

    trained, total = count_parameters(apart)
    assert count_parameters(shared) == (trained, total - 2 * 2 * 6)


# Starts that are not zero.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_corrected_base_starts_as_it_was_and_detaches_to_the_bit(dtype: torch.dtype) -> None:
    fresh, model = Attention().to(dtype), al.attach(Attention().to(dtype), CORRECTED)
    x = _x().to(dtype)
    for site in al.sites(model):
        # The corrected weight is rounded once: half a unit of entries below 4.
        exact = fresh.get_submodule(site.name).weight.double() - site.scaling * site.B.double() @ site.A.double()  # pyright: ignore[reportCallIssue]
        assert torch.equal(site.weight, exact.to(dtype))
        assert site.scaling * (site.B @ site.A).abs().max() > 0.5
    # Four layers of sums of at most 8 terms of order one; roundings of the weights and of both products.
    torch.testing.assert_close(model(x), fresh(x), rtol=0, atol=300 * torch.finfo(dtype).eps)
    model(x).square().sum().backward()
    assert all(f.grad is not None and f.grad.abs().max() > 0 for site in al.sites(model) for f in (site.A, site.B))
    al.detach(model)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_corrected_base_merges_what_the_factors_moved_with_one_rounding() -> None:
    fresh, model = Attention(), al.attach(Attention(), CORRECTED)
    wanted: dict[str, Tensor] = {}
    for site in al.sites(model):
        start = site.B.detach().double() @ site.A.detach().double()
        with torch.no_grad():
            site.A.add_(torch.randn_like(site.A)), site.B.mul_(1.5)
        moved = site.scaling * (site.B.detach().double() @ site.A.detach().double() - start)
        wanted[site.name] = (fresh.get_submodule(site.name).weight.double() + moved).float()  # pyright: ignore[reportCallIssue]
    errors = al.merge_errors(model)
    assert all(0 < error.relative_error < 1e-6 for error in errors)
    al.merge(model)
    for name, weight in wanted.items():
        # The float64 sum is the same up to the order of its terms, so a tie may fall the other way: one unit.
        torch.testing.assert_close(model.get_submodule(name).weight, weight, rtol=2**-23, atol=0)


def test_merging_an_untrained_corrected_base_gives_the_base_back() -> None:
    fresh = Attention()
    model = al.merge(al.attach(Attention(), CORRECTED))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_corrected_embedding_and_convolution_start_as_they_were() -> None:
    for case in (WORDS, IMAGES, GPT2):
        fresh = case.build().eval()
        model = al.attach(case.build().eval(), replace(CORRECTED, targets=case.targets))
        for site in al.sites(model):
            assert not torch.equal(site.weight, fresh.get_submodule(site.name).weight)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(case.output(model), case.output(fresh), rtol=0, atol=1e-4)
        al.detach(model)
        assert torch.equal(case.output(model), case.output(fresh))


@pytest.mark.parametrize("case", ["bfloat16", "tied", "grouped"])
def test_a_base_that_cannot_be_corrected_is_refused_by_name_before_anything_moves(case: str) -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    if case == "bfloat16":
        model.bfloat16()
    elif case == "tied":
        model["second"].weight = model["first"].weight
    else:
        model["first"] = nn.Conv1d(4, 4, 3, groups=2)
    spec = replace(CORRECTED, targets=("first",))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonZeroStartError, match=r"first: both factors start non-zero.*float32 weight of its own"):
        al.attach(model, spec)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_sites_that_start_non_zero_are_corrected() -> None:
    spec = replace(CORRECTED, factor_pattern={"v": "b_only"})
    model = Attention()
    assert starts_nonzero(match_targets(model, spec, ()), spec, model) == ["q", "k", "o"]
    assert starts_nonzero(match_targets(model, spec, ()), al.AdapterSpec.lora(), model) == []
    assert {s.name for s in al.sites(al.attach(model, spec)) if s.layer.corrected} == {"q", "k", "o"}


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_starts_non_zero(preset: str) -> None:
    model = al.attach(Attention(), al.AdapterSpec.parse(preset, rank=2))
    assert all((site.B @ site.A).abs().max() == 0 for site in al.sites(model))
    assert torch.equal(model(_x()), Attention()(_x()))


# Inputs that require a gradient.


class Checkpointed(nn.Module):
    """An embedding as transformers' models name it, and a flag as their checkpointed blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.block = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.block.gradient_checkpointing = False

    def get_input_embeddings(self) -> nn.Module:
        return self.words


def test_inputs_require_a_gradient_only_under_checkpointing_and_in_a_pass_with_gradients() -> None:
    model = al.attach(Checkpointed(), al.AdapterSpec.b_only(rank=2))
    ids = torch.tensor([1, 2])
    assert not model.words(ids).requires_grad
    model.block.base_layer.gradient_checkpointing = True  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert model.words(ids).requires_grad
    with torch.no_grad():
        assert not model.words(ids).requires_grad
    other = copy.deepcopy(model)
    assert other.words(ids).requires_grad
    other.block.base_layer.gradient_checkpointing = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert not other.words(ids).requires_grad
    assert model.words(ids).requires_grad
    al.detach(model)
    assert not any(isinstance(hook, InputGradient) for hook in model.words._forward_hooks.values())
    model.requires_grad_(False)
    assert not model.words(ids).requires_grad


def test_a_model_whose_embeddings_cannot_be_asked_for_is_attached_all_the_same() -> None:
    class Silent(nn.Sequential):
        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

    assert al.attach(Silent(nn.Linear(4, 4)), al.AdapterSpec.b_only(rank=2))
    with pytest.raises(AttachError):
        al.attach(Silent(nn.ReLU()), al.AdapterSpec.b_only(rank=2))
