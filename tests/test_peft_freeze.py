"""What survives which call: `asymlora.freeze` on a PEFT model, beside a cleared flag as the control."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import asymlora as al
from asymlora.peft_sites import lora_layers
from peft_models import BERT, CASES, GPT2, IDS, IMAGES, WORDS, PeftCase, add_second, factors, fill_peft, trained


def freeze_by_flag(model: Any, factor: Any = "A") -> None:
    """What PEFT's own LoRA-FA and many scripts do."""
    for tensor in factors(model, factor).values():
        tensor.requires_grad_(False)


# Each call gets the model, the case and a folder, and returns the model to look at.


def _set_adapter(model: Any, case: PeftCase, folder: Path) -> Any:
    model.set_adapter("default")
    return model


def _switch_and_back(model: Any, case: PeftCase, folder: Path) -> Any:
    add_second(case, model)
    model.set_adapter("second")
    model.set_adapter("default")
    return model


def _set_requires_grad(model: Any, case: PeftCase, folder: Path) -> Any:
    model.set_requires_grad("default")
    return model


def _disable_adapter(model: Any, case: PeftCase, folder: Path) -> Any:
    with model.disable_adapter():
        assert not trained(model)
    return model


def _disable_and_enable_layers(model: Any, case: PeftCase, folder: Path) -> Any:
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    return model


def _module_requires_grad(model: Any, case: PeftCase, folder: Path) -> Any:
    return model.requires_grad_(True)


def _add_adapter(model: Any, case: PeftCase, folder: Path) -> Any:
    add_second(case, model)
    return model


def _delete_other(model: Any, case: PeftCase, folder: Path) -> Any:
    add_second(case, model)
    model.delete_adapter("second")
    return model


def _delete_active_other(model: Any, case: PeftCase, folder: Path) -> Any:
    add_second(case, model)
    model.set_adapter("second")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it picks another active adapter
        model.delete_adapter("second")
    model.set_adapter("default")
    return model


def _load_same_name(model: Any, case: PeftCase, folder: Path) -> Any:
    model.save_pretrained(folder)
    model.load_adapter(folder, "default", is_trainable=True)
    return model


def _load_other_name(model: Any, case: PeftCase, folder: Path) -> Any:
    model.save_pretrained(folder)
    model.load_adapter(folder, "other", is_trainable=True)
    return model


def _merge_and_unmerge(model: Any, case: PeftCase, folder: Path) -> Any:
    model.merge_adapter()
    model.unmerge_adapter()
    return model


def _train_and_eval(model: Any, case: PeftCase, folder: Path) -> Any:
    return model.eval().train()


def _gradient_checkpointing(model: Any, case: PeftCase, folder: Path) -> Any:
    base = model.get_base_model()
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable()
        base.enable_input_require_grads()
    return model


def _deepcopy(model: Any, case: PeftCase, folder: Path) -> Any:
    copied = copy.deepcopy(model)
    copied.set_adapter("default")
    return copied


def _pickle(model: Any, case: PeftCase, folder: Path) -> Any:
    copied = pickle.loads(pickle.dumps(model))
    copied.set_adapter("default")
    return copied


def _to_double_and_back(model: Any, case: PeftCase, folder: Path) -> Any:
    return model.double().float()


# Call, and whether it thaws a factor whose requires_grad flag alone was cleared (peft.md, 3; measured for the rest).
CALLS: dict[str, tuple[Callable[[Any, PeftCase, Path], Any], bool]] = {
    "set_adapter": (_set_adapter, True),
    "switch_and_back": (_switch_and_back, True),
    "set_requires_grad": (_set_requires_grad, True),
    "disable_adapter": (_disable_adapter, True),
    "disable_and_enable_layers": (_disable_and_enable_layers, True),
    "module_requires_grad": (_module_requires_grad, True),
    "delete_active_other": (_delete_active_other, True),
    "deepcopy_and_set_adapter": (_deepcopy, True),
    "pickle_and_set_adapter": (_pickle, True),
    "add_adapter": (_add_adapter, False),
    "delete_other": (_delete_other, False),
    "load_same_name": (_load_same_name, False),
    "load_other_name": (_load_other_name, False),
    "merge_and_unmerge": (_merge_and_unmerge, False),
    "train_and_eval": (_train_and_eval, False),
    "gradient_checkpointing": (_gradient_checkpointing, False),
    "to_double_and_back": (_to_double_and_back, False),
}
FREEZE_CASES = (BERT, GPT2, WORDS, IMAGES)


