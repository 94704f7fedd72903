"""What the artefact `advice` runs: plain recipes as sweeps, and advised ones as its points ask for them. No torch.

An advised recipe is not known before advice has been asked for, so no sweep can hold it: a point asks for advice as
``asymlora advise`` does, trains what is advised, and notes what the advice has cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.errors import SpecError
from asymlora.papers.arm_comparisons import at_rank, plan_of
from asymlora.papers.asymmetry_sweeps import paper_text_part
from asymlora.papers.models_and_data import MINILM, SST2, TREC6
from asymlora.papers.stated_tests import closing_seeds
from asymlora.papers.zhu_settings import B_ONLY, BOTH
from asymlora.reproduce.artefact import FIRST_SEEDS, DataSet, MeasuredPart, Part, SweepPart
from asymlora.reproduce.evidence import Record
from asymlora.reproduce.printed_count import MILLION, PrintedCount
from asymlora.spec import AdapterSpec
from asymlora.sweep.axes import Arm, parse_rates
from asymlora.sweep.grid import SweepPlan
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.train.recipe import Recipe, TrainRecipe

if TYPE_CHECKING:
    from asymlora.sweep.run_record import RunRow
    from asymlora.train.advising import Advised

ADVISED, PLAIN, OWN, TUNED = "advised", "plain", "own", "tuned"
"""Name of the measured part, and ends of the names of sweeps: plain defaults, asymlora's own, tuned rates."""
PLAIN_RATE, OWN_RATE = 2e-4, 2e-3
"""The rate that LoRA is mostly run at, and that of ``asymlora finetune`` when this was written."""
STEPS, BATCH_SIZE, SCORED_ROWS = 160, 16, 300
"""Of a run at the small scale: its total, of which advice takes its part."""
VALUES, PAPER_VALUES = 331_776, 786_432
"""Trained in the factors: by LoRA of rank 8 and by B alone of rank 16, on MiniLM's linear layers; on query and value of
RoBERTa-large."""
FORWARD_SHARE = 3
"""A forward pass is about one third of a step."""
HEAD_ROWS = 400
"""Rows of validation and of test whose features ``asymlora advise`` computes at most."""
ARMS: tuple[Arm, ...] = (BOTH, at_rank(B_ONLY, 16))
LORA, B_ALONE = (arm.name for arm in ARMS)


@dataclass(frozen=True, kw_only=True)
class AdviceSet:
    """A set of texts that advice is asked for.

    Attributes:
        name: Its name in points, and the start of its parts' names.
        title: What it is called in sentences.
        rows: Training rows that are used at most.
        data: Where it is.
        tuned: Whether plain recipes are run at their own best rates too.
    """

    name: str
    title: str
    rows: int
    data: DataSet
    tuned: bool


SETS = (
    AdviceSet(name="trec6", title="TREC-6", rows=2000, data=TREC6, tuned=True),
    AdviceSet(name="sst2_500", title="SST-2 (500 rows)", rows=500, data=SST2, tuned=False),
)
PAPER_SET, PAPER_TITLE = "rte", "RTE"
TITLES: Mapping[str, str] = {**{each.name: each.title for each in SETS}, PAPER_SET: PAPER_TITLE}
TUNED_SETS = (*(each.name for each in SETS if each.tuned), PAPER_SET)


def plain_recipe(each: AdviceSet, data_root: Path) -> Recipe:
    """Return the recipe that all arms of a set are laid over: what a user would type who says nothing of the adapter.

    Args:
        each: The set.
        data_root: Where data sets stand.
    """
    return Recipe(
        model=ModelRecipe(name=MINILM),
        data=DataRecipe(
            name=str(data_root / each.data.place), metric="accuracy", max_tokens=64, max_rows=each.rows,
            max_scored_rows=SCORED_ROWS,
        ),
        adapter=AdapterSpec.b_only(rank=8),
        train=TrainRecipe(
            steps=STEPS, batch_size=BATCH_SIZE, evaluate_every=STEPS, head_start="probe", lr=PLAIN_RATE,
            dynamics_every=0,
        ),
    )  # fmt: skip


def small_parts(data_root: Path) -> tuple[Part, ...]:
    """Return the sweeps of both sets, and the advised runs.

    Args:
        data_root: Where data sets stand.
    """
    recipes = {each.name: plain_recipe(each, data_root) for each in SETS}
    sweeps = [
        part
        for each in SETS
        for part in _sweeps(each.name, recipes[each.name], tuned="1e-3..1e-2:2" if each.tuned else "")
    ]
    return (*sweeps, _advised_part(recipes, steps=STEPS, values=VALUES))


def paper_parts(_: Path) -> tuple[Part, ...]:
    """Return the same of RoBERTa-large on RTE.

    Args:
        _: Not read: the set comes from the hub.
    """
    recipe = paper_text_part(PAPER_SET, arms=ARMS).plan.recipe
    # What advice chooses may not be chosen already.
    recipe = replace(recipe, adapter=replace(AdapterSpec.b_only(rank=8), targets=("query", "value"), dropout=0.05))
    count = PrintedCount(text="0.8 M", unit=MILLION, where="Zhu et al., Table 7; in Table 1 as %, which is millions")
    printed = {LORA: count, B_ALONE: count}
    sweeps = [
        replace(part, printed={name: printed[name] for name in (arm.name for arm in part.plan.arms)})
        for part in _sweeps(PAPER_SET, recipe, tuned="1e-4,2e-4,4e-4,8e-4")
    ]
    return (*sweeps, _advised_part({PAPER_SET: recipe}, steps=recipe.train.steps, values=PAPER_VALUES))


