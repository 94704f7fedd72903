"""A made-up but likely sweep, without a model: rows, plan, environment and similarity for tests of reports.

Init[B] is best at 1e-3 and Init[A] at 3e-3; `B`-only goes on longest before it diverges. All numbers are functions of
arm, rate and seed, so that a test can derive what it expects.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from asymlora.sweep.analysis import analyse
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.sweep_folder import SweepRecords
from asymlora.train.recipe import Recipe, merged

ARMS = ("init_a", "init_b", "b_only")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEEDS, CLOSING_SEEDS = (100, 101), (0, 1, 2, 3, 4, 5)
STEPS, EVERY = 80, 20
SITES = tuple(f"encoder.layer.{n}.{part}" for n in range(3) for part in ("attention.self.query", "intermediate.dense"))


_BASE = Recipe().to_dict()


class Behaviour(NamedTuple):
    """What an arm does: its best rate, its metric there, the first rate that diverges, and its trained values."""

    best_lr: float
    top: float
    edge: float
    trained: int


BEHAVIOUR = {
    "init_a": Behaviour(best_lr=3e-3, top=0.905, edge=3e-2, trained=300_000),
    "init_b": Behaviour(best_lr=1e-3, top=0.91, edge=1e-2, trained=300_000),
    "b_only": Behaviour(best_lr=3e-3, top=0.9, edge=math.inf, trained=160_000),
}


def behaviour(arm: str) -> Behaviour:
    """Return what an arm does; one of another name resembles one of the three."""
    return BEHAVIOUR.get(arm, BEHAVIOUR[ARMS[sum(map(ord, arm)) % 3]])


def wobble(*parts: object) -> float:
    """Return a number in [-1, 1] that depends on the parts alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 0x7FFFFFFF - 1


def quality(arm: str, lr: float, seed: int) -> float:
    """Return the metric that an arm reaches, on a grid of 1/500."""
    mine = behaviour(arm)
    decades = math.log10(lr / mine.best_lr)
    score = mine.top - 0.05 * decades**2 + 0.01 * wobble("seed", seed) + 0.004 * wobble(arm, lr, seed)
    return round(max(0.2, score) * 500) / 500


