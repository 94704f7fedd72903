"""Check Z12, `experiments/factor_similarity.py`: its runs pair up, and its verdict follows from its records."""

from __future__ import annotations

import gc
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cases import small_reviews

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"
TASKS, SEEDS = ("cola", "sst2", "trec6"), (0, 1, 2)


@pytest.fixture(scope="module")
def similarity() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        # The Trainer collects garbage before each run, which takes longer than these runs do.
        patch.setattr(gc, "collect", lambda *generation: 0)
        import factor_similarity

        yield factor_similarity


@pytest.fixture(scope="module")
def measured(
    similarity: ModuleType, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Records of two tasks by two seeds on a small random encoder; one task is of pairs of texts."""
    root = tmp_path_factory.mktemp("tasks")
    for number, task in enumerate(("cola", "sst2")):
        (root / task).mkdir()
        names = ("text", "label", *(("text_pair",) if number else ()))
        for part, rows in (("train", 40), ("validation", 12)):
            made = [{**row, "text_pair": "a warm film"} for row in small_reviews(rows, seed=number)]
            lines = [json.dumps({name: row[name] for name in names}) for row in made]
            (root / task / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return similarity.measure(replace(similarity.QUICK, model=str(small_encoder)), root)


@pytest.fixture
def stored(similarity: ModuleType) -> list[dict[str, Any]]:
    import paired_runs

    return paired_runs.read_records(FOLDER / "results" / "factor_similarity.jsonl")


def test_runs_of_one_seed_share_their_start_and_runs_of_two_do_not(
    measured: list[dict[str, Any]],
) -> None:
    records = measured
    runs = [r for r in records if r["kind"] == "run"]
    assert {(r["start"], r["task"], r["seed"]) for r in runs} == set(
        itertools.product(("standard", "reversed"), ("cola", "sst2"), (0, 1))
    )
    pairs = [r for r in records if r["kind"] == "pair" and r["moment"] == "first step"]
    for start, random_factor in (("standard", "A"), ("reversed", "B")):
        by_panel = {r["panel"]: r[f"sim_{random_factor}"] for r in pairs if r["start"] == start}
        assert by_panel["shared start"] > 0.999
        assert by_panel["same task"] < 0.9
    # The rows of a task are in the order of the seed, so its runs differ.
    assert len({(r["task"], r["last_loss"]) for r in runs}) >= 4
    assert len({r["sha256"] for r in records if r["kind"] == "task"}) == 2


def test_means_by_layer_and_by_pair_are_means_of_the_same_figures(
    measured: list[dict[str, Any]],
) -> None:
    records = measured
    for start, moment, panel in itertools.product(
        ("standard", "reversed"), ("first step", "end"), ("same task", "shared start", "both other")
    ):
        here = [r for r in records if (r.get("start"), r.get("moment"), r.get("panel")) == (start, moment, panel)]
        by_pair = [r["sim_B"] for r in here if r["kind"] == "pair"]
        by_site = [r["sim_B"] for r in here if r["kind"] == "site"]
        assert len(by_pair) == 2
        assert len(by_site) == 13  # two layers of six, and the pooler
        assert statistics.mean(by_pair) == pytest.approx(statistics.mean(by_site), rel=1e-3)


def test_a_base_is_put_back_after_each_run(
    similarity: ModuleType, small_encoder: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    import real_models
    from asymlora import AdapterSpec
    from asymlora.tasks.inputs import DataRecipe, ModelRecipe

    data = DataRecipe(name=str(small_data), max_rows=24, max_scored_rows=8)
    base = real_models.PretrainedTask("text_classification", ModelRecipe(name=str(small_encoder)), data)
    before = {name: value.clone() for name, value in base.network.state_dict().items()}
    seen: list[tuple[int, float]] = []
    results: list[float] = []
    for _ in range(2):
        with base.adapted(AdapterSpec.lora(rank=2)):
            trainer = base.trainer(
                real_models.Course(steps=3, batch_size=4),
                rates={"lr": 1e-2},
                seed=0,
                after_step=lambda step, loss: seen.append((step, loss)),
            )
            trainer.train()
            results.append(base.network.state_dict()["classifier.weight"].sum().item())
        after = base.network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    # The same run again, to the bit: nothing of the first one is left.
    assert seen[:3] == seen[3:]
    assert [step for step, _ in seen[:3]] == [1, 2, 3]
    assert results[0] == results[1] != before["classifier.weight"].sum().item()


def test_without_the_data_it_says_so_and_writes_nothing(
    similarity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    similarity.main(["--data-root", str(tmp_path), "--output", str(tmp_path / "records.jsonl")])
    assert "cola, sst2, trec6 is not in the data root" in capsys.readouterr().out
    assert not (tmp_path / "records.jsonl").exists()


def _records(levels: dict[str, tuple[float, float, float]], over: dict[str, float]) -> list[dict[str, Any]]:
    """Made-up pairs after the last step, the same similarity for all of a panel.

    ``levels`` of the two factors, random start first: same task, shared start, both other.
    """
    panels = ("same task", "shared start", "both other")
    runs = list(itertools.product(TASKS, SEEDS))
    records: list[dict[str, Any]] = []
    for start, letters in (("standard", "AB"), ("reversed", "BA")):
        for one, other in itertools.combinations(runs, 2):
            panel = panels[0] if one[0] == other[0] else panels[1] if one[1] == other[1] else panels[2]
            row: dict[str, Any] = {"kind": "pair", "start": start, "moment": "end", "panel": panel}
            row |= {"tasks": [one[0], other[0]], "seeds": [one[1], other[1]]}
            for role, letter in zip(("random", "zero"), letters, strict=True):
                row[f"sim_{letter}"] = levels[role][panels.index(panel)]
                row[f"over_chance_{letter}"] = over[role] if panel != "shared start" else 40.0
            records.append(row)
    return records


GOOD = {"random": (0.02, 0.9, 0.02), "zero": (0.3, 0.1, 0.1)}
NEAR = {"random": 1.0, "zero": 5.0}


def test_the_papers_pattern_and_its_mirror_hold(similarity: ModuleType) -> None:
    found = similarity.verdict(_records(GOOD, NEAR), resamples=100)
    assert found["Z12"] == "holds"
    assert (found["standard"]["shared"]["factor"], found["reversed"]["shared"]["factor"]) == ("A", "B")
    assert found["standard"]["task"]["p"] == pytest.approx(1 / 36, rel=1e-3)
    assert found["standard"]["shared"]["interval"] == [0.9, 0.9]


@pytest.mark.parametrize(
    ("levels", "over", "claim"),
    [
        ({**GOOD, "random": (0.02, 0.4, 0.02)}, NEAR, "shared"),
        (GOOD, {**NEAR, "random": 3.5}, "chance"),
        (GOOD, {**NEAR, "random": 0.3}, "chance"),
        ({**GOOD, "zero": (0.1, 0.12, 0.05)}, NEAR, "task"),
        ({**GOOD, "zero": (0.1, 0.05, 0.2)}, NEAR, "task"),
    ],
)
def test_each_claim_can_fail(similarity: ModuleType, levels: Any, over: Any, claim: str) -> None:
    found = similarity.verdict(_records(levels, over), resamples=100)
    assert found["Z12"] == "fails"
    for start in ("standard", "reversed"):
        words = {name: figures["word"] for name, figures in found[start].items()}
        assert words == {**dict.fromkeys(("shared", "chance", "task"), "holds"), claim: "fails"}


def test_a_control_that_does_not_flip_fails_the_whole(similarity: ModuleType) -> None:
    records = _records(GOOD, NEAR)
    for row in records:
        if row["start"] == "reversed":  # as if the letter counted and not the start
            row["sim_A"], row["sim_B"] = row["sim_B"], row["sim_A"]
            row["over_chance_A"], row["over_chance_B"] = row["over_chance_B"], row["over_chance_A"]
    found = similarity.verdict(records, resamples=100)
    assert found["Z12"] == "fails"
    assert found["standard"]["shared"]["word"] == "holds"
    assert found["reversed"]["shared"]["word"] == found["reversed"]["task"]["word"] == "fails"


def test_an_interval_on_both_sides_is_undecided(similarity: ModuleType) -> None:
    records = _records(GOOD, NEAR)
    for row in records:
        if row["panel"] == "shared start":
            row["sim_A" if row["start"] == "standard" else "sim_B"] = 0.2 + 0.4 * row["seeds"][0]
    found = similarity.verdict(records, resamples=500)
    assert found["standard"]["shared"]["value"] == pytest.approx(0.6)
    assert found["standard"]["shared"]["word"] == "undecided"
    assert found["Z12"] == "undecided"


def test_the_stored_verdict_follows_from_the_stored_pairs(similarity: ModuleType, stored: list[dict[str, Any]]) -> None:
    settings, *records, verdict = stored
    assert settings.items() >= json.loads(json.dumps(asdict(similarity.FULL))).items()
    again = {"kind": "verdict", **similarity.verdict(records, resamples=settings["resamples"])}
    assert json.loads(json.dumps(again)) == verdict
    counts = Counter((r["kind"], r.get("start")) for r in records)
    assert counts["run", "standard"] == counts["run", "reversed"] == 9
    assert counts["pair", "standard"] == counts["pair", "reversed"] == 2 * 36
    assert settings["course"]["steps"] <= 60
