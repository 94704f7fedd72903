"""One process of a group of two: runs every way of distributed training on its half of the batch, and writes results.

Run as ``python distributed_driver.py RANK FOLDER``, and again with ``resume`` at the end to go on from what it saved.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as sharded_files
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import asymlora as al
from asymlora.sharding import load_whole_state

PROCESSES, WIDTH = 2, 8
STEPS, SAVED_AT = 20, 10
PRESETS = ("b_only", "lora")


def build() -> nn.Sequential:
    """A stack of three dense layers, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def adapted(preset: str, **fields: Any) -> nn.Sequential:
    """The stack with an adapter whose two factors are all random."""
    model = al.attach(build(), al.AdapterSpec.parse(preset, **{"rank": 2, **fields}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for site in al.sites(model):
            site.B.copy_(torch.randn(site.B.shape, generator=generator))
            site.A.copy_(torch.randn(site.A.shape, generator=generator))
    return model


def batch() -> Tensor:
    """The whole batch; each process takes its half."""
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2))


def train(model: nn.Module, x: Tensor, *, steps: int = 3) -> dict[str, Any]:
    """Train and return the loss and the gradients of the first step and the factors after the last."""
    optimizer = torch.optim.SGD(al.param_groups(model, lr=0.1))
    found: dict[str, Any] = {"losses": []}
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        if step == 0:
            found["gradients"] = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        found["losses"].append(loss.item())
    found["factors"] = {f"{s.name}.{f}": whole(getattr(s, f)) for s in al.sites(model) for f in ("A", "B")}
    return found


HEAD: dict[str, Any] = {"targets": ("0", "2"), "modules_to_save": ("4",)}
"""Fields of an adapter on two layers, with the last one trained in full."""


def with_head(preset: str) -> nn.Sequential:
    """The stack with an adapter on two layers and the last one trained in full."""
    return adapted(preset, **HEAD)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the factors and the head, with decay."""
    return torch.optim.AdamW(al.param_groups(model, lr=0.01, weight_decay=0.1))


def train_long(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, *, steps: int = STEPS) -> list[float]:
    """Fit the sines of the first inputs, and return the loss of the whole batch at each step."""
    losses: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - torch.sin(3 * x[:, :3])).square().mean()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if distributed.is_initialized():
            distributed.all_reduce(total)
            total /= distributed.get_world_size()
        losses.append(total.item())
    return losses


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    """All that is trained and every factor, whole, by the names in the attached model."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name.removeprefix("module."): whole(value)
        for name, value in named.items()
        if value.requires_grad or "lora_" in name
    }


