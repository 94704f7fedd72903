from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import asymlora as al
from asymlora.checkpoint import read_adapter
from asymlora.errors import AdapterFileError, AlreadyAttachedError, NoTargetError, WholeModelSaveError
from cases import MODELS, PRESET_NAMES, ModelCase, fill_factors

BERT = MODELS[0]
EVERY_MODEL = pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
CONFIG, WEIGHTS, OWN = "adapter_config.json", "adapter_model.safetensors", "asymlora.json"


def _filled(case: ModelCase = BERT, preset: str = "b_only", **fields: Any) -> nn.Module:
    spec = al.AdapterSpec.parse(
        preset, **{"rank": 2, "targets": case.targets, "modules_to_save": (case.head,), **fields}
    )
    model = al.attach(case.build(), spec)
    fill_factors(model)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return al.save_adapter(_filled(), tmp_path / "adapter")


def _edit_config(folder: Path, **values: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@EVERY_MODEL
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_a_saved_adapter_comes_back_bit_for_bit_with_its_spec(case: ModelCase, preset: str, tmp_path: Path) -> None:
    model = _filled(case, preset)
    al.save_adapter(model, tmp_path / "adapter")
    back = al.load_adapter(case.build(), tmp_path / "adapter")
    assert torch.equal(case.logits(back), case.logits(model))
    for one, other in zip(al.sites(model), al.sites(back), strict=True):
        assert one.name == other.name
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
        assert one.scaling == other.scaling
    flags = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (model, back)]
    assert flags[0] == flags[1]


@EVERY_MODEL
def test_what_peft_writes_is_read_with_equal_logits(case: ModelCase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3, lora_alpha=7, use_rslora=True, target_modules=list(case.targets), modules_to_save=[case.head]
    )
    theirs = peft.get_peft_model(case.build(), config)  # pyright: ignore[reportArgumentType]
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    # PEFT matches these by a bare endswith: "norm" is also Llama's "input_layernorm". Who trusts the file says so.
    ours = al.load_adapter(case.build(), tmp_path / "adapter", modules_to_save=[case.head])
    assert (case.logits(theirs) - case.logits(case.build())).abs().max() > 0.1
    assert (case.logits(ours) - case.logits(theirs)).abs().max() <= 1e-5
    assert all(site.A.requires_grad and site.B.requires_grad for site in al.sites(ours))


def test_config_has_exactly_the_keys_that_peft_writes(saved: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"])
    peft.get_peft_model(BERT.build(), config).save_pretrained(str(tmp_path / "theirs"))  # pyright: ignore[reportArgumentType]
    theirs = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    ours = json.loads((saved / CONFIG).read_text())
    assert set(ours) == set(theirs)
    same = set(ours) - {"r", "lora_alpha", "target_modules", "modules_to_save", "auto_mapping", "peft_version"}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_the_start_is_written_as_true_whatever_the_factors_started_as(tmp_path: Path) -> None:
    for preset in PRESET_NAMES:
        folder = al.save_adapter(_filled(preset=preset), tmp_path / preset)
        assert json.loads((folder / CONFIG).read_text())["init_lora_weights"] is True


def test_targets_are_short_endings_where_they_are_exact_and_full_paths_where_not(tmp_path: Path) -> None:
    short = al.save_adapter(_filled(), tmp_path / "short")
    assert json.loads((short / CONFIG).read_text())["target_modules"] == ["query", "value"]
    # "dense" alone would also be the pooler's and the intermediate layer's.
    full = al.save_adapter(_filled(targets=("attention.output.dense",)), tmp_path / "full")
    paths = json.loads((full / CONFIG).read_text())["target_modules"]
    assert paths == [f"bert.encoder.layer.{i}.attention.output.dense" for i in range(2)]


def test_keys_carry_pefts_prefix_and_no_adapter_name(saved: Path) -> None:
    keys = set(load_file(saved / WEIGHTS))
    site = "base_model.model.bert.encoder.layer.0.attention.self.query"
    assert {f"{site}.lora_A.weight", f"{site}.lora_B.weight"} <= keys
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} <= keys
    assert len(keys) == 2 * 4 + 2


def test_the_folder_is_complete_for_us_without_our_own_file(saved: Path) -> None:
    (saved / OWN).unlink()
    assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), saved)), BERT.logits(_filled()))


