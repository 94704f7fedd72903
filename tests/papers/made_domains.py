"""Made-up records of zhu_vision: sweeps with interior best rates, and what their arms reach by domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asymlora.papers.domain_scores import OTHER, OWN, TRAINED
from asymlora.papers.vision_claims import domains_of
from asymlora.papers.zhu_vision import paper_parts
from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.evidence import Evidence, Record
from papers.made_arms import raised, swept

PLANS = {part.name: part.plan for part in paper_parts(Path("nowhere")) if isinstance(part, SweepPart)}
ARM_SWEEPS = {"both": "", "b_only": "", "a_only": "", "b_only_2r": "_rows", "head": "_rows", "full": "_full"}


@dataclass(frozen=True)
class Reached:
    """Accuracy of an arm, nearly the same at every seed: on trained rows, in its own domain, and on two others."""

    trained: float = 0.95
    own: float = 0.8
    near: float = 0.6
    far: float = 0.4


def scored(name: str, arms: Mapping[str, Reached]) -> list[Record]:
    """Return what the closing runs of a set reach by domain.

    Args:
        name: The set.
        arms: What each arm reaches; seeds are as many as its sweep closes with.
    """
    found: list[Record] = []
    for arm, reached in arms.items():
        sweep = name + ARM_SWEEPS[arm]
        seeds = PLANS[sweep].closing_seeds
        domains = (
            (TRAINED, "home", reached.trained), (OWN, "home", reached.own), (OTHER, "near", reached.near),
            (OTHER, "far", reached.far),
        )  # fmt: skip
        for kind, domain, accuracy in domains:
            by_seed = raised([0.001 * (seed % 3) for seed in seeds], accuracy)
            found += [
                {
                    "sweep": sweep, "arm": arm, "seed": seed, "kind": kind, "domain": domain, "rows": 150,
                    "accuracy": by_seed[seed], "loss": 1.0,
                }
                for seed in seeds
            ]  # fmt: skip
    return found


def evidence(
    *names: str, best: Mapping[str, float] | None = None, arms: Mapping[str, Reached] | None = None
) -> Evidence:
    """Return the records of some sets.

    Args:
        names: The sets.
        best: Best rates of arms that are not interior.
        arms: What arms reach; the others reach the same.
    """
    reached = {arm: (arms or {}).get(arm, Reached()) for arm in ARM_SWEEPS}
    sweeps = {
        name + more: swept(
            PLANS[name + more],
            {arm: {"accuracy": [0.8] * 6} for arm, suffix in ARM_SWEEPS.items() if suffix == more},
            best=best,
        )
        for name in names
        for more in ("", "_rows", "_full")
    }
    return Evidence(sweeps=sweeps, measured={domains_of(name): scored(name, reached) for name in names})
