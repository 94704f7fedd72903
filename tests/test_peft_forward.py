from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

import asymlora as al
from asymlora.ops import adapted_linear
from asymlora.peft_forward import FastLinear
from asymlora.peft_sites import lora_layers
from peft_models import BERT, GPT2, IMAGES, TEXT, WORDS, PeftCase, add_second, factors, fill_peft

DENSE = (*TEXT, GPT2)
IDS = [case.name for case in DENSE]


class Calls:
    """Counts how often our product ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import asymlora.layers

        self.count = 0

        def counted(*args: Any, **kwargs: Any) -> Tensor:
            self.count += 1
            return adapted_linear(*args, **kwargs)

        monkeypatch.setattr(asymlora.layers, "adapted_linear", counted)

    def during(self, case: PeftCase, model: Any) -> int:
        """How many layers ran our product in one forward pass."""
        before = self.count
        case.output(model)
        return self.count - before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def dense_model(**given: Any) -> Any:
    """A chain of two dense layers, wide enough for rounding to be seen, in float64 unless asked."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16))
    config = LoraConfig(**{"target_modules": ["0", "2"], "r": 4, "lora_alpha": 6, **given})
    return fill_peft(get_peft_model(base, config))  # pyright: ignore[reportArgumentType]


def both(model: Any) -> tuple[Any, Any]:
    """A model as PEFT runs it, and a copy of it sped up."""
    fast = copy.deepcopy(model)
    assert al.speed_up(fast).left == {}
    return model, fast


