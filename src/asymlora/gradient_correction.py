"""LoRA-FA's correction of the gradient of ``B`` where ``A`` is frozen, for any optimizer.

``A`` is constant, so what the correction needs of it is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asymlora.errors import AttachError, RankError, SpecError
from asymlora.peft_sites import lora_layers, place_of, plain_layers, sites
from asymlora.site_view import Site, find_attached

_ORTHONORMAL = 1e-5
"""Largest relative distance of ``A A^T`` from a multiple of the identity at which the correction is one number."""
_LARGEST_CONDITION = 1e6
"""Of ``A``; its Gram matrix has the square of it, of which float64 keeps four digits here."""


def correct_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> GradientCorrection:
    r"""Let every step of an optimizer see the gradient of ``B`` that follows full fine-tuning as closely as it can.

    With the update :math:`s B A` and :math:`G` the gradient of the weight itself, backward gives
    :math:`g_B = s\, G A^\top`. Before the step it is replaced by

    .. math:: \hat g_B = \tfrac{1}{s^2}\, g_B (A A^\top)^{-1} = \tfrac{1}{s}\, G A^\top (A A^\top)^{-1},

    so that a step :math:`B \leftarrow B - \eta \hat g_B` changes :math:`s B A` by
    :math:`-\eta\, G A^\top (A A^\top)^{-1} A = -\eta\, G P_A`: full gradient descent, projected on the rows of ``A``.
    It is the :math:`g` that minimises :math:`\lVert s\, g A - G \rVert_F`. The learning rate is then that of full
    fine-tuning, whatever the scale of the adapter and of ``A``.

    After the step ``B.grad`` is what backward gave, so clipping, logging and accumulation see plain gradients. Nothing
    has to be saved: what it needs follows from ``A``, and is computed anew when the values of ``A`` change.

    * Adam divides constant factors out. Where ``A`` has orthonormal rows up to a scale, :math:`A A^\top = c I`, the
      correction is the factor :math:`k = 1 / (s^2 c)`, and Adam's step with it and ``eps`` is the step without it and
      ``eps / k``: the same but for ``eps``. There it is of use with SGD and others that do not rescale.
    * Clip gradients before the step as usual; the norm is that of the plain gradients.
    * Of an embedding :math:`G` counts padding entries too, and is not divided by frequencies.

    Args:
        model: An attached model, or a `PeftModel` whose ``A`` was frozen by `asymlora.freeze`.
        optimizer: Of torch, or Accelerate's wrapper around one; it holds the ``B`` of every site.

    Returns:
        The correction; its ``remove()`` ends it.

    Raises:
        RankError: An ``A`` does not have full row rank; the site and the condition number are named.
        AttachError: ``A`` is trained at a site, or a site is a grouped convolution, whose ``B`` is no matrix.
        SpecError: The optimizer lacks a ``B`` or is corrected already, or a scale is 0.
        NotAttachedError: The model carries no adapter.

    Example:
        >>> from asymlora import AdapterSpec, attach, param_groups
        >>> model = attach(nn.Sequential(nn.Linear(6, 4)), AdapterSpec.b_only(rank=2))
        >>> optimizer = torch.optim.SGD(param_groups(model, lr=0.1))
        >>> correction = correct_gradients(model, optimizer)
        >>> model(torch.ones(3, 6)).sum().backward()
        >>> optimizer.step()

    Source:
        Zhang et al. 2023, "LoRA-FA", equation of the corrected gradient (second-hand, and in PEFT's optimizer). The
        projection and the statement on Adam are derived here. PEFT's ``create_lorafa_optimizer`` computes a
        pseudo-inverse of ``A A^T + 1e-8 I`` for every site and step, under bfloat16 autocast, and keys its state by
        names (read in 0.21.2).
    """
    inner = _innermost(optimizer)
    found = list(sites(model))
    _refuse_sites(found)
    adapter = None if find_attached(model) is not None or not lora_layers(model) else plain_layers(model)[0]
    _refuse_optimizer(inner, found)
    corrected = [_Corrected(name=s.name, B=s.B, layer=s.layer, adapter=adapter) for s in found]
    return GradientCorrection(inner, corrected)


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    # Accelerate's wrapper is an optimizer by class, and runs no hooks of its own.
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _refuse_sites(found: Iterable[Site]) -> None:
    problems: list[str] = []
    for site in found:
        if isinstance(site.A, nn.Parameter):
            problems.append(f"{site.name}: A is trained")
        elif site.kind == "convolution" and site.A.shape[0] != site.B.shape[1]:
            problems.append(f"{site.name}: a grouped convolution, whose B is no matrix")
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise AttachError(
            f"The gradient of B is corrected by a constant A alone, and not every site has one: {shown}. Attach with"
            " AdapterSpec.b_only(), of a PEFT model freeze it: asymlora.freeze(model, 'A')."
        )


def _refuse_optimizer(optimizer: torch.optim.Optimizer, found: Iterable[Site]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lacking = [site.name for site in found if id(site.B) not in held]
    if lacking:
        raise SpecError(
            f"This {type(optimizer).__name__} does not hold the B of {len(lacking)} sites ({', '.join(lacking[:3])})."
            " Build it after the adapter stands: from asymlora.param_groups(model, lr=...)."
        )
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), GradientCorrection) for hook in hooks):
        raise SpecError("This optimizer's gradients are corrected already. Call remove() on that correction first.")


@dataclass(frozen=True)
class _Corrected:
    """One site, whose factor and scale are read from its layer when they are used."""

    name: str
    B: Tensor
    layer: Any
    adapter: str | None

    @property
    def A(self) -> Tensor:
        return self.layer.lora_A if self.adapter is None else place_of(self.layer, "A", self.adapter).tensor

    @property
    def scaling(self) -> float:
        return self.layer.scaling if self.adapter is None else self.layer.scaling[self.adapter]


@dataclass(frozen=True)
class _Inverse:
    """What is computed of an ``A``, which is kept alive with it, so that no other can stand at its address."""

    A: Tensor
    value: Tensor | float


class GradientCorrection:
    """The correction of one optimizer, as `correct_gradients` made it.

    Args:
        optimizer: Whose steps are corrected.
        corrected: The sites.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, corrected: list[_Corrected]) -> None:
        self._sites = corrected
        self._inverses: dict[tuple[Any, ...], _Inverse] = {}
        self._plain: list[tuple[Tensor, Tensor]] = []
        self._inverses = self._computed()
        self._joined = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    @property
    def inverses(self) -> int:
        """How many factors ``A`` there are; one that several sites share counts once."""
        return len(self._inverses)

    @property
    def numbers(self) -> int:
        """How many of them need one number only, as their rows are orthonormal up to a scale."""
        return sum(isinstance(inverse.value, float) for inverse in self._inverses.values())

    def remove(self) -> None:
        """End it: later steps see the gradients that backward gives."""
        for hook in self._joined:
            hook.remove()

    def _computed(self) -> dict[tuple[Any, ...], _Inverse]:
        inverses: dict[tuple[Any, ...], _Inverse] = {}
        for site in self._sites:
            if not site.scaling:
                raise SpecError(f"{site.name} has the scale 0, at which B has no effect. Give it another alpha.")
            A = site.A
            if (key := _state_of(A)) not in inverses:
                inverses[key] = self._inverses.get(key) or _Inverse(A, _gram_inverse(A, site.name))
        return inverses

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        # torch passes the optimizer itself as the first argument.
        closure = kwargs.get("closure") or next((given for given in args[1:2] if given is not None), None)
        if closure is None:
            self._exchange()
            return None
        return args[:1], {**kwargs, "closure": self._corrected(closure)}

    def _corrected(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        # The gradients of such a step are made inside of it.
        def corrected() -> Any:
            loss = closure()
            self._exchange()
            return loss

        return corrected

    @torch.no_grad()
    def _exchange(self) -> None:
        self._inverses = self._computed()  # looked up, unless a factor was loaded or moved
        for site in self._sites:
            if (plain := site.B.grad) is not None:
                inverse = self._inverses[_state_of(site.A)].value
                self._plain.append((site.B, plain))
                site.B.grad = _times(plain, inverse, 1 / site.scaling**2)

    def _after(self, *_: Any) -> None:
        for B, plain in self._plain:
            B.grad = plain
        self._plain.clear()


def _state_of(A: Tensor) -> tuple[Any, ...]:
    # Changes with the values (loading writes in place) and with the storage (moving replaces it).
    return A.data_ptr(), None if A.is_inference() else A._version, A.device, A.dtype, tuple(A.shape)


def _gram_inverse(A: Tensor, name: str) -> Tensor | float:
    """Return ``(A A^T)^-1``, or one number where that is a multiple of the identity.

    Raises:
        RankError: ``A`` does not have full row rank.
    """
    rows = A.detach().flatten(1).double()
    gram = rows @ rows.T
    size = float(gram.diagonal().mean())
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if size > 0 and float((gram - size * eye).abs().max()) <= _ORTHONORMAL * size:
        return 1 / size
    if not bool(gram.isfinite().all()):
        raise RankError(f"{name}: A {tuple(A.shape)} holds NaN or infinity, so it has no rank. Draw or load it again.")
    squares = torch.linalg.eigvalsh(gram)
    condition = float(squares[-1] / squares[0].clamp(min=0)) ** 0.5 if float(squares[-1]) > 0 else float("inf")
    if not condition <= _LARGEST_CONDITION:
        raise RankError(
            f"{name}: A {tuple(A.shape)} has the condition number {condition:.2g}, and its rows must be independent (at"
            f" most {_LARGEST_CONDITION:.0g}) for its Gram matrix to have an inverse. Draw it again, for instance with"
            " init='orthonormal', or lower the rank."
        )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    return inverse.to(torch.promote_types(A.dtype, torch.float32))


def _times(gradient: Tensor, inverse: Tensor | float, scale: float) -> Tensor:
    """Return ``scale * gradient @ inverse`` over the rows of ``B``, in the gradient's own form, rounded once."""
    if not isinstance(inverse, Tensor):
        return gradient * (scale * inverse)
    corrected: Any = gradient.clone()
    # FSDP shards B by rows, and each row is corrected by itself.
    rows: Tensor = corrected.to_local() if hasattr(corrected, "to_local") else corrected
    matrix = rows.flatten(1).to(torch.promote_types(rows.dtype, inverse.dtype))
    rows.copy_((matrix @ inverse.to(matrix) * scale).reshape(rows.shape))
    return corrected
