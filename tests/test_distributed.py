"""Training in two processes over gloo gives what one process gives on the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_driver import PROCESSES, adapted, batch, train

SECONDS = 120
WAYS = (
    "ddp b_only",
    "ddp b_only, attached before the group",
    "ddp lora",
    "ddp b_only, buffers not broadcast",
    "ddp b_only, gradients as views",
    "ddp b_only, shared A",
    "fsdp b_only",
    "fsdp lora",
    "fsdp lora, laid out afterwards",
    "fsdp b_only, shared A",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the process of rank 0 found."""
    folder = tmp_path_factory.mktemp("group")
    driver = Path(__file__).with_name("distributed_driver.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(driver), str(rank), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(PROCESSES)
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * PROCESSES, "\n".join(said)
    return torch.load(folder / "found.pt", weights_only=False)


def _alone(way: str) -> dict[str, Any]:
    preset = "lora" if "lora" in way else "b_only"
    shared: dict[str, Any] = {"shared_A": (("0", "4"),)} if "shared" in way else {}
    return train(adapted(preset, **shared), batch())


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_on_the_whole_batch(found: Any, way: str) -> None:
    ours, alone = found[way], _alone(way)
    gradients = {name.removeprefix("module."): gradient for name, gradient in ours["gradients"].items()}
    assert gradients.keys() == alone["gradients"].keys()
    # Float32: two means of halves against the mean of the whole.
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, alone["gradients"][name], rtol=1e-4, atol=1e-6)
    for name, factor in ours["factors"].items():
        torch.testing.assert_close(factor, alone["factors"][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_A_has_no_gradient_and_stays_to_the_bit(found: Any, way: str) -> None:
    frozen = "lora" not in way
    assert any(name.endswith("lora_A") for name in found[way]["gradients"]) != frozen
    shared: dict[str, Any] = {"shared_A": (("0", "4"),)} if "shared" in way else {}
    start = {f"{s.name}.A": s.A for s in _sites("lora" if not frozen else "b_only", **shared)}
    same = [torch.equal(found[way]["factors"][name], A) for name, A in start.items()]
    assert same == [frozen] * 3


def _sites(preset: str, **fields: Any) -> Any:
    from asymlora import sites

    return sites(adapted(preset, **fields))


def test_sharding_takes_the_parameters_and_leaves_a_frozen_factor_whole(found: Any) -> None:
    assert set(found["sharded"].values()) == {"DTensor"}
    assert any(name.endswith("lora_B") for name in found["sharded"])
    assert set(found["buffers"]) == {f"{site}.lora_A" for site in "024"}
    assert "DTensor" not in found["buffers"].values()


def test_sharding_refuses_a_B_stored_as_its_transpose(found: Any) -> None:
    # Why `make_contiguous` is there: it can go when this no longer holds (seen in torch 2.13).
    assert "contiguous" in found["refused"]


def test_the_gathered_state_has_the_names_of_one_process_and_loads_back(found: Any) -> None:
    state = adapted("b_only").state_dict()
    for gathered in (found["state"]["before"], found["state"]["after"]):
        assert gathered.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in gathered.items())