def part_name(text_set: str, which: str) -> str:
    """Return the name of a sweep.

    Args:
        text_set: Name of the set.
        which: `PLAIN`, `OWN` or `TUNED`.

    Example:
        >>> part_name("trec6", TUNED)
        'trec6_tuned'
    """
    return f"{text_set}_{which}"


def _sweeps(name: str, recipe: Recipe, *, tuned: str) -> Iterator[SweepPart]:
    yield SweepPart(name=part_name(name, PLAIN), plan=_at_one_rate(recipe, ARMS, PLAIN_RATE))
    yield SweepPart(name=part_name(name, OWN), plan=_at_one_rate(recipe, ARMS[1:], OWN_RATE))
    if tuned:
        plan = plan_of(recipe, ARMS, parse_rates(tuned), bounded=True)
        yield SweepPart(name=part_name(name, TUNED), plan=plan)


def _at_one_rate(recipe: Recipe, arms: Sequence[Arm], rate: float) -> SweepPlan:
    return SweepPlan(
        recipe=recipe, arms=tuple(arms), rates=(rate,), tuning_seeds=(), closing_seeds=closing_seeds(FIRST_SEEDS)
    )


def _advised_part(recipes: Mapping[str, Recipe], *, steps: int, values: int) -> MeasuredPart:
    points = tuple(
        {"set": name, "seed": seed, "steps": steps, "values": values}
        for name in recipes
        for seed in closing_seeds(FIRST_SEEDS)
    )
    return MeasuredPart(
        name=ADVISED, points=points, measure=partial(measure_advised, recipes=recipes), recipes=tuple(recipes.values())
    )


# A point -------------------------------------------------------------------------------------------------------------


def measure_advised(point: Mapping[str, Any], *, recipes: Mapping[str, Recipe]) -> list[Record]:
    """Ask for advice with one seed, and train what is advised: with the steps that are left, and with all of them.

    Args:
        point: ``set``, ``seed``, ``steps`` (the total), ``values`` (trained in the factors at most).
        recipes: Plain recipes by the set's name.

    Returns:
        Two records with what was advised, what it cost and how the run ended: ``cost_counted`` says whether its steps
        are the total less what the advice cost.

    Raises:
        SpecError: A run failed for another reason than divergence.
    """
    from asymlora.sweep.session import Session
    from asymlora.train.advice_options import AdvisingSettings
    from asymlora.train.advising import advise_recipe
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    plain, seed, total = recipes[point["set"]], point["seed"], point["steps"]
    train = replace(plain.train, seed=seed, steps=total, evaluate_every=min(total, plain.train.evaluate_every))
    given = replace(plain, train=train, adapter=replace(plain.adapter, seed=seed))
    asked = AdvisingSettings(values=point["values"], ranks_by_layer=True, everywhere=False)
    advised = advise_recipe(given, settings=asked)
    cost, session = cost_in_steps(advised), Session()
    left = max(1, total - sum(cost.values()))
    return [
        {
            "set": point["set"], "seed": seed, "cost_counted": counted, **what_is_advised(advised), **cost,
            **_ended(session.run(_job(advised.recipe, steps, seed))),
        }
        for counted, steps in ((True, left), (False, total))
    ]  # fmt: skip


def cost_in_steps(advised: Advised) -> dict[str, int]:
    """Return what an advice has cost, in steps of the recipe that was given.

    Args:
        advised: The advice.

    Returns:
        ``range_steps``: of the range test; ``gradient_steps``: a batch each; ``head_steps``: three forward passes are
        one, over the rows whose features the head was fitted and chosen on.
    """
    scored = min(HEAD_ROWS, advised.rows, advised.given.data.max_scored_rows or HEAD_ROWS)
    rows = advised.rows + 2 * scored if advised.head_fitted else 0
    forward = rows / advised.given.train.batch_size
    return {
        "range_steps": advised.range_test.steps,
        "gradient_steps": advised.batches,
        "head_steps": math.ceil(forward / FORWARD_SHARE),
    }


def what_is_advised(advised: Advised) -> dict[str, Any]:
    """Return an advice as plain values.

    Args:
        advised: The advice.

    Returns:
        ``lr``, ``outcome`` of the range test, ``values``, ``rank`` (of most sites), ``per_site_ranks``,
        ``sites_A``, ``sites_B`` and ``sites_both``: layers by what is trained there, and ``advice_seconds``.
    """
    trained = [site.train for site in advised.advice.sites]
    return {
        "lr": advised.recipe.train.lr,
        "outcome": advised.range_test.outcome,
        "values": advised.advice.values,
        "rank": advised.recipe.adapter.rank,
        "per_site_ranks": advised.advice.per_site_ranks,
        **{f"sites_{factor}": trained.count(factor) for factor in ("A", "B", "both")},  # pyright: ignore[reportArgumentType]
        "advice_seconds": advised.seconds["in all"],
    }


def _job(recipe: Recipe, steps: int, seed: int) -> Any:
    from asymlora.sweep.run_record import RunJob

    train = replace(recipe.train, steps=steps, evaluate_every=min(steps, recipe.train.evaluate_every))
    run = replace(recipe, train=train)
    return RunJob(recipe=run, phase="closing", arm=ADVISED, seed=seed, scores_test=True)


def _ended(row: RunRow) -> dict[str, Any]:
    if row.status not in ("finished", "diverged"):
        raise SpecError(f"An advised run ended as {row.status!r}: {row.error} Type the same command to try it again.")
    test = row.test or {}
    return {
        "steps": row.planned_steps,
        "status": row.status,
        "accuracy": test.get(row.metric),
        "validation": row.validation,
        "trained_values": row.trained_parameters,
        "train_seconds": row.train_seconds,
    }
