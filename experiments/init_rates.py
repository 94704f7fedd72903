"""Check C13: does Init[A] take the larger learning rate than Init[B], and end no worse? On a tiny BERT.

A BERT of two layers is pretrained here on the token task of `small_nets` and frozen, head included. Both factors of an
adapter on every linear layer are then trained on the task with another table, one table a seed. Init[A] and Init[B]
meet the same table, the same rows in the same order, and the same rates, octave by octave, until the best of each, by
mean validation loss, has a worse neighbour on either side. The verdict reads the test rows at that rate alone.

Expected, written down before the first run: the best rate of Init[A] is at least that of Init[B] ("rates"), and its
test accuracy is no worse than that of Init[B] by more than two standard errors of the paired difference ("accuracy").
Both are soft: the theory is one of growing width, and at one small width its constants may outweigh it. What came out
is in README.md.

Source:
    Hayou, Ghosh, Yu 2024, "The Impact of Initialization on LoRA Finetuning Dynamics", arXiv:2406.08447. The task, the
    net and the check are ours.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import nn

from asymlora import AdapterSpec
from asymlora.report.tables import plain_table
from asymlora.theory.best_rates import best_rate
from paired_runs import adapt, mean_and_error, paired, run_command, sweep_octaves
from small_nets import Pretraining, TokenTask, Training, pretrain, token_net, token_parts

ARMS = {"init_a": AdapterSpec.init_a, "init_b": AdapterSpec.init_b}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of the experiment.

    Attributes:
        seeds: Paired seeds: table and rows downstream, draws of the adapter, batches.
        exponents: Rates ``2^e`` that every arm runs; more follow at the ends.
        most_rates: Rates of an arm after which to stop extending.
        rows: Rows of pretraining, and of downstream training.
        other_rows: Rows of each validation and test part.
        task: Task and net.
        pretraining: How the base is trained.
        training: How the adapter is trained.
        rank: Of the adapter.
        alpha: Of the adapter; equal to the rank, so that ``s = 1`` as in the theory.
        base_seed: Of the base's weights and rows.
    """

    seeds: tuple[int, ...]
    exponents: tuple[int, ...]
    most_rates: int
    rows: tuple[int, int]
    other_rows: int
    task: TokenTask
    pretraining: Pretraining
    training: Training
    rank: int = 4
    alpha: float = 4.0
    base_seed: int = 0


FULL = Settings(
    seeds=(0, 1, 2, 3, 4, 5),
    exponents=(-8, -7, -6, -5, -4),
    most_rates=14,
    rows=(20_000, 4_000),
    other_rows=2_000,
    task=TokenTask(),
    pretraining=Pretraining(until=0.97),
    training=Training(steps=300),
)
"""What README.md reports."""
QUICK = Settings(
    seeds=(0, 1),
    exponents=(-8, -6),
    most_rates=2,
    rows=(512, 256),
    other_rows=128,
    task=TokenTask(width=16, layers=1),
    pretraining=Pretraining(until=0.0, most_rounds=1, batch_size=32),
    training=Training(steps=5, batch_size=8),
)
"""A few seconds, for a test: nothing is learned."""


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Pretrain the base, sweep both arms and return the records, the verdict last."""
    task, seed = settings.task, settings.base_seed
    base = token_net(task, seed=seed)
    home = token_parts(task, seed=None, train=settings.rows[0], other=settings.other_rows)
    records: list[dict[str, Any]] = [{"kind": "base", **pretrain(base, home, settings.pretraining, seed=seed)}]
    for arm in ARMS:
        run = functools.partial(_runs, base, settings, arm)
        records += sweep_octaves(run, settings.exponents, most=settings.most_rates)
    return [*records, {"kind": "verdict", **verdict(records)}]


def _runs(base: nn.Module, settings: Settings, arm: str, rate: float) -> list[dict[str, Any]]:
    """Return the records of one arm at one rate, one a seed."""
    records: list[dict[str, Any]] = []
    for seed in settings.seeds:
        parts = token_parts(settings.task, seed=seed, train=settings.rows[1], other=settings.other_rows)
        spec = ARMS[arm](rank=settings.rank, alpha=settings.alpha, seed=seed)
        result = adapt(base, spec, parts, settings.training, seed=seed, rate=rate)
        records.append({"kind": "run", "scheme": arm, **result})
    return records


def verdict(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether the expectation held.

    Args:
        records: Those of `measure`; only the runs are read.

    Returns:
        Best rate of each arm, whether it is interior, test loss and accuracy there with standard errors, the paired
        differences A - B, and ``rates`` and ``accuracy``: whether each half holds; None where a best rate is at an edge
        of its grid, so that nothing was compared.
    """
    best: list[Mapping[str, Any]] = []
    found: dict[str, Any] = {}
    for arm in ARMS:
        mine = [r for r in records if r["kind"] == "run" and r["scheme"] == arm]
        rate = best_rate(mine, loss="validation_loss")
        here = [r for r in mine if r["rate"] == rate.argmin]
        best += here
        found[arm] = {"rate": rate.argmin, "between_rates": rate.parabola, "interior": not rate.at_edge}
        for column in ("test_accuracy", "test_loss"):
            found[arm][column], found[arm][f"{column}_error"] = mean_and_error([r[column] for r in here])
    for column in ("test_accuracy", "test_loss"):
        found[f"{column}_difference"] = paired(best, "init_a", "init_b", column)
    compared = all(found[arm]["interior"] for arm in ARMS)
    difference, error = found["test_accuracy_difference"]
    found["rates"] = found["init_a"]["rate"] >= found["init_b"]["rate"] if compared else None
    found["accuracy"] = difference >= -2 * error if compared else None
    return found


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return means over seeds by arm and rate."""
    result = records[-1]
    words = {True: "holds", False: "fails", None: "undecided: a best rate is at an edge"}
    difference, error = result["test_accuracy_difference"]
    caption = (
        f"A - B at the best rates: {100 * difference:+.2f} ± {100 * error:.2f} points of test accuracy.\n"
        f"rate(A) >= rate(B): {words[result['rates']]}; A no worse within 2 s.e.: {words[result['accuracy']]}."
    )
    shown = plain_table("Init[A] and Init[B], means over paired seeds; * best by validation loss", caption)
    for name in ("arm", "rate", "validation loss", "test loss", "test accuracy"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    runs = [r for r in records if r["kind"] == "run"]
    for arm, rate in dict.fromkeys((r["scheme"], r["rate"]) for r in runs):
        here = [r for r in runs if (r["scheme"], r["rate"]) == (arm, rate)]
        means = [mean_and_error([r[c] for r in here])[0] for c in ("validation_loss", "test_loss", "test_accuracy")]
        mark = "*" if result[arm]["rate"] == rate else ""
        shown.add_row(arm, f"{mark}{rate:.2e}", f"{means[0]:.3f}", f"{means[1]:.3f}", f"{means[2]:.1%}")
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, print and write."""
    ways = {"full": FULL, "quick": QUICK}
    run_command("init_rates", __doc__, ways, measure=measure, table=table, arguments=arguments)


if __name__ == "__main__":
    main()