@pytest.mark.parametrize("case", FREEZE_CASES, ids=[case.name for case in FREEZE_CASES])
@pytest.mark.parametrize("call", CALLS)
def test_a_frozen_A_survives(call: str, case: PeftCase, tmp_path: Path) -> None:
    act, _ = CALLS[call]
    model = al.freeze(case.peft(), "A")
    before = {name: tensor.clone() for name, tensor in factors(model).items()}
    after = act(model, case, tmp_path)
    assert not trained(after)
    assert trained(after, "B") == set(before)
    case.output(after.train()).square().sum().backward()
    assert all(tensor.grad is None for tensor in factors(after).values())
    assert all(tensor.grad is not None for tensor in factors(after, "B").values())
    optimizer = torch.optim.AdamW([p for p in after.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in factors(after).items())


@pytest.mark.parametrize("call", CALLS)
def test_a_cleared_flag_alone_does_not(call: str, tmp_path: Path) -> None:
    act, thaws = CALLS[call]
    model = WORDS.peft()
    freeze_by_flag(model)
    assert not trained(model)
    assert trained(act(model, WORDS, tmp_path)) == ({"words", "dense"} if thaws else set())


@pytest.mark.parametrize("case", FREEZE_CASES, ids=[case.name for case in FREEZE_CASES])
def test_a_frozen_B_survives_too(case: PeftCase, tmp_path: Path) -> None:
    model = al.freeze(case.peft(), "B")
    for act in (_set_adapter, _disable_adapter, _set_requires_grad, _module_requires_grad, _add_adapter):
        model = act(model, case, tmp_path)
    assert not trained(model, "B")
    assert trained(model) == set(factors(model))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_plain_peft_reads_what_a_frozen_model_saves(case: PeftCase, tmp_path: Path) -> None:
    plain, frozen = case.peft(modules_to_save=[case.head]), case.peft(modules_to_save=[case.head])
    al.freeze(frozen, "A")
    for name, model in (("plain", plain), ("frozen", frozen)):
        model.save_pretrained(tmp_path / name)
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "frozen")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[1][key], value) for key, value in files[0].items())
    with torch.no_grad():
        expected = case.output(frozen.eval())
        assert (expected - case.output(case.build().eval())).abs().max() > 1e-2
        read = PeftModel.from_pretrained(case.build(), str(tmp_path / "frozen"))
        assert torch.equal(case.output(read.eval()), expected)
    assert not trained(frozen)
    again = PeftModel.from_pretrained(case.build(), str(tmp_path / "frozen"), is_trainable=True)
    assert trained(again) == set(factors(again))  # nothing in PEFT's file says that A is frozen


class Rows(torch.utils.data.Dataset):
    """Eight fixed rows for `Words`."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"ids": torch.arange(row, row + 3) % 11, "labels": torch.tensor(row % 3)}


class WithLoss(nn.Module):
    """`Words` as the Trainer wants a model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = WORDS.build()

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.inner(ids)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _trainer(folder: Path, adapters: int, freeze: Callable[[Any], object]) -> Trainer:
    torch.manual_seed(0)
    model: Any = get_peft_model(WithLoss(), LoraConfig(target_modules=["words", "dense"], r=2))  # pyright: ignore
    if adapters == 2:
        model.add_adapter("second", LoraConfig(target_modules=["words", "dense"], r=2))
    for name in model.peft_config:
        al.initialize(model, "lora", adapter=name)
    freeze(model)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows())


