"""Check Z11: does a frozen Kaiming B fail because of its size alone? A-only adapters on scikit-learn's digits.

Zhu et al. report that A-only collapses when the frozen B is Kaiming-uniform and not when it is orthonormal. Drawn with
fan-in r, its columns have norm ``sqrt(out / (3 r))``: 6.5 at 512/4 here, as at the paper's 1024/8, against 1. AdamW
does not see the size of a gradient, so a step of A moves the product ``B A`` 6.5 times as far at the same rate.

The net is a perceptron of two hidden layers of 512, pretrained here on five of the ten digits and frozen, head
included; the adapters learn the other five. It is chosen over the tiny BERT of `init_rates` for three reasons: at rank
4 all its adapted layers have the paper's ratio out/r = 128, so that one number rescales the rate and the artefact has
its full size; the data are real; and a run takes a second, so that each seed has a base and digits of its own.

Arms, all A-only, A from zero: ``orthonormal`` B at rate eta; ``kaiming`` B at eta; ``kaiming_rescaled``, the same B at
eta / (root mean square of its column norms); ``kaiming_unit``, the same B with columns of norm 1, at eta. eta is the
best rate of ``orthonormal`` by validation loss on seeds that the comparison does not use. Also ``kaiming_tuned`` and
``kaiming_unit_tuned``, at the rate that those seeds give for them.

Predicted, written down before the first run: with gap = accuracy(orthonormal) - accuracy(kaiming) on the test rows, the
mean over paired seeds, ``kaiming_rescaled`` or ``kaiming_unit`` closes at least 80 % of it. If the gap is not above
two standard errors there is nothing to close, and the verdict says so. The prediction fails if the shape of the draw
matters, not its size. ``kaiming_rescaled`` and ``kaiming_unit`` should differ by the spread of the column norms only.
What came out is in README.md.

Source:
    Zhu et al. 2024, "Asymmetry in Low-Rank Adapters of Foundation Models", arXiv:2402.16842, the row of a frozen
    Kaiming B. That its size may be the reason, the net and the check are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from asymlora import AdapterSpec, FactorSpec, sites
from asymlora.report.tables import plain_table
from asymlora.theory.best_rates import BestRate, best_rate
from paired_runs import adapt, mean_and_error, paired, run_command, sweep_octaves
from small_nets import Pretraining, Training, digit_net, digit_parts, pretrain

FROZEN_B = {
    "orthonormal": FactorSpec(init="orthonormal", trainable=False),
    "kaiming": FactorSpec(init="kaiming_uniform", trainable=False),
    "kaiming_unit": FactorSpec(init="kaiming_uniform", trainable=False, component_norm=1.0),
}
"""The three kinds of B; each is tuned on its own."""
REPAIRED = ("kaiming_rescaled", "kaiming_unit")
"""The arms of which one must close the gap."""
TO_CLOSE = 0.8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of the experiment.

    Attributes:
        seeds: Paired seeds of the comparison: digits and base, draws of the adapter, batches.
        tuning_seeds: Seeds on which rates are chosen.
        exponents: Rates ``2^e`` that every kind of B runs; more follow at the ends.
        most_rates: Rates of a kind after which to stop extending.
        width: Of both hidden layers.
        pretraining: How a base is trained.
        training: How the adapter is trained.
        rank: Of the adapter.
        alpha: Of the adapter; equal to the rank, so that ``s = 1``.
    """

    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    exponents: tuple[int, ...]
    most_rates: int
    width: int
    pretraining: Pretraining
    training: Training
    rank: int = 4
    alpha: float = 4.0


