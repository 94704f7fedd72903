"""What made-up courses of training and test loss make of each claim on the gap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from asymlora.papers.zhu_gap import (
    ARTEFACT,
    CLAIMS,
    GAPS,
    MARKS,
    NAMES,
    at_equal_loss,
    loss_on_test_at,
    paper_plans,
    small_plans,
)
from asymlora.reproduce.artefact import MeasuredPart
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record
from asymlora.tasks.inputs import refuse_unread

ROOT = Path("nowhere")
STEPS = [10.0, 20.0, 30.0]


@dataclass(frozen=True)
class Course:
    """What an arm does: its training loss at the end, test loss over it, accuracy over that of test rows."""

    fit: float = 0.2
    gap: float = 0.4
    points: float = 0.2


WIDE, NARROW = Course(), Course(fit=0.3, gap=0.1, points=0.05)


def _records(name: str, arm: str, course: Course, *, interior: bool = True) -> list[Record]:
    records: list[Record] = []
    for seed in range(6):
        # Training loss falls by a line from 1.0, and the gap widens with it; seeds differ, all arms alike.
        share = [step / STEPS[-1] for step in STEPS]
        train = [1 - (1 - course.fit) * each for each in share]
        test = [loss + course.gap * each + 0.01 * seed for loss, each in zip(train, share, strict=True)]
        accuracies = {"train_accuracy": [0.5, 0.6, 0.9], "test_accuracy": [0.5, 0.6, 0.9 - course.points]}
        known = {"set": name, "arm": arm, "seed": seed, "rate": 1e-3, "interior": interior, "finished": True}
        records.append({**known, "step": STEPS, "train_loss": train, "test_loss": test, **accuracies})
    return records


def _evidence(
    both: Course, b_only: Course, a_only: Course = WIDE, *, subj: tuple[Course, Course] | None = None
) -> Evidence:
    arms = {"both": both, "b_only": b_only, "a_only": a_only}
    on_subj = arms if subj is None else {"both": subj[0], "b_only": subj[1], "a_only": a_only}
    records = [record for arm, course in arms.items() for record in _records("trec6", arm, course)]
    records += [record for arm, course in on_subj.items() for record in _records("subj", arm, course)]
    return Evidence(measured={GAPS: records})


def _found(key: str, evidence: Evidence) -> Finding:
    (claim,) = [claim for claim in CLAIMS if claim.key == key]
    return claim.finding(evidence)


@pytest.mark.parametrize(("both", "b_only", "verdict"), [(WIDE, NARROW, "holds"), (NARROW, WIDE, "fails")])
def test_the_gap_at_equal_steps_is_that_of_accuracies(both: Course, b_only: Course, verdict: str) -> None:
    found = _found("smaller_with_b", _evidence(both, b_only))
    assert (found.verdict, found.estimate) == (verdict, pytest.approx(both.points - b_only.points))
    assert _found("fits_less", _evidence(both, b_only)).verdict == verdict


def test_one_set_on_which_it_is_the_other_way_is_named_with_its_sign() -> None:
    found = _found("smaller_with_b", _evidence(WIDE, NARROW, subj=(NARROW, WIDE)))
    assert found.verdict == "undecided"
    assert "By set: TREC-6 +15.00 points; SUBJ -15.00 points." in found.ours


def test_a_alone_is_held_against_both_by_itself() -> None:
    found = _found("smaller_with_a", _evidence(WIDE, WIDE, NARROW))
    assert (found.verdict, found.estimate) == ("holds", pytest.approx(0.15))


def test_a_rate_at_an_end_leaves_the_gap_open() -> None:
    records = [
        {**record, "interior": (record["set"], record["arm"]) != ("subj", "b_only")}
        for record in _evidence(WIDE, NARROW).records(GAPS)
    ]
    evidence = Evidence(measured={GAPS: records})
    found = _found("smaller_with_b", evidence)
    assert found.verdict == "undecided"
    assert "the best rate of B alone on SUBJ is the first or the last one tried" in found.ours
    assert _found("smaller_with_a", _evidence(WIDE, WIDE, NARROW)).verdict == "holds"


def test_the_loss_at_a_level_lies_on_the_line_between_two_scores() -> None:
    run = {"train_loss": [1.0, 0.5, 0.6, 0.2], "test_loss": [1.0, 0.8, 0.9, 1.2]}
    assert loss_on_test_at(run, 0.75) == pytest.approx(0.9)
    # Where the loss first falls to it, not where it does so again.
    assert loss_on_test_at(run, 0.55) == pytest.approx(0.82)
    assert loss_on_test_at(run, 0.2) == pytest.approx(1.2)
    assert loss_on_test_at(run, 1.1) is loss_on_test_at(run, 0.1) is None


def test_at_equal_loss_what_fits_less_has_no_advantage_by_that() -> None:
    # The gap is 0.5 (1 - loss) in either arm: only where they stop differs.
    far, near = Course(fit=0.2, gap=0.4, points=0.2), Course(fit=0.4, gap=0.3, points=0.1)
    evidence = _evidence(far, near)
    first, second = at_equal_loss(evidence, "trec6", ("both", "b_only"))
    assert first == pytest.approx(second)
    assert first[0] == pytest.approx(0.3)
    assert _found("smaller_with_b", evidence).verdict == "holds"
    assert _found("smaller_at_equal_loss", evidence).verdict == "undecided"


@pytest.mark.parametrize(("both", "b_only", "verdict"), [(WIDE, NARROW, "holds"), (NARROW, WIDE, "fails")])
def test_a_gap_that_is_smaller_at_equal_loss_is_found(both: Course, b_only: Course, verdict: str) -> None:
    assert _found("smaller_at_equal_loss", _evidence(both, b_only)).verdict == verdict


def test_runs_that_did_not_finish_are_left_out() -> None:
    records = [
        {**record, "finished": not (record["arm"] == "both" and record["seed"] == 3)}
        for record in _evidence(WIDE, NARROW).records(GAPS)
    ]
    found = _found("smaller_with_b", Evidence(measured={GAPS: records}))
    assert (found.verdict, found.pairs) == ("undecided", 5)
    assert "Left out for want of a finite value: 1 seed (3)" in found.ours


def test_the_gap_of_each_arm_on_each_set_is_described() -> None:
    found = _found("by_set", _evidence(WIDE, NARROW))
    assert found.verdict == "undecided"
    assert "TREC-6: both factors +20.00 points and +0.4250 nats, B alone +5.00 points and +0.1250 nats" in found.ours


def test_plans_have_few_rows_and_arms_of_one_rank() -> None:
    for name, plan in small_plans(ROOT).items():
        refuse_unread(plan.recipe.task, plan.recipe.data)
        rows, train = plan.recipe.data.max_rows, plan.recipe.train
        assert rows is not None
        # Rows are seen again, else there is no gap to see.
        assert 2.5 < train.steps * train.batch_size / rows < 4.5
        assert train.steps % MARKS == 0
        assert plan.recipe.data.name == str(ROOT / "text" / name)
    for plan in (*small_plans(ROOT).values(), *paper_plans().values()):
        assert [arm.name for arm in plan.arms] == list(NAMES)
        assert (plan.tuning_seeds, plan.closing_seeds) == ((200, 201), (0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize(("scale", "sets"), [("small", ["trec6", "subj"]), ("paper", ["rte", "mrpc"])])
def test_a_point_is_an_arm_on_a_set(scale: str, sets: list[str]) -> None:
    (part,) = (ARTEFACT.small if scale == "small" else ARTEFACT.paper).parts(ROOT)
    assert isinstance(part, MeasuredPart)
    assert [(point["set"], point["arm"]) for point in part.points] == [(name, arm) for name in sets for arm in NAMES]


def test_what_differs_is_listed_with_a_reason() -> None:
    for scale in (ARTEFACT.small, ARTEFACT.paper):
        assert all(row.what and row.paper and row.ours and row.why for row in scale.settings)
        assert len({row.what for row in scale.settings}) == len(scale.settings)


def test_the_figure_follows_the_gap_along_the_runs() -> None:
    figure = ARTEFACT.figure(_evidence(WIDE, NARROW)).plotly
    assert [note.text for note in figure.layout.annotations] == ["TREC-6", "SUBJ"]
    assert set(NAMES.values()) <= {trace.name for trace in figure.data}
    with pytest.raises(MissingEvidenceError, match=GAPS):
        ARTEFACT.figure(Evidence())
    assert {claim.finding(Evidence()).ours for claim in CLAIMS} == {f"Not run yet: {GAPS}."}
