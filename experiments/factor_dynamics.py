"""What the factors do while they train: Init[A], Init[B], LoRA+ and B alone, on MiniLM and on SmolLM2.

Every arm adapts all linear layers at rank 8, on the same rows in the same order, at constant rates, and
`FeatureDynamics` measures the features of a held probe batch after each step or every second one. Recorded are
quartiles and the largest value over layers, relative to what does not depend on the arm:

* ``Z_A`` over the probe input of the layer, root mean squares;
* ``Z_B`` and the parts of its change by the step, ``delta1`` (A moves), ``delta2`` (B moves), ``delta3`` (both), over
  the output of the layer's own frozen weight.

Rates, chosen before the first run: Init[A] at about half of what B alone takes on the model; Init[B] an eighth of that,
as in factor_similarity.py; LoRA+ with B's rate 16 times A's and the same product of the two as Init[A]; B alone at the
model's default rate. They are not tuned, so the sizes of arms are compared at these rates and no others.

Expected, written down before the first run, for each model, as medians over layers:

* `first_step`: exact: after the first step delta1 = delta3 = 0 if B starts at zero, delta2 = delta3 = 0 if A does.
* `b_only`: exact: delta1 = delta3 = 0 at every step, and Z_A never changes.
* `identity`: the three parts sum to the change of Z_B within 1e-5 of Z_B, at every layer and step.
* `internal`: Z_A grows most under Init[A], less under LoRA+ (its A has a quarter of the rate), and not under B alone.
* `one_sided`: Init[B] moves its output by A: delta2/delta1, a geometric mean over the steps after the first, is below
  1/4, and LoRA+ is nearer to 1 on the logarithmic scale.
* `undertrained`: under Init[B], B moves less, relative to its start, than A does under Init[A].

The last three are soft: the theory is one of growing width, with constants left open. What came out is in README.md.
The model's name is the argument: MiniLM or SmolLM2.

Source:
    Hayou, Ghosh, Yu 2024, "The Impact of Initialization on LoRA Finetuning Dynamics", arXiv:2406.08447, and "LoRA+",
    arXiv:2402.12354. Models, rates and thresholds are ours.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from asymlora import AdapterSpec
from asymlora.diagnostics.dynamics import FeatureDynamics
from asymlora.report.tables import plain_table
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from paired_runs import run_command
from real_models import Course, PretrainedTask

ARMS = {"Init[A]": "init_a", "Init[B]": "init_b", "LoRA+": "init_a", "B alone": "b_only"}
"""The preset of each arm."""
QUANTITIES = ("Z_A", "Z_B", "delta1", "delta2", "delta3")
QUANTILES = {"0.25": 0.25, "median": 0.5, "0.75": 0.75, "largest": 1.0}
IDENTITY = 1e-5
ONE_SIDED = 0.25


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What is run of a model.

    Attributes:
        model: Its name.
        task: Its task.
        data: Its rows.
        rows: Training rows, and validation rows from which the probe is taken.
        max_tokens: Of an input.
        course: How every arm is trained.
        rates: Arguments of `param_groups` of each arm.
        probe: Rows of the probe batch.
        every: Steps between two measurements; the first three are always measured.
    """

    model: str
    task: str
    data: str
    rows: tuple[int, int]
    max_tokens: int
    course: Course
    rates: Mapping[str, Mapping[str, float]]
    probe: int
    every: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of the experiment.

    Attributes:
        seeds: Starts of the adapters, each with an order of the rows.
        models: What is run of each.
        rank: Of every adapter; alpha is twice as much.
    """

    seeds: tuple[int, ...]
    models: Mapping[str, OfModel]
    rank: int = 8


def rates(init_a: float, b_alone: float) -> dict[str, dict[str, float]]:
    """Return the rates of every arm.

    Args:
        init_a: Of Init[A].
        b_alone: Of B alone.
    """
    return {
        "Init[A]": {"lr": init_a},
        "Init[B]": {"lr": init_a / 8},
        "LoRA+": {"lr": init_a, "lr_A": init_a / 4, "lr_B": 4 * init_a},
        "B alone": {"lr": b_alone},
    }


MINILM = OfModel(
    model="embedded:minilm-l6",
    task="text_classification",
    data="embedded:reviews",
    rows=(800, 100),
    max_tokens=64,
    course=Course(steps=100, batch_size=8, schedule="constant"),
    rates=rates(1e-3, 2e-3),
    probe=16,
    every=2,
)
SMOLLM2 = OfModel(
    model="embedded:smollm2-135m",
    task="language_modeling",
    data="embedded:brown",
    rows=(60, 20),
    max_tokens=64,
    course=Course(steps=30, batch_size=2, schedule="constant"),
    rates=rates(5e-4, 1e-3),
    probe=4,
    every=1,
)
FULL = {name: Settings(seeds=(0,), models={name: of}) for name, of in (("MiniLM", MINILM), ("SmolLM2", SMOLLM2))}
"""What README.md reports, by model."""
QUICK_OF = OfModel(
    model="embedded:minilm-l6",
    task="text_classification",
    data="embedded:reviews",
    rows=(16, 8),
    max_tokens=16,
    course=Course(steps=3, batch_size=4, schedule="constant"),
    rates=rates(1e-3, 2e-3),
    probe=4,
    every=1,
)
QUICK = Settings(seeds=(0,), models={"MiniLM": QUICK_OF}, rank=2)
"""Half a minute: nothing is learned."""


# Runs ----------------------------------------------------------------------------------------------------------------


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Train every arm on every model and return the records, the verdict last."""
    records: list[dict[str, Any]] = []
    for name, what in settings.models.items():
        data = DataRecipe(
            name=what.data, max_rows=what.rows[0], max_scored_rows=what.rows[1], max_tokens=what.max_tokens
        )
        base = PretrainedTask(what.task, ModelRecipe(name=what.model), data)
        for arm, seed in itertools.product(ARMS, settings.seeds):
            of_run = {"model": name, "arm": arm, "seed": seed}
            records += [{**row, **of_run} for row in _run(base, what, arm, seed=seed, rank=settings.rank)]
            print(records[-1], flush=True)
    return [*records, {"kind": "verdict", **verdict(records)}]


