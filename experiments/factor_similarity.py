"""Check Z12: which factor is alike across starts, and which across tasks? MiniLM on three real tasks, LoRA of rank 8.

Every run trains both factors on all linear layers of MiniLM's encoder, the head fitted first. The draws of an adapter
depend on seed, layer and factor alone, so a seed is one start for every task; it also orders the rows. Pairs of runs:

* same task, other start (and other order of the rows);
* other task, shared start;
* both other.

Each is measured after one step and after the last, next to chance (r/d) and to how far the random factor has moved. A
second start, `reversed`, is the control: A from zero, B Kaiming-uniform. Tasks of short texts were taken for the time.

Rates, chosen before any similarity was seen: 1e-3 for the standard start, half of what `B` alone takes on this model;
1.25e-4 for the reversed one, since Hayou et al. report a best rate eight times smaller for it on RoBERTa-large.

Expected, written down before the first run, of the factor that starts random (A; reversed: B) and of the one that
starts at zero (B; reversed: A), as means over layers and pairs after the last step:

* `shared`: the random factor is alike across tasks if it started alike: sim > 0.5.
* `chance`: it is not if it did not: sim within a factor of 3 of r/d, same task or not.
* `task`: the zero factor is more alike within a task (other start) than across tasks, be the start shared or not.

The standard start is the claim of Zhu et al.; the reversed one must show the same with the letters exchanged, as the
claim is then about the start and not about the letter. Z12 holds if all six hold and fails if one does.

Intervals are of 95 %, from 2,000 resamples of tasks and of seeds (with replacement, both at once; layers of one run are
not independent and are never resampled). A claim holds if its interval lies on its side, fails if it lies on the other,
and is undecided between. Three tasks and three seeds make coarse intervals; `task` is tested exactly as well, by
exchanging the task labels within each seed (at three by three, p is at least 1/36).

What came out is in README.md. The data are not part of this project (`--data-root`, a folder with cola, sst2 and trec6
as JSON Lines); without them the script says so and ends.

Source:
    Zhu et al., 2024, "Asymmetry in Low-Rank Adapters of Foundation Models", arXiv:2402.16842, section 3 and App. A
    (RoBERTa-large, GLUE). Tasks, model, intervals and thresholds are ours.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from asymlora import AdapterSpec, sites
from asymlora.diagnostics.similarity import A_similarity, B_similarity, chance_similarity
from asymlora.report.tables import plain_table
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from pair_statistics import PANELS, Pair, interval_of, label_test, panel_mean
from paired_runs import run_command
from real_models import Course, PretrainedTask

DATA = Path(__file__).parents[2] / "shared" / "data" / "text"
STARTS = {"standard": "lora", "reversed": "hA_zero_hB_km"}
"""Each start as `AdapterSpec.parse` reads it."""
RANDOM = {"standard": "A", "reversed": "B"}
ZERO = {"standard": "B", "reversed": "A"}
MOMENTS = ("first step", "end")
SIMILARITY = {"A": A_similarity, "B": B_similarity}
Factors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of the experiment.

    Attributes:
        seeds: Starts, each with an order of the rows.
        tasks: Folders of the data root; a second text is read where there is one.
        rates: Learning rate of each start.
        course: How every run is trained.
        rows: Training rows and validation rows of each task, the same in every run.
        max_tokens: Longer inputs are cut.
        rank: Of every adapter; alpha is twice as much.
        model: The pretrained model.
        resamples: Of tasks and seeds, for an interval.
    """

    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    rates: Mapping[str, float]
    course: Course
    rows: tuple[int, int]
    max_tokens: int = 32
    rank: int = 8
    model: str = "embedded:minilm-l6"
    resamples: int = 2000


FULL = Settings(
    seeds=(0, 1, 2),
    tasks=("cola", "sst2", "trec6"),
    rates={"standard": 1e-3, "reversed": 1.25e-4},
    course=Course(steps=60, batch_size=8),
    rows=(480, 200),
)
"""What README.md reports."""
QUICK = Settings(
    seeds=(0, 1),
    tasks=("cola", "sst2"),
    rates={"standard": 1e-3, "reversed": 1.25e-4},
    course=Course(steps=2, batch_size=4),
    rows=(16, 8),
    max_tokens=16,
    rank=2,
    resamples=50,
)
"""Half a minute: nothing is learned."""


# Runs ----------------------------------------------------------------------------------------------------------------


