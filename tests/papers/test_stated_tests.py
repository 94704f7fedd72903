from __future__ import annotations

from asymlora.papers.stated_tests import closing_seeds, tuning_seeds
from asymlora.reproduce.artefact import MOST_SEEDS


def test_a_seed_that_chooses_a_rate_is_never_quoted() -> None:
    assert not set(closing_seeds(MOST_SEEDS)) & set(tuning_seeds(MOST_SEEDS))
    assert closing_seeds(6) == closing_seeds(MOST_SEEDS)[:6]
    assert tuning_seeds(2) == (200, 201) == tuning_seeds(MOST_SEEDS)[:2]