@pytest.mark.parametrize("adapters", [1, 2])
def test_the_trainer_resumes_with_a_frozen_A(adapters: int, tmp_path: Path) -> None:
    whole = _trainer(tmp_path, adapters, lambda model: al.freeze(model, "A"))
    start = {name: tensor.clone() for name, tensor in factors(whole.model).items()}
    whole.train()
    resumed = _trainer(tmp_path, adapters, lambda model: al.freeze(model, "A"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not trained(resumed.model)
    for name, tensor in factors(resumed.model).items():
        assert torch.equal(tensor, start[name])
        assert torch.equal(factors(resumed.model, "B")[name], factors(whole.model, "B")[name])


def test_with_two_adapters_a_cleared_flag_alone_cannot_be_resumed(tmp_path: Path) -> None:
    _trainer(tmp_path, 2, freeze_by_flag).train()
    with pytest.raises(ValueError, match="doesn't match the size"):
        _trainer(tmp_path, 2, freeze_by_flag).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_an_optimizer_made_before_does_not_move_a_frozen_factor() -> None:
    model = WORDS.peft()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    WORDS.output(model).sum().backward()
    optimizer.step()
    al.freeze(model, "A")
    before = {name: tensor.clone() for name, tensor in factors(model).items()}
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in factors(model).items())


def test_freezing_is_per_adapter() -> None:
    model = WORDS.peft()
    add_second(WORDS, model)
    al.freeze(model, "A", adapter="second")
    assert trained(model) == {"words", "dense"}
    model.set_adapter("second")
    assert not {n for n in ("words", "dense") if factors(model, "A", "second")[n].requires_grad}


@pytest.mark.parametrize("case", FREEZE_CASES, ids=[case.name for case in FREEZE_CASES])
def test_unfreeze_undoes_freeze(case: PeftCase) -> None:
    model = case.peft(lora_bias=case is GPT2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = {name: (type(p), p.requires_grad) for name, p in model.named_parameters()}
    classes = [type(module) for module in model.modules()]
    attributes = {name: set(vars(layer)) for name, layer in lora_layers(model).items()}
    for factor in ("A", "B"):
        al.unfreeze(al.freeze(al.freeze(model, factor), factor), factor)
        al.unfreeze(model, factor)
    assert {name: (type(p), p.requires_grad) for name, p in model.named_parameters()} == kinds
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {name: set(vars(layer)) for name, layer in lora_layers(model).items()} == attributes
    assert [type(module) for module in model.modules()] == classes


def test_unfreezing_a_model_that_is_not_trained_trains_nothing(tmp_path: Path) -> None:
    WORDS.peft().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(WORDS.build(), str(tmp_path))
    al.unfreeze(al.freeze(model, "A"), "A")
    assert not trained(model)


def test_the_bias_of_B_is_frozen_with_it() -> None:
    model = BERT.peft(lora_bias=True)
    al.freeze(model, "B")
    model.set_adapter("default")
    assert not [name for name, p in model.named_parameters() if "lora_B" in name]


def test_layers_put_into_a_plain_model_are_frozen_too() -> None:
    model = BERT.build()
    model.add_adapter(BERT.config())
    al.freeze(al.initialize(model, "lora"), "A")
    model.disable_adapters()
    model.enable_adapters()
    model.set_adapter("default")
    assert not trained(model)
    assert trained(model, "B")


@pytest.mark.parametrize("low_memory", [False, True])
def test_an_embedding_in_half_precision_stays_frozen_when_peft_casts_it(low_memory: bool, tmp_path: Path) -> None:
    base = WORDS.build().to(torch.bfloat16)
    model: Any = fill_peft(
        get_peft_model(base, WORDS.config(target_modules=["words"]), autocast_adapter_dtype=False)  # pyright: ignore
    )
    al.freeze(model, "A")
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that assigning is a no-op for tensors off the meta device
        model.load_adapter(tmp_path, "default", is_trainable=True, low_cpu_mem_usage=low_memory)
    assert {name: t.dtype for name, t in factors(model).items()} == {"words": torch.float32}
    assert not trained(model)
    WORDS.output(model.float()).sum().backward()
    assert factors(model)["words"].grad is None


def test_lora_fa_of_peft_is_thawed_by_one_disable_adapter() -> None:
    # The control of all this: PEFT's own frozen A.
    model = BERT.peft()
    create_lorafa_optimizer(model, r=2, lora_alpha=3, lr=0.1)
    assert not trained(model)
    with model.disable_adapter():
        pass
    assert trained(model) == set(factors(model))
