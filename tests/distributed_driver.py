"""One process of a group of two: runs every way of distributed training on its half of the batch, and writes results.

Run as ``python distributed_driver.py RANK FOLDER``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import asymlora as al

PROCESSES, WIDTH = 2, 8


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


def _refusal(model: nn.Sequential) -> str:
    try:
        _sharded(model)
    except Exception as error:
        return str(error)
    return ""


def main(rank: int, folder: Path) -> None:
    """Run everything; the process of rank 0 writes what it found."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    early = {name: adapted(name.split()[0]) for name in ("b_only", "lora", "lora as it is")}
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=PROCESSES, device_id=None
    )
    x = batch().chunk(PROCESSES)[rank]
    shared: dict[str, Any] = {"shared_A": (("0", "4"),)}
    runs: dict[str, Callable[[], nn.Module]] = {
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
    found = {name: train(make(), x) for name, make in runs.items()}
    model = _sharded(adapted("b_only"))
    found["state"] = {"before": _state(model), "after": _loaded(model)}
    found["sharded"] = {n: type(p).__name__ for n, p in model.named_parameters()}
    found["buffers"] = {n: type(b).__name__ for n, b in model.named_buffers()}
    found["refused"] = _refusal(early["lora as it is"])
    if rank == 0:
        torch.save(found, folder / "found.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
