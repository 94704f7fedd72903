"""Any optimizer of torch by its name, and the schedules of the Trainer that need no further numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asymlora.errors import SpecError, UnknownKeyError, UnknownNameError, nearest

if TYPE_CHECKING:  # torch is loaded when an optimizer is asked for, so that a recipe can be read without it
    import torch

SCHEDULES = ("linear", "cosine", "constant", "polynomial", "inverse_sqrt")
"""Courses of the rate after the warm-up that need no further number; ``constant`` has the warm-up too."""

_REFUSED = {
    "lbfgs": "needs a closure that runs the model several times a step, and the Trainer gives none",
    "sparseadam": "takes sparse gradients only, and no factor has one",
}
_FUSED = ("Adam", "AdamW", "SGD")
_FROM_GROUPS = ("lr", "weight_decay")
_NOT_OFFERED = ("params", "maximize", "differentiable", *_FROM_GROUPS)


def scheduler_type(schedule: str) -> str:
    """Return the Trainer's name of a schedule.

    Args:
        schedule: One of `SCHEDULES`.

    Returns:
        The name for ``lr_scheduler_type``.

    Raises:
        UnknownNameError: There is no such schedule; the names are listed.

    Example:
        >>> scheduler_type("constant"), scheduler_type("cosine")
        ('constant_with_warmup', 'cosine')
    """
    if schedule not in SCHEDULES:
        raise UnknownNameError(
            f"No schedule is called {schedule!r}.{nearest(schedule, SCHEDULES)} Known: {', '.join(SCHEDULES)}."
        )
    # The Trainer's own "constant" has no warm-up.
    return "constant_with_warmup" if schedule == "constant" else schedule


def optimizer_names() -> tuple[str, ...]:
    """Return the names of the optimizers that can be asked for, sorted.

    Returns:
        Lower-case names of torch's classes.

    Example:
        >>> "adamw" in optimizer_names(), "lbfgs" in optimizer_names()
        (True, False)
    """
    return tuple(sorted(set(_classes()) - set(_REFUSED)))


def _classes() -> dict[str, type[torch.optim.Optimizer]]:
    from torch import optim

    known = {name.lower(): found for name, found in vars(optim).items() if isinstance(found, type)}
    return {k: c for k, c in known.items() if issubclass(c, optim.Optimizer) and c is not optim.Optimizer}


def optimizer_class(name: str, options: Mapping[str, Any] | None = None) -> type[torch.optim.Optimizer]:
    """Return torch's class for a name; what is wrong with name or options is told before a model is there.

    Args:
        name: Of a class of `torch.optim`, in any case.
        options: Its keyword arguments beside learning rate and weight decay.

    Returns:
        The class.

    Raises:
        UnknownNameError: There is no such class; the names are listed.
        SpecError: The class cannot be used here, or an option has its place elsewhere.
        UnknownKeyError: The class has no such option; those that it has are listed.
    """
    classes, key = _classes(), name.lower()
    if key in _REFUSED:
        raise SpecError(f"train.optimizer={name!r} {_REFUSED[key]}. Take one of {', '.join(optimizer_names())}.")
    if key not in classes:
        raise UnknownNameError(
            f"torch has no optimizer {name!r}.{nearest(key, optimizer_names())} Known: {', '.join(optimizer_names())}."
        )
    given, allowed = dict(options or {}), _options_of(classes[key])
    if own := [option for option in given if option in _FROM_GROUPS]:
        raise SpecError(
            f"train.optimizer_options holds {', '.join(own)}, which each group of parameters has for itself. Set"
            " train.lr (lr_A, lr_B, lr_head) and train.weight_decay."
        )
    if unknown := [option for option in given if option not in allowed]:
        raise UnknownKeyError(
            f"{classes[key].__name__} has no option {', '.join(map(repr, unknown))}."
            f"{nearest(unknown[0], allowed)} Options: {', '.join(allowed)}."
        )
    return classes[key]


def _options_of(chosen: type) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(chosen).parameters if name not in _NOT_OFFERED)


def build_optimizer(
    name: str, groups: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Build an optimizer over named groups.

    Args:
        name: Of a class of `torch.optim`, in any case.
        groups: As `asymlora.param_groups` gives them: each with ``params``, ``lr`` and ``weight_decay``.
        options: Keyword arguments of the class beside these; a list (as YAML has it) becomes a tuple.

    Returns:
        The optimizer; the groups given are not changed.

    Raises:
        UnknownNameError: There is no such class.
        UnknownKeyError: The class has no such option.
        SpecError: The class cannot be used here, an option has a value that it refuses, a group lacks its rate or its
            decay, or a parameter is of a form that it does not take.

    Example:
        >>> import torch
        >>> groups = [{"name": "B", "params": [torch.nn.Parameter(torch.zeros(2, 2))], "lr": 0.1, "weight_decay": 0.0}]
        >>> build_optimizer("AdamW", groups, {"betas": [0.9, 0.98]}).param_groups[0]["betas"]
        (0.9, 0.98)
    """
    chosen: Any = optimizer_class(name, options)
    _refuse_groups(chosen, groups)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    try:
        return chosen([dict(group) for group in groups], **{**_fused(chosen, groups, given), **given})
    except (TypeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise SpecError(
            f"{chosen.__name__} refuses train.optimizer_options={dict(options or {})!r} ({said}). Correct the option,"
            " or leave it out for torch's default."
        ) from error


def _fused(chosen: type, groups: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    # One call for all factors where torch has it (as the Trainer's own default is): hundreds of small ones cost most of
    # a step in Python. Not for a parameter that is divided over processes.
    if chosen.__name__ not in _FUSED or {"foreach", "capturable", "differentiable"} & set(given):
        return {}
    parameters = [parameter for group in groups for parameter in group["params"]]
    plain = all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point() and not hasattr(p, "full_tensor") for p in parameters
    )
    return {"fused": True} if plain else {}


def _refuse_groups(chosen: type, groups: Sequence[Mapping[str, Any]]) -> None:
    for group in groups:
        # torch would put a default of its own there: AdamW decays by 0.01, Muon by 0.1.
        if missing := [key for key in _FROM_GROUPS if key not in group]:
            raise SpecError(f"The group {group.get('name')!r} has no {' and no '.join(missing)}. Give each group both.")
    decays = "weight_decay" in inspect.signature(chosen).parameters
    decayed = [str(group.get("name")) for group in groups if group["weight_decay"]]
    if decayed and not decays:
        raise SpecError(
            f"{chosen.__name__} has no weight decay, and it is above 0 for {', '.join(decayed)}. Set"
            " train.weight_decay to 0, or take another optimizer."
        )
    if chosen.__name__ == "Muon":
        _refuse_vectors(groups)


def _refuse_vectors(groups: Sequence[Mapping[str, Any]]) -> None:
    shapes = {str(g.get("name")): [tuple(p.shape) for p in g["params"] if p.dim() != 2] for g in groups}
    shown = [f"{name} has {len(found)} (first {found[0]})" for name, found in shapes.items() if found]
    if shown:
        raise SpecError(
            f"Muon takes matrices only, and not every trained parameter is one: {'; '.join(shown)}. Leave heads with"
            " biases and norms untrained (adapter.modules_to_save), or take another optimizer, for instance adamw."
        )
