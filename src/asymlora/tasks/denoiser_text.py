"""The text that the denoiser is pretrained on, its tokenizer and its rows: what two packages ship, in sentences."""

from __future__ import annotations

import bz2
import csv
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from asymlora.tasks.embedded_data import BROWN, REVIEWS, plain_brown
from asymlora.tasks.noising import Noised, noise

MAX_POSITIONS = 256
BLOCK_TOKENS = 62
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In the order of BART's own."""
_HELD_OUT = 20
_TRAINING, _MEASURING = 0, 1

Block = list[list[int]]
"""Token ids of consecutive sentences."""


def documents() -> list[list[str]]:
    """Return the text: one list of sentences for each file of the Brown corpus and each film of the reviews."""
    tagged = [file.read_text(encoding="utf-8").splitlines() for file in BROWN.files().values()]
    brown = [[sentence for line in lines if (sentence := plain_brown(line))] for lines in tagged]
    films: dict[str, list[str]] = {}
    with bz2.open(REVIEWS.file(), "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            text = " ".join(row["text"].split())
            films.setdefault(row["movie_name"], []).extend(s for s in re.split(r"(?<=[.!?]) ", text) if s)
    return brown + [films[name] for name in sorted(films)]


def train_tokenizer(sentences: Sequence[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on sentences, with BART's special tokens first.

    Args:
        sentences: The text.
        vocabulary: Tokens, the special ones included.

    Returns:
        The tokenizer; it puts ``<s>`` before and ``</s>`` behind each text.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore[reportAttributeAccessIssue]
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        sentences,
        trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet),
    )
    bos, pad, eos, unk, mask = SPECIAL
    bpe.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{bos} $A {eos}", pair=f"{bos} $A {eos} $B {eos}", special_tokens=[(bos, 0), (eos, 2)]
    )
    named = {"bos_token": bos, "pad_token": pad, "eos_token": eos, "unk_token": unk, "mask_token": mask}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=MAX_POSITIONS, **named)


def blocks_of(document: Sequence[Sequence[int]], *, address: Sequence[int]) -> Iterator[Block]:
    """Cut a document into rows of whole consecutive sentences, of lengths that are drawn.

    Args:
        document: Token ids of each sentence; what goes beyond `BLOCK_TOKENS` is cut into sentences of its own.
        address: Whole numbers, at least 0, that the lengths follow from alone.

    Yields:
        Rows of at most `BLOCK_TOKENS` tokens.
    """
    random = np.random.default_rng(list(address))
    pieces = [list(s[i : i + BLOCK_TOKENS]) for s in document for i in range(0, len(s), BLOCK_TOKENS)]
    block: Block = []
    limit = random.integers(1, BLOCK_TOKENS + 1)
    for piece in pieces:
        if block and sum(map(len, block)) + len(piece) > limit:
            yield block
            block, limit = [], random.integers(1, BLOCK_TOKENS + 1)
        block.append(piece)
    if block:
        yield block


def divided_blocks(
    texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> tuple[list[Block], list[Block]]:
    """Tokenise the text and cut it into rows: every twentieth document is held out.

    Args:
        texts: Sentences by document.
        tokenizer: The model's.
        seed: Of the lengths of the rows.

    Returns:
        Training rows and held-out rows.
    """
    parts: tuple[list[Block], list[Block]] = ([], [])
    for number, sentences in enumerate(texts):
        if not sentences:
            continue
        ids: list[list[int]] = tokenizer(list(sentences), add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        parts[number % _HELD_OUT == 0].extend(blocks_of(ids, address=(seed, number)))
    return parts


class NoisedBlocks(Dataset[dict[str, Any]]):
    """All rows of a training in the order in which they are seen: each follows from its place alone.

    So a resumed run sees what the first would have seen, and no epoch has to be told.

    Args:
        blocks: The rows.
        mask: Id of the mask token.
        steps: Batches.
        batch_size: Rows per batch; rows of similar length stand together.
        seed: Of order and noise.
    """

    def __init__(self, blocks: Sequence[Block], *, mask: int, steps: int, batch_size: int, seed: int) -> None:
        self.blocks = blocks
        self.mask = mask
        self.seed = seed
        lengths = [sum(map(len, block)) for block in blocks]
        self.order: list[tuple[int, int]] = []
        epoch = 0
        while len(self.order) < steps * batch_size:
            rows = _similar_together(lengths, batch_size=batch_size, address=(seed, epoch))
            self.order += [(epoch, row) for row in rows]
            epoch += 1
        del self.order[steps * batch_size :]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        address = (self.seed, _TRAINING, *self.order[index])
        return as_item(noise(self.blocks[self.order[index][1]], mask=self.mask, address=address))


def _similar_together(lengths: Sequence[int], *, batch_size: int, address: Sequence[int]) -> list[int]:
    # Batches of rows of similar length, in a random order. An incomplete batch is left to another epoch.
    random = np.random.default_rng(list(address))
    rows = sorted(random.permutation(len(lengths)).tolist(), key=lambda row: lengths[row] // 4)
    if len(rows) <= batch_size:
        return rows
    batches = [rows[i : i + batch_size] for i in range(0, len(rows) - batch_size + 1, batch_size)]
    return [row for i in random.permutation(len(batches)) for row in batches[i]]


class HeldOutBlocks(Dataset[dict[str, Any]]):
    """Rows that are measured on, their noise always the same.

    Args:
        blocks: The rows.
        mask: Id of the mask token.
        seed: Of the noise.

    Attributes:
        noised: The rows and what is hidden of each.
    """

    def __init__(self, blocks: Sequence[Block], *, mask: int, seed: int) -> None:
        self.noised = [noise(block, mask=mask, address=(seed, _MEASURING, 0, row)) for row, block in enumerate(blocks)]

    def __len__(self) -> int:
        return len(self.noised)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return as_item(self.noised[index])


def as_item(noised: Noised) -> dict[str, Any]:
    """Return a row as the model takes it, source and target between the first and the last token.

    Example:
        >>> as_item(Noised(source=[4], target=[7, 8], hidden=[True, True]))
        {'input_ids': [0, 4, 2], 'attention_mask': [1, 1, 1], 'labels': [0, 7, 8, 2]}
    """
    bos, eos = SPECIAL.index("<s>"), SPECIAL.index("</s>")
    source, target = ([bos, *ids, eos] for ids in (noised.source, noised.target))
    return {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}
