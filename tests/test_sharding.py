"""The sharding verbs in one process, of plain models and of a group of one; two processes are in test_distributed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import asymlora as al
from asymlora.errors import AdapterFileError, AttachError
from asymlora.sharding import (
    by_first_process,
    copy_whole_,
    is_sharded,
    load_whole_state,
    refuse_sharded,
    reshard,
    whole,
)
from distributed_driver import adapted, batch, build


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _sharded(model: nn.Sequential) -> nn.Sequential:
    return fully_shard(model)  # pyright: ignore[reportReturnType]


def test_a_plain_model_is_not_sharded_and_its_values_are_whole() -> None:
    model = adapted("b_only")
    assert not is_sharded(model)
    refuse_sharded(model)
    reshard(model)
    weight = model[0].lora_B
    assert whole(weight).data_ptr() == weight.data_ptr()
    assert not whole(weight).requires_grad


@pytest.mark.usefixtures("group")
def test_a_group_alone_does_not_make_a_model_sharded() -> None:
    assert not is_sharded(adapted("b_only"))
    assert is_sharded(_sharded(adapted("b_only")))


@pytest.mark.usefixtures("group")
def test_a_forward_pass_leaves_parameters_gathered_until_they_are_given_back() -> None:
    model = _sharded(adapted("b_only"))
    with torch.no_grad():
        model(batch())
    assert not hasattr(model[0].lora_B, "full_tensor")  # why `reshard` is there (torch 2.13)
    assert is_sharded(model)
    reshard(model)
    assert hasattr(model[0].lora_B, "full_tensor")


@pytest.mark.usefixtures("group")
def test_copying_into_a_divided_factor_and_reading_it_are_inverse() -> None:
    model = _sharded(adapted("b_only"))
    value = torch.arange(12.0).reshape(6, 2)
    copy_whole_(model[0].lora_B, value)
    assert torch.equal(whole(model[0].lora_B), value)
    assert type(whole(model[0].lora_B)) is torch.Tensor
    with pytest.raises(RuntimeError):  # why it is not a plain copy_
        model[0].lora_B.data.copy_(value)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("sharded", [False, True])
def test_a_whole_state_loads_over_whatever_the_model_has(sharded: bool) -> None:
    state = adapted("b_only").state_dict()
    model = al.attach(build(), al.AdapterSpec.b_only(rank=2, seed=7))
    model = _sharded(model) if sharded else model
    load_whole_state(model, state)
    assert all(torch.equal(whole(value), state[name]) for name, value in model.state_dict().items())


def test_every_problem_of_a_state_is_said_and_nothing_is_loaded() -> None:
    model = adapted("b_only")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items() if name != "0.bias"}
    state |= {"4.lora_B": torch.zeros(3, 5), "pooler": torch.zeros(1)}
    with pytest.raises(AdapterFileError) as said:
        load_whole_state(model, state)
    assert str(said.value) == (
        "The state does not fit this Sequential: 0.bias is missing; pooler has no place in the model; 4.lora_B is"
        " (3, 5), the model needs (3, 2)."
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("group")
def test_a_divided_model_takes_no_adapter() -> None:
    with pytest.raises(AttachError, match=r"Attach first, then call fully_shard"):
        refuse_sharded(_sharded(build()))


@pytest.mark.usefixtures("group")
def test_the_first_process_raises_its_own_error() -> None:
    done: list[int] = []
    by_first_process(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        by_first_process(lambda: 1 / 0)
