from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rouge_score.rouge_scorer import RougeScorer
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import asymlora as al
from asymlora.errors import DataNotFoundError, MissingColumnError, SpecError, UnknownNameError
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.seq2seq import IGNORED, RougeScoring, TextPairs, load, mean_target_loss, prepare, rouge
from asymlora.tasks.splits import Part
from asymlora.tasks.task import Prepared
from cases import move_trained
from small_seq2seq import QUERIES, SENTENCES, write_model, write_pairs

KINDS = ("bart", "t5")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "seq2seq" / "mrpc_paraphrase"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared research data are not beside this checkout")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_model(tmp_path_factory.mktemp("models") / kind, kind) for kind in KINDS}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "rows.jsonl")


@pytest.fixture
def prepared(models: dict[str, Path], pairs: Path) -> Callable[..., Prepared]:
    def prepared(kind: str = "bart", **data: Any) -> Prepared:
        chosen = {"name": str(pairs), "text": "source", "max_tokens": 40, "max_target_tokens": 12, "beams": 2, **data}
        return prepare(ModelRecipe(name=str(models[kind])), DataRecipe(**chosen), task="seq2seq", head_seed=0)

    return prepared


def _batch(prepared: Prepared, rows: int = 4) -> dict[str, Any]:
    return prepared.collator([prepared.train[i] for i in range(rows)])


def _attached(prepared: Prepared, kind: str) -> nn.Module:
    return move_trained(al.attach(prepared.model, al.AdapterSpec.b_only(rank=4, targets=QUERIES[kind])))


# --- rows ----------------------------------------------------------------------------------------------------------


