"""Whether a training step will fit in memory: told before the first one, with what to change where it will not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from asymlora.cpu_kernel import kernel
from asymlora.errors import SpecError
from asymlora.factor_spec import PRESETS
from asymlora.kinds import kind_of
from asymlora.layers import LinearAdapter
from asymlora.spec import AdapterSpec
from asymlora.theory.block_cost import Batch, attention_kernel
from asymlora.theory.model_shapes import ModelShape, read_model
from asymlora.theory.step_peak import StepPeak, Training, largest_fit, step_peak

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 writes a page-rounded 2**63 where there is no limit
_STATE_ROWS = {
    **dict.fromkeys(("adadelta", "adam", "adamax", "adamw", "nadam", "radam", "rprop"), "adamw"),
    **dict.fromkeys(("adagrad", "asgd", "muon", "rmsprop"), "momentum"),
    **dict.fromkeys(("adafactor", "sgd"), "sgd"),
}
"""The row of `asymlora.theory.cost.OPTIMIZERS` that holds as much state as an optimizer of torch."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A training step as it is planned.

    Attributes:
        batch: Rows of a forward pass, at least 1.
        length: Tokens of a row: texts as cut, patches of an image.
        optimizer: Of torch, by name.
        momentum: Whether plain SGD has momentum.
        checkpointing: Whether each block keeps its input only.
        base: How the base is stored: ``float32``, ``bfloat16``, ``nf4`` or ``int8``.
        everything: Whether the whole model is trained, with no adapter.
        device: Type of the device that trains.
    """

    batch: int
    length: int
    optimizer: str = "adamw"
    momentum: bool = False
    checkpointing: bool = False
    base: Literal["float32", "bfloat16", "nf4", "int8"] = "float32"
    everything: bool = False
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of the recipe that makes a step smaller.

    Attributes:
        change: What to set, in the recipe's words.
        peak_bytes: Predicted peak with it.
        fits: Whether that is no more than there is.
    """

    change: str
    peak_bytes: int
    fits: bool


@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """What a step needs, and what there is.

    Attributes:
        peak: Predicted peak of live tensors; None where it cannot be told.
        available: Bytes that the run can have, a model that is loaded already counted in; None where not known.
        remedies: What would make it smaller, the largest gain first; of a step that fits, none.
    """

    peak: StepPeak | None
    available: int | None
    remedies: tuple[Remedy, ...] = ()

    @property
    def too_large(self) -> bool:
        """Whether it is known that the step does not fit."""
        return self.peak is not None and self.available is not None and self.peak.total > self.available

    @property
    def sentence(self) -> str:
        """The line that a user reads before the training."""
        free = "an unknown amount" if self.available is None else f"the {_size(self.available)}"
        if self.peak is None:
            return f"The memory of a step is not predicted for this model; {free} is free."
        parts = (
            f"weights {_size(self.peak.base + self.peak.factors)}, optimizer {_size(self.peak.optimizer)},"
            f" activations and gradients {_size(self.peak.step)}"
        )
        return f"A step needs about {_size(self.peak.total)} of {free} that is free ({parts})."


def memory_line(
    model: nn.Module, spec: AdapterSpec | None, planned: Planned, *, available: int | None = None
) -> MemoryLine:
    """Predict the peak of a training step and set it against the memory that is there.

    Under autocast it is an upper bound, as activations count in the type of the weights. The process itself and what a
    library's kernels need inside are not in it (`asymlora.theory.step_peak`).

    Args:
        model: The model before an adapter is on it, loaded or on the meta device.
        spec: The adapter, with heads in ``modules_to_save``; None with ``everything``, or where nothing is predicted.
        planned: The step.
        available: Bytes that are there, a loaded model counted in; None: what this machine has.

    Returns:
        The prediction; where the step is too large, with remedies.
    """
    if available is None and (free := available_bytes(planned.device)) is not None:
        available = free + _held(model, planned.device)
    peak = _peak(model, spec, planned)
    line = MemoryLine(peak=peak, available=available)
    if not line.too_large or available is None:
        return line
    remedies = sorted(_remedies(model, spec, planned, available), key=lambda remedy: remedy.peak_bytes)
    assert peak is not None
    return replace(line, remedies=tuple(remedy for remedy in remedies if remedy.peak_bytes < peak.total))


def refuse_too_large(line: MemoryLine) -> None:
    """Refuse a step that is known not to fit, with what to change.

    Args:
        line: The prediction.

    Raises:
        SpecError: The predicted peak is larger than what is there.
    """
    if not line.too_large:
        return
    listed = "; ".join(
        f"{remedy.change}: {_size(remedy.peak_bytes)}{' (fits)' if remedy.fits else ''}" for remedy in line.remedies
    )
    enough = any(remedy.fits for remedy in line.remedies)
    advice = f" With one change each, the largest gain first: {listed}." if listed else ""
    last = "" if enough else " None of these is enough alone; take several, or a smaller model."
    raise SpecError(f"{line.sentence}{advice}{last} train.memory_check=false starts it all the same.")


def _peak(model: nn.Module, spec: AdapterSpec | None, planned: Planned) -> StepPeak | None:
    shape = _shape(model, spec, planned)
    return None if shape is None else step_peak(shape, _batch(model, planned), _training(planned))


