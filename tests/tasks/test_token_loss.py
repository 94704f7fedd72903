from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

import asymlora as al
from asymlora.errors import UnknownNameError
from asymlora.tasks.token_loss import (
    IGNORED,
    TARGETS,
    TokenScoring,
    install_token_loss,
    mean_token_loss,
    next_tokens,
    token_losses,
)
from kept_bytes import kept_for_backward
from small_causal import small_llama

WIDTH, VOCABULARY = 16, 265


def _case(dtype: torch.dtype, *, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, 11, (3, 7), generator=generator)
    targets[0, :4] = IGNORED
    targets[2] = IGNORED
    offsets = torch.randn(11, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    return hidden, targets, weight, offsets


def _plain(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias)
    return cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")


# --- the function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 10, 1000, None])
@pytest.mark.parametrize("bias", [False, True])
def test_losses_and_gradient_are_those_of_the_plain_formula(chunk: int | None, bias: bool) -> None:
    hidden, targets, weight, offsets = _case(torch.float64, bias=bias)
    upstream = torch.rand(3, 7, dtype=torch.float64)
    given = token_losses(hidden, targets, weight=weight, bias=offsets, chunk=chunk)
    wanted = _plain(hidden, targets, weight, offsets)
    # Ten products of width 5 in double precision.
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad((given * upstream).sum(), hidden)
    (theirs,) = torch.autograd.grad((wanted * upstream).sum(), hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not ours[2].any()
    assert not given[2].any()


def test_gradient_passes_autograds_own_check() -> None:
    hidden, targets, weight, _ = _case(torch.float64, bias=False)
    assert torch.autograd.gradcheck(lambda h: token_losses(h, targets, weight=weight, chunk=4), (hidden,))


def test_large_logits_do_not_overflow() -> None:
    hidden, targets, weight, _ = _case(torch.float32, bias=False)
    losses = token_losses(hidden * 1e4, targets, weight=weight)
    torch.testing.assert_close(losses, _plain(hidden * 1e4, targets, weight, None))
    losses.sum().backward()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_no_target_at_all_costs_nothing() -> None:
    hidden, targets, weight, _ = _case(torch.float32, bias=False)
    losses = token_losses(hidden, torch.full_like(targets, IGNORED), weight=weight)
    losses.sum().backward()
    assert hidden.grad is not None
    assert not losses.any()
    assert not hidden.grad.any()


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_losses_are_summed_in_float32(autocast: bool) -> None:
    hidden, targets, weight, _ = _case(torch.float32 if autocast else torch.bfloat16, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        given = token_losses(hidden, targets, weight=weight)
        logits = nn.functional.linear(hidden, weight)
    assert logits.dtype == torch.bfloat16
    assert given.dtype == torch.float32
    wanted = cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(given.sum(), hidden, retain_graph=True)
    (theirs,) = torch.autograd.grad(wanted.sum(), hidden)
    # Unit roundoff of bfloat16 is 2^-8; shares are rounded once, sums of eleven terms once more.
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=3e-2)


def test_second_backward_of_the_same_losses_gives_the_same_gradient() -> None:
    hidden, targets, weight, _ = _case(torch.float64, bias=False)
    losses = token_losses(hidden, targets, weight=weight)
    first, second = (torch.autograd.grad(losses.sum(), hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# --- in a model -----------------------------------------------------------------------------------------------------


def _batch(rows: int = 3, tokens: int = 9, *, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(0, 256, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, 0] = IGNORED
    labels[0, 1:4] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, TARGETS: next_tokens(labels)}


def _stock_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**{key: value for key, value in batch.items() if key != TARGETS}).loss


def _adapted(**model: Any) -> Any:
    network = small_llama(**model).double()
    install_token_loss(network)
    torch.manual_seed(1)
    al.attach(network, al.AdapterSpec.lora(rank=2, targets=("q_proj", "down_proj")))
    for site in al.sites(network):
        nn.init.normal_(site.B, std=0.1)
    return network.double()


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_every_gradient_are_those_of_transformers(tied: bool) -> None:
    model, batch = _adapted(tied=tied), _batch()
    outputs = model(**batch)
    assert outputs.logits.shape == (3, 0, VOCABULARY)
    loss, wanted = mean_token_loss(outputs, batch["labels"], None), _stock_loss(model, batch).double()
    # transformers forms the logits' loss in float32.
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    double = cross_entropy(model(input_ids=batch["input_ids"]).logits.transpose(1, 2), batch[TARGETS])
    torch.testing.assert_close(loss, double, rtol=1e-12, atol=1e-12)
    ours, theirs = _gradients(model, loss), _gradients(model, double)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-11, atol=1e-13)


def test_two_small_batches_with_the_count_of_both_give_the_one_large_batch() -> None:
    model, batch = _adapted(), _batch(4)
    whole = _gradients(model, mean_token_loss(model(**batch), batch["labels"], None))
    count = (batch["labels"] != IGNORED).sum()
    total: dict[str, Tensor] = {}
    for rows in (slice(0, 1), slice(1, 4)):  # unequal in rows and, as the first row has fewer, in targets
        small = {key: value[rows] for key, value in batch.items()}
        for name, part in _gradients(model, mean_token_loss(model(**small), small["labels"], count)).items():
            total[name] = total.get(name, torch.zeros_like(part)) + part
    for name in whole:
        torch.testing.assert_close(total[name], whole[name], rtol=1e-11, atol=1e-13)


def test_calls_without_targets_are_untouched() -> None:
    model = small_llama()
    batch = {key: value for key, value in _batch().items() if key in ("input_ids", "attention_mask")}
    before, written = model(**batch), model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=0)
    install_token_loss(model)
    with torch.no_grad():
        model(**_batch())
    after = model(**batch)
    assert torch.equal(before.logits, after.logits)
    assert after.loss is None
    assert after.past_key_values is not None
    assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=0), written)