def measure(settings: Settings, root: Path = DATA) -> list[dict[str, Any]]:
    """Train every run and return the records, the verdict last.

    Args:
        settings: What to run.
        root: Where the tasks' folders are.
    """
    records: list[dict[str, Any]] = []
    kept: dict[tuple[str, str, int], dict[str, Factors]] = {}
    for task in settings.tasks:
        base = PretrainedTask("text_classification", ModelRecipe(name=settings.model), _data(settings, root / task))
        rows = {part: len(items) for part, items in base.prepared.parts.items()}
        head = {"score_of_head_alone": _rounded(base.validation_of_head)}
        records.append({"kind": "task", "task": task, "rows": rows, "sha256": base.prepared.digest(), **head})
        for start, seed in itertools.product(STARTS, settings.seeds):
            record, kept[start, task, seed] = _run(settings, base, start, seed)
            records.append({"kind": "run", "start": start, "task": task, "seed": seed, **record})
            print(records[-1], flush=True)
    for start in STARTS:
        mine = {(task, seed): found for (name, task, seed), found in kept.items() if name == start}
        records += [{"kind": "pair", "start": start, **row} for row in _pairs(mine)]
        records += [{"kind": "site", "start": start, **row} for row in _by_site(mine)]
    return [*records, {"kind": "verdict", **verdict(records, resamples=settings.resamples)}]


def _data(settings: Settings, folder: Path) -> DataRecipe:
    has_pairs = '"text_pair"' in (folder / "train.jsonl").read_text(encoding="utf-8").split("\n", 1)[0]
    return DataRecipe(
        name=str(folder),
        text_pair="text_pair" if has_pairs else None,
        max_rows=settings.rows[0],
        max_scored_rows=settings.rows[1],
        max_tokens=settings.max_tokens,
    )


def _run(settings: Settings, base: PretrainedTask, start: str, seed: int) -> tuple[dict[str, Any], dict[str, Factors]]:
    """Train one adapter; return its record, and its factors before, after one step and after the last."""
    spec = AdapterSpec.parse(STARTS[start], rank=settings.rank, seed=seed)
    losses: list[float] = []
    with base.adapted(spec) as network:
        kept = {"start": _factors(network)}

        def after_step(step: int, loss: float) -> None:
            losses.append(loss)
            if step == 1:
                kept["first step"] = _factors(network)

        trainer = base.trainer(settings.course, rates={"lr": settings.rates[start]}, seed=seed, after_step=after_step)
        trainer.train()
        kept["end"] = _factors(network)
        score = base.score(trainer)
    tenth = max(1, len(losses) // 10)
    record = {
        "first_loss": _rounded(statistics.mean(losses[:tenth])),
        "last_loss": _rounded(statistics.mean(losses[-tenth:])),
        "score": _rounded(score),
        **_movement(kept, RANDOM[start]),
    }
    return record, kept


def _factors(network: nn.Module) -> Factors:
    return {site.name: {"A": site.A.detach().clone(), "B": site.B.detach().clone()} for site in sites(network)}


def _movement(kept: Mapping[str, Factors], letter: str) -> dict[str, Any]:
    """Return how far the factor that starts random moves: medians over layers."""
    ways: dict[str, list[float]] = {"moved": [], "like_its_start": []}
    for name, before in kept["start"].items():
        old, new = before[letter], kept["end"][name][letter]
        ways["moved"].append(float((new - old).norm() / old.norm()))
        ways["like_its_start"].append(SIMILARITY[letter](new, old))
    return {way: _rounded(statistics.median(values)) for way, values in ways.items()}


def _pairs(kept: Mapping[tuple[str, int], Mapping[str, Factors]]) -> Iterator[dict[str, Any]]:
    """Yield the similarity of each pair of runs, as a mean over layers."""
    for moment, one, other, values in _compared(kept):
        means = {column: _rounded(statistics.mean(v[column] for v in values.values())) for column in _COLUMNS}
        yield {"moment": moment, "panel": PANELS.of(one, other), "tasks": [one[0], other[0]],
               "seeds": [one[1], other[1]], **means}  # fmt: skip


def _by_site(kept: Mapping[tuple[str, int], Mapping[str, Factors]]) -> Iterator[dict[str, Any]]:
    """Yield the similarity at each layer, as a mean over the pairs of a panel."""
    found: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}
    for moment, one, other, values in _compared(kept):
        for site, row in values.items():
            found.setdefault((moment, PANELS.of(one, other), site), []).append(row)
    for (moment, panel, site), rows in found.items():
        means = {column: _rounded(statistics.mean(row[column] for row in rows)) for column in _COLUMNS}
        yield {"moment": moment, "panel": panel, "site": site, **means}


_COLUMNS = ("sim_A", "sim_B", "over_chance_A", "over_chance_B")


def _compared(
    kept: Mapping[tuple[str, int], Mapping[str, Factors]],
) -> Iterator[tuple[str, tuple[str, int], tuple[str, int], dict[str, dict[str, float]]]]:
    for moment in MOMENTS:
        for one, other in itertools.combinations(kept, 2):
            left, right = kept[one][moment], kept[other][moment]
            yield moment, one, other, {site: _similarity(left[site], right[site]) for site in left}


