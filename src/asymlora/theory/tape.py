"""What autograd keeps for backward, op by op, on tensors that have a size and no values.

``T`` tokens, ``n`` features in, ``m`` features out, ``r`` rank. An op here says of torch's op of the same name which
storages it keeps, with frozen base weights; a storage that two ops keep counts once. What a transformer block is made
of stands in `asymlora.theory.block_cost`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from asymlora.orders import KERNEL_COSTS, LOW_RANK, NARROW_BELOW, TORCH_COSTS, Order, choose_order
from asymlora.theory.cost import AdaptedLayer

_TILE = 512  # tokens that the products cast at a time (`asymlora.ops`)


class Storage:
    """One piece of memory, known by identity.

    Args:
        name: What it holds, for breakdowns.
        elements: How many entries.
        itemsize: Bytes of one entry.
        grad: Whether a gradient flows into it.
        of: The storage that this one is a view of, or None.
    """

    __slots__ = ("elements", "grad", "itemsize", "name", "of")

    def __init__(
        self, name: str, elements: int, itemsize: int, *, grad: bool = True, of: Storage | None = None
    ) -> None:
        self.name, self.elements, self.itemsize, self.grad = name, elements, itemsize, grad
        self.of = self if of is None else of.of

    @property
    def nbytes(self) -> int:
        """Bytes of the view's own entries."""
        return self.elements * self.itemsize

    @property
    def is_view(self) -> bool:
        """Whether the memory is another's."""
        return self.of is not self

    def __repr__(self) -> str:
        return f"{self.name}[{self.elements} x {self.itemsize}]"


class Step(NamedTuple):
    """One op.

    Attributes:
        inputs: What it reads and gives a gradient to, where they take one.
        output: What it makes.
        kept: What it keeps for backward.
        forward_scratch: Bytes that live only while it runs forward.
        backward_scratch: Bytes that live only while it runs backward, besides the gradients of its inputs.
        hands_on: Whether the gradient of an input is the very tensor that came in (sums, views).
        parameter_gradients: Bytes of the gradients of trained weights that its backward makes.
    """

    inputs: tuple[Storage, ...]
    output: Storage
    kept: tuple[Storage, ...]
    forward_scratch: int = 0
    backward_scratch: int = 0
    hands_on: bool = False
    parameter_gradients: int = 0


