from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import asymlora as al
from asymlora.errors import AsymloraError, DataError, DataNotFoundError, SpecError
from asymlora.tasks.chat_format import ChatFormat, Encoded
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.instruction_tuning import cut, encode_rows, load, prepare
from asymlora.tasks.splits import Part
from asymlora.tasks.token_loss import IGNORED
from small_causal import small_tokenizer, write_small_causal


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_causal(tmp_path_factory.mktemp("models") / "small-llama")


def _write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / name


def _rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"Say {i}.", "target": f"{'well, ' * (i % 4)}{i}"} for i in range(count)]


def _prepare(model: Path, data: Path, **fields: Any) -> Any:
    recipe = DataRecipe(**{"name": str(data), "max_tokens": 64, **fields})
    return prepare(ModelRecipe(name=str(model)), recipe, task="instruction_tuning", head_seed=0)


def _answers(prepared: Any, part: str) -> set[str]:
    rows = [prepared.parts[part][i]["labels"] for i in range(len(prepared.parts[part]))]
    return {prepared.processor.decode([t for t in labels if t != IGNORED]) for labels in rows}


# --- rows -----------------------------------------------------------------------------------------------------------


def test_answers_alone_are_learned_and_every_row_is_in_one_part(model_folder: Path, tmp_path: Path) -> None:
    prepared = _prepare(model_folder, _write(tmp_path, _rows(40)))
    found = [_answers(prepared, part) for part in ("train", "validation", "test")]
    assert set.union(*found) == {f"{row['target']}<|end|>" for row in _rows(40)}
    assert sum(map(len, found)) == 40
    assert (prepared.task_type, prepared.heads, prepared.scoring.metric) == ("CAUSAL_LM", (), "loss")
    lengths = prepared.train.lengths
    assert lengths == sorted(lengths, reverse=True)


def test_loss_is_the_mean_over_answer_tokens(model_folder: Path, tmp_path: Path) -> None:
    prepared = _prepare(model_folder, _write(tmp_path, _rows(30)))
    prepared.model.requires_grad_(False)
    rows = [prepared.train[i] for i in (0, 5, 11)]
    batch = prepared.collator(rows)
    given = prepared.loss(prepared.model(**batch), batch["labels"], None)
    losses: list[torch.Tensor] = []
    for row in rows:
        logits = prepared.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses.append(cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)[labels != IGNORED])
    torch.testing.assert_close(given, torch.cat(losses).mean(), rtol=1e-5, atol=1e-6)


def test_equal_questions_do_not_stand_in_two_parts(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Say {i % 12}.", "target": f"answer {i}"} for i in range(60)]
    prepared = _prepare(model_folder, _write(tmp_path, rows))
    asked = {
        part: {prepared.processor.decode(ids).partition("<|end|>")[0] for ids in items.ids}
        for part, items in prepared.parts.items()
    }
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["validation"]
    assert any("also stands in another part" in note for note in prepared.notes)


def test_conversations_learn_every_answer(model_folder: Path, tmp_path: Path) -> None:
    def talk(i: int) -> list[dict[str, str]]:
        said = (("user", f"q{i}"), ("assistant", f"a{i}"), ("user", "more"), ("assistant", f"b{i}"))
        return [{"role": role, "content": content} for role, content in said]

    prepared = _prepare(model_folder, _write(tmp_path, [{"messages": talk(i)} for i in range(20)]))
    assert "a7<|end|>b7<|end|>" in _answers(prepared, "train") | _answers(prepared, "test")


@pytest.mark.parametrize(
    ("limit", "kept", "learned"),
    [
        (9, [1, 2, 3, 4, 5, 6, 7], 4),
        (7, [1, 2, 3, 4, 5, 6, 7], 4),
        (5, [3, 4, 5, 6, 7], 3),
        (4, [4, 5, 6, 7], 3),
        (3, [4, 5, 6], 2),
        (2, [4, 5], 1),
    ],
)
def test_long_row_loses_its_beginning_and_then_the_end_of_its_answer(limit: int, kept: list[int], learned: int) -> None:
    talk = Encoded(ids=[1, 2, 3, 4, 5, 6, 7], learned=[i in (2, 5, 6, 7) for i in range(1, 8)], last_answer=4)
    ids, predicted = cut(talk, limit)
    assert ids == kept
    assert sum(predicted) == learned


def test_cut_rows_are_counted_by_kind() -> None:
    form = ChatFormat(small_tokenizer())
    talks = [
        [("user", "q" * 30), ("assistant", "a")],
        [("user", "q"), ("assistant", "a" * 30)],
        [("user", "q"), ("assistant", "a")],
    ]
    target = [json.dumps([{"role": r, "content": c} for r, c in talk]) for talk in talks]
    encoded = encode_rows(form, Part(columns={"target": target}), limit=16, where="train")
    assert (encoded.prompts_cut, encoded.answers_cut) == (1, 1)
    assert encoded.rows.lengths == [16, 16, 7]


def test_notes_tell_what_was_cut_and_what_is_learned(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": "q" * (i + 20), "target": "yes" if i else "y" * 99} for i in range(20)]
    notes = " ".join(_prepare(model_folder, _write(tmp_path, rows), max_tokens=32).notes)
    assert "train: 14 rows," in notes
    assert "of 20 rows are longer than 32 tokens; what is asked loses its beginning" in notes
    assert "1 of 20 answers alone are longer than 32 tokens and lose their end" in notes


def test_missing_template_is_told(tmp_path: Path) -> None:
    model = write_small_causal(tmp_path / "m", chat=False)
    prepared = _prepare(model, _write(tmp_path, _rows(20)))
    assert prepared.notes[0].startswith("The tokenizer has no chat template")
    assert prepared.processor.decode(prepared.test.ids[0]).startswith("User:\nSay ")


def test_no_data_of_ones_own_are_refused_before_the_model_is_looked_for() -> None:
    with pytest.raises(DataError, match="Give a file with prompt and target"):
        prepare(ModelRecipe(name="/nowhere/model"), DataRecipe(), task="instruction_tuning", head_seed=0)


def test_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    part = Part(
        columns={"target": [json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])]}
    )
    with pytest.raises(AsymloraError, match="Row 1 of the train part: The chat template of the tokenizer refuses"):
        encode_rows(ChatFormat(tokenizer), part, limit=16, where="train")


