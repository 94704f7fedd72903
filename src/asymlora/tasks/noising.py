"""BART's noise on rows of tokens: spans become one mask token each, sentences change places. Arrays in, arrays out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A damaged row and what it was.

    Attributes:
        source: Token ids after the damage.
        target: Token ids before it.
        hidden: Of each token of the target, whether the source lacks it.
    """

    source: list[int]
    target: list[int]
    hidden: list[bool]


def noise(
    sentences: Sequence[Sequence[int]], *, mask: int, address: Sequence[int], share: float = 0.3, mean_span: float = 3.0
) -> Noised:
    """Damage a row: its sentences in a random order, then `infill`.

    Args:
        sentences: Token ids of each sentence.
        mask: Id of the mask token.
        address: Whole numbers, at least 0, that the draws follow from alone: the seed, the epoch and the row.
        share: Share of the tokens that is hidden, in [0, 1].
        mean_span: Mean length of a span in tokens.

    Returns:
        Source, target and what is hidden.

    Example:
        >>> noised = noise([[5, 6, 7], [8, 9]], mask=4, address=(0, 0, 0))
        >>> noised.target, sum(noised.hidden)
        ([5, 6, 7, 8, 9], 2)

    Source:
        Lewis et al., 2019, "BART", section 2.2: text infilling and sentence permutation; section 3: 30 % of the tokens,
        all sentences permuted. The paper leaves open where the spans may lie; see `infill`.
    """
    random = np.random.default_rng(list(address))
    starts = np.cumsum([0, *map(len, sentences)])
    order = [int(k) for i in random.permutation(len(sentences)) for k in range(starts[i], starts[i + 1])]
    target = [int(token) for sentence in sentences for token in sentence]
    source, gone = infill([target[k] for k in order], mask=mask, random=random, share=share, mean_span=mean_span)
    hidden = [False] * len(target)
    for k, was_hidden in zip(order, gone, strict=True):
        hidden[k] = was_hidden
    return Noised(source=source, target=target, hidden=hidden)


def infill(
    tokens: Sequence[int], *, mask: int, random: np.random.Generator, share: float, mean_span: float
) -> tuple[list[int], list[bool]]:
    """Replace spans by one mask token each; a span of length 0 puts a mask token between two tokens.

    The spans of `span_lengths` and the tokens outside them are put in a row; every such arrangement is equally likely.

    Args:
        tokens: Token ids.
        mask: Id of the mask token.
        random: Where the draws come from.
        share: Share of the tokens that is hidden, in [0, 1].
        mean_span: Mean length of a span in tokens.

    Returns:
        The source, and of each token whether it is hidden.
    """
    lengths = span_lengths(math.ceil(share * len(tokens)), mean=mean_span, random=random)
    slots = len(tokens) - sum(lengths) + len(lengths)
    spans = dict(zip(sorted(random.permutation(slots)[: len(lengths)].tolist()), lengths, strict=True))
    source: list[int] = []
    hidden: list[bool] = []
    for slot in range(slots):
        length = spans.get(slot)
        if length is None:
            source.append(int(tokens[len(hidden)]))
            hidden.append(False)
        else:
            source.append(mask)
            hidden += [True] * length
    return source, hidden


def span_lengths(total: int, *, mean: float, random: np.random.Generator) -> list[int]:
    """Draw lengths from a Poisson distribution until they sum to ``total``; the last is cut to fit.

    Args:
        total: Tokens to hide, at least 0.
        mean: Mean of the distribution, above 0.
        random: Where the draws come from.

    Returns:
        Lengths, some of them 0, that sum to ``total``.
    """
    lengths: list[int] = []
    left = total
    while left > 0:
        lengths.append(min(int(random.poisson(mean)), left))
        left -= lengths[-1]
    return lengths
