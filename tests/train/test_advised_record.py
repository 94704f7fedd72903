from __future__ import annotations

import json
import statistics

from asymlora.train.advised_record import COMPARED
from asymlora.train.recipe import Recipe
from small_advice import small_record


def test_the_record_is_json_and_its_recipe_loads() -> None:
    record = small_record()
    again = json.loads(json.dumps(record, allow_nan=False))
    assert Recipe.from_dict(again["recipe"]).train.lr == 0.005
    assert again["range_test"]["points"][-1]["loss"] is None
    assert again["range_test"]["probes"][1]["change"] is None
    assert [site["in_recipe"] for site in again["sites"]] == [True, True, True, False, False]


def test_the_pair_of_shares_is_the_median_over_the_adapters_layers_at_the_reference_rank() -> None:
    said = small_record()["summary"]
    assert said["random_A"] == statistics.median([0.4, 0.6, 0.7])
    assert said["random_B"] == 8 / 256
    assert "leaves 60 % within reach of B" in said["pair"]
    assert "leaves 3.1 % within reach of A" in said["pair"]
    assert said["verdict"] == "Train B alone at 3 of 3 layers, from a learning rate of 0.005."


def test_without_gradients_nothing_is_claimed_of_shares() -> None:
    record = small_record()
    lone = [{**site, "random_A": None, "random_B": None} for site in record["sites"]]
    from asymlora.train.advised_record import summary

    said = summary({**record, "sites": lone})
    assert said["random_A"] is said["random_B"] is None
    assert "nothing is known" in said["pair"]


def test_what_a_comparison_found_comes_first_and_nothing_speaks_for_the_advice() -> None:
    caveats = small_record()["caveats"]
    assert caveats[0] == COMPARED
    assert "was not shown to beat" in caveats[0]
    assert sum("default" in text for text in caveats) == 1