def _run(base: PretrainedTask, what: OfModel, arm: str, *, seed: int, rank: int) -> Iterator[dict[str, Any]]:
    """Train one arm and yield its records, the one of the whole run last."""
    spec = AdapterSpec.parse(ARMS[arm], rank=rank, seed=seed)
    losses: list[float] = []
    with base.adapted(spec) as network:
        dynamics = FeatureDynamics(network, base.batch(what.probe), every=what.every)
        trainer = base.trainer(
            what.course,
            rates=dict(what.rates[arm]),
            seed=seed,
            after_step=lambda step, loss: losses.append(loss),
        )
        with dynamics:
            trainer.train()
    for step, rows in itertools.groupby(dynamics.records, key=lambda row: row["step"]):
        yield from _quantiles(step, list(rows))
    last = [row for row in dynamics.records if row["step"] == dynamics.records[-1]["step"]]
    tenth = max(1, len(losses) // 10)
    yield {
        "kind": "run",
        "sites": len(last),
        "first_loss": _rounded(statistics.mean(losses[:tenth])),
        "last_loss": _rounded(statistics.mean(losses[-tenth:])),
        "identity_error": _rounded(max(row["identity_error"] for row in dynamics.records)),
        **{f"moved_{letter}": _median([row[f"moved_{letter}"] for row in last]) for letter in "AB"},
    }


def _quantiles(step: int, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one record a quantile over layers."""
    base = {"Z_A": "rms_x"}
    values = {q: sorted(row[q] / row[base.get(q, "rms_base")] for row in rows) for q in QUANTITIES}
    for name, level in QUANTILES.items():
        at = {q: _rounded(_quantile(values[q], level)) for q in QUANTITIES}
        yield {"kind": "step", "step": step, "quantile": name, **at}


def _quantile(ordered: Sequence[float], level: float) -> float:
    at = level * (len(ordered) - 1)
    low, share = int(at), at - int(at)
    return ordered[low] if not share else (1 - share) * ordered[low] + share * ordered[low + 1]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(statistics.median(known)) if known else None


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


# What they say -------------------------------------------------------------------------------------------------------


class _Course:
    """The records of one arm on one model with one seed, by step."""

    def __init__(self, records: Sequence[Mapping[str, Any]], model: str, arm: str, seed: int) -> None:
        mine = [r for r in records if (r.get("model"), r.get("arm"), r.get("seed")) == (model, arm, seed)]
        self.rows = {(r["step"], r["quantile"]): r for r in mine if r["kind"] == "step"}
        self.steps = sorted({step for step, _ in self.rows})
        (self.run,) = [r for r in mine if r["kind"] == "run"]

    def at(self, quantity: str, quantile: str = "median") -> list[float]:
        return [self.rows[step, quantile][quantity] for step in self.steps]

    def ratio(self) -> float:
        """Return delta2 over delta1, a geometric mean over the measured steps after the first."""
        pairs = list(zip(self.at("delta2"), self.at("delta1"), strict=True))[1:]
        return _rounded(math.exp(statistics.mean(math.log(two / one) for two, one in pairs)))

    def growth(self) -> float:
        """Return Z_A after the last step over Z_A after the first."""
        sizes = self.at("Z_A")
        return _rounded(sizes[-1] / sizes[0])


def verdict(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether each expectation held, by model and seed.

    Args:
        records: Those of `measure`.
    """
    runs = dict.fromkeys((r["model"], r["seed"]) for r in records if r["kind"] == "run")
    return {f"{model}, seed {seed}": _of_model(records, model, seed) for model, seed in runs}


def _of_model(records: Sequence[Mapping[str, Any]], model: str, seed: int) -> dict[str, Any]:
    arms = {arm: _Course(records, model, arm, seed) for arm in ARMS}
    late = {arm: "delta2" if arm == "Init[B]" else "delta1" for arm in ARMS}
    first = {arm: max(c.at(q, "largest")[0] for q in (late[arm], "delta3")) for arm, c in arms.items()}
    alone = arms["B alone"]
    unmoved = max(max(alone.at(q, "largest")) for q in ("delta1", "delta3"))
    spread = max(max(alone.at("Z_A", q)) - min(alone.at("Z_A", q)) for q in QUANTILES)
    identity = max(c.run["identity_error"] for c in arms.values())
    growth = {arm: arms[arm].growth() for arm in ("Init[A]", "LoRA+", "B alone")}
    ratio = {arm: arms[arm].ratio() for arm in ("Init[A]", "Init[B]", "LoRA+")}
    moved = {"B under Init[B]": arms["Init[B]"].run["moved_B"], "A under Init[A]": arms["Init[A]"].run["moved_A"]}
    one_sided = ratio["Init[B]"] < ONE_SIDED and abs(math.log(ratio["LoRA+"])) < abs(math.log(ratio["Init[B]"]))
    return {
        "first_step": {"largest": max(first.values()), "holds": not any(first.values())},
        "b_only": {"largest": unmoved, "change_of_Z_A": spread, "holds": not unmoved and not spread},
        "identity": {"largest": identity, "holds": identity < IDENTITY},
        "internal": {**growth, "holds": growth["Init[A]"] > growth["LoRA+"] > growth["B alone"] == 1},
        "one_sided": {**ratio, "holds": one_sided},
        "undertrained": {**moved, "holds": moved["B under Init[B]"] < moved["A under Init[A]"]},
    }


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return the sizes after the last step, by model and arm."""
    lines = [
        f"{run}: " + ", ".join(f"{name} {'holds' if claim['holds'] else 'fails'}" for name, claim in claims.items())
        for run, claims in records[-1].items()
        if run != "kind"
    ]
    shown = plain_table(
        "Medians over layers after the last step, relative to x or to the layer's output", "\n".join(lines)
    )
    for name in ("model", "arm", *QUANTITIES, "moved A", "moved B", "loss"):
        shown.add_column(name, justify="left" if name in ("model", "arm") else "right")
    for run in (r for r in records if r["kind"] == "run"):
        course = _Course(records, run["model"], run["arm"], run["seed"])
        sizes = [f"{course.at(q)[-1]:.3g}" for q in QUANTITIES]
        moved = ["-" if run[key] is None else f"{run[key]:.3g}" for key in ("moved_A", "moved_B")]
        shown.add_row(run["model"], run["arm"], *sizes, *moved, f"{run['first_loss']:.3f} to {run['last_loss']:.3f}")
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, print and write."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("model", choices=FULL)
    given, rest = parser.parse_known_args(arguments)
    ways = {"full": FULL[given.model], "quick": QUICK}
    name = f"factor_dynamics_{given.model.lower()}"
    run_command(name, __doc__, ways, measure=measure, table=table, arguments=rest)


if __name__ == "__main__":
    main()
