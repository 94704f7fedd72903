"""Factor labels to named parameter groups. Any optimizer takes them; none is built here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from asymlora.errors import SpecError
from asymlora.peft_sites import lora_layers, parameter_roles
from asymlora.site_view import attached, find_attached, saved_modules, sites

Label = Literal["A", "B", "head", "norm", "other", "embedding_A", "embedding_B"]
_LABELS: tuple[Label, ...] = ("A", "B", "head", "norm", "other", "embedding_A", "embedding_B")


def label_parameters(model: nn.Module) -> dict[Label, list[nn.Parameter]]:
    """Sort the trained parameters of an adapted model by what they are, by object and never by elimination.

    Args:
        model: An attached model, a `PeftModel` or any model with PEFT's LoRA layers in it, or a wrapper around one.

    Returns:
        ``A`` and ``B``: trained factors of layers that multiply; ``embedding_A`` and ``embedding_B``: those of
        embeddings; ``norm``: the vectors (gains, biases, DoRA's magnitudes) of what is trained in full; ``head``: its
        matrices; ``other``: what the caller made trainable besides. In the model's order.

    Raises:
        NotAttachedError: The model carries no adapter.
    """
    if find_attached(model) is None and lora_layers(model):
        root, by_id = model, _peft_labels(model)
    else:
        root, by_id = attached(model)[0], _own_labels(model)
    labelled: dict[Label, list[nn.Parameter]] = {label: [] for label in _LABELS}
    for parameter in root.parameters():
        if parameter.requires_grad:
            labelled[by_id.get(id(parameter), "other")].append(parameter)
    return labelled


def _own_labels(model: nn.Module) -> dict[int, Label]:
    by_id: dict[int, Label] = {}
    for site in sites(model):
        of_embedding = site.kind == "embedding"
        by_id |= {
            id(site.A): "embedding_A" if of_embedding else "A",
            id(site.B): "embedding_B" if of_embedding else "B",
        }
    for module in saved_modules(model).values():
        by_id |= {id(p): _label_in_full(p) for p in module.parameters()}
    return by_id


def _peft_labels(model: nn.Module) -> dict[int, Label]:
    by_id: dict[int, Label] = {}
    for role, parameter in parameter_roles(model):
        if role == "trained_in_full":
            by_id[id(parameter)] = _label_in_full(parameter)
        else:
            by_id[id(parameter)] = "norm" if role == "vector" else role
    return by_id


def _label_in_full(parameter: nn.Parameter) -> Label:
    return "norm" if parameter.dim() < 2 else "head"


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    lr_A: float | None = None,
    lr_B: float | None = None,
    lr_head: float | None = None,
    lr_embedding: float | None = None,
    weight_decay: float | Mapping[Label, float] = 0.0,
) -> list[dict[str, Any]]:
    """Return named parameter groups with a learning rate and a weight decay each; none is empty.

    Args:
        model: An attached model, a `PeftModel` or any model with PEFT's LoRA layers in it, or a wrapper around one.
        lr: Learning rate per step. A factor gets it times its spec's ``lr_ratio`` (1 on a PEFT model) unless given its
            own below.
        lr_A: Absolute rate of ``A``.
        lr_B: Absolute rate of ``B``.
        lr_head: Absolute rate of heads and norms; default ``lr``.
        lr_embedding: Absolute rate of both factors of embeddings; default: the rates of ``A`` and ``B``.
        weight_decay: One number for factors and heads (norms and biases get 0), or one for each label.

    Returns:
        Groups with the keys ``name``, ``params``, ``lr``, ``weight_decay``.

    Raises:
        SpecError: A rate is not positive, a decay is negative, a label is unknown, or a rate is given for a factor that
            is not trained.
        NotAttachedError: The model carries no adapter.

    Example:
        >>> from asymlora import AdapterSpec, attach
        >>> model = attach(nn.Sequential(nn.Linear(6, 4)), AdapterSpec.lora(rank=2))
        >>> {group["name"]: group["lr"] for group in param_groups(model, lr=1e-4, lr_B=1e-3)}
        {'A': 0.0001, 'B': 0.001}

    Source:
        Hayou, Ghosh, Yu 2024, "LoRA+": a larger rate for B. PEFT's ``create_loraplus_optimizer`` takes a ratio only,
        ignores ``weight_decay`` and gives a head's weight the rate of A and its bias the rate of B (measured).
    """
    labelled = label_parameters(model)
    found = find_attached(model)
    ratio_A, ratio_B = (found[1].spec.A.lr_ratio, found[1].spec.B.lr_ratio) if found else (1.0, 1.0)
    rate_A, rate_B = _first(lr_A, lr * ratio_A), _first(lr_B, lr * ratio_B)
    rates: dict[Label, float] = {
        "A": rate_A,
        "B": rate_B,
        "head": _first(lr_head, lr),
        "norm": _first(lr_head, lr),
        "other": lr,
        "embedding_A": _first(lr_embedding, rate_A),
        "embedding_B": _first(lr_embedding, rate_B),
    }
    given = {"A": lr_A, "B": lr_B, "head": lr_head, "embedding": lr_embedding}
    _refuse_bad_rates(rates, given, labelled)
    decays = _decays(weight_decay)
    return [
        {"name": label, "params": labelled[label], "lr": rates[label], "weight_decay": decays[label]}
        for label in _LABELS
        if labelled[label]
    ]


def _first(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given


_SETS: dict[str, tuple[tuple[Label, ...], str]] = {
    "A": (("A", "embedding_A"), "A is frozen; leave it out or train A"),
    "B": (("B", "embedding_B"), "B is frozen; leave it out or train B"),
    "head": (("head", "norm"), "nothing is trained in full beside the factors; leave it out"),
    "embedding": (("embedding_A", "embedding_B"), "no factor of an embedding is trained; leave it out"),
}
"""The labels that an absolute rate is for, and what to say if nothing has one of them."""


def _refuse_bad_rates(
    rates: Mapping[Label, float],
    given: Mapping[str, float | None],
    labelled: Mapping[Label, list[nn.Parameter]],
) -> None:
    wrong = {label: rate for label, rate in rates.items() if not 0 < rate < math.inf}
    problems = [f"the rate of {label} is {rate}; it must be above 0" for label, rate in wrong.items()]
    for name, rate in given.items():
        labels, why = _SETS[name]
        if rate is not None and not any(labelled[label] for label in labels):
            problems.append(f"lr_{name}={rate} is given, but {why}")
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
