from __future__ import annotations

import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

import asymlora as al
import asymlora.cpu_kernel
import asymlora.cpu_product
from asymlora.cpu_kernel import kernel
from asymlora.errors import SpecError
from asymlora.theory.block_cost import Batch, attention_kernel
from asymlora.theory.model_shapes import ModelShape, read_model
from asymlora.theory.step_peak import Training, base_bytes, largest_fit, largest_rank, step_peak, walk
from asymlora.theory.tape import Storage, Tape

SIZE, LENGTH, VOCABULARY = 4, 48, 211
WITHIN = 0.05


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and remembers the most.

    Args:
        held: Tensors that are there before.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}
        for tensor in held:
            self._see(tensor)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result


@pytest.fixture(autouse=True)
def _counted_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel leaves products under a dispatch mode to torch; this one only looks on, and C makes no tensor.
    for module in (asymlora.cpu_kernel, asymlora.cpu_product):
        monkeypatch.setattr(module, "runs_as_called", lambda: True)


def _shape(**options: Any) -> dict[str, Any]:
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    return {**shape, **options}


QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _build(name: str, attention: str) -> Any:
    torch.manual_seed(0)
    text: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": attention}
    if name == "BERT":
        return BertForSequenceClassification(BertConfig(**_shape(**QUIET), **text))
    if name == "RoBERTa":
        return RobertaForSequenceClassification(RobertaConfig(**_shape(**QUIET), **text))
    if name == "Llama":
        return LlamaForCausalLM(LlamaConfig(**_shape(num_key_value_heads=2), **text, use_cache=False))
    if name == "GPT-2":
        sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 192, "use_cache": False}
        quiet: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**sizes, **quiet, **text))
    images: dict[str, Any] = {"image_size": 28, "patch_size": 4, "attn_implementation": attention}
    return ViTForImageClassification(ViTConfig(**_shape(**QUIET), **images))


