from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import asymlora as al
from asymlora.diagnostics.probe import Probe, capture, evenly, patches, rms
from asymlora.errors import AttachError, DataError, EmptyDataError, SpecError
from cases import MODELS, SmallBlock, small_net, small_net_inputs
from peft_models import BERT as PEFT_BERT

BERT = MODELS[0]


def _capture(model: nn.Module, batch: Any, max_rows: int = 10_000) -> Probe:
    return capture(model, batch, list(al.sites(model)), max_rows=max_rows)


def _bert(targets: tuple[str, ...] = ("query", "key", "value")) -> nn.Module:
    return al.attach(BERT.build(), al.AdapterSpec.lora(rank=2, targets=targets, dropout=0.5))


def _read_by_hand(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of each base layer, by hooks of the test's own."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        return lambda layer, args, out: seen.update({name: (args[0], out)})

    handles = [s.layer.base_layer.register_forward_hook(hook(s.name)) for s in al.sites(model)]  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        model.eval()(**batch)
    model.train()
    for handle in handles:
        handle.remove()
    return seen


def test_dense_sites_keep_the_rows_that_their_layer_reads() -> None:
    model, batch = _bert(), BERT.inputs()
    probe, by_hand = _capture(model.train(), batch), _read_by_hand(model, batch)
    assert probe.inputs.keys() == {site.name for site in al.sites(model)}
    assert (probe.uncalled, probe.called_again) == ((), ())
    for name, found in probe.inputs.items():
        x, out = by_hand[name]
        assert torch.equal(found.x, x.flatten(0, 1))
        assert found.rms_x == pytest.approx(x.double().square().mean().sqrt().item(), rel=1e-6)
        assert found.rms_base == pytest.approx(out.double().square().mean().sqrt().item(), rel=1e-6)
        assert not found.x.requires_grad


def test_sites_that_read_the_same_hold_one_tensor() -> None:
    probe = _capture(_bert(), BERT.inputs())
    stored = {id(found.x) for found in probe.inputs.values()}
    assert (len(probe.inputs), len(stored)) == (6, 2)
    assert probe.kept_bytes == 2 * 3 * 7 * 16 * 4


def test_few_rows_are_evenly_spaced_over_those_that_the_mask_counts() -> None:
    model, batch = _bert(), BERT.inputs()
    batch["attention_mask"][0, 4:] = 0
    batch["attention_mask"][2, :6] = 0  # 4 + 7 + 1 tokens count
    x, out = _read_by_hand(model, batch)[name := next(iter(al.sites(model))).name]
    counted = batch["attention_mask"].flatten().nonzero()[:, 0]
    assert torch.equal(_capture(model, batch).inputs[name].x, x.flatten(0, 1)[counted])
    few = _capture(model, batch, max_rows=5).inputs[name]
    chosen = counted[torch.tensor([0, 2, 4, 7, 9])]
    assert torch.equal(few.x, x.flatten(0, 1)[chosen])
    assert few.rms_base == pytest.approx(out.flatten(0, 1)[chosen].square().mean().sqrt().item(), rel=1e-6)


def test_a_mask_of_another_shape_leaves_all_rows() -> None:
    model = al.attach(_Flat(), al.AdapterSpec.lora(rank=2, targets=("line",)))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    x = torch.randn(2, 3, 4)
    assert torch.equal(_capture(model, {"x": x, "attention_mask": mask}).inputs["line"].x, x.flatten(0, 1)[[0, 1, 3]])
    short = torch.randn(2, 2, 4)
    assert len(_capture(model, {"x": short, "attention_mask": mask}).inputs["line"].x) == 4


class _Flat(nn.Module):
    """Reads its rows without their batch, as experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.line(x.flatten(0, 1))


def test_embeddings_keep_ids_and_convolutions_patches() -> None:
    model = al.attach(small_net(), al.AdapterSpec.lora(rank=2, targets=("table", "line", "plane", "grouped", "q")))
    batch = small_net_inputs()
    probe, by_hand = _capture(model, batch), _read_by_hand(model, batch)
    assert torch.equal(probe.inputs["table"].x, batch["input_ids"].flatten())
    assert probe.inputs["table"].rms_x == 1.0
    for name in ("line", "plane", "grouped"):
        base: Any = model.get_submodule(name).base_layer
        x, out = by_hand[name]
        full = small_net().get_submodule(name).requires_grad_(False)  # the same weight, without groups
        weight = torch.randn(5, *(x.shape[1], *base.kernel_size))
        convolve = F.conv1d if x.dim() == 3 else F.conv2d
        wanted = convolve(x, weight, None, full.stride, full.padding, full.dilation).movedim(1, -1).flatten(0, -2)
        assert torch.allclose(probe.inputs[name].x @ weight.flatten(1).T, wanted, atol=1e-5)
        assert probe.inputs[name].rms_base == pytest.approx(rms(out), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "dilation": (2, 1), "padding": (0, 2)},
        {"kernel_size": 3, "padding": "same"},
    ],
)
def test_patches_times_the_weight_are_the_convolution(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, bias=False, **options).double()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        out = layer(x)
    rows = out.movedim(1, -1).flatten(0, -2)
    positions = torch.arange(0, len(rows), 3)
    found = patches(layer, x)[positions] @ layer.weight.flatten(1).T
    assert torch.allclose(found, rows[positions], rtol=1e-12, atol=1e-12)


def test_an_image_without_a_batch_is_one_image() -> None:
    model = al.attach(nn.Sequential(nn.Conv2d(2, 4, 3)), al.AdapterSpec.lora(rank=2, targets=("0",)))
    x = torch.randn(2, 5, 5)
    assert torch.equal(_capture(model, x).inputs["0"].x, _capture(model, x[None]).inputs["0"].x)


class _Twice(nn.Module):
    """Calls one layer twice, another by keyword, and a third never."""

    keyword = "input"

    def __init__(self) -> None:
        super().__init__()
        self.again, self.named, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.named(**{self.keyword: self.again(self.again(x))})


def test_layers_called_again_or_not_at_all_are_named() -> None:
    model = al.attach(_Twice(), al.AdapterSpec.lora(rank=2, targets=("again", "never")))
    x = torch.randn(3, 4)
    probe = _capture(model, x)
    assert (probe.uncalled, probe.called_again) == (("never",), ("again",))
    assert torch.equal(probe.inputs["again"].x, x)
    model = al.attach(_Twice(), al.AdapterSpec.lora(rank=2, targets=("named",)))
    model.keyword = "x"
    assert _capture(model, x).inputs["named"].x.shape == (3, 4)
    never = al.attach(_Twice(), al.AdapterSpec.lora(rank=2, targets=("never",)))
    with pytest.raises(AttachError, match=r"none of its 1 adapters on probe_batch \(never\)"):
        _capture(never, x)


@pytest.mark.parametrize("kind", ["own", "peft"])
def test_the_model_is_left_bit_for_bit_as_it_was(kind: str) -> None:
    model = (_bert() if kind == "own" else PEFT_BERT.peft(lora_dropout=0.5)).train()
    model.get_submodule("bert.pooler" if kind == "own" else "base_model.model.bert.pooler").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, drawn = [m.training for m in model.modules()], torch.get_rng_state()
    versions = [p._version for p in model.parameters()]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    _capture(model, BERT.inputs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [p._version for p in model.parameters()] == versions
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == hooks


def test_a_batch_is_given_as_the_model_is_called() -> None:
    model = al.attach(SmallBlock(4), al.AdapterSpec.lora(rank=2, targets=("q", "v")))
    x = torch.randn(3, 4)
    for batch in (x, (x,), [x], {"x": x}):
        assert torch.equal(_capture(model, batch).inputs["q"].x, x)


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (None, SpecError, "probe_batch is a NoneType. It must be a mapping"),
        ("text", SpecError, "probe_batch is a str"),
        ({}, EmptyDataError, "no row"),
        ((), EmptyDataError, "no row"),
        (torch.zeros(0, 4), EmptyDataError, r"no row: \(0, 4\)"),
        ({"x": torch.ones(2, 4), "attention_mask": torch.zeros(2)}, EmptyDataError, "counts no token"),
        (torch.ones(2, 5), DataError, r"\(SmallBlock\) cannot run on probe_batch, \(2, 5\): RuntimeError"),
        ({"y": torch.ones(2, 4)}, DataError, r"\{y: \(2, 4\)\}: TypeError.*unexpected keyword argument 'y'"),
    ],
)
def test_batches_that_no_model_takes_are_refused(batch: Any, error: type[Exception], words: str) -> None:
    model = al.attach(SmallBlock(4), al.AdapterSpec.lora(rank=2, targets=("q", "v"))).train()
    with pytest.raises(error, match=words):
        _capture(model, batch)
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("rows", [0, -1, 2.5, True])
def test_a_number_of_rows_that_is_none_is_refused(rows: Any) -> None:
    model = al.attach(SmallBlock(4), al.AdapterSpec.lora(rank=2, targets=("q", "v")))
    with pytest.raises(SpecError, match="max_rows="):
        _capture(model, torch.ones(1, 4), max_rows=rows)


def test_a_wrapper_is_looked_through() -> None:
    model = al.attach(SmallBlock(4), al.AdapterSpec.lora(rank=2, targets=("q", "v")))
    wrapper = nn.Module()
    wrapper._orig_mod = model
    x = torch.randn(3, 4)
    assert torch.equal(_capture(wrapper, x).inputs["q"].x, x)
    assert torch.equal(_capture(nn.DataParallel(model), x).inputs["q"].x, x)


def test_positions_are_ascending_and_never_repeat() -> None:
    for count in range(1, 12):
        for most in range(1, 12):
            found = evenly(count, most, None).tolist()
            assert len(found) == min(count, most)
            assert found == sorted(set(found))
            assert found[0] == 0
            assert found[-1] < count


def test_half_precision_inputs_are_kept_as_they_are() -> None:
    model = al.attach(SmallBlock(4).bfloat16(), al.AdapterSpec.lora(rank=2, targets=("q", "v")))
    found = _capture(model, torch.ones(2, 4, dtype=torch.bfloat16)).inputs["q"]
    assert found.x.dtype == torch.bfloat16
    assert found.rms_x == 1.0
    assert found.to(torch.device("meta")).x.device.type == "meta"


def test_what_a_model_gives_back_does_not_matter() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = SmallBlock(4)

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.block(x))

    model = al.attach(Holder(), al.AdapterSpec.lora(rank=2, targets=("q", "v")))
    assert _capture(model, torch.ones(1, 4)).uncalled == ()
