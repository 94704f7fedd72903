"""What training a model costs, way by way: values, bytes, FLOPs and the bound, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from asymlora.errors import SpecError
from asymlora.factor_spec import PRESETS
from asymlora.spec import AdapterSpec
from asymlora.targets import match_saved_modules
from asymlora.theory.block_cost import Batch, saved_bytes
from asymlora.theory.bounds import GapBound
from asymlora.theory.cost import Flops, TrainingBytes, flops_per_token, layer_flops, training_bytes
from asymlora.theory.file_size import adapter_file_bytes
from asymlora.theory.model_shapes import ModelShape, read_model
from asymlora.theory.step_peak import Training, base_bytes, step_peak


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one way to train a model.

    Attributes:
        way: What is trained, in words.
        trained_values: Trained parameters, heads in ``modules_to_save`` included.
        trained_fraction: Of all values of the base.
        base_bytes: What of the base is frozen, buffers included.
        training: Trained values, gradients, optimizer state and float32 copies.
        saved_bytes: Activations between forward and backward; None where the architecture is not known.
        peak_bytes: Most bytes of tensors that are live at once in a step; None likewise.
        file_bytes: Size of what is saved: the adapter's tensor file in PEFT's form, or all weights.
        seed_file_bytes: The same with frozen factors as seeds; None where nothing is an adapter.
        flops: For one token, linear layers only; None where the architecture is not known.
        bound: On the expected gap between test and training loss.
    """

    way: str
    trained_values: int
    trained_fraction: float
    base_bytes: int
    training: TrainingBytes
    saved_bytes: int | None
    peak_bytes: int | None
    file_bytes: int
    seed_file_bytes: int | None
    flops: Flops | None
    bound: GapBound

    def to_dict(self) -> dict[str, Any]:
        """Return a flat record."""
        return {
            "way": self.way,
            "trained_values": self.trained_values,
            "trained_fraction": self.trained_fraction,
            "base_bytes": self.base_bytes,
            **{f"{name}_bytes": value for name, value in self.training._asdict().items()},
            "saved_bytes": self.saved_bytes,
            "peak_bytes": self.peak_bytes,
            "file_bytes": self.file_bytes,
            "seed_file_bytes": self.seed_file_bytes,
            "flops_forward": self.flops.forward if self.flops else None,
            "flops_backward": self.flops.backward if self.flops else None,
            "bound_nats": self.bound.nats,
            "bound_gap": self.bound.gap,
            "bound_vacuous": self.bound.vacuous,
        }


PLAIN = Training()
"""AdamW, nothing checkpointed, the base as the model has it."""


def estimate(
    model: nn.Module,
    spec: AdapterSpec,
    *,
    batch: Batch,
    training: Training = PLAIN,
    samples: int = 10_000,
    name: str = "as asked",
) -> tuple[Estimate, ...]:
    """Return the cost of training in full, with LoRA, as asked, and of the last two over a base in four bits.

    Args:
        model: The base model; on ``meta`` it holds no values.
        spec: The adapter that is asked for.
        batch: What runs through a step; whether inputs take gradients follows from the way.
        training: Optimizer, checkpointing and how the base is stored.
        samples: Training samples, for the bound.
        name: What the table calls the way that is asked for.

    Returns:
        One estimate a way. The ways over four bits are left out where the model's base is stored so already.

    Raises:
        SpecError: ``samples`` is below 1.
    """
    if samples < 1:
        raise SpecError(f"samples={samples} must be at least 1: the number of training samples, for the bound.")
    lora = replace(spec, **PRESETS["lora"], factor_pattern={}, shared_A=())
    ways = [("full fine-tuning", None, replace(training, base=None)), ("LoRA", lora, training)]
    if (spec.A, spec.B, spec.factor_pattern, spec.shared_A) != (lora.A, lora.B, lora.factor_pattern, lora.shared_A):
        ways.append((name, spec, training))
    if training.base != "nf4":
        ways += [(f"{way}, nf4 base", one, replace(training, base="nf4")) for way, one, _ in ways[1:]]
    return tuple(_estimate(model, way, one, batch, how, samples) for way, one, how in ways)


def _estimate(
    model: nn.Module, way: str, spec: AdapterSpec | None, batch: Batch, training: Training, samples: int
) -> Estimate:
    shape = read_model(model, spec, full=spec is None)
    # Frozen embeddings give no gradient on; a checkpointed block has to have one to run again.
    batch = replace(batch, input_grad=spec is None or training.checkpointing)
    itemsize = 4 if spec is not None else shape.itemsize
    files: dict[str, Any] = {"file_bytes": shape.base_values * shape.itemsize, "seed_file_bytes": None}
    if spec is not None:
        modules = dict(_saved_tensors(model, spec))
        files["file_bytes"] = adapter_file_bytes(shape.adapted, modules=modules)
        files["seed_file_bytes"] = adapter_file_bytes(shape.adapted, form="seed", modules=modules)
    known = bool(shape.blocks)
    return Estimate(
        way=way,
        trained_values=shape.trained_values,
        trained_fraction=shape.trained_values / shape.base_values,
        base_bytes=base_bytes(shape, training.base) - sum(shape.saved_values) * shape.itemsize,
        training=_training(shape, itemsize, training),
        saved_bytes=saved_bytes(shape.blocks, batch, checkpointing=training.checkpointing) if known else None,
        peak_bytes=step_peak(shape, batch, training).total if known else None,
        flops=_flops(shape, training),
        bound=GapBound(parameters=shape.trained_values, bits=8 * itemsize, samples=samples, sub_gaussian=0.5),
        **files,
    )


def _training(shape: ModelShape, itemsize: int, training: Training) -> TrainingBytes:
    # What is trained in full keeps the base's type, and factors are float32.
    factors = [size for layer in shape.adapted.values() for size in layer.trained_shapes]
    parts = [
        training_bytes(sizes, itemsize=width, optimizer=training.optimizer, master=training.master)
        for sizes, width in ((factors, itemsize), (shape.saved_values, shape.itemsize))
    ]
    return TrainingBytes(*map(sum, zip(*parts, strict=True)))


def _flops(shape: ModelShape, training: Training) -> Flops | None:
    if not shape.blocks:
        return None
    layers = [layer for block in shape.blocks for layer in block.layers.values()]
    total = flops_per_token(layers, checkpointing=training.checkpointing)
    for layer in shape.head.layers if shape.head is not None and not shape.head.pools else ():
        total = total + layer_flops(layer)
    return total


def _saved_tensors(model: nn.Module, spec: AdapterSpec) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    kinds = {4: "float32", 2: "bfloat16", 8: "float64"}
    for path in match_saved_modules(model, spec.modules_to_save):
        for name, tensor in model.get_submodule(path).named_parameters():
            yield f"{path}.{name}", (tuple(tensor.shape), kinds[tensor.element_size()])
