"""A made-up artefact with a sweep and a measured part, and a folder as its run would leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asymlora.report.plots import Figure
from asymlora.reproduce.artefact import Artefact, DataSet, MeasuredPart, Scale, Setting
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence
from asymlora.reproduce.measured_store import MeasuredRow, MeasuredStore, point_id
from asymlora.reproduce.paired_tests import POINTS, described, exact_finding, not_testable, paired_finding
from asymlora.reproduce.rates_by_seed import closing_values
from asymlora.sweep.store import RunStore
from asymlora.train.recipe import yaml_text
from sweep.made_rows import closing, plan, tuning

NAME = "made_up"
TYPED = "asymlora reproduce made_up --data-root ../data"
ENVIRONMENT = {"python": "3.11.7", "packages": {"asymlora": "0.1", "torch": "2.6"}, "system": "Linux x86_64",
               "cpus": 2, "threads": 2, "accelerator": None}  # fmt: skip
SHARED = {"dynamics": {"step": [1, 2], "Z_A": [0.123456789, 0.2], "delta1": [0.0, 0.0]}, "executor": "ray", "worker": 7,
          "ended": "2026-11-29T21:45:07+00:00", "weights_digest": "5f" * 32, "threads": 1,
          "peak_memory_bytes": 2**30}  # fmt: skip


def _ahead(evidence: Evidence) -> Finding:
    first, second = (closing_values(evidence.sweep("task"), arm) for arm in ("init_a", "init_b"))
    return paired_finding(first, second, claimed="greater", show=POINTS, what="Accuracy, Init[A] less Init[B]")


def _smaller(evidence: Evidence) -> Finding:
    rates = [record["rate"] for record in evidence.records("toy")]
    return exact_finding(rates == sorted(rates), f"rates {rates}")


def _figure(evidence: Evidence) -> Figure:
    from asymlora.report.reproduction_figures import metric_against_rate
    from asymlora.report.reproduction_panels import rate_panel

    task = evidence.sweep("task")
    return metric_against_rate([rate_panel("", task.plan, rows=task.rows)], title="Made up", y="accuracy")


def _claim(key: str, says: str, judge: Any, **more: Any) -> Claim:
    told = {"kind": "paper", "source": "Nobody, 2026", "test": "a test", "parts": ("task",), **more}
    return Claim(key=key, says=says, judge=judge, **told)


CLAIMS = (
    _claim("ahead", "Init[A] is better.", _ahead, kind="abstract", paper="90.69 against 89.47"),
    _claim("smaller", "Wider layers take smaller rates: |r| < 1.", _smaller, parts=("toy",)),
    _claim("shown", "The ratio is 8.", lambda _: described("ratio 4", estimate=4.0, pairs=2)),
    _claim("large", "It holds for 7 billion values.", lambda _: not_testable("No such model is at hand")),
)
SCALE = Scale(
    parts=lambda _: (
        MeasuredPart(name="toy", points=({"width": 8}, {"width": 16}), measure=lambda point: [dict(point)]),
    ),
    minutes=3.0,
    memory_gib=1.0,
    data=(DataSet(name="TREC-6", source="github.com/x/y", place="text/trec6"),),
    settings=(Setting(what="steps", paper="unknown", ours="64", why="two cores"),),
    cut=("ranks above 8",),
    model="MiniLM",
)
ARTEFACT = Artefact(
    name=NAME, title="A made-up table", source="Nobody, 2026", shows="That A | B.", small=SCALE, paper=SCALE,
    claims=CLAIMS, figure=_figure,
)  # fmt: skip


def rows() -> list[Any]:
    """Return the rows of the sweep part: Init[A] ends ahead in each of six seeds."""
    chosen = tuning("init_a", {1e-4: 0.5, 1e-3: 0.9, 1e-2: "diverged"}, error="at /tmp/x/y: not finite", **SHARED)
    chosen += tuning("init_b", {1e-4: 0.7, 1e-3: 0.6, 1e-2: "diverged"}, **SHARED)
    ends = [1 / 3 + 0.01 * seed for seed in range(6)]
    chosen += closing("init_a", 1e-3, [end + 0.01 + 0.001 * seed for seed, end in enumerate(ends)], **SHARED)
    return chosen + closing("init_b", 1e-4, ends, **SHARED)


def run_folder(path: Path, *, data: str = "../data/text/trec6") -> Path:
    """Write the folder of a run and return it."""
    (path / "task").mkdir(parents=True)
    recipe = {"data": {"name": data}, "train": {"lr": 1e-3}}
    (path / "task" / "sweep.yaml").write_text(yaml_text({**plan(["init_a", "init_b"]), "recipe": recipe}))
    store = RunStore(path / "task" / "runs.jsonl")
    for row in rows():
        store.append(row)
    (path / "toy").mkdir()
    measured = MeasuredStore(path / "toy" / "measured.jsonl")
    for width in (8, 16):
        found = [{"width": width, "rate": 1.23456789 * width + seed, "seed": seed} for seed in range(3)]
        measured.append(MeasuredRow(id=point_id("toy", {"width": width}), point={"width": width}, records=found,
                                    seconds=1.23456, ended="2026-11-30T00:00:01+00:00"))  # fmt: skip
    stated = {"minutes": 3.0, "tests": {claim.key: claim.test for claim in CLAIMS}}
    head = {"kind": "reproduction", "version": 1, "name": NAME, "scale": "small", "done": {}, "stated": stated}
    (path / "artefact.json").write_text(json.dumps(head))
    (path / "findings.json").write_text(json.dumps({"finished": True}))
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    began = ("2026-11-29T21:00:00+00:00", "2026-11-30T00:00:00+00:00")
    sessions = [
        {"command": TYPED, "began": began[0], "environment": ENVIRONMENT},
        {"command": TYPED, "began": began[1], "environment": {**ENVIRONMENT, "cpus": 4}},
    ]
    (path / "sessions.jsonl").write_text("".join(json.dumps(session) + "\n" for session in sessions))
    return path


REMARKS = """\
shown:
  verdict: undecided
  explanation: "Two seeds only."
  would_decide: "Six seeds"
"""
