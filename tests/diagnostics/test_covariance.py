"""Moments and first gradients of a model's layers, against dense autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor, nn

from asymlora import AdapterSpec, FactorSpec, attach
from asymlora.diagnostics.captured_gradient import measure_sites
from asymlora.diagnostics.covariance import activation_start, every_target, gather_moments
from asymlora.errors import AttachError, NoTargetError, SpecError
from asymlora.theory.least_squares import explained_given_A, total_variance

TOKENS, ENTRIES, WIDTH, LABELS = 7, 11, 8, 3


class Reader(nn.Module):
    """An embedding, two linear layers in place of a trunk, dropout, and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(ENTRIES, WIDTH, padding_idx=0)
        self.up = nn.Linear(WIDTH, 12)
        self.down = nn.Linear(12, WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        x = x + self.down(torch.relu_(self.up(x)))
        weights = attention_mask[..., None].to(x)
        return self.head((self.dropout(x) * weights).sum(1) / weights.sum(1))


def _reader(seed: int = 0) -> Reader:
    torch.manual_seed(seed)
    return Reader().double()


def _batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found: list[dict[str, Tensor]] = []
    for _ in range(count):
        mask = torch.ones(4, TOKENS, dtype=torch.long)
        mask[0, 4:] = 0
        ids = torch.randint(1, ENTRIES, (4, TOKENS), generator=generator) * mask
        labels = torch.randint(0, LABELS, (4,), generator=generator)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])


def _dense(model: nn.Module, batches: list[Any], loss: Callable[..., Tensor], weight: Tensor) -> list[Tensor]:
    """The gradients of a weight, batch by batch, by autograd."""
    model.eval()
    weight.requires_grad_()
    return [torch.autograd.grad(loss(model, batch), weight)[0] for batch in batches]


