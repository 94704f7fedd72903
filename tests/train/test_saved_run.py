from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asymlora.errors import RunExistsError, RunFolderError
from asymlora.train.recipe import Recipe
from asymlora.train.run import finetune
from asymlora.train.saved_run import load_run, merge_run

TEXTS = ["a very good film", "the dull plot", "unknownword"]


@pytest.fixture(params=["mean", "native"])
def run(request: pytest.FixtureRequest, small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    small_recipe["model"]["pooling"] = request.param
    small_recipe["train"] |= {"steps": 60, "evaluate_every": 20, "lr": 0.02}
    finetune(Recipe.from_dict(small_recipe), output=tmp_path / "run")
    return tmp_path / "run"


def test_predictions_are_labels_with_probabilities(run: Path) -> None:
    predictions = load_run(run).answer(TEXTS)
    assert [p.given for p in predictions] == TEXTS
    assert all(p.answer in ("fresh", "rotten") and p.probability and 0.5 <= p.probability <= 1 for p in predictions)


def test_a_prediction_does_not_depend_on_the_other_texts(run: Path) -> None:
    model = load_run(run)
    assert model.answer(TEXTS)[1] == model.answer([TEXTS[1]])[0]


def test_a_merged_run_predicts_the_same_without_an_adapter(run: Path, tmp_path: Path) -> None:
    out = merge_run(run, tmp_path / "merged")
    merged = load_run(out)
    assert not any("lora" in name for name in merged.model.state_dict())
    for one, other in zip(load_run(run).answer(TEXTS), merged.answer(TEXTS), strict=True):
        assert one.answer == other.answer
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_the_merged_encoder_loads_by_transformers_with_no_weight_missing(run: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    out = merge_run(run, tmp_path / "merged")
    native = AutoConfig.from_pretrained(out).architectures == ["BertForSequenceClassification"]
    loader, options = (AutoModelForSequenceClassification, {}) if native else (AutoModel, {"add_pooling_layer": False})
    model, report = loader.from_pretrained(out, output_loading_info=True, **options)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = load_run(out).model
    mine = ours.state_dict() if native else ours.encoder.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in model.state_dict().items())


def test_merging_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RunExistsError, match="nothing is overwritten"):
        merge_run(run, tmp_path / "there")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no recipe\.yaml in it"):
        load_run(tmp_path)
    with pytest.raises(RunFolderError, match="only a run can be merged"):
        merge_run(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_a_damaged_result_is_a_sentence(run: Path, damage: str) -> None:
    (run / "result.json").write_text(damage)
    with pytest.raises(RunFolderError, match=r"result\.json is damaged"):
        load_run(run)


def test_a_run_that_has_not_ended_says_how_to_go_on(run: Path) -> None:
    (run / "result.json").unlink()
    with pytest.raises(RunFolderError, match="--resume"):
        load_run(run)
