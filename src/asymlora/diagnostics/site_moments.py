r"""What is kept of one layer while batches pass: moments of its inputs and of its output gradients, and ``G``.

``n`` fan-in, ``m`` outputs, ``x`` an input row, ``dZ`` the gradient of the loss in an output row. In here a layer is
what it is as a matrix ``(m, n)``: an embedding reads one-hot rows, a convolution the patches under its kernel. Which
layers, and how a model is run, is `asymlora.diagnostics.covariance`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor, nn

from asymlora.errors import AttachError, SpecError
from asymlora.kinds import ConvAdapter, EmbeddingAdapter, kind_of
from asymlora.theory.spectrum import EXACT_WIDTH, SKETCH_COLUMNS, InputMoment

LARGEST_GRADIENT = 2**26
"""Most entries of a gradient that is kept, 256 MiB in float32."""
EXACT_OUTPUTS = 1024
"""Most outputs whose gradients' moment is kept whole: of it only the leading directions are used."""
_CHUNK = 2**22
"""Most entries of rows that are brought to float64 at once."""


class EntryCounts:
    r"""Second moment of one-hot inputs, which is diagonal: how often each entry of an embedding was read.

    Args:
        width: Entries of the embedding.

    Example:
        >>> counts = EntryCounts(5)
        >>> counts.update(torch.tensor([1, 1, 3, 4]))
        >>> counts.count, [part.tolist() for part in counts.principal()], round(counts.participation_ratio(), 3)
        (4, [[0.5, 0.25, 0.25], [1, 3, 4]], 2.667)
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = 0
        self.counts = torch.zeros(width, dtype=torch.float64)

    def update(self, entries: Tensor) -> None:
        """Count entries that were read, shape ``(T,)``, whole numbers."""
        self.counts = self.counts.to(entries.device) + torch.bincount(entries, minlength=self.width)
        self.count += len(entries)

    def principal(self) -> tuple[Tensor, Tensor]:
        """Return the shares of the entries that were read, largest first, and which entries these are."""
        entries = self.counts.nonzero()[:, 0]
        shares, order = (self.counts[entries] / self.count).sort(descending=True, stable=True)
        return shares, entries[order]

    def participation_ratio(self) -> float:
        """Return ``1 / sum p_i^2`` over the shares ``p_i``, exactly.

        Raises:
            SpecError: No entry has been read.
        """
        if not self.count:
            raise SpecError("No entry of the embedding has been read yet. Call update(entries) first.")
        return 1.0 / (self.counts / self.count).square().sum().item()

    def missed_trace(self) -> float:
        """Return 0: nothing is sketched."""
        return 0.0


@dataclass(kw_only=True)
class SiteMoments:
    r"""What has been gathered at one layer.

    Kept are ``m n`` numbers of ``G`` in float32 (float64 for a model in float64), ``n^2`` and ``m^2`` float64 of the
    two moments, or ``256 n`` and ``256 m`` where they are sketched (the sketch and its random matrix). An embedding's
    inputs take ``n``.

    Attributes:
        name: Path of the layer.
        kind: ``linear``, ``embedding`` or ``convolution``.
        base: The layer as it is without an adapter.
        fan_in: ``n``.
        outputs: ``m``.
        inputs: Second moment of the inputs, padding left out.
        output_gradients: Second moment of ``dZ``, padding left out.
        gradient: ``G``, the mean over batches of the loss's gradient in the weight, shape ``(m, n)``; or None.
        why_no_gradient: Why there is none, or empty.
        batches: How many batches ``G`` is the mean of.
        heard_without_gradients: Whether it ran with gradients off, which leaves no trace in the moments.
    """

    name: str
    kind: str
    base: nn.Module
    fan_in: int
    outputs: int
    inputs: InputMoment | EntryCounts
    output_gradients: InputMoment
    gradient: Tensor | None = None
    why_no_gradient: str = "no batch has been seen"
    batches: int = 0
    heard_without_gradients: bool = False
    _energy: float = 0.0
    _calls: int = 0
    _repeated: bool = False

    @classmethod
    def of(cls, name: str, base: nn.Module, *, sketch_above: int = EXACT_WIDTH) -> SiteMoments:
        """Return empty moments of a layer.

        Args:
            name: Its path.
            base: The layer, of a kind that can take an adapter.
            sketch_above: Widest side whose moment is kept whole; of the outputs at most `EXACT_OUTPUTS`.
        """
        kind = kind_of(base)
        assert kind is not None
        (_, fan_in), (outputs, _) = kind.matrix_shapes(base, getattr(base, "groups", 1))
        fits = outputs * fan_in <= LARGEST_GRADIENT
        too_large = f"({outputs}, {fan_in}) has more than {LARGEST_GRADIENT:,} entries"
        return cls(
            name=name,
            kind=kind.KIND,
            base=base,
            fan_in=fan_in,
            outputs=outputs,
            inputs=EntryCounts(fan_in) if kind is EmbeddingAdapter else _moment(fan_in, sketch_above),
            output_gradients=_moment(outputs, min(sketch_above, EXACT_OUTPUTS)),
            why_no_gradient="no batch has been seen" if fits else too_large,
        )

    @property
    def rows(self) -> int:
        """Input rows seen."""
        return self.inputs.count

    @property
    def noise(self) -> float | None:
        r"""Estimated fraction of ``|G|_F^2`` that is chance of the batches; None if it cannot be told.

        .. math:: \frac{\overline{|G_b|^2} - |\bar G|^2}{(N - 1)\, |\bar G|^2},
            \qquad E|\bar G|^2 = |E\,G|^2 + \mathrm{Var}(G_b)/N

        for ``N`` independent batches; above 1 where the noise is most of it. Not told with one batch, or where the
        layer ran several times in a batch.

        Source:
            The unbiased variance of a mean: textbook; its use here is ours.
        """
        if self.gradient is None or self.batches < 2 or self._repeated:
            return None
        energy = self.gradient.double().square().sum().item()
        return max(0.0, (self._energy / self.batches - energy) / ((self.batches - 1) * energy)) if energy else None

    @property
    def weight(self) -> Tensor | None:
        """``W0`` as a matrix ``(m, n)``, or None where the base holds no plain floating weight."""
        weight = getattr(self.base, "weight", None)
        kind = kind_of(self.base)
        if kind is None or type(weight) not in (nn.Parameter, Tensor) or not cast(Tensor, weight).is_floating_point():
            return None
        return kind.matrix_of(self.base, cast(Tensor, weight).detach())

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        held = [getattr(part, name, None) for part in (self.inputs, self.output_gradients) for name in _HELD]
        return sum(t.numel() * t.element_size() for t in (*held, self.gradient) if isinstance(t, Tensor))

    def add_inputs(self, x: Tensor, mask: Tensor | None) -> None:
        """Take in the inputs of one call of the layer.

        Args:
            x: Its input.
            mask: True where a position counts, or None; used where its shape, or its flattened one, is that of the
                positions of ``x``.

        Raises:
            AttachError: An embedding is given other than indices.
        """
        if isinstance(self.inputs, EntryCounts):
            if x.is_floating_point():
                raise AttachError(
                    f"{self.name} is an embedding that was given {x.dtype} values and makes its own indices of them, so"
                    " there are no entries to count. Leave it out of targets."
                )
            self.inputs.update(_counted(x, self._fitting(mask, x.shape), self.base))
            return
        positions = self._fitting(mask, x.shape[:-1]) if self.kind == "linear" else None
        for rows in _input_rows(self.base, x.detach()):
            _update(self.inputs, rows, positions)

    def add_gradient(self, x: Tensor, gradient: Tensor, mask: Tensor | None) -> None:
        """Take in the gradient of the outputs of one call of the layer.

        ``G`` is that of all positions, as an optimizer would see it; the mask is for the moment alone.

        Args:
            x: The input of that call.
            gradient: Of its output.
            mask: As for `add_inputs`.
        """
        x, gradient = x.detach(), gradient.detach()
        places = gradient.shape[:-1] if self.kind != "convolution" else None
        positions = None if places is None else self._fitting(mask, places)
        for rows in _gradient_rows(self.base, gradient):
            _update(self.output_gradients, rows, positions)
        if self.outputs * self.fan_in > LARGEST_GRADIENT:
            return
        added = _weight_gradient(self.base, x, gradient, (self.outputs, self.fan_in))
        self._energy += added.double().square().sum().item()
        self._calls += 1
        self._repeated |= self._calls > 1
        self.gradient = added if self.gradient is None else self.gradient.add_(added)

    def end_batch(self) -> None:
        """Say that a batch is over."""
        self.batches += 1
        self._calls = 0

    def finish(self) -> None:
        """Turn the sum of the gradients into their mean."""
        if self.gradient is not None:
            self.gradient /= self.batches
            self.why_no_gradient = ""
        elif self.outputs * self.fan_in <= LARGEST_GRADIENT:
            unheard = "it ran with gradients off" if self.heard_without_gradients else "it was not run"
            self.why_no_gradient = "its output does not reach the loss" if self.rows else unheard

    @staticmethod
    def _fitting(mask: Tensor | None, places: torch.Size) -> Tensor | None:
        if mask is None or mask.numel() != math.prod(places):
            return None
        # Routed and packed layers see the positions in one row.
        return mask.bool().reshape(-1) if tuple(mask.shape) == tuple(places) or len(places) == 1 else None


_HELD = ("counts", "mean", "_scatter", "_omega")


def _moment(width: int, sketch_above: int) -> InputMoment:
    return InputMoment(width, sketch=0 if width <= max(sketch_above, 3) else min(SKETCH_COLUMNS, width - width % 2))


def _update(moment: InputMoment, rows: Tensor, positions: Tensor | None) -> None:
    """Add rows ``(T, d)`` in chunks, so that their float64 copies stay small."""
    kept = rows if positions is None else rows[positions.to(rows.device)]
    for chunk in kept.split(max(1, _CHUNK // moment.width)):
        moment.update(chunk)


def _counted(entries: Tensor, positions: Tensor | None, base: Any) -> Tensor:
    """Return the entries that count: masked ones and the padding entry, which no gradient reaches, left out."""
    flat = entries.reshape(-1)
    kept = flat if positions is None else flat[positions.to(flat.device)]
    return kept if base.padding_idx is None else kept[kept != base.padding_idx]


def _input_rows(base: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Yield the rows ``(T, n)`` that the matrix of a linear layer or a convolution is multiplied with."""
    if not ConvAdapter.takes(base):
        yield x.reshape(-1, x.shape[-1])
        return
    for part in _samples(base, x):
        yield patches(base, part)


