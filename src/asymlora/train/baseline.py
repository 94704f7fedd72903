"""What a run is compared with: a fitted head alone, or the base model as it came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from asymlora.atomic import write_file
from asymlora.tasks.task import Done, HeadAlone, Prepared
from asymlora.train.callbacks import Observer
from asymlora.train.trainer import AdapterTrainer

_FILE = "baseline.json"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The measured baseline.

    Attributes:
        kind: ``head alone`` or ``base model``.
        evidence: Of the test rows, shape ``(rows, m)``.
        before: The same of the model as the training finds it; None where that is the baseline itself.
        environments: Metrics on further sets before the training.
        closing: Further measurements before the training.
        seconds: Seconds that it took.
        data_sha256: Digest of all rows, so that a resumed run sees the same.
    """

    kind: str
    evidence: list[list[float]]
    before: list[list[float]] | None
    environments: dict[str, dict[str, float]]
    closing: dict[str, dict[str, float]]
    seconds: float
    data_sha256: str

    def store(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_file(folder / _FILE, json.dumps(asdict(self)))


def stored_baseline(folder: Path) -> Baseline | None:
    """Return the baseline that was measured before, or None where it is not there or damaged."""
    try:
        return Baseline(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def measure_baseline(
    prepared: Prepared, trainer: AdapterTrainer, *, copies_head: bool, watcher: Observer, data_sha256: str
) -> Baseline:
    """Fit the head alone where the task has one, and measure the model as the training finds it.

    Args:
        prepared: The task.
        trainer: Of the run, before its first step.
        copies_head: Whether the model's head starts from the fitted one.
        watcher: Who is told how it goes on.
        data_sha256: Digest of the rows.

    Returns:
        The baseline.
    """
    started = time.monotonic()
    evidence = before = None
    if prepared.fit_head is None:
        watcher.stage("Scoring the base model")
        evidence = trainer.evidence_of(prepared.test)
    else:
        head = fit_head(prepared.fit_head, prepared, watcher)
        evidence = head.evidence
        if copies_head and head.copy_to_model is not None:
            head.copy_to_model()
        else:
            before = trainer.evidence_of(prepared.test).tolist()
    trainer.network.eval()
    return Baseline(
        kind="base model" if prepared.fit_head is None else "head alone",
        evidence=evidence.tolist(),
        before=before,
        environments={n: prepared.scoring.score(trainer.evidence_of(i)) for n, i in prepared.environments.items()},
        closing={name: measure(trainer.network) for name, measure in prepared.closing.items()},
        seconds=time.monotonic() - started,
        data_sha256=data_sha256,
    )


def fit_head(fit: Callable[[Done], HeadAlone], prepared: Prepared, watcher: Observer) -> HeadAlone:
    """Fit the head alone, and tell how far it is.

    Args:
        fit: The task's ``fit_head``.
        prepared: The task.
        watcher: Who is told.

    Returns:
        The head.
    """
    watcher.stage("Fitting the head alone on features of the frozen model")
    total, read = sum(map(len, prepared.parts.values())), 0

    def done(rows: int) -> None:
        nonlocal read
        read += rows
        watcher.progress("features", read, total, {})

    return fit(done)
