from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import asymlora as al
from asymlora.errors import SpecError
from asymlora.theory.step_peak import StepPeak
from asymlora.train import memory_check
from asymlora.train.memory_check import MemoryLine, Planned, available_bytes, memory_line, refuse_too_large
from cases import MODELS, small_net

BERT = MODELS[0]
STEP = Planned(batch=64, length=32)
LORA = al.AdapterSpec.lora(rank=8, modules_to_save=("classifier",))


def _line(spec: al.AdapterSpec | None = LORA, planned: Planned = STEP, *, available: int | None = None) -> MemoryLine:
    return memory_line(BERT.build(), spec, planned, available=available)


def _total(**given: Any) -> int:
    peak = _line(**given, available=1 << 50).peak
    assert peak is not None
    return peak.total


def _measured(build: Any, spec: al.AdapterSpec, batch: int, length: int) -> int:
    """Peak bytes that torch's CPU allocator held in a second step, everything that stands included."""
    from torch.profiler import ProfilerActivity, profile

    model = al.attach(build(), spec).train()
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-3), foreach=False)
    ids = torch.randint(5, 60, (batch, length), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(batch, dtype=torch.long)}

    def step() -> None:
        optimizer.zero_grad()
        model(**given).loss.backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
    }
    state = sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    memory = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore[reportOptionalMemberAccess]
    live = most = 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return sum(held.values()) + state + most


def test_the_prediction_is_near_what_a_step_takes() -> None:
    predicted = _total(planned=replace(STEP, batch=32))
    measured = _measured(BERT.build, LORA, 32, 32)
    # The tiny model's many small tensors count more here than those of a real one (tests/theory/test_step_peak.py).
    assert 0.8 < predicted / measured < 1.25


def test_the_sentence_names_parts_and_what_is_free() -> None:
    line = _line(available=20 << 30)
    assert re.fullmatch(
        r"A step needs about \d+ MiB of the 20\.0 GiB that is free \(weights \d+ MiB, optimizer \d+ MiB, activations"
        r" and gradients \d+ MiB\)\.",
        line.sentence,
    )
    assert not line.too_large
    assert line.remedies == ()
    refuse_too_large(line)


def test_a_step_that_does_not_fit_is_refused_with_remedies_by_gain_each_true() -> None:
    available = int(0.6 * _total())
    line = _line(available=available)
    assert line.too_large
    peaks = [remedy.peak_bytes for remedy in line.remedies]
    assert peaks == sorted(peaks)
    assert all(remedy.fits == (remedy.peak_bytes <= available) for remedy in line.remedies)
    by_change = {remedy.change.partition("=")[0]: remedy for remedy in line.remedies}
    assert {"train.batch_size", "train.gradient_checkpointing", "adapter.preset"} <= set(by_change)
    size = int(re.findall(r"train.batch_size=(\d+)", by_change["train.batch_size"].change)[0])
    assert _total(planned=replace(STEP, batch=size)) == by_change["train.batch_size"].peak_bytes <= available
    assert _total(planned=replace(STEP, batch=size + 1)) > available
    checkpointed = _total(planned=replace(STEP, checkpointing=True))
    assert by_change["train.gradient_checkpointing"].peak_bytes == checkpointed
    b_only = al.AdapterSpec.b_only(rank=8, modules_to_save=("classifier",))
    assert by_change["adapter.preset"].peak_bytes == _total(spec=b_only) < _total()
    with pytest.raises(SpecError, match=r"A step needs about .*largest gain first: .*\(fits\).*memory_check=false"):
        refuse_too_large(line)


def test_where_nothing_is_enough_alone_it_says_so() -> None:
    line = _line(available=1000)
    assert not any(remedy.fits for remedy in line.remedies)
    assert any(remedy.change.startswith("train.batch_size=1 with 64 times") for remedy in line.remedies)
    with pytest.raises(SpecError, match="None of these is enough alone"):
        refuse_too_large(line)


def test_full_fine_tuning_is_told_to_take_an_adapter() -> None:
    planned = replace(STEP, everything=True)
    full = _total(spec=None, planned=planned)
    assert full > _total(spec=al.AdapterSpec())
    changes = [r.change for r in _line(None, planned, available=full - 1).remedies]
    assert "method=adapter" in changes
    assert "model.base=nf4" not in changes


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (small_net(), al.AdapterSpec.b_only(rank=2, targets="q")),
        (small_net(), al.AdapterSpec.b_only(rank=2, targets="table")),
        (BERT.build(), None),
    ],
    ids=["unknown blocks", "embedding", "head alone"],
)
def test_what_is_not_known_is_said_and_never_refused(model: nn.Module, spec: al.AdapterSpec | None) -> None:
    line = memory_line(model, spec, STEP, available=1)
    assert line.peak is None
    assert "not predicted" in line.sentence
    refuse_too_large(line)


def test_unknown_memory_is_never_refused() -> None:
    line = MemoryLine(peak=StepPeak(1, 2, 3, 4), available=None)
    assert not line.too_large
    assert "an unknown amount" in line.sentence


def test_optimizers_count_by_their_state() -> None:
    totals = {
        name: _total(planned=replace(STEP, optimizer=name, batch=1, length=1)) for name in ("adamw", "rmsprop", "sgd")
    }
    assert totals["adamw"] > totals["rmsprop"] > totals["sgd"]
    momentum = _total(planned=replace(STEP, optimizer="SGD", momentum=True, batch=1, length=1))
    assert momentum == totals["rmsprop"]


def test_a_packed_base_is_counted_alike_whether_the_model_is_packed_yet() -> None:
    from bitsandbytes.nn import Linear4bit

    packed = BERT.build()
    for name, module in list(packed.named_modules()):
        if type(module) is nn.Linear and "encoder" in name:
            narrow = Linear4bit(module.in_features, module.out_features, compute_dtype=torch.float32, quant_type="nf4")
            narrow.load_state_dict(module.state_dict())
            packed.set_submodule(name, narrow.to("cpu"))
    planned = replace(STEP, base="nf4")
    peaks = [memory_line(m, LORA, planned, available=1 << 50).peak for m in (packed, BERT.build())]
    assert peaks[0] is not None
    assert peaks[0] == peaks[1]


def test_a_loaded_model_counts_as_free_and_one_on_meta_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda device: 1 << 30)
    model = BERT.build()
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert memory_line(model, LORA, STEP).available == (1 << 30) + held
    assert memory_line(model.to("meta"), LORA, STEP).available == 1 << 30


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory_check, "_CGROUP", tmp_path / "group")
    assert available_bytes() is None
    _write(tmp_path / "meminfo", "MemTotal: 999 kB\nMemAvailable:   500 kB\n")
    assert available_bytes() == 500 * 1024
    _write(tmp_path / "group/memory.max", "max\n")
    _write(tmp_path / "group/memory.current", "1000\n")
    _write(tmp_path / "group/memory.stat", "anon 5\ninactive_file 300\n")
    assert available_bytes() == 500 * 1024
    _write(tmp_path / "group/memory.max", "3000\n")
    assert available_bytes() == 3000 - 1000 + 300
    _write(tmp_path / "group/memory/memory.limit_in_bytes", "2000\n")
    _write(tmp_path / "group/memory/memory.usage_in_bytes", "1500\n")
    _write(tmp_path / "group/memory/memory.stat", "total_inactive_file 100\n")
    assert available_bytes() == 600
    _write(tmp_path / "group/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert available_bytes() == 2300


def test_this_machine_says_something_plausible() -> None:
    free = available_bytes()
    assert free is None or 1 << 20 < free < 1 << 50
    assert available_bytes("mps") is None
