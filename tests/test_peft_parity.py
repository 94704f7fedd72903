"""PEFT, in a fresh process, gives our model's logits from the folder that we wrote; and the other way round."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import asymlora as al
from asymlora.errors import AdapterFileError
from cases import EVERY_KIND, PRESET_NAMES, ModelCase, fill_factors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MOVES = 0.1
EXACT = 1e-5
# A bf16 base rounds every layer's output to 8 bits, and the two libraries' sums differ before that by float32 rounding:
# single activations land one unit apart, which later layers carry on. Activations here are of order one, so: four units
# of one, or of the largest logit if that is more.
BF16_UNITS = 4 * 2.0**-8
SHARED = {
    "bert": ("query", "key"),
    "roberta": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "vit": ("q_proj", "v_proj"),
    "small-net": ("q", "v"),
}


def _patterns(case: ModelCase) -> dict[str, Any]:
    # One by the end of the name, one by the full path of a single layer.
    path = next(name for name, _ in case.build().named_modules() if name.endswith(case.targets[-1]))
    return {"rank_pattern": {case.targets[0]: 6}, "alpha_pattern": {case.targets[0]: 9.0, path: 3.0}}


@dataclass(frozen=True)
class Option:
    """Fields of a spec, as a function of the model, the presets they go with, and the type of the base."""

    fields: Callable[[ModelCase], dict[str, Any]]
    presets: tuple[str, ...] = PRESET_NAMES
    dtype: str = "float32"
    models: tuple[str, ...] = tuple(case.name for case in EVERY_KIND)


CORRECTED = {
    # Small, as a start is: the two sides round s*B_0*A_0 in different places, by a share of its size.
    "A": al.FactorSpec(init="kaiming_uniform", gain=0.25),
    "B": al.FactorSpec(init="gaussian", gain=0.25),
    "nonzero_start": "correct_base",
}
OPTIONS = {
    "plain": Option(lambda case: {}),
    "rslora": Option(lambda case: {"scaling": "rank_stabilized", "rank": 4}),
    "patterns": Option(_patterns),
    "heads": Option(lambda case: {"modules_to_save": (case.head,)}),
    "dropout": Option(lambda case: {"dropout": 0.25, "rank_pattern": {case.targets[-1]: 4}}),
    "bf16": Option(lambda case: {}, dtype="bfloat16"),
    "mixed": Option(lambda case: {"factor_pattern": {case.targets[0]: "a_only"}}, ("b_only",)),
    "shared": Option(
        lambda case: {"shared_A": (SHARED[case.name],), "targets": (*case.targets, *SHARED[case.name])},
        ("b_only",),
        models=tuple(SHARED),
    ),
    "corrected": Option(
        lambda case: {**CORRECTED, "targets": tuple(t for t in case.targets if t != "grouped")}, ("lora",)
    ),
    "corrected-rslora": Option(
        lambda case: {
            **CORRECTED,
            **_patterns(case),
            "scaling": "rank_stabilized",
            "targets": tuple(t for t in case.targets if t != "grouped"),
        },
        ("lora",),
    ),
}
CASES = {
    f"{case.name}-{preset}-{name}": (case, preset, option)
    for case in EVERY_KIND
    for name, option in OPTIONS.items()
    if case.name in option.models
    for preset in option.presets
}
SPEC = {"rank": 2, "alpha": 5.0}


@cache
def _base(case: ModelCase, dtype: str) -> nn.Module:
    return case.build().to(getattr(torch, dtype))


def _spec(case: ModelCase, preset: str, option: Option) -> al.AdapterSpec:
    fields = {**SPEC, "targets": case.targets, **option.fields(case)}
    factors = {key: fields.pop(key) for key in ("A", "B") if key in fields}
    return al.AdapterSpec(**factors, **fields) if factors else al.AdapterSpec.parse(preset, **fields)


def _bound(logits: Tensor, dtype: str) -> float:
    return EXACT if dtype == "float32" else BF16_UNITS * max(1.0, logits.abs().max().item())


class Written:
    """Logits by folder: of our own model, of PEFT's, and of the base; and what PEFT refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ours: dict[str, Tensor] = {}
        self.without: dict[str, Tensor] = {}
        self.models: dict[str, tuple[str, str]] = {}
        self.theirs: dict[str, Tensor] = {}
        self.refused: dict[str, str] = {}

    def gap(self, folder: str) -> float:
        """Largest difference between the two models' logits."""
        return (self.theirs[folder] - self.ours[folder]).abs().max().item()

    def write(self, folder: str, case: ModelCase, preset: str, option: Option) -> None:
        """Save one case's adapter, filled with random values."""
        base = _base(case, option.dtype)
        model = al.attach(copy.deepcopy(base), _spec(case, preset, option))
        fill_factors(model, seed=len(folder))
        al.save_adapter(model, self.root / folder)
        self.ours[folder] = case.logits(model).float()
        self.without[folder] = case.logits(base).float()
        self.models[folder] = case.name, option.dtype

    def read(self) -> None:
        """Let PEFT read all folders."""
        (self.root / "cases.json").write_text(json.dumps(self.models))
        reader = Path(__file__).with_name("peft_reader.py")
        environment = {**os.environ, "PYTHONPATH": str(reader.parent)}
        subprocess.run([sys.executable, str(reader), str(self.root)], check=True, env=environment, capture_output=True)
        self.theirs = load_file(self.root / "logits.safetensors")
        self.refused = json.loads((self.root / "refused.json").read_text())

    def spoil(self, folder: str, original: str, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
        """Write a copy of a folder that is wrong on purpose."""
        config, tensors = (
            json.loads((self.root / original / CONFIG).read_text()),
            load_file(self.root / original / WEIGHTS),
        )
        change(config, tensors)
        (self.root / folder).mkdir()
        (self.root / folder / CONFIG).write_text(json.dumps(config))
        save_file(tensors, self.root / folder / WEIGHTS)
        self.ours[folder], self.models[folder] = self.ours[original], self.models[original]


def _double_alpha(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    config["lora_alpha"] *= 2


def _swap_A(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    one, other = sorted(key for key in tensors if "lora_A" in key)[:2]
    tensors[one], tensors[other] = tensors[other], tensors[one]


def _turn_alphas(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    pattern = config["alpha_pattern"]
    config["alpha_pattern"] = dict(zip(pattern, reversed(pattern.values()), strict=True))


def _widen_back(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    # What a file without its start would hold: the factors alone, for a base that nobody else has.
    config["r"], config["lora_alpha"] = config["r"] // 2, config["lora_alpha"] / 2
    for key in tensors:
        A, rank = "lora_A" in key, config["r"]
        tensors[key] = (tensors[key][:rank] if A else tensors[key][:, :rank]).contiguous()


WRONG = {
    "wrong-scale": ("bert-b_only-plain", _double_alpha),
    "swapped-A": ("bert-b_only-plain", _swap_A),
    "exchanged-alphas": ("bert-lora-patterns", _turn_alphas),
    "dropped-alpha-pattern": ("llama-lora-patterns", lambda config, _: config.pop("alpha_pattern")),
    "dropped-start": ("bert-lora-corrected", _widen_back),
    "wrong-scale-bf16": ("llama-b_only-bf16", _double_alpha),
    "dropped-rslora": ("gpt2-lora-rslora", lambda config, _: config.update(use_rslora=False)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    written = Written(tmp_path_factory.mktemp("adapters"))
    for folder, case in CASES.items():
        written.write(folder, *case)
    for folder, (original, change) in WRONG.items():
        written.spoil(folder, original, change)
    written.spoil("dropped-rank-pattern", "bert-b_only-patterns", lambda config, _: config.pop("rank_pattern"))
    written.read()
    return written


def test_the_matrix_is_not_shorter_than_promised() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("folder", CASES)
def test_peft_gives_the_same_logits(written: Written, folder: str) -> None:
    moved = (written.ours[folder] - written.without[folder]).abs().max().item()
    assert moved >= MOVES, "the factors must move the logits, or the comparison shows nothing"
    assert folder not in written.refused
    assert written.gap(folder) <= _bound(written.ours[folder], CASES[folder][2].dtype)


@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_sees_a_wrong_adapter(written: Written, wrong: str) -> None:
    dtype = CASES[WRONG[wrong][0]][2].dtype
    assert written.gap(wrong) > max(1e-2, 2 * _bound(written.ours[wrong], dtype))


def test_peft_refuses_a_file_whose_rank_pattern_is_gone(written: Written) -> None:
    assert "size mismatch" in written.refused["dropped-rank-pattern"]


THEIRS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 4},
    "rank-pattern": {"rank_pattern": {"LAST": 6}, "alpha_pattern": {"LAST": 9}},
    "alpha-pattern": {"alpha_pattern": {r"^FULL": 3, "LAST": 9}},
    "heads": {"modules_to_save": ["HEAD"]},
    "dropout": {"lora_dropout": 0.25, "init_lora_weights": "gaussian"},
    "bf16": {},
}
BACK = {f"{case.name}-{name}": (case, name) for case in EVERY_KIND for name in THEIRS}


def _theirs(case: ModelCase, name: str) -> tuple[nn.Module, nn.Module]:
    """PEFT's model with random factors, and the base."""
    base = _base(case, "bfloat16" if name == "bf16" else "float32")
    full = next(path for path, _ in base.named_modules() if path.endswith(case.targets[-1]))
    words = {"LAST": case.targets[0], "HEAD": case.head, "^FULL": "^" + full.replace(".", r"\.")}
    fields = {
        key: {words.get(k, k): v for k, v in value.items()} if isinstance(value, dict) else value
        for key, value in THEIRS[name].items()
    }
    fields |= {"modules_to_save": [case.head]} if name == "heads" else {}
    fields |= {"fan_in_fan_out": True} if case.name == "gpt2" else {}
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 5, "target_modules": list(case.targets), **fields})
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(base), config)  # pyright: ignore[reportArgumentType]
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model, base


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
@pytest.mark.parametrize("folder", BACK)
def test_what_peft_writes_is_read_with_equal_logits(folder: str, tmp_path: Path) -> None:
    case, name = BACK[folder]
    theirs, base = _theirs(case, name)
    theirs.save_pretrained(str(tmp_path / "adapter"))  # pyright: ignore[reportCallIssue]
    # PEFT matches heads by a bare endswith: "norm" is also Llama's "input_layernorm". Who trusts the file says so.
    heads = [case.head] if name == "heads" else None
    ours = al.load_adapter(copy.deepcopy(base), tmp_path / "adapter", modules_to_save=heads)
    wanted = case.logits(theirs).float()
    assert (wanted - case.logits(base).float()).abs().max() >= MOVES
    bound = _bound(wanted, "bfloat16" if name == "bf16" else "float32")
    assert (case.logits(ours).float() - wanted).abs().max() <= bound
    assert all(site.A.requires_grad and site.B.requires_grad for site in al.sites(ours))


def test_a_wrong_alpha_in_what_peft_wrote_is_seen(tmp_path: Path) -> None:
    case, name = BACK["bert-alpha-pattern"]
    theirs, base = _theirs(case, name)
    theirs.save_pretrained(str(tmp_path / "adapter"))  # pyright: ignore[reportCallIssue]
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps({**config, "alpha_pattern": {}}))
    ours = al.load_adapter(copy.deepcopy(base), tmp_path / "adapter")
    assert (case.logits(ours) - case.logits(theirs)).abs().max() > 1e-2


def test_a_regular_expression_in_a_pattern_is_not_run_and_named(tmp_path: Path) -> None:
    case, name = BACK["bert-alpha-pattern"]
    theirs, base = _theirs(case, name)
    theirs.save_pretrained(str(tmp_path / "adapter"))  # pyright: ignore[reportCallIssue]
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps({**config, "alpha_pattern": {"(a+)+$": 3, "query": 9}}))
    with pytest.raises(AdapterFileError, match=r"alpha_pattern\['\(a\+\)\+\$'\] \(a regular expression"):
        al.load_adapter(copy.deepcopy(base), tmp_path / "adapter")
