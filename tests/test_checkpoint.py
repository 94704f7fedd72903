from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import asymlora as al
from asymlora.errors import AdapterFileError, AlreadyAttachedError, WholeModelSaveError
from cases import (
    EVERY_KIND,
    KIND_MODELS,
    MODELS,
    PRESET_NAMES,
    ModelCase,
    edit_tensors,
    fill_factors,
    move_trained,
)

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


EVERY = pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.name)


def _moved(case: ModelCase, **fields: Any) -> nn.Module:
    """An attached model whose trained values have moved and whose frozen ones are as drawn."""
    spec = al.AdapterSpec.parse(
        fields.pop("preset", "b_only"),
        **{"rank": 2, "targets": case.targets, "modules_to_save": (case.head,), **fields},
    )
    return move_trained(al.attach(case.build(), spec))


@EVERY
@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize("compress", [False, True])
def test_either_form_comes_back_bit_for_bit(case: ModelCase, preset: str, compress: bool, tmp_path: Path) -> None:
    model = _moved(case, preset=preset, rank_pattern={case.targets[0]: 4}, alpha_pattern={case.targets[-1]: 3.0})
    folder = al.save_adapter(model, tmp_path / "adapter", compress=compress)
    back = al.load_adapter(case.build(), folder)
    assert torch.equal(case.logits(back), case.logits(model))
    assert {n: p.requires_grad for n, p in back.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert [s.scaling for s in al.sites(back)] == [s.scaling for s in al.sites(model)]


@EVERY_MODEL
def test_patterns_are_one_anchored_key_for_each_module(case: ModelCase, tmp_path: Path) -> None:
    model = _moved(case, rank_pattern={case.targets[0]: 4})
    config = json.loads((al.save_adapter(model, tmp_path / "adapter") / CONFIG).read_text())
    default = config["r"]
    stated = {site.name: site.layer.rank for site in al.sites(model)}
    expected = {f"^{re.escape(name)}": rank for name, rank in stated.items() if rank != default}
    assert config["rank_pattern"] == expected


def test_a_path_that_is_the_ending_of_another_keeps_its_own_rank_and_target(tmp_path: Path) -> None:
    case = KIND_MODELS[1]
    model = _moved(case, targets=("q",), modules_to_save=(), rank_pattern={"q": 2, "block.q": 3})
    folder = al.save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(case.build(), str(folder))  # pyright: ignore[reportArgumentType]
    assert (case.logits(theirs) - case.logits(model)).abs().max() <= 1e-6
    # Where only the shorter one is adapted, no list of endings says so to PEFT.
    edit_tensors(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if "block" in key])
    (folder / OWN).unlink()
    only = al.save_adapter(al.load_adapter(case.build(), folder), tmp_path / "only")
    assert json.loads((only / CONFIG).read_text())["target_modules"] == "q"
    theirs = peft.PeftModel.from_pretrained(case.build(), str(only))  # pyright: ignore[reportArgumentType]
    assert [n for n, _ in theirs.named_modules() if n.endswith("lora_A.default")] == [
        "base_model.model.q.lora_A.default"
    ]


def test_a_corrected_base_is_written_for_the_original_and_read_back_with_its_start(tmp_path: Path) -> None:
    spec = al.AdapterSpec(
        A=al.FactorSpec(init="kaiming_uniform"),
        B=al.FactorSpec(init="gaussian", gain=0.1),
        nonzero_start="correct_base",
        rank=2,
        targets=BERT.targets,
    )
    model = move_trained(al.attach(BERT.build(), spec))
    for compress in (False, True):
        folder = al.save_adapter(model, tmp_path / str(compress), compress=compress)
        back = al.load_adapter(BERT.build(), folder)
        assert torch.equal(BERT.logits(back), BERT.logits(model))
        assert torch.equal(BERT.logits(al.detach(back)), BERT.logits(BERT.build()))
    tensors = load_file(tmp_path / "False" / WEIGHTS)
    assert {tuple(value.shape) for value in tensors.values()} == {(4, 16), (16, 4)}
    assert json.loads((tmp_path / "False" / CONFIG).read_text())["r"] == 4
    (tmp_path / "False" / OWN).unlink()  # then it is a plain adapter of twice the rank
    plain = al.load_adapter(BERT.build(), tmp_path / "False")
    assert (BERT.logits(plain) - BERT.logits(model)).abs().max() <= 1e-5


