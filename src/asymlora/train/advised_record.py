"""An advised recipe as one plain mapping, ready for JSON, from which tables and the page of reasons are drawn."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from asymlora.diagnostics.advice import Advice
from asymlora.diagnostics.captured_gradient import Shares, SiteMeasures
from asymlora.train.advising import Advised
from asymlora.train.run_folder import environment

COMPARED = (
    "On two small tasks (MiniLM on TREC-6 and on 500 rows of SST-2, 160 steps) this advice was not shown to beat plain"
    " defaults, its own cost counted, and took longer than such a run. Its recipe was as good as LoRA at a tuned rate"
    " on TREC-6. Repeat it: asymlora reproduce advice."
)
"""What the artefact ``advice`` found, of which the records are kept."""


def advised_record(advised: Advised) -> dict[str, Any]:
    """Return everything that was measured and advised.

    Args:
        advised: As `asymlora.train.advising.advise_recipe` returns it.

    Returns:
        Plain values: ``sites`` one mapping a layer, with ``in_recipe`` and its ``curve`` over ranks; ``summary``;
        ``rate``; ``range_test``; ``recipe`` and its ``yaml``; ``caveats``, ``notes``, ``environment``, ``seconds``.
        A number that is not finite is None.
    """
    rank = advised.given.adapter.rank
    sites = _sites(advised.advice, advised.measures, rank, in_recipe=True)
    if advised.elsewhere is not None:
        sites += _sites(advised.elsewhere, advised.measures_elsewhere, rank, in_recipe=False)
    assert advised.advice.rate is not None
    rate = asdict(advised.advice.rate)
    rate["doubts"] = list(rate.pop("confidence")["failed"])
    rate["confidence"] = advised.advice.rate.confidence.level
    plan = {name: getattr(advised.advice, name) for name in _OF_THE_ADVICE}
    record = {
        "model": advised.model,
        "task": advised.recipe.task,
        "data": advised.recipe.data.name,
        "rank": rank,
        "rows": advised.rows,
        "batches": advised.batches,
        "batch_size": advised.recipe.train.batch_size,
        "head_fitted": advised.head_fitted,
        **plan,
        "sites": sites,
        "rate": {**rate, "lr": advised.recipe.train.lr},
        "range_test": advised.range_test.to_dict(),
        "other_rates": list(advised.other_rates),
        "recipe": advised.recipe.to_dict(),
        "yaml": advised.recipe.to_yaml(),
        "caveats": [COMPARED, *(text for text in advised.advice.caveats if "defaults" not in text)],
        "notes": list(advised.notes),
        "seconds": advised.seconds,
        "environment": environment(),
    }
    return _plain({**record, "summary": summary(record)})


_OF_THE_ADVICE = (
    "uniform_rank", "per_site_ranks", "values", "mean_share", "uniform_mean_share", "by_site_mean_share"
)  # fmt: skip


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the few numbers and sentences that a reader should see first.

    Args:
        record: As `advised_record` builds it.

    Returns:
        ``layers``; ``trained``: how many by factor; ``random_A`` and ``random_B``: median shares at the reference rank
        over the adapter's layers, None without gradients; ``verdict`` and ``pair``, sentences.
    """
    sites = [site for site in record["sites"] if site["in_recipe"]]
    trained = Counter(site["train"] for site in sites)
    said = {"B": "B alone", "A": "A alone", "both": "both factors"}
    parts = [f"{said[name]} at {count}" for name, count in trained.most_common()]
    verdict = f"Train {', '.join(parts)} of {len(sites)} layers, from a learning rate of {record['rate']['lr']:.2g}."
    random_A, random_B = (_median(sites, name) for name in ("random_A", "random_B"))
    pair = "No gradient reached a layer, so nothing is known of what a held factor leaves in reach."
    if random_A is not None and random_B is not None:
        pair = (
            f"Of what the task first asks of a layer, a random, held A of rank {record['rank']} leaves"
            f" {percent(random_A)} within reach of B; a random, held B of that rank leaves {percent(random_B)} within"
            " reach of A (medians over the adapter's layers)."
        )
    return {
        "layers": len(sites),
        "trained": dict(trained),
        "random_A": random_A,
        "random_B": random_B,
        "verdict": verdict,
        "pair": pair,
    }


def percent(share: float | None) -> str:
    """Return a share in per cent, with one digit below 10 %.

    Example:
        >>> percent(0.634), percent(0.0163), percent(None)
        ('63 %', '1.6 %', '-')
    """
    if share is None:
        return "-"
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def role_of(path: str) -> str:
    """Return what a layer is, whichever block it stands in: its path after the last number.

    Example:
        >>> role_of("encoder.layer.0.attention.self.query"), role_of("classifier"), role_of("layers.3")
        ('attention.self.query', 'classifier', 'layers')
    """
    parts = path.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    after = parts[numbered[-1] + 1 :] if numbered else parts
    return ".".join(after or [part for part in parts if not part.isdigit()]) or path


def _sites(advice: Advice, measures: Sequence[SiteMeasures], rank: int, *, in_recipe: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for site, measured in zip(advice.sites, measures, strict=True):
        assert site.name == measured.name
        shares = _at(measured, rank)
        rows.append(
            {
                "site": site.name,
                "role": role_of(site.name),
                "in_recipe": in_recipe,
                **{name: getattr(measured, name) for name in _OF_THE_MEASURES},
                **{name: getattr(site, name) for name in ("train", "rank", "values", "share", "A_start", "reason")},
                "compared_rank": shares.rank if shares else None,
                "random_A": shares.random_A if shares else None,
                "random_B": shares.random_B if shares else None,
                "confidence": site.confidence.level,
                "doubts": list(site.confidence.failed),
                "curve": [asdict(each) for each in measured.shares],
            }
        )
    return rows


_OF_THE_MEASURES = (
    *("kind", "fan_in", "outputs", "rows", "input_ratio", "output_ratio", "generic_ratio", "noise", "missed"),
    "why_no_shares",
)


def _at(measured: SiteMeasures, rank: int) -> Shares | None:
    fitting = [shares for shares in measured.shares if shares.rank <= rank]
    return fitting[-1] if fitting else None


def _median(sites: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [site[name] for site in sites if site[name] is not None]
    return statistics.median(known) if known else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
