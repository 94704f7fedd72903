"""Every example runs by its command line on the real library, and what it prints is what it should show."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
HELPING = {"small_models", "evidence"}
SITES = 4
"""Adapted layers of each example: two in two blocks."""
SECONDS = 200
LINE = re.compile(r"^(\w+): (\S+)$", re.MULTILINE)


def _run(
    name: str, *arguments: str, launcher: tuple[str, ...] = (), seconds: float = SECONDS, **environment: str
) -> str:
    """Run an example and return what it printed; warnings of third parties are theirs."""
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _facts(said: str) -> list[dict[str, Any]]:
    """The facts that stand in what was printed, one mapping for each time."""
    kinds = {"first_loss": float, "last_loss": float, "moved_B": int, "reload_difference": float}
    found: list[dict[str, Any]] = []
    for name, value in LINE.findall(said):
        if name == "first_loss":
            found.append({})
        if name in kinds or name == "frozen_unchanged":
            found[-1][name] = kinds[name](value) if name in kinds else value
    return found


def _shows(facts: dict[str, Any], *, falls_to: float = 0.2, reload_difference: float = 0.0) -> None:
    assert facts["frozen_unchanged"] == "True"
    assert facts["moved_B"] == SITES
    assert facts["last_loss"] < falls_to * facts["first_loss"]
    assert facts["reload_difference"] <= reload_difference


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """What the plain loop found, against which others are held that take the same steps."""
    (facts,) = _facts(_run("plain_loop"))
    return facts


def test_the_plain_loop_learns_its_batch(plain: dict[str, Any]) -> None:
    _shows(plain)


@pytest.mark.optional  # libraries that take seconds to import, in processes of their own
@pytest.mark.parametrize("name", ["accelerate_loop", "lightning_module"])
def test_another_loop_around_the_same_steps_ends_at_the_same_loss(plain: dict[str, Any], name: str) -> None:
    (facts,) = _facts(_run(name))
    _shows(facts)
    assert facts["last_loss"] == pytest.approx(plain["last_loss"], rel=1e-3)


@pytest.mark.optional  # libraries that take seconds to import, in processes of their own
def test_accelerate_in_two_processes_ends_at_the_loss_of_one(plain: dict[str, Any]) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    found = _facts(_run("accelerate_loop", launcher=launcher, ACCELERATE_USE_CPU="true"))
    assert len(found) == 2
    for facts in found:
        _shows(facts)
        assert facts["last_loss"] == pytest.approx(plain["last_loss"], rel=1e-3)


@pytest.mark.optional  # libraries that take seconds to import, in processes of their own
def test_both_trainers_train_and_save_the_adapter() -> None:
    stock, ours = _facts(_run("transformers_trainer"))
    _shows(stock)
    _shows(ours)
    assert stock["last_loss"] != ours["last_loss"]


def test_a_peft_model_is_sped_up_and_saved_for_peft() -> None:
    said = _run("peft_model")
    # Trained by our product and read back by PEFT's: equal up to rounding.
    (facts,) = _facts(said)
    _shows(facts, reload_difference=1e-5)
    assert f"layers sped up: {SITES}" in said


@pytest.mark.optional  # libraries that take seconds to import, in processes of their own
def test_sft_resumes_with_A_frozen() -> None:
    (facts,) = _facts(_run("trl_sft"))
    _shows(facts, falls_to=0.85)


@pytest.mark.optional  # starts a Ray cluster on this machine: a minute and a half, and processes of Ray's own
@pytest.mark.timeout(620)  # nearly all of it is imports, in five processes, beside another test
def test_two_workers_of_ray_end_at_the_loss_of_one_process(plain: dict[str, Any]) -> None:
    (facts,) = _facts(_run("ray_train", seconds=600, RAY_USAGE_STATS_ENABLED="0"))
    _shows(facts)
    assert facts["last_loss"] == pytest.approx(plain["last_loss"], rel=1e-3)


@pytest.mark.optional  # libraries that take seconds to import, in processes of their own
def test_submitit_starts_the_processes_of_a_run(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe))
    options = ["--recipe", str(recipe), "--output", str(tmp_path / "run")]
    said = _run("slurm_submitit", *options, "--cluster", "local", "--nodes", "1", "--per-node", "2")
    assert (tmp_path / "run" / "result.json").is_file()
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    assert len(list((tmp_path / "run-logs").glob("*_result.pkl"))) == 2
    assert f"steps: {small_recipe['train']['steps']}" in said


def test_the_fsdp_configuration_is_one_that_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(EXAMPLES / "accelerate_fsdp2.yaml"))
    assert config.distributed_type.value == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"
    assert not config.use_cpu


def test_accelerate_knows_every_key_of_the_fsdp_configuration() -> None:
    from accelerate import FullyShardedDataParallelPlugin

    content = yaml.safe_load((EXAMPLES / "accelerate_fsdp2.yaml").read_text())["fsdp_config"]
    names = {key.removeprefix("fsdp_") for key in content}
    fields = set(FullyShardedDataParallelPlugin.__dataclass_fields__)
    renamed = {"version": "fsdp_version", "offload_params": "cpu_offload"}
    assert {renamed.get(name, name) for name in names} <= fields


def test_the_readme_has_a_line_for_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = {file.stem for file in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"^\| `(\w+)\.py` \|", text, re.MULTILINE)) == scripts - HELPING
    assert all(f"`{name}.py`" in text for name in HELPING)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_examples_stay_short_and_say_how_they_are_run(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) <= 80
    assert file.stem in HELPING or f"python examples/{file.name}" in said