def test_call_after_a_failed_one_is_untouched() -> None:
    model = small_llama()
    install_token_loss(model)
    model.requires_grad_(False)
    batch = _batch()
    with pytest.raises(IndexError):
        model(**{**batch, "input_ids": batch["input_ids"] + 10**6})
    assert model(input_ids=batch["input_ids"]).logits.shape == (3, 9, VOCABULARY)


def test_trained_output_embedding_takes_the_plain_formula_and_gets_its_gradient() -> None:
    model, batch = small_llama().double(), _batch()
    assert install_token_loss(model)
    model.requires_grad_(True)
    outputs = model(**batch)
    assert outputs.logits.shape == (3, 9, VOCABULARY)
    mean_token_loss(outputs, batch["labels"], None).backward()
    ours = model.lm_head.weight.grad.clone()
    model.zero_grad()
    _stock_loss(model, batch).backward()
    torch.testing.assert_close(ours, model.lm_head.weight.grad, rtol=1e-5, atol=1e-8)  # theirs is of float32 logits


def test_adapter_on_the_output_embedding_is_part_of_the_loss() -> None:
    model, batch = small_llama(tied=False).double(), _batch()
    install_token_loss(model)
    al.attach(model, al.AdapterSpec.lora(rank=2, targets=("lm_head",)))
    for site in al.sites(model):
        nn.init.normal_(site.B)
    loss = mean_token_loss(model(**batch), batch["labels"], None)
    torch.testing.assert_close(loss, _stock_loss(model, batch).double(), rtol=1e-6, atol=1e-6)
    assert all(gradient.any() for gradient in _gradients(model, loss).values())


def _capped() -> Any:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.5,
            initializer_range=0.4,
        )
    ).eval()


def test_logits_that_the_model_changes_take_the_plain_formula() -> None:
    model, batch = _capped(), _batch()
    assert not install_token_loss(model)
    model.requires_grad_(False)
    loss = mean_token_loss(model(**batch), batch["labels"], None)
    torch.testing.assert_close(loss, _stock_loss(model, batch))


def test_model_of_another_make_has_the_loss_of_transformers() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    assert install_token_loss(model)
    model.requires_grad_(False)
    batch = _batch()
    torch.testing.assert_close(
        mean_token_loss(model(**batch), batch["labels"], None), _stock_loss(model, batch), rtol=1e-5, atol=1e-6
    )


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model, batch = _adapted(), _batch()
    model.train()
    plain = _gradients(model, mean_token_loss(model(**batch), batch["labels"], None))
    # Each version of transformers has its own name for it; positions are the same.
    turn_on = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    turn_on({"use_reentrant": False})
    again = _gradients(model, mean_token_loss(model(**batch), batch["labels"], None))
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=1e-11, atol=1e-13)


