from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.preparing import prepare_task


def test_the_digest_is_of_the_rows_and_their_labels(small_encoder: Path, small_data: Path) -> None:
    model = ModelRecipe(name=str(small_encoder), pooling="mean")
    data = DataRecipe(name=str(small_data), group="film", max_tokens=16)
    one, same = (prepare_task("text_classification", model, data, head_seed=seed) for seed in (0, 1))
    assert one.digest() == same.digest()
    others = [replace(data, seed=1), replace(data, max_tokens=3), replace(data, max_rows=20)]
    digests = {prepare_task("text_classification", model, other, head_seed=0).digest() for other in others}
    assert len({one.digest(), *digests}) == 4
    assert replace(one, train=one.test, test=one.train).digest() != one.digest()
    assert replace(one, label_names=("rotten", "fresh")).digest() != one.digest()