def step(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Output, and gradients of the input and of every trained parameter."""
    x = x.clone().requires_grad_(True)
    out = model(x)
    out.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **grads}  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("case", DENSE, ids=IDS)
def test_outputs_and_gradients_are_those_of_peft(case: PeftCase, calls: Calls) -> None:
    plain, fast = both(case.peft().double().eval())
    given = {k: v.double() if v.is_floating_point() else v for k, v in case.inputs().items()}
    results = []
    for model in (plain, fast):
        logits = model(**given).logits
        logits.square().sum().backward()
        results.append({"logits": logits, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        # A few hundred roundings of 1e-16 each, of values around 1 to 1e4.
        assert torch.allclose(results[1][name], value, rtol=1e-10, atol=1e-9), name
    assert calls.count == len(lora_layers(fast))


@pytest.mark.parametrize("frozen", [None, "A", "B"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_float32_results_agree_to_rounding(frozen: Any, dropout: float) -> None:
    model = dense_model(lora_dropout=dropout).eval()
    if frozen:
        al.freeze(model, frozen)
    plain, fast = both(model)
    x = torch.randn(3, 5, 24)
    one, two = step(plain, x), step(fast, x)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max())), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 16)).to(dtype)
    plain, fast = both(fill_peft(get_peft_model(base, LoraConfig(target_modules=["0", "1"], r=4))))  # pyright: ignore
    assert factors(fast)["0"].dtype is torch.float32
    x = torch.randn(5, 24).to(dtype)
    with torch.no_grad():
        one, two = plain(x), fast(x)
    assert one.dtype is two.dtype is dtype
    assert torch.allclose(two.float(), one.float(), rtol=2e-2, atol=2e-2 * float(one.abs().max()))


def test_autocast_gives_the_dtype_of_peft() -> None:
    plain, fast = both(dense_model())
    x = torch.randn(5, 24)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        one, two = plain(x), fast(x)
    assert one.dtype is two.dtype is torch.bfloat16
    assert torch.allclose(two.float(), one.float(), rtol=2e-2, atol=2e-2 * float(one.abs().max()))


def test_dropout_drops_in_training_only_and_as_much_as_it_should() -> None:
    base = nn.Sequential(nn.Linear(400, 1, bias=False))
    model: Any = get_peft_model(base, LoraConfig(target_modules=["0"], r=1, lora_alpha=1, lora_dropout=0.25))  # pyright: ignore
    al.speed_up(model)
    with torch.no_grad():
        base[0].base_layer.weight.zero_()
        factors(model, "A")["0"].fill_(1.0)
        factors(model, "B")["0"].fill_(1.0)
    x = torch.ones(500, 400)
    assert torch.equal(model.eval()(x), torch.full((500, 1), 400.0))
    kept = model.train()(x).detach() * 0.75 / 400
    # Mean of 200,000 draws: standard deviation 0.001, so 5 of them are missed once in a million runs.
    assert abs(float(kept.mean()) - 0.75) < 0.005
    assert float(kept.std()) > 0.01
    torch.manual_seed(1)
    one = model(x)
    torch.manual_seed(1)
    assert torch.equal(model(x), one)


def test_the_mode_is_that_of_the_dropout_module() -> None:
    _, fast = both(dense_model(lora_dropout=0.5).eval())
    x = torch.randn(4, 24)
    with torch.no_grad():
        quiet = fast(x)
        fast.base_model.model[0].lora_dropout.train()  # as for an estimate of uncertainty
        assert not torch.equal(fast(x), quiet)
        fast.train()
        fast.base_model.model[0].lora_dropout.eval()
        fast.base_model.model[2].lora_dropout.eval()
        assert torch.equal(fast(x), quiet)


def _saved_bytes(model: Any, x: Tensor) -> int:
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x.requires_grad_(True))
    assert out.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_with_A_frozen_only_codes_and_dropout_bits_are_kept(dropout: float) -> None:
    tokens, n, m, r = 64, 128, 96, 4
    config = LoraConfig(target_modules=["0"], r=r, lora_dropout=dropout)
    model = al.freeze(fill_peft(get_peft_model(nn.Sequential(nn.Linear(n, m)), config)), "A")  # pyright: ignore
    plain, fast = both(model)
    codes = 4 * tokens * r
    copied_B = 4 * m * r  # a narrow B is kept as the transpose that backward reads
    bits = tokens * n // 8 if dropout else 0
    assert _saved_bytes(fast, torch.randn(tokens, n)) <= codes + copied_B + bits
    if dropout:
        assert _saved_bytes(plain, torch.randn(tokens, n)) >= 4 * tokens * n  # PEFT keeps a mask as wide as the input


def test_state_is_read_at_each_call(calls: Calls) -> None:
    plain, fast = both(WORDS.peft(target_modules=["dense"], lora_dropout=0.0))
    for model in (plain, fast):
        add_second(PeftCase(**{**vars(WORDS), "targets": ("dense",)}), model)

    def same(expected_calls: int) -> Tensor:
        with torch.no_grad():
            assert calls.during(WORDS, fast) == expected_calls
            assert torch.allclose(WORDS.output(fast), WORDS.output(plain), atol=1e-6)
            return WORDS.output(fast)

    seen = [same(1)]
    for act, expected in (
        (lambda m: m.set_adapter("second"), 1),
        (lambda m: m.base_model.model.dense.scaling.__setitem__("second", 5.0), 1),
        (lambda m: m.base_model.set_adapter(["default", "second"]), 0),
        (lambda m: m.base_model.set_adapter([]), 0),
        (lambda m: m.set_adapter("default"), 1),
        (lambda m: m.base_model.model.dense.set_scale("default", 2.0), 1),
        (lambda m: m.base_model.disable_adapter_layers(), 0),
        (lambda m: m.base_model.enable_adapter_layers(), 1),
    ):
        act(plain)
        act(fast)
        seen.append(same(expected))
        assert not torch.allclose(seen[-1], seen[-2], atol=1e-4)
    for model in (plain, fast):
        model.merge_adapter()
    assert torch.allclose(same(0), seen[-1], atol=1e-5)
    with fast.disable_adapter(), plain.disable_adapter():  # PEFT unmerges then
        same(0)
    assert torch.allclose(same(1), seen[-1], atol=1e-5)
    fast.delete_adapter("second")
    assert torch.allclose(WORDS.output(fast), seen[-1], atol=1e-5)


def test_a_mixed_batch_runs_pefts_forward(calls: Calls) -> None:
    plain, fast = both(BERT.peft().eval())
    for model in (plain, fast):
        add_second(BERT, model)
    names = ["default", "second", "__base__"]
    with torch.no_grad():
        one, two = (m.eval()(**BERT.inputs(), adapter_names=names).logits for m in (plain, fast))
    assert torch.equal(one, two)
    assert calls.count == 0


@pytest.mark.parametrize("given", [{"use_dora": True}, {"lora_bias": True}])
def test_a_variant_beside_a_plain_adapter_runs_pefts_forward(given: dict[str, Any], calls: Calls) -> None:
    model = dense_model()
    model.add_adapter("special", LoraConfig(target_modules=["0", "2"], r=4, **given))
    fill_peft(model, only="special")
    plain, fast = both(model)
    x = torch.randn(3, 24)
    fast(x)
    assert calls.count == 2
    for each in (plain, fast):
        each.set_adapter("special")
    assert torch.equal(fast(x), plain(x))
    assert calls.count == 2


def test_hooks_on_a_factor_still_run(calls: Calls) -> None:
    _, fast = both(dense_model())
    seen: list[torch.Size] = []
    fast.base_model.model[0].lora_A["default"].register_forward_hook(lambda m, a, out: seen.append(out.shape))
    fast(torch.randn(3, 24))
    assert seen == [(3, 4)]
    assert calls.count == 1


def test_another_module_in_the_place_of_dropout_still_runs(calls: Calls) -> None:
    plain, fast = both(dense_model())
    for model in (plain, fast):
        model.base_model.model[0].lora_dropout["default"] = nn.Tanh()
    x = torch.randn(3, 24)
    assert torch.allclose(fast(x), plain(x), atol=1e-6)
    assert calls.count == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    _, fast = both(dense_model(lora_dropout=0.1).train())
    x = torch.randn(6, 24)
    results: list[dict[str, Tensor]] = []
    for run in (fast, lambda x: checkpoint(fast, x, use_reentrant=reentrant)):
        fast.zero_grad()
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_(True)
        run(leaf).square().sum().backward()
        grads = {name: p.grad.clone() for name, p in fast.named_parameters() if p.grad is not None}
        results.append({**grads, "x": leaf.grad})  # pyright: ignore[reportArgumentType]
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_layer_compiles_without_a_break(dropout: float) -> None:
    _, fast = both(dense_model(lora_dropout=dropout).train(mode=bool(dropout)))
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 24)
    out = compiled(x)
    out.sum().backward()
    assert all(t.grad is not None for t in factors(fast).values())
    if not dropout:
        assert torch.allclose(out, fast(x), atol=1e-5)


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_stay_fast_and_stand_alone(copying: Any, calls: Calls) -> None:
    _, fast = both(BERT.peft().eval())
    copied = copying(fast)
    assert calls.during(BERT, copied) == len(lora_layers(copied)) == 4
    expected = BERT.output(fast)
    assert torch.equal(BERT.output(copied), expected)
    with torch.no_grad():
        factors(fast, "B")[next(iter(lora_layers(fast)))].zero_()
    assert torch.equal(BERT.output(copied), expected)


def test_plain_peft_reads_what_a_fast_model_saves(tmp_path: Path) -> None:
    plain, fast = both(GPT2.peft().eval())
    fast.save_pretrained(tmp_path)
    assert plain.state_dict().keys() == fast.state_dict().keys()
    with torch.no_grad():
        read = PeftModel.from_pretrained(GPT2.build(), str(tmp_path)).eval()
        assert torch.equal(GPT2.output(read), GPT2.output(plain))


def test_the_report_says_what_was_left_and_why() -> None:
    report = al.speed_up(WORDS.peft())
    assert report.sped_up == 1
    assert report.left == {"words": "PEFT's Embedding; only its Linear is sped up"}
    assert set(al.speed_up(IMAGES.peft()).left) == {"flat", "long"}
    assert al.speed_up(dense_model(use_dora=True)).left == {"0": "DoraLinear", "2": "DoraLinear"}
    assert set(al.speed_up(dense_model(lora_bias=True)).left.values()) == {"has a bias on B"}
    patched = dense_model()
    patched.base_model.model[0].forward = patched.base_model.model[0].forward
    assert al.speed_up(patched).left == {"0": "its forward is replaced already (by accelerate, for instance)"}
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    inside = get_peft_model(attention, LoraConfig(target_modules=["attention"], r=2))  # pyright: ignore
    assert al.speed_up(inside).sped_up == 0


def test_speed_up_twice_is_speed_up_once_and_restore_leaves_nothing() -> None:
    model = BERT.peft()
    modules = {name: (type(m), dict(vars(m))) for name, m in model.named_modules()}
    state = {key: value.data_ptr() for key, value in model.state_dict().items()}
    assert al.speed_up(model) == al.speed_up(model) == al.SpeedUp(sped_up=4, left={})
    assert {type(layer) for layer in lora_layers(model).values()} == {FastLinear}
    assert al.restore_forward(model) == 4
    assert al.restore_forward(model) == 0
    assert {type(layer) for layer in lora_layers(model).values()} == {Linear}
    after = {name: (type(m), dict(vars(m))) for name, m in model.named_modules()}
    assert {name: kind for name, (kind, _) in after.items()} == {name: kind for name, (kind, _) in modules.items()}
    for name, (_, attributes) in modules.items():
        assert after[name][1].keys() == attributes.keys()
        assert all(after[name][1][key] is value for key, value in attributes.items())
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == state


def test_a_frozen_factor_of_a_fast_model_stays_frozen(calls: Calls) -> None:
    model = al.freeze(BERT.peft(), "A")
    al.speed_up(model)
    with model.disable_adapter():
        assert calls.during(BERT, model) == 0
    BERT.output(model).sum().backward()
    assert calls.count == 4
    assert all(t.grad is None for t in factors(model).values())
    assert all(t.grad is not None for t in factors(model, "B").values())
