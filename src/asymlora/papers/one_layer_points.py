"""What hayou_toy measures on one linear layer: start, draws, exponents, stable rates, freezing and ranks.

Each function takes one point of a `asymlora.reproduce.artefact.MeasuredPart` and gives plain records. Torch is imported
in the functions, as artefacts are listed without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from asymlora.papers.hayou_settings import MORE_TOY_SEEDS, TOY_SEEDS
from asymlora.reproduce.evidence import Record

Point = Mapping[str, Any]
WIDTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
FIRST_SEEDS, MORE_SEEDS = TOY_SEEDS, MORE_TOY_SEEDS
BOUND, STABLE_STEPS = 10.0, 5
"""A rate is stable where the root mean square of ``Z_B`` stays within the bound for so many updates (C7)."""
UPDATE = 3
"""Which update the exponents are of; 0 is the first (section 4 of the table of exponents: the fourth)."""


def measure_start(point: Point) -> list[Record]:
    """Train one layer for a few updates and return what the first one moved, and what the split into parts leaves.

    Args:
        point: ``scheme``, ``optimizer``, ``dtype``, ``weight_decay``, ``width``, ``rate``, ``target``, ``steps``.

    Returns:
        One record: the output before the first update, gradients and relative steps of both factors in the first one,
        whether anything ever moved, and the largest error of the identity; of all seeds the largest.
    """
    from asymlora.theory.one_layer import OneLayerSettings, simulate

    chosen = {name: point[name] for name in ("scheme", "optimizer", "dtype", "weight_decay", "target")}
    run = simulate(OneLayerSettings(**chosen), point["width"], point["rate"], steps=point["steps"])
    first = {name: getattr(run, name)[0].max().item() for name in ("grad_A", "grad_B", "step_A", "step_B")}
    moved = max(getattr(run, name).max().item() for name in ("step_A", "step_B"))
    record = {"output_at_start": run.Z_B[0].max().item(), **first, "moved": moved}
    return [{**point, **record, "identity_error": run.identity_error.max().item()}]


def measure_draws(point: Point) -> list[Record]:
    """Draw one factor as an adapter draws it and return the mean square of its entries.

    Args:
        point: ``factor`` (``A`` or ``B``), ``init`` (a row of `asymlora.init.INITS`), ``rank``, ``width``.
    """
    from asymlora.factor_spec import FactorSpec
    from asymlora.init import draw

    rank, width = point["rank"], point["width"]
    shape = (rank, width) if point["factor"] == "A" else (width, rank)
    drawn = draw(FactorSpec(init=point["init"]), shape, seed=0, site="layer", factor=point["factor"])
    return [{**point, "entries": drawn.numel(), "variance": drawn.double().square().mean().item()}]


def measure_exponents(point: Point) -> list[Record]:
    """Fit the exponents in the width of every part of one update.

    Args:
        point: ``scheme``, exponents ``rate_A`` and ``rate_B`` of the learning rates, their ``coefficient``, ``target``,
            ``widths``, ``seeds``.

    Returns:
        One record: slopes and their standard errors by quantity (None for an exact zero), and at how many widths the
        residual changed its sign.
    """
    from asymlora.theory.one_layer import OneLayerSettings
    from asymlora.theory.width_fits import PowerLaw, exponents

    settings = OneLayerSettings(scheme=point["scheme"], target=point["target"], seeds=tuple(point["seeds"]))
    rates = [PowerLaw(point[name], point["coefficient"]) for name in ("rate_A", "rate_B")]
    fit = exponents(settings, *rates, widths=point["widths"], step=UPDATE)
    finite = {name: slope for name, slope in fit.slopes.items() if math.isfinite(slope.exponent)}
    return [
        {
            **{name: point[name] for name in ("scheme", "rate_A", "rate_B", "coefficient", "target")},
            "slopes": {name: slope.exponent for name, slope in finite.items()},
            "errors": {name: slope.error for name, slope in finite.items()},
            "flipped": len(fit.flipped),
        }
    ]


def measure_stable_rates(point: Point) -> list[Record]:
    """Search the largest stable learning rate of each seed by bisection, within a hundredth of an octave.

    Args:
        point: ``scheme``, ``width``, ``seeds``.

    Returns:
        One record a seed: ``log2_rate``.
    """
    from asymlora.theory.one_layer import OneLayerSettings
    from asymlora.theory.width_fits import largest_stable_rate

    records: list[Record] = []
    for seed in point["seeds"]:
        settings = OneLayerSettings(scheme=point["scheme"], seeds=(seed,))
        rate = largest_stable_rate(settings, point["width"], bound=BOUND, steps=STABLE_STEPS, octaves=0.01)
        records.append({"scheme": point["scheme"], "width": point["width"], "seed": seed, "log2_rate": math.log2(rate)})
    return records


def measure_freezing(point: Point) -> list[Record]:
    """Compare the output with that of a run in which one factor stays at its start.

    Args:
        point: ``scheme``, ``frozen``, ``exponent`` and ``coefficient`` of the rate, ``widths``, ``steps``, ``seeds``.

    Returns:
        One record a width: ``gap``, the difference over the output.
    """
    from asymlora.theory.one_layer import OneLayerSettings
    from asymlora.theory.width_fits import PowerLaw, freezing_gap

    settings = OneLayerSettings(scheme=point["scheme"], seeds=tuple(point["seeds"]))
    rate = PowerLaw(point["exponent"], point["coefficient"])
    kept = {name: point[name] for name in ("scheme", "frozen", "coefficient")}
    return [
        {**kept, "width": n, "gap": freezing_gap(settings, point["frozen"], n, rate(n), steps=point["steps"])}
        for n in point["widths"]
    ]


def measure_ranks(point: Point) -> list[Record]:
    """Return the size of the output after four updates at each rank, the learning rate fixed.

    Args:
        point: ``scheme``, ``by_rank`` (the scaling is the rank to this power), ``exponent`` of the rate in the width,
            ``width``, ``ranks``, ``seeds``.

    Returns:
        One record a rank: ``Z_B``, root mean square over entries and seeds.
    """
    from asymlora.theory.one_layer import OneLayerSettings, simulate

    records: list[Record] = []
    for rank in point["ranks"]:
        settings = OneLayerSettings(
            scheme=point["scheme"], rank=rank, scaling=float(rank) ** point["by_rank"], seeds=tuple(point["seeds"])
        )
        run = simulate(settings, point["width"], point["width"] ** point["exponent"], steps=UPDATE + 1)
        size = run.Z_B[-1].square().mean().sqrt().item()
        records.append({"scheme": point["scheme"], "by_rank": point["by_rank"], "rank": rank, "Z_B": size})
    return records


# Points --------------------------------------------------------------------------------------------------------------


def start_points() -> tuple[Point, ...]:
    """Return the starts that are looked at: both inits under three optimizers, and two controls."""

    def point(scheme: str, optimizer: str, *, dtype: str = "float64", decay: float = 0.0) -> Point:
        sgd = optimizer == "sgd"
        rates = {"rate": 1e-8 if sgd else 512**-0.5, "target": 1e3, "width": 512, "steps": 12}
        return {"scheme": scheme, "optimizer": optimizer, "dtype": dtype, "weight_decay": decay, **rates}

    both = ("init_a", "init_b")
    return (
        *(point(scheme, optimizer) for scheme in both for optimizer in ("sgd", "sign", "adam")),
        *(point(scheme, "adam", dtype="float32") for scheme in both),
        *(point("both_zero", optimizer) for optimizer in ("sgd", "sign", "adam")),
        point("init_a", "adam", decay=0.1),
    )


def draw_points() -> tuple[Point, ...]:
    """Return the draws whose variances are looked at, of at least 20,000 entries each."""
    inits = ("gaussian", "kaiming_uniform", "peft_gaussian")
    return tuple(
        {"factor": factor, "init": init, "rank": 8, "width": 4096}
        for factor in "AB"
        for init in inits
        if (factor, init) != ("B", "peft_gaussian")
    )


def exponent_points() -> tuple[Point, ...]:
    """Return the rows of the table of exponents: starts, and rates of A and B as powers of the width."""

    def point(scheme: str, rate_A: float, rate_B: float, *, coefficient: float = 1.0, target: float = 1e9) -> Point:
        row = {"scheme": scheme, "rate_A": rate_A, "rate_B": rate_B, "coefficient": coefficient, "target": target}
        return {**row, "widths": list(WIDTHS), "seeds": list(FIRST_SEEDS)}

    rows = [("init_a", -0.25), ("init_a", -0.5), ("init_a", -1.0), ("init_b", -0.5), ("init_b", -1.0)]
    return (
        *(point(scheme, rate, rate) for scheme, rate in [*rows, ("init_b_small", -0.5)]),
        *(point(scheme, -1.0, 0.0) for scheme in ("init_a", "init_b")),
        point("init_a", -0.5, -0.5, target=1.0),
        point("init_a", -0.5, -0.5, coefficient=0.05, target=1.0),
    )


def stable_points(seeds: tuple[int, ...]) -> tuple[Point, ...]:
    """Return starts and widths at which the largest stable rate is searched.

    Args:
        seeds: Of each.
    """
    starts = ("init_a", "init_b", "init_b_small")
    return tuple({"scheme": scheme, "width": n, "seeds": list(seeds)} for scheme in starts for n in WIDTHS)


def freezing_points() -> tuple[Point, ...]:
    """Return the comparisons with a frozen factor: B under Init[B] at two rates, A under Init[A]."""
    rows = (("init_b", "B", -1.0, 1.0), ("init_b", "B", -1.0, 0.1), ("init_a", "A", -0.5, 1.0))
    return tuple(
        {"scheme": scheme, "frozen": frozen, "exponent": exponent, "coefficient": c, "widths": list(WIDTHS[:6]),
         "steps": 20, "seeds": list(FIRST_SEEDS)}
        for scheme, frozen, exponent, c in rows
    )  # fmt: skip


def rank_points() -> tuple[Point, ...]:
    """Return the sweeps over ranks: both inits, scaling 1 and 1/r."""
    return tuple(
        {"scheme": scheme, "by_rank": by_rank, "exponent": exponent, "width": 2048, "ranks": [2, 4, 8, 16, 32],
         "seeds": list(FIRST_SEEDS)}
        for scheme, exponent in (("init_a", -0.5), ("init_b", -1.0))
        for by_rank in (0, -1)
    )  # fmt: skip