# --- closing --------------------------------------------------------------------------------------------------------


def test_questions_and_problems_are_measured_at_the_end(model_folder: Path, tmp_path: Path) -> None:
    choices = _write(
        tmp_path, [{"question": f"{i}?", "choices": ["x", "y"], "answer": i % 2} for i in range(5)], "c.jsonl"
    )
    problems = _write(tmp_path, [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(3)], "p.jsonl")
    fields = {"choices": str(choices), "problems": str(problems), "shots": 1, "max_target_tokens": 4}
    prepared = _prepare(model_folder, _write(tmp_path, _rows(20)), **fields)
    assert set(prepared.closing) == {"choices", "problems"}
    al.attach(prepared.model, al.AdapterSpec.lora(rank=2, targets=("q_proj",)))
    figures = prepared.closing["choices"](prepared.model)
    assert figures["questions"] == 4.0
    assert figures["accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert prepared.closing["problems"](prepared.model)["problems"] == 2.0
    assert not _prepare(model_folder, tmp_path / "rows.jsonl").closing


def test_answers_that_leave_no_room_for_a_problem_are_refused_at_once(model_folder: Path, tmp_path: Path) -> None:
    problems = _write(tmp_path, [{"question": "1+1?", "answer": "#### 2"}], "problems.jsonl")
    data = _write(tmp_path, _rows(20))
    with pytest.raises(SpecError, match=r"data\.max_target_tokens=5000 leaves no room for a prompt"):
        _prepare(model_folder, data, problems=str(problems), max_target_tokens=5000)


def test_missing_question_file_is_found_before_the_model_is_looked_for(tmp_path: Path) -> None:
    data = DataRecipe(name=str(_write(tmp_path, _rows(20))), choices=str(tmp_path / "none.jsonl"))
    with pytest.raises(DataNotFoundError, match=r"data.choices="):
        prepare(ModelRecipe(name="/nowhere/model"), data, task="instruction_tuning", head_seed=0)


# --- asked ----------------------------------------------------------------------------------------------------------


def test_trained_model_replies_as_it_was_taught(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Say yes, {i}.", "target": "yes"} for i in range(20)]
    prepared = _prepare(model_folder, _write(tmp_path, rows))
    torch.manual_seed(0)
    al.attach(prepared.model, al.AdapterSpec.lora(rank=8, targets="all-linear"))
    optimizer = torch.optim.AdamW(al.param_groups(prepared.model, lr=2e-2))
    batch = prepared.collator([prepared.train[i] for i in range(8)])
    for _ in range(60):
        loss = prepared.loss(prepared.model(**batch), batch["labels"], None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    al.save_adapter(prepared.model, tmp_path / "adapter")
    data = DataRecipe(max_target_tokens=6)
    loaded = load(ModelRecipe(name=str(model_folder)), data, task="instruction_tuning", label_names=())
    al.load_adapter(loaded.model, tmp_path / "adapter")
    (answer,) = loaded.answer(["Say yes, 3."])
    assert (answer.given, answer.answer) == ("Say yes, 3.", "yes")
