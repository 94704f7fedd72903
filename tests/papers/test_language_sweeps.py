from __future__ import annotations

import math
from pathlib import Path

import pytest

from asymlora.papers.language_sweeps import (
    larger_rate,
    linked,
    loss_of,
    lower_loss,
    rate_figure,
    small_recipe,
    smallest_rate,
    sweep_part,
)
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, SweepEvidence
from asymlora.sweep.run_record import RunRow
from sweep.made_rows import plan, row

RATES = (1e-4, 1e-3, 1e-2)
PERPLEXITY = {"metric": "perplexity", "greater_is_better": False}


def _tuning(arm: str, by_rate: dict[float, float], *, seeds: tuple[int, ...] = (200, 201)) -> list[RunRow]:
    return [
        row(arm, lr=lr, seed=seed, value=value * (1 + seed / 1e6), **PERPLEXITY)
        for lr, value in by_rate.items()
        for seed in seeds
    ]


def _closing(arm: str, lr: float, losses: list[float]) -> list[RunRow]:
    return [
        row(
            arm, lr=lr, seed=seed, value=math.exp(loss), phase="closing",
            **{**PERPLEXITY, "test": {"perplexity": math.exp(loss), "loss": loss}},
        )
        for seed, loss in enumerate(losses)
    ]  # fmt: skip


def evidence(first: list[float], second: list[float], rows: list[RunRow] | None = None) -> Evidence:
    """Init[A] best at 1e-3 or as the rows say, Init[B] at 1e-4, with these test losses."""
    tuned = rows or [
        *_tuning("init_a", {1e-4: 22.0, 1e-3: 20.0, 1e-2: 30.0}),
        *_tuning("init_b", {1e-5: 23.0, 1e-4: 21.0, 1e-3: 26.0, 1e-2: 90.0}),
    ]
    made = plan(("init_a", "init_b"), tuning_seeds=[200, 201], rates=list(RATES))
    closed = [*_closing("init_a", 1e-3, first), *_closing("init_b", 1e-4, second)]
    return Evidence(sweeps={"part": SweepEvidence(plan=made, rows=[*tuned, *closed])})


AHEAD = [2.0, 2.1, 2.2, 2.3, 2.4, 2.5]
BEHIND = [loss + 0.1 + 0.01 * seed for seed, loss in enumerate(AHEAD)]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [(AHEAD, BEHIND, "holds"), (BEHIND, AHEAD, "fails"), (AHEAD, [*BEHIND[:5], 2.0], "undecided")],
)
def test_the_loss_is_judged_by_six_pairs_of_one_sign(first: list[float], second: list[float], verdict: str) -> None:
    found = lower_loss("part", model="the paper's").finding(evidence(first, second))
    assert found.verdict == verdict
    assert found.pairs == 6
    assert found.estimate == pytest.approx(sum(a - b for a, b in zip(first, second, strict=True)) / 6)
    assert "nats" in found.ours


def test_a_best_rate_at_an_end_of_the_grid_leaves_the_loss_open() -> None:
    b = {1e-4: 21.0, 1e-3: 26.0, 1e-2: 90.0}
    rows = [*_tuning("init_a", {1e-4: 22.0, 1e-3: 20.0, 1e-2: 30.0}), *_tuning("init_b", b)]
    found = lower_loss("part", model="the paper's").finding(evidence(AHEAD, BEHIND, rows))
    assert found.verdict == "undecided"
    assert "the best rate of Init[B] is the first or the last one tried" in found.ours


def test_no_claim_on_one_task_is_the_abstracts() -> None:
    claims = (lower_loss("part", model="m"), larger_rate("part", model="m"), smallest_rate("part"))
    assert {claim.kind for claim in claims} == {"question"}


def test_the_best_rates_are_told_with_their_ratio_and_decide_nothing() -> None:
    found = larger_rate("part", model="the paper's").finding(evidence(AHEAD, BEHIND))
    assert found.verdict == "undecided"
    assert found.estimate == pytest.approx(math.log2(10))
    assert "Init[A] over Init[B]: 10, +3.32 octaves" in found.ours
    assert "init_a: best rate 1e-3, interior of 1e-4 to 1e-2." in found.ours


def test_a_start_without_a_rate_at_which_all_ended_has_no_ratio() -> None:
    lost = [row("init_b", lr=lr, seed=seed, status="diverged", **PERPLEXITY) for lr in RATES for seed in (200, 201)]
    rows = [*_tuning("init_a", dict.fromkeys(RATES, 20.0)), *lost]
    found = larger_rate("part", model="the paper's").finding(evidence(AHEAD, BEHIND, rows))
    assert (found.verdict, found.estimate) == ("undecided", None)
    assert "init_b: no rate has finished with every tuning seed. There is no ratio." in found.ours


def test_the_smallest_rate_of_the_first_grid_is_compared_in_nats() -> None:
    found = smallest_rate("part").finding(evidence(AHEAD, BEHIND))
    assert found.verdict == "undecided"
    assert found.pairs == 2
    assert found.estimate == pytest.approx(math.log(22 / 21))  # at 1e-4, not at 1e-5 to which one grid has grown


def test_a_loss_is_of_either_metric() -> None:
    assert loss_of(row("a", lr=1e-3, seed=0, value=math.e, metric="perplexity")) == pytest.approx(1.0)
    assert loss_of(row("a", lr=1e-3, seed=0, value=2.5, metric="loss")) == 2.5
    assert math.isnan(loss_of(row("a", lr=1e-3, seed=0, value=None, metric="loss")))


def test_claims_say_what_is_missing_before_the_runs() -> None:
    for claim in (lower_loss("part", model="m"), larger_rate("part", model="m"), smallest_rate("part")):
        assert claim.finding(Evidence()).ours == "Not run yet: part."
        assert claim.parts == ("part",)


def test_a_part_has_one_look_with_six_pairs() -> None:
    part = sweep_part("part", small_recipe("language_modeling", {"name": "texts"}, "embedded:smollm2-135m"))
    assert [arm.name for arm in part.plan.arms] == ["init_a", "init_b"]
    assert part.plan.rates == (1e-4, 0.000316228, 1e-3, 0.00316228, 1e-2)
    assert (part.plan.tuning_seeds, part.plan.closing_seeds) == ((200, 201), (0, 1, 2, 3, 4, 5))
    assert part.second is None
    assert part.plan.recipe.adapter.rank == 8


def test_a_link_stands_for_its_file_and_is_mended(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("1", encoding="utf-8")
    two.write_text("2", encoding="utf-8")
    link = tmp_path / "run" / "data" / "train.txt"
    linked(link, one)
    linked(link, one)
    assert link.read_text(encoding="utf-8") == "1"
    linked(link, two)
    assert link.read_text(encoding="utf-8") == "2"
    assert one.read_text(encoding="utf-8") == "1"


def test_the_figure_shows_both_starts_and_needs_records() -> None:
    draw = rate_figure("part", title="Title", panel="Panel", y="perplexity", log_y=True)
    with pytest.raises(MissingEvidenceError, match="part"):
        draw(Evidence())
    pytest.importorskip("plotly")
    assert draw(evidence(AHEAD, BEHIND)) is not None
