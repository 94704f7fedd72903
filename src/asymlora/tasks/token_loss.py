"""The loss of a causal language model from its last hidden states, its logits never kept, and its scoring.

Letters: ``N`` tokens that have a target, ``V`` vocabulary, ``w`` width.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from asymlora.tasks.task import Batch, Items
from asymlora.tasks.text_scoring import known_metric

IGNORED = -100
"""The label of a token that is not predicted."""
TARGETS = "shift_labels"
"""Key of a batch: the token that each position predicts, or `IGNORED`; transformers' own name for it."""
_CHUNK_VALUES = 2**23
_LARGEST = 700.0  # its exponential is still a number


def next_tokens(labels: Tensor) -> Tensor:
    """Return what each position predicts: the label of the position after it.

    Args:
        labels: Shape ``(rows, tokens)``.

    Returns:
        The same shape; the last position predicts nothing.

    Example:
        >>> next_tokens(torch.tensor([[-100, 5, 6]]))
        tensor([[   5,    6, -100]])
    """
    return pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous()


class _ChunkedLoss(torch.autograd.Function):
    # The gradient of each loss in its own row of hidden states is known as soon as the loss is: it is computed with the
    # chunk's logits and kept, (N, w), in their stead, (N, V).

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor, chunk: int) -> Tensor:
        hidden, targets = states.flatten(0, 1), wanted.flatten()
        at = (targets != IGNORED).nonzero().squeeze(-1)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        result = torch.zeros(wanted.shape, dtype=exact, device=hidden.device)
        losses = result.view(-1)  # what is returned is no view, which sharding would warn of
        kept = hidden.new_empty((len(at), hidden.shape[1])) if ctx.needs_input_grad[0] else None
        room = hidden.new_empty((min(chunk, len(at)), len(weight)), dtype=weight.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(at), chunk):
                rows = at[start : start + chunk]
                tokens = targets[rows]
                inputs = hidden[rows].to(weight.dtype)
                logits = torch.mm(inputs, weight.T, out=room[: len(rows)])
                logits = (logits if bias is None else logits.add_(bias)).to(exact)
                largest = logits.amax(1, keepdim=True)
                chosen = logits.gather(1, tokens[:, None])
                shares = logits.sub_(largest).exp_()
                total = shares.sum(1, keepdim=True)
                losses[rows] = (total.log() + largest - chosen).squeeze(1)
                if kept is not None:
                    expected = torch.mm(shares.to(weight.dtype), weight) / total
                    kept[start : start + chunk] = expected - weight[tokens]
        ctx.save_for_backward(*(() if kept is None else (kept, at)))
        ctx.shape = states.shape
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        kept, at = ctx.saved_tensors
        gradient = kept.new_zeros(ctx.shape)
        gradient.flatten(0, 1)[at] = kept * upstream[0].flatten()[at, None].to(kept.dtype)
        return gradient, None, None, None, None