def _seen(model: nn.Module, layer: nn.Module, batches: list[Any], loss: Callable[..., Tensor]) -> list[Tensor]:
    """What a layer is given, batch by batch."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    model.eval()
    for batch in batches:
        loss(model, batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_dense_autograd(frozen: bool) -> None:
    model, batches = _reader(), _batches()
    model.requires_grad_(not frozen)
    found = gather_moments(model, batches, loss=_loss, targets=every_target(model))
    assert list(found) == ["words", "up", "down", "head"]
    for name, moments in found.items():
        dense = _dense(model, batches, _loss, model.get_submodule(name).weight)
        expected = sum(dense) / len(batches)
        expected = expected.T if name == "words" else expected
        assert moments.gradient is not None
        assert moments.gradient.dtype == torch.float64
        # Sums of at most 84 terms in another order.
        assert torch.allclose(moments.gradient, expected, rtol=0, atol=1e-14)


def test_the_noise_of_a_gradient_is_the_variance_of_its_mean() -> None:
    model, batches = _reader(), _batches(5)
    (moments,) = gather_moments(model, batches, loss=_loss, targets=["up"]).values()
    each = torch.stack(_dense(model, batches, _loss, model.up.weight))
    expected = each.var(dim=0, unbiased=True).sum() / len(batches) / each.mean(0).square().sum()
    assert moments.noise == pytest.approx(expected.item(), rel=1e-10)
    assert gather_moments(model, batches[:1], loss=_loss, targets=["up"])["up"].noise is None


def test_moments_are_those_of_the_rows_that_are_no_padding() -> None:
    model, batches = _reader(), _batches()
    found = gather_moments(model, batches, loss=_loss, targets=["up", "head"])
    kept = torch.cat([b["attention_mask"].bool().flatten() for b in batches])
    rows = torch.cat(_seen(model, model.up, batches, _loss)).flatten(0, 1)[kept]
    assert found["up"].rows == len(rows) == 3 * (4 * TOKENS - 3)
    assert torch.allclose(found["up"].inputs.matrix(), rows.T @ rows / len(rows), atol=1e-14)
    assert found["head"].rows == 12  # pooled: no position to leave out


def test_moments_of_output_gradients_are_those_of_autograd() -> None:
    model, batches = _reader(), _batches()
    (moments,) = gather_moments(model, batches, loss=_loss, targets=["down"]).values()
    rows: list[Tensor] = []

    def listen(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: rows.append(gradient.detach()))

    handle = model.eval().down.register_forward_hook(listen)
    for batch in batches:
        _loss(model, batch).backward()
    handle.remove()
    kept = torch.cat([b["attention_mask"].bool().flatten() for b in batches])
    gradients = torch.cat(rows).flatten(0, 1)[kept]
    expected = gradients.T @ gradients / len(gradients)
    assert torch.allclose(moments.output_gradients.matrix(), expected, rtol=0, atol=1e-16)


def test_an_embeddings_inputs_are_counted_without_its_padding_entry() -> None:
    model, batches = _reader(), _batches()
    (moments,) = gather_moments(model, batches, loss=_loss, targets=["words"], mask=lambda *_: None).values()
    ids = torch.cat([b["input_ids"].flatten() for b in batches])
    onehot = F.one_hot(ids[ids != 0], ENTRIES).double()
    second = onehot.T @ onehot / len(onehot)
    assert moments.rows == len(onehot)
    assert moments.inputs.participation_ratio() == pytest.approx((1 / second.square().sum()).item(), rel=1e-12)
    shares, entries = moments.inputs.principal()
    assert torch.allclose(shares, second.diagonal()[entries])
    assert (shares.diff() <= 0).all()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_embedding_that_scales_what_it_looks_up(scale: float) -> None:
    class Scaled(nn.Embedding):
        embed_scale = scale

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * self.embed_scale

    model = nn.Sequential(Scaled(ENTRIES, 4), nn.Linear(4, 2)).double()
    ids = torch.arange(6)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    (moments,) = gather_moments(model, [ids], loss=loss, targets=["0"]).values()
    (expected,) = _dense(model, [ids], loss, model[0].weight)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(moments.gradient, expected.T, atol=1e-14)


CONVOLUTIONS = {
    "1d": lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2),
    "2d": lambda: nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 0)),
    "2d same": lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)),
    "2d patches": lambda: nn.Conv2d(3, 4, 4, stride=4, padding="valid"),
    "3d": lambda: nn.Conv3d(3, 4, 2, padding=1),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_the_matrices_of_their_patches(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(CONVOLUTIONS[name](), nn.Tanh()).double()
    conv: Any = model[0]
    x = torch.randn(2, 3, *(8,) * (conv.weight.dim() - 2), dtype=torch.float64)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sin().mean()

    (moments,) = gather_moments(model, [x], loss=loss, targets=["0"]).values()
    (expected,) = _dense(model, [x], loss, conv.weight)
    assert torch.allclose(moments.gradient, expected.flatten(1), rtol=0, atol=1e-15)
    # The outputs are the patches times the kernel, so their squared sum is Tr[W S W^T].
    output = F.conv1d if name == "1d" else F.conv3d if name == "3d" else F.conv2d
    kernel = conv.weight.detach()
    sizes = output(x, kernel, None, conv.stride, conv.padding, conv.dilation)
    weight = kernel.flatten(1)
    total = (weight @ moments.inputs.matrix() @ weight.T).trace() * moments.rows
    assert torch.isclose(total, sizes.square().sum(), rtol=1e-12)
    assert moments.rows == moments.output_gradients.count == sizes[:, 0].numel()


def test_transformers_conv1d_is_the_transposed_matrix() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(transformers.Conv1D(5, 3)).double()
    x = torch.randn(6, 3, dtype=torch.float64)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    (moments,) = gather_moments(model, [x], loss=loss, targets=["0"]).values()
    (expected,) = _dense(model, [x], loss, model[0].weight)  # pyright: ignore[reportArgumentType]
    assert (moments.outputs, moments.fan_in) == (5, 3)
    assert torch.allclose(moments.gradient, expected.T, atol=1e-14)
    assert torch.equal(moments.weight, model[0].weight.T)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("preset", ["b_only", "a_only", "init_a"])
def test_sites_of_an_adapted_model_take_the_fused_path_and_give_the_bases_gradient(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, model, batches = _reader(), _reader(), _batches()
    plain.requires_grad_(False)
    attach(model, AdapterSpec.parse(preset, rank=2, targets=("up", "down")))
    expected = gather_moments(plain, batches, loss=_loss, targets=("up", "down"))
    fused: list[bool] = []
    from asymlora import layers

    plain_weight = layers.plain_weight

    def seen(base: Any, x: Tensor) -> Tensor | None:
        weight = plain_weight(base, x)
        fused.append(weight is not None)
        return weight

    monkeypatch.setattr(layers, "plain_weight", seen)
    found = gather_moments(model, batches, loss=_loss)
    assert list(found) == ["up", "down"]
    assert len(fused) == 6
    assert all(fused)
    for name, moments in found.items():
        assert torch.allclose(moments.gradient, expected[name].gradient, rtol=0, atol=1e-14)
        assert torch.allclose(moments.inputs.matrix(), expected[name].inputs.matrix(), rtol=0, atol=1e-14)
        assert torch.equal(moments.weight, expected[name].weight)


def test_sites_of_a_peft_model_give_the_same() -> None:
    peft = pytest.importorskip("peft")
    plain, batches = _reader(), _batches()
    expected = gather_moments(plain, batches, loss=_loss, targets=("up", "down"))
    model = peft.get_peft_model(_reader(), peft.LoraConfig(r=2, target_modules=["up", "down"]))
    found = gather_moments(model, batches, loss=_loss)
    assert list(found) == ["up", "down"]
    for name, moments in found.items():
        # PEFT's factors are float32, and its B is zero: the outputs are the base's.
        assert torch.allclose(moments.gradient, expected[name].gradient, rtol=0, atol=1e-14)
        assert torch.equal(moments.weight, expected[name].weight)


def test_the_model_is_left_as_it_was() -> None:
    model = _reader()
    model.train()
    model.up.eval()
    model.up.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = {name: module.training for name, module in model.named_modules()}
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    state = torch.get_rng_state()

    def drawing_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return _loss(model, batch) * (1 + torch.rand(()))

    with torch.no_grad():
        gather_moments(model, _batches(), loss=drawing_loss, targets=every_target(model))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needs
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name]
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failing_loss_leaves_no_hook_and_no_mode_behind() -> None:
    model = _reader().train()

    def failing(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        gather_moments(model, _batches(), loss=failing)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_is_off() -> None:
    model, batches = _reader().train(), _batches()
    first, second = (gather_moments(model, batches, loss=_loss, targets=["up"])["up"].gradient for _ in range(2))
    assert torch.equal(first, second)


def test_a_checkpointed_block_gives_its_gradient_once() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Reader):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return checkpoint(super().forward, input_ids, attention_mask, use_reentrant=False)

    model, batches = _reader(), _batches()
    same = Checkpointed().double()
    same.load_state_dict(model.state_dict())
    expected = gather_moments(model, batches, loss=_loss, targets=["up"])["up"]
    found = gather_moments(same, batches, loss=_loss, targets=["up"])["up"]
    assert torch.equal(found.gradient, expected.gradient)
    assert found.rows == expected.rows
    assert torch.equal(found.inputs.matrix(), expected.inputs.matrix())


def test_wide_sides_are_sketched_and_what_is_kept_is_stated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30)).float()
    x = torch.randn(50, 40)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    (whole,) = gather_moments(model, [x], loss=loss, targets=["0"]).values()
    assert whole.kept_bytes == 4 * 40 * 30 + 8 * (40**2 + 30**2 + 40 + 30)
    (sketched,) = gather_moments(model, [x], loss=loss, targets=["0"], sketch_above=32).values()
    assert sketched.kept_bytes == 4 * 40 * 30 + 8 * (2 * 40**2 + 30**2 + 40 + 30)
    assert sketched.inputs.participation_ratio() == pytest.approx(whole.inputs.participation_ratio(), rel=0.05)


def test_a_gradient_that_is_too_large_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from asymlora.diagnostics import site_moments

    monkeypatch.setattr(site_moments, "LARGEST_GRADIENT", 90)
    model, batches = _reader(), _batches()
    found = gather_moments(model, batches, loss=_loss, targets=["up", "head"])
    assert found["up"].gradient is None
    assert found["up"].why_no_gradient == "(12, 8) has more than 90 entries"
    assert found["up"].output_gradients.count == found["up"].rows
    assert found["head"].gradient is not None


def test_layers_that_do_not_reach_the_loss_say_so() -> None:
    class Idle(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.never = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            self.idle(self.words(input_ids))
            return super().forward(input_ids, attention_mask)

    found = gather_moments(Idle().double(), _batches(), loss=_loss, targets=["idle", "never", "up"])
    assert found["idle"].why_no_gradient == "its output does not reach the loss"
    assert found["never"].why_no_gradient == "it was not run"
    assert found["up"].why_no_gradient == ""


def test_every_target_leaves_out_what_no_adapter_fits() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(4, 4),
            "one": shared,
            "two": shared,
            "grouped": nn.Conv1d(4, 4, 1, groups=2),
            "circular": nn.Conv1d(4, 4, 3, padding_mode="circular"),
            "limited": nn.Embedding(4, 4, max_norm=1.0),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.LayerNorm(4),
        }
    )
    assert every_target(model) == ("plain",)


def test_bad_calls_are_refused() -> None:
    model, batches = _reader(), _batches()
    with pytest.raises(SpecError, match="no batch"):
        gather_moments(model, [], loss=_loss)
    with pytest.raises(NoTargetError, match="no layer matches"):
        gather_moments(model, batches, loss=_loss, targets=["upp"])
    with pytest.raises(SpecError, match="shape \\(4, 3\\)"):
        gather_moments(model, batches, loss=lambda m, b: m(b["input_ids"], b["attention_mask"]))
    with pytest.raises(SpecError, match="depends on none"):
        gather_moments(model, batches, loss=lambda m, b: torch.ones(()))
    with pytest.raises(SpecError, match="not finite"):
        gather_moments(model, batches, loss=lambda m, b: _loss(m, b) * torch.inf)
    grouped = nn.Sequential(nn.Conv1d(4, 4, 1, groups=2))
    with pytest.raises(AttachError, match="groups"):
        gather_moments(grouped, [torch.ones(1, 4, 3)], loss=lambda m, x: m(x).sum(), targets=["0"])


def test_inputs_that_are_not_finite_name_the_layer() -> None:
    model, batches = _reader(), _batches()
    with torch.no_grad():
        model.words.weight[1:] = torch.nan
    with pytest.raises(SpecError, match="up: Inputs"):
        gather_moments(model, batches, loss=_loss, targets=["up"])


def test_an_input_that_is_overwritten_is_refused() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            out = self.layer(x)
            x.mul_(2)
            return out.square()

    model = Overwriting().requires_grad_(False)
    with pytest.raises(AttachError, match="was overwritten"):
        gather_moments(model, [torch.ones(2, 4)], loss=lambda m, x: m(x).mean(), targets=["layer"])


def test_the_layers_own_forward_sees_the_same_values() -> None:
    model, batches = _reader(), _batches(1)
    outputs: list[Tensor] = []

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        outputs.append(model(batch["input_ids"], batch["attention_mask"]).detach())
        return _loss(model, batch)

    gather_moments(model, batches, loss=loss, targets=every_target(model))
    with torch.no_grad():
        assert torch.equal(outputs[0], model.eval()(batches[0]["input_ids"], batches[0]["attention_mask"]))


def test_a_start_from_activations_reaches_the_share_that_is_named_for_it() -> None:
    model, batches = _reader(), _batches()
    found = gather_moments(model, batches, loss=_loss, targets=["words", "up"])
    measured = {site.name: site for site in measure_sites(found, ranks=(2,))}
    A = FactorSpec(init=activation_start(found), trainable=False)
    attach(model, AdapterSpec(A=A, rank=2, targets=("words", "up")))
    for name, moments in found.items():
        rows = model.get_submodule(name).lora_A.double()
        assert torch.allclose(rows @ rows.T, torch.eye(2).double(), atol=1e-6)
        second = moments.inputs.matrix() if name == "up" else torch.diag(moments.inputs.counts / moments.rows)
        reached = explained_given_A(rows, cov=second, delta=moments.gradient)
        total = total_variance(cov=second, delta=moments.gradient)
        # The rows are rounded to float32.
        assert reached / total == pytest.approx(measured[name].shares[0].activation_A, abs=1e-5)


def test_a_start_from_activations_is_refused_where_there_are_none() -> None:
    model = _reader()
    found = gather_moments(model, _batches(), loss=_loss, targets=["head"])
    A = FactorSpec(init=activation_start(found), trainable=False)
    with pytest.raises(SpecError, match="no directions for A of 'up'"):
        attach(model, AdapterSpec(A=A, rank=2, targets=("up",)))
    few = nn.Sequential(nn.Linear(4, 4))
    found = gather_moments(few, [torch.eye(4)[:1]], loss=lambda m, x: m(x).sum(), targets=["0"])
    with pytest.raises(SpecError, match="fill 1 directions, fewer than rank=2"):
        attach(few, AdapterSpec(A=FactorSpec(init=activation_start(found), trainable=False), rank=2, targets=("0",)))


def test_an_embedding_that_makes_its_own_indices_is_refused_by_name() -> None:
    class Positions(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(torch.arange(input.shape[1])).expand(input.shape)

    model = nn.Sequential(Positions(9, 5), nn.Linear(5, 2))
    with pytest.raises(AttachError, match=r"^0 is an embedding that was given torch\.float32 values"):
        gather_moments(model, [torch.ones(2, 4, 5)], loss=lambda model, x: model(x).sum(), targets=["0", "1"])


def test_a_block_that_ran_with_gradients_off_says_so() -> None:
    from torch.utils.checkpoint import checkpoint

    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.inside, x, use_reentrant=True))

    x = torch.ones(3, 4, requires_grad=True)
    found = gather_moments(Reentrant(), [x], loss=lambda model, x: model(x).square().mean(), targets=["inside", "head"])
    assert found["inside"].why_no_gradient == "it ran with gradients off"
    assert found["head"].gradient is not None
