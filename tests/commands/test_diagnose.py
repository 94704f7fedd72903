from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

import asymlora as al
from asymlora.cli import main
from asymlora.commands.diagnose import adapter_names
from asymlora.diagnostics.similarity import A_similarity, B_similarity
from asymlora.train.recipe import Recipe
from cases import edit_tensors, small_reviews

PEFT_FILES = Path(__file__).parents[1] / "peft_files" / "0.21.2"
QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["diagnose", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["diagnose", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    assert not shown.out
    return shown.err


@pytest.fixture(scope="module")
def folders(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of one encoder: ours in both forms, and two that PEFT made with other ranks."""
    place = tmp_path_factory.mktemp("adapters")
    made: dict[str, Path] = {}
    for seed in (0, 1):
        model = al.attach(
            BertModel.from_pretrained(small_encoder), al.AdapterSpec.b_only(rank=2, targets=["query"], seed=seed)
        )
        with torch.no_grad():
            for site in al.sites(model):
                site.B.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(seed))
        made[f"ours-{seed}"], made[f"seeds-{seed}"] = place / f"ours-{seed}", place / f"seeds-{seed}"
        al.save_adapter(model, made[f"ours-{seed}"])
        al.save_adapter(model, made[f"seeds-{seed}"], compress=True)
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=3, target_modules=r".*\.(query|value)" if seed else ["query"], use_rslora=bool(seed))
        theirs: Any = peft.get_peft_model(BertModel.from_pretrained(small_encoder), config)  # pyright: ignore
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        made[f"peft-{seed}"] = place / f"peft-{seed}"
        theirs.save_pretrained(str(made[f"peft-{seed}"]))
    return made


def test_one_adapter_has_its_sites_its_screen_and_a_word_on_merging(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys, folders["peft-0"])
    assert found["adapter"] == "peft-0"
    assert [row["site"] for row in found["sites"]] == [QUERY, QUERY.replace("0", "1")]
    stored = load_file(folders["peft-0"] / "adapter_model.safetensors")
    A, B = (stored[f"base_model.model.{QUERY}.lora_{letter}.weight"].double() for letter in "AB")
    row = found["sites"][0]
    assert row["norm_update"] == pytest.approx((8 / 3 * B @ A).norm().item(), rel=1e-6)
    assert row["merge_error_bfloat16"] is row["moved_A"] is None
    assert "--model" in found["merging"]
    assert found["findings"] == []
    assert main(["diagnose", str(folders["peft-0"])]) == 0
    shown = capsys.readouterr().out
    assert "peft-0: 2 sites, rank 3, 192 values" in shown
    assert "Merging: left out, as it needs the base weights. Add --model" in shown
    assert "nothing stands out" in shown


def test_the_base_model_says_what_merging_loses(
    folders: dict[str, Path], small_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys, folders["peft-1"], "--model", small_encoder)
    assert found["merging"] is None
    base = load_file(small_encoder / "model.safetensors")[f"{QUERY}.weight"].bfloat16().double()
    stored = load_file(folders["peft-1"] / "adapter_model.safetensors")
    A, B = (stored[f"base_model.model.{QUERY}.lora_{letter}.weight"].double() for letter in "AB")
    update = 8 / 3**0.5 * B @ A
    gap = (base + update).bfloat16().double() - base - update
    (row,) = [row for row in found["sites"] if row["site"] == QUERY]
    assert row["merge_error_bfloat16"] == pytest.approx((gap.norm() / update.norm()).item(), rel=1e-6)
    assert row["merge_error_float16"] < row["merge_error_bfloat16"]
    assert main(["diagnose", str(folders["peft-1"]), "--model", str(small_encoder), "--sites"]) == 0
    shown = capsys.readouterr().out
    assert "Merged into the base" in shown
    assert "0.attention.self.query" in shown


def test_both_of_our_forms_say_the_same_and_know_their_start(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, seeds = (_json(capsys, folders[name]) for name in ("ours-0", "seeds-0"))
    assert ours["sites"] == seeds["sites"]
    assert all(row["moved_A"] == 0 and row["trains_A"] is False and row["trains_B"] for row in ours["sites"])


def test_pairs_are_those_of_the_functions_whatever_made_the_folders(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("peft-0", "peft-1", "ours-0", "ours-1")
    found = _json(capsys, folders["peft-0"], "--against", *(folders[name] for name in names[1:]))
    assert found["adapters"] == list(names)
    assert len({row["pair"] for row in found["pairs"]}) == 6
    stored = {name: load_file(folders[name] / "adapter_model.safetensors") for name in names}
    for letter, function in (("A", A_similarity), ("B", B_similarity)):
        key = f"base_model.model.{QUERY}.lora_{letter}.weight"
        for row in found["pairs"]:
            if (row["site"], row["factor"]) == (QUERY, letter):
                wanted = function(stored[row["first"]][key], stored[row["second"]][key])
                assert row["cca"] == pytest.approx(wanted, abs=1e-9)
    assert found["alone"] == {"peft-1": [f"encoder.layer.{n}.attention.self.value" for n in (0, 1)]}
    assert main(["diagnose", str(folders["ours-0"]), "--against", str(folders["ours-1"])]) == 0
    shown = capsys.readouterr().out
    assert "How alike: ours-0 ~ ours-1" in shown
    assert "Screen of ours-1: nothing stands out" in shown


def test_a_run_is_taken_with_its_adapter_and_its_model(
    folders: dict[str, Path], small_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folders["ours-0"], run / "adapter")
    recipe = Recipe.from_dict({"model": {"name": str(small_encoder)}}).to_yaml()
    (run / "recipe.yaml").write_text(recipe)
    found = _json(capsys, run)
    assert found["adapter"] == "run"
    assert found["merging"] is None
    assert all(row["merge_error_bfloat16"] > 0 for row in found["sites"])
    assert _json(capsys, run / "adapter")["sites"][0]["norm_A"] == found["sites"][0]["norm_A"]
    # The model may be gone by now: the rest is said all the same, unless it was asked for by name.
    (run / "recipe.yaml").write_text(recipe.replace(str(small_encoder), str(tmp_path / "gone")))
    assert "no model folder" in _json(capsys, run)["merging"]
    assert "no model folder" in _refused(capsys, run, "--model", tmp_path / "gone")
    # A run that has not ended has no adapter.
    shutil.rmtree(run / "adapter")
    assert "--resume" in _refused(capsys, run)
    (run / "recipe.yaml").write_text(recipe.replace("method: adapter", "method: head"))
    assert "trained 'head', which has no factors" in _refused(capsys, run)


@pytest.mark.optional  # a run of training, several seconds
def test_a_run_of_finetune_is_diagnosed(
    small_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["text,label,film", *(",".join(row[k] for k in ("text", "label", "film")) for row in small_reviews(60))]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    options = ("--model.name", str(small_encoder), "--data.name", str(tmp_path / "rows.csv"), "--train.steps", "3")
    assert main(["finetune", *options, "--adapter.preset", "lora", "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    found = _json(capsys, tmp_path / "run")
    assert found["merging"] is None
    assert all(row["merge_error_bfloat16"] > 0 and 0 < row["moved_A"] < 1 for row in found["sites"])


def test_a_figure_and_a_folder_are_saved(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [str(folders["peft-0"]), "--against", str(folders["peft-1"])]
    assert main(["diagnose", *pair, "--save", str(tmp_path / "map.html")]) == 0
    assert f"Saved: {tmp_path / 'map.html'}" in capsys.readouterr().out
    assert "Plotly.newPlot" in (tmp_path / "map.html").read_text(encoding="utf-8")
    for _ in range(2):  # a second time its files are replaced
        assert main(["diagnose", *pair, "--save", str(tmp_path / "all")]) == 0
    assert {file.name for file in (tmp_path / "all").iterdir()} == {
        "records.json", "similarity.html", "similarity_A_cca.html", "similarity_A_cka.html", "similarity_B_cca.html",
        "similarity_B_cka.html",
    }  # fmt: skip
    stored = json.loads((tmp_path / "all" / "records.json").read_text())
    assert len(stored["pairs"]) == 4
    assert main(["diagnose", str(folders["peft-0"]), "--save", str(tmp_path / "one")]) == 0
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"records.json", "spectra.html"}


def test_an_untrained_adapter_is_saved_without_the_maps_that_it_has_not(
    folders: dict[str, Path], small_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = al.attach(BertModel.from_pretrained(small_encoder), al.AdapterSpec.lora(rank=2, targets=["query"]))
    al.save_adapter(model, tmp_path / "fresh")
    found = _json(capsys, tmp_path / "fresh", "--save", tmp_path / "one")
    assert [(f["name"], f["factor"]) for f in found["findings"]] == [("no_update", "B")]
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"records.json"}
    assert (
        main(
            ["diagnose", str(tmp_path / "fresh"), "--against", str(folders["peft-0"]), "--save", str(tmp_path / "two")]
        )
        == 0
    )
    assert "zero" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "two").iterdir()} == {
        "records.json", "similarity.html", "similarity_A_cca.html",
    }  # fmt: skip


def test_mistakes_are_named_before_anything_is_printed(
    folders: dict[str, Path], small_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = folders["peft-0"], folders["peft-1"]
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    wide = al.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), al.AdapterSpec.lora(rank=1, targets="0"))
    al.save_adapter(wide, tmp_path / "other")
    for arguments, message in (
        ((tmp_path / "nowhere",), "There is no adapter folder at"),
        ((tmp_path / "empty",), "adapter_config.json"),
        ((one, "--against", one), "is given twice"),
        ((one, "--against", one / ".." / one.name), "is given twice"),
        ((one, "--against", tmp_path / "other"), "no site in common"),
        ((one, "--against", two, "--model", small_encoder), "Drop one"),
        ((one, "--save", tmp_path / "plot.png"), "neither a figure nor a folder"),
        ((one, "--save", tmp_path / "file.txt"), "neither a figure nor a folder"),
        ((one, "--save", tmp_path / "no" / "such.html"), "there is no folder"),
        ((one, "--model", tmp_path / "nowhere"), "no model folder"),
        ((tmp_path / "other", "--model", small_encoder), "has no 0, where the adapter has factors"),
    ):
        assert message in _refused(capsys, *arguments)


def test_an_adapter_of_a_wider_model_is_refused_with_both_shapes(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders["peft-0"], tmp_path / "wide")
    key = f"base_model.model.{QUERY}.lora_A.weight"
    edit_tensors(tmp_path / "wide", lambda tensors: tensors.update({key: torch.ones(3, 20)}))
    message = _refused(capsys, folders["peft-0"], "--against", tmp_path / "wide")
    assert f"{QUERY} is (16, 16) (out, in) in the one and (16, 20) in the other" in message


@pytest.mark.parametrize("damage", ["torn", "nan", "pickle", "dora"])
def test_damaged_and_hostile_folders_are_refused(
    damage: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(PEFT_FILES / "plain", folder)
    weights = folder / "adapter_model.safetensors"
    if damage == "torn":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "nan":
        edit_tensors(folder, lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    elif damage == "pickle":
        weights.rename(folder / "adapter_model.bin")
    else:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    words = {"torn": "torn", "nan": "NaN", "pickle": "is a pickle", "dora": "use_dora"}
    assert words[damage] in _refused(capsys, folder)
    assert words[damage] in _refused(capsys, folders["peft-0"], "--against", folder)


def test_names_are_the_shortest_that_differ(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run" / "adapter", tmp_path / "b" / "run" / "adapter", tmp_path / "c"]
    assert adapter_names(paths) == ["a/run", "b/run", "c"]
    assert adapter_names([tmp_path / "c", tmp_path / "c" / "adapter"]) == ["c", "adapter"]


def test_embeddings_and_convolutions_are_diagnosed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, PEFT_FILES / "embedding-conv2d")
    kinds = {row["site"]: (row["kind"], row["fan_in"], row["outputs"]) for row in found["sites"]}
    assert kinds == {"plane": ("convolution", 8 * 9, 12), "table": ("embedding", 20, 8)}
    found = _json(capsys, PEFT_FILES / "conv1d")
    assert {row["scaling"] for row in found["sites"]} == {3 / 2, 5 / 2}