def token_losses(
    hidden: Tensor, targets: Tensor, *, weight: Tensor, bias: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    r"""Return the negative log-likelihood of each target under a linear output layer that is not trained.

    .. math:: \ell_i = \log \sum_v e^{h_i \cdot w_v} - h_i \cdot w_{t_i}, \qquad
              \partial \ell_i / \partial h_i = \sum_v \mathrm{softmax}(W h_i)_v\, w_v - w_{t_i}

    For the backward pass the second line is kept, of the width of the hidden states, and no logits.

    Args:
        hidden: Last hidden states, shape ``(rows, tokens, w)``.
        targets: Shape ``(rows, tokens)``, indices into the vocabulary; `IGNORED` where nothing is predicted.
        weight: Output embedding, shape ``(V, w)``; gets no gradient.
        bias: Shape ``(V,)``, or None; gets no gradient.
        chunk: Tokens whose logits stand in memory at a time; None: as many as make 32 MB of float32.

    Returns:
        Shape ``(rows, tokens)``, natural logarithms, at least in float32; 0 where nothing is predicted.

    Example:
        >>> token_losses(torch.zeros(1, 2, 3), torch.tensor([[1, -100]]), weight=torch.eye(4, 3)).exp()
        tensor([[4., 1.]])
    """
    kind = hidden.device.type
    working = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    size = chunk or max(1, _CHUNK_VALUES // len(weight))
    given = None if bias is None else bias.detach().to(working)
    losses = _ChunkedLoss.apply(hidden, weight.detach().to(working), given, targets, size)
    assert isinstance(losses, Tensor)
    return losses


class _HeadWatch:
    # Hooks, as the loss has to be formed where the hidden states meet the output embedding: there autocast is on and,
    # sharded, the weights are gathered. They do nothing unless the call brings targets, so `generate` is untouched.

    def __init__(self, model: PreTrainedModel, *, chunked: bool) -> None:
        self.chunked = chunked
        self.caches = "use_cache" in inspect.signature(model.forward).parameters
        self.head: nn.Module | None = None
        self.targets: Tensor | None = None
        self.losses: Tensor | None = None

    def before(self, model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        self.targets, self.losses = kwargs.get(TARGETS), None
        if self.targets is None:
            return None
        self.head = model.get_output_embeddings()
        # What the model would make of labels itself is not wanted, and no key or value will be asked for again.
        rest = {key: value for key, value in kwargs.items() if key not in (TARGETS, "labels")}
        return args, {**({"use_cache": False} if self.caches else {}), **rest}

    def at_head(self, head: nn.Linear, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # Inside an adapter layer the head's own product is not the output.
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
        if self.targets is None or not self.chunked or trained or head is not self.head:
            return None
        bias: Tensor | None = head.bias  # pyright: ignore[reportAssignmentType]
        self.losses = token_losses(args[0], self.targets, weight=head.weight, bias=bias)
        return (args[0][:, :0],)

    def after(self, model: nn.Module, args: Any, output: Any) -> Any:
        if self.targets is None:
            return None
        output["loss"] = _plain_losses(output["logits"], self.targets) if self.losses is None else self.losses
        self.targets = self.losses = None
        return output


def _logits_are_the_product(model: PreTrainedModel, head: nn.Module | None) -> bool:
    # A quantised weight is a parameter of another class. Whether logits are scaled or capped is seen on four tokens.
    if not isinstance(head, nn.Linear) or type(head.weight) is not nn.Parameter:
        return False
    seen: list[Any] = []
    watching = head.register_forward_hook(lambda module, args, output: seen.append(output))
    ids = torch.arange(4, device=model.device).view(2, 2) % head.out_features
    try:
        with torch.no_grad():
            logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        watching.remove()
    return len(seen) == 1 and seen[0].shape == logits.shape and torch.equal(seen[0].to(logits.dtype), logits)


def _plain_losses(logits: Tensor, targets: Tensor) -> Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(exact.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")


def install_token_loss(model: PreTrainedModel) -> bool:
    """Make a causal language model give the loss of each token where a call brings `TARGETS`.

    Such a call returns ``loss`` of shape ``(rows, tokens)``, and no logits: they are formed in chunks, where the hidden
    states meet the output embedding. Every other call, and so generation, goes on as before. Where the output embedding
    is trained, quantised or wrapped, or its logits are changed further (scaled, capped), the plain formula is taken,
    with all logits.

    Args:
        model: The model, without an adapter yet.

    Returns:
        Whether logits are avoided, as long as the output embedding stays as it is.
    """
    head = model.get_output_embeddings()
    watch = _HeadWatch(model, chunked=_logits_are_the_product(model, head))
    model.register_forward_pre_hook(watch.before, with_kwargs=True)
    model.register_forward_hook(watch.after)
    if watch.chunked and head is not None:
        head.register_forward_pre_hook(watch.at_head)
    return watch.chunked


def mean_token_loss(outputs: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Return the mean loss of the tokens that are predicted.

    Args:
        outputs: What the model gave for a batch with `TARGETS`.
        labels: Shape ``(rows, tokens)``; the first of each row is `IGNORED`.
        num_items: Targets in all batches of the step; None: those of this batch.

    Returns:
        A scalar.
    """
    count = (labels != IGNORED).sum().clamp(min=1) if num_items is None else num_items
    total = _losses_in(outputs, next_tokens(labels)).sum()
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def _losses_in(outputs: Any, targets: Tensor) -> Tensor:
    # A wrapper may call the model's forward without its hooks.
    return _plain_losses(outputs["logits"], targets) if outputs.get("loss") is None else outputs["loss"]


class TokenScoring:
    """Mean loss and perplexity over all tokens that are predicted.

    Perplexity is the exponential of the summed loss over the number of predicted tokens, of all rows together.

    Args:
        metric: By which choices are made, ``perplexity`` or ``loss``.

    Raises:
        UnknownNameError: There is no such metric.
    """

    METRICS = ("perplexity", "loss")
    greater_is_better = False

    def __init__(self, metric: str) -> None:
        self.metric = known_metric(metric, self.METRICS)

    def keep(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss of each row and its number of targets, shape ``(rows, 2)``."""
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        losses = _losses_in(outputs, batch[TARGETS])
        return torch.stack([losses.sum(1), (batch[TARGETS] != IGNORED).sum(1).to(losses.dtype)], dim=1)

    def evidence(self, kept: np.ndarray, items: Items) -> np.ndarray:
        """Return what was kept, float64."""
        return kept.astype(np.float64)

    def score(self, evidence: np.ndarray) -> dict[str, float]:
        """Return ``perplexity`` and ``loss``, in natural logarithms a token; finite, also where the model is lost."""
        total, count = evidence.sum(0)
        loss = float(total / max(count, 1.0))
        return {"perplexity": math.exp(min(loss, _LARGEST)), "loss": loss}
