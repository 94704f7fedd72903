"""Advice on constructed sites: both sides of every rule, and what no rule may do."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asymlora import attach
from asymlora.diagnostics.advice import CAVEATS, INFORMED, REACH, advise
from asymlora.diagnostics.advised_rate import RateMeasures
from asymlora.diagnostics.captured_gradient import Shares, SiteMeasures, measure_site, measure_sites
from asymlora.diagnostics.covariance import every_target, gather_moments
from asymlora.diagnostics.rank_budget import Curve, cost_of
from asymlora.errors import SpecError
from asymlora.theory.factor_advantage import explained_shares
from asymlora.theory.rate_laws import Setting
from frozen_draws import frame, gaussian, power_law

IN, OUT = 384, 1536


def _shares(rank: int, **changes: Any) -> Shares:
    known = {"random_A": 0.5, "activation_A": 0.5, "singular_A": 0.5, "random_B": rank / OUT, "gradient_B": 0.3}
    weight = {f"weight_{name}": 0.1 for name in ("random_A", "activation_A", "singular_A", "random_B", "gradient_B")}
    known |= weight | {"singular_B": 0.1, "best": 0.9, "weight_singular_B": 0.1, "weight_best": 0.9}
    return Shares(rank=rank, **{**known, **changes})


def _site(name: str = "up", *, curve: dict[int, dict[str, Any]] | None = None, **changes: Any) -> SiteMeasures:
    """A site of a transformer as the first look found them: concentrated inputs, many outputs."""
    known = {"kind": "linear", "fan_in": IN, "outputs": OUT, "rows": 5000, "batches": 8, "input_ratio": 20.0}
    known |= {"output_ratio": 30.0, "noise": 0.1}
    curve = {1: {"random_A": 0.1}, 8: {"random_A": 0.5}} if curve is None else curve
    shares = tuple(_shares(rank, **values) for rank, values in curve.items())
    return SiteMeasures(name=name, shares=shares, **{**known, **changes})


def _layer(x: Tensor, outputs: int, *, seed: int = 0) -> SiteMeasures:
    """A real linear layer with a generic gradient."""
    model = nn.Sequential(nn.Linear(x.shape[1], outputs)).double()
    wanted = gaussian(len(x), outputs, seed=seed)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    batches = [(x[::2], wanted[::2]), (x[1::2], wanted[1::2])]
    return measure_site(gather_moments(model, batches, loss=loss, targets=["0"])["0"])


def test_concentrated_inputs_with_many_outputs_train_B() -> None:
    (site,) = advise([_site()]).sites
    assert (site.train, site.rank, site.share, site.values) == ("B", 8, 0.5, 8 * OUT)
    assert site.confidence.level == "high"
    for number in ("20 of 384", "1536 outputs", "rank 8", "0.5 of", "0.0052"):
        assert number in site.reason


def test_a_head_on_isotropic_inputs_trains_A_and_says_what_it_costs() -> None:
    site = _layer(gaussian(3000, 32, seed=0), 3)
    assert site.generic_ratio < 1
    (advised,) = advise([site]).sites
    assert (advised.train, advised.rank, advised.share, advised.A_start) == ("A", 3, 1.0, "")
    assert "Each rank of A trains 32 values, of B 3." in advised.reason
    assert "the layer's own 96: train it in full instead" in advised.reason


def test_the_same_head_on_inputs_of_two_dimensions_trains_B() -> None:
    x = gaussian(3000, 2, seed=0) @ frame(32, 2, torch.Generator().manual_seed(0)).mT
    (advised,) = advise([_layer(x, 3)], rank=2).sites
    assert (advised.train, advised.share) == ("B", pytest.approx(1.0))


@pytest.mark.parametrize(("fan_in", "outputs", "train"), [(16, 64, "B"), (64, 16, "A")])
def test_up_and_down_projections_of_isotropic_inputs_train_the_side_of_the_criterion(
    fan_in: int, outputs: int, train: str
) -> None:
    # Isotropic: the participation ratio is the fan-in, and the criterion is outputs > fan-in.
    (advised,) = advise([_layer(gaussian(4000, fan_in, seed=0), outputs)], rank=4).sites
    assert advised.train == train


def test_an_embedding_of_few_outputs_read_evenly_trains_A_and_one_read_unevenly_B() -> None:
    trained = []
    for ids in (torch.arange(400) % 100, (torch.arange(400) % 20).square() // 40):
        model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 2)).double()

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            return (model(batch) - gaussian(400, 2, seed=1)).square().mean()

        (site,) = measure_sites(gather_moments(model, [ids], loss=loss, targets=["0"]))
        trained.append((site.generic_ratio < 1, advise([site], rank=2).sites[0].train))
    assert trained == [(True, "A"), (False, "B")]


@pytest.mark.parametrize(("smooth", "train"), [(False, "A"), (True, "B")])
def test_a_convolution_of_noise_trains_A_and_one_of_smooth_images_B(smooth: bool, train: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 4, stride=4)).double()
    images = gaussian(60, 3, 16, 16, seed=0)
    if smooth:
        images = images.mean(dim=(1, 2), keepdim=True).expand(-1, 3, 16, -1).cumsum(-1)
    wanted = gaussian(60, 12, 4, 4, seed=1)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - wanted).square().mean()

    (site,) = measure_sites(gather_moments(model, [images], loss=loss, targets=every_target(model)))
    assert site.kind == "convolution"
    assert site.fan_in == 48
    assert advise([site], rank=4).sites[0].train == train


def test_both_are_trained_where_neither_reaches_a_quarter_of_the_best_and_not_just_above() -> None:
    below = _site(curve={8: {"random_A": REACH * 0.8 - 0.01, "best": 0.8}})
    above = _site(curve={8: {"random_A": REACH * 0.8 + 0.01, "best": 0.8}})
    assert advise([below]).sites[0].train == "both"
    assert advise([below]).sites[0].values == 8 * (IN + OUT)
    assert advise([below]).sites[0].share == 0.8
    assert "Neither is 25% of the 0.8" in advise([below]).sites[0].reason
    assert advise([above]).sites[0].train == "B"


@pytest.mark.parametrize("noise", [None, 0.9])
def test_a_gradient_that_may_be_mostly_chance_does_not_call_for_both(noise: float | None) -> None:
    (site,) = advise([_site(curve={8: {"random_A": 0.1, "best": 0.8}}, noise=noise)]).sites
    assert site.train == "B"
    assert site.confidence.level == "medium"


@pytest.mark.parametrize(("fan_in", "outputs", "train"), [(384, 96, "B"), (96, 384, "A")])
def test_a_tie_trains_the_factor_of_fewer_values(fan_in: int, outputs: int, train: str) -> None:
    site = _site(fan_in=fan_in, outputs=outputs, curve={8: {"random_A": 0.50, "random_B": 0.51}})
    (advised,) = advise([site]).sites
    assert advised.train == train
    assert any("close" in doubt for doubt in advised.confidence.failed)


def test_the_factor_does_not_depend_on_the_order_of_the_sites_or_their_names() -> None:
    sites = [_site("a"), _site("b", curve={8: {"random_A": 0.01, "random_B": 0.6}}), _site("c", outputs=8)]
    forward = {site.name: site.train for site in advise(sites).sites}
    assert forward == {site.name: site.train for site in advise(sites[::-1]).sites}


def test_without_a_gradient_the_generic_criterion_speaks_and_is_doubted() -> None:
    plain, reversed_ = (_site(n, curve={}, outputs=m, why_no_shares="too large") for n, m in (("a", 500), ("b", 10)))
    first, second = advise([plain, reversed_]).sites
    assert (first.train, second.train) == ("B", "A")
    assert (first.share, first.rank) == (None, 8)
    assert "too large" in first.confidence.failed[0]
    assert advise([plain]).mean_share is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 100}, "100 rows are few for 20 dimensions"),
        ({"noise": 0.7}, "70%"),
        ({"noise": None}, "not known"),
        ({"noise": 1.4}, "100%"),
        ({"missed": 0.2}, "leaves out 20%"),
        ({"centred_ratio": 350.0, "outputs": 300}, "About their mean the inputs fill 350 dimensions"),
        ({"input_ratio": 380.0, "outputs": 300}, "names the other factor"),
    ],
)
def test_each_check_that_is_not_met_is_named(changes: dict[str, Any], words: str) -> None:
    assert advise([_site()]).sites[0].confidence.failed == ()
    (site,) = advise([_site(**changes)]).sites
    assert site.train == "B"
    assert site.confidence.level == ("medium" if len(site.confidence.failed) == 1 else "low")
    assert any(words in doubt for doubt in site.confidence.failed)


def test_ranks_go_where_a_trained_value_gains_most() -> None:
    steep = _site("steep", curve={r: {"random_A": v} for r, v in ((1, 0.1), (4, 0.3), (8, 0.4), (16, 0.9))})
    flat = _site("flat", curve={r: {"random_A": v} for r, v in ((1, 0.70), (4, 0.70), (8, 0.71), (16, 0.71))})
    advice = advise([steep, flat, replace(flat, name="flatter")], rank=8, ranks_by_layer=True)
    assert advice.per_site_ranks
    assert advice.by_site_mean_share == advice.mean_share
    assert [site.rank for site in advice.sites] == [16, 1, 1]
    assert advice.values == 18 * OUT
    assert advice.mean_share == pytest.approx((0.9 + 0.7 + 0.7) / 3)
    assert advice.uniform_mean_share == pytest.approx((0.4 + 0.71 + 0.71) / 3)


def test_ranks_by_layer_are_not_advised_unasked_and_what_they_reach_is_told() -> None:
    steep = _site("steep", curve={r: {"random_A": v} for r, v in ((1, 0.1), (8, 0.4), (15, 0.9))})
    flat = _site("flat", curve={r: {"random_A": v} for r, v in ((1, 0.70), (8, 0.71))})
    asked, unasked = (advise([steep, flat], ranks_by_layer=by_layer) for by_layer in (True, False))
    assert asked.per_site_ranks
    assert [site.rank for site in asked.sites] == [15, 1]
    assert not unasked.per_site_ranks
    assert [site.rank for site in unasked.sites] == [8, 8]
    assert unasked.mean_share == unasked.uniform_mean_share == asked.uniform_mean_share
    assert unasked.by_site_mean_share == asked.mean_share


def test_one_rank_for_all_is_kept_where_others_gain_little() -> None:
    curve = {r: {"random_A": v} for r, v in ((1, 0.2), (4, 0.45), (8, 0.5), (16, 0.52))}
    advice = advise([_site("a", curve=curve), _site("b", curve=curve)], ranks_by_layer=True)
    assert not advice.per_site_ranks
    assert advice.by_site_mean_share is None
    assert [site.rank for site in advice.sites] == [8, 8]
    assert advice.mean_share == advice.uniform_mean_share == 0.5


@pytest.mark.parametrize("rank", [3, 6, 100])
def test_a_reference_rank_between_the_measured_ones_is_kept(rank: int) -> None:
    advice = advise(
        [_site("a"), _site("head", fan_in=IN, outputs=5, curve={1: {"random_A": 0.9}, 5: {"best": 1.0}})],
        rank=rank,
        ranks_by_layer=True,
    )
    assert advice.uniform_rank == rank
    if not advice.per_site_ranks:
        assert [site.rank for site in advice.sites] == [rank, min(rank, 5)]


def test_a_budget_is_kept_and_a_larger_one_never_reaches_less() -> None:
    draw = random.Random(0)
    variances = power_law(64, 1.0)
    sites = []
    for index in range(5):
        shares = {
            r: {
                "random_A": (variances[: 20 + index] * explained_shares(variances[: 20 + index], r)).sum().item()
                / variances[: 20 + index].sum().item()
            }
            for r in (1, 2, 4, 8, 16)
        }
        sites.append(_site(f"s{index}", outputs=draw.choice((96, 384)), curve=shares))
    reached = []
    for values in (3000, 6000, 12000, 24000):
        advice = advise(sites, values=values, ranks_by_layer=True)
        assert sum(site.values for site in advice.sites) == advice.values <= values
        reached.append(advice.mean_share)
    assert reached == sorted(reached)


def test_starts_of_A() -> None:
    def start(**shares: float) -> str:
        return (
            advise([_site(curve={8: {"random_A": 0.5, "activation_A": 0.5, "singular_A": 0.5, **shares}})])
            .sites[0]
            .A_start
        )

    assert start() == start(activation_A=0.59) == start(singular_A=0.59) == "orthonormal"
    assert start(activation_A=0.8, singular_A=0.65) == "activation_pca"
    assert start(activation_A=0.8, singular_A=0.75) == "top_singular"


def test_caveats_are_always_there() -> None:
    assert advise([_site()]).caveats == CAVEATS
    assert INFORMED in advise([_site(curve={8: {"activation_A": 0.9}})]).caveats
    assert any("not shown to beat" in caveat for caveat in CAVEATS)


def _model() -> nn.Module:
    layers = {name: nn.ModuleDict({"q": nn.Linear(16, 16), "k": nn.Linear(16, 16)}) for name in ("one", "two")}
    return nn.ModuleDict({**layers, "head": nn.Linear(16, 3)})


def test_the_spec_gives_each_site_what_was_advised_and_attaches() -> None:
    model = _model()
    names = every_target(model)
    assert names == ("one.q", "one.k", "two.q", "two.k", "head")
    curve = {1: {"random_A": 0.1, "random_B": 0.0}, 8: {"random_A": 0.9, "random_B": 0.0}, 16: {"random_A": 0.95}}
    flat = {1: {"random_A": 0.85, "random_B": 0.0}, 8: {"random_A": 0.86, "random_B": 0.0}}
    reversed_ = {1: {"random_A": 0.05, "random_B": 0.3}, 3: {"random_A": 0.1, "random_B": 1.0, "best": 1.0}}
    sites = [
        _site(n, fan_in=16, outputs=3 if n == "head" else 16, curve={"q": curve, "k": flat}.get(n[-1], reversed_))
        for n in names
    ]
    advice = advise(sites, values=400, ranks_by_layer=True)
    spec = advice.to_spec()
    assert spec.targets == names
    for site in advice.sites:
        held = spec.at(site.name)
        assert held.rank == site.rank
        assert (held.A.trainable, held.B.trainable) == (site.train != "B", site.train != "A")
        assert held.scaling_factor == 2.0
    assert {site.train for site in advice.sites} == {"A", "B"}
    assert spec.factor_pattern == {"head": "a_only"}
    assert len(spec.rank_pattern) <= 2  # by ending, not by site
    adapted = attach(model, spec)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == advice.values


def test_a_head_that_is_trained_in_full_gets_no_adapter() -> None:
    advice = advise([_site("trunk.q"), _site("head"), _site("pool.dense")])
    spec = advice.to_spec(modules_to_save=("head", "pool"), dropout=0.1)
    assert spec.targets == ("trunk.q",)
    assert (spec.modules_to_save, spec.dropout) == (("head", "pool"), 0.1)
    with pytest.raises(SpecError, match="leaves no site"):
        advise([_site("head")]).to_spec(modules_to_save="head")


def test_targets_of_ones_own_carry_the_advice_by_ending() -> None:
    wide = _site("layer.0.up", curve={8: {"random_A": 0.01, "random_B": 0.9}})
    sites = [wide, replace(wide, name="layer.3.up"), *(_site(f"layer.{i}.down") for i in (0, 3, 4))]
    spec = advise(sites).to_spec(targets="all-linear")
    assert spec.factor_pattern == {"up": "a_only"}
    assert spec.at("layer.1.up").A.trainable
    assert spec.at("layer.1.down").B.trainable


def test_endings_that_disagree_are_told_apart_by_longer_ones() -> None:
    other = {8: {"random_A": 0.01, "random_B": 0.9}}
    names = ("0.attention.output.dense", "0.output.dense", "0.intermediate.dense")
    sites = [_site(name, curve=other if name == names[2] else None) for name in names]
    spec = advise(sites).to_spec()
    assert spec.factor_pattern == {"intermediate.dense": "a_only"}
    sites = [_site(name, curve=other if name == names[1] else None) for name in names]
    spec = advise(sites).to_spec()
    assert [spec.at(name).A.trainable for name in names] == [False, True, False]


def test_a_rate_is_carried_to_what_most_sites_train() -> None:
    tested = Setting(method="b_only", width_in=IN, rank=8, scaling=2.0, start="orthonormal")
    rate = RateMeasures(rates=(0.01, 0.02), losses=(1.0, 9.0), edge=0.01, suggested=0.004, scheme=tested)
    advice = advise([_site("a"), _site("b")], rate=rate)
    assert advice.rate is not None
    assert advice.rate.start == 0.0025
    assert advice.rate.confidence.level == "high"
    assert advise([_site()]).rate is None
    reversed_ = _site(curve={8: {"random_A": 0.01, "random_B": 0.9}})
    other = advise([reversed_], rate=rate).rate
    assert other is not None
    assert not other.confirmed


def test_records_are_rows_by_site_and_one_of_the_rate() -> None:
    tested = Setting(method="b_only", width_in=IN, rank=8, scaling=2.0, start="orthonormal")
    rate = RateMeasures(rates=(0.01, 0.02), losses=(1.0, 9.0), edge=0.01, suggested=None, scheme=tested)
    rows = advise([_site("a", rows=10), _site("b")], rate=rate).to_records()
    assert [row.get("site") for row in rows] == ["a", "b", None]
    assert rows[-1]["kind"] == "rate"
    assert rows[0]["confidence"] == "medium"
    assert len(rows[0]["doubts"]) == 1
    assert rows[1]["train"] == "B"


def test_bad_calls_are_refused() -> None:
    with pytest.raises(SpecError, match="Give one or more sites"):
        advise([])
    with pytest.raises(SpecError, match="2 sites of 1 names"):
        advise([_site(), _site()])
    with pytest.raises(SpecError, match="rank of 1 or more"):
        advise([_site()], rank=0)
    with pytest.raises(SpecError, match="less than"):
        advise([_site()], values=OUT - 1)
    assert cost_of([Curve((1,), (0.0,), OUT)], [1]) == OUT


def test_a_path_that_is_the_ending_of_others_keeps_them_apart() -> None:
    other = {8: {"random_A": 0.01, "random_B": 0.9}}
    for reversed_ in (("fc",), ("h.0.fc",), ("h.0.fc", "h.1.fc")):
        sites = [_site(name, curve=other if name in reversed_ else None) for name in ("fc", "h.0.fc", "h.1.fc")]
        spec = advise(sites).to_spec()
        assert {site.name for site in sites if spec.at(site.name).A.trainable} == set(reversed_)
