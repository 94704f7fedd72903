"""The ways in which models are run: autocast, checkpointing, compilation, export, copies, devices."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import asymlora as al
from asymlora.installing import InputGradient
from cases import MODELS, ModelCase, fill_factors
from devices import DEVICES
from kept_bytes import kept_for_backward
from peft_models import BERT, CASES, GPT2, IDS, IMAGES, WORDS, PeftCase

TOKENS, WIDTH, RANK = 12, 16, 2
OF = {case.name: case for case in MODELS}
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=IDS)


def _stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 5))


def _adapted(preset: str, **fields: Any) -> Any:
    model = al.attach(_stack(), al.AdapterSpec.parse(preset, **{"rank": RANK, **fields}))
    fill_factors(model)
    return model


def _x() -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def _assert_like(ours: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """The Frobenius norm of the difference, over that of the wanted."""
    assert ours.keys() == wanted.keys()
    for name, gradient in ours.items():
        assert (gradient - wanted[name]).norm() <= tolerance * wanted[name].norm(), name


# Autocast.


@pytest.mark.parametrize("preset", ["lora", "b_only", "a_only"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast_trains_as_float32_does_to_the_precision_of_bfloat16(preset: str, dropout: float) -> None:
    model, x = _adapted(preset, dropout=dropout), _x()
    outputs, gradients = [], []
    for enabled in (True, False):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs.append(model(x))
        gradients.append(_gradients(model, outputs[-1].float().square().sum()))
    assert [out.dtype for out in outputs] == [torch.bfloat16, torch.float32]
    # Unit roundoff 2**-8; three layers, each with a handful of roundings of whole tensors, forward and backward.
    assert (outputs[0].float() - outputs[1]).norm() <= 12 * 2**-8 * outputs[1].norm()
    _assert_like(gradients[0], gradients[1], 24 * 2**-8)
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0].values())


@pytest.mark.parametrize(("preset", "codes"), [("b_only", 3), ("a_only", 0), ("lora", 3)])
def test_autocast_keeps_no_copy_of_an_input_beyond_what_the_frozen_base_keeps(preset: str, codes: int) -> None:
    frozen, model, x = _stack().requires_grad_(False), _adapted(preset), _x()
    model.load_state_dict(frozen.state_dict(), strict=False)
    kept: list[int] = []
    for run, owned in ((frozen, ()), (model, [*model.parameters(), *model.buffers()])):
        with torch.autocast("cpu", torch.bfloat16):
            counted = kept_for_backward(lambda run=run: run(x), owned=[*owned, *frozen.parameters()], named={"x": x})
        kept.append(counted.get("other", 0))
    # The inputs of the layers are what GELU keeps anyway or its output, in bfloat16; a trained A keeps the output.
    inputs = 2 * TOKENS * WIDTH * 2 if "A" in {"a_only": "A", "lora": "AB"}.get(preset, "") else 0
    assert kept[1] - kept[0] == codes * TOKENS * RANK * 4 + inputs


def test_autocast_with_shared_codes_and_a_frozen_base_in_bfloat16() -> None:
    spec = al.AdapterSpec.b_only(rank=2, targets=("query", "key", "value"), shared_A=(("query", "key", "value"),))
    model = al.attach(BERT.build(), spec).eval()
    fill_factors(model)
    wanted = BERT.output(model)
    with torch.autocast("cpu", torch.bfloat16):
        # Relative to the norm: two layers of bfloat16.
        assert (BERT.output(model).float() - wanted).norm() <= 0.1 * wanted.norm()


# Gradient checkpointing.


@pytest.mark.parametrize("preset", ["lora", "b_only", "a_only"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(preset: str, reentrant: bool, dropout: float) -> None:
    model, x = _adapted(preset, dropout=dropout), _x()
    torch.manual_seed(2)
    wanted = _gradients(model, model(x).square().sum())
    torch.manual_seed(2)
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert wanted
    for name, gradient in wanted.items():
        assert torch.equal(model.get_parameter(name).grad, gradient)


def _enable_checkpointing(model: Any, *, reentrant: bool) -> None:
    # transformers has renamed it in 5.23; both names stay until 6.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def _loss(case: ModelCase, model: nn.Module) -> Tensor:
    torch.manual_seed(3)  # the models' own dropout
    return model(**case.inputs()).logits.square().sum()


@pytest.mark.parametrize("case", [OF[name] for name in ("bert", "llama", "vit")], ids=lambda case: case.name)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_transformers_give_every_adapter_its_gradient(case: ModelCase, reentrant: bool) -> None:
    model = al.attach(case.build(), al.AdapterSpec.b_only(rank=2, targets=case.targets, dropout=0.2)).train()
    fill_factors(model)
    wanted = _gradients(model, _loss(case, model))
    _enable_checkpointing(model, reentrant=reentrant)
    ours = _gradients_by_backward(model, _loss(case, model))
    # The same operations in the same order.
    _assert_like(ours, wanted, 1e-6)
    assert all(gradient.abs().max() > 0 for gradient in ours.values())


def _gradients_by_backward(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    # torch's re-entrant checkpoint works under .backward() only.
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def test_without_our_hook_a_reentrant_checkpoint_gives_adapters_nothing() -> None:
    case = OF["vit"]
    model = al.attach(case.build(), al.AdapterSpec.b_only(rank=2, targets=case.targets)).train()
    fill_factors(model)
    _enable_checkpointing(model, reentrant=True)
    for part in model.modules():
        for key in [key for key, hook in part._forward_hooks.items() if isinstance(hook, InputGradient)]:
            del part._forward_hooks[key]
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        loss = _loss(case, model)
    assert not loss.requires_grad


def test_checkpointed_blocks_share_their_codes() -> None:
    targets = ("query", "key", "value")
    gradients = []
    for shared in ((), (targets,)):
        spec = al.AdapterSpec.b_only(rank=2, targets=targets, shared_A=shared)
        model = al.attach(OF["bert"].build(), spec).train()
        fill_factors(model)
        for site in al.sites(model):  # one A a block, also where the layers do not share it
            block = int(site.name.split(".")[3])
            site.A.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(block)) * 0.3)
        if shared:
            _enable_checkpointing(model, reentrant=False)
        gradients.append(_gradients_by_backward(model, _loss(OF["bert"], model)))
    _assert_like(gradients[1], gradients[0], 1e-5)


# Compilation and export.


def _compiled(model: nn.Module, backend: str = "aot_eager") -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=backend)


@pytest.mark.parametrize(
    ("case", "preset"),
    [(BERT, "b_only"), (GPT2, "lora"), (WORDS, "lora"), (WORDS, "b_only"), (IMAGES, "lora"), (IMAGES, "a_only")],
    ids=lambda value: getattr(value, "name", value),
)
def test_compiles_without_a_graph_break_to_the_same_output_and_gradients(case: PeftCase, preset: str) -> None:
    model = al.attach(case.build(), al.AdapterSpec.parse(preset, rank=2, targets=case.targets)).eval()
    fill_factors(model)
    wanted = case.output(model)
    gradients = _gradients(model, wanted.square().sum())
    out = case.output(_compiled(model))  # pyright: ignore[reportArgumentType]
    # Float32 in another order.
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    _assert_like(_gradients(model, out.square().sum()), gradients, 1e-4)


def test_a_compiled_group_gives_what_it_gives_uncompiled() -> None:
    model = nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH), "k": nn.Linear(WIDTH, WIDTH)})
    model.forward = lambda x: model["q"](x).sin() @ model["k"](x).T
    al.attach(model, al.AdapterSpec.b_only(rank=2, shared_A=(("q", "k"),)))
    fill_factors(model)
    wanted = model(_x())
    out = _compiled(model)(_x())
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    _assert_like(_gradients(model, out.sum()), _gradients(model, wanted.sum()), 1e-4)


def test_compiled_dropout_draws_anew_at_its_rate() -> None:
    base = nn.Linear(512, 4)
    model: Any = al.attach(nn.Sequential(base), al.AdapterSpec.b_only(rank=1, alpha=1.0, dropout=0.25))
    model[0].lora_A.fill_(1.0), model[0].lora_B.data.fill_(1.0)
    run, x = _compiled(model), torch.ones(256, 512)
    torch.manual_seed(0)
    kept = [(run(x) - base(x))[:, 0] * 0.75 / 512 for _ in range(3)]  # the fraction of each row that is kept
    assert not torch.equal(kept[0], kept[1])
    # 3 * 131072 draws; five deviations, failure probability 6e-7.
    assert abs(torch.stack(kept).mean().item() - 0.75) <= 5 * (0.75 * 0.25 / (3 * 131072)) ** 0.5
    torch.manual_seed(0)
    assert torch.equal((run(x) - base(x))[:, 0] * 0.75 / 512, kept[0])
    model.eval()
    torch.testing.assert_close(_compiled(model)(x), model(x), rtol=1e-5, atol=1e-4)


@pytest.mark.optional  # needs a C compiler; half a minute
def test_inductor_gives_the_same_output_and_gradients() -> None:
    model = _adapted("lora", dropout=0.0)
    wanted = model(_x())
    gradients = _gradients(model, wanted.square().sum())
    out = _compiled(model, "inductor")(_x())
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    _assert_like(_gradients(model, out.square().sum()), gradients, 1e-4)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "attached"])
def test_exports(merged: bool) -> None:
    model, x = _adapted("b_only").eval(), _x().detach()
    model = al.merge(model) if merged else model
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-5, atol=1e-5)
    names = {node.name for node in exported.graph.nodes if "lora" in node.name}
    assert bool(names) != merged


# Copies.


@EVERY_CASE
def test_whole_models_are_saved_and_copied_by_torch(case: PeftCase) -> None:
    model = al.attach(case.build(), al.AdapterSpec.b_only(rank=2, targets=case.targets)).eval()
    fill_factors(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (torch.load(buffer, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(case.output(other), case.output(model))
        fill_factors(other, seed=1)
        assert not torch.equal(case.output(other), case.output(model))
        assert [site.name for site in al.sites(al.merge(other) and model)] == [site.name for site in al.sites(model)]


@EVERY_CASE
def test_models_without_values_run_to_their_shapes(case: PeftCase) -> None:
    model = al.attach(case.build().to("meta"), al.AdapterSpec.b_only(rank=2, targets=case.targets, dropout=0.1))
    # transformers reads the values of a mask.
    inputs = {name: value.to("meta") for name, value in case.inputs().items() if name != "attention_mask"}
    result = model(**inputs)
    out = result if isinstance(result, Tensor) else result.logits
    assert out.is_meta
    assert out.shape == case.output(case.build()).shape


# Devices.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", ["lora", "b_only", "a_only"])
def test_a_step_on_every_device_is_that_of_the_dense_formula_in_float64(device: str, preset: str) -> None:
    model = _adapted(preset).to(device)
    exact = copy.deepcopy(model).cpu().double()
    x = _x().detach()
    ours = _gradients(model, model(x.to(device)).square().sum())
    with al.unfused(exact):
        wanted = _gradients(exact, exact(x.double()).square().sum())
    _assert_like({name: gradient.cpu().double() for name, gradient in ours.items()}, wanted, 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_on_every_device_dropout_is_drawn_again_for_the_gradient(device: str) -> None:
    layer: Any = al.attach(nn.Sequential(nn.Linear(64, 4)), al.AdapterSpec.lora(rank=2, dropout=0.5))[0]
    layer.to(device)
    layer.lora_B.data.normal_()
    x = torch.randn(32, 64, device=device, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    # The branch is linear in the kept entries: x * its gradient sums to its output, whatever the mask.
    base = nn.functional.linear(x.detach(), layer.base_layer.weight, layer.base_layer.bias)
    branch = (x.grad - layer.base_layer.weight.sum(0)) * x.detach()  # pyright: ignore[reportOptionalOperand]
    torch.testing.assert_close(branch.sum(1), (out - base).sum(1).detach(), rtol=1e-4, atol=1e-3)


def test_generation_gives_the_merged_models_tokens() -> None:
    case = OF["llama"]
    model: Any = al.attach(case.build(), al.AdapterSpec.b_only(rank=2, targets=case.targets)).eval()
    fill_factors(model)
    ids = case.inputs()["input_ids"]
    tokens = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    with al.merged(model):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), tokens)
    with al.disabled(model):
        assert not torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), tokens)