def test_heads_that_peft_names_and_the_model_lacks_are_no_error(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    peft.get_peft_model(BERT.build(), config).save_pretrained(str(tmp_path / "theirs"))  # pyright: ignore[reportArgumentType]
    assert json.loads((tmp_path / "theirs" / CONFIG).read_text())["modules_to_save"] == ["classifier", "score"]
    model = al.load_adapter(BERT.build(), tmp_path / "theirs")
    assert [n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n] == [
        "classifier.weight",
        "classifier.bias",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(next(k for k in t if "lora_B" in k)), "only lora_A is there"),
        (lambda t: t.update({k: t[k][:1] for k in list(t) if "lora_A" in k}), "the rank is 2"),
        (lambda t: t[next(k for k in t if "lora_A" in k)].fill_(float("nan")), "holds NaN or infinity"),
        (lambda t: t.update({"bert.pooler.dense.weight": torch.ones(1)}), "does not start with"),
        (
            lambda t: t.update(
                {"base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight": torch.ones(1)}
            ),
            "not a factor",
        ),
        (lambda t: [t.pop(k) for k in list(t) if "lora" in k], "no tensor is a LoRA factor"),
        (lambda t: t.update({k: t[k].long() for k in list(t) if "lora_A" in k}), "is torch.int64"),
    ],
)
def test_damaged_tensors_are_refused_by_name(saved: Path, change: Callable[..., Any], words: str) -> None:
    _edit_tensors(saved, change)
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(saved)


def test_all_problems_of_a_file_are_listed_together(saved: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(next(k for k in tensors if "lora_B" in k))
        tensors["stray"] = torch.ones(1)

    _edit_tensors(saved, change)
    with pytest.raises(AdapterFileError, match=r"(?s)stray.*only lora_A|only lora_A.*stray"):
        read_adapter(saved)


def test_a_tensor_that_would_overwrite_the_base_is_refused_and_nothing_is_changed(saved: Path) -> None:
    _edit_tensors(saved, lambda t: t.update({"base_model.model.bert.pooler.dense.bias": torch.ones(16)}))
    model = BERT.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdapterFileError, match=r"bert\.pooler\.dense\.bias would overwrite the base"):
        al.load_adapter(model, saved)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_file_cannot_reach_the_base_by_a_short_ending(saved: Path) -> None:
    _edit_tensors(saved, lambda t: t.update({"base_model.model.bert.pooler.dense.bias": torch.ones(16)}))
    _edit_config(saved, modules_to_save=["classifier", "r"])  # PEFT's rule: "pooler" ends in "r"
    with pytest.raises(AdapterFileError, match="would overwrite the base"):
        al.load_adapter(BERT.build(), saved)


def test_own_file_of_another_format_is_refused(saved: Path) -> None:
    (saved / OWN).write_text(json.dumps({"format": 99}))
    with pytest.raises(AdapterFileError, match=r"format 99; this version reads 1.*complete without it"):
        read_adapter(saved)


def test_an_adapter_of_another_model_lists_what_does_not_fit_and_leaves_the_model_whole(saved: Path) -> None:
    other = next(case for case in MODELS if case.name == "llama").build()
    names = set(other.state_dict())
    with pytest.raises((AdapterFileError, NoTargetError), match=r"has no place|would overwrite"):
        al.load_adapter(other, saved)
    assert set(other.state_dict()) == names


def test_a_wider_model_is_refused_with_both_shapes(saved: Path) -> None:
    from transformers import BertForSequenceClassification

    config = BERT.build().config
    config.hidden_size = 32
    with pytest.raises(AdapterFileError, match=r"query\.lora_A is \(2, 16\), the model needs \(2, 32\)"):
        al.load_adapter(BertForSequenceClassification(config), saved)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"query": 4}}, "rank_pattern"),
        (
            {"lora_alpha": 9.0},
            r"asymlora\.json says rank 2 and scale 2, adapter_config\.json says rank 2 and scale 4\.5",
        ),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused_by_key(saved: Path, values: dict[str, Any], words: str) -> None:
    _edit_config(saved, **values)
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(AdapterFileError, match=f"{re.escape(name)}: is not there"):
        read_adapter(saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, OWN])
def test_a_torn_file_is_refused(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterFileError, match="cannot be read"):
        read_adapter(saved)


def test_loading_onto_an_attached_model_is_refused(saved: Path) -> None:
    with pytest.raises(AlreadyAttachedError):
        al.load_adapter(_filled(), saved)


