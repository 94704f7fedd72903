"""The learning rate that `asymlora advise` gives, against a coarse sweep of short runs, in octaves. MiniLM, two sets.

For each set, advice is asked for as the command does it (one pass over 8 batches, then the range test of the advised
adapter); its recipe is then run at rates an octave apart, two seeds each (another `A`, another order of the rows),
until the best rate by mean validation loss has a worse neighbour on either side. Runs are those of the recipe (its
warm-up and linear decay, its rate for the head) of 60 steps, from the fitted head.

Expected, written down before the first run on these sets: the advised rate lies within 2 octaves of the sweep's best
one (argmin of the grid) on both sets: that is what counts as agreement. Rather below than above it, as the rule is two
octaves below an edge that a short test sees, and as 60 steps leave a small rate little time: the best rate of a short
run is larger than that of a long one. The allowed rise of the range test was set on the embedded reviews alone. Nothing
here compares the advice with the plain defaults; the grid starts around the default rate only because it must start
somewhere.

What came out is in README.md. Without the data (`--data-root`) nothing is run.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from asymlora.errors import DivergedError
from asymlora.report.tables import plain_table
from asymlora.theory.best_rates import best_rate
from asymlora.train.advice_options import AdvisingSettings
from asymlora.train.advised_record import advised_record
from asymlora.train.advising import advise_recipe
from asymlora.train.callbacks import Silent, quiet_transformers
from asymlora.train.methods import METHODS
from asymlora.train.range_rules import RangeSettings
from asymlora.train.recipe import Recipe, at_rate
from asymlora.train.run_folder import RunFolder
from asymlora.train.settings import make_trainer
from paired_runs import RESULTS, sweep_octaves, write_records
from real_models import PretrainedTask

AGREEMENT_OCTAVES = 2.0
DATA_ROOT = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of the experiment.

    Attributes:
        sets: Folders of the data below the data root.
        seeds: Of the adapter's draw, the order of the rows and the dropout.
        exponents: Rates ``2^e`` that are run on every set; more follow at the ends.
        most_rates: Rates of a set after which to stop extending.
        steps: Of a run.
        rows: Training rows; validation has at most 500.
        model: As in a recipe.
        advising: How advice is asked for.
    """

    sets: tuple[str, ...] = ("text/trec6", "text/sst2")
    seeds: tuple[int, ...] = (0, 1)
    exponents: tuple[int, ...] = (-11, -10, -9, -8, -7)
    most_rates: int = 10
    steps: int = 60
    rows: int = 2000
    model: str = "embedded:minilm-l6"
    advising: AdvisingSettings = field(default_factory=lambda: AdvisingSettings(ranks_by_layer=True))


FULL = Settings()
"""What README.md reports."""
QUICK = Settings(
    seeds=(0,),
    exponents=(-9, -8),
    most_rates=2,
    steps=2,
    rows=64,
    advising=AdvisingSettings(batches=2, rows=64, range_test=RangeSettings(steps=12, probe_steps=2, most_probes=1)),
)
"""Shows that the script runs."""


def measure(settings: Settings, root: Path) -> list[dict[str, Any]]:
    """Ask for advice and sweep on each set, and return the records, the verdict last.

    Args:
        settings: The settings.
        root: Folder of the data.
    """
    quiet_transformers()
    records: list[dict[str, Any]] = []
    for name in settings.sets:
        recipe = given_recipe(settings, root / name)
        advised = advise_recipe(recipe, settings=settings.advising)
        told = advised_record(advised)
        kept = ("summary", "rate", "range_test", "other_rates", "sites", "per_site_ranks", "values", "seconds")
        records.append({"kind": "advice", "set": name, **{key: told[key] for key in kept}})
        task = PretrainedTask(recipe.task, recipe.model, recipe.data)
        run = functools.partial(_runs, task, advised.recipe, settings, name)
        records += sweep_octaves(run, settings.exponents, most=settings.most_rates)
    return [*records, {"kind": "verdict", **verdict(records)}]


def given_recipe(settings: Settings, data: Path) -> Recipe:
    """Return the plain recipe of a set, its rate the default.

    Args:
        settings: The settings.
        data: Folder of the set.
    """
    return Recipe.from_dict(
        {
            "model": {"name": settings.model},
            "data": {"name": str(data), "max_rows": settings.rows, "max_scored_rows": min(settings.rows, 500)},
            "train": {"steps": settings.steps, "evaluate_every": settings.steps, "dynamics_every": 0},
        }
    )


def _runs(task: PretrainedTask, advised: Recipe, settings: Settings, name: str, rate: float) -> list[dict[str, Any]]:
    """Return the records of one rate, one a seed."""
    records: list[dict[str, Any]] = []
    for seed in settings.seeds:
        train = replace(at_rate(advised.train, rate), seed=seed)
        recipe = replace(advised, train=train, adapter=replace(advised.adapter, seed=seed))
        scores = trained_scores(task, recipe)
        scores = {f"validation_{key}": value if math.isfinite(value) else None for key, value in scores.items()}
        records.append({"kind": "run", "set": name, "rate": rate, "seed": seed, **scores})
    return records


