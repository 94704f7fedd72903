"""Image classification: one image, one label, in one environment or several.

With several, DomainBed's single-source protocol: trained and chosen on one environment, scored on its own test part and
on each other one. Models are in `image_models`, pixels in `images`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asymlora.tasks.augmentation import Augmentation
from asymlora.tasks.environments import divided
from asymlora.tasks.head_draws import HeadDraws
from asymlora.tasks.image_models import ImageModel, head_features, load_image_model
from asymlora.tasks.images import ImageItems, decode, refuse_broken
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.linear_probe import fit_probe
from asymlora.tasks.sources import load_table
from asymlora.tasks.splits import Part
from asymlora.tasks.task import Answer, Batch, Done, HeadAlone, Loaded, Prepared
from asymlora.tasks.text_scoring import ClassificationScoring, f1_of_labels, known_metric

FEATURE_BATCH = 64


class ImageScoring(ClassificationScoring):
    """Accuracy, macro-F1 and cross-entropy.

    Args:
        labels: Number of labels.
        metric: By which choices are made.
    """

    METRICS = ("accuracy", "macro_f1", "loss")

    def score(self, evidence: np.ndarray) -> dict[str, float]:
        """Return the share of right labels, the mean F1 over the labels that were given or wanted, and the loss."""
        scores = super().score(evidence)
        macro_f1 = float(f1_of_labels(self.counts(evidence)).mean())
        return {"accuracy": scores["accuracy"], "macro_f1": macro_f1, "loss": scores["loss"]}


def prepare(model: ModelRecipe, data: DataRecipe, *, task: str, head_seed: int) -> Prepared:
    """Load data and model. The data come first: they are quicker to be wrong.

    With ``data.train_environment``, training, choices and test rows are of that environment. Each other one is scored
    on its rows of the source's test part where it has some, else on all its rows: none of them was trained on. Without,
    all environments are trained on together, and each one's test rows are scored by themselves.

    Args:
        model: Which model.
        data: Which images, and how they are divided.
        task: Name of the task.
        head_seed: Seed of the fresh head.

    Returns:
        Model, images and measures.
    """
    known_metric(data.metric or "accuracy", ImageScoring.METRICS)  # before the images are read
    table = load_table(data, roles=("image", "label", "environment"))
    parts, elsewhere, notes = divided(table, data)
    scoring = ImageScoring(len(parts.label_names), data.metric or "accuracy")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(head_seed)
        loaded = load_image_model(model, label_names=parts.label_names, size=data.image_size)

    augmentation = Augmentation(seed=data.seed) if data.augment else None
    train = _items(loaded, parts.train, augmentation)
    validation, test = _items(loaded, parts.validation), _items(loaded, parts.test)
    environments = {name: _items(loaded, part) for name, part in elsewhere.items()}
    refuse_broken({"train": train, "validation": validation, "test": test, **environments})

    def fit_head(done: Done) -> HeadAlone:
        return _fit_head(loaded, (train.plain(), validation, test), scoring, done)

    return Prepared(
        model=loaded.model,
        processor=loaded.settings,
        collator=collate,
        train=train,
        validation=validation,
        test=test,
        scoring=scoring,
        heads=loaded.heads,
        draw_head=HeadDraws(
            loaded.model,
            loaded.heads,
            seed=head_seed,
            reload=lambda: load_image_model(model, label_names=parts.label_names, size=data.image_size).model,
        ),
        label_names=parts.label_names,
        loss=mean_loss,
        fit_head=fit_head,
        environments=environments,
        notes=(*notes, *parts.notes()),
        dropped=parts.dropped,
    )


def load(model: ModelRecipe, data: DataRecipe, *, task: str, label_names: tuple[str, ...]) -> Loaded:
    """Load a model for questions, without any data.

    Args:
        model: Which model.
        data: What the size of images is.
        task: Name of the task.
        label_names: Names of the labels, by index.

    Returns:
        The model; it is asked with paths of images.
    """
    loaded = load_image_model(model, label_names=label_names, size=data.image_size)

    def answer(given: list[str]) -> list[Answer]:
        return [_answer(loaded, path, label_names) for path in given]

    return Loaded(
        model=loaded.model,
        processor=loaded.settings,
        answer=answer,
        save=lambda to: loaded.save(Path(to)),
        heads=loaded.heads,
    )


def collate(items: list[dict[str, Any]]) -> Batch:
    """Return items as one batch.

    Args:
        items: What `ImageItems` gives.

    Returns:
        ``pixel_values``, shape ``(rows, 3, size, size)``, and ``labels``, shape ``(rows,)``.
    """
    labels = torch.tensor([item["labels"] for item in items])
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": labels}


def mean_loss(outputs: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Return the cross-entropy in nats, divided by the number of images in all batches of the step.

    Args:
        outputs: The model's, with ``logits`` of shape ``(rows, labels)``.
        labels: Shape ``(rows,)``.
        num_items: Images of the step; None: those of this batch.

    Returns:
        A scalar.
    """
    total = nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (len(labels) if num_items is None else num_items)


def _answer(loaded: ImageModel, path: str, label_names: tuple[str, ...]) -> Answer:
    pixels = loaded.settings.values(loaded.settings.centre(decode(path)))
    loaded.model.eval()
    with torch.inference_mode():
        logits = loaded.model(pixel_values=pixels[None].to(loaded.model.device)).logits.float()
    best = int(logits.argmax())
    return Answer(given=path, answer=label_names[best], probability=float(logits.softmax(-1)[0, best]))


def _fit_head(
    loaded: ImageModel, parts: tuple[ImageItems, ImageItems, ImageItems], scoring: ImageScoring, done: Done
) -> HeadAlone:
    train, validation, test = ((head_features(loaded.model, loaded.head, _batches(p), done=done), p) for p in parts)

    sign = 1 if scoring.greater_is_better else -1

    def metric(logits: np.ndarray) -> float:
        return sign * scoring.score(scoring.evidence(logits, validation[1]))[scoring.metric]

    probe = fit_probe(
        (train[0], train[1].labels),
        (validation[0], validation[1].labels),
        labels=len(loaded.model.config.id2label or {}),
        metric=metric,
    )

    def copy_to_model() -> None:
        probe.copy_to(loaded.model.get_submodule(loaded.head))

    return HeadAlone(
        evidence=scoring.evidence(probe.logits(test[0]), test[1]),
        validation=sign * probe.validation_score,
        copy_to_model=copy_to_model if loaded.reads_head else None,
    )


def _items(loaded: ImageModel, part: Part, augmentation: Augmentation | None = None) -> ImageItems:
    images, settings = part.columns["image"], loaded.settings
    return ImageItems(images, part.labels, settings=settings, augmentation=augmentation, tokens=loaded.tokens)


def _batches(items: ImageItems) -> Iterator[Batch]:
    for start in range(0, len(items), FEATURE_BATCH):
        yield collate([items[i] for i in range(start, min(start + FEATURE_BATCH, len(items)))])