def test_a_shared_A_is_written_for_each_site_and_shared_again(tmp_path: Path) -> None:
    model = _moved(BERT, targets=("query", "key"), shared_A=(("query", "key"),))
    folder = al.save_adapter(model, tmp_path / "adapter")
    small = al.save_adapter(model, tmp_path / "small", compress=True)
    for saved in (folder, small):
        back = al.load_adapter(BERT.build(), saved)
        one, other, *_ = al.sites(back)
        assert one.A is other.A
        assert torch.equal(BERT.logits(back), BERT.logits(model))
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if "query.lora_A" in key)
    tensors[key] = tensors[key] + 1
    save_file(tensors, folder / WEIGHTS)
    content = json.loads((folder / OWN).read_text())
    (folder / OWN).write_text(json.dumps({"format": 1, "spec": content["spec"]}))
    with pytest.raises(AdapterFileError, match="are one tensor in the model and two in the file"):
        al.load_adapter(BERT.build(), folder)


def test_a_scale_that_was_changed_on_a_layer_is_saved_as_it_is(tmp_path: Path) -> None:
    model = _moved(BERT, scaling="rank_stabilized")
    next(al.sites(model)).layer.scaling = 0.7
    folder = al.save_adapter(model, tmp_path / "adapter")
    back = al.load_adapter(BERT.build(), folder)
    assert next(al.sites(back)).scaling == pytest.approx(0.7, rel=1e-12)
    assert (BERT.logits(back) - BERT.logits(model)).abs().max() <= 1e-6


def test_frozen_values_that_are_no_draw_are_stored_in_the_compressed_form_too(tmp_path: Path) -> None:
    model = _moved(BERT)
    first = next(al.sites(model))
    with torch.no_grad():
        first.A.add_(1.0)
    folder = al.save_adapter(model, tmp_path / "adapter", compress=True)
    stored = [key for key in load_file(folder / "factors.safetensors") if "lora_A" in key]
    assert stored == [f"base_model.model.{first.name}.lora_A.weight"]
    assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), folder)), BERT.logits(model))


def test_peft_fails_clearly_on_the_compressed_form(tmp_path: Path) -> None:
    folder = al.save_adapter(_moved(BERT), tmp_path / "adapter", compress=True)
    assert not (folder / CONFIG).exists()
    with pytest.raises(ValueError, match=CONFIG):
        peft.PeftModel.from_pretrained(BERT.build(), str(folder))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("first", [False, True])
def test_saving_in_the_other_form_leaves_nothing_of_the_first(first: bool, tmp_path: Path) -> None:
    model, folder = _moved(BERT), tmp_path / "adapter"
    al.save_adapter(model, folder, compress=first)
    other = _moved(BERT, seed=5)
    al.save_adapter(other, folder, compress=not first)
    names = {CONFIG, WEIGHTS} if first else {"factors.safetensors"}
    assert {f.name for f in folder.iterdir()} == names | {OWN, "README.md"}
    assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), folder)), BERT.logits(other))


@pytest.mark.parametrize("stopped_at", range(5))
@pytest.mark.parametrize("first", [False, True])
def test_an_interrupted_change_of_form_leaves_the_old_adapter_the_new_one_or_none(
    first: bool, stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, folder = _moved(BERT), _moved(BERT, seed=5), tmp_path / "adapter"
    al.save_adapter(old, folder, compress=first)
    replace, left = Path.replace, iter([True] * stopped_at)

    def stopping(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise OSError("the disk is gone")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stopping)
    with contextlib.suppress(OSError):
        al.save_adapter(new, folder, compress=not first)
    try:
        found = BERT.logits(al.load_adapter(BERT.build(), folder))
    except AdapterFileError:
        return
    assert any(torch.equal(found, BERT.logits(model)) for model in (old, new))


def test_every_file_is_readable_by_whom_the_others_are(tmp_path: Path) -> None:
    folder = al.save_adapter(_moved(BERT), tmp_path / "adapter")
    assert len({f.stat().st_mode for f in folder.iterdir()}) == 1


def test_a_named_adapter_is_read_from_its_sub_folder(tmp_path: Path) -> None:
    model = _moved(BERT)
    al.save_adapter(model, tmp_path / "second")
    assert torch.equal(BERT.logits(al.load_adapter(BERT.build(), tmp_path, name="second")), BERT.logits(model))
    with pytest.raises(AdapterFileError, match=r"third is not there\. Adapters by name here: second"):
        al.load_adapter(BERT.build(), tmp_path, name="third")
    with pytest.raises(AdapterFileError, match="'query' is the name of a module"):
        al.load_adapter(BERT.build(), tmp_path, name="query")


def test_factors_of_64_bits_are_refused_when_saving(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"is torch\.float64.*model\.float\(\)"):
        al.save_adapter(_moved(BERT).double(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_file_in_bf16_fills_float32_factors(tmp_path: Path) -> None:
    model = _moved(BERT).bfloat16()
    folder = al.save_adapter(model, tmp_path / "adapter", compress=True)
    back = al.load_adapter(BERT.build(), folder)
    one, other = next(al.sites(model)), next(al.sites(back))
    assert other.A.dtype is torch.float32
    assert torch.equal(other.A, one.A.float())
    assert not any("lora_A" in key for key in load_file(folder / "factors.safetensors"))


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