def _similarity(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, float]:
    rank = left["A"].shape[0]
    widths = {"A": left["A"].shape[1], "B": left["B"].shape[0]}
    row: dict[str, float] = {}
    for letter, similarity in SIMILARITY.items():
        row[f"sim_{letter}"] = similarity(left[letter], right[letter])
        row[f"over_chance_{letter}"] = row[f"sim_{letter}"] / chance_similarity(rank, widths[letter])
    return row


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


# What they say -------------------------------------------------------------------------------------------------------


def verdict(records: Sequence[Mapping[str, Any]], *, resamples: int) -> dict[str, Any]:
    """Return whether the expectation held.

    Args:
        records: Those of `measure`; only the pairs after the last step are read.
        resamples: For an interval.

    Returns:
        For each start: figures and word of each claim; and ``Z12``: ``holds``, ``fails`` or ``undecided``.
    """
    found: dict[str, Any] = {start: _claims(records, start, resamples) for start in STARTS}
    words = [claim["word"] for start in STARTS for claim in found[start].values()]
    found["Z12"] = next((word for word in ("fails", "undecided") if word in words), "holds")
    return found


def _claims(records: Sequence[Mapping[str, Any]], start: str, resamples: int) -> dict[str, Any]:
    random, zero = RANDOM[start], ZERO[start]
    like = _column(records, start, f"sim_{random}")
    over = _column(records, start, f"over_chance_{random}")
    task = _column(records, start, f"sim_{zero}")

    def figures(of: Sequence[Pair], value: Any) -> dict[str, Any]:
        low, high = interval_of(of, value, resamples=resamples)
        return {"value": _rounded(value(of)), "interval": [_rounded(low), _rounded(high)]}

    shared = figures(like, panel_mean("shared start"))
    chance = {p: figures(over, panel_mean(p)) for p in ("same task", "both other")}
    gaps = {p: figures(task, _gap_to(p)) for p in ("shared start", "both other")}
    return {
        "shared": {"factor": random, **shared, "word": _word([shared["interval"]], above=0.5)},
        "chance": {"factor": random, **chance, "word": _near_chance([c["interval"] for c in chance.values()])},
        "task": {
            "factor": zero,
            **gaps,
            "p": _rounded(label_test(task)),
            "word": _word([gap["interval"] for gap in gaps.values()], above=0.0),
        },
    }


def _column(records: Sequence[Mapping[str, Any]], start: str, column: str) -> list[Pair]:
    return [
        Pair(tasks=tuple(r["tasks"]), seeds=tuple(r["seeds"]), value=r[column])
        for r in records
        if r["kind"] == "pair" and (r["start"], r["moment"]) == (start, "end")
    ]


def _gap_to(panel: str) -> Any:
    within, across = panel_mean("same task"), panel_mean(panel)
    return lambda pairs: within(pairs) - across(pairs)


def _word(intervals: Sequence[Sequence[float]], *, above: float) -> str:
    if any(high <= above for _, high in intervals):
        return "fails"
    return "holds" if all(low > above for low, _ in intervals) else "undecided"


def _near_chance(intervals: Sequence[Sequence[float]]) -> str:
    if any(low > 3 or high < 1 / 3 for low, high in intervals):
        return "fails"
    return "holds" if all(low >= 1 / 3 and high <= 3 for low, high in intervals) else "undecided"


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return means over layers and pairs, by start, moment and panel."""
    result = records[-1]
    claims = [f"{start} {name}: {claim['word']}" for start in STARTS for name, claim in result[start].items()]
    shown = plain_table(
        "Similarity of factors, means over layers and pairs", f"{'; '.join(claims)}. Z12: {result['Z12']}."
    )
    for name in ("start", "moment", "pairs", "sim(A)", "sim(B)", "A / chance", "B / chance"):
        shown.add_column(name, justify="left" if name in ("start", "moment", "pairs") else "right")
    pairs = [r for r in records if r["kind"] == "pair"]
    for start, moment, panel in itertools.product(STARTS, MOMENTS, PANELS.names):
        here = [r for r in pairs if (r["start"], r["moment"], r["panel"]) == (start, moment, panel)]
        means = [statistics.mean(r[column] for r in here) for column in _COLUMNS]
        shown.add_row(start, moment, panel, *(f"{m:.3f}" for m in means[:2]), *(f"{m:.2f}" for m in means[2:]))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, print and write."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-root", type=Path, default=DATA)
    given, rest = parser.parse_known_args(arguments)
    ways = {"full": FULL, "quick": QUICK}
    needed = [task for task in FULL.tasks if not (given.data_root / task / "train.jsonl").is_file()]
    if needed:
        print(f"Nothing is run: {', '.join(needed)} is not in the data root. Name another with --data-root.")
        return
    run = functools.partial(measure, root=given.data_root)
    run_command("factor_similarity", __doc__, ways, measure=run, table=table, arguments=rest)


if __name__ == "__main__":
    main()
