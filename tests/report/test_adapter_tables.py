from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from rich.console import Console

from asymlora.diagnostics.adapter_pairs import compare_adapters
from asymlora.diagnostics.adapter_records import adapter_records
from asymlora.diagnostics.adapter_screen import screen
from asymlora.diagnostics.site_factors import SiteFactors
from asymlora.report.adapter_tables import (
    adapter_tables,
    findings_table,
    pair_tables,
    plain,
    short_names,
    without_shared_start,
)
from frozen_draws import gaussian

ROLES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
NAMES = [f"model.layers.{layer}.{role}" for layer in range(12) for role in ROLES]


def _adapter(names: list[str] = NAMES, *, seed: int = 0, rank: int = 4, start: bool = True) -> list[SiteFactors]:
    sites: list[SiteFactors] = []
    for i, name in enumerate(names):
        A, B = gaussian(rank, 16, seed=seed + 2 * i), gaussian(12, rank, seed=seed + 2 * i + 1)
        starts = (A / 1.25, torch.zeros_like(B)) if start else (None, None)
        sites.append(SiteFactors(name=name, kind="linear", A=A, B=B, scaling=0.5, starts=starts))
    return sites


def _printed(renderable: Any, *, width: int = 80) -> str:
    console = Console(width=width, record=True, color_system=None)
    with console.capture() as capture:
        console.print(renderable, highlight=False)
    return capture.get()


def test_a_group_is_one_line_with_its_medians() -> None:
    records = adapter_records(_adapter())
    text = _printed(adapter_tables(records, name="mine", merge_note="left out."))
    assert "mine: 36 sites, rank 4, 4,032 values" in text
    (line,) = [line for line in text.splitlines() if line.startswith("q_proj")]
    norms = sorted(row["norm_A"] for row in records if row["group"].endswith("q_proj"))
    assert line.split()[1:3] == ["12", f"{(norms[5] + norms[6]) / 2:.2f}"]
    assert line.split()[-1] == "0.25"  # |A - A_0| / |A_0| with A = 1.25 A_0
    assert "B-B0" not in text
    assert "Merging: left out." in text


def test_extremes_and_cuts_name_their_sites() -> None:
    sites = _adapter()
    sites[7].B.mul_(9)
    records = adapter_records(sites)
    text = _printed(adapter_tables(records, name="mine", merge_note="no"))
    (line,) = [line for line in text.splitlines() if line.startswith("size of B")]
    assert line.split()[-1] == "2.self_attn.v_proj"
    cut = next(line for line in text.splitlines() if line.startswith("2  "))
    lost = sum((row["norm_update"] * row["truncation_errors"][0]) ** 2 for row in records)
    whole = sum(row["norm_update"] ** 2 for row in records)
    assert cut.split()[1] == f"{(lost / whole) ** 0.5:.0%}"


def test_every_site_has_its_line_where_that_is_asked_for() -> None:
    text = _printed(
        adapter_tables(adapter_records(_adapter()), name="mine", every_site=True, merge_note="no"), width=120
    )
    lines = text.splitlines()
    assert all(any(line.startswith(f"{layer}.{role} ") for line in lines) for layer in range(12) for role in ROLES)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("every_site", [False, True])
def test_tables_fit_the_terminal_and_lose_no_number(width: int, every_site: bool) -> None:
    sites, others = _adapter(), _adapter(seed=1000)
    weights = {site.name: gaussian(12, 16, seed=3) for site in sites}
    records = adapter_records(sites, weights=weights)
    compared = compare_adapters({"a-long-name-of-a-run": sites, "another-long-name": others, "three": _adapter(seed=9)})
    tables = (
        adapter_tables(records, name="mine", every_site=every_site),
        pair_tables(compared.records, alone=compared.alone, every_site=every_site),
        pair_tables(compare_adapters({"one": sites, "two": others}).records, alone={}, every_site=every_site),
    )
    for table in tables:
        text = _printed(table, width=width)
        assert max(map(len, text.splitlines())) <= width
        # Only names may be shortened: no number ends in an ellipsis.
        assert not re.search(r"(?<![\w.])-?\d+(\.\d*)?%?…", text)


def test_merging_shows_error_and_what_stands_still() -> None:
    sites = _adapter(["h.0.q"])
    (row,) = records = adapter_records(sites, weights={"h.0.q": 100 * gaussian(12, 16, seed=3)})
    text = _printed(adapter_tables(records, name="mine"))
    (line,) = [line for line in text.splitlines() if line.startswith("bfloat16")]
    assert line.split()[1] == f"{row['merge_error_bfloat16']:.0%}"
    assert line.split()[-1] == f"{row['relative_update']:.2%}"
    assert any(line.startswith("float16") for line in text.splitlines())