def test_rows_are_source_and_target_longest_source_first(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    train = made.train
    assert isinstance(train, TextPairs)
    assert (len(train), len(made.validation), len(made.test)) == (28, 4, 8)
    sources = [len(train[i]["input_ids"]) for i in range(len(train))]
    assert sources == sorted(sources, reverse=True)
    for i in (0, 13, 27):
        decoded = [made.processor.decode(train[i][key], skip_special_tokens=True) for key in ("input_ids", "labels")]
        assert decoded[1].strip() == train.targets[i][: len(decoded[1].strip())]
        assert train.lengths[i] == len(train[i]["input_ids"]) + len(train[i]["labels"])
        assert train.sources[i].startswith(train.targets[i])


def test_longer_sources_and_targets_are_cut_counted_and_still_compared_whole(prepared: Callable[..., Prepared]) -> None:
    made = prepared(max_tokens=20, max_target_tokens=6)
    tokenizer, train = made.processor, made.train
    assert isinstance(train, TextPairs)
    texts = [(s, t) for part in (made.train, made.validation, made.test) for s, t in zip(part.sources, part.targets)]  # type: ignore  # noqa: B905
    longer = [sum(len(tokenizer(row[i])["input_ids"]) > most for row in texts) for i, most in ((0, 20), (1, 6))]
    assert f"{longer[0]} of 40 sources are longer than 20 tokens and lose their end." in made.notes
    assert f"{longer[1]} of 40 targets are longer than 6 tokens and lose their end." in made.notes
    assert max(len(train[i]["input_ids"]) for i in range(len(train))) == 20
    assert max(len(train[i]["labels"]) for i in range(len(train))) == 6
    assert {train[i]["labels"][-1] for i in range(len(train))} == {tokenizer.eos_token_id}
    assert train.targets[0] in {text.rpartition(" Line")[0] for text, _ in texts}


def test_nothing_is_said_of_cuts_where_there_are_none(prepared: Callable[..., Prepared]) -> None:
    assert not [note for note in prepared(max_target_tokens=40).notes if "longer" in note or "at most" in note]


def test_a_model_that_takes_fewer_tokens_says_so(prepared: Callable[..., Prepared]) -> None:
    made = prepared(max_target_tokens=100)
    # 48 positions, of which the decoder's start takes one.
    assert "The model takes at most 47 tokens of a target; 100 were asked for." in made.notes
    assert made.scoring.keep(made.model, _batch(made)).shape == (4, 2 + 47)


def test_copying_the_source_is_scored_beside(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    test = made.test
    assert isinstance(test, TextPairs)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    wanted = np.mean([scorer.score(t, s)["rougeL"].fmeasure for s, t in zip(test.sources, test.targets, strict=True)])
    assert f"rougeL {wanted:.3f} on 8 test rows." in made.notes[-1]
    assert wanted > 0.5


def test_targets_that_rouge_does_not_see_are_told(prepared: Callable[..., Prepared], pairs: Path) -> None:
    assert not [note for note in prepared().notes if "ROUGE" in note]
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "target": "今日" if i % 2 else row["target"]} for i, row in enumerate(rows)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unseen = sum(text == "今日" for text in prepared(max_target_tokens=40).test.targets)  # type: ignore
    note = f"{unseen:,} of 8 test targets hold no Latin letter or digit; ROUGE sees nothing else."
    assert note in prepared(max_target_tokens=40).notes


def test_the_digest_tells_targets_apart_that_are_cut_alike(prepared: Callable[..., Prepared], pairs: Path) -> None:
    first = prepared(max_target_tokens=4).digest()
    assert prepared(max_target_tokens=4).digest() == first
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    pairs.write_text("".join(json.dumps({**row, "target": row["target"] + " More."}) + "\n" for row in rows))
    assert prepared(max_target_tokens=4).digest() != first


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_is_given_what_the_model_makes_of_the_labels(prepared: Callable[..., Prepared], kind: str) -> None:
    made = prepared(kind)
    batch = _batch(made)
    start = made.model.config.decoder_start_token_id
    labels = batch["labels"]
    assert batch["decoder_input_ids"][:, 0].tolist() == [start] * 4
    kept = labels[:, :-1] != IGNORED
    assert torch.equal(batch["decoder_input_ids"][:, 1:][kept], labels[:, :-1][kept])
    assert (batch["decoder_input_ids"] >= 0).all()
    assert set(batch) == {"input_ids", "attention_mask", "labels", "decoder_input_ids"}


# --- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_models_own(prepared: Callable[..., Prepared], kind: str) -> None:
    made = prepared(kind)
    batch = _batch(made)
    own = made.model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
    outputs = made.model(**{key: value for key, value in batch.items() if key != "labels"})
    torch.testing.assert_close(mean_target_loss(outputs, batch["labels"], None), own)


def test_pieces_of_a_batch_add_up_to_the_whole(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    model = made.model.double()

    def loss(rows: list[int], count: Any) -> torch.Tensor:
        batch = made.collator([made.train[i] for i in rows])
        return mean_target_loss(model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"], count)

    rows = [0, 9, 18, 27]
    targets = torch.tensor(sum(len(made.train[i]["labels"]) for i in rows))
    pieces = sum(loss([row], targets) for row in rows)
    torch.testing.assert_close(pieces, loss(rows, None), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(rows, int(targets)), loss(rows, None), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_the_targets(prepared: Callable[..., Prepared], kind: str) -> None:
    made = prepared(kind)
    network = al.attach(made.model, al.AdapterSpec.b_only(rank=8, targets="all-linear"))
    batch = _batch(made, 8)
    optimizer = torch.optim.AdamW(al.param_groups(network, lr=3e-2))
    losses: list[float] = []
    for _ in range(30):
        outputs = network(**{key: value for key, value in batch.items() if key != "labels"})
        loss = mean_target_loss(outputs, batch["labels"], None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_trains_and_scores_it(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    recipe = al.Recipe.from_dict(
        {
            "task": "seq2seq",
            "model": {"name": str(models["bart"])},
            "data": {"name": str(pairs), "text": "source", "max_target_tokens": 12, "beams": 2, "metric": "loss"},
            "adapter": {"preset": "b_only", "rank": 8},
            "train": {"steps": 20, "evaluate_every": 10, "batch_size": 8, "gradient_accumulation": 2, "lr": 0.03},
        }
    )
    result = al.finetune(recipe, output=tmp_path / "run")
    assert (result.metric, result.greater_is_better) == ("loss", False)
    assert result.metrics["after"].keys() == {"rouge1", "rouge2", "rougeL", "loss"}
    assert result.score < 0.9 * result.before


# --- scoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kept_are_loss_count_and_what_generate_writes(prepared: Callable[..., Prepared], kind: str) -> None:
    made = prepared(kind)
    network = _attached(made, kind)
    batch = _batch(made)
    with torch.inference_mode():
        kept = made.scoring.keep(network, batch)
        own: Any = network
        loss = own(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
        written = own.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=2, max_new_tokens=12
        )
    assert kept.shape == (4, 14)
    assert kept.dtype == torch.float32
    assert kept[:, 1].tolist() == (batch["labels"] != IGNORED).sum(1).tolist()
    torch.testing.assert_close(kept[:, 0].sum() / kept[:, 1].sum(), loss)
    assert torch.equal(kept[:, 2 : 1 + written.shape[1]].long(), written[:, 1:])


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_what_is_written_and_switched_off_it_does_not(
    prepared: Callable[..., Prepared], kind: str
) -> None:
    made = prepared(kind)
    batch = _batch(made)
    with torch.inference_mode():
        before = made.scoring.keep(made.model, batch)
        network = _attached(made, kind)
        after = made.scoring.keep(network, batch)
        with al.disabled(network):
            off = made.scoring.keep(network, batch)
    assert torch.equal(off, before)
    assert not torch.equal(after[:, 0], before[:, 0])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_wrapped_model_is_scored_like_the_bare_one(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    network = _attached(made, "bart")
    batch = _batch(made)
    with torch.inference_mode():
        bare = made.scoring.keep(network, batch)
    wrapped = nn.parallel.DistributedDataParallel(network).eval()
    with torch.inference_mode():
        assert torch.equal(made.scoring.keep(wrapped, batch), bare)


def test_padding_and_the_other_rows_of_a_batch_change_nothing(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    long, short = made.train[0], made.train[len(made.train) - 1]
    with torch.inference_mode():
        alone = made.scoring.keep(made.model, made.collator([short]))
        beside = made.scoring.keep(made.model, made.collator([long, short]))[1:]
    assert torch.equal(alone[:, 1:], beside[:, 1:])
    torch.testing.assert_close(alone[:, 0], beside[:, 0])


def test_bfloat16_autocast_keeps_ids_whole(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        kept = made.scoring.keep(made.model, _batch(made))
    assert kept.dtype == torch.float32
    assert torch.equal(kept[:, 2:], kept[:, 2:].round())
    assert kept[:, 2:].max() < len(made.processor)


def _kept(made: Prepared, texts: list[str], width: int = 30) -> np.ndarray:
    ids = [made.processor(text)["input_ids"][:width] for text in texts]
    rows = [[12.0, 4.0, *row, *[float(made.processor.pad_token_id)] * (width - len(row))] for row in ids]
    return np.array(rows, dtype=np.float32)


def test_evidence_is_rouge_of_the_decoded_text_against_the_whole_target(prepared: Callable[..., Prepared]) -> None:
    made = prepared(max_target_tokens=4)
    test = made.test
    assert isinstance(test, TextPairs)
    texts = [*test.targets[:4], *(["A cats sit on mats."] * 4)]
    evidence = made.scoring.evidence(_kept(made, texts, 60), test)
    assert evidence.shape == (8, 5)
    assert evidence.dtype == np.float64
    assert evidence[:4, :3].tolist() == [[1.0] * 3] * 4
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for row, target in zip(evidence[4:], test.targets[4:], strict=True):
        found = scorer.score(target, "A cats sit on mats.")
        assert row[:3].tolist() == [found[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]
    assert evidence[:, 3:].tolist() == [[12.0, 4.0]] * 8


def test_scores_are_means_of_rows_and_of_tokens(prepared: Callable[..., Prepared]) -> None:
    scores = prepared().scoring.score(np.array([[1.0, 0.5, 0.75, 6.0, 2.0], [0.0, 0.5, 0.25, 2.0, 6.0]]))
    assert scores == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5, "loss": 1.0}


def test_an_empty_answer_scores_zero_and_stays_finite(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    evidence = made.scoring.evidence(_kept(made, [""] * 8), made.test)
    assert evidence[:, :3].tolist() == [[0.0] * 3] * 8
    assert all(math.isfinite(value) for value in made.scoring.score(evidence).values())
    assert all(math.isfinite(value) for value in made.scoring.score(np.zeros((2, 5))).values())


def test_rouge_by_hand() -> None:
    # Stems: "runs" and "running" are one. 3 of 3 words found of 4: precision 1, recall 3/4; the order differs for L.
    assert rouge("dogs running fast", "fast dogs runs home") == pytest.approx([6 / 7, 2 / 5, 4 / 7])


@pytest.mark.parametrize(("metric", "greater"), [(None, True), ("rouge1", True), ("rouge2", True), ("loss", False)])
def test_choices_are_made_by_the_metric_asked_for(
    prepared: Callable[..., Prepared], metric: str | None, greater: bool
) -> None:
    scoring = prepared(metric=metric).scoring
    assert (scoring.metric, scoring.greater_is_better) == (metric or "rougeL", greater)


# --- what is refused -----------------------------------------------------------------------------------------------


def test_an_unknown_metric_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownNameError, match=r"data\.metric='rougeM'.*Known: rougeL, rouge1, rouge2, loss"):
        prepare(
            ModelRecipe(name="no/where"), DataRecipe(name="nothing.csv", metric="rougeM"), task="seq2seq", head_seed=0
        )


def test_a_missing_target_column_is_named(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(MissingColumnError, match=r"No column is called 'tagret'.*'target'"):
        prepared(target="tagret")


def test_a_saved_setting_that_conflicts_is_refused_before_training(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "sampling")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_sample": True, "min_length": 30}))
    with pytest.raises(SpecError, match=r"do_sample=True.*min_length=30 is above data\.max_target_tokens=12"):
        load(ModelRecipe(name=str(folder)), DataRecipe(max_target_tokens=12), task="seq2seq", label_names=())


def test_a_model_of_another_kind_is_refused(small_encoder: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"bert is no encoder-decoder\). Give a folder"):
        load(ModelRecipe(name=str(small_encoder)), DataRecipe(), task="seq2seq", label_names=())


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: _drop_weight(folder, "model.decoder.layers.1.fc1.weight"), "lack weights.*layers.1.fc1.weight"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "could not be loaded"),
        (lambda folder: _edit(folder / "config.json", pad_token_id=None), "no padding token"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "could not be loaded"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(
    tmp_path: Path, break_it: Callable[[Path], object], words: str
) -> None:
    folder = write_model(tmp_path / "broken")
    break_it(folder)
    with pytest.raises(DataNotFoundError, match=words):
        load(ModelRecipe(name=str(folder)), DataRecipe(), task="seq2seq", label_names=())


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "small", vocab_size=300)
    with pytest.raises(DataNotFoundError, match="tokenizer knows 340 tokens and its embedding 300"):
        load(ModelRecipe(name=str(folder)), DataRecipe(), task="seq2seq", label_names=())


def _edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _drop_weight(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_start_that_the_writing_settings_know_alone_is_trained_by_too(tmp_path: Path, pairs: Path) -> None:
    folder = write_model(tmp_path / "bart")
    _edit(folder / "config.json", decoder_start_token_id=None)
    data = DataRecipe(name=str(pairs), text="source")
    made = prepare(ModelRecipe(name=str(folder)), data, task="seq2seq", head_seed=0)
    assert _batch(made)["decoder_input_ids"][:, 0].tolist() == [2] * 4


# --- asked and saved -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_writes_the_same_without_asymlora(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    data = DataRecipe(max_tokens=30, max_target_tokens=7, beams=3)
    loaded = load(ModelRecipe(name=str(models[kind])), data, task="seq2seq", label_names=())
    answers = loaded.answer(list(SENTENCES) * 2)
    assert [answer.given for answer in answers] == list(SENTENCES) * 2
    assert answers[:5] == answers[5:]
    (tmp_path / "plain").mkdir()
    loaded.save(tmp_path / "plain")
    network = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    for text, answer in zip(SENTENCES, answers, strict=False):
        written = network.generate(**tokenizer(text, return_tensors="pt", truncation=True, max_length=30))
        assert tokenizer.decode(written[0], skip_special_tokens=True).strip() == answer.answer
        assert answer.probability is None


def test_answers_follow_the_adapter_that_the_model_carries_by_then(models: dict[str, Path]) -> None:
    loaded = load(ModelRecipe(name=str(models["bart"])), DataRecipe(beams=1), task="seq2seq", label_names=())
    before = loaded.answer([SENTENCES[0]])
    spec = al.AdapterSpec.b_only(rank=4, targets="all-linear")
    move_trained(al.attach(loaded.model, spec))
    assert loaded.answer([SENTENCES[0]]) != before


def test_rows_of_texts_alone_can_be_made(models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models["t5"])
    part = Part(texts=["a", "b c d e"], columns={"target": [1, "two"]})
    rows = TextPairs(tokenizer, part, max_tokens=16, max_target_tokens=16)
    assert rows.targets == ["two", "1"]
    assert rows.cut == (0, 0)


# --- the shared paraphrases ----------------------------------------------------------------------------------------


@needs_shared
def test_the_shared_paraphrases_are_read(models: dict[str, Path]) -> None:
    data = DataRecipe(name=str(SHARED), text="source", max_tokens=48, max_target_tokens=40, beams=1)
    made = prepare(ModelRecipe(name=str(models["bart"])), data, task="seq2seq", head_seed=0)
    assert len(made.test) == 1147
    assert 2400 < len(made.train) + len(made.validation) <= 2753
    assert "Copying the source" in made.notes[-1]
    assert isinstance(made.scoring, RougeScoring)
