"""Second moments of each layer's inputs and output gradients, and its first gradient, from batches as they pass.

Here a model is run and listened to; what is kept of a layer is `asymlora.diagnostics.site_moments`'s, what follows
from it `asymlora.diagnostics.captured_gradient`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from asymlora.diagnostics.padding import attention_mask
from asymlora.diagnostics.site_moments import SiteMoments
from asymlora.draws import Draws
from asymlora.errors import AttachError, SpecError
from asymlora.init import Init
from asymlora.kinds import kind_of
from asymlora.peft_sites import lora_layers, sites
from asymlora.site_view import find_attached
from asymlora.spec import ALL_LINEAR, AdapterSpec
from asymlora.targets import adaptable, match_targets
from asymlora.theory.spectrum import EXACT_WIDTH

Loss = Callable[[nn.Module, Any], Tensor]
Mask = Callable[[Any, str], Tensor | None]


def every_target(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of all layers that can take an adapter: heads, embeddings and convolutions with the rest.

    Left out are layers that no adapter of any rank fits, those that stand in several places of the model, and
    convolutions in groups, whose update is no product ``B A``.

    Args:
        model: A model without an adapter.

    Returns:
        Full paths, in the model's order; each is a target.

    Example:
        >>> every_target(nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
        ('0', '2')
    """
    places: dict[int, int] = defaultdict(int)
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] += 1
    return tuple(
        name
        for name, module in adaptable(model).items()
        if places[id(module)] == 1 and getattr(module, "groups", 1) == 1 and _never(module) is None
    )


def gather_moments(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss,
    targets: str | Sequence[str] = ALL_LINEAR,
    mask: Mask = attention_mask,
    sketch_above: int = EXACT_WIDTH,
) -> dict[str, SiteMoments]:
    r"""Run a model over batches and gather, at each layer, the moments of both of its sides and its first gradient.

    .. math:: \Sigma = \frac{1}{T} \sum_t x_t x_t^\top, \qquad G = \frac{1}{N} \sum_b \sum_t dZ_t^\top x_t

    with ``dZ`` the gradient of the loss in the layer's output. No weight needs a gradient for it, and none gets one:
    the gradient is taken in the outputs alone. The model runs in evaluation mode, so dropout is off. Afterwards
    gradients, ``requires_grad``, training flags and torch's random state are what they were.

    Memory beside the model: for each layer what `SiteMoments` says, during a batch the activations of a backward pass,
    and for one layer at a time a second gradient. A gradient of more than 2^26 entries is not kept, and the layer
    says so.

    Args:
        model: A model without an adapter, or one with its own or PEFT's.
        batches: Whatever ``loss`` takes. Padding is found by ``mask``.
        loss: Called with the model and a batch; returns the loss of the batch, a mean over its rows, as a scalar.
        targets: Of a model without an adapter: as in `AdapterSpec`; `every_target` lists all. An adapted model is
            measured at its sites.
        mask: Called with a batch and the path of a layer; returns which positions count, or None for all. Used where
            its shape is that of the layer's positions, so not at a pooled head.
        sketch_above: Widest side of a layer whose moment is kept whole; wider ones are sketched, and outputs above
            1,024 always.

    Returns:
        Moments by path, in the model's order.

    Raises:
        NoTargetError: A target matches no layer.
        AttachError: A layer overwrites its input, so that no gradient can be read of it, is grouped, or is an embedding
            that is given other than indices.
        SpecError: There is no batch, the loss is no finite scalar or depends on no layer, or an input or a gradient is
            not finite; the layer is named.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False))
        >>> found = gather_moments(model, [torch.eye(3)], loss=lambda model, x: model(x).sum(), targets=["0"])
        >>> found["0"].gradient, found["0"].inputs.participation_ratio()
        (tensor([[1., 1., 1.],
                [1., 1., 1.]]), 3.0)

    Source:
        ``G`` by the chain rule; how the model is listened to: ours.
    """
    places = _places(model, targets)
    found = {name: SiteMoments.of(name, base, sketch_above=sketch_above) for name, (_, base) in places.items()}
    with ExitStack() as stack:
        stack.enter_context(_left_as_it_was(model))
        for batch in batches:
            with ExitStack() as hooks:
                probe = torch.zeros((), requires_grad=True)
                for name, (module, _) in places.items():
                    listener = _Listener(found[name], probe, mask(batch, name))
                    hooks.callback(module.register_forward_hook(listener, with_kwargs=True).remove)
                lost = loss(model, batch)
            # Without the hooks: a checkpointed block runs again now, and its inputs were counted.
            _backward(lost, probe)
            for moments in found.values():
                moments.end_batch()
    if not next(iter(found.values())).batches:
        raise SpecError("There is no batch to gather moments from. Give one or more batches.")
    for moments in found.values():
        moments.finish()
    return found


