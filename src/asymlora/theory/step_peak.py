"""The peak of live tensor bytes in one training step, and what fits in a given memory.

The ops of a `Tape` are walked forward and back: an output lives until its last reader or the op that keeps it is done,
a gradient from its first contribution to the op that made its tensor. What an op needs inside a library's own kernels,
the allocator's rounding and the process itself are not tensors and not in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from asymlora.errors import SpecError
from asymlora.theory.block_cost import Batch, run_blocks
from asymlora.theory.cost import WeightType, frozen_factor_bytes, training_bytes, weight_bytes
from asymlora.theory.model_shapes import ModelShape
from asymlora.theory.tape import Step, Storage, Tape


class StepPeak(NamedTuple):
    """Where the bytes are when most of them are live.

    Attributes:
        base: Base weights, constants of quantisation and buffers.
        factors: Values of both factors, and of what is trained beside them.
        optimizer: State and float32 copies.
        step: Activations, gradients and scratch, at their common peak.
    """

    base: int
    factors: int
    optimizer: int
    step: int

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return sum(self)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a step runs, besides model and batch.

    Attributes:
        optimizer: A row of `asymlora.theory.cost.OPTIMIZERS`.
        checkpointing: Whether each block keeps its input only.
        base: How base weights are stored; None: as the model has them.
        master: Whether float32 copies of narrower trained values are held.
    """

    optimizer: str = "adamw"
    checkpointing: bool = False
    base: WeightType | None = None
    master: bool = False


def base_bytes(shape: ModelShape, dtype: WeightType | None = None) -> int:
    """Return the bytes of the base: of a quantised one the trunk's linear weights are packed, the rest is not.

    Args:
        shape: The model.
        dtype: How the weights are stored; None: as the model has them.

    Returns:
        Weights and buffers.
    """
    if dtype is None:
        return shape.base_values * shape.itemsize + shape.buffer_bytes
    if dtype not in ("nf4", "int8"):
        return weight_bytes(shape.base_values, dtype) + shape.buffer_bytes
    packed = sum(weight_bytes(values, dtype, rows=rows) for values, rows in shape.matrix_values)
    rest = shape.base_values - sum(values for values, _ in shape.matrix_values)
    return packed + rest * shape.itemsize + shape.buffer_bytes


def step_peak(shape: ModelShape, batch: Batch, training: Training = Training()) -> StepPeak:
    """Return the peak of live tensor bytes in a training step with a loss, from the second step on.

    Args:
        shape: The model, with what is trained.
        batch: What runs through it.
        training: Optimizer and storage.

    Returns:
        The parts in bytes.

    Raises:
        SpecError: The model has no block that is known, or nothing is trained.

    Source:
        Derived here; held to a count of real steps in the tests, to 5 percent. The largest part of the difference are
        tensors that a model's Python code still names while the next op runs.
    """
    if not shape.blocks:
        raise SpecError("This model has no block of a known kind, so its activations cannot be told. See BLOCK_PATHS.")
    if not shape.trained_values:
        raise SpecError("Nothing is trained, so there is no training step. Give read_model a spec, or full=True.")
    itemsize = next((layer.factor_itemsize for layer in shape.adapted.values()), shape.itemsize)
    in_full = sum(shape.saved_values)
    own = training_bytes(shape.trained_shapes, itemsize=itemsize, optimizer=training.optimizer, master=training.master)
    moving = _checkpointed_peak(shape, batch) if training.checkpointing else _plain_peak(shape, batch)
    if training.base in ("nf4", "int8"):  # each packed weight is unpacked while it is read; counted in full at the peak
        moving += batch.itemsize * max((values for values, _ in shape.matrix_values), default=0)
    # AdamW's loop forms two tensors of the size of the one that it updates.
    scratch = 2 * itemsize * max(shape.trained_shapes) if training.optimizer == "adamw" else 0
    return StepPeak(
        base=base_bytes(shape, training.base) - in_full * shape.itemsize,
        factors=own.parameters + frozen_factor_bytes(shape.adapted.values()),
        optimizer=own.optimizer + own.master,
        step=max(moving, own.gradients + scratch),
    )


