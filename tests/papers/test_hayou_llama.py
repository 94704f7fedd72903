from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asymlora.papers import instruction_rows
from asymlora.papers.hayou_llama import ARTEFACT, GSM8K, PART, paper_parts, small_parts, with_rows_made
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.evidence import Evidence, SweepEvidence
from sweep.made_rows import plan, row

CLAIMS = {claim.key: claim for claim in ARTEFACT.claims}


def _closed(part: str, metric: str, first: list[float], second: list[float]) -> Evidence:
    loss = {"metric": "loss", "greater_is_better": False}
    tuned = [
        row(arm, lr=lr, seed=seed, value=value, **loss)
        for arm in ("init_a", "init_b")
        for lr, value in ((1e-4, 2.2), (1e-3, 2.0), (1e-2, 2.4))
        for seed in (200, 201)
    ]
    rows = [
        row(
            arm, lr=1e-3, seed=seed, value=2.0, phase="closing",
            **{**loss, "test": {"loss": 2.0, metric: value}},
        )
        for arm, values in (("init_a", first), ("init_b", second))
        for seed, value in enumerate(values)
    ]  # fmt: skip
    made = plan(("init_a", "init_b"), tuning_seeds=[200, 201])
    return Evidence(sweeps={part: SweepEvidence(plan=made, rows=[*tuned, *rows])})


AHEAD, BEHIND = [0.5, 0.52, 0.54, 0.5, 0.52, 0.54], [0.4, 0.41, 0.42, 0.43, 0.44, 0.45]


def _parts(made: Any) -> dict[str, SweepPart]:
    return {part.name: part for part in made}


def test_plans_build_without_any_data() -> None:
    small = _parts(small_parts(Path("nowhere")))
    paper = _parts(paper_parts(Path("nowhere")))
    assert (list(small), list(paper)) == ([PART], [PART, GSM8K])
    data = small[PART].plan.recipe.data
    assert (data.name, data.choices) == ("nowhere/instructions", "nowhere/instructions/choices.jsonl")
    assert paper[PART].plan.recipe.data.choices == "nowhere/instructions/mmlu.jsonl"
    assert paper[GSM8K].plan.recipe.data.problems == "nowhere/instructions/gsm8k.jsonl"
    assert (paper[PART].plan.recipe.adapter.rank, paper[PART].plan.recipe.adapter.alpha) == (64, 16)


def test_rows_are_made_in_the_runs_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Path, Path]] = []
    monkeypatch.setattr(instruction_rows, "write_rows", lambda root, folder: asked.append((root, folder)))
    root = with_rows_made(tmp_path / "sets", tmp_path / "run")
    (part,) = small_parts(root)
    assert isinstance(part, SweepPart)
    assert asked == [(tmp_path / "sets", Path(part.plan.recipe.data.name))]
    assert tmp_path / "run" in asked[0][1].parents


def test_every_set_of_the_rows_is_named_as_data() -> None:
    assert [data.place for data in ARTEFACT.small.data] == [
        "text/trec6", "text/sst2", "text/rte", "text/mrpc",
    ]  # fmt: skip
    assert {one.place for one in instruction_rows.SETS} == {data.place for data in ARTEFACT.small.data}


@pytest.mark.parametrize(
    ("key", "part", "metric"),
    [("more_right_choices", PART, "choices.accuracy"), ("gsm8k", GSM8K, "problems.exact_match")],
)
def test_what_is_answered_rightly_is_judged_by_six_pairs(key: str, part: str, metric: str) -> None:
    holds = CLAIMS[key].finding(_closed(part, metric, AHEAD, BEHIND))
    fails = CLAIMS[key].finding(_closed(part, metric, BEHIND, AHEAD))
    open_ = CLAIMS[key].finding(_closed(part, metric, AHEAD, [*BEHIND[:5], 0.6]))
    assert (holds.verdict, fails.verdict, open_.verdict) == ("holds", "fails", "undecided")
    assert holds.estimate == pytest.approx(sum(AHEAD) / 6 - sum(BEHIND) / 6)
    assert "points" in holds.ours


def test_gsm8k_is_not_testable_at_the_small_scale_and_it_is_said_what_would_do() -> None:
    found = CLAIMS["gsm8k"].finding(_closed(PART, "choices.accuracy", AHEAD, BEHIND))
    assert found.verdict == "not testable here"
    assert "instructions/gsm8k.jsonl below --data-root" in found.ours


def test_claims_have_names_of_their_own_and_read_parts_that_there_are() -> None:
    assert len(CLAIMS) == len(ARTEFACT.claims) == 5
    assert {part for claim in ARTEFACT.claims for part in claim.parts} == {PART, GSM8K}
    rest = [claim.finding(Evidence()).verdict for key, claim in CLAIMS.items() if key != "gsm8k"]
    assert rest == ["undecided"] * 4
