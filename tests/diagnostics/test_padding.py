from __future__ import annotations

import torch

from asymlora.diagnostics.padding import attention_mask


def test_masks_are_found_by_the_layer() -> None:
    encoder, decoder = torch.ones(2, 3), torch.ones(2, 4)
    batch = {"attention_mask": encoder, "decoder_attention_mask": decoder}
    assert attention_mask(batch, "encoder.block.q") is encoder
    assert attention_mask(batch, "decoder.block.q") is decoder
    assert attention_mask({"attention_mask": torch.ones(2, 1, 3, 3)}, "q") is None
    assert attention_mask([encoder], "q") is None


def test_decoders_without_a_mask_count_where_their_labels_do_and_cross_attention_reads_the_encoder() -> None:
    source, labels = torch.tensor([[1, 1, 0]]), torch.tensor([[5, -100, -100]])
    batch = {"attention_mask": source, "labels": labels, "decoder_input_ids": torch.tensor([[0, 5, 0]])}
    decoder, cross = "decoder.block.0.layer.0.SelfAttention.k", "decoder.block.0.layer.1.EncDecAttention"
    for name in (decoder, f"{cross}.q", f"{cross}.o"):
        assert attention_mask(batch, name).tolist() == [[True, False, False]]
    for name in ("encoder.block.0.layer.0.SelfAttention.k", f"{cross}.k", f"{cross}.v"):
        assert attention_mask(batch, name) is source
    # A decoder alone: labels that do not count are its prompt, no padding.
    alone = {"attention_mask": source, "labels": labels}
    assert attention_mask(alone, "model.decoder.layers.0.self_attn.k_proj") is source
    assert attention_mask({**batch, "decoder_attention_mask": labels}, decoder) is labels


def test_a_decoder_without_mask_and_labels_counts_all_and_not_by_the_encoders_mask() -> None:
    batch = {"attention_mask": torch.tensor([[1, 0]]), "decoder_input_ids": torch.tensor([[0, 5]])}
    assert attention_mask(batch, "decoder.layers.0.q_proj") is None