def test_saving_twice_into_one_folder_replaces_the_first(saved: Path) -> None:
    other = _filled(preset="lora", rank=3)
    al.save_adapter(other, saved)
    assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), saved)), BERT.logits(other))
    assert sorted(f.name for f in saved.iterdir()) == sorted([CONFIG, WEIGHTS, OWN, "README.md"])


class TestWholeModelSaves:
    """No way of saving an attached model leaves a folder that loads with random weights."""

    def test_save_pretrained_writes_the_adapter(self, tmp_path: Path) -> None:
        model = _filled()
        model.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out" / "model.safetensors").exists()
        assert not (tmp_path / "out" / "config.json").exists()
        assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), tmp_path / "out")), BERT.logits(model))

    def test_a_part_refuses_with_what_to_do(self, tmp_path: Path) -> None:
        model = _filled()
        with pytest.raises(WholeModelSaveError, match=r"'bert' is a part of an attached .*asymlora\.merge"):
            model.bert.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_push_to_hub_uploads_the_adapter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import transformers.utils.hub as hub

        uploaded: dict[str, bytes] = {}

        class FakeHub:
            """What the hub's client offers and push_to_hub uses."""

            def create_repo(self, repo_id: str, **_: Any) -> Any:
                return type("Repo", (), {"repo_id": repo_id})()

            def create_branch(self, **_: Any) -> None: ...

            def create_commit(self, *, operations: list[Any], **_: Any) -> str:
                for operation in operations:
                    with operation.as_file() as file:
                        uploaded[operation.path_in_repo] = file.read()
                return "done"

        class FakeCard:
            def save(self, path: str) -> None:
                Path(path).write_text("card")

        monkeypatch.setattr(hub, "hf_api", FakeHub)
        monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: FakeCard())
        for name in ("create_commit", "create_branch"):
            if hasattr(hub, name):
                monkeypatch.setattr(hub, name, getattr(FakeHub(), name))
        model = _filled()
        model.push_to_hub("someone/adapter")
        assert {CONFIG, WEIGHTS, OWN} <= set(uploaded)
        assert "model.safetensors" not in uploaded
        for name, content in uploaded.items():
            (tmp_path / name).write_bytes(content)
        assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), tmp_path)), BERT.logits(model))

    def test_save_pretrained_does_not_push(self, tmp_path: Path) -> None:
        with pytest.raises(WholeModelSaveError, match=r"model\.push_to_hub"):
            _filled().save_pretrained(tmp_path / "out", push_to_hub=True)

    def test_a_stock_trainer_writes_adapter_folders(self, tmp_path: Path) -> None:
        from transformers import Trainer, TrainingArguments

        model = _filled()
        rows = [{**{k: v[0] for k, v in BERT.inputs().items()}, "labels": torch.tensor(1)} for _ in range(4)]
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
        )
        Trainer(model, arguments, train_dataset=rows).train()  # pyright: ignore[reportArgumentType]
        checkpoint = tmp_path / "checkpoint-2"
        assert not (checkpoint / "model.safetensors").exists()
        assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), checkpoint)), BERT.logits(model))

    def test_a_parent_that_knows_of_no_adapter_saves_a_folder_that_loads_as_the_base(self, tmp_path: Path) -> None:
        from transformers import BertForSequenceClassification

        model = BERT.build()
        al.attach(model.bert, al.AdapterSpec.b_only(rank=2, targets=BERT.targets))
        fill_factors(model)
        model.save_pretrained(tmp_path / "out")
        back, report = BertForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not report["missing_keys"]
        assert torch.equal(BERT.logits(back), BERT.logits(BERT.build()))

    def test_an_adapter_is_not_saved_from_a_parent_under_names_that_are_not_its_own(self, tmp_path: Path) -> None:
        model = BERT.build()
        al.attach(model.bert, al.AdapterSpec.b_only(rank=2, targets=BERT.targets))
        with pytest.raises(WholeModelSaveError, match="attached to the part 'bert'"):
            al.save_adapter(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        al.save_adapter(model.bert, tmp_path / "out")

    def test_a_merged_model_saves_whole_again(self, tmp_path: Path) -> None:
        from transformers import BertForSequenceClassification

        model = al.merge(_filled())
        model.save_pretrained(tmp_path / "out")
        back, report = BertForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not report["missing_keys"]
        assert torch.equal(BERT.logits(back), BERT.logits(model))