def trained_scores(task: PretrainedTask, recipe: Recipe) -> dict[str, float]:
    """Train a recipe's adapter and return the metrics on the validation rows; infinite losses where it diverged.

    Args:
        task: Model, rows and fitted head; all put back.
        recipe: The run.
    """
    scoring = task.prepared.scoring
    with tempfile.TemporaryDirectory() as folder, task.adapted(recipe.adapter) as network:
        where = RunFolder(path=Path(folder), writes=False)
        trainer, _ = make_trainer(recipe, task.prepared, METHODS["adapter"], network, folder=where, watcher=Silent())
        trainer.args.set_evaluate("no")
        trainer.args.set_save("no")
        trainer.args.load_best_model_at_end = False
        try:
            trainer.train()
        except DivergedError:
            return {"loss": math.inf, scoring.metric: 0.0}
        return scoring.score(trainer.evidence_of(task.prepared.validation))


def verdict(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, for each set, how far the advised rate is from the best one, and whether all agree.

    Args:
        records: Those of `measure`.

    Returns:
        By set: ``advised``, ``edge``, ``best``, ``between_rates``, ``interior``, ``octaves`` (advised over best, in
        powers of two), ``agrees`` (None where the best rate is at an edge of its grid), ``excess_loss`` (mean
        validation loss at the rate of the grid nearest to the advised one, less the smallest; None where that rate was
        not run). And ``holds``: whether all agree; None where one is not decided.
    """
    found: dict[str, Any] = {}
    for advice in [r for r in records if r["kind"] == "advice"]:
        runs = [
            {**r, "validation_loss": math.inf if r["validation_loss"] is None else r["validation_loss"]}
            for r in records
            if r["kind"] == "run" and r["set"] == advice["set"]
        ]
        best, advised = best_rate(runs, loss="validation_loss"), advice["rate"]["lr"]
        octaves = math.log2(advised / best.argmin)
        near = 2.0 ** round(math.log2(advised))
        losses = [r["validation_loss"] for r in runs if r["rate"] == near]
        found[advice["set"]] = {
            "advised": advised,
            "edge": advice["range_test"]["edge"],
            "outcome": advice["range_test"]["outcome"],
            "best": best.argmin,
            "between_rates": best.parabola,
            "interior": not best.at_edge,
            "octaves": octaves,
            "agrees": None if best.at_edge else abs(octaves) <= AGREEMENT_OCTAVES,
            "excess_loss": sum(losses) / len(losses) - best.loss if losses else None,
            "seconds_of_advice": advice["seconds"]["in all"],
        }
    agreed = [one["agrees"] for one in found.values()]
    return {"sets": found, "holds": None if None in agreed else all(agreed)}


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return means over seeds by set and rate, and the verdict."""
    result = records[-1]
    words = {True: "holds", False: "fails", None: "undecided: a best rate is at an edge of its grid"}
    lines = [
        f"{name}: advised {one['advised']:.2g}, best {one['best']:.2g}: {one['octaves']:+.1f} octaves"
        + ("" if one["excess_loss"] is None else f", {one['excess_loss']:+.3f} of validation loss")
        for name, one in result["sets"].items()
    ]
    lines.append(f"Within {AGREEMENT_OCTAVES:g} octaves on every set: {words[result['holds']]}.")
    shown = plain_table("Advised rate and sweep; * best by validation loss, > nearest to the advised", "\n".join(lines))
    for name in ("set", "rate", "validation loss", "metric"):
        shown.add_column(name, justify="left" if name == "set" else "right")
    runs = [r for r in records if r["kind"] == "run"]
    for name, rate in dict.fromkeys((r["set"], r["rate"]) for r in runs):
        here = [r for r in runs if (r["set"], r["rate"]) == (name, rate)]
        one = result["sets"][name]
        marks = "*" * (one["best"] == rate) + ">" * (2.0 ** round(math.log2(one["advised"])) == rate)
        losses = [math.inf if r["validation_loss"] is None else r["validation_loss"] for r in here]
        scores = [r["validation_accuracy"] for r in here]
        shown.add_row(name, f"{marks}{rate:.2e}", f"{sum(losses) / len(here):.3f}", f"{sum(scores) / len(here):.1%}")
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=DATA_ROOT, help="folder with text/trec6 and text/sst2")
    parser.add_argument("--quick", action="store_true", help="two steps, two rates: shows that the script runs")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--output", type=Path, default=RESULTS / "advised_rates.jsonl")
    given = parser.parse_args(arguments)
    settings = QUICK if given.quick else FULL
    if absent := [name for name in settings.sets if not (given.data_root / name).is_dir()]:
        print(f"Nothing is run: {', '.join(absent)} is not below the data root.")
        return
    torch.set_num_threads(given.threads)
    records = measure(settings, given.data_root)
    write_records(given.output, asdict(settings), records)
    Console().print(table(records))


if __name__ == "__main__":
    main()
