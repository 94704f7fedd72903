"""Models whose parameters are divided over processes by `fully_shard` (FSDP2): whole values out of them, and into them.

A frozen factor is a buffer, which FSDP leaves whole in every process; the trained one is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from asymlora.errors import AdapterFileError, AttachError


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the model's parameters, so that all of them are needed to read one whole.

    Args:
        model: Any model.

    Returns:
        True if a parameter is divided, or was and is gathered for a forward pass.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return any(_divides(module) for module in model.modules()) or any(_is_divided(p) for p in model.parameters())


def reshard(model: nn.Module) -> None:
    """Give back what a forward pass has gathered: `fully_shard` keeps the outermost parameters whole after it.

    Until then reading finds the whole copy, and what is written into that copy is lost.

    Args:
        model: Any model.
    """
    for module in filter(_divides, model.modules()):
        module.reshard()  # pyright: ignore[reportCallIssue]


def whole(value: Tensor) -> Tensor:
    """Return all of a tensor; all processes that hold parts of it must call this.

    Args:
        value: A tensor, divided or not.

    Returns:
        A plain tensor, detached; of a plain one the same storage.
    """
    found: Any = value.detach()
    return found.full_tensor() if _is_divided(value) else found


def copy_whole_(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be divided, in place: each process takes its part, nothing is sent.

    Args:
        target: A parameter or buffer.
        value: The same whole values in every process, shape of ``target``.
    """
    with torch.no_grad():
        target.copy_(_divided_like(target, value))


def load_whole_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole model's state dict into a sharded model that carries an adapter.

    ``set_model_state_dict(full_state_dict=True)`` of torch cannot: it looks for the names of the parameters, and the
    state dict of an adapted layer has the base's names.

    Args:
        model: An attached model after `fully_shard`, or a plain one.
        state: What ``get_model_state_dict(full_state_dict=True)`` or ``state_dict()`` of one process gives, the same
            in every process.

    Raises:
        AdapterFileError: A tensor is missing, has no place in the model, or has another shape; all are listed.
    """
    reshard(model)
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} has no place in the model" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model needs {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AdapterFileError(f"The state does not fit this {type(model).__name__}: {shown}.")
    for key, value in own.items():
        copy_whole_(value, state[key])


def by_first_process(action: Callable[[], object]) -> None:
    """Let the first process of the group act while the others wait; if it fails, all of them do.

    Args:
        action: What only one process may do, such as writing a file.

    Raises:
        AdapterFileError: It failed in the first process; there its own error is raised.
    """
    failure: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            action()
        except Exception as error:
            failure = error
    told = [None if failure is None else f"{type(failure).__name__}: {failure}"]
    distributed.broadcast_object_list(told, src=0)
    if failure is not None:
        raise failure
    if told[0] is not None:
        raise AdapterFileError(f"The first process could not write: {told[0]}")


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model that is sharded already: factors added now would train apart, without a word.

    Args:
        model: The base model.

    Raises:
        AttachError: A parameter is divided over processes.
    """
    if is_sharded(model):
        raise AttachError(
            f"The parameters of this {type(model).__name__} are divided over processes (fully_shard), which would not"
            " see factors added now: no process would learn of another's gradient. Attach first, then call fully_shard."
        )


def _divided_like(target: Tensor, value: Tensor) -> Tensor:
    if not _is_divided(target):
        return value.to(target.device)
    from torch.distributed.tensor import distribute_tensor

    held: Any = target
    mesh = held.device_mesh
    # No source: every process has the values, so that none need be sent.
    return distribute_tensor(value.to(mesh.device_type), mesh, held.placements, src_data_rank=None)


def _divides(module: nn.Module) -> bool:
    # In the class, as an adapter layer answers for its base.
    return hasattr(type(module), "reshard") and hasattr(type(module), "unshard")


def _is_divided(value: Tensor) -> bool:
    # By what is called here: DTensor's own module takes a second to import, and most processes never need it.
    return hasattr(value, "full_tensor") and hasattr(value, "placements")
