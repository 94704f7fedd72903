"""PEFT's adapter format in plain values: its configuration and its tensor keys. No torch in here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from asymlora.errors import SpecError
from asymlora.peft_patterns import Rule, endings_of, pattern_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"
MAX_RANK = 2**15

PLAIN: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("alora_invocation_tokens", "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config"),
            *("eva_config", "exclude_modules", "kasa_config", "layer_replication", "layers_pattern"),
            *("layers_to_transform", "lora_ga_config", "megatron_config", "modules_to_save", "monteclora_config"),
            *("revision", "target_parameters", "task_type", "trainable_token_indices", "use_bdlora", "velora_config"),
        )
    ),
    **dict.fromkeys(
        ("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora", "use_rslora"), False
    ),
    "alpha_pattern": {},
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "loftq_config": {},
    "lora_dropout": 0.0,
    "megatron_core": "megatron.core",
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "rank_pattern": {},
}
"""What PEFT 0.21.2 writes for a plain adapter, without rank, alpha and targets."""

_VARIANTS = (
    *("alora_invocation_tokens", "arrow_config", "bias", "corda_config", "eva_config", "kasa_config"),
    *("layer_replication", "lora_bias", "lora_ga_config", "megatron_config", "monteclora_config", "target_parameters"),
    *("trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "velora_config", "loftq_config"),
)
_CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")  # of targets; of no meaning beside tensors
_EMPTY: tuple[Any, ...] = (None, False, "none", "", {}, [], ())
# What PEFT may say of the start without changing what a trained file means; others alter the base weights on load.
_HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")


def written_config(**stated: Any) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``: every key that PEFT writes for a plain LoRA adapter.

    ``init_lora_weights`` is always true: PEFT runs the named start again when it loads, and some change the base.

    Args:
        **stated: What differs from `PLAIN`, by PEFT's names; ``r``, ``lora_alpha`` and ``target_modules`` at least.

    Returns:
        Plain values, by PEFT's names.
    """
    return {**PLAIN, **stated}


def spec_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an `AdapterSpec` that a PEFT configuration stands for, for a model not yet seen.

    Args:
        config: PEFT's keys and values.

    Returns:
        Fields by our names.

    Raises:
        SpecError: The configuration asks for something that this library cannot honour; every such key is named.
    """
    problems = _variants(config, (*_VARIANTS, *_CHOICES)) + _bad_numbers(config)
    if config.get("init_lora_weights", True) is not True:
        problems.append(f"init_lora_weights={config['init_lora_weights']!r}")
    targets = config.get("target_modules")
    if targets is None or (isinstance(targets, str) and targets != ALL_LINEAR):
        problems.append(f"target_modules={targets!r} (a list of names or 'all-linear' is needed)")
    if config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") and not config.get("modules_to_save"):
        problems.append(
            f"task_type={_plain_word(config['task_type'])!r} with no modules_to_save (PEFT would train the head by"
            " itself; name it, for instance modules_to_save=['classifier'])"
        )
    _refuse(problems)
    patterns: dict[str, dict[str, Any]] = {}
    whole = _whole(config)
    for name, pattern in zip(("rank_pattern", "alpha_pattern"), _patterns(config, whole), strict=True):
        patterns[name], regexes = endings_of(pattern)
        problems += [f"{name}[{key!r}] (a regular expression; write module names)" for key in regexes]
    _refuse(problems)
    return {
        **whole,
        "targets": targets if isinstance(targets, str) else tuple(sorted(cast("list[str]", targets))),
        "modules_to_save": tuple(sorted(config.get("modules_to_save") or ())),
        **patterns,
    }


def file_fields(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields of an `AdapterSpec` that a configuration stands for beside its tensors.

    Sites and ranks are those of the tensors, so what the file says of targets is not needed and not run. Scales follow
    PEFT's rule: of the keys of ``alpha_pattern`` in file order the first that matches the site.

    Args:
        config: PEFT's keys and values.
        ranks: Rank of each site, from its tensors.

    Returns:
        Fields by our names.

    Raises:
        SpecError: The configuration is not plain LoRA or says other ranks; every problem is named.
    """
    problems = _variants(config, _VARIANTS) + _bad_numbers(config)
    start = config.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        problems.append(
            f"init_lora_weights={start!r} (it changes the base weights when PEFT loads it; convert it with PEFT first:"
            " save_pretrained with path_initial_model_for_weight_conversion)"
        )
    _refuse(problems)
    whole = _whole(config)
    alphas: dict[str, float] = {}
    ranked, scaled = (Rule(pattern, sites=len(ranks), proper=_is_old(config)) for pattern in _patterns(config, whole))
    for site, rank in ranks.items():
        known, _ = ranked.value(site, whole["rank"])
        if known is not None and known != rank:
            problems.append(f"{site} has rank {rank} (the configuration says {known})")
        alpha, keys = scaled.value(site, whole["alpha"])
        alphas[site] = whole["alpha"] if alpha is None else float(alpha)
        if alpha is None:
            problems += [
                f"alpha_pattern[{key!r}] (a regular expression, which is not run; write names)" for key in keys
            ]
    _refuse(list(dict.fromkeys(problems)))
    return {
        **whole,
        "rank_pattern": pattern_of(ranks, whole["rank"]),
        "alpha_pattern": pattern_of(alphas, whole["alpha"]),
    }


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        shown = "; ".join(problem[:500] for problem in problems[:8]) + (
            f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        )
        raise SpecError(
            f"This PEFT config is not plain LoRA as asymlora can run it: {shown}. Change these keys, or train the"
            " variant with PEFT."
        )


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _plain_word(value: Any) -> Any:
    return getattr(value, "value", value)