def _inputs(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    if name == "ViT":
        return {"pixel_values": torch.randn(SIZE, 3, 28, 28, dtype=dtype), "labels": torch.randint(0, 2, (SIZE,))}
    ids = torch.randint(5, VOCABULARY, (SIZE, LENGTH))
    return {"input_ids": ids, "labels": ids if name in ("Llama", "GPT-2") else torch.randint(0, 2, (SIZE,))}


def _length(name: str) -> int:
    return 50 if name == "ViT" else LENGTH  # 7 x 7 patches and one token for the class


def _measured_peak(model: nn.Module, inputs: dict[str, Tensor], training: Training) -> int:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained) if training.optimizer == "adamw" else torch.optim.SGD(trained, lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    step()  # the optimizer makes its state
    optimizer.zero_grad()
    states = [v for held in optimizer.state.values() for v in held.values() if isinstance(v, Tensor)]
    with LiveBytes((*model.parameters(), *model.buffers(), *states)) as live:
        step()
    return live.peak


def _batch(model: Any, name: str, **options: Any) -> Batch:
    attention = attention_kernel(model.config._attn_implementation)
    options = {"size": SIZE, "length": _length(name), "input_grad": False, "kernel": kernel() is not None, **options}
    return Batch(attention=attention, **options)


NAMES = ("BERT", "RoBERTa", "Llama", "GPT-2", "ViT")
ADAMW = Training()
PRESETS = (al.AdapterSpec.lora, al.AdapterSpec.b_only, al.AdapterSpec.a_only)


def _compare(base: Any, name: str, spec: al.AdapterSpec, training: Training = ADAMW, **options: Any) -> None:
    predicted = step_peak(read_model(base, spec), _batch(base, name, **options), training).total
    model = al.attach(base, spec).train()
    measured = _measured_peak(model, _inputs(name, model.dtype), training)
    assert predicted == pytest.approx(measured, rel=WITHIN)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_peak_of_a_real_step_is_predicted(name: str, preset: Any) -> None:
    _compare(_build(name, "sdpa"), name, preset(rank=8))


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_with_written_out_attention_is_predicted(name: str) -> None:
    _compare(_build(name, "eager"), name, al.AdapterSpec.b_only(rank=8))


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_with_dropout_is_predicted(name: str) -> None:
    _compare(_build(name, "sdpa"), name, al.AdapterSpec.b_only(rank=8, dropout=0.1))


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_over_a_bfloat16_base_is_predicted(name: str) -> None:
    base = _build(name, "sdpa").to(torch.bfloat16)
    _compare(base, name, al.AdapterSpec.lora(rank=8, dropout=0.1), Training(optimizer="sgd"), itemsize=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_of_a_checkpointed_step_is_predicted(name: str) -> None:
    base, spec, training = _build(name, "eager"), al.AdapterSpec.lora(rank=8), Training(checkpointing=True)
    shape = read_model(base, spec)
    model = al.attach(base, spec).train()
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:  # transformers before 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    predicted = step_peak(shape, _batch(base, name), training).total
    assert predicted == pytest.approx(_measured_peak(model, _inputs(name), training), rel=WITHIN)
    assert predicted < 0.7 * step_peak(shape, _batch(base, name)).total


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_of_full_fine_tuning_is_predicted(name: str) -> None:
    model = _build(name, "sdpa").train()
    predicted = step_peak(read_model(model, full=True), _batch(model, name, input_grad=True)).total
    assert predicted == pytest.approx(_measured_peak(model, _inputs(name), Training()), rel=WITHIN)


def test_the_parts_of_the_peak_are_real_objects() -> None:
    base, spec = _build("BERT", "sdpa"), al.AdapterSpec.b_only(rank=8, modules_to_save=("classifier",))
    held = sum(t.nbytes for t in (*base.parameters(), *base.buffers()))
    shape = read_model(base, spec)
    peak = step_peak(shape, _batch(base, "BERT"))
    head = sum(p.nbytes for p in base.classifier.parameters())
    assert base_bytes(shape) == held == peak.base + head
    model = al.attach(base, spec)
    factors = [t for site in al.sites(model) for t in (site.A, site.B)]
    assert peak.factors == sum(t.nbytes for t in factors) + head
    assert peak.total == sum(peak)
    assert peak.optimizer == sum(2 * p.nbytes + 4 for p in model.parameters() if p.requires_grad)


# Optional: it starts a process of its own, so that no other test's memory counts.
@pytest.mark.optional
def test_resident_memory_is_reported_beside_the_prediction(record_property: Any) -> None:
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, env=_one_thread())
    figures = {key: int(value) for key, value in (line.split() for line in run.stdout.splitlines())}
    for key, value in figures.items():
        record_property(key, value)
    print("", *(f"{key}: {value:,} bytes" for key, value in figures.items()), sep="\n")
    assert figures["predicted"] == pytest.approx(figures["live"], rel=WITHIN)
    # The process needs what is live, and besides it buffers of the products and the rounding of the allocator.
    assert 0.9 < figures["resident"] / figures["live"] < 2


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}


def _report_resident() -> None:
    """Print the prediction for a larger model, what a step's tensors take, and by how much the process grows."""
    _small = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}
    _step_once(_small, size=2)  # libraries load what they load
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the highest resident memory starts anew
    before = _resident("VmRSS")
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    predicted, live = _step_once(shape, size=16)
    print(f"predicted {predicted}\nlive {live}\nresident {_resident('VmHWM') - before}")


def _step_once(sizes: dict[str, int], *, size: int) -> tuple[int, int]:
    torch.manual_seed(0)
    config = BertConfig(**_shape(**QUIET, **sizes), vocab_size=VOCABULARY, attn_implementation="sdpa")
    base, spec = BertForSequenceClassification(config), al.AdapterSpec.b_only(rank=8)
    batch = Batch(size=size, length=128, input_grad=False, kernel=kernel() is not None)
    predicted = step_peak(read_model(base, spec), batch).total
    ids = torch.randint(5, VOCABULARY, (size, 128))
    model = al.attach(base, spec).train()
    return predicted, _measured_peak(model, {"input_ids": ids, "labels": ids[:, 0] % 2}, ADAMW)


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


# What fits -----------------------------------------------------------------------------------------------------------


