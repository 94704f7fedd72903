"""What the artefacts on causal language models share: their sweeps, and claims on loss and rate. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asymlora.papers.bracketed import AT_AN_END, open_arms, undecided_at_ends
from asymlora.papers.hayou_settings import ABSTRACT, INIT_ARMS
from asymlora.papers.stated_tests import UNTOLD, closing_seeds, known_before, tuning_seeds
from asymlora.reproduce.artefact import FIRST_SEEDS, SweepPart
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, SweepEvidence
from asymlora.reproduce.paired_tests import NATS, OCTAVES, Unit, described, level_at, paired_finding
from asymlora.reproduce.rates_by_seed import closing_values, rate_sentence, tuned_rate
from asymlora.sweep.axes import parse_rates
from asymlora.sweep.grid import SweepPlan
from asymlora.sweep.run_record import RunRow
from asymlora.train.recipe import Recipe

FIRST, SECOND = "init_a", "init_b"
NO_VALUES = "a figure, whose values are not known"
GENERALLY = f"{ABSTRACT} (generally); that there is a figure of this task is recalled"
ON_AVERAGE = f"{ABSTRACT} (on average over tasks, not on each); that there is a figure of this task is recalled"
SMALL_RATES = "1e-4..1e-2:2"
NAMES = {FIRST: "Init[A]", SECOND: "Init[B]"}
KNOWN = known_before(
    "of SmolLM2 one seed of each start at one untuned rate, after 30 steps: training losses of 3.981 and 4.076"
    " (docs/diagnostics.md); runs that checked the code, at other settings."
)
"""As claims on it quote it."""
TUNING_SEEDS = 2
SMALL_TRAINING = {
    "steps": 24,
    "batch_size": 4,
    # Once at the end: scoring takes as long as two steps, and of 24 steps the last one is the best unless all is lost.
    "evaluate_every": 24,
    "dynamics_every": 0,
}


def small_recipe(task: str, data: dict[str, Any], model: str) -> Recipe:
    """Return the recipe of runs on SmolLM2.

    Args:
        task: Of the recipe.
        data: Fields of its data.
        model: Name of the model.
    """
    return Recipe.from_dict(
        {
            "task": task,
            "model": {"name": model},
            "data": data,
            "adapter": {"preset": FIRST, "rank": 8},
            "train": SMALL_TRAINING,
        }
    )


def sweep_part(name: str, recipe: Recipe, *, rates: str = SMALL_RATES) -> SweepPart:
    """Return a sweep of both starts, each at its own best rate, in one look: no claim on it is the abstract's.

    Args:
        name: Of the part.
        recipe: What both have in common.
        rates: The first grid, as ``--lr`` takes it.
    """
    plan = SweepPlan(
        recipe=recipe,
        arms=INIT_ARMS,
        rates=parse_rates(rates),
        tuning_seeds=tuning_seeds(TUNING_SEEDS),
        closing_seeds=closing_seeds(FIRST_SEEDS),
    )
    return SweepPart(name=name, plan=plan)


def linked(link: Path, target: Path) -> None:
    """Let a name in a run's folder stand for a file of the data root, so that no data are copied.

    Args:
        link: The name; one that stands for something else is replaced.
        target: The file.
    """
    there = target.resolve()
    if link.is_symlink() and link.resolve() == there:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(there)


# Claims --------------------------------------------------------------------------------------------------------------


def larger_rate(part: str, *, model: str) -> Claim:
    """Return the claim that the best rate of Init[A] is the larger one, as a description.

    Args:
        part: Whose records are read.
        model: The paper's model and task.
    """
    return Claim(
        key="larger_rate",
        says=f"The best learning rate of Init[A] is larger than that of Init[B] ({model}).",
        kind="question",
        source=GENERALLY,
        paper=NO_VALUES,
        test=(
            f"Description: for each start the rate with the best mean on validation over {TUNING_SEEDS} tuning seeds,"
            f" and their ratio. {TUNING_SEEDS} seeds decide nothing, so it stays undecided whatever they say.{KNOWN}"
        ),
        parts=(part,),
        judge=lambda evidence: _rates(evidence.sweep(part)),
    )


def lower_loss(part: str, *, model: str) -> Claim:
    """Return the claim that Init[A] ends with the lower test loss, each start at its own best rate.

    Args:
        part: Whose records are read.
        model: The paper's model and task.
    """
    what = "Test loss of Init[A] less that of Init[B]"
    return Claim(
        key="lower_loss",
        says=f"At its own best rate Init[A] ends with the lower test loss ({model}).",
        kind="question",
        source=ON_AVERAGE,
        paper=NO_VALUES,
        test=f"{what}, paired by seed: {decided_by('below 0', 'above 0')}",
        parts=(part,),
        judge=lambda evidence: paired_figures(
            evidence.sweep(part), metric="loss", show=NATS, claimed="less", what=what
        ),
    )


def decided_by(claimed: str, other: str) -> str:
    """Return what decides a claim on pairs, as the end of a sentence that says what is paired.

    Args:
        claimed: What the mean is where the claim holds.
        other: What it is where it fails.
    """
    return (
        f"exact two-sided sign-flip test over seeds 0 to {FIRST_SEEDS - 1} at level {level_at(FIRST_SEEDS)}. Holds: p"
        f" is at most that and the mean {claimed}; fails: p is at most that and the mean {other}; otherwise undecided."
        f" {AT_AN_END}{UNTOLD}{KNOWN}"
    )


def smallest_rate(part: str) -> Claim:
    """Return the question whether Init[B] is ahead where the rate is small, as a description.

    Args:
        part: Whose records are read.
    """
    return Claim(
        key="smallest_rate",
        says="At the smallest rate of the grid Init[B] is ahead: which start is better depends on the rate.",
        kind="question",
        source="github.com/aweers/lora-init, values read off a plot; not of the paper",
        paper="evaluation loss at 1e-4: 2.258 (Init[A]) and 2.251 (Init[B]), Qwen2.5-1.5B-Instruct, 4 seeds",
        test=(
            f"Description: validation loss of Init[A] less that of Init[B] at the smallest rate of the first grid, by"
            f" the {TUNING_SEEDS} tuning seeds; too few to decide, so it stays undecided.{KNOWN}"
        ),
        parts=(part,),
        judge=lambda evidence: _at_smallest(evidence.sweep(part)),
    )


def paired_figures(sweep: SweepEvidence, *, metric: str, show: Unit, claimed: Any, what: str) -> Finding:
    """Judge a figure of the closing runs between both starts, each at its own best rate.

    Args:
        sweep: What the sweep left.
        metric: On the test part.
        show: Its unit.
        claimed: As for `paired_finding`.
        what: What the difference is.
    """
    first, second = (closing_values(sweep, arm, metric=metric) for arm in (FIRST, SECOND))
    found = paired_finding(first, second, claimed=claimed, show=show, what=what)
    return undecided_at_ends(found, open_arms(sweep, NAMES))


def _rates(sweep: SweepEvidence) -> Finding:
    first, second = (tuned_rate(sweep, arm) for arm in (FIRST, SECOND))
    said = " ".join(rate_sentence(sweep, arm) for arm in (FIRST, SECOND))
    if first is None or second is None:
        return described(f"{said} There is no ratio.")
    octaves = math.log2(first / second)
    return described(
        f"{said} Init[A] over Init[B]: {first / second:.3g}, {OCTAVES.text(octaves)}, by {TUNING_SEEDS} tuning seeds.",
        estimate=octaves,
        pairs=TUNING_SEEDS,
    )


def _at_smallest(sweep: SweepEvidence) -> Finding:
    smallest = min(sweep.plan["rates"])
    first, second = (_tuning_losses(sweep, arm, smallest) for arm in (FIRST, SECOND))
    what = f"Validation loss of Init[A] less that of Init[B] at rate {smallest:.3g}"
    return paired_finding(first, second, claimed="greater", show=NATS, what=what)


def _tuning_losses(sweep: SweepEvidence, arm: str, lr: float) -> dict[int, float]:
    rows = [row for row in sweep.rows if row.phase == "tuning" and row.arm == arm and row.status == "finished"]
    return {row.seed: loss_of(row) for row in rows if math.isclose(row.lr, lr, rel_tol=1e-4)}


def loss_of(row: RunRow) -> float:
    """Return the validation loss of a run in nats, of a run that is scored by perplexity its logarithm.

    Args:
        row: A finished run.

    Returns:
        The loss; not a number where the run has none.
    """
    if row.validation is None:
        return math.nan
    return math.log(row.validation) if row.metric == "perplexity" else row.validation


def rate_figure(part: str, *, title: str, panel: str, y: str, log_y: bool) -> Callable[[Evidence], Any]:
    """Return what draws the metric on validation against the rate.

    Args:
        part: Whose records are drawn.
        title: Of the figure.
        panel: Title of its panel.
        y: Name of the vertical axis.
        log_y: Whether it is logarithmic.
    """

    def draw(evidence: Evidence) -> Any:
        from asymlora.report.reproduction_figures import metric_against_rate
        from asymlora.report.reproduction_panels import rate_panel

        sweep = evidence.sweep(part)
        return metric_against_rate([rate_panel(panel, sweep.plan, rows=sweep.rows)], title=title, y=y, log_y=log_y)

    return draw
