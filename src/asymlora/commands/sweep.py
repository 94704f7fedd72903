"""``asymlora sweep``: which arm, at which learning rate, with an answer that says no more than it shows."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asymlora.errors import MissingPackageError, NothingToResumeError, RunExistsError, SpecError

RATES = "1e-4..1e-2"
_NOT_READ = ("train.lr", "train.seed", "adapter.seed", "train.sharding", "train.report_to", "train.keep_checkpoints")
"""Fields of a recipe that a sweep sets itself or does without."""
_PLAN = (
    *("arm", "axis", "lr", "lr_bounds", "no_grow", "seeds", "tuning_seeds", "match", "prune", "prune_eta", "repeats"),
    *("margin", "threads", "search", "trials", "sampler", "search_batch"),
)
_OWN = (
    *("typed", "recipe", "out", "resume", "overwrite", "dry_run", "no_page"),
    *("executor", "workers", "memory", "address"),
)


def parser(recipe_options: Iterator[tuple[str, Any, Any, str]]) -> Any:
    """Return the parser.

    Args:
        recipe_options: Name, type, default and help of each field of a recipe.
    """
    from jsonargparse import ArgumentParser

    made = ArgumentParser(
        usage="asymlora sweep [RECIPE.yaml] [--arm ARM ...] [--lr 1e-4..1e-2] [--seeds 6] [--dotted.key value ...]",
        description="Compare arms, each at its own best learning rate: rates are chosen on validation and on seeds of"
        " their own, results quoted on test and fresh seeds, paired between arms. Ends with verdicts and a page.",
        exit_on_error=False,
    )
    made.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help="recipe of all runs; options below win over it")
    _add_grid(made)
    _add_search(made)
    _add_places(made)
    for name, hint, default, help_text in recipe_options:
        if name not in _NOT_READ:
            made.add_argument(f"--{name}", type=hint, default=default, help=help_text)
    return made


def _add_grid(made: Any) -> None:
    made.add_argument(
        "--arm", type=str, action="append", metavar="ARM",
        help="what is compared, once for each: b_only, init_a, hB_zero_A_V, b_only:rank=16, small=lora:rank=4,"
        " full, head, peft:lora; default: init_a, init_b and b_only",
    )  # fmt: skip
    made.add_argument(
        "--axis", type=str, action="append", metavar="FIELD=V,V", help="vary a further field of the recipe"
    )
    made.add_argument(
        "--lr", type=str, help=f"rates: {RATES} (three a decade), {RATES}:2, or 1e-4,3e-4; default {RATES}"
    )
    made.add_argument(
        "--lr-bounds", type=str, metavar="LOW..HIGH", help="how far the grid may grow; default: 2 decades"
    )
    made.add_argument("--no-grow", action="store_true", help="keep the grid where the best rate lies at its end")
    made.add_argument("--seeds", type=str, help="fresh seeds that are quoted: a number, or 3,5,8; default 6")
    made.add_argument("--tuning-seeds", type=str, help="seeds that choose the rate, likewise; default 2")
    made.add_argument("--match", type=str, help="equal in all arms: steps (default), parameters or compute")
    made.add_argument(
        "--prune", action="store_true", help="stop tuning runs early that are behind (successive halving)"
    )
    made.add_argument("--prune-eta", type=int, help="of the runs at a rung, one in so many goes on; default 2")
    made.add_argument("--repeats", type=int, help="repeat a closing run of each cell so often, for the machine's noise")
    made.add_argument("--margin", type=float, help="largest difference that counts as none, for equivalence")
    made.add_argument("--threads", type=int, help="threads of each run; default: torch's, in workers one")


def _add_search(made: Any) -> None:
    made.add_argument(
        "--search", type=str, action="append", metavar="FIELD=LOW..HIGH",
        help="search this field instead of a grid of rates: train.lr=1e-4..1e-2, adapter.rank=4,8,16",
    )  # fmt: skip
    made.add_argument("--trials", type=int, help="points of a search, for each cell; default 24")
    made.add_argument("--sampler", type=str, help="Optuna's tpe (default) or random")
    made.add_argument("--search-batch", type=int, help="points asked for together; default 4")


def _add_places(made: Any) -> None:
    made.add_argument("--executor", type=str, help="inline (this process, default), processes, or ray")
    made.add_argument("--workers", type=int, help="processes at a time; default: as cores and memory allow")
    made.add_argument(
        "--memory", type=str, metavar="SIZE", help="memory for all processes, like 12GiB; default: what is free"
    )
    made.add_argument("--address", type=str, help="of a running Ray cluster; default: one on this machine")
    made.add_argument("--out", type=str, help="folder of the sweep; default: a new one below sweeps/")
    made.add_argument("--resume", action="store_true", help="go on with the sweep in --out, or the newest")
    made.add_argument("--overwrite", action="store_true", help="replace the sweep in --out")
    made.add_argument(
        "--dry-run", action="store_true", help="print the runs, and time and memory from a few real steps"
    )
    made.add_argument("--no-page", action="store_true", help="write no report.html at the end")


def run(options: dict[str, Any]) -> int:
    """Run, resume or forecast a sweep.

    Args:
        options: What the user gave.

    Returns:
        The exit code.

    Raises:
        SpecError: Early stopping is asked for and nothing could be stopped, or another sweep is resumed.
        NothingToResumeError: Nothing but ``--resume`` is said, and there is no sweep.
    """
    from asymlora.sweep.choosing_executor import refuse_places
    from asymlora.sweep.sweep_folder import claim, require_same_base

    given = dict(options)
    own = {name: given.pop(name, None) for name in _OWN}
    words = {name: given.pop(name, None) for name in _PLAN}
    refuse_places(own["executor"] or "inline", **{name: own[name] for name in ("workers", "memory", "address")})
    resume, overwrite, dry = (bool(own[name]) for name in ("resume", "overwrite", "dry_run"))
    folder = claim(own["out"], resume=resume, overwrite=overwrite) if resume or not dry else None
    from asymlora.commands.sweep_plan import gone_on_with, plan_of

    if folder is not None and folder.resumes:
        plan = gone_on_with(folder.path, own["recipe"], given, words)
        require_same_base(folder.path, plan.to_dict())
    else:
        _refuse_nothing_to_resume(folder, own, words, given)
        plan = plan_of(own["recipe"], given, words)
    _require_packages(own, plan)
    from asymlora.train.callbacks import quiet_transformers

    quiet_transformers()
    from asymlora.sweep.cell_checks import pruning_problem, ready_cells

    cells = ready_cells(plan)
    if problem := pruning_problem(plan, cells):
        raise SpecError(problem)
    if folder is None or dry:
        return _forecast(plan, cells, own)
    return _sweep(plan, cells, folder, own)


def _refuse_nothing_to_resume(folder: Any, own: dict[str, Any], words: dict[str, Any], given: dict[str, Any]) -> None:
    said = own["recipe"] or given or any(value not in (None, False) for value in words.values())
    if folder is not None and own["resume"] and not said:
        raise NothingToResumeError(
            f"There is no sweep in {folder.path} to go on with. Begin it without --resume, or repeat its recipe and"
            " options beside --resume."
        )


def _require_packages(own: dict[str, Any], plan: Any) -> None:
    needed = [("scipy", "sweep"), ("statsmodels", "sweep")]
    needed += [("optuna", "sweep")] if plan.prune or plan.search is not None else []
    needed += [("ray", "cluster")] if own["executor"] == "ray" else []
    for package, extra in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(
                f"This sweep needs {package}, which is not installed: pip install 'asymlora[{extra}]'"
            )


def _sweep(plan: Any, cells: Any, folder: Any, own: dict[str, Any]) -> int:
    from rich.console import Console

    from asymlora.report.sweep_display import SweepDisplay
    from asymlora.report.sweep_tables import sweep_tables
    from asymlora.sweep.choosing_executor import make_executor
    from asymlora.sweep.engine import run_sweep
    from asymlora.sweep.grid import notes

    console = Console()
    folder.check_space(_bytes_to_write(plan, cells))
    for note in (*_changed(plan, folder), *notes(plan), *(note for cell in cells for note in cell.notes)):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Sweep folder: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    executor = make_executor(
        own["executor"] or "inline", folder.path, threads=plan.threads, workers=own["workers"], memory=own["memory"],
        address=own["address"],
    )  # fmt: skip
    with SweepDisplay(console) as display, executor:
        try:
            found = run_sweep(plan, cells, folder, executor=executor, observer=display, command=own["typed"] or "")
        except KeyboardInterrupt:
            raise _interrupted(folder.path) from None
    console.print()
    console.print(sweep_tables(found.to_dict(), width=console.width))
    console.print()
    console.print(f"Records: {folder.path}/runs.jsonl", markup=False, highlight=False, soft_wrap=True)
    if not own["no_page"]:
        _write_page(console, folder.path)
    return 0


def _changed(plan: Any, folder: Any) -> list[str]:
    from asymlora.sweep.sweep_folder import stored_plan
    from asymlora.train.recipe import differing_keys

    changed = differing_keys(stored_plan(folder.path), plan.to_dict()) if folder.resumes else []
    return [f"The plan is another than before (then / now): {'; '.join(changed)}."] if changed else []


def _interrupted(path: Path) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"Go on with: asymlora sweep --out {shlex.quote(str(path))} --resume")


def _write_page(console: Any, path: Path) -> None:
    if importlib.util.find_spec("plotly") is None or importlib.util.find_spec("jinja2") is None:
        how = f"pip install 'asymlora[report]', then: asymlora report {shlex.quote(str(path))}"
        console.print(f"No page was written: it needs {how}", markup=False, highlight=False, soft_wrap=True)
        return
    from asymlora.commands.report import run as report

    try:
        report({"folders": [str(path)]})
    except RunExistsError as error:  # the sweep itself has ended well
        console.print(f"No page was written: {error}", markup=False, highlight=False, soft_wrap=True)


def _bytes_to_write(plan: Any, cells: Any) -> int:
    # A row with its curves is some tens of kilobytes.
    from asymlora.sweep.matching import ModelCosts

    costs = ModelCosts()
    adapters = sum(costs.kept_bytes(cell.recipe) for cell in cells)
    runs = len(cells) * (len(plan.rates) * len(plan.tuning_seeds) + len(plan.closing_seeds))
    return len(plan.closing_seeds) * adapters + runs * 100_000


def _forecast(plan: Any, cells: Any, own: dict[str, Any]) -> int:
    from rich.console import Console

    from asymlora.report.sweep_tables import forecast_table
    from asymlora.sweep.choosing_executor import workers_of
    from asymlora.sweep.executors import session
    from asymlora.sweep.forecast import forecast, planned_runs
    from asymlora.sweep.grid import notes

    console = Console()
    said = [*notes(plan), *(note for cell in cells for note in cell.notes)]
    found = forecast(
        planned_runs(plan, cells),
        session(None, plan.threads, "inline"),
        workers=workers_of(own["executor"] or "inline", workers=own["workers"], threads=plan.threads),
        notes=said,
        told=lambda text: console.print(text, markup=False, highlight=False),
    )
    console.print(forecast_table(found))
    return 0