def _plain_peak(shape: ModelShape, batch: Batch) -> int:
    tape = batch.tape()
    x = _input(tape, shape, batch)
    states = run_blocks(tape, x, shape.blocks, batch)
    _add_head(tape, states[-1], shape, batch)
    return walk(tape.steps, given=(x,))


def _checkpointed_peak(shape: ModelShape, batch: Batch) -> int:
    # All inputs are there when the last block runs again, with the gradient of its output.
    states = len(shape.blocks) * batch.tokens * shape.blocks[0].hidden * batch.itemsize
    head, block = batch.tape(), batch.tape()
    x = _input(head, shape, replace(batch, input_grad=True))
    _add_head(head, x, shape, batch)
    y = _input(block, shape, replace(batch, input_grad=True))
    run_blocks(block, y, shape.blocks[-1:], batch)
    return states + max(walk(head.steps, given=(x,)), walk(block.steps, given=()))


def _input(tape: Tape, shape: ModelShape, batch: Batch) -> Storage:
    elements = batch.tokens * shape.blocks[0].hidden
    return tape.given("block input", elements, batch.itemsize, grad=batch.input_grad)


def _add_head(tape: Tape, x: Storage, shape: ModelShape, batch: Batch) -> None:
    head = shape.head
    if head is None:
        return
    if head.norm is not None:
        x = (tape.rms_norm if head.norm == "rms" else tape.layer_norm)(x, rows=batch.tokens)
    rows = batch.size if head.pools else batch.tokens
    if head.pools:
        x = tape.view("first tokens", x, rows * shape.blocks[0].hidden)
    for at, layer in enumerate(head.layers):
        x = tape.activation(x, "tanh") if at else x
        x = tape.linear(x, layer, rows=rows, name="logits")
    # Cross entropy in float32: the logarithms are kept; their gradient and that of the logits follow.
    wide = tape.cast(x, 4)
    logs = tape.op("log softmax", (wide,), keeps_output=True)
    tape.op("loss", (logs,), kept=(logs,), elements=1)


# The walk ------------------------------------------------------------------------------------------------------------


class _Ledger:
    """Bytes that are live, by holder; the highest sum is remembered."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def take(self, nbytes: int, scratch: int = 0) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now + scratch)

    def give(self, nbytes: int) -> None:
        self.now -= nbytes


def walk(steps: list[Step], *, given: Iterable[Storage] = ()) -> int:
    """Return the peak of the bytes that are live while steps run forward and then backward.

    Args:
        steps: Ops in the order in which they run forward.
        given: Storages that are there before the first and live at least as long as their readers.

    Returns:
        Bytes.

    Example:
        >>> tape = Tape()
        >>> x = tape.given("x", 100, 4)
        >>> _ = tape.op("y", (x,), kept=(x,))
        >>> walk(tape.steps, given=(x,)) == 3 * 400  # x, the gradient of y and that of x
        True
    """
    ledger = _Ledger()
    for storage in given:
        ledger.take(storage.nbytes)
    keepers = Counter(storage for step in steps for storage in {value.of for value in step.kept})
    _walk_forward(steps, ledger, keepers, set(given))
    _walk_backward(steps, ledger, keepers)
    return ledger.peak


def _walk_forward(steps: list[Step], ledger: _Ledger, keepers: Counter[Storage], live: set[Storage]) -> None:
    last = {value.of: at for at, step in enumerate(steps) for value in (*step.inputs, step.output)}
    for at, step in enumerate(steps):
        made = {value.of for value in (step.output, *step.kept)} - live
        live |= made
        ledger.take(sum(storage.nbytes for storage in made), step.forward_scratch)
        for storage in {value.of for value in (*step.inputs, step.output)}:
            if last[storage] == at and not keepers[storage] and storage in live:
                live.remove(storage)
                ledger.give(storage.nbytes)


class _Gradient:
    """One tensor of gradients; sums hand the same one to several storages."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.holders = nbytes, 1


