from __future__ import annotations

from asymlora.papers import models_and_data
from asymlora.reproduce.artefact import DataSet


def test_data_sets_name_the_commit_that_they_are_of() -> None:
    sets = [value for value in vars(models_and_data).values() if isinstance(value, DataSet)]
    assert len({data.place for data in sets}) == len(sets) > 0
    assert all("github.com/" in data.source and "commit " in data.source for data in sets)