def row(
    arm: str, *, lr: float, seed: int, phase: str = "tuning", status: str | None = None, axes: Mapping[str, Any] = {},
    repeat: int = 0, steps: int = STEPS,
) -> RunRow:  # fmt: skip
    """Return what one run leaves.

    Args:
        arm: Its arm.
        lr: Its rate.
        seed: Its seed.
        phase: What it is for.
        status: How it ended; by default ``diverged`` from the arm's edge on, else ``finished``.
        axes: Values of further axes, ``adapter.rank`` among them.
        repeat: Number of the repetition.
        steps: Steps of the recipe.
    """
    rank = int(axes.get("adapter.rank", 8))
    changes = {"adapter": {"rank": rank, "seed": seed}, "train": {"lr": lr, "seed": seed, "steps": steps}}
    recipe = merged(_BASE, changes)
    mine = behaviour(arm)
    status = status or ("diverged" if lr >= mine.edge else "finished")
    taken = {"finished": steps, "pruned": steps // 2, "diverged": steps // 4, "failed": 0}[status]
    score = quality(arm, lr, seed)
    marks = list(range(10, taken + 1, 10))
    scored = list(range(EVERY, taken + 1, EVERY))
    reached = [round(score * (1 - 0.5 * math.exp(-4 * at / steps)), 4) for at in scored]
    ends = status == "finished"
    return RunRow(
        id=hashlib.sha256(repr((arm, sorted(axes.items()), lr, seed, repeat)).encode()).hexdigest()[:20],
        phase=phase, arm=arm, axes=dict(axes), seed=seed, repeat=repeat, lr=lr, rank=rank,  # pyright: ignore
        recipe=recipe, status=status,  # pyright: ignore
        error={"diverged": f"The loss was not finite at step {taken}.", "failed": "No space left."}.get(status),
        metric="accuracy", steps=taken, planned_steps=steps,
        diverged_at=taken if status == "diverged" else None,
        validation=(score if ends else reached[-1]) if status in ("finished", "pruned") else None,
        best_step=steps if ends else None,
        test={"accuracy": round(score - 0.01, 4), "macro_f1": round(score - 0.02, 4)} if ends and phase != "tuning"
        else None,
        before={"accuracy": 0.25, "macro_f1": 0.2} if ends and phase != "tuning" else None,
        losses={"step": marks, "loss": [_loss(at / steps, score, wobble(arm, seed, at)) for at in marks]},
        scores={"step": scored, "value": reached},
        dynamics=_dynamics(arm, lr, seed, taken),
        health=["B grows without bound"] if status == "diverged" else [],
        trained_parameters=mine.trained * rank // 8 + 2_310, head_parameters=2_310, flops_per_step=2.4e11,
        weights_digest="0" * 64 if ends else None,
        threads=1, setup_seconds=0.2, train_seconds=0.25 * taken, evaluate_seconds=0.5 * len(scored),
        peak_memory_bytes=900_000_000, worker=4_242, ended="2026-01-01T12:00:00+00:00",
    )  # fmt: skip


def rows(
    *, arms: Sequence[str] = ARMS, rates: Sequence[float] = RATES, seeds: Sequence[int] = CLOSING_SEEDS,
    tuning_seeds: Sequence[int] = TUNING_SEEDS, ranks: Sequence[int] | None = None, pruned: bool = True,
    steps: int = STEPS,
) -> list[RunRow]:  # fmt: skip
    """Return the rows of a whole sweep: each arm's rates, then its closing runs at its best rate.

    Args:
        arms: The arms; names of one's own are allowed.
        rates: Rates of the grid.
        seeds: Seeds of the closing runs.
        tuning_seeds: Seeds of the tuning runs.
        ranks: Values of an axis ``adapter.rank``; None: no such axis.
        pruned: Whether rates below 3e-4 are stopped early.
        steps: Steps of a run.
    """
    axes: list[dict[str, Any]] = [{"adapter.rank": rank} for rank in ranks] if ranks else [{}]
    found: list[RunRow] = []
    for arm in arms:
        for point in axes:
            for lr in rates:
                status = "pruned" if pruned and lr < 3e-4 else None
                found += [row(arm, lr=lr, seed=s, axes=point, status=status, steps=steps) for s in tuning_seeds]
    for arm in arms:
        best = min(rates, key=lambda lr: abs(math.log(lr / behaviour(arm).best_lr)))
        for point in axes:
            found += [row(arm, lr=best, seed=seed, phase="closing", axes=point, steps=steps) for seed in seeds]
    return found


def plan(*, arms: Sequence[str] = ARMS, rates: Sequence[float] = RATES, **changes: Any) -> dict[str, Any]:
    """Return the plan as ``sweep.yaml`` holds it.

    Args:
        arms: The arms.
        rates: Rates of the grid.
        changes: Other values of single keys.
    """
    base: dict[str, Any] = {
        "version": 1, "recipe": _BASE, "arms": [{"label": arm} for arm in arms], "axes": {},
        "rates": list(rates), "tuning_seeds": list(TUNING_SEEDS), "closing_seeds": list(CLOSING_SEEDS),
        "match": "steps", "prune": True, "repeats": 0,
    }  # fmt: skip
    return base | changes


def environment() -> dict[str, Any]:
    """Return what the sweep ran on."""
    return {
        "python": "3.11.9", "packages": {"asymlora": "0.1.0", "torch": "2.6.0"}, "system": "Linux x86_64", "cpus": 2,
        "threads": 1, "accelerator": None,
    }  # fmt: skip


def similarity(of: Sequence[RunRow], *, sites: Sequence[str] = SITES) -> list[dict[str, Any]]:
    """Return rows as `asymlora.diagnostics.adapter_pairs` gives them, for each pair of closing runs, named by id."""
    closing = [run for run in of if run.phase == "closing"]
    return [
        _pair(one, other, site, factor)
        for one, other in combinations(closing, 2)
        for site in sites
        for factor in ("A", "B")
    ]


def records(of: Sequence[RunRow] | None = None, *, name: str = "made-up", **of_plan: Any) -> SweepRecords:
    """Return what `asymlora.sweep.sweep_folder.read_sweep` would read of such a folder, analysed.

    Args:
        of: Rows; by default those of `rows`.
        name: Name of the folder.
        of_plan: Arguments of `plan`.
    """
    of = rows() if of is None else of
    planned = plan(**of_plan)
    return SweepRecords(
        name=name, path=Path(name), plan=planned, environment=environment(), rows=of, similarity=similarity(of),
        summary=analyse(planned, of, resamples=199).to_dict(),
    )  # fmt: skip


def write_folder(path: Path, of: Sequence[RunRow] | None = None, **of_plan: Any) -> Path:
    """Write a sweep's folder: ``sweep.yaml``, ``environment.json``, ``runs.jsonl`` and ``similarity.jsonl``.

    Args:
        path: The folder, which is made.
        of: Rows; by default those of `rows`.
        of_plan: Arguments of `plan`.

    Returns:
        The folder.
    """
    of = rows() if of is None else of
    path.mkdir(parents=True)
    # JSON is YAML.
    (path / "sweep.yaml").write_text(json.dumps(plan(**of_plan)), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps(environment()), encoding="utf-8")
    lines = [{"kind": "store", "version": 1}, *(run.to_dict() for run in of)]
    (path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    pairs = similarity(of)
    (path / "similarity.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def _loss(share: float, score: float, noise: float) -> float:
    return round(1.8 * math.exp(-5 * share) + 2 * (1 - score) + 0.03 * noise, 4)


def _dynamics(arm: str, lr: float, seed: int, taken: int) -> dict[str, list[float | None]]:
    at = sorted({1, 2, 3, *range(20, taken + 1, 20)} & set(range(taken + 1)))
    grown = [lr * step * (1 + 0.1 * wobble(arm, seed, step)) for step in at]
    frozen = arm == "b_only"
    return {
        "step": [float(step) for step in at],
        "Z_A": [1.0 if frozen else 1 + 4 * g for g in grown],
        "Z_B": [2 * g for g in grown],
        "delta1": [None if frozen else 0.5 * lr * g for g in grown],
        "delta2": [lr * (1 + 0.1 * wobble(seed, g)) for g in grown],
        "delta3": [None if frozen else lr**2 for _ in grown],
        "update_A": [None if frozen else lr for _ in grown],
        "update_B": [1.5 * lr for _ in grown],
        "grad_A": [None if frozen else 0.1 for _ in grown],
        "grad_B": [0.2 for _ in grown],
        "norm_B": [3 * g for g in grown],
    }


def _pair(one: RunRow, other: RunRow, site: str, factor: str) -> dict[str, Any]:
    alike = 0.3 if one.arm == other.arm else 0.1
    cca = alike * (1.5 if factor == "B" else 0.5) + 0.02 * wobble(one.id, other.id, site, factor)
    return {
        "site": site, "kind": "linear", "group": site.rpartition(".")[2], "layer": int(site.split(".")[2]),
        "factor": factor, "pair": f"{one.id} ~ {other.id}", "first": one.id, "second": other.id, "width": 384,
        "rank_first": one.rank, "rank_second": other.rank, "cca": round(cca, 4), "cca_chance": one.rank / 384,
        "smallest_angle": 0.9, "largest_angle": 1.5, "cka": round(cca, 4), "cka_chance": 0.05,
        "moved_first": None, "moved_second": None, "zero": [],
    }  # fmt: skip
