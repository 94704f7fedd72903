from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from asymlora.errors import SpecError, UnknownNameError
from asymlora.theory.one_layer import (
    OneLayerRun,
    OneLayerSettings,
    basis_length,
    draw_layer,
    draw_one,
    largest_output,
    simulate,
)
from asymlora.theory.width_scaling import SCHEMES, FactorStart, Scheme

OPTIMIZERS = ("sign", "adam", "sgd")
NAMES = tuple(name for name in SCHEMES if name != "both_zero")


class _SignSGD(torch.optim.Optimizer):
    """Sign descent, written as torch writes an optimizer."""

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                param.data.mul_(1 - group["lr"] * group["weight_decay"])
                param.data.add_(param.grad.sign(), alpha=-group["lr"])


def _optimizer(settings: OneLayerSettings, params: list[Tensor], lr: float) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    if settings.optimizer == "sign":
        return _SignSGD(params, lr, decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(params, lr=lr)
    betas = (settings.beta1, settings.beta2)
    # The smallest epsilon that is not lost beside a gradient of 0: there 0/eps is 0, as in the reduced form.
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=1e-300, weight_decay=decay)


def _dense(settings: OneLayerSettings, width: int, rates: tuple[float, float], steps: int) -> list[dict[str, Tensor]]:
    """Train the first seed's layer entry by entry with autograd, and return every size of every step."""
    A, B, x, v = draw_one(settings, width, settings.seeds[0])
    scheme, s = SCHEMES[settings.scheme], settings.scaling  # pyright: ignore
    A, B = A.requires_grad_(scheme.trains_A), B.requires_grad_(scheme.trains_B)
    optimizers = [_optimizer(settings, [f], lr) for f, lr in zip((A, B), rates, strict=True) if f.requires_grad]
    rows: list[dict[str, Tensor]] = []
    for _ in range(steps):
        residual = v @ (s * B @ (A @ x)) - settings.target
        for optimizer in optimizers:
            optimizer.zero_grad()
        (residual**2 / 2).backward()
        A_before, B_before = A.detach().clone(), B.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            moved_A, moved_B = A - A_before, B - B_before
            parts = {
                "delta1": s * B_before @ (moved_A @ x),
                "delta2": s * moved_B @ (A_before @ x),
                "delta3": s * moved_B @ (moved_A @ x),
            }
            parts |= {"Z_A": A @ x, "Z_B": s * B @ (A @ x)}
            row = {name: part.square().mean().sqrt() for name, part in parts.items()}
            row |= {
                "residual": residual.detach(),
                "step_B": moved_B.norm() / B.norm(),
                "step_A": moved_A.norm() / A.norm(),
            }
            gap = parts["Z_B"] - s * B_before @ (A_before @ x) - parts["delta1"] - parts["delta2"] - parts["delta3"]
            rows.append(row | {"identity": gap.norm() / parts["Z_B"].norm()})
    return rows