def _gradient_rows(base: nn.Module, gradient: Tensor) -> Iterator[Tensor]:
    """Yield the output gradients as rows ``(T, m)``, in the order and the parts of the inputs."""
    if not ConvAdapter.takes(base):
        yield gradient.reshape(-1, gradient.shape[-1])
        return
    for part in _samples(base, gradient):
        yield part.movedim(1, -1).flatten(0, -2)


def _samples(base: Any, x: Tensor) -> tuple[Tensor, ...]:
    # One at a time: patches of a 3 x 3 kernel are nine times the size of the image.
    batched = x if x.dim() == base.weight.dim() else x[None]
    return batched.split(1)


def patches(base: Any, x: Tensor) -> Tensor:
    """Return what a convolution's kernel lies on at each position, as rows.

    Args:
        base: The convolution, its padding with zeros.
        x: Its input, shape ``(batch, channels, size...)``.

    Returns:
        Shape ``(T, channels * kernel...)``, positions in the order of the output.

    Example:
        >>> patches(nn.Conv1d(1, 1, 2, stride=2), torch.arange(4.0).reshape(1, 1, 4))
        tensor([[0., 1.],
                [2., 3.]])
    """
    spread = [d * (k - 1) + 1 for d, k in zip(base.dilation, base.kernel_size, strict=True)]
    sides = [(p, p) for p in base.padding] if isinstance(base.padding, tuple) else [(0, 0)] * len(spread)
    if base.padding == "same":
        sides = [((size - 1) // 2, size // 2) for size in spread]
    windows = F.pad(x, [side for pair in reversed(sides) for side in pair])
    for axis, (size, step, dilation) in enumerate(zip(spread, base.stride, base.dilation, strict=True)):
        windows = windows.unfold(axis + 2, size, step)[..., ::dilation]
    # (batch, channels, positions..., kernel...): the channels go before the kernel, as in the weight.
    windows = windows.movedim(1, 1 + len(spread))
    return windows.reshape(-1, base.in_channels * math.prod(base.kernel_size))


def _weight_gradient(base: nn.Module, x: Tensor, gradient: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return ``sum dZ^T x`` of one call, in float32 or wider."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if isinstance(base, nn.Embedding):
        flat, rows = x.reshape(-1), gradient.reshape(-1, shape[0]).to(wide)
        # Gemma's embedding multiplies what it looked up.
        rows = rows * float(getattr(base, "embed_scale", 1.0))
        kept = torch.ones_like(flat, dtype=torch.bool) if base.padding_idx is None else flat != base.padding_idx
        table = torch.zeros(shape[1], shape[0], dtype=wide, device=rows.device)
        return table.index_add_(0, flat[kept], rows[kept]).T
    found = torch.zeros(shape, dtype=wide, device=gradient.device)
    for rows, at_outputs in zip(_input_rows(base, x), _gradient_rows(base, gradient), strict=True):
        found.addmm_(at_outputs.to(wide).T, rows.to(wide))
    return found
