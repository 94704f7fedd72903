from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import AttachError, NotAttachedError, RankError, SpecError
from asymlora.gradient_correction import correct_gradients
from cases import MODELS, small_net, small_net_inputs
from peft_models import BERT as PEFT_BERT
from peft_models import IMAGES, WORDS

BERT = MODELS[0]
KINDS = ("table", "line", "plane", "q")


def _spec(init: str = "gaussian", **fields: Any) -> al.AdapterSpec:
    A = al.FactorSpec(init=init, trainable=False)  # pyright: ignore[reportArgumentType]
    return al.AdapterSpec(A=A, B=al.FactorSpec(init="zeros"), **{"rank": 2, "targets": ("query", "value"), **fields})


def _net(**fields: Any) -> nn.Module:
    model = al.attach(small_net(), _spec(**{"targets": KINDS, **fields})).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for site in al.sites(model):
            site.B.normal_(0.0, 0.2, generator=generator)
    return model


def _loss(model: nn.Module) -> Tensor:
    return model(**small_net_inputs()).logits.square().sum()


def _full_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every adapted weight as a matrix, by autograd on the base weights themselves."""
    found = list(al.sites(model))
    weights = [site.weight for site in found]
    for weight in weights:
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(_loss(model), weights)
    for weight in weights:
        weight.requires_grad_(False)
    return {s.name: s.layer.matrix_of(s.layer.base_layer, g).clone() for s, g in zip(found, gradients, strict=True)}


def _updates(model: nn.Module) -> dict[str, Tensor]:
    return {s.name: s.scaling * s.B.detach().flatten(1) @ s.A.flatten(1) for s in al.sites(model)}


@pytest.mark.parametrize("init", ["gaussian", "orthonormal"])
@pytest.mark.parametrize("alpha", [3.0, 0.5])
def test_a_step_of_sgd_is_full_gradient_descent_projected_on_the_rows_of_A(init: str, alpha: float) -> None:
    model = _net(init=init, alpha=alpha)
    wanted, before = _full_gradients(model), _updates(model)
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    correct_gradients(model, optimizer)
    _loss(model).backward()
    optimizer.step()
    after = _updates(model)
    assert set(wanted) == {"table", "line", "plane", "q", "block.q"}
    for site in al.sites(model):
        A = site.A.flatten(1)
        projector = torch.linalg.pinv(A) @ A
        change = after[site.name] - before[site.name]
        # Float64, but for orthonormal rows: these were drawn in float32, so A A^T is the identity to 1e-7.
        tolerance = 1e-11 if init == "gaussian" else 2e-6
        expected = -0.01 * wanted[site.name] @ projector
        assert expected.norm() > 1e-6
        assert (change - expected).norm() <= tolerance * expected.norm()


def test_without_it_the_step_is_another() -> None:
    model = _net()
    wanted, before = _full_gradients(model), _updates(model)
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    _loss(model).backward()
    optimizer.step()
    for site in al.sites(model):
        A = site.A.flatten(1)
        expected = -0.01 * wanted[site.name] @ torch.linalg.pinv(A) @ A
        assert (_updates(model)[site.name] - before[site.name] - expected).norm() > 0.1 * expected.norm()


def _trained(model: nn.Module, correct: bool, optimizer: Callable[..., Any], **options: Any) -> list[Tensor]:
    made = optimizer(al.param_groups(model, lr=0.01), **options)
    if correct:
        correct_gradients(model, made)
    for _ in range(4):
        made.zero_grad()
        _loss(model).backward()
        made.step()
    return [site.B.detach().clone() for site in al.sites(model)]


def _with_unit_rows(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for site in al.sites(model):
            site.A.zero_().flatten(1).fill_diagonal_(1.0)
            site.A.view(site.A.shape[0], -1).copy_(torch.eye(site.A.shape[0], site.A[0].numel()))
    return model


def test_adam_divides_the_correction_of_orthonormal_rows_out_but_for_eps() -> None:
    # s = 2 and A A^T = I, so the factor is 1/4: a power of two, which commutes with every rounding.
    def model() -> nn.Module:
        return _with_unit_rows(_net(alpha=4.0))

    corrected = _trained(model(), True, torch.optim.AdamW, eps=1e-8)
    larger_eps = _trained(model(), False, torch.optim.AdamW, eps=4e-8)
    same_eps = _trained(model(), False, torch.optim.AdamW, eps=1e-8)
    assert all(torch.equal(one, other) for one, other in zip(corrected, larger_eps, strict=True))
    # Gradients here are above 1e-4, against which eps is nothing.
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in zip(corrected, same_eps, strict=True))
    sgd = _trained(model(), True, torch.optim.SGD), _trained(model(), False, torch.optim.SGD)
    assert not torch.allclose(sgd[0][0], sgd[1][0], rtol=1e-3, atol=1e-5)


def test_adam_does_not_divide_it_out_where_rows_are_not_orthonormal() -> None:
    one, other = _trained(_net(), True, torch.optim.AdamW), _trained(_net(), False, torch.optim.AdamW)
    assert not torch.allclose(one[0], other[0], rtol=1e-3, atol=1e-4)


def test_one_number_stands_for_orthonormal_rows_and_one_inverse_for_a_shared_A() -> None:
    model = al.attach(BERT.build(), _spec("orthonormal", shared_A=(("query", "value"),)))
    correction = correct_gradients(model, torch.optim.SGD(al.param_groups(model, lr=0.1)))
    assert (correction.inverses, correction.numbers) == (2, 2)  # two blocks, each with one A
    other = al.attach(BERT.build(), _spec("gaussian"))
    correction = correct_gradients(other, torch.optim.SGD(al.param_groups(other, lr=0.1)))
    assert (correction.inverses, correction.numbers) == (4, 0)


def test_the_plain_gradient_stands_in_B_after_the_step_and_a_second_step_corrects_it_anew() -> None:
    model = _net()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    correct_gradients(model, optimizer)
    _loss(model).backward()
    plain = [site.B.grad.clone() for site in al.sites(model)]  # pyright: ignore[reportOptionalMemberAccess]
    start = [site.B.detach().clone() for site in al.sites(model)]
    optimizer.step()
    first = [site.B.detach() - before for site, before in zip(al.sites(model), start, strict=True)]
    assert all(torch.equal(g, s.B.grad) for g, s in zip(plain, al.sites(model), strict=True))  # pyright: ignore[reportArgumentType]
    optimizer.step()
    for site, before, change in zip(al.sites(model), start, first, strict=True):
        torch.testing.assert_close(site.B.detach() - before, 2 * change)


def test_works_on_clipped_and_on_accumulated_gradients() -> None:
    def changed(prepare: Callable[[nn.Module], None]) -> list[Tensor]:
        model = _net()
        start = [site.B.detach().clone() for site in al.sites(model)]
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
        correct_gradients(model, optimizer)
        prepare(model)
        optimizer.step()
        return [site.B.detach() - before for site, before in zip(al.sites(model), start, strict=True)]

    def once(model: nn.Module) -> None:
        _loss(model).backward()

    def in_parts(model: nn.Module) -> None:
        for _ in range(4):
            (_loss(model) / 4).backward()

    norms: list[float] = []

    def clipped(model: nn.Module) -> None:
        _loss(model).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))

    plain = changed(once)
    for one, other in zip(plain, changed(in_parts), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(plain, changed(clipped), strict=True):
        torch.testing.assert_close(other, one * 0.5 / norms[0], rtol=1e-5, atol=1e-12)
    assert norms[0] > 1


def test_a_step_with_a_closure_is_corrected_too() -> None:
    def trained(with_closure: bool) -> list[Tensor]:
        model = _net()
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
        correct_gradients(model, optimizer)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = _loss(model)
            loss.backward()
            return loss

        if with_closure:
            assert optimizer.step(closure).detach() > 0
        else:
            closure()
            optimizer.step()
        return [site.B.detach() for site in al.sites(model)]

    assert all(torch.equal(one, other) for one, other in zip(trained(True), trained(False), strict=True))


def test_removing_it_gives_plain_steps_back() -> None:
    def trained(remove: bool) -> list[Tensor]:
        model = _net()
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
        if remove:
            correct_gradients(model, optimizer).remove()
        _loss(model).backward()
        optimizer.step()
        return [site.B.detach() for site in al.sites(model)]

    assert all(torch.equal(one, other) for one, other in zip(trained(True), trained(False), strict=True))


def test_resuming_from_adapter_and_optimizer_state_is_bit_equal(tmp_path: Path) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss = model(**BERT.inputs()).logits.square().sum()
        loss.backward()
        optimizer.step()

    def made(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.01))
        correct_gradients(model, optimizer)
        return optimizer

    model = al.attach(BERT.build(), _spec()).eval()
    optimizer = made(model)
    for _ in range(3):
        step(model, optimizer)
    al.save_adapter(model, tmp_path / "adapter")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    for _ in range(3):
        step(model, optimizer)
    again = al.load_adapter(BERT.build(), tmp_path / "adapter").eval()
    resumed = made(again)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for _ in range(3):
        step(again, resumed)
    for one, other in zip(al.sites(model), al.sites(again), strict=True):
        assert torch.equal(one.B, other.B)
    held = torch.load(tmp_path / "optimizer.pt", weights_only=True)["state"]
    assert set(held) == set(range(len(held)))  # keyed by parameter


def test_a_swapped_or_moved_A_is_read_anew(tmp_path: Path) -> None:
    other = al.attach(BERT.build(), _spec(seed=5))
    al.save_adapter(other, tmp_path / "other")

    def stepped(swap_late: bool) -> list[Tensor]:
        model = al.attach(BERT.build(), _spec()).eval()
        if not swap_late:
            al.swap_adapter(model, tmp_path / "other")
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.1))
        correct_gradients(model, optimizer)
        if swap_late:
            al.swap_adapter(model, tmp_path / "other")
            for site in al.sites(model):  # as a move to another device would
                site.layer._buffers["lora_A"] = site.A.clone()
        model(**BERT.inputs()).logits.square().sum().backward()
        optimizer.step()
        return [site.B.detach() for site in al.sites(model)]

    assert all(torch.equal(a, b) for a, b in zip(stepped(True), stepped(False), strict=True))


def test_a_scale_that_is_changed_later_is_the_one_that_counts() -> None:
    def change(scale: float) -> Tensor:
        model = _net(alpha=2.0)
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
        correct_gradients(model, optimizer)
        site = next(iter(al.sites(model)))
        before = site.B.detach().clone()
        site.B.grad = torch.ones_like(site.B)
        site.layer.scaling = scale
        optimizer.step()
        return site.B.detach() - before

    torch.testing.assert_close(change(2.0), change(1.0) / 4)


def test_bfloat16_factors_are_corrected_in_float32_and_rounded_once() -> None:
    model = al.attach(BERT.build(), _spec()).to(torch.bfloat16)
    optimizer = torch.optim.SGD(al.param_groups(model, lr=1.0))
    correct_gradients(model, optimizer)
    generator = torch.Generator().manual_seed(0)
    for site in al.sites(model):
        site.B.grad = torch.randn(site.B.shape, generator=generator).to(torch.bfloat16)
    wanted = [
        site.B.grad.double() @ torch.linalg.inv(site.A.double() @ site.A.double().T) / site.scaling**2  # pyright: ignore[reportOptionalMemberAccess]
        for site in al.sites(model)
    ]
    optimizer.step()  # from B = 0, so B is minus the corrected gradient
    for site, gradient in zip(al.sites(model), wanted, strict=True):
        # Half a unit in the last place of 8 bits, and float32's own error.
        torch.testing.assert_close(site.B.detach().double(), -gradient, rtol=2**-8, atol=1e-6)


def test_a_peft_model_with_a_frozen_A_steps_as_our_own_adapter() -> None:
    for case in (PEFT_BERT, WORDS, IMAGES):
        model = al.freeze(case.peft(), "A").double().eval()
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
        correction = correct_gradients(model, optimizer)
        assert correction.inverses == len(list(al.sites(model)))
        generator = torch.Generator().manual_seed(0)
        before: list[Tensor] = []
        for site in al.sites(model):
            before.append(site.B.detach().clone())
            site.B.grad = torch.randn(site.B.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        for site, start in zip(al.sites(model), before, strict=True):
            A, plain = site.A.flatten(1), site.B.grad.flatten(1)  # pyright: ignore[reportOptionalMemberAccess]
            wanted = -0.01 * plain @ torch.linalg.inv(A @ A.T) / site.scaling**2
            torch.testing.assert_close((site.B.detach() - start).flatten(1), wanted, rtol=1e-9, atol=1e-12)


def test_accelerates_wrapper_is_looked_through() -> None:
    from accelerate import Accelerator

    model = _net()
    inner = torch.optim.SGD(al.param_groups(model, lr=0.01))
    correct_gradients(model, Accelerator(cpu=True).prepare(inner))
    plain = _net()
    other = torch.optim.SGD(al.param_groups(plain, lr=0.01))
    correct_gradients(plain, other)
    for net, optimizer in ((model, inner), (plain, other)):
        _loss(net).backward()
        optimizer.step()
    assert all(torch.equal(a.B, b.B) for a, b in zip(al.sites(model), al.sites(plain), strict=True))


@pytest.mark.parametrize("kind", ["twin rows", "zero", "nan"])
def test_a_rank_deficient_A_is_named_with_its_condition_number(kind: str) -> None:
    model = al.attach(BERT.build(), _spec())
    site = list(al.sites(model))[1]
    with torch.no_grad():
        if kind == "twin rows":
            site.A[1] = site.A[0]
        else:
            site.A.fill_(0.0 if kind == "zero" else float("nan"))
    found = {"twin rows": r"has the condition number [\d.e+inf]+,", "zero": "number inf,", "nan": "holds NaN"}[kind]
    with pytest.raises(RankError, match=rf"layer\.0\.attention\.self\.value: A \(2, 16\).*{found}"):
        correct_gradients(model, torch.optim.SGD(al.param_groups(model, lr=0.1)))


def test_what_cannot_be_corrected_is_refused() -> None:
    lora = al.attach(BERT.build(), al.AdapterSpec.lora(rank=2, targets="query"))
    with pytest.raises(AttachError, match=r"query: A is trained.*b_only"):
        correct_gradients(lora, torch.optim.SGD(al.param_groups(lora, lr=0.1)))
    mixed = al.attach(BERT.build(), _spec(factor_pattern={"value": "a_only"}))
    with pytest.raises(AttachError, match="value: A is trained"):
        correct_gradients(mixed, torch.optim.SGD(al.param_groups(mixed, lr=0.1)))
    grouped = al.attach(small_net(), _spec(targets="grouped"))
    with pytest.raises(AttachError, match="grouped: a grouped convolution"):
        correct_gradients(grouped, torch.optim.SGD(al.param_groups(grouped, lr=0.1)))
    with pytest.raises(AttachError, match=r"asymlora\.freeze\(model, 'A'\)"):
        correct_gradients(PEFT_BERT.peft(), torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    with pytest.raises(NotAttachedError):
        correct_gradients(nn.Linear(2, 2), torch.optim.SGD([nn.Parameter(torch.zeros(1))]))


def test_an_optimizer_of_other_parameters_or_with_a_correction_is_refused() -> None:
    model = _net()
    with pytest.raises(SpecError, match="does not hold the B of 5 sites"):
        correct_gradients(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.1))
    correct_gradients(model, optimizer)
    with pytest.raises(SpecError, match="corrected already"):
        correct_gradients(model, optimizer)
    other = _net()
    next(iter(al.sites(other))).layer.scaling = 0.0
    with pytest.raises(SpecError, match="table has the scale 0"):
        correct_gradients(other, torch.optim.SGD(al.param_groups(other, lr=0.1)))


def test_sites_without_a_gradient_are_left_alone() -> None:
    model = _net()
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.1))
    correct_gradients(model, optimizer)
    optimizer.step()
    assert all(site.B.grad is None for site in al.sites(model))
