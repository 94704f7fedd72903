"""``asymlora estimate``: what a way of training would cost, from a model's configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from asymlora.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

    from asymlora.spec import AdapterSpec
    from asymlora.theory.block_cost import Batch
    from asymlora.theory.step_peak import Training

DTYPES = ("float32", "bfloat16", "float16")
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parser(adapter_options: Iterator[tuple[str, Any, Any, str]]) -> Any:
    """Return the parser.

    Args:
        adapter_options: Name, type, default and help of each field of the adapter.
    """
    from jsonargparse import ArgumentParser

    made = ArgumentParser(
        description="Parameters, bytes, FLOPs and the bound of several ways to train a model. Nothing is loaded.",
        exit_on_error=False,
    )
    made.add_argument("model", metavar="MODEL", help="embedded:..., a folder, a config.json, or a hub id")
    made.add_argument("--adapter.preset", type=str, help="lora, init_a, init_b, b_only, a_only, or hB_zero_A_rand")
    for name, hint, default, help_text in adapter_options:
        made.add_argument(f"--{name}", type=hint, default=default, help=help_text)
    made.add_argument("--batch", type=int, default=8, help="sequences in a step (default: 8)")
    made.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: 512)")
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of base and activations (default: bfloat16)")
    made.add_argument("--base", choices=["nf4", "int8"], help="how the frozen base is stored, where packed")
    made.add_argument("--optimizer", choices=["adamw", "momentum", "sgd"], default="adamw", help="default: adamw")
    made.add_argument("--checkpointing", action="store_true", help="each block keeps its input only")
    made.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="default: sdpa")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="decides kernels (default: cuda)")
    made.add_argument("--samples", type=int, default=10_000, help="training samples, for the bound (default: 10000)")
    made.add_argument("--memory", type=str, help="of the device, like 24GB or 80GiB: what fits in it")
    made.add_argument("--json", action="store_true", help="print records instead of tables")
    return made


def run(options: dict[str, Any]) -> int:
    """Estimate and print.

    Args:
        options: What the user gave.

    Returns:
        The exit code.
    """
    from asymlora.report.tables import adapter_name
    from asymlora.schema import to_mapping
    from asymlora.theory.estimate import estimate
    from asymlora.theory.model_shapes import read_model
    from asymlora.train.recipe import Recipe

    memory = memory_bytes(options["memory"]) if options.get("memory") is not None else None
    spec = Recipe.from_dict({"adapter": options["adapter"]} if options.get("adapter") else {}).adapter
    model, batch, training = _setting(options)
    name = adapter_name(to_mapping(spec))
    ways = estimate(model, spec, batch=batch, training=training, samples=options.get("samples", 10_000), name=name)
    known = ways[0].peak_bytes is not None
    fits = (list(_fits(model, spec, batch, training, memory)) if known else None) if memory else []
    settings = {"model": options["model"], **asdict(batch), **asdict(training), "memory": memory}
    lacks_head = known and getattr(model, "base_model", model) is not model and read_model(model).head is None
    settings["head"] = type(model).__name__ if lacks_head else None
    if options.get("json"):
        print(json.dumps({"settings": settings, "ways": [way.to_dict() for way in ways], "fits": fits}, indent=1))
        return 0
    from rich.console import Console

    from asymlora.report.cost_tables import estimate_tables

    Console().print(estimate_tables([way.to_dict() for way in ways], settings=settings, fits=fits))
    return 0


def memory_bytes(text: str) -> int:
    """Return the bytes that a text like ``24GB``, ``80GiB`` or ``16000000000`` stands for.

    Args:
        text: A number and a unit; GB is 10**9, GiB 2**30.

    Returns:
        Bytes.

    Raises:
        SpecError: The text is no amount above zero.

    Example:
        >>> memory_bytes("24GB"), memory_bytes("1.5 GiB")
        (24000000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    amount = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if amount <= 0:
        raise SpecError(
            f"--memory {text} is no amount of memory. Give a number above 0 with a unit, like 24GB or 80GiB."
        )
    return amount


def _setting(options: dict[str, Any]) -> tuple[nn.Module, Batch, Training]:
    import torch

    from asymlora.cpu_kernel import kernel
    from asymlora.tasks.empty_models import empty_model
    from asymlora.theory.block_cost import Batch, attention_kernel
    from asymlora.theory.model_shapes import read_model
    from asymlora.theory.step_peak import Training

    dtype, attention, device = (
        options.get(name, default)
        for name, default in (("dtype", "bfloat16"), ("attention", "sdpa"), ("device", "cuda"))
    )
    itemsize = getattr(torch, dtype).itemsize
    model = empty_model(options["model"], attention=attention).to(getattr(torch, dtype))
    dropout = max((block.attention_dropout for block in read_model(model).blocks), default=0.0)
    batch = Batch(
        size=options.get("batch", 8),
        length=options.get("length", 512),
        itemsize=itemsize,
        attention=attention_kernel(attention, device=device, dropout=dropout),
        device=device,
        input_grad=bool(options.get("checkpointing")),
        kernel=device == "cpu" and itemsize == 4 and kernel() is not None,
    )
    training = Training(
        optimizer=options.get("optimizer", "adamw"),
        checkpointing=bool(options.get("checkpointing")),
        base=options.get("base"),
    )
    return model, batch, training


def _fits(
    model: nn.Module, spec: AdapterSpec, batch: Batch, training: Training, memory: int
) -> Iterator[dict[str, int]]:
    from dataclasses import replace

    from asymlora.errors import RankError
    from asymlora.theory.model_shapes import ModelShape, read_model
    from asymlora.theory.step_peak import largest_fit

    def shape_at(rank: int) -> ModelShape:
        return read_model(model, replace(spec, rank=rank))

    for rank in sorted({*RANKS, spec.rank}):
        try:
            shape_at(rank)
        except RankError:
            return
        for fit in largest_fit(memory, shape_at, ranks=[rank], batch=batch, training=training):
            yield fit._asdict()