def test_zero_and_broken_adapters_print() -> None:
    sites = _adapter(["h.0.q", "h.1.q"], start=False)
    for site in sites:
        site.B.zero_()
    text = _printed(adapter_tables(adapter_records(sites), name="zero", merge_note="no"))
    assert "0.00" in text
    assert "Cut to" not in text
    sites[0].A[0, 0] = float("inf")
    assert "h" in _printed(adapter_tables(adapter_records(sites), name="broken", merge_note="no"))
    compared = compare_adapters({"one": sites[1:], "two": _adapter(["h.1.q"])})
    text = _printed(pair_tables(compared.records, alone={}))
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["B", "1"]]
    assert line.split()[2:7] == ["zero", "zero", "zero", "zero", "-"]
    assert "everywhere" in text


def test_one_pair_is_shown_by_group_and_several_by_pair() -> None:
    sites = {"one": _adapter(), "two": _adapter(seed=500), "three": _adapter(seed=900)}
    one = compare_adapters({name: sites[name] for name in ("one", "two")})
    text = _printed(pair_tables(one.records, alone=one.alone))
    assert "How alike: one ~ two" in text
    known = sorted(r["cca"] for r in one.records if r["group"].endswith("q_proj") and r["factor"] == "A")
    (line,) = [line for line in text.splitlines() if line.startswith("q_proj")]
    assert line.split()[1:5] == ["A", "12", f"{(known[5] + known[6]) / 2:.2f}", "0.25"]
    every = compare_adapters(sites)
    text = _printed(pair_tables(every.records, alone={"one": ["x.y"]}))
    assert all(pair in text for pair in ("one ~ two", "one ~ three", "two ~ three"))
    assert "Not in every adapter, of one: x.y" in text


def test_findings_are_listed_with_their_remedy_and_their_absence_too() -> None:
    sites = _adapter()
    assert "nothing stands out" in _printed(findings_table([], name="mine"))
    sites[0].B.zero_()
    text = _printed(findings_table([v.to_dict() for v in screen(adapter_records(sites))], name="mine"))
    assert "Screen of mine: 1 verdict" in text
    assert "no_update" in text
    assert "-> Look whether" in text


def test_names_in_a_file_steer_no_terminal() -> None:
    hostile = "h.0.[bold red]\x1b[2J\nq"
    sites = _adapter([hostile, "h.1.q"])
    records = adapter_records(sites)
    verdicts = [v.to_dict() for v in screen(adapter_records(_adapter([hostile])[:1]))]
    for table in (
        adapter_tables(records, name="x\x1b[0m", merge_note="no", every_site=True),
        adapter_tables(records, name="x", merge_note="no"),
        findings_table([{"name": "no_update", "says": hostile, "means": "", "remedy": ""}, *verdicts], name="x"),
        pair_tables(compare_adapters({"a\x1b": sites, "b": sites}).records, alone={"a": [hostile]}, every_site=True),
    ):
        text = _printed(table, width=120)
        assert "\x1b" not in text
    assert "[bold red]" in text
    assert plain("a\x1b\nb é") == "a??b é"


def test_short_names_still_tell_apart() -> None:
    groups = ["h.*.attn.output.dense", "h.*.output.dense", "h.*.q"]
    assert short_names(groups) == {
        groups[0]: "attn.output.dense",
        groups[1]: "*.output.dense",
        groups[2]: "q",
    }
    # A path that is the ending of another.
    assert short_names(["block.q", "q"]) == {"block.q": "block.q", "q": "q"}
    assert without_shared_start(["a.b.c"]) == {"a.b.c": "a.b.c"}
    assert without_shared_start(["a.b", "a.b.c"]) == {"a.b": "b", "a.b.c": "b.c"}
    assert without_shared_start([]) == {}


def test_a_long_pair_names_both_in_a_narrow_terminal() -> None:
    names = [f"minilm_trec_seed_{i}" for i in range(3)]
    compared = compare_adapters({name: _adapter(seed=100 * i) for i, name in enumerate(names)})
    lines = _printed(pair_tables(compared.records, alone={})).splitlines()
    (first,) = [i for i, line in enumerate(lines) if line.startswith(f"{names[1]} ~")]
    assert lines[first + 1].startswith(names[2])


def test_a_site_that_allows_no_smaller_cut_keeps_its_loss_in_that_of_all() -> None:
    # Rank 2 with equal singular values: cut to rank 1 it loses sqrt(1/2), and there is no further cut.
    eye = torch.eye(4, dtype=torch.float64)
    small = SiteFactors(name="h.0.q", kind="linear", A=eye[:2], B=eye[:, :2], scaling=1.0)
    large = SiteFactors(name="h.0.k", kind="linear", A=eye, B=eye, scaling=1.0)
    lines = _printed(adapter_tables(adapter_records([small, large]), name="mine", merge_note="no")).splitlines()
    (half,), (quarter,) = ([line.split()[1] for line in lines if line.startswith(f"1/{n} ")] for n in (2, 4))
    assert (half, quarter) == ("71%", "82%")  # sqrt((1 + 2) / 6), sqrt((1 + 3) / 6)
