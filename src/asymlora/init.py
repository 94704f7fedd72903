"""How a factor starts: one function per scheme, one signature, one table, and `draw`, which scales the result.

Every function fills ``factor`` in place and returns it: float32 on CPU, ``A`` of shape ``(rank, in)``, ``B`` of shape
``(out, rank)``, so the fan-in of either is the length of its rows. Where the numbers come from stands in
`asymlora.draws`, singular vectors in `asymlora.singular`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymlora.draws import Draws, Floats, tree_sum
from asymlora.errors import SpecError
from asymlora.factor_spec import ADDRESSED_INITS, FactorSpec, InitName
from asymlora.singular import bottom_singular_vectors, random_singular_vectors, top_singular_vectors

Which = Literal["A", "B"]
Weight = Tensor | Callable[[], Tensor] | None


class Init(Protocol):
    """A scheme that fills a factor in place and returns it; a user's own function has this signature too."""

    def __call__(self, factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
        """Fill ``factor`` from ``draws``, and from the layer's ``weight`` if the scheme needs one."""
        ...


def zeros_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill with zeros."""
    return factor.zero_()


def kaiming_uniform_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill with ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, variance ``1/(3 fan_in)``.

    Source:
        PEFT's and loralib's start of ``A``: ``kaiming_uniform_(a=sqrt(5))``, read in their code.
    """
    return _fill(factor, draws.uniform(factor.numel()), 1.0 / math.sqrt(factor.shape[1]))


def gaussian_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill with a Gaussian of variance ``1/fan_in``: ``1/in`` for ``A``, ``1/rank`` for ``B``.

    Source:
        Hayou et al. 2024, "The Impact of Initialization on LoRA Finetuning Dynamics", Init[A] and Init[B]. PEFT's
        ``"gaussian"`` is another scheme: `peft_gaussian_`.
    """
    return _fill(factor, draws.normal(factor.numel()), 1.0 / math.sqrt(factor.shape[1]))


def peft_gaussian_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill with a Gaussian of standard deviation ``1/rank``, whatever the width.

    Source:
        PEFT's ``init_lora_weights="gaussian"``, read in its code.
    """
    return _fill(factor, draws.normal(factor.numel()), 1.0 / factor.shape[0 if which == "A" else 1])


def orthonormal_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill with orthonormal rows of ``A``, or columns of ``B``, in a random direction (`Draws.frame`).

    Source:
        Zhu et al. 2024, the frozen factor of ``B``-only. Their released code takes a full SVD of an (out, in) draw.
    """
    frame = draws.frame(*(factor.shape if which == "A" else reversed(factor.shape)))
    return _fill(factor, frame if which == "A" else frame.T)


def top_singular_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill ``A`` with right, ``B`` with left singular vectors of the weight, those of its largest singular values.

    Source:
        Zhu et al. 2024, starts V and U. Their released code decomposes a fresh random weight instead of the trained
        one, and takes columns of ``Vh`` where its rows are the singular vectors (read there).
    """
    return _fill_singular(factor, top_singular_vectors, which, draws, weight)


def bottom_singular_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill ``A`` with right, ``B`` with left singular vectors of the weight, the last of its thin SVD."""
    return _fill_singular(factor, bottom_singular_vectors, which, draws, weight)


def random_singular_(factor: Tensor, *, which: Which, draws: Draws, weight: Tensor | None) -> Tensor:
    """Fill ``A`` with right, ``B`` with left singular vectors of the weight, a random choice of all."""
    return _fill_singular(factor, random_singular_vectors, which, draws, weight)


INITS: dict[InitName, Init] = {
    "zeros": zeros_,
    "kaiming_uniform": kaiming_uniform_,
    "gaussian": gaussian_,
    "peft_gaussian": peft_gaussian_,
    "orthonormal": orthonormal_,
    "top_singular": top_singular_,
    "bottom_singular": bottom_singular_,
    "random_singular": random_singular_,
}
"""Every name of a scheme but ``custom``, which stands for a user's function."""


def draw(
    factor_spec: FactorSpec | InitName | Init,
    shape: tuple[int, int],
    *,
    seed: int,
    site: str,
    factor: Which,
    weight: Weight = None,
) -> Tensor:
    """Return the start of one factor.

    Args:
        factor_spec: What the factor is, or only how it starts: a row of `INITS` or a function.
        shape: ``(rank, in)`` for ``A``, ``(out, rank)`` for ``B``.
        seed: The adapter's seed.
        site: Path of the adapted module in the model that it was attached to.
        factor: Which factor.
        weight: The layer's own weight, ``(out, in)``, or a function that returns it; called only by an init that may
            need it.

    Returns:
        A float32 tensor on CPU. For the names in `ADDRESSED_INITS` the same arguments give the same bits anywhere.

    Raises:
        SpecError: The init is no known name, is ``custom``, or gave something that cannot be a factor; it needs a
            weight and has none or one that does not fit; or it has nothing to scale to the wanted size.
        RankError: The rank is more than the init allows at this shape.

    Example:
        >>> A = draw("orthonormal", (2, 5), seed=0, site="encoder.query", factor="A")
        >>> torch.allclose(A @ A.T, torch.eye(2), atol=1e-6)
        True
    """
    spec = factor_spec if isinstance(factor_spec, FactorSpec) else _plain_spec(factor_spec)
    start = torch.zeros(shape, dtype=torch.float32, device="cpu")
    if not spec.starts_at_zero:
        init = _function_of(spec)
        if spec.init in ADDRESSED_INITS:
            weight = None
        with torch.no_grad():
            start = init(
                start,
                which=factor,
                draws=Draws(seed=seed, site=site, factor=factor),
                weight=weight() if callable(weight) else weight,
            )
        if spec.init_name == "custom":
            start = _checked(start, shape, f"The init of {factor} at {site!r}")
        _scale(start, spec, factor, site)
    return start


@lru_cache(maxsize=16)
def _plain_spec(init: InitName | Init) -> FactorSpec:
    # A spec checks its fields, which takes as long as a small draw.
    return FactorSpec(init=init)


def _function_of(spec: FactorSpec) -> Init:
    if callable(spec.init):
        return cast(Init, spec.init)
    if spec.init == "custom":
        raise SpecError(
            "init='custom' stands for a function that a file cannot hold. Give the function again:"
            " FactorSpec(init=your_function), or load the factor's saved values."
        )
    return INITS[spec.init]


def _checked(start: Any, shape: tuple[int, int], what: str) -> Tensor:
    """Return what a user's function gave as an own float32 tensor on CPU, or say why it cannot be a factor.

    Raises:
        SpecError: It is no floating tensor of the shape with finite entries.
    """
    wanted = f"It must return a floating tensor of shape {tuple(shape)} with finite entries"
    if not isinstance(start, Tensor):
        raise SpecError(f"{what} returned {type(start).__name__}. {wanted}: end it with `return factor`.")
    if tuple(start.shape) != tuple(shape) or not start.is_floating_point() or start.is_meta:
        raise SpecError(
            f"{what} returned {start.dtype} of shape {tuple(start.shape)} on {start.device}. {wanted}: fill the"
            " tensor that it is given and return that."
        )
    own = start.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
    if not torch.isfinite(own).all():
        raise SpecError(f"{what} returned NaN, infinite entries, or some too large for float32. {wanted}.")
    return own


def _scale(start: Tensor, spec: FactorSpec, factor: Which, site: str) -> None:
    """Give the start its size, in float64 with one rounding at the end."""
    if spec.gain == 1 and spec.variance is None and spec.component_norm is None:
        return
    values = start.numpy()
    if spec.component_norm is not None:
        components = _exact(values if factor == "A" else values.T)
        squares = tree_sum(components * components)
        wanted = spec.component_norm * spec.component_norm
        _refuse_nothing_to_scale(squares, f"component_norm={spec.component_norm}", factor, site)
        scale = np.sqrt(wanted / squares)
        scale = scale[:, None] if factor == "A" else scale
    elif spec.variance is not None:
        flat = _exact(values).reshape(-1)
        squares = tree_sum(flat * flat)[None]
        _refuse_nothing_to_scale(squares, f"variance={spec.variance}", factor, site)
        scale = np.sqrt(spec.variance * flat.size / squares)
    else:
        scale = np.array(math.sqrt(spec.gain))
    values[...] = _exact(values) * scale


def _refuse_nothing_to_scale(squares: Floats, field: str, factor: Which, site: str) -> None:
    if not squares.all():
        raise SpecError(
            f"{field} scales the start of {factor} at {site!r}, but {'a component' if squares.size > 1 else 'it'} is"
            f" all zero there. Draw non-zero numbers, or leave {field.partition('=')[0]} out."
        )


def _exact(values: NDArray[np.float32]) -> Floats:
    # Float32 to float64 loses nothing, and the product of two such numbers is exact.
    return np.array(values, dtype=np.float64, order="C")


def _fill(factor: Tensor, values: Floats, scale: float = 1.0) -> Tensor:
    """Write ``scale * values`` into the factor: one product and one rounding to its type for each entry."""
    factor.detach().numpy()[...] = (values if scale == 1 else values * scale).reshape(factor.shape)
    return factor


def _fill_singular(
    factor: Tensor, scheme: Callable[..., Tensor], which: Which, draws: Draws, weight: Tensor | None
) -> Tensor:
    """Write singular vectors of the weight into the factor.

    Raises:
        SpecError: There is no weight, or its shape does not fit the factor's.
    """
    if weight is None:
        raise SpecError(
            f"The start of {which} at {draws.site!r} is made of singular vectors of the layer's weight, and none was"
            " given. Pass weight=, or start from an init that needs none, like 'orthonormal'."
        )
    rank, length = factor.shape if which == "A" else reversed(factor.shape)
    axis = 1 if which == "A" else 0
    if weight.ndim == 2 and weight.shape[axis] != length:
        raise SpecError(
            f"The weight of {draws.site!r} has shape {tuple(weight.shape)}, so {which} must have {weight.shape[axis]}"
            f" {'columns' if which == 'A' else 'rows'}; it has shape {tuple(factor.shape)}. Pass the weight as"
            " (out, in)."
        )
    return factor.copy_(scheme(weight, rank, which=which, draws=draws))
