from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from asymlora.report.tables import adapter_name, closing_table, health_table
from asymlora.spec import AdapterSpec

RESULT: dict[str, Any] = {
    "method": "adapter",
    "metric": "accuracy",
    "greater_is_better": True,
    "baseline_kind": "head alone",
    "metrics": {"baseline": {"accuracy": 0.72}, "before": {"accuracy": 0.72}, "after": {"accuracy": 0.784}},
    "environments": {},
    "closing": {},
    "samples_per_second": 52.5,
    "rows": {"train": 9000, "validation": 1000, "test": 2500, "dropped": 1},
    "baseline": 0.72,
    "score": 0.784,
    "gain": 0.064,
    "gain_standard_error": 0.0091,
    "trained_parameters": 50_000,
    "head_parameters": 770,
    "lora_parameters": 110_000,
    "full_parameters": 22_713_216,
    "best_step": 200,
    "steps": 250,
    "baseline_seconds": 31.4,
    "train_seconds": 152.5,
    "total_seconds": 190.2,
    "adapter_bytes": 300 * 1024,
    "peak_memory_bytes": 900 * 2**20,
    "resumed": False,
}


def _printed(adapter: AdapterSpec | None = None, width: int = 120, **changed: Any) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=False)
    console.print(closing_table({**RESULT, **changed}, (adapter or AdapterSpec.b_only(rank=8)).to_dict()))
    return console.export_text()


def _line(text: str, words: str) -> list[str]:
    """The cells of the one line of a printed table that contains ``words``."""
    (line,) = [line for line in text.splitlines() if words in line]
    return [cell for cell in re.split(r"\s*[│┃]\s*", line.strip()) if cell]


def test_quality_shows_both_accuracies_with_their_errors_and_counts() -> None:
    text = _printed()
    assert "Accuracy on 2,500 test rows" in text
    # sqrt(p (1 - p) / 2500): 0.90 points at 72 %, 0.82 at 78.4 %.
    assert _line(text, "head alone (to")[1:] == ["72.0%", "0.9", "770"]
    assert _line(text, "adapter (B only, rank 8) and head")[1:] == ["78.4%", "0.8", "50,000"]


def test_gain_is_shown_in_points_with_its_own_paired_error() -> None:
    assert _line(_printed(), "gain, paired by row")[1:] == ["+6.4 points", "0.9"]
    assert _line(_printed(gain=-0.0123, gain_standard_error=0.02), "gain, paired by row")[1:] == ["-1.2 points", "2.0"]


def test_other_ways_to_train_are_compared_by_what_they_would_train() -> None:
    text = _printed()
    # 110,000 / 50,000 and 22,713,216 / 50,000.
    assert _line(text, "LoRA at the same rank")[1:] == ["110,000 (2.2x)"]
    assert _line(text, "full fine-tuning")[1:] == ["22,713,216 (454x)"]


def test_cost_shows_steps_seconds_and_bytes_in_their_units() -> None:
    text = _printed()
    assert _line(text, "best step")[1:] == ["200 of 250"]
    assert _line(text, "features and fit")[1:] == ["31 s"]
    assert _line(text, "training, with validation")[1:] == ["152 s"]
    assert _line(text, "whole command")[1:] == ["190 s"]
    assert _line(text, "adapter file")[1:] == ["300 KiB"]
    assert _line(text, "peak memory")[1:] == ["900 MiB"]


def test_memory_that_cannot_be_told_is_not_shown_as_nothing() -> None:
    assert _line(_printed(peak_memory_bytes=None), "peak memory")[1:] == ["not known here"]


def test_no_figure_is_cut_on_a_terminal_of_80_columns() -> None:
    text = _printed(AdapterSpec.lora(rank=16), width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("72.0%", "78.4%", "+6.4 points", "50,000", "110,000 (2.2x)", "22,713,216 (454x)", "200 of 250"):
        assert figure in text


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (AdapterSpec.b_only(rank=4), "B only, rank 4"),
        (AdapterSpec.a_only(rank=2), "A only, rank 2"),
        (AdapterSpec.lora(rank=8), "A and B, rank 8"),
        (AdapterSpec.init_b(rank=8), "A and B, rank 8"),
    ],
)
def test_name_says_which_factors_are_trained(spec: AdapterSpec, name: str) -> None:
    assert adapter_name(spec.to_dict()) == name
    assert f"adapter ({name}) and head" in _printed(spec)


def test_seconds_of_a_resumed_run_are_called_what_they_are() -> None:
    assert _line(_printed(), "whole command")[1:] == ["190 s"]
    resumed = _printed(resumed=True)
    assert "whole command" not in resumed
    assert _line(resumed, "this command, after an interruption")[1:] == ["190 s"]


def test_a_metrics_own_capitals_are_kept() -> None:
    scores = {when: {"rougeL": 0.2} for when in ("baseline", "before", "after")}
    text = _printed(metric="rougeL", metrics=scores, baseline=0.2, score=0.2, gain=0.0)
    assert "RougeL on 2,500 test rows" in text


def test_a_method_without_a_rank_is_named_without_one() -> None:
    assert _line(_printed(method="peft:ia3", lora_parameters=None), "PEFT's")[0] == "PEFT's ia3 and head"


VERDICT = {
    "name": "inefficient",
    "says": "The smaller is 0.002 of the larger, at layer[0].query (1 of 36 sites).",
    "means": "One of them hardly changes what the model says.",
    "remedy": "Raise B's rate.",
}


def test_a_run_without_a_verdict_says_what_was_watched_in_one_line() -> None:
    text = _printed(health=[], watched_sites=36, watched_steps=15)
    assert text.splitlines()[-1].strip() == "Health: nothing to report (watched: 36 sites at 15 steps)"
    alone = _printed(health=[], watched_sites=0, watched_steps=0)
    assert "nothing to report on the head (watched: no factor)" in alone
    assert "Health" not in _printed()  # a result of before


@pytest.mark.parametrize("width", [60, 80, 120])
def test_verdicts_are_listed_with_what_to_change_and_paths_are_no_markup(width: int) -> None:
    text = _printed(width=width, health=[VERDICT, VERDICT], watched_sites=1, watched_steps=15)
    words = " ".join(re.sub(r"[│┃]", " ", text).split())
    assert "Health: 2 verdicts (watched: 1 site at 15 steps)" in words
    assert "layer[0].query" in words
    assert text.count("-> ") == 2
    assert max(len(line) for line in text.splitlines()) <= width


def test_one_verdict_is_one() -> None:
    title = health_table({"health": [VERDICT], "watched_sites": 2, "watched_steps": 3}).title  # pyright: ignore[reportAttributeAccessIssue]
    assert title == "Health: 1 verdict (watched: 2 sites at 3 steps)"