def whole(value: Any) -> Tensor:
    """A copy of a tensor, all of it where it is sharded."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def _in_ddp(model: nn.Module, **options: Any) -> nn.Module:
    return DistributedDataParallel(model, **options)


def _sharded(model: nn.Sequential) -> nn.Sequential:
    for layer in (model[0], model[2]):
        fully_shard(layer)
    return fully_shard(model)  # pyright: ignore[reportReturnType]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))  # pyright: ignore[reportReturnType]


def _loaded(from_model: nn.Module) -> dict[str, Tensor]:
    model = _sharded(al.attach(build(), al.AdapterSpec.b_only(rank=2, seed=9)))
    set_model_state_dict(model, get_model_state_dict(from_model))
    return _state(model)


def _loaded_whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    model = _sharded(al.attach(build(), al.AdapterSpec.b_only(rank=2, seed=9)))
    load_whole_state(model, state)
    return _state(model)


def _refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _sharded_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    values, state = get_state_dict(model, optimizer)
    return {"model": values, "optimizer": state}


def _long_runs(x: Tensor, folder: Path) -> dict[str, Any]:
    """Twenty steps of each way; the sharded ones save half way, and their adapter at the end."""
    found: dict[str, Any] = {}
    for preset in PRESETS:
        model = _in_ddp(with_head(preset))
        losses = train_long(model, adam(model), x)
        found[f"ddp {preset}"] = {"losses": losses, "values": trained_values(model)}
        model = _sharded(with_head(preset))
        optimizer = adam(model)
        losses = train_long(model, optimizer, x, steps=SAVED_AT)
        sharded_files.save(_sharded_checkpoint(model, optimizer), checkpoint_id=folder / f"sharded-{preset}")
        losses += train_long(model, optimizer, x, steps=STEPS - SAVED_AT)
        found[f"fsdp {preset}"] = {"losses": losses, "values": trained_values(model)}
        found[f"kinds {preset}"] = {n: type(p).__name__ for n, p in model.named_parameters()}
        al.save_adapter(model, folder / f"adapter-{preset}")
    return found


def _files(x: Tensor, folder: Path) -> dict[str, Any]:
    """Adapter folders out of a sharded model and into one."""
    found: dict[str, Any] = {}
    model = _sharded(with_head("b_only"))
    al.swap_adapter(model, folder / "adapter-b_only")
    found["swapped"] = trained_values(model)
    with torch.no_grad():
        model(x)  # leaves the outermost parameters gathered
    al.save_adapter(model, folder / "after-a-pass")
    al.save_adapter(model, folder / "compressed", compress=True)
    model(x).sum().backward()
    other = _sharded(with_head("b_only"))
    with torch.no_grad():
        other(x)
    al.swap_adapter(other, folder / "adapter-b_only")
    found["swapped after a pass"] = trained_values(other)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if distributed.get_rank() == 0:  # as the Trainer does: all gather, one saves
        al.save_adapter(model, folder / "by-one", state=state)  # pyright: ignore[reportArgumentType]
    blocked = folder / "blocked"
    blocked.touch(exist_ok=True)
    found["unwritable"] = _refusal(lambda: al.save_adapter(model, blocked / "adapter"))
    told: list[Any] = [None] * PROCESSES
    distributed.all_gather_object(told, found["unwritable"])
    found["unwritable"] = told
    found["attached late"] = _refusal(lambda: al.attach(_sharded(build()), al.AdapterSpec.b_only(rank=2)))
    wrong = {name: value for name, value in _state(model).items() if name != "0.lora_B"}
    wrong |= {"0.lora_A": torch.zeros(1), "pooler": torch.zeros(1)}
    found["misfit"] = _refusal(lambda: load_whole_state(model, wrong))
    return found


def _resumed(x: Tensor, folder: Path) -> dict[str, Any]:
    """Go on from the sharded checkpoints, which other processes wrote."""
    found: dict[str, Any] = {}
    for preset in PRESETS:
        model = _sharded(al.attach(build(), al.AdapterSpec.parse(preset, rank=2, seed=9, **HEAD)))
        optimizer = adam(model)
        held = _sharded_checkpoint(model, optimizer)
        sharded_files.load(held, checkpoint_id=folder / f"sharded-{preset}")
        set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
        losses = train_long(model, optimizer, x, steps=STEPS - SAVED_AT)
        found[preset] = {"losses": losses, "values": trained_values(model)}
    return found


def _ways(early: dict[str, nn.Sequential]) -> dict[str, Callable[[], nn.Module]]:
    shared: dict[str, Any] = {"shared_A": (("0", "4"),)}
    return {
        "ddp b_only": lambda: _in_ddp(adapted("b_only")),
        "ddp b_only, attached before the group": lambda: _in_ddp(early["b_only"]),
        "ddp lora": lambda: _in_ddp(adapted("lora")),
        "ddp b_only, buffers not broadcast": lambda: _in_ddp(adapted("b_only"), forward_sync_buffers=False),
        "ddp b_only, gradients as views": lambda: _in_ddp(adapted("b_only"), gradient_as_bucket_view=True),
        "ddp b_only, shared A": lambda: _in_ddp(adapted("b_only", **shared)),
        "fsdp b_only": lambda: _sharded(adapted("b_only")),
        "fsdp lora": lambda: _sharded(adapted("lora")),
        "fsdp lora, laid out afterwards": lambda: _sharded(al.make_contiguous(early["lora"])),
        "fsdp b_only, shared A": lambda: _sharded(adapted("b_only", **shared)),
    }


def _everything(x: Tensor, folder: Path, early: dict[str, nn.Sequential]) -> dict[str, Any]:
    found: dict[str, Any] = {name: train(make(), x) for name, make in _ways(early).items()}
    model = _sharded(adapted("b_only"))
    before = _state(model)
    found["state"] = {"before": before, "after": _loaded(model), "after, from whole": _loaded_whole(before)}
    found["sharded"] = {n: type(p).__name__ for n, p in model.named_parameters()}
    found["buffers"] = {n: type(b).__name__ for n, b in model.named_buffers()}
    found["refused"] = _refusal(lambda: _sharded(early["lora as it is"]))
    found["long"] = _long_runs(x, folder)
    found["files"] = _files(x, folder)
    return found


def main(rank: int, folder: Path, *, resume: bool = False) -> None:
    """Run everything, or go on with it; the process of rank 0 writes what it found."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    early = {name: adapted(name.split()[0]) for name in ("b_only", "lora", "lora as it is")}
    file = folder / ("group-resumed" if resume else "group")
    distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=PROCESSES, device_id=None
    )
    x = batch().chunk(PROCESSES)[rank]
    found = _resumed(x, folder) if resume else _everything(x, folder, early)
    if rank == 0:
        torch.save(found, folder / ("resumed.pt" if resume else "found.pt"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), resume=sys.argv[3:] == ["resume"])