FULL = Settings(
    seeds=tuple(range(16)),
    tuning_seeds=tuple(range(100, 108)),
    exponents=(-8, -7, -6, -5, -4),
    most_rates=14,
    width=512,
    pretraining=Pretraining(until=0.97, batch_size=64),
    training=Training(steps=150),
)
"""What README.md reports."""
QUICK = Settings(
    seeds=(0, 1),
    tuning_seeds=(100,),
    exponents=(-8, -6),
    most_rates=2,
    width=32,
    pretraining=Pretraining(until=0.0, most_rounds=1, batch_size=32),
    training=Training(steps=5, batch_size=8),
)
"""A second or two, for a test: nothing is learned."""


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Pretrain the bases, tune, compare and return the records, the verdict last."""
    bases: dict[int, nn.Module] = {}
    records: list[dict[str, Any]] = []
    for seed in (*settings.tuning_seeds, *settings.seeds):
        bases[seed] = digit_net(width=settings.width, seed=seed)
        found = pretrain(bases[seed], digit_parts(seed=seed, pretraining=True), settings.pretraining, seed=seed)
        records.append({"kind": "base", "seed": seed, **found})

    def run(kind: str, seed: int, rate: float | Callable[[nn.Module], float]) -> dict[str, Any]:
        spec = AdapterSpec(
            A=FactorSpec(init="zeros"),
            B=FROZEN_B[kind],
            rank=settings.rank,
            alpha=settings.alpha,
            targets=("first", "second"),
            seed=seed,
        )
        parts = digit_parts(seed=seed, pretraining=False)
        return adapt(bases[seed], spec, parts, settings.training, seed=seed, rate=rate)

    def tuning(kind: str) -> Callable[[float], list[dict[str, Any]]]:
        return lambda rate: [
            {"kind": "tuning", "scheme": kind, **run(kind, seed, rate)} for seed in settings.tuning_seeds
        ]

    for kind in FROZEN_B:
        records += sweep_octaves(tuning(kind), settings.exponents, most=settings.most_rates)
    for scheme, (kind, rate) in arms(records).items():
        records += [{"kind": "run", "scheme": scheme, "B": kind, **run(kind, seed, rate)} for seed in settings.seeds]
    return [*records, {"kind": "verdict", **verdict(records)}]


def tuned(records: Sequence[Mapping[str, Any]]) -> dict[str, BestRate]:
    """Return the best rate of each kind of B by validation loss on the tuning seeds."""
    tuning = [r for r in records if r["kind"] == "tuning"]
    return {kind: best_rate([r for r in tuning if r["scheme"] == kind], loss="validation_loss") for kind in FROZEN_B}


def arms(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float | Callable[[nn.Module], float]]]:
    """Return kind of B and rate of each arm of the comparison, from the records of the tuning."""
    rates = {kind: found.argmin for kind, found in tuned(records).items()}
    eta = rates["orthonormal"]
    return {
        "orthonormal": ("orthonormal", eta),
        "kaiming": ("kaiming", eta),
        "kaiming_rescaled": ("kaiming", lambda net: eta / column_norm(net)),
        "kaiming_unit": ("kaiming_unit", eta),
        "kaiming_tuned": ("kaiming", rates["kaiming"]),
        "kaiming_unit_tuned": ("kaiming_unit", rates["kaiming_unit"]),
    }


def column_norm(net: nn.Module) -> float:
    """Return the root mean square, over all sites, of the norms of the columns of B."""
    norms = torch.cat([site.B.detach().double().norm(dim=0) for site in sites(net)])
    return float(norms.square().mean().sqrt())


def verdict(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether the prediction held.

    Args:
        records: Those of `measure`; the runs are read, and the tuning's for the rates.

    Returns:
        Tuned rates and whether they are interior; test accuracy and loss of each arm with standard errors; what each
        lacks to ``orthonormal``, paired; the share of the gap that each closes, by accuracy and by loss (None where the
        gap is not above two standard errors); ``outcome``: ``holds``, ``fails``, ``no gap``, or ``untuned`` if eta is
        at an edge of its grid.
    """
    runs = [r for r in records if r["kind"] == "run"]
    found: dict[str, Any] = {"tuned": {}, "arms": {}}
    for kind, best in tuned(records).items():
        found["tuned"][kind] = {"rate": best.argmin, "between_rates": best.parabola, "interior": not best.at_edge}
    for scheme in dict.fromkeys(r["scheme"] for r in runs):
        found["arms"][scheme] = _arm(runs, scheme)
    for column, sign in (("test_accuracy", 1), ("test_loss", -1)):
        gap, error = found["arms"]["kaiming"][f"{column}_lacking"]
        there = sign * gap > 2 * error
        for arm in found["arms"].values():
            arm[f"{column}_closed"] = 1 - arm[f"{column}_lacking"][0] / gap if there else None
    found["outcome"] = _outcome(found)
    return found


def _arm(runs: Sequence[Mapping[str, Any]], scheme: str) -> dict[str, Any]:
    """Return means of one arm with standard errors, and what it lacks to the orthonormal one."""
    mine = [r for r in runs if r["scheme"] == scheme]
    arm: dict[str, Any] = {"rate": mean_and_error([r["rate"] for r in mine])[0]}
    for column in ("test_accuracy", "test_loss"):
        arm[column], arm[f"{column}_error"] = mean_and_error([r[column] for r in mine])
        # Of an arm against itself this is zero.
        arm[f"{column}_lacking"] = list(paired(runs, "orthonormal", scheme, column))
    return arm


def _outcome(found: Mapping[str, Any]) -> str:
    if not found["tuned"]["orthonormal"]["interior"]:
        return "untuned"
    closed = [found["arms"][scheme]["test_accuracy_closed"] for scheme in REPAIRED]
    if None in closed:
        return "no gap"
    return "holds" if max(closed) >= TO_CLOSE else "fails"


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return the arms, means over paired seeds."""
    result = records[-1]
    tuned = ", ".join(f"{kind} {found['rate']:.2e}" for kind, found in result["tuned"].items())
    caption = f"Best rates on the tuning seeds: {tuned}.\nPrediction: {result['outcome']}."
    shown = plain_table("A-only over a frozen B: test rows, means over paired seeds ± s.e.", caption)
    for name in ("arm", "rate", "accuracy", "lacks, points", "closed", "loss"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for scheme, arm in result["arms"].items():
        lacking, error = arm["test_accuracy_lacking"]
        shown.add_row(
            scheme,
            f"{arm['rate']:.2e}",
            f"{arm['test_accuracy']:.1%}",
            f"{100 * lacking:.2f} ± {100 * error:.2f}",
            "-" if (closed := arm["test_accuracy_closed"]) is None else f"{closed:.0%}",
            f"{arm['test_loss']:.3f}",
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, print and write."""
    ways = {"full": FULL, "quick": QUICK}
    run_command("kaiming_B", __doc__, ways, measure=measure, table=table, arguments=arguments)


if __name__ == "__main__":
    main()