def activation_start(found: Mapping[str, SiteMoments]) -> Init:
    """Return an init of ``A`` whose rows are the leading directions of each site's inputs.

    Args:
        found: Moments of the sites, as `gather_moments` gives them.

    Returns:
        A function for ``FactorSpec(init=...)``; files call it ``custom`` and hold the values. It raises `SpecError` for
        a site without moments, a rank above the inputs' own, or as the start of ``B``.

    Example:
        >>> from asymlora import AdapterSpec, FactorSpec, attach
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> x = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
        >>> found = gather_moments(model, [x], loss=lambda model, x: model(x).sum(), targets=["0"])
        >>> A = FactorSpec(init=activation_start(found), trainable=False)
        >>> attach(model, AdapterSpec(A=A, rank=1, targets=["0"]))[0].lora_A.abs()
        tensor([[0., 1., 0.]])

    Source:
        Ours, as a start; what it reaches is `asymlora.diagnostics.captured_gradient.Shares.activation_A`.
    """

    def fill(factor: Tensor, *, which: str, draws: Draws, weight: Tensor | None) -> Tensor:
        if which != "A" or draws.site not in found:
            raise SpecError(
                f"activation_start has no directions for {which} of {draws.site!r}. Use it for A alone, on the sites"
                f" that were measured: {', '.join(list(found)[:3])} ({len(found)} in all)."
            )
        directions = found[draws.site].inputs.principal()[1]
        rank = factor.shape[0]
        if directions.shape[-1] < rank:
            raise SpecError(
                f"The inputs of {draws.site!r} fill {directions.shape[-1]} directions, fewer than rank={rank}. Lower"
                " the rank there, or measure more rows."
            )
        if directions.dim() == 1:  # entries of an embedding
            return factor.zero_().index_put_((torch.arange(rank), directions[:rank].cpu()), torch.ones(()))
        return factor.copy_(directions[:, :rank].T)

    return fill


def _places(model: nn.Module, targets: str | Sequence[str]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return by path what is listened to and the base layer that it holds or is.

    Of an adapted layer that is the whole of it: its output has the gradient of its base's, and a hook on the base would
    take the fused path away.

    Raises:
        AttachError: A layer is a convolution in groups.
    """
    places: dict[str, tuple[nn.Module, nn.Module]]
    if find_attached(model) is not None:
        places = {site.name: (site.layer, site.layer.base_layer) for site in sites(model)}
    elif lora_layers(model):
        places = {site.name: (site.layer, _base_of_peft(site.layer)) for site in sites(model)}
    else:
        spec = AdapterSpec.b_only(rank=1, targets=targets if isinstance(targets, str) else tuple(targets))
        places = {name: (layer, layer) for name, layer in match_targets(model, spec, ()).items()}
    if grouped := [name for name, (_, base) in places.items() if getattr(base, "groups", 1) > 1]:
        raise AttachError(
            f"{', '.join(grouped[:3])} is a convolution in groups, whose update is no product B A of two matrices."
            " Leave it out of targets."
        )
    return places


def _base_of_peft(layer: Any) -> nn.Module:
    return layer.get_base_layer()


def _never(layer: nn.Module) -> str | None:
    kind = kind_of(layer)
    return "no kind" if kind is None else kind.why_never(layer)


class _Listener:
    """A forward hook of one layer for one batch."""

    def __init__(self, moments: SiteMoments, probe: Tensor, mask: Tensor | None) -> None:
        self._moments, self._probe, self._mask = moments, probe, mask

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Any:
        if not torch.is_grad_enabled():
            self._moments.heard_without_gradients = True
            return None
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        version = x._version
        with self._named():
            self._moments.add_inputs(x.detach(), self._mask)
        # The probe makes the output need a gradient where no weight does; zero leaves the values as they are.
        heard = output + self._probe

        def take(gradient: Tensor) -> None:
            if x._version != version:
                raise AttachError(
                    f"The input of {self._moments.name} was overwritten after the layer had read it, so its gradient is"
                    " lost. Leave this layer out of targets."
                )
            with self._named():
                self._moments.add_gradient(x, gradient, self._mask)

        heard.register_hook(take)
        return heard

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SpecError as error:
            raise SpecError(f"{self._moments.name}: {error}") from None


def _backward(loss: Tensor, probe: Tensor) -> None:
    """Send the loss back to the outputs of the layers, and into no parameter.

    Raises:
        SpecError: It is no finite scalar, or no layer reaches it.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not torch.isfinite(loss).all():
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise SpecError(
            f"loss returned {what}, or one that is not finite. Return the mean loss of the batch, a scalar."
        )
    reached = (None,)
    if loss.requires_grad:
        reached = torch.autograd.grad(loss.sum(), probe, allow_unused=True)
    if reached[0] is None:
        raise SpecError(
            "The loss depends on none of the layers that are measured. Compute it with gradients on, from the model's"
            " output; a checkpoint in the model needs use_reentrant=False."
        )


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode with gradients on, and put modes and random states back."""
    training = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was