def _variants(config: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    problems = [f"{key}={_shown(config[key])}" for key in keys if key in config and config[key] not in _EMPTY]
    # A variant that a later PEFT brings is switched on by such a key.
    unknown = [key for key in config if key.startswith("use_") and key not in PLAIN and config[key]]
    problems += [f"{key}={config[key]!r} (unknown here)" for key in unknown]
    if _plain_word(config.get("peft_type", "LORA")) not in ("LORA", None):
        problems.append(f"peft_type={_plain_word(config['peft_type'])!r} (only 'LORA' is read)")
    return problems


def _is_number(value: Any, *, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _bad_numbers(config: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    rank, alpha, dropout = config.get("r", 8), config.get("lora_alpha", 8), config.get("lora_dropout", 0.0)
    if not (_is_number(rank, whole=True) and 1 <= rank <= MAX_RANK):
        problems.append(f"r={rank!r} (a number is needed, whole and from 1 to {MAX_RANK})")
    if not (_is_number(alpha) and 0 < alpha < 1e9):
        problems.append(f"lora_alpha={alpha!r} (a number is needed, above 0)")
    if not (_is_number(dropout) and 0 <= dropout < 1):
        problems.append(f"lora_dropout={dropout!r} (a number is needed, in [0, 1))")
    if config.get("use_rslora") not in (True, False, None):
        problems.append(f"use_rslora={config['use_rslora']!r} (true or false is needed)")
    for name, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, Mapping):
            problems.append(f"{name}={_shown(pattern)} (an object of names and numbers is needed)")
            continue
        for key, value in cast("Mapping[Any, Any]", pattern).items():
            most = MAX_RANK if whole else 1e9
            if not (isinstance(key, str) and key and _is_number(value, whole=whole) and 0 < value <= most):
                problems.append(
                    f"{name}[{key!r}]={_shown(value)} (a number is needed, {'whole and ' if whole else ''}above 0)"
                )
    return problems


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rank": config.get("r", 8),
        "alpha": float(config.get("lora_alpha", 8)),
        "scaling": "rank_stabilized" if config.get("use_rslora") else "standard",
        "dropout": float(config.get("lora_dropout", 0.0)),
    }


def _is_old(config: Mapping[str, Any]) -> bool:
    # PEFT 0.14 changed its rule and wrote these keys first; a configuration written by hand has none of the three.
    return "layers_pattern" in config and not {"exclude_modules", "lora_bias", "peft_version"} & set(config)


def _patterns(config: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return PEFT's patterns of ranks and alphas, each to be asked by itself.

    Before 0.14 one key answered for both, the first of either that matched: where the other pattern lacks it, the
    default holds there.
    """
    ranks, alphas = (dict(config.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))
    if not _is_old(config):
        return ranks, alphas
    keys = dict.fromkeys([*ranks, *alphas])
    return {k: ranks.get(k, whole["rank"]) for k in keys}, {k: alphas.get(k, whole["alpha"]) for k in keys}


def most_common(values: Iterable[Any]) -> Any:
    """Return the value that occurs most often, of several such the first."""
    return Counter(values).most_common(1)[0][0]


def factor_key(site: str, factor: str, *, embedding: bool) -> str:
    """Return the tensor key of a factor, ``A`` or ``B``, of a site.

    Example:
        >>> factor_key("encoder.q", "A", embedding=False), factor_key("words", "B", embedding=True)
        ('base_model.model.encoder.q.lora_A.weight', 'base_model.model.words.lora_embedding_B')
    """
    return f"{PREFIX}{site}.{f'lora_embedding_{factor}' if embedding else f'lora_{factor}.weight'}"


def site_of(key: str) -> tuple[str, str, bool] | None:
    """Return site, factor and whether it is an embedding's, the inverse of `factor_key`; None for other keys."""
    found = re.fullmatch(r"(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))", key.removeprefix(PREFIX), flags=re.DOTALL)
    if not found or not key.startswith(PREFIX) or "base_layer" in found[1].split("."):
        return None
    return found[1], found[2] or found[3], found[3] is not None


def why_no_module(key: str) -> str | None:
    """Return why a key that is no factor's cannot be a tensor of a module trained in full, or None."""
    path = key.removeprefix(PREFIX)
    parts = path.split(".")
    if path == key:
        return f"does not start with {PREFIX!r}"
    if "lora_magnitude_vector" in parts:
        return "is of DoRA, which asymlora does not run"
    if "base_layer" in parts:
        return (
            "is a weight of the base model, which an adapter file must not hold (from PEFT: save_pretrained(...,"
            " save_embedding_layers=False))"
        )
    if any(part.startswith("lora_") for part in parts):
        return "is not a factor of a linear layer, an embedding or a convolution"
    return None if len(parts) > 1 and all(parts) else "is no tensor of a module"
