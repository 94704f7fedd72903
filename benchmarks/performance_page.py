"""Write `docs/performance.md` from the stored results; a test holds the page to them.

Every figure of the page is one that a script of this folder wrote; only the words stand here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, geometric_mean

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
Row = Mapping[str, Any]


def stored(name: str) -> dict[str, Any]:
    """Return the content of a results file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def ratio(value: float, low: float, high: float) -> str:
    """Return a ratio with its 5 % to 95 % bounds."""
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


def grid(name: str) -> str:
    """Return the table of the overhead grid, and its geometric means."""
    rows = stored(name)["rows"]
    cells = table(
        ("width", "tokens", "rank", "trained", "floor", "PEFT adds", "asymlora adds", "ratio (5-95 %)"),
        (
            (
                str(row["width"]), f"{row['tokens']:,}", str(row["rank"]), row["trained"], f"{row['floor_ms']:.1f} ms",
                f"{row['peft_adds']:.0%}", f"{row['ours_adds']:.0%}", ratio(row["ratio"], row["low"], row["high"]),
            )
            for row in rows
        ),
    )  # fmt: skip
    parts = {
        "all": rows,
        **{f"{tokens:,} tokens": [r for r in rows if r["tokens"] == tokens] for tokens in (128, 1024, 4096)},
        **{f"rank {rank}": [r for r in rows if r["rank"] == rank] for rank in (8, 64)},
        **{f"{which} trained": [r for r in rows if r["trained"] == which] for which in ("A and B", "B")},
    }
    means = table(("cells", "geometric mean of the ratio", "largest"), ((
        key, f"{geometric_mean([r['ratio'] for r in chosen]):.2f}", f"{max(r['ratio'] for r in chosen):.2f}",
    ) for key, chosen in parts.items()))  # fmt: skip
    return f"{means}\n{cells}"


def orders() -> str:
    """Return the table of single layers against RunLoRA's orders."""
    return table(
        ("layer", "tokens", "PEFT adds", "RunLoRA's best order adds", "asymlora adds", "asymlora / RunLoRA (5-95 %)"),
        (
            (
                f"{row['in']} to {row['out']}", f"{row['tokens']:,}", f"{row['peft']:.0%}", f"{row['runlora']:.0%}",
                f"{row['ours']:.0%}", ratio(row["ratio"], row["low"], row["high"]),
            )
            for row in stored("step_overhead_orders")["rows"]
        ),
    )  # fmt: skip


def models() -> str:
    """Return the table of whole training steps."""
    return table(
        ("model", "rank", "trained", "PEFT", "asymlora / PEFT (5-95 %)", "PEFT under `speed_up` / PEFT (5-95 %)"),
        (
            (
                row["model"], str(row["rank"]), row["trained"], f"{row['peft_ms']:.0f} ms",
                ratio(*row["ours"]), ratio(*row["sped_up"]),
            )
            for row in stored("step_overhead_models")["rows"]
        ),
    )  # fmt: skip


def saved() -> str:
    """Return the table of bytes kept for backward."""
    counted = ("floor_bytes", "peft_bytes", "ours_bytes", "codes_and_bits")
    return table(
        ("model", "base", "dropout", "trained", "frozen base", "PEFT adds", "asymlora adds", "codes and bits"),
        (
            (
                row["model"], row["base"], str(row["dropout"]), row["trained"],
                *(f"{row[key] / 1024:,.0f} KiB" for key in counted),
            )
            for row in stored("saved_activations")["rows"]
        ),
    )  # fmt: skip


def attaching() -> str:
    """Return the table of attachment times."""
    (row,) = stored("attach_time")["rows"]
    ways = (("asymlora", "asymlora_s"), ("PEFT, `get_peft_model`", "peft_s"), ("one full SVD for each layer", "svd_s"))
    return table(
        ("way", "seconds", "times asymlora"),
        ((name, f"{row[key]:.2f}", f"{row[key] / row['asymlora_s']:.1f}") for name, key in ways),
    )


def masks() -> str:
    """Return the table of dropout masks."""
    heads = (
        "tokens x width",
        "torch, mask kept",
        "bits: forward",
        "bits: backward",
        "seed again, Bernoulli",
        "seed again, words",
    )
    return table(
        heads,
        (
            (f"{row['shape'][0]:,} x {row['shape'][1]:,}", *(f"{1e3 * s:.2f} ms" for s in row["seconds"].values()))
            for row in stored("dropout_masks")["rows"]
        ),
    )


def files() -> str:
    """Return the table of adapter files."""
    return table(
        ("model", "adapters on", "rank", "PEFT's weight file", "seed-compressed folder", "share"),
        (
            (
                row["model"], row["targets"], str(row["rank"]), f"{row['peft_file_bytes']:,}",
                f"{row['seed_folder_bytes']:,}", f"{row['ratio']:.1%}",
            )
            for row in stored("adapter_bytes")["rows"]
        ),
    )  # fmt: skip


def environment(name: str) -> str:
    """Return one line on what a result was measured with."""
    facts = stored(name)["environment"]
    packages = ", ".join(f"{key} {value}" for key, value in facts["packages"].items() if key != "asymlora")
    return (
        f"Python {facts['python']}, {packages}; {facts['system']} ({facts['processor']}), {facts['threads']} threads.\n"
    )


PARTS: dict[str, Callable[[], str]] = {
    "GRID": lambda: grid("step_overhead_grid"),
    "DROPOUT": lambda: grid("step_overhead_dropout"),
    "ORDERS": orders,
    "MODELS": models,
    "SAVED": saved,
    "ATTACH": attaching,
    "MASKS": masks,
    "FILES": files,
    "ENVIRONMENT": lambda: environment("step_overhead_grid"),
}
TEMPLATE = Path(__file__).with_name("performance_page.md")


def render() -> str:
    """Return the page: the template with every ``{{PART}}`` replaced."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in PARTS.items():
        text = (
            text.replace(f"{{{{{name}}}}}\n", part())
            if f"{{{{{name}}}}}\n" in text
            else text.replace(f"{{{{{name}}}}}", part())
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