def _shape(model: nn.Module, spec: AdapterSpec | None, planned: Planned) -> ModelShape | None:
    if spec is None and not planned.everything:
        return None  # a head alone: the trunk keeps nothing, which no row of the estimator says
    try:
        shape = read_model(model, None if planned.everything else spec, full=planned.everything)
    except SpecError:
        return None  # adapters on embeddings and convolutions, activations without a row
    if not shape.blocks or not shape.trained_values:
        return None
    packed = sum(_packed_away(module) for module in model.modules())
    itemsize = 2 if planned.base == "bfloat16" else 4
    return replace(shape, base_values=shape.base_values + packed, itemsize=itemsize)


def _packed_away(module: nn.Module) -> int:
    """Return how many entries a layer has beyond those that its packed weight shows."""
    weight = getattr(module, "weight", None)
    if kind_of(module) is not LinearAdapter or weight is None or any(True for _ in module.children()):
        return 0
    (_, n), (m, _) = LinearAdapter.factor_shapes(module, 1)
    return m * n - weight.numel()


def _batch(model: nn.Module, planned: Planned) -> Batch:
    config: Any = getattr(model, "config", None)
    attention = str(getattr(config, "_attn_implementation", None) or "eager")
    dropout = max((block.attention_dropout for block in read_model(model).blocks), default=0.0)
    itemsize = 2 if planned.base == "bfloat16" else 4
    # Other kernels keep no less than the plain one here; the prediction is then too large.
    known = attention if attention in ("sdpa", "eager") else "eager"
    return Batch(
        size=planned.batch,
        length=planned.length,
        itemsize=itemsize,
        attention=attention_kernel(known, device=planned.device, dropout=dropout),
        padded=True,
        input_grad=planned.everything or planned.checkpointing,
        kernel=planned.device == "cpu" and itemsize == 4 and kernel() is not None,
        device=planned.device,
    )


def _training(planned: Planned) -> Training:
    row = _STATE_ROWS.get(planned.optimizer.lower(), "adamw")
    if planned.optimizer.lower() == "sgd" and planned.momentum:
        row = "momentum"
    packed = planned.base if planned.base in ("nf4", "int8") else None
    return Training(optimizer=row, checkpointing=planned.checkpointing, base=packed)


def _remedies(model: nn.Module, spec: AdapterSpec | None, planned: Planned, available: int) -> Iterator[Remedy]:
    def remedy(change: str, spec: AdapterSpec | None, planned: Planned) -> Remedy | None:
        peak = _peak(model, spec, planned)
        return None if peak is None else Remedy(change=change, peak_bytes=peak.total, fits=peak.total <= available)

    found: list[Remedy | None] = []
    size = _largest_batch(model, spec, planned, available)
    if size < planned.batch:
        more = -(-planned.batch // size)
        words = f"train.batch_size={size} with {more} times the train.gradient_accumulation"
        found.append(remedy(words, spec, replace(planned, batch=size)))
    if not planned.checkpointing:
        found.append(remedy("train.gradient_checkpointing=true", spec, replace(planned, checkpointing=True)))
    if not planned.everything and planned.base != "nf4":
        found.append(remedy("model.base=nf4", spec, replace(planned, base="nf4")))
    if planned.everything:
        found.append(remedy("method=adapter", AdapterSpec(), replace(planned, everything=False)))
    elif spec is not None:
        if spec.trains["A"]:
            b_only = replace(spec, **PRESETS["b_only"], factor_pattern={})
            found.append(remedy("adapter.preset=b_only", b_only, planned))
        if spec.rank > 1:
            lower = replace(spec, rank=max(1, spec.rank // 2))
            found.append(remedy(f"adapter.rank={lower.rank}", lower, planned))
    yield from (each for each in found if each is not None)


def _largest_batch(model: nn.Module, spec: AdapterSpec | None, planned: Planned, available: int) -> int:
    shape = _shape(model, spec, planned)
    if shape is None or available <= 0:
        return 1
    fits = largest_fit(available, lambda _: shape, ranks=[1], batch=_batch(model, planned), training=_training(planned))
    return fits[0].size if fits else 1


# What this machine has -----------------------------------------------------------------------------------------------


def available_bytes(device: str = "cpu") -> int | None:
    """Return the memory that this process can still have, or None where that is not known.

    Args:
        device: ``cpu``: what the kernel can free up, within the limit of the control group (a container's); ``cuda``:
            what is free on the current device.

    Returns:
        Bytes.
    """
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    if device != "cpu":
        return None
    known = [amount for amount in (_of_machine(), *_of_groups()) if amount is not None]
    return max(0, min(known)) if known else None


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def _of_groups() -> Iterator[int | None]:
    # Inside of a container the group's own files stand at the root; of version 2, then of version 1.
    yield _left(_CGROUP / "memory.max", _CGROUP / "memory.current", _CGROUP / "memory.stat", "inactive_file")
    old = _CGROUP / "memory"
    yield _left(
        old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat", "total_inactive_file"
    )


def _left(limit: Path, used: Path, statistics: Path, reclaimable: str) -> int | None:
    try:
        most, now = limit.read_text(encoding="ascii").strip(), int(used.read_text(encoding="ascii"))
        rows = dict(line.split() for line in statistics.read_text(encoding="ascii").splitlines())
        return None if most == "max" or int(most) >= _UNLIMITED else int(most) - now + int(rows.get(reclaimable, 0))
    except (OSError, ValueError):
        return None


def _held(model: nn.Module, device: str) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if t.device.type == device}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _size(amount: int) -> str:
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"
