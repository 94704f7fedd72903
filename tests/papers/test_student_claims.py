from __future__ import annotations

import pytest

from asymlora.papers.student_claims import CLAIMS, STUDENTS
from asymlora.papers.student_points import rates_around
from asymlora.reproduce.evidence import Evidence, Record

BY_KEY = {claim.key: claim for claim in CLAIMS}
WIDTHS, SEEDS = (128, 512, 2048, 4096), range(6)
TRUE = {
    "init_a": {128: -5.0, 512: -6.0, 2048: -7.2, 4096: -7.6},
    "init_b": {128: -5.1, 512: -6.2, 2048: -8.8, 4096: -9.6},
}
"""Best rates that agree with every claim."""
LOSSES = {"init_a": 0.004, "init_b": 0.008}


def wobble(seed: int, *, by: float) -> float:
    """Return a number that differs from seed to seed, with mean 0 over six."""
    return by * (seed % 6 - 2.5) / 2.5


def made(
    best: dict[str, dict[int, float]] = TRUE, *, noise: float = 0.05, losses: dict[str, float] = LOSSES,
    seeds: range = SEEDS,
) -> Evidence:  # fmt: skip
    """Return losses that are parabolas around best rates, each seed off in the other direction under the two starts."""
    records: list[Record] = [
        {"width": n, "scheme": arm, "seed": seed, "log2_rate": rate,
         "train_loss": losses[arm] * 2 ** (0.2 * (rate - best[arm][n] - wobble(seed, by=sign * noise)) ** 2)}
        for n in WIDTHS
        for arm, sign in (("init_a", 1), ("init_b", -1))
        for seed in seeds
        for rate in rates_around(n, 9)
    ]  # fmt: skip
    return Evidence(measured={STUDENTS: records})


def alike(arm: str) -> dict[str, dict[int, float]]:
    """Best rates of both starts that are those of one."""
    return {"init_a": TRUE[arm], "init_b": TRUE[arm]}


@pytest.mark.parametrize("key", list(BY_KEY))
def test_each_claim_holds_where_the_runs_are_as_claimed(key: str) -> None:
    finding = BY_KEY[key].finding(made())
    assert finding.verdict == "holds", finding.ours


@pytest.mark.parametrize("key", list(BY_KEY))
def test_each_claim_is_undecided_without_records_and_with_few_seeds(key: str) -> None:
    assert BY_KEY[key].finding(Evidence()).verdict == "undecided"
    assert BY_KEY[key].finding(made(seeds=range(5))).verdict == "undecided"


@pytest.mark.parametrize(
    ("key", "evidence"),
    [
        ("best_rates_differ", made(alike("init_a"))),
        ("best_rate_larger", made({"init_a": TRUE["init_b"], "init_b": TRUE["init_a"]})),
        ("rates_coincide_small", made({**TRUE, "init_b": {**TRUE["init_b"], 512: -8.0}})),
        ("rate_slopes", made({"init_a": TRUE["init_b"], "init_b": TRUE["init_a"]})),
        ("lower_loss", made(losses={"init_a": 0.008, "init_b": 0.004})),
    ],
)
def test_each_claim_fails_where_the_runs_say_the_opposite(key: str, evidence: Evidence) -> None:
    assert BY_KEY[key].finding(evidence).verdict == "fails"


@pytest.mark.parametrize("key", ["best_rate_larger", "rate_slopes", "rates_coincide_small"])
def test_rates_that_scatter_leave_a_claim_undecided(key: str) -> None:
    scattered = made(alike("init_a"), noise=1.6)
    assert BY_KEY[key].finding(scattered).verdict == "undecided"


def test_a_best_rate_at_an_end_of_the_grid_leaves_it_undecided() -> None:
    beyond = {**TRUE, "init_b": {**TRUE["init_b"], 4096: -20.0}}
    for key in ("best_rates_differ", "best_rate_larger", "rate_slopes"):
        finding = BY_KEY[key].finding(made(beyond))
        assert finding.verdict == "undecided"
        assert "Init[B] at n = 4096 (6 of 6 seeds) is the first or last one tried" in finding.ours
    finding = BY_KEY["lower_loss"].finding(made(beyond))
    assert finding.verdict == "undecided"
    assert "Init[B] at n = 4096 is the first or last one that every seed tried" in finding.ours


def test_two_starts_at_one_end_of_a_shared_grid_do_not_coincide() -> None:
    beyond = {arm: {**rates, 512: -20.0} for arm, rates in TRUE.items()}
    finding = BY_KEY["rates_coincide_small"].finding(made(beyond))
    assert finding.verdict == "undecided"
    assert "Init[A] at n = 512 (6 of 6 seeds), Init[B] at n = 512 (6 of 6 seeds)" in finding.ours


def test_each_test_says_what_was_known_before() -> None:
    assert all("Known before: " in claim.test for claim in CLAIMS)


def test_the_difference_of_rates_is_that_of_the_largest_width() -> None:
    finding = BY_KEY["best_rate_larger"].finding(made())
    assert finding.estimate == pytest.approx(2.0)
    assert finding.pairs == 6
    assert "n = 4096" in finding.ours


def test_the_loss_is_a_mean_over_widths_and_one_value_a_seed() -> None:
    finding = BY_KEY["lower_loss"].finding(made(noise=0.0))
    assert finding.pairs == 6
    # Half the loss, but for what the point of the grid misses of each best rate.
    assert finding.estimate == pytest.approx(-1.0, abs=0.05)
    assert "at 128" in finding.ours


def test_claims_of_the_abstract_run_until_decided() -> None:
    assert {key for key, claim in BY_KEY.items() if claim.runs_until_decided} == {
        "best_rates_differ",
        "best_rate_larger",
    }
