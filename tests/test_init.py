from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Generator, nn

from asymlora.init import INITS, draw
from asymlora.spec import InitName


def test_every_named_init_has_a_function_and_no_function_lacks_a_name() -> None:
    assert set(INITS) == set(get_args(InitName))


def _entries(init: str, factor: str, shape: tuple[int, int]) -> torch.Tensor:
    return draw(init, shape, seed=0, site="s", factor=factor).double()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("init", "factor", "shape", "variance"),
    [
        ("gaussian", "A", (64, 512), 1 / 512),
        ("gaussian", "B", (512, 64), 1 / 64),
        ("kaiming_uniform", "A", (64, 512), 1 / (3 * 512)),
        ("kaiming_uniform", "B", (512, 64), 1 / (3 * 64)),
    ],
)
def test_variance_is_that_of_the_source(init: str, factor: str, shape: tuple[int, int], variance: float) -> None:
    values = _entries(init, factor, shape)
    # 32,768 entries: the relative standard error of a variance is below sqrt(2/32768) = 0.8 %; 5 % is six of them.
    assert values.var().item() == pytest.approx(variance, rel=0.05)
    assert abs(values.mean().item()) < 5 * math.sqrt(variance / values.numel())


def test_paper_gaussian_is_not_pefts() -> None:
    # PEFT's "gaussian" has standard deviation 1/r, whatever the width.
    assert _entries("gaussian", "A", (8, 512)).std().item() < 0.5 * (1 / 8)


def test_kaiming_uniform_gives_the_values_that_peft_draws_from_the_same_generator() -> None:
    import peft

    model = nn.Sequential(nn.Linear(24, 16))
    torch.manual_seed(7)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"]))  # pyright: ignore[reportArgumentType]
    theirs = adapted.base_model.model[0].lora_A["default"].weight  # pyright: ignore
    # PEFT first runs torch's own reset of the two fresh linear layers, then draws A.
    generator = Generator().manual_seed(7)
    nn.init.kaiming_uniform_(torch.empty(4, 24), a=math.sqrt(5), generator=generator)
    nn.init.kaiming_uniform_(torch.empty(16, 4), a=math.sqrt(5), generator=generator)
    ours = INITS["kaiming_uniform"](torch.empty(4, 24), generator)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("factor", "shape"), [("A", (8, 200)), ("A", (16, 16)), ("B", (200, 8)), ("A", (1, 5))])
def test_orthonormal_factors_are_orthonormal(factor: str, shape: tuple[int, int]) -> None:
    frame = _entries("orthonormal", factor, shape)
    gram = frame @ frame.T if shape[0] <= shape[1] else frame.T @ frame
    # float64 frame rounded to float32: each inner product is off by at most a few unit roundoffs.
    assert (gram - torch.eye(min(shape), dtype=torch.float64)).abs().max() < 1e-6


def test_orthonormal_rows_have_no_preferred_sign_or_direction() -> None:
    # Over 400 draws of one row in 5 dimensions each mean coordinate is N(0, 1/(5*400)); 5 sigma: p < 1e-6 each.
    rows = torch.stack([draw("orthonormal", (1, 5), seed=i, site="s", factor="A")[0] for i in range(400)])
    assert rows.mean(0).abs().max() < 5 / math.sqrt(5 * 400)
    assert (rows.pow(2).mean(0) - 0.2).abs().max() < 0.05


def test_orthonormal_is_drawn_from_the_thin_shape_only(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda draw: (shapes.append(tuple(draw.shape)), qr(draw))[1])
    monkeypatch.setattr(torch.linalg, "svd", lambda *_: pytest.fail("no singular value decomposition is needed"))
    draw("orthonormal", (4, 300), seed=0, site="s", factor="A")
    assert shapes == [(300, 4)]


def test_a_draw_depends_on_its_address_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    first = draw("gaussian", (2, 6), seed=3, site="layer.0.query", factor="A")
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(first, draw("gaussian", (2, 6), seed=3, site="layer.0.query", factor="A"))
    others = [
        draw("gaussian", (2, 6), seed=4, site="layer.0.query", factor="A"),
        draw("gaussian", (2, 6), seed=3, site="layer.0.value", factor="A"),
        draw("gaussian", (2, 6), seed=3, site="layer.0.query", factor="B"),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw("orthonormal", (2, 6), seed=0, site="s", factor="A")
    assert torch.equal(before, torch.random.get_rng_state())
