from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asymlora.diagnostics.adapter_pairs import compare_adapters
from asymlora.diagnostics.adapter_records import adapter_records
from asymlora.diagnostics.site_factors import SiteFactors
from asymlora.errors import DataError
from asymlora.report.adapter_figures import similarity_map, spectrum_map
from frozen_draws import gaussian

NAMES = ["h.9.q", "h.10.q", "h.2.q"]


def _adapter(names: list[str], *, seed: int = 0, rank: int = 3) -> list[SiteFactors]:
    return [
        SiteFactors(
            name=name,
            kind="linear",
            A=gaussian(rank, 16, seed=seed + 2 * i),
            B=gaussian(12, rank, seed=seed + 2 * i + 1),
            scaling=1.0,
        )
        for i, name in enumerate(names)
    ]


def test_cells_are_sites_by_pairs_and_stand_in_the_order_of_layers() -> None:
    records = compare_adapters(
        {"one": _adapter(NAMES), "two": _adapter(NAMES, seed=50), "three": _adapter(NAMES[:2])}
    ).records
    figure = similarity_map(records, factor="B", measure="cka").plotly
    (drawn,) = figure.data
    assert list(drawn.y) == ["2.q", "9.q", "10.q"]
    assert list(drawn.x) == ["one<br>two", "one<br>three", "two<br>three"]
    wanted = {(r["site"], r["pair"]): r["cka"] for r in records if r["factor"] == "B"}
    assert drawn.z[1][0] == wanted["h.9.q", "one ~ two"]
    # The third adapter has no such site.
    assert drawn.z[0][1] is None
    assert (drawn.zmin, drawn.zmax) == (0.0, 1.0)
    assert "CKA; by chance: B" in figure.layout.title.text


def test_both_factors_stand_side_by_side() -> None:
    records = compare_adapters({"one": _adapter(NAMES), "two": _adapter(NAMES, seed=50)}).records
    (drawn,) = similarity_map(records).plotly.data
    assert list(drawn.x) == ["A<br>one<br>two", "B<br>one<br>two"]
    wanted = {(r["site"], r["factor"]): r["cca"] for r in records}
    assert list(drawn.z[2]) == [wanted["h.10.q", "A"], wanted["h.10.q", "B"]]


def test_a_zero_factor_leaves_its_cell_empty_and_nothing_but_zeros_is_refused() -> None:
    two = _adapter(NAMES, seed=50)
    two[0].B.zero_()
    records = compare_adapters({"one": _adapter(NAMES), "two": two}).records
    (drawn,) = similarity_map(records, factor="B").plotly.data
    assert [row[0] is None for row in drawn.z] == [False, True, False]
    for site in two:
        site.B.zero_()
    records = compare_adapters({"one": _adapter(NAMES), "two": two}).records
    with pytest.raises(DataError, match="one is zero"):
        similarity_map(records, factor="B")
    assert similarity_map(records, factor="A")


def test_many_sites_make_a_tall_figure_with_every_label() -> None:
    names = [f"h.{layer}.q" for layer in range(100)]
    records = compare_adapters({"one": _adapter(names), "two": _adapter(names, seed=300)}).records
    layout = similarity_map(records).plotly.layout
    assert layout.height >= 100 * 18
    assert layout.yaxis.dtick == 1


def test_a_spectrum_is_drawn_over_its_largest_value() -> None:
    sites = _adapter(NAMES)
    sites[2].B.zero_()
    records = adapter_records(sites)
    (drawn,) = spectrum_map(records).plotly.data
    assert list(drawn.y) == ["9.q", "10.q"]
    values = torch.linalg.svdvals(sites[0].B @ sites[0].A)[:3]
    assert list(drawn.z[0]) == pytest.approx((values / values[0]).tolist(), rel=1e-12)
    for site in sites:
        site.B.zero_()
    with pytest.raises(DataError, match="every update of this adapter is zero"):
        spectrum_map(adapter_records(sites))


def test_names_in_a_file_are_no_markup_of_a_page(tmp_path: Path) -> None:
    names = ["h.<b>x</b><script>alert(1)</script>", "h.q"]
    records = compare_adapters({"one": _adapter(names), "two<i>": _adapter(names, seed=50)}).records
    page = similarity_map(records).save(tmp_path / "map.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    (drawn,) = similarity_map(records).plotly.data
    assert drawn.y[0].startswith("&lt;b>x")
    assert drawn.x[0].endswith("two&lt;i>")