def _llama_at(rank: int) -> ModelShape:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**_shape(), vocab_size=VOCABULARY, use_cache=False))
    return read_model(model, al.AdapterSpec.b_only(rank=rank))


def test_the_largest_fit_fits_and_one_more_does_not() -> None:
    batch = Batch(size=1, length=LENGTH, input_grad=False)
    memory = 40 * 10**6
    fits = largest_fit(memory, _llama_at, ranks=(1, 8, 64), batch=batch)
    assert [fit.rank for fit in fits] == [1, 8, 64]
    assert fits[0].size >= fits[1].size > fits[2].size
    for fit in fits:
        shape = _llama_at(fit.rank)
        assert fit.peak_bytes == step_peak(shape, replace(batch, size=fit.size)).total <= memory
        assert step_peak(shape, replace(batch, size=fit.size + 1)).total > memory
    assert largest_fit(10**6, _llama_at, ranks=(1, 8), batch=batch) == ()
    rank = largest_rank(memory, _llama_at, most=64, batch=replace(batch, size=fits[1].size))
    assert 8 <= rank < 64
    assert step_peak(_llama_at(rank + 1), replace(batch, size=fits[1].size)).total > memory
    assert largest_rank(10**6, _llama_at, most=64, batch=batch) == 0


def test_a_quantised_base_packs_the_trunk_and_leaves_the_rest() -> None:
    shape = _llama_at(8)
    layers = 4 * (4 * 64 * 64 + 3 * 64 * 192)
    assert sum(values for values, _ in shape.matrix_values) == layers
    kept = shape.base_values - layers
    packed = base_bytes(shape, "nf4") - 4 * kept - shape.buffer_bytes
    assert 0.5 * layers < packed < 0.5 * layers + 28 * 1400  # each matrix has its codes, 1.1 kB, and its scales
    plain, quantised = (
        step_peak(shape, Batch(size=8, length=LENGTH), Training(base=dtype)).step for dtype in (None, "nf4")
    )
    assert quantised - plain == 4 * 64 * 192  # the largest matrix, unpacked
    assert base_bytes(shape, "bfloat16") == 2 * shape.base_values + shape.buffer_bytes
    assert base_bytes(shape, "int8") == layers + 4 * 4 * (5 * 64 + 2 * 192) + 4 * kept + shape.buffer_bytes


def test_questions_without_an_answer_are_refused() -> None:
    batch = Batch(size=1, length=4)
    with pytest.raises(SpecError, match="no block of a known kind"):
        step_peak(read_model(nn.Linear(3, 3), full=True), batch)
    with pytest.raises(SpecError, match="Nothing is trained"):
        step_peak(read_model(_build("BERT", "sdpa")), batch)
    with pytest.raises(SpecError, match="memory=0"):
        largest_fit(0, _llama_at, ranks=(1,), batch=batch)


# The walk ------------------------------------------------------------------------------------------------------------


def test_a_gradient_that_a_sum_hands_on_takes_no_memory_of_its_own() -> None:
    tape = Tape()
    x = tape.given("x", 100, 4)
    y = tape.op("y", (x,), kept=(x,))
    tape.add("sum", y, x)
    # x, the gradient of the sum (also that of y and a part of x's), and the other part of x's.
    assert walk(tape.steps, given=(x,)) == 3 * 400


def test_the_gradients_of_parts_are_put_together_once() -> None:
    tape = Tape()
    joint = tape.given("joint", 300, 4)
    outs = [tape.op(f"{name} out", (tape.view(name, joint, 100),)) for name in "qkv"]
    tape.add("sum", tape.add("first sum", outs[0], outs[1]), outs[2])
    # The gradients of the three parts, and one of joint; one for each part would make 1000 entries.
    assert walk(tape.steps, given=(joint,)) == 4 * (300 + 300)


def test_nothing_is_walked_back_where_nothing_is_trained() -> None:
    tape = Tape()
    x = Storage("x", 100, 4, grad=False)
    tape.op("z", (tape.op("y", (x,)),))
    assert walk(tape.steps, given=(x,)) == 2 * 400  # y and z; x is gone by then


if __name__ == "__main__":
    _report_resident()