def _walk_backward(steps: list[Step], ledger: _Ledger, keepers: Counter[Storage]) -> None:
    gradients: dict[Storage, _Gradient] = {}
    if steps and steps[-1].output.grad:
        gradients[steps[-1].output] = _Gradient(steps[-1].output.nbytes)
        ledger.take(steps[-1].output.nbytes)
    for step in reversed(steps):
        incoming = gradients.pop(step.output, None)
        if incoming is not None:
            _give_gradients(step, incoming, gradients, ledger)
        for storage in {value.of for value in step.kept}:
            keepers[storage] -= 1
            if not keepers[storage]:
                ledger.give(storage.nbytes)


def _give_gradients(step: Step, incoming: _Gradient, gradients: dict[Storage, _Gradient], ledger: _Ledger) -> None:
    made: list[tuple[Storage, _Gradient]] = []
    for value in step.inputs:
        if not value.grad or (step.output.is_view and value in gradients):
            continue  # the gradients of several parts are put together in one tensor
        if step.hands_on:
            incoming.holders += 1
            made.append((value, incoming))
        else:
            made.append((value, _Gradient(value.nbytes)))
            ledger.take(value.nbytes)
    ledger.take(step.parameter_gradients, step.backward_scratch)
    _release(incoming, ledger)
    for value, gradient in made:
        held = gradients.get(value)
        if held is None:
            gradients[value] = gradient
        elif held.holders > 1:  # a shared tensor is not written to: the sum is a new one
            ledger.take(held.nbytes)
            gradients[value] = _Gradient(held.nbytes)
            _release(held, ledger)
            _release(gradient, ledger)
        else:
            _release(gradient, ledger)


def _release(gradient: _Gradient, ledger: _Ledger) -> None:
    gradient.holders -= 1
    if not gradient.holders:
        ledger.give(gradient.nbytes)


# What fits -----------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """The largest batch at one rank.

    Attributes:
        rank: Width of the bottleneck.
        size: Sequences in the batch.
        peak_bytes: What the step then takes.
    """

    rank: int
    size: int
    peak_bytes: int


def largest_fit(
    memory: int,
    shape_at: Callable[[int], ModelShape],
    *,
    ranks: Iterable[int],
    batch: Batch,
    training: Training = Training(),
) -> tuple[Fit, ...]:
    """Return the largest batch that fits in a memory, for each rank at which one sequence fits.

    Args:
        memory: Bytes for tensors; leave room for the process, the context of the device and the allocator's rounding.
        shape_at: Model and adapter at a rank.
        ranks: Ranks to try.
        batch: Length, types and kernels; its size is replaced.
        training: Optimizer and storage.

    Returns:
        One entry a rank that fits, in the order given.

    Raises:
        SpecError: ``memory`` is not positive.
    """
    if memory <= 0:
        raise SpecError(f"memory={memory} must be a number of bytes above 0, for instance 24 * 10**9.")
    fits: list[Fit] = []
    for rank in ranks:
        shape = shape_at(rank)

        def peak(size: int, shape: ModelShape = shape) -> int:
            return step_peak(shape, replace(batch, size=size), training).total

        if peak(1) > memory:
            continue
        low, high = 1, 2
        while peak(high) <= memory:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if peak(middle) <= memory else (low, middle)
        fits.append(Fit(rank, low, peak(low)))
    return tuple(fits)


def largest_rank(
    memory: int,
    shape_at: Callable[[int], ModelShape],
    *,
    most: int,
    batch: Batch,
    training: Training = Training(),
) -> int:
    """Return the largest rank at which a batch fits, or 0.

    Args:
        memory: As for `largest_fit`.
        shape_at: As for `largest_fit`.
        most: Largest rank that the layers allow.
        batch: The batch.
        training: As for `largest_fit`.

    Returns:
        A rank from 1 to ``most``; 0 where not even rank 1 fits.
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = step_peak(shape_at(middle), batch, training).total <= memory
        low, high = (middle, high) if fits else (low, middle)
    return low
