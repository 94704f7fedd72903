"""Draw the factors of an adapter, check them against the model, and put the layers in. The inside of `attach`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from asymlora.checkpoint import AdapterSaver, PartSaveRefusal
from asymlora.errors import NonZeroStartError, SpecError
from asymlora.factor_spec import FactorSpec
from asymlora.init import draw
from asymlora.kinds import kind_of
from asymlora.layers import AdapterLayer, LinearAdapter
from asymlora.shared_code import SharedCode
from asymlora.site_view import Attachment, set_attachment
from asymlora.spec import AdapterSpec, SiteSpec
from asymlora.targets import shared_groups

M = TypeVar("M", bound=nn.Module)
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""``A`` and ``B`` by path of the site."""


def drawn_factors(bases: Mapping[str, nn.Module], spec: AdapterSpec) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the start of both factors of every site.

    Args:
        bases: Base layers by path.
        spec: The adapter.

    Returns:
        ``A`` and ``B`` by path, in the shapes that PEFT's files have, float32 on CPU. Sites that share an ``A`` get
        the very tensor.

    Raises:
        SpecError: A start cannot be drawn; the site is named.
    """
    groups = shared_groups(spec, bases)
    addresses = {name: address for address, names in groups.items() for name in names}
    shared: dict[str, Tensor] = {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, base in bases.items():
        address = addresses.get(name)
        if address is None:
            A = _start(base, spec, name, "A", name)
        else:
            A = shared[address] if address in shared else _start(base, spec, name, "A", address)
            shared[address] = A
        factors[name] = A, _start(base, spec, name, "B", name)
    return factors


def _start(base: nn.Module, spec: AdapterSpec, name: str, factor: Literal["A", "B"], address: str) -> Tensor:
    kind, site = kind_of(base), spec.at(name)
    assert kind is not None
    which = 0 if factor == "A" else 1
    shape, matrix = kind.factor_shapes(base, site.rank)[which], kind.matrix_shapes(base, site.rank)[which]
    weight: Any = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        return torch.empty(shape, device="meta")  # a model without values: shapes only
    start: FactorSpec = getattr(site, factor)
    own = kind.matrix_of(base, weight) if isinstance(weight, Tensor) else None
    try:
        drawn = draw(start, matrix, seed=spec.seed, site=address, factor=factor, weight=own)
    except SpecError as error:
        raise type(error)(f"{name}, {factor}: {error}") from None
    return drawn.reshape(shape)


def starts_nonzero(bases: Mapping[str, nn.Module], spec: AdapterSpec, model: nn.Module) -> list[str]:
    """Return the sites whose product starts non-zero, so that the base has to be corrected.

    Args:
        bases: Base layers by path.
        spec: The adapter.
        model: The model, to find weights that stand in several places.

    Returns:
        Paths.

    Raises:
        NonZeroStartError: A base weight cannot be corrected.
    """
    names = [n for n in bases if not (spec.at(n).A.starts_at_zero or spec.at(n).B.starts_at_zero)]
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name in names:
        base: Any = bases[name]
        weight = getattr(base, "weight", None)
        plain = type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.float64)
        if not plain or int(getattr(base, "groups", 1)) > 1 or owners[id(weight)] > 1:
            kind = getattr(weight, "dtype", type(weight).__name__)
            raise NonZeroStartError(
                f"{name}: both factors start non-zero, and s*B*A cannot be subtracted from its weight ({kind}): that"
                " takes a float32 weight of its own, in one group. Load the base in float32 and untied, or start one"
                " factor at zero."
            )
    return names


def install(
    model: M, spec: AdapterSpec, factors: Factors, saved: tuple[str, ...], *, starts: Factors | None = None
) -> M:
    """Put the adapter layers in and the record on the model.

    Args:
        model: The base model.
        spec: The adapter, checked against the model.
        factors: ``A`` and ``B`` of every site.
        saved: Paths of the modules trained in full.
        starts: ``A`` and ``B`` to subtract from the base weight, of sites whose product starts non-zero.

    Returns:
        The same model.
    """
    trained_before = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    model.requires_grad_(False)
    for path in saved:
        model.get_submodule(path).requires_grad_(True)
    groups = shared_groups(spec, {name: model.get_submodule(name) for name in factors})
    codes = {name: code for names in groups.values() for code in [SharedCode(names)] for name in names}
    for name, (A, B) in factors.items():
        layer = _layer(model.get_submodule(name), spec.at(name), A, B, dropout=spec.dropout)
        if name in codes:
            assert isinstance(layer, LinearAdapter)
            layer.share(codes[name])
        if starts and name in starts:
            layer.correct_base(*(factor.detach().clone() for factor in starts[name]))
        model.set_submodule(name, layer)
    record = Attachment(spec=spec, sites=tuple(factors), saved_modules=saved, trained_before=trained_before)
    set_attachment(model, record)
    _guard_saving(model, record.sites)
    _let_inputs_require_grad(model)
    return model


def _layer(base: nn.Module, site: SiteSpec, A: Tensor, B: Tensor, *, dropout: float) -> AdapterLayer:
    kind = kind_of(base)
    assert kind is not None
    device = next((tensor.device for tensor in (*base.parameters(), *base.buffers())), torch.device("cpu"))
    layer = kind(
        base,
        A=A.to(device),
        B=B.to(device),
        scaling=site.scaling_factor,
        dropout=dropout,
        trains_A=site.A.trainable,
        trains_B=site.B.trainable,
    )
    return layer.train(base.training)


class InputGradient:
    """Hook on the input embeddings: under gradient checkpointing their output requires a gradient.

    A checkpointed block whose input requires none gives its adapters none either (torch's re-entrant checkpoint runs
    it without a graph). Kept as an object, so that copies and pickles of the model keep it.

    Args:
        model: The attached model, which says whether checkpointing is on.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Mark the output, if it is a tensor without a gradient."""
        if not torch.is_grad_enabled() or not isinstance(output, Tensor) or output.requires_grad:
            return
        # Not the model's own `is_gradient_checkpointing`, which transformers has renamed and warns of.
        if output.is_floating_point() and any(vars(m).get("gradient_checkpointing") for m in self.model.modules()):
            output.requires_grad_(True)


def _input_embeddings(model: nn.Module) -> nn.Module | None:
    try:
        found = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError, TypeError):
        return None  # no model of transformers, or one without embeddings
    return found if isinstance(found, nn.Module) else None


def _let_inputs_require_grad(model: nn.Module) -> None:
    if (embeddings := _input_embeddings(model)) is not None:
        embeddings.register_forward_hook(InputGradient(model))


def _guard_saving(model: nn.Module, adapted: Iterable[str]) -> None:
    for name, part in model.named_modules():
        if not callable(getattr(part, "save_pretrained", None)):
            continue
        # In the instance's own dictionary, past nn.Module's bookkeeping: copies and pickles take it along.
        if part is model:
            part.__dict__["save_pretrained"] = AdapterSaver(model)
        elif any(site.startswith(name + ".") for site in adapted):
            part.__dict__["save_pretrained"] = PartSaveRefusal(name, type(model).__name__)
