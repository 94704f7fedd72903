"""Hears each step of the optimizers that move some parameters, in any loop, by torch's global optimizer hooks."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class StepWatcher(Protocol):
    """Who is told of steps."""

    def parameters(self) -> Iterable[Tensor]:
        """Return what an optimizer may move now."""
        ...

    def wants(self, step: int) -> bool:
        """Whether to be told of this step."""
        ...

    def before(self, step: int) -> None:
        """Take note of the parameters before the step."""
        ...

    def gradients(self, parameters: Iterable[Tensor], *, scale: float) -> None:
        """Take note of the gradients of some parameters, those that the step uses, each ``scale`` times too large."""
        ...

    def after(self, step: int) -> None:
        """Take note of the parameters after the step."""
        ...


class OptimizerSteps:
    """Counts steps and tells a watcher of those that it wants; of the others the hooks only count.

    A step is one call of ``optimizer.step()`` where one optimizer holds the parameters. Where several hold a part each
    (one for ``A``, one for ``B``), their calls make one step together: it is over when each parameter had its turn, or
    an optimizer comes for the second time. Optimizers that hold none of the parameters are not heard, nor is a step
    that a gradient scaler leaves out. The gradient of a parameter that no optimizer holds is read with the others.

    The hooks hold this object by a weak reference and are gone with it.

    Args:
        watcher: Who is told.
    """

    def __init__(self, watcher: StepWatcher) -> None:
        self.step = 0
        self.strangers = False
        """Whether an optimizer stepped that holds none of the parameters."""
        self.heard = False
        """Whether one stepped that holds some."""
        self._watcher = watcher
        self._known: dict[int, Tensor] = {}
        self._held: weakref.WeakKeyDictionary[Optimizer, tuple[tuple[int, ...], frozenset[int]]]
        self._held = weakref.WeakKeyDictionary()
        self._stepped: frozenset[int] = frozenset()
        """What some optimizer has held so far."""
        self._expected: frozenset[int] | None = None
        self._done: frozenset[int] = frozenset()
        self._open = self._told = False
        self._reader: RemovableHandle | None = None
        self._remove: weakref.finalize[..., Any] | None = None

    @property
    def listening(self) -> bool:
        """Whether the hooks hang."""
        return self._remove is not None and self._remove.alive

    def listen(self) -> None:
        """Hang the hooks."""
        me = weakref.ref(self)

        def begins(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (found := me()) is not None:
                found._begins(optimizer)

        def ends(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (found := me()) is not None:
                found._ends(optimizer, with_closure=len(args) > 1 or kwargs.get("closure") is not None)

        handles = register_optimizer_step_pre_hook(begins), register_optimizer_step_post_hook(ends)
        self._remove = weakref.finalize(self, _remove_all, handles)

    def stop(self, *, finish: bool) -> None:
        """Take the hooks off.

        Args:
            finish: Whether a step that waits for another optimizer is over now; else it is dropped.
        """
        if self._remove is not None:
            self._remove()
        self._stop_reading()
        if self._open and finish and self._done:
            self._close()
        self._open, self._done = False, frozenset()

    def _begins(self, optimizer: Optimizer) -> None:
        if _leaves_out(optimizer):
            return
        if self._open and self._done & self._held_by(optimizer):
            self._close()
        if not self._open:
            self._told = self._watcher.wants(self.step + 1)
            if self._told or not self._known:
                self._look_again()
        held = self._held_by(optimizer)
        if not held:
            self.strangers = True
            return
        self.heard = True
        if not self._open:
            self._open = True
            if self._told:
                self._watcher.before(self.step + 1)
        if self._told:
            # Last in the optimizer's own row of hooks: some of them change the gradient (`correct_gradients`).
            self._stop_reading()
            self._stepped |= held
            self._reader = optimizer.register_step_pre_hook(lambda *_: self._read(optimizer))

    def _ends(self, optimizer: Optimizer, *, with_closure: bool) -> None:
        held = self._held_by(optimizer)
        if not held or not self._open or _leaves_out(optimizer):
            return
        self._stop_reading()
        if self._told and with_closure:  # the closure has computed the gradients
            self._read(optimizer)
        self._done |= held
        if self._expected is not None and self._done >= self._expected:
            self._close()

    def _read(self, optimizer: Optimizer) -> None:
        held, scale = self._held_by(optimizer), getattr(optimizer, "grad_scale", None)
        read = [parameter for i, parameter in self._known.items() if i in held or i not in self._stepped]
        self._watcher.gradients(read, scale=1.0 if scale is None else float(scale))

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.remove()
            self._reader = None

    def _close(self) -> None:
        self.step += 1
        self._expected, self._done, self._open = self._done, frozenset(), False
        if self._told:
            self._watcher.after(self.step)

    def _look_again(self) -> None:
        known = {id(parameter): parameter for parameter in self._watcher.parameters()}
        if known.keys() != self._known.keys():
            self._expected = frozenset(known)
        self._known, self._stepped = known, self._stepped & known.keys()
        self._held.clear()

    def _held_by(self, optimizer: Optimizer) -> frozenset[int]:
        sizes = tuple(len(group["params"]) for group in optimizer.param_groups)
        kept = self._held.get(optimizer)
        if kept is None or kept[0] != sizes:
            every = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
            kept = self._held[optimizer] = sizes, frozenset(every) & self._known.keys()
        return kept[1]


def _leaves_out(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler lets a fused optimizer leave its step out: `GradScaler.step` calls it all the same."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _remove_all(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
