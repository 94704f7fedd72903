"""Each bug of the released AsymmetryLoRA code that concerns layers, by its number in the notes on the paper.

R1, R4 and R5 are met by the tests of the shorthand, of the documents and of the command line; R2 and R3 by those of the
singular starts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.errors import AttachError, NonZeroStartError, NoTargetError
from asymlora.factor_spec import SHORTHAND, FactorSpec
from asymlora.init import INITS
from asymlora.spec import AdapterSpec
from cases import MODELS, PRESET_NAMES, ModelCase, fill_factors
from peft_models import GPT2, PeftCase

EVERY_PRESET = pytest.mark.parametrize("preset", PRESET_NAMES)
BERT = MODELS[0]
RANK = 2


def _attached(case: ModelCase | PeftCase, preset: str, **fields: Any) -> nn.Module:
    spec = AdapterSpec.parse(preset, **{"rank": RANK, "targets": case.targets, **fields})
    return al.attach(case.build(), spec).eval()


def _output(case: ModelCase | PeftCase, model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**case.inputs()).logits


BOTH = pytest.mark.parametrize("case", [BERT, GPT2], ids=["nn.Linear", "Conv1D"])


@BOTH
@EVERY_PRESET
def test_R6_merge_unload_disable_switch_and_delete_work(
    case: ModelCase | PeftCase, preset: str, tmp_path: Path
) -> None:
    base = _output(case, case.build())
    for seed in (1, 2):
        model = _attached(case, preset)
        fill_factors(model, seed=seed)
        al.save_adapter(model, tmp_path / str(seed))
    outputs = [_output(case, al.load_adapter(case.build(), tmp_path / str(seed))) for seed in (1, 2)]
    assert not torch.equal(outputs[0], outputs[1])
    model = al.load_adapter(case.build(), tmp_path / "1")
    with al.disabled(model):  # disable_adapter
        assert torch.equal(_output(case, model), base)
    al.swap_adapter(model, tmp_path / "2")  # set_adapter
    assert torch.equal(_output(case, model), outputs[1])
    al.detach(model)  # unload, delete_adapter
    assert torch.equal(_output(case, model), base)
    al.merge(al.load_adapter(model, tmp_path / "1"))  # merge_and_unload
    assert type(model) is type(case.build())
    torch.testing.assert_close(_output(case, model), outputs[0], rtol=0, atol=1e-5)


@BOTH
@EVERY_PRESET
def test_R6_a_training_step_works_in_every_mode(case: ModelCase | PeftCase, preset: str) -> None:
    model = _attached(case, preset).train()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.1))
    before = _output(case, model)
    for _ in range(2):
        model.train()(**case.inputs()).logits.square().sum().backward()
        optimizer.step()
    assert not torch.allclose(_output(case, model), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(4), nn.ConvTranspose1d(2, 2, 2), nn.EmbeddingBag(4, 3), nn.LSTM(4, 4), nn.Bilinear(2, 2, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_R6_an_unsupported_layer_is_refused_by_its_class(layer: nn.Module) -> None:
    model = nn.ModuleDict({"layer": layer, "dense": nn.Linear(4, 4)})
    with pytest.raises(NoTargetError, match=f"'layer' is a {type(layer).__name__}, which cannot take an adapter"):
        al.attach(model, AdapterSpec.b_only(rank=RANK, targets=("layer",)))


@pytest.mark.parametrize(("preset", "letter"), [("b_only", "A"), ("a_only", "B")])
def test_R7_a_frozen_factor_is_out_of_reach_of_training(preset: str, letter: str) -> None:
    model = _attached(BERT, preset).train()
    frozen = {site.name: getattr(site, letter) for site in al.sites(model)}
    bits = {name: factor.clone() for name, factor in frozen.items()}
    model.requires_grad_(True), model.bert.train()  # what thaws a flag
    groups = al.param_groups(model, lr=0.1, weight_decay=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(**BERT.inputs()).logits.square().sum().backward()
        optimizer.step()
    in_groups = {id(p) for group in (*groups, *optimizer.param_groups) for p in group["params"]}
    for name, factor in frozen.items():
        assert not factor.requires_grad
        assert factor.grad is None
        assert id(factor) not in in_groups
        assert not isinstance(factor, nn.Parameter)
        assert factor not in optimizer.state
        assert torch.equal(factor, bits[name])
        assert getattr(model.get_submodule(name), f"lora_{letter}") is factor


WIDE = 48


def _wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE))


def _tensors(value: Any, depth: int = 0) -> list[torch.Tensor]:
    """Every tensor that an object reaches through its attributes, modules and containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    if depth > 6:
        return []
    parts = value if isinstance(value, list | tuple | set) else ()
    parts = value.values() if isinstance(value, dict) else parts or getattr(value, "__dict__", {}).values()
    return [tensor for part in parts for tensor in _tensors(part, depth + 1)]


