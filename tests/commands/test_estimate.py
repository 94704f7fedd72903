from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig, MistralConfig

from asymlora.cli import main
from asymlora.commands.estimate import memory_bytes
from asymlora.errors import SpecError

WIDE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Write a small configuration and return its path."""
    file = tmp_path / "config.json"
    content = {**LlamaConfig(**WIDE).to_dict(), "architectures": ["LlamaForCausalLM"]}
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["estimate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_records_hold_settings_ways_and_what_fits(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = _json(capsys, config, "--adapter.rank", "4", "--memory", "5MB", "--batch", "2", "--length", "16")
    assert printed["settings"]["size"] == 2
    assert printed["settings"]["memory"] == 5_000_000
    assert [way["way"] for way in printed["ways"]][:3] == ["full fine-tuning", "LoRA", "B only, rank 4"]
    # Seven linear layers a block: q, k, v, o of 64 and the three of 64 and 128.
    assert printed["ways"][2]["trained_values"] == 2 * 4 * (4 * 64 + 2 * 128 + 64)
    assert all(fit["peak_bytes"] <= 5_000_000 for fit in printed["fits"])
    assert [fit["rank"] for fit in printed["fits"]] == [1, 2, 4, 8, 16, 32, 64]
    assert [fit["size"] for fit in printed["fits"]] == sorted((f["size"] for f in printed["fits"]), reverse=True)


def test_a_larger_memory_takes_more(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = _json(capsys, config, "--memory", "5MB", "--length", "16")["fits"]
    large = _json(capsys, config, "--memory", "10MB", "--length", "16")["fits"]
    assert large[0]["size"] > small[0]["size"]


@pytest.mark.parametrize(
    ("options", "name", "grows"),
    [
        (("--dtype", "float32"), "base_bytes", True),
        (("--base", "nf4"), "base_bytes", False),
        (("--optimizer", "sgd"), "optimizer_bytes", False),
        (("--checkpointing",), "saved_bytes", False),
        (("--attention", "eager"), "saved_bytes", True),
        (("--batch", "16"), "saved_bytes", True),
        (("--adapter.preset", "lora"), "trained_values", True),
    ],
)
def test_every_option_changes_what_it_names(
    config: str, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], name: str, grows: bool
) -> None:
    plain, changed = (_json(capsys, config, *given)["ways"] for given in ((), options))
    asked = next(i for i, way in enumerate(plain) if way["way"].startswith("B only"))
    before, after = plain[asked][name], changed[1 if "lora" in options else asked][name]
    assert after > before if grows else after < before


def test_tables_say_what_is_where(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", config, "--memory", "1kB"]) == 0
    shown = capsys.readouterr().out
    assert "Memory for 8 x 512 tokens" in shown
    assert "B only, rank 8" in shown
    assert "not even one sequence of 512 tokens fits" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./nothing",), "no model folder at ./nothing"),
        (("embedded:minilm", "--memory", "24 apples"), "--memory 24 apples is no amount of memory"),
        (("embedded:minilm-l6", "--adapter.rank", "0"), "rank"),
        (("embedded:minilm-l6", "--dtype", "int7"), "dtype"),
        (("embedded:minilm-l6", "--samples", "0"), "samples=0 must be at least 1"),
        (("embedded:minilm-l6", "--memory", ""), "no amount of memory"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0GB", "-1GB", "24 GX", "", "GB"])
def test_no_amounts_of_memory(text: str) -> None:
    with pytest.raises(SpecError, match="no amount of memory"):
        memory_bytes(text)


@pytest.mark.parametrize(
    ("text", "wanted"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("512mb", 512 * 10**6), ("1000", 1000)]
)
def test_amounts_of_memory(text: str, wanted: int) -> None:
    assert memory_bytes(text) == wanted


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    content = {**MistralConfig(**WIDE).to_dict(), "architectures": ["MistralForCausalLM"]}
    file.write_text(json.dumps(content), encoding="utf-8")
    printed = _json(capsys, str(file), "--memory", "24GB")
    assert printed["fits"] is None
    assert all(way["flops_forward"] is way["peak_bytes"] is None for way in printed["ways"])
    assert main(["estimate", str(file), "--memory", "24GB"]) == 0
    assert "are not known" in " ".join(capsys.readouterr().out.split())


def test_attention_dropout_takes_the_kernel_that_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("embedded:minilm-l6", "--device", "cpu", "--dtype", "float32")
    assert _json(capsys, *given)["settings"]["attention"] == "math"  # dropout 0.1


def test_a_head_that_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    content = {**BertConfig(**WIDE).to_dict(), "architectures": ["BertForMaskedLM"]}
    file.write_text(json.dumps(content), encoding="utf-8")
    assert main(["estimate", str(file)]) == 0
    assert "Without the head of BertForMaskedLM" in " ".join(capsys.readouterr().out.split())
    assert main(["estimate", "embedded:minilm-l6"]) == 0  # a network that has none
    assert "Without the head" not in " ".join(capsys.readouterr().out.split())
