"""Factor labels to named parameter groups. Any optimizer takes them; none is built here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from asymlora.errors import SpecError
from asymlora.site_view import attached, saved_modules, sites

Label = Literal["A", "B", "head", "norm", "other"]
_LABELS: tuple[Label, ...] = ("A", "B", "head", "norm", "other")


def label_parameters(model: nn.Module) -> dict[Label, list[nn.Parameter]]:
    """Sort the trained parameters of an attached model by what they are, by object and never by elimination.

    Args:
        model: An attached model, or a wrapper around it.

    Returns:
        ``A`` and ``B``: trained factors; ``norm``: the vectors (gains and biases) of modules trained in full;
        ``head``: their matrices; ``other``: what the caller made trainable besides. In the model's order.
    """
    root, _ = attached(model)
    by_id: dict[int, Label] = {}
    for site in sites(root):
        by_id |= {id(site.A): "A", id(site.B): "B"}
    for module in saved_modules(root).values():
        by_id |= {id(p): "norm" if p.dim() < 2 else "head" for p in module.parameters()}
    labelled: dict[Label, list[nn.Parameter]] = {label: [] for label in _LABELS}
    for parameter in root.parameters():
        if parameter.requires_grad:
            labelled[by_id.get(id(parameter), "other")].append(parameter)
    return labelled


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    lr_A: float | None = None,
    lr_B: float | None = None,
    lr_head: float | None = None,
    weight_decay: float | Mapping[Label, float] = 0.0,
) -> list[dict[str, Any]]:
    """Return named parameter groups with a learning rate and a weight decay each; none is empty.

    Args:
        model: An attached model, or a wrapper around it.
        lr: Learning rate per step. A factor gets it times its spec's ``lr_ratio`` unless given its own below.
        lr_A: Absolute rate of ``A``.
        lr_B: Absolute rate of ``B``.
        lr_head: Absolute rate of heads and norms; default ``lr``.
        weight_decay: One number for factors and heads (norms and biases get 0), or one for each label.

    Returns:
        Groups with the keys ``name``, ``params``, ``lr``, ``weight_decay``.

    Raises:
        SpecError: A rate is not positive, a decay is negative, a label is unknown, or a rate is given for a factor that
            is not trained.

    Example:
        >>> from asymlora import AdapterSpec, attach
        >>> model = attach(nn.Sequential(nn.Linear(6, 4)), AdapterSpec.lora(rank=2))
        >>> [(g["name"], g["lr"]) for g in param_groups(model, lr=1e-4, lr_B=1e-3)]
        [('A', 0.0001), ('B', 0.001)]

    Source:
        Hayou, Ghosh, Yu 2024, "LoRA+": a larger rate for B. PEFT's ``create_loraplus_optimizer`` takes a ratio only,
        ignores ``weight_decay`` and gives a head's weight the rate of A and its bias the rate of B (measured).
    """
    _, record = attached(model)
    labelled = label_parameters(model)
    rates: dict[Label, float] = {
        "A": lr_A if lr_A is not None else lr * record.spec.A.lr_ratio,
        "B": lr_B if lr_B is not None else lr * record.spec.B.lr_ratio,
        "head": lr_head if lr_head is not None else lr,
        "norm": lr_head if lr_head is not None else lr,
        "other": lr,
    }
    _refuse_bad_rates(rates, {"A": lr_A, "B": lr_B}, labelled)
    if lr_head is not None and not (labelled["head"] or labelled["norm"]):
        raise SpecError(f"lr_head={lr_head} is given, but nothing is trained in full beside the factors; leave it out.")
    decays = _decays(weight_decay)
    return [
        {"name": label, "params": labelled[label], "lr": rates[label], "weight_decay": decays[label]}
        for label in _LABELS
        if labelled[label]
    ]


def _refuse_bad_rates(
    rates: Mapping[Label, float],
    absolute: Mapping[Label, float | None],
    labelled: Mapping[Label, list[nn.Parameter]],
) -> None:
    wrong = {label: rate for label, rate in rates.items() if not 0 < rate < math.inf}
    problems = [f"the rate of {label} is {rate}; it must be above 0" for label, rate in wrong.items()]
    problems += [
        f"lr_{label}={rate} is given, but {label} is frozen; leave it out or train {label}"
        for label, rate in absolute.items()
        if rate is not None and not labelled[label]
    ]
    if problems:
        raise SpecError("; ".join(problems) + ".")


def _decays(weight_decay: float | Mapping[Label, float]) -> dict[Label, float]:
    if isinstance(weight_decay, Mapping):
        unknown = [str(label) for label in weight_decay if label not in _LABELS]
        decays: dict[Label, float] = {**dict.fromkeys(_LABELS, 0.0), **weight_decay}
    else:
        unknown = []
        decays = {**dict.fromkeys(_LABELS, float(weight_decay)), "norm": 0.0}
    if unknown or not all(0 <= decay < math.inf for decay in decays.values()):
        raise SpecError(
            f"weight_decay={weight_decay!r}: needed is a number of at least 0, or one for some of {', '.join(_LABELS)}."
        )
    return decays
