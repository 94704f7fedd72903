"""The laws against the largest stable rates of the one-layer simulation, and the exact ones against whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from asymlora.errors import SpecError
from asymlora.theory.one_layer import OneLayerRun, OneLayerSettings, simulate
from asymlora.theory.rate_laws import LAWS, Setting, loraplus_ratio
from asymlora.theory.width_fits import largest_stable_rate
from asymlora.theory.width_scaling import Exponent, Scheme, find_scheme

SEEDS = tuple(range(48))


@cache
def _edge(scheme: Scheme | str, width: int = 1024, **options: Any) -> float:
    settings = OneLayerSettings(scheme=scheme, seeds=SEEDS, **options)
    return largest_stable_rate(settings, width, octaves=0.02, bracket=(2**-20, 2**8))


def _with_variance(name: str, variance: float) -> Scheme:
    scheme = find_scheme(name)
    factor = "A" if name == "b_only" else "B"
    return replace(scheme, **{factor: replace(getattr(scheme, factor), variance=variance)})


@pytest.mark.parametrize("method", ["init_a", "init_b", "b_only", "a_only"])
@pytest.mark.parametrize(("axis", "options"), [(0, {"width": 4096}), (1, {"rank": 16}), (2, {"scaling": 0.25})])
def test_the_largest_stable_rate_follows_every_law_that_has_a_status(
    method: str, axis: int, options: dict[str, Any]
) -> None:
    law = LAWS[method]
    ratio = _edge(method, **options) / _edge(method)
    factor = (options.get("width", 4096) / 1024, options.get("rank", 16) / 4, options.get("scaling", 0.25))[axis]
    found = math.log(ratio) / math.log(factor)
    if axis == 1 and method == "b_only":
        # One sample, so the parts of the sum over the rank agree: r^-1, at one end of what is not confirmed.
        assert found == pytest.approx(-1, abs=0.15)
        return
    exponent = (law.A if method != "b_only" else law.B)[axis]
    assert found == pytest.approx(exponent, abs=0.15)


@pytest.mark.parametrize("method", ["init_a", "init_b", "b_only", "a_only"])
def test_the_width_of_the_output_does_not_count(method: str) -> None:
    # Four times as many features out, where the law of the width would change a rate by 2 or 4.
    assert _edge(method, aspect=4.0) / _edge(method) == pytest.approx(1, abs=0.1)


def _same_output(run: OneLayerRun, other: OneLayerRun) -> None:
    torch.testing.assert_close(run.Z_B, other.Z_B, rtol=1e-10, atol=0)
    torch.testing.assert_close(run.residual, other.residual, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["b_only", "a_only"])
@pytest.mark.parametrize("optimizer", ["sign", "adam"])
def test_with_one_factor_trained_the_law_in_the_scaling_and_the_start_is_exact(method: str, optimizer: Any) -> None:
    # A near target, so that the residual changes its sign: the runs agree in every step, not in exponents only.
    settings = OneLayerSettings(scheme=method, optimizer=optimizer, target=2.0)
    rate = 0.3 if method == "b_only" else 0.01
    run = simulate(settings, 64, rate, steps=15)
    assert (run.residual.sign() != run.residual[0].sign()).any()
    assert LAWS[method].scaling == "derived"
    _same_output(run, simulate(replace(settings, scaling=0.25), 64, 4 * rate, steps=15))
    uniform = replace(settings, scheme=_with_variance(method, 1 / 3))
    gain = Setting(method=method, width_in=64, rank=4, start="uniform").gain  # pyright: ignore
    _same_output(run, simulate(uniform, 64, rate / gain, steps=15))


def test_with_both_trained_at_one_rate_the_scaling_is_no_such_symmetry() -> None:
    settings = OneLayerSettings(scheme="init_b", target=2.0)
    one, other = simulate(settings, 64, 0.01), simulate(replace(settings, scaling=0.25), 64, 0.04)
    assert (one.Z_B[-1] - other.Z_B[-1]).abs().max() > 1e-3 * one.Z_B[-1].max()


def test_an_orthonormal_B_makes_the_width_of_the_output_count() -> None:
    # Entries of standard deviation out^-1/2 instead of r^-1/2: the gain of `Setting` is the ratio of the two.
    a_only = find_scheme("a_only")
    small = replace(a_only, B=replace(a_only.B, width=Exponent.of("-1/2"), rank=0))
    for width in (256, 4096):
        gain = Setting(method="a_only", width_in=width, rank=4, start="orthonormal").gain
        assert gain == math.sqrt(4 / width)
        assert _edge(small, width) * gain == pytest.approx(_edge("a_only", width), rel=0.02)
    # So for a square layer the rate falls as n^-1/2, and not as n^-1.
    assert math.log(_edge(small, 4096) / _edge(small, 256), 16) == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("start", ["gaussian", "orthonormal"])
def test_the_expected_step_of_sgd_on_the_weight(start: str) -> None:
    # B-only moves W by -lr s^2 G A^T A; the mean of A^T A is r/m times the identity.
    m, r, draws = 12, 3, 20000
    A = torch.randn(draws, r, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / math.sqrt(m)
    if start == "orthonormal":
        A = torch.linalg.qr(A.mT).Q.mT
    mean = (A.mT @ A).mean(0)
    # An entry has a standard error below sqrt(2 r)/m/sqrt(draws) = 0.0014; six of them.
    torch.testing.assert_close(mean, torch.eye(m, dtype=torch.float64) * r / m, rtol=0, atol=0.009)


def test_every_scheme_has_a_law_that_the_docstring_lists() -> None:
    import asymlora.theory.rate_laws as module

    for words in ("Init[A] ", "Init[B] ", "LoRA+, ", "B-only ", "A-only "):
        assert words in (module.__doc__ or "")
    assert set(LAWS) == {"init_a", "init_b", "lora_plus", "b_only", "a_only"}
    unconfirmed = {name for name, law in LAWS.items() if law.rank is None}
    assert unconfirmed == {"init_b", "lora_plus", "b_only", "a_only"}


def test_loraplus_ratio() -> None:
    assert loraplus_ratio(4096, 8) == 512
    assert loraplus_ratio(4096, 8, scaling=2.0) == 256
    with pytest.raises(SpecError, match="rank=0"):
        loraplus_ratio(4096, 0)


def test_at_the_ratio_of_loraplus_the_output_is_of_one_size_at_every_width_and_rank() -> None:
    sizes = [
        simulate(OneLayerSettings(rank=r, scaling=s, seeds=SEEDS[:12]), n, 1 / n, loraplus_ratio(n, r, s) / n).Z_B[-1]
        for n in (256, 4096)
        for r in (4, 16)
        for s in (1.0, 0.25)
    ]
    means = [size.square().mean().sqrt().item() for size in sizes]
    assert max(means) / min(means) < 1.3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "lora"}, "method='lora' must be one of full, init_a"),
        ({"start": "normal"}, "start='normal' must be one of gaussian"),
        ({"optimizer": "lion"}, "optimizer='lion' must be one of adam, sgd"),
        ({"rank": None}, "rank=None does not go with method='init_a'"),
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"width_in": 0, "width_out": -1}, "width_in=0.*width_out=-1"),
        ({"scaling": 0.0}, "scaling=0.0 must be greater than 0"),
        ({"method": "full"}, "rank=8 does not go with method='full'"),
        ({"method": "full", "rank": None, "scaling": 2.0}, "scaling=2.0 does not go with method='full'"),
        ({"method": "init_b", "start": "orthonormal"}, r"behave as Init\[A\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Setting(**{"method": "init_a", "width_in": 64, "rank": 8} | fields)


def test_only_an_orthonormal_B_has_a_gain_that_depends_on_sizes() -> None:
    kinds = [("b_only", "gaussian", 1.0), ("b_only", "orthonormal", 1.0), ("a_only", "gaussian", 1.0)]
    kinds += [("b_only", "uniform", 3**-0.5), ("a_only", "orthonormal", 0.5)]
    for method, start, gain in kinds:
        held = Setting(method=method, width_in=64, width_out=32, rank=8, start=start)  # pyright: ignore
        assert held.gain == pytest.approx(gain)