class Tape:
    """The ops of a forward pass in order, and what each keeps.

    Args:
        kernel: Whether asymlora's C kernel runs the thin products (float32 on the CPU). Without it a ``B`` that is not
            laid out along its rows is copied, and the copy kept.
        on_cpu: Whether torch's CPU code runs. Other devices keep masks of bytes, seeds in place of our own dropout's
            bits, and moments in float32; that was read in the code and not measured.

    Example:
        >>> tape = Tape()
        >>> x = tape.given("x", 64 * 16, 4)
        >>> layer = AdaptedLayer(fan_in=16, fan_out=8, rank=2, trains_A=False)
        >>> _ = tape.linear(x, layer, rows=64)
        >>> tape.saved_bytes() == 64 * 2 * 4  # the code
        True
    """

    def __init__(self, *, kernel: bool = True, on_cpu: bool = True) -> None:
        self.steps: list[Step] = []
        self.kernel, self.on_cpu = kernel and on_cpu, on_cpu
        self._shared_masks: dict[tuple[str, int], Storage] = {}

    def saved(self) -> list[Storage]:
        """Return every storage that some op keeps, once, in the order of the ops."""
        return list(dict.fromkeys(value.of for step in self.steps for value in step.kept))

    def saved_bytes(self) -> int:
        """Return the bytes of `saved`."""
        return sum(storage.nbytes for storage in self.saved())

    def given(self, name: str, elements: int, itemsize: int, *, grad: bool = True) -> Storage:
        """Return a storage that no op on this tape makes."""
        return Storage(name, elements, itemsize, grad=grad)

    def op(
        self,
        name: str,
        inputs: Sequence[Storage],
        *,
        kept: Iterable[Storage] = (),
        keeps_output: bool = False,
        elements: int | None = None,
        itemsize: int | None = None,
        **costs: int | bool,
    ) -> Storage:
        """Add an op that gives a gradient to ``inputs`` and return its output.

        Args:
            name: Of the output.
            inputs: What takes part in the gradient.
            kept: What is kept if any input takes a gradient.
            keeps_output: Whether the output is kept too.
            elements: Of the output; default: as the first input.
            itemsize: Of the output; default: as the first input.
            **costs: Further fields of `Step`.

        Returns:
            The output.
        """
        grad = any(value.grad for value in inputs) or bool(costs.get("parameter_gradients"))
        first = inputs[0]
        output = Storage(
            name,
            first.elements if elements is None else elements,
            first.itemsize if itemsize is None else itemsize,
            grad=grad,
        )
        keeps = (*kept, *((output,) if keeps_output else ())) if grad else ()
        self.steps.append(Step(tuple(inputs), output, keeps, **costs))  # pyright: ignore[reportArgumentType]
        return output

    def view(self, name: str, x: Storage, elements: int) -> Storage:
        """Return a part of ``x``, in the same memory."""
        part = Storage(name, elements, x.itemsize, grad=x.grad, of=x)
        self.steps.append(Step((x,), part, ()))
        return part

    def product(self, name: str, a: Storage, b: Storage, *, elements: int | None = None) -> Storage:
        """Multiply two storages (entry by entry, or as matrices): each is kept for the gradient of the other."""
        kept = [other for own, other in ((a, b), (b, a)) if own.grad]
        return self.op(name, (a, b), kept=kept, elements=elements)

    def add(self, name: str, a: Storage, b: Storage) -> Storage:
        """Add two storages; the gradient is handed on."""
        return self.op(name, (a, b), hands_on=True)

    def cast(self, x: Storage, itemsize: int) -> Storage:
        """Return ``x`` in another width, or ``x`` itself."""
        return x if x.itemsize == itemsize else self.op(f"{x.name} cast", (x,), itemsize=itemsize)

    def copy(self, x: Storage) -> Storage:
        """Return ``x`` in another memory layout, a new storage."""
        return self.op(f"{x.name} copy", (x,))

    def dropout(self, x: Storage, p: float) -> Storage:
        """Apply `torch.nn.Dropout` in training: on a CPU it keeps a mask of the input's own type.

        Args:
            x: Input.
            p: Fraction dropped; 0 is no op.
        """
        if not p:
            return x
        mask = Storage(f"{x.name} mask", x.elements, x.itemsize if self.on_cpu else 1, grad=False)
        return self.op(f"{x.name} dropped", (x,), kept=(mask,))

    def layer_norm(self, x: Storage, *, rows: int, trains_gain: bool = False) -> Storage:
        """Apply `torch.nn.LayerNorm` over ``rows``: keeps the input, a mean and a reciprocal deviation a row.

        A trained gain costs nothing more: its gradient is formed from the same three.
        """
        moments = Storage(f"{x.name} moments", 2 * rows, x.itemsize if self.on_cpu else 4, grad=False)
        width = x.elements // rows
        return self.op(
            "normed",
            (x,),
            kept=(x, moments),
            parameter_gradients=2 * width * x.itemsize if trains_gain else 0,
        )

    def rms_norm(self, x: Storage, *, rows: int, trains_gain: bool = False) -> Storage:
        """Apply Llama's `RMSNorm`, which is written out in float32: keeps its input in float32 and a scalar a row."""
        wide = self.cast(x, 4)
        square = self.op("square", (wide,), kept=(wide,))
        variance = self.op("variance", (square,), elements=rows)
        scale = self.op("rms", (variance,), keeps_output=True)
        normed = self.cast(self.product("scaled", wide, scale), x.itemsize)
        gain = x.elements // rows * x.itemsize if trains_gain else 0
        return self.op("normed", (normed,), kept=(normed,) if trains_gain else (), parameter_gradients=gain)

    def activation(self, x: Storage, name: str) -> Storage:
        """Apply an activation by its name in transformers.

        Args:
            x: Input.
            name: A row of `ACTIVATION_KEEPS`.
        """
        if name == "gelu_new":  # GPT-2's, written out: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
            cube = self.op("cube", (x,), kept=(x,))
            inner = self.op("inner", (self.add("inner sum", x, self.op("scaled cube", (cube,))),))
            bent = self.op("tanh", (inner,), keeps_output=True)
            return self.product("activated", self.op("half", (x,)), self.op("one plus tanh", (bent,), hands_on=True))
        keeps_output = ACTIVATION_KEEPS[name] == "output"
        return self.op("activated", (x,), kept=() if keeps_output else (x,), keeps_output=keeps_output)

    # The adapted layer ------------------------------------------------------------------------------------------

    def linear(self, x: Storage, layer: AdaptedLayer, *, rows: int, name: str = "out") -> Storage:
        """Apply a linear layer with whatever it carries.

        Args:
            x: Input, ``rows * fan_in`` entries.
            layer: Sizes and what is trained.
            rows: Tokens, ``T``.
            name: Of the output.

        Returns:
            ``rows * fan_out`` entries.
        """
        if layer.trains_weight:
            weights = layer.fan_in * layer.fan_out + layer.bias * layer.fan_out
            return self.op(
                name,
                (x,),
                kept=(x,),
                elements=rows * layer.fan_out,
                parameter_gradients=weights * x.itemsize,
            )
        if not layer.rank:
            return self.op(name, (x,), elements=rows * layer.fan_out)
        branch = self._peft_linear if layer.branch == "peft" else self._own_linear
        return branch(x, layer, rows=rows, name=name)

    def _own_linear(self, x: Storage, layer: AdaptedLayer, *, rows: int, name: str) -> Storage:
        same = x.itemsize == layer.factor_itemsize
        one_function = self.kernel and same and x.itemsize == 4 and not layer.dropout
        order = self._order(x, layer, rows)
        by_torch = same and not one_function and not layer.dropout and order == LOW_RANK
        by_torch = by_torch and (x.itemsize >= 4 or not self.on_cpu)
        kept: list[Storage] = []
        if layer.trains_A:
            # The kernel reads an input without gaps: of a part of another tensor it keeps its own copy.
            gaps = x.is_view and rows > 1
            kept.append(Storage("part copy", x.elements, x.itemsize) if gaps and one_function else x)
        code = Storage(f"{name} code", rows * layer.rank, self._product_itemsize(x, layer), grad=False)
        if layer.trains_B:
            kept.append(code)
        if layer.dropout and (x.grad or layer.trains_A):
            kept.append(self._mask(x, layer))
        if by_torch and not (layer.trains_B or layer.B_along_rows) and layer.rank < NARROW_BELOW:
            kept.append(Storage("B along rows", layer.fan_out * layer.rank, x.itemsize, grad=False))
        forward, backward = self._scratch(x, layer, rows)
        folded = layer.fan_in * layer.fan_out * x.itemsize
        return self.op(
            name,
            (x,),
            kept=kept,
            elements=rows * layer.fan_out,
            forward_scratch=folded * order.folds_forward + forward + code.nbytes * (not layer.trains_B),
            backward_scratch=folded * order.folds_backward + backward + code.nbytes + x.nbytes * by_torch,
            parameter_gradients=layer.trained_factor_values * layer.factor_itemsize,
        )

    def _product_itemsize(self, x: Storage, layer: AdaptedLayer) -> int:
        # Products of narrow types run in float32 on a CPU, elsewhere in the type of the input.
        return max(4, x.itemsize, layer.factor_itemsize) if self.on_cpu else x.itemsize

    def _scratch(self, x: Storage, layer: AdaptedLayer, rows: int) -> tuple[int, int]:
        """Return the bytes that the branch needs in passing, forward and backward, beside output and gradients."""
        cast = x.itemsize < 4 and self.on_cpu
        tile = min(rows, _TILE) * 4 * cast  # for each feature
        read, out = x.nbytes * bool(layer.dropout), rows * layer.fan_out * x.itemsize
        # Drawing takes 16 bits a value and a byte of comparison, all before the output is there.
        drawn = 3 * x.elements * bool(layer.dropout) * self.on_cpu
        forward = max(read + drawn - out, read + tile * layer.fan_in - out, read + tile * layer.fan_out)
        # Masked again: the product in float32 twice and a byte a value, before the gradient of the input is there.
        masked = max(9 * x.elements - x.nbytes, 4 * x.elements) if layer.dropout else tile * layer.fan_in
        return forward, max(masked, tile * layer.fan_out - x.nbytes)

    def _mask(self, x: Storage, layer: AdaptedLayer) -> Storage:
        # On a CPU one bit a value, rounded up to bytes; elsewhere a seed. Layers that share A share the mask.
        size = math.ceil(x.elements / 8) if self.on_cpu else 8
        fresh = Storage("dropout bits", size, 1, grad=False)
        if layer.shared_A is None or x.itemsize != layer.factor_itemsize:
            return fresh
        return self._shared_masks.setdefault((layer.shared_A, id(x)), fresh)

    def _order(self, x: Storage, layer: AdaptedLayer, rows: int) -> Order:
        differ = x.itemsize != layer.factor_itemsize
        if layer.dropout or differ or x.itemsize < 4 or layer.shared_A is not None or not self.on_cpu:
            return LOW_RANK
        costs = KERNEL_COSTS if self.kernel and x.itemsize == 4 else TORCH_COSTS
        return choose_order(rows, layer.fan_in, layer.fan_out, layer.rank, layer.trains_A, x.grad, costs)

    def _peft_linear(self, x: Storage, layer: AdaptedLayer, *, rows: int, name: str) -> Storage:
        base = self.op(f"{name} base", (x,), elements=rows * layer.fan_out)
        wide = self.cast(x, layer.factor_itemsize)  # a copy of its own for every layer
        read = self.dropout(wide, layer.dropout)
        down, up = (
            trained * layer.rank * width * layer.factor_itemsize
            for trained, width in ((layer.trains_A, layer.fan_in), (layer.trains_B, layer.fan_out))
        )
        code = self.op(
            f"{name} code",
            (read,),
            kept=(read,) if layer.trains_A else (),
            elements=rows * layer.rank,
            parameter_gradients=down,
        )
        branch = self.op(
            f"{name} branch",
            (code,),
            kept=(code,) if layer.trains_B else (),
            elements=rows * layer.fan_out,
            parameter_gradients=up,
        )
        scaled = self.op(f"{name} scaled", (branch,))
        total = self.op(name, (scaled, base), hands_on=True)
        return self.cast(total, x.itemsize)


ACTIVATION_KEEPS = {
    "gelu": "input",
    "gelu_pytorch_tanh": "input",
    "gelu_new": "four tensors",
    "silu": "input",
    "relu": "output",
    "tanh": "output",
}
"""What torch keeps of each activation, by its name in transformers."""