@pytest.mark.parametrize("init", [name for name in INITS if name not in ("zeros", "custom")])
def test_R8_no_layer_holds_a_full_matrix_beside_its_base(init: Any) -> None:
    spec = AdapterSpec(A=FactorSpec(init=init, trainable=False), rank=RANK)
    model = al.attach(_wide(), spec)
    for _ in range(2):
        model(torch.randn(3, WIDE)).sum().backward()
    held = {id(t): t for t in _tensors(model)}
    full = [t for t in held.values() if t.untyped_storage().nbytes() // t.element_size() >= WIDE * WIDE]
    assert {id(t) for t in full} == {id(site.weight) for site in al.sites(model)}


def test_R8_seed_and_B_are_the_whole_of_a_compressed_file(tmp_path: Path) -> None:
    model = al.attach(_wide(), AdapterSpec.b_only(rank=RANK))
    folder = al.save_adapter(model, tmp_path / "small", compress=True)
    whole = al.save_adapter(model, tmp_path / "whole")
    of_B = sum(site.B.numel() * 4 for site in al.sites(model))
    tensors, both = (sum(f.stat().st_size for f in at.glob("*.safetensors")) for at in (folder, whole))
    assert of_B <= tensors <= of_B + 512  # the header names two tensors
    assert both >= 2 * of_B
    again = al.load_adapter(_wide(), folder)
    for one, other in zip(al.sites(model), al.sites(again), strict=True):
        assert torch.equal(one.A, other.A)


@pytest.mark.parametrize("word", SHORTHAND)
def test_R9_every_word_of_the_shorthand_reaches_the_factor_that_it_names(word: str) -> None:
    letter = "B" if word[0] == "U" else "A"
    other = {"A": "B", "B": "A"}[letter]
    start = "rand" if SHORTHAND[word] == "zeros" else "zero"
    text = f"h{letter}_{word}_h{other}_{start}"
    spec = AdapterSpec.parse(text, rank=RANK)
    assert getattr(spec, letter).init == SHORTHAND[word]
    assert AdapterSpec.parse(f"h{other}_{start}_h{letter}_{word}", rank=RANK) == spec
    site = next(iter(al.sites(al.attach(_wide(), spec))))
    assert bool(getattr(site, letter).abs().max() > 0) == (SHORTHAND[word] != "zeros")


@pytest.mark.parametrize(("word", "rows"), [("V", slice(0, RANK)), ("V_last", slice(WIDE - RANK, WIDE))])
def test_R9_the_last_singular_vectors_are_reachable_and_are_the_last(word: str, rows: slice) -> None:
    for site in al.sites(al.attach(_wide(), AdapterSpec.parse(f"A_{word}_hB_zero", rank=RANK))):
        wanted = torch.linalg.svd(site.weight.detach().double()).Vh[rows]
        cosines = torch.linalg.svdvals(site.A.double() @ wanted.T)
        torch.testing.assert_close(cosines, torch.ones(RANK, dtype=torch.float64), rtol=0, atol=1e-4)


@EVERY_PRESET
def test_R9_every_option_reaches_the_layers(preset: str) -> None:
    options: dict[str, Any] = {"rank": 3, "alpha": 5.0, "dropout": 0.25, "scaling": "rank_stabilized"}
    for site in al.sites(al.attach(_wide(), AdapterSpec.parse(preset, **options))):
        assert (site.A.shape[0], site.B.shape[1]) == (3, 3)
        assert site.scaling == 5.0 / math.sqrt(3)
        assert site.layer.train().active_dropout == 0.25
        x, base = torch.ones(64, WIDE), site.layer.base_layer(torch.ones(64, WIDE))
        site.layer.lora_A.data.fill_(1.0), site.layer.lora_B.data.fill_(1.0)
        assert (site.layer(x) - base).std() > 1.0  # dropped differently for each row
        assert (site.layer.eval()(x) - base).std(0).max() < 1e-3


@EVERY_PRESET
def test_R9_the_seed_reaches_every_random_start(preset: str) -> None:
    drawn = [
        [
            f
            for site in al.sites(al.attach(_wide(), AdapterSpec.parse(preset, rank=RANK, seed=seed)))
            for f in (site.A, site.B)
        ]
        for seed in (0, 1, 0)
    ]
    for first, second, again in zip(*drawn, strict=True):
        assert torch.equal(first, again)
        assert torch.equal(first, second) == bool(first.abs().max() == 0)


@EVERY_PRESET
@pytest.mark.parametrize("case", [*MODELS, GPT2], ids=lambda case: case.name)
def test_R10_the_update_is_zero_at_the_start(case: ModelCase | PeftCase, preset: str) -> None:
    model = _attached(case, preset)
    assert all((site.B.flatten(1) @ site.A.flatten(1)).abs().max() == 0 for site in al.sites(model))
    assert torch.equal(_output(case, model), _output(case, case.build()))


def test_R10_the_default_of_the_released_config_is_refused_or_compensated() -> None:
    # A from V and B from U, both trained: at their defaults the released code adds B A to W0 at step 0.
    text = "hA_V_hB_U"
    with pytest.raises(NonZeroStartError, match="both start non-zero"):
        AdapterSpec.parse(text, rank=RANK)
    x = torch.randn(5, WIDE)
    fresh, model = _wide(), al.attach(_wide(), AdapterSpec.parse(text, rank=RANK, nonzero_start="correct_base"))
    site = next(iter(al.sites(model)))
    moved = site.scaling * (x @ (site.B @ site.A).T).abs().max()
    assert moved > 0.1
    # Float32: sums of 50 terms of order one, two layers.
    torch.testing.assert_close(model(x), fresh(x), rtol=0, atol=1e-4)
    with pytest.raises(AttachError, match="carries an adapter already"):
        al.attach(model, AdapterSpec.b_only())