def test_copy_of_a_model_has_its_own_loss() -> None:
    model, batch = _adapted(), _batch()
    twin = copy.deepcopy(model)
    for site in al.sites(twin):
        nn.init.zeros_(site.B)
    ours, theirs = (mean_token_loss(m(**batch), batch["labels"], None) for m in (model, twin))
    torch.testing.assert_close(theirs, _stock_loss(twin, batch).double(), rtol=1e-6, atol=1e-6)
    assert (ours - theirs).abs().item() > 1e-4


def test_wrapper_that_skips_the_hooks_still_gets_the_loss() -> None:
    model, batch = _adapted(), _batch()
    wanted = mean_token_loss(model(**batch), batch["labels"], None)
    without = model.forward(**{key: batch[key] for key in ("input_ids", "attention_mask", TARGETS)})
    torch.testing.assert_close(mean_token_loss(without, batch["labels"], None), wanted, rtol=1e-12, atol=1e-12)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrapping", ["ddp", "sharded", "head sharded by itself"])
@pytest.mark.usefixtures("one_process")
def test_wrapped_model_has_the_same_loss_and_gradients(wrapping: str) -> None:
    batch = _batch()
    plain, model = _adapted(tied=False), _adapted(tied=False)
    wanted = _gradients(plain, mean_token_loss(plain(**batch), batch["labels"], None))
    wrapped: Any = model.train()
    if wrapping == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        inner = [*model.model.layers, *([model.lm_head] if wrapping != "sharded" else [])]
        for module in (*inner, model):
            fully_shard(module)
    outputs = wrapped(**batch)
    assert outputs.logits.shape == (3, 0, VOCABULARY)
    mean_token_loss(outputs, batch["labels"], None).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            given = parameter.grad.full_tensor() if wrapping != "ddp" else parameter.grad
            torch.testing.assert_close(given, wanted[name], rtol=1e-11, atol=1e-13)


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    model, batch = _adapted(), _batch(4, 64)
    owned = [*model.parameters(), *model.buffers()]
    stock = kept_for_backward(lambda: _stock_loss(model, batch), owned=owned)["other"]
    ours = kept_for_backward(lambda: mean_token_loss(model(**batch), batch["labels"], None), owned=owned)["other"]
    # Theirs: the logarithms of the shares, float32, of every token. Ours instead: one row of the width for each target.
    logits, targets = 4 * 64 * VOCABULARY * 4, int((batch["labels"] != IGNORED).sum())
    assert stock - ours > 0.9 * (logits - targets * WIDTH * 8)


# --- scoring --------------------------------------------------------------------------------------------------------


def test_scoring_sums_each_row_and_counts_its_targets() -> None:
    model, batch = small_llama(), _batch()
    install_token_loss(model)
    with torch.inference_mode():
        kept = TokenScoring("perplexity").keep(model, batch)
        logits = model(input_ids=batch["input_ids"]).logits
    for row in range(3):
        by_hand = cross_entropy(logits[row], batch[TARGETS][row], reduction="sum")
        torch.testing.assert_close(kept[row, 0], by_hand, rtol=1e-5, atol=1e-5)
    assert kept[:, 1].tolist() == [5, 8, 8]


def test_perplexity_weighs_tokens_not_rows() -> None:
    scoring = TokenScoring("perplexity")
    evidence = scoring.evidence(np.array([[2.0, 1.0], [4.0, 5.0]], dtype=np.float32), None)  # type: ignore[arg-type]
    assert evidence.dtype == np.float64
    assert scoring.score(evidence) == {"perplexity": pytest.approx(math.e), "loss": 1.0}
    assert (scoring.metric, scoring.greater_is_better) == ("perplexity", False)


def test_score_of_a_lost_model_is_finite() -> None:
    assert all(map(math.isfinite, TokenScoring("loss").score(np.array([[1e6, 10.0]])).values()))
    assert TokenScoring("loss").score(np.array([[0.0, 0.0]])) == {"perplexity": 1.0, "loss": 0.0}


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"data.metric='accuracy' is no metric of this task"):
        TokenScoring("accuracy")