def _all(run: OneLayerRun) -> dict[str, Tensor]:
    return {name: value for name, value in vars(run).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize(("target", "decay"), [(1e9, 0.0), (1.0, 0.0), (1e9, 0.5)])
def test_the_reduced_run_is_the_dense_one(scheme: str, optimizer: Any, target: float, decay: float) -> None:
    if optimizer == "sgd" and decay:
        decay = 0.0  # torch's SGD couples its decay to the gradient; ours is decoupled
    settings = OneLayerSettings(
        scheme=scheme, optimizer=optimizer, target=target, weight_decay=decay, scaling=0.7, aspect=0.5, seeds=(3,)
    )
    rates = (0.01, 0.02) if optimizer != "sgd" else (1e-4 / target, 2e-4 / target)
    run = simulate(settings, 32, *rates, steps=5)
    for step, row in enumerate(_dense(settings, 32, rates, 5)):
        for name, expected in row.items():
            if name == "identity":
                assert expected < 1e-12
                continue
            found = getattr(run, name)[step + 1 if name.startswith("Z") else step, 0]
            # float64: a difference of updates, moved_A, loses the digits by which A is larger than it, here below 1e4.
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# C1
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheme", NAMES)
def test_the_three_deltas_sum_to_the_change_of_the_output(scheme: str, optimizer: Any, dtype: Any, most: float) -> None:
    settings = OneLayerSettings(scheme=scheme, optimizer=optimizer, dtype=dtype, target=1e3)
    rate = 1e-8 if optimizer == "sgd" else 128**-0.5
    run = simulate(settings, 128, rate, steps=12)
    assert run.Z_B[1:].min() > 0
    assert run.identity_error.max() < most


# C2
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_first_step_moves_exactly_one_factor(optimizer: Any) -> None:
    for scheme, zeros in (("init_a", ("delta1", "delta3")), ("init_b", ("delta2", "delta3"))):
        run = simulate(OneLayerSettings(scheme=scheme, optimizer=optimizer), 256, 1e-3, steps=2)
        assert run.Z_B[0].eq(0).all()
        held, moved = ("A", "B") if scheme == "init_a" else ("B", "A")
        assert getattr(run, f"grad_{held}")[0].eq(0).all()
        assert getattr(run, f"step_{held}")[0].eq(0).all()
        assert getattr(run, f"step_{moved}")[0].gt(0).all()
        for name in ("delta1", "delta2", "delta3"):
            assert getattr(run, name)[0].eq(0).all() == (name in zeros)
        # From the second step on, both move.
        assert getattr(run, f"step_{held}")[1].gt(0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_both_factors_zero_never_have_a_gradient(optimizer: Any) -> None:
    run = simulate(OneLayerSettings(scheme="both_zero", optimizer=optimizer, weight_decay=0.1), 64, 0.1, steps=20)
    for name in ("grad_A", "grad_B", "Z_A", "Z_B", "delta1", "delta2", "delta3"):
        assert getattr(run, name).eq(0).all()


@pytest.mark.parametrize(("scheme", "held"), [("init_a", "A"), ("init_b", "B")])
def test_weight_decay_moves_the_factor_that_has_no_gradient(scheme: str, held: str) -> None:
    settings = OneLayerSettings(scheme=scheme, optimizer="adam", weight_decay=0.1)
    run = simulate(settings, 64, 0.01, steps=1)
    assert getattr(run, f"grad_{held}")[0].eq(0).all()
    # The factor becomes (1 - 0.001) times itself: the update over the factor after it.
    torch.testing.assert_close(
        getattr(run, f"step_{held}")[0], torch.full((6,), 0.001 / 0.999, dtype=torch.float64), rtol=1e-12, atol=0
    )


# C3, of the simulator's own draws
@pytest.mark.parametrize(
    ("scheme", "factor", "variance"),
    [
        ("init_a", "A", 1 / 4096),
        ("init_b", "B", 1 / 8),
        ("init_b_small", "B", 1 / 4096),
        ("peft_gaussian", "A", 1 / 64),
        (Scheme(A=FactorStart(width=SCHEMES["init_a"].A.width, variance=1 / 3), B=FactorStart()), "A", 1 / (3 * 4096)),
    ],
)
def test_draws_have_the_variance_of_the_scheme(scheme: Any, factor: str, variance: float) -> None:
    values = getattr(draw_one(OneLayerSettings(scheme=scheme, rank=8), 4096, seed=0), factor)
    # 32,768 entries: the relative standard error is below 0.8 %; 5 % is six of them.
    assert values.numel() >= 2e4
    assert values.var().item() == pytest.approx(variance, rel=0.05)


def test_the_sample_is_that_of_the_source() -> None:
    _, _, x, v = draw_one(OneLayerSettings(aspect=2.0), 4096, seed=0)
    assert (len(x), len(v)) == (4096, 8192)
    assert x.var().item() == pytest.approx(1, rel=0.14)  # six standard errors, sqrt(2/4096) each
    assert (v * 8192).var().item() == pytest.approx(1, rel=0.1)


def test_a_seed_gives_the_same_layer_again_and_another_one_another() -> None:
    settings = OneLayerSettings(seeds=(1, 2, 1))
    layer = draw_layer(settings, 64)
    assert torch.equal(layer.read[0], layer.read[2])
    assert not torch.equal(layer.read[0], layer.read[1])
    first, again = (simulate(settings, 64, 0.1, layer=held) for held in (None, layer))
    for name, value in _all(first).items():
        torch.testing.assert_close(value, _all(again)[name], rtol=0, atol=0, equal_nan=True)


def test_B_turns_away_from_its_start_only_as_far_as_it_moves() -> None:
    run = simulate(OneLayerSettings(scheme="init_b"), 1024, 1 / 1024, steps=10)
    assert run.cos_B.min() > 0.999
    assert run.cos_B.max() <= 1 + 1e-12
    far = simulate(OneLayerSettings(scheme="init_b"), 1024, 1.0, steps=10)
    assert far.cos_B[-1].max() < 0.3
    assert simulate(OneLayerSettings(), 64, 0.1).cos_B.isnan().all()  # B starts at zero


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_a_frozen_factor_stays(frozen: str) -> None:
    scheme = SCHEMES["init_ab"]
    held = replace(scheme, trains_A=False) if frozen == "A" else replace(scheme, trains_B=False)
    run = simulate(OneLayerSettings(scheme=held, weight_decay=0.1), 64, 0.1, steps=5)
    assert getattr(run, f"step_{frozen}").eq(0).all()
    assert getattr(run, f"step_{'B' if frozen == 'A' else 'A'}").gt(0).all()
    assert run.delta3.eq(0).all()


def test_scaling_and_rate_of_B_are_one_thing_where_B_starts_at_zero() -> None:
    # The symmetry behind two of the laws of learning_rates: B -> B/4, s -> 4 s.
    settings = OneLayerSettings(optimizer="adam", target=3.0)
    run = simulate(settings, 64, 0.01, 0.02, steps=8)
    other = simulate(replace(settings, scaling=4.0), 64, 0.01, 0.005, steps=8)
    torch.testing.assert_close(run.Z_B, other.Z_B, rtol=1e-12, atol=0)


def test_lengths_in_a_basis() -> None:
    basis = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vector = torch.tensor([[[1.0, -2.0, 0.5]]], dtype=torch.float64)
    torch.testing.assert_close(basis_length((basis.T @ basis)[None], vector)[0, 0], (basis @ vector[0, 0]).norm())


def test_the_largest_output_is_that_of_the_run() -> None:
    for target, steps in ((1e9, 5), (1.0, 12)):
        settings = OneLayerSettings(scheme="init_b", target=target)
        layer = draw_layer(settings, 64)
        run = simulate(settings, 64, 0.02, 0.1, steps=steps, layer=layer)
        pooled = run.Z_B[1:].square().mean(-1).sqrt()
        assert largest_output(settings, layer, 0.02, 0.1, steps=steps) == pooled.max().item()
    # The residual changes its sign there, so that the last size is not the largest.
    assert pooled[-1] < pooled.max()
    assert math.isnan(largest_output(replace(settings, optimizer="sgd"), layer, 1e300, 1e300, steps=9))


def test_settings_stand_in_the_run() -> None:
    settings = OneLayerSettings(scheme="init_b", rank=2)
    run = simulate(settings, 32, 0.1, 0.2, steps=3)
    assert (run.settings, run.width, run.rate_A, run.rate_B) == (settings, 32, 0.1, 0.2)
    assert run.Z_A.shape == (4, 6)
    assert run.delta1.shape == (3, 6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rank": 0}, "rank=0 must be a whole number"),
        ({"scaling": 0.0}, "scaling=0.0 must be greater"),
        ({"aspect": -1.0}, "aspect=-1.0"),
        ({"optimizer": "lion"}, "'lion' must be 'sign', 'adam' or 'sgd'"),
        ({"beta1": 1.0, "beta2": -0.1}, "beta1=1.0.*beta2=-0.1"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"seeds": ()}, "seeds=.*one or more"),
        ({"dtype": "float16"}, "'float16' must be"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        OneLayerSettings(**wrong)


def test_wrong_calls_are_refused() -> None:
    settings = OneLayerSettings()
    with pytest.raises(UnknownNameError, match="init_c"):
        OneLayerSettings(scheme="init_c")
    with pytest.raises(SpecError, match="at least 1 step"):
        simulate(settings, 32, 0.1, steps=0)
    with pytest.raises(SpecError, match="layer of width 64"):
        simulate(settings, 32, 0.1, layer=draw_layer(settings, 64))
    with pytest.raises(SpecError, match="features out"):
        draw_one(OneLayerSettings(aspect=0.01), 8, seed=0)
