"""Addressed draws: numbers that follow from (seed, site, factor) alone, the same bits on every machine.

Integers come from the counter-based generator Philox4x64-10. What turns them into values uses only operations that
IEEE 754 rounds exactly (+ - * / sqrt, casts, integer arithmetic), one element at a time and in a fixed order: no BLAS,
no LAPACK, no transcendental function and no library's sum. How a scheme scales these values stands in `asymlora.init`.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from asymlora.errors import RankError, SpecError

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

DRAWS_VERSION = 1
"""Version of the map from address to bits. A file that stores an address stores this beside it."""

FRAME_BOUND = 2.0**-40
"""No two rows of `Draws.frame` have an inner product further than this from 0, no row from 1 (float64)."""

_ATTEMPTS = 32
_LEAST_PIVOT = 2.0**-30
_ONE_PASS_DETERMINANT = 2.0**-6
_BLOCK = 32768


@dataclass(frozen=True, slots=True)
class Draws:
    """The numbers that belong to one factor of one site.

    Every method is a function of the address and of its arguments: calling one changes nothing for the next, so two
    methods called on one stream return values made of the same integers.

    Attributes:
        seed: The adapter's seed.
        site: Path of the adapted module in the model.
        factor: ``A`` or ``B``.

    Example:
        >>> draws = Draws(seed=0, site="encoder.query", factor="A")
        >>> bool((draws.normal(3) == draws.normal(5)[:3]).all())
        True

    Source:
        Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox). The address is ours.
    """

    seed: int
    site: str
    factor: Literal["A", "B"]

    def words(self, count: int, *, stream: int = 0) -> Words:
        """Return the first ``count`` 64-bit words of a stream; the streams of one address are independent.

        Args:
            count: How many words.
            stream: Which stream, at least 0.

        Returns:
            Words, shape ``(count,)``.
        """
        return philox_words(int.from_bytes(self._address()[:16], "little"), counter=stream << 192, count=count)

    def uniform(self, count: int, *, stream: int = 0) -> Floats:
        """Return numbers that are uniform on the odd multiples of ``2**-53`` in (-1, 1): symmetric and never zero."""
        words = self.words(count, stream=stream)
        words >>= np.uint64(10)
        words |= np.uint64(1)
        odd = words.view(np.int64)
        odd -= 2**53
        return np.multiply(odd, 2.0**-53, dtype=np.float64)

    def normal(self, count: int, *, stream: int = 0) -> Floats:
        """Return standard normal numbers, by `normal_quantile` of the uniform ones."""
        return normal_quantile(self.uniform(count, stream=stream))

    def subset(self, count: int, size: int, *, stream: int = 0) -> list[int]:
        """Return ``count`` different numbers below ``size`` in ascending order, every such set equally likely."""
        order = np.argsort(self.words(size, stream=stream), kind="stable")
        return sorted(int(index) for index in order[:count])

    def frame(self, rank: int, length: int) -> Floats:
        """Return ``rank`` orthonormal rows in a random direction.

        The rows of an integer matrix are orthonormalised by the Cholesky factor of their exact Gram matrix. Its
        entries are bits set in a word less 32: centred binomial numbers, not normal ones. So the frame is uniform on
        the Stiefel manifold only approximately. Its law is that of the uniform one under signs and permutations of the
        coordinates, hence ``E[P] = rank/length * I`` for the projection P; the kurtosis of an entry is 1/32 below.

        Args:
            rank: How many rows, at most ``length``.
            length: How long they are.

        Returns:
            Rows, shape ``(rank, length)``, orthonormal to `FRAME_BOUND`. Where no dependent integers had to be drawn
            again (next to never for ``rank`` well below ``length``) and one pass was enough, the first rows are those
            of a smaller ``rank``.

        Raises:
            RankError: More rows than ``length``, or no attempt gave independent rows.

        Source:
            The method is CholeskyQR (Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm";
            its second pass where the rows are nearly dependent). Integers, exact Gram matrix and order are ours.
        """
        if not 0 < rank <= length:
            raise RankError(
                f"{rank} rows of length {length} cannot be orthonormal. The rank must be at least 1 and at most"
                f" {length} here; lower it, for this layer alone by rank_pattern."
            )
        for attempt in range(_ATTEMPTS):
            bits = np.bitwise_count(self.words(rank * length, stream=attempt))
            frame = orthonormalised(bits.astype(np.int32).reshape(rank, length) - 32)
            if frame is not None:
                return frame
        raise RankError(
            f"{_ATTEMPTS} draws of {rank} rows of length {length} for seed={self.seed}, site={self.site!r} were all"
            " too near to dependence. Give the adapter another seed or a lower rank."
        )

    def generator(self) -> Generator:
        """Return a torch generator on CPU that is seeded from the address, for a user's own init."""
        return Generator(device="cpu").manual_seed(int.from_bytes(self._address()[16:24], "little") >> 1)

    def _address(self) -> bytes:
        return hashlib.sha256(f"{self.seed}\x1f{self.site}\x1f{self.factor}".encode()).digest()


def philox_words(key: int, *, counter: int, count: int) -> Words:
    """Return the words of Philox4x64-10 from the block ``counter`` on, four to a block.

    Args:
        key: 128 bits, the low word first.
        counter: Number of the first block, 256 bits.
        count: How many words.

    Returns:
        Words, shape ``(count,)``.

    Example:
        >>> f"{philox_words(0, counter=0, count=1)[0]:x}"
        '16554d9eca36314c'
    """
    # numpy steps the counter before it makes a block.
    before = (counter - 1) % 2**256
    generator = np.random.Philox(key=_split(key, 2), counter=_split(before, 4))
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def _split(number: int, parts: int) -> Words:
    return np.array([number >> (64 * part) & (2**64 - 1) for part in range(parts)], dtype=np.uint64)


def tree_sum(values: Floats) -> Floats:
    """Return the sum over the last axis by halving: entry ``i`` plus entry ``i + ceil(n/2)``, until one is left.

    A library's own sum may add in another order on another processor; this one has one order. ``values`` is used up.

    Args:
        values: Terms, shape ``(..., n)``; overwritten.

    Returns:
        Sums, shape ``(...)``.

    Example:
        >>> tree_sum(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
        [6.0, 15.0]
    """
    length = values.shape[-1]
    while length > 1:
        half = (length + 1) // 2
        values[..., : length - half] += values[..., half:length]
        length = half
    return values[..., 0]


def orthonormalised(rows: NDArray[np.int32]) -> Floats | None:
    """Return the rows orthonormalised from the first on, or None where they are too near to dependence.

    Args:
        rows: Integers of at most 32 in size, shape ``(rank, length)``.

    Returns:
        Rows, orthonormal to `FRAME_BOUND`, of the same shape, or None.
    """
    frame, determinant = _eliminated(_integer_gram(rows), rows)
    if frame is None or determinant >= _ONE_PASS_DETERMINANT:
        return frame
    frame, _ = _eliminated(_tree_gram(frame), frame)
    if frame is None or np.abs(_tree_gram(frame) - np.eye(len(frame))).max() > FRAME_BOUND:
        return None
    return frame


def _eliminated(gram: NDArray[np.number], rows: NDArray[np.number]) -> tuple[Floats | None, float]:
    """Return ``L^-1 rows`` for ``gram = L L^T``, and the determinant of the rows' correlation matrix.

    Elimination on ``[gram | rows]`` is the Cholesky factorisation and the forward substitution in one. The
    determinant d bounds the smallest eigenvalue of the correlation matrix from below by d/e.
    """
    rank = len(rows)
    table = np.concatenate([gram, rows], axis=1, dtype=np.float64)
    product = np.empty_like(table)
    diagonal = gram.diagonal().tolist()
    determinant = 1.0
    for i in range(rank):
        pivot = float(table[i, i])
        if not pivot > _LEAST_PIVOT * diagonal[i]:
            return None, 0.0
        determinant *= pivot / diagonal[i]
        below = table[i + 1 :, i : i + 1] / pivot
        table[i + 1 :, i:] -= np.multiply(below, table[i, i:], out=product[i + 1 :, i:])
        table[i, rank:] /= math.sqrt(pivot)
        # The row's own Gram entries are no longer needed; those of the rows below were updated from them above.
    return table[:, rank:], determinant


def _integer_gram(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    # Sums of products up to 2**10 fit 32 bits up to this length, where they are twice as fast.
    fitting = rows if rows.shape[1] <= 2**20 else rows.astype(np.int64)
    gram = np.empty((len(rows), len(rows)), dtype=np.int64)
    for i in range(0, len(rows), 8):
        # Integers: exact in whatever order einsum adds them.
        strip = np.einsum("ik,jk->ij", fitting[i : i + 8], fitting[: i + 8])
        gram[i : i + 8, : i + 8] = strip
        gram[: i + 8, i : i + 8] = strip.T
    return gram


def _tree_gram(rows: Floats) -> Floats:
    gram = np.empty((len(rows), len(rows)))
    products = np.empty_like(rows)
    for i in range(1, len(rows) + 1):
        terms = np.multiply(rows[:i], rows[i - 1], out=products[:i])
        gram[i - 1, :i] = gram[:i, i - 1] = tree_sum(terms)
    return gram


_CENTRE = (
    (
        *(2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457),
        *(13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    ),
    (
        *(5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867),
        *(5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
    ),
)
_TAIL = (
    (
        *(7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258),
        *(3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    ),
    (
        *(1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459),
        *(0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
    ),
)
_FAR_TAIL = (
    (
        *(2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.2426609473880784386e-3, 0.026532189526576123093),
        *(0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    ),
    (
        *(2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4),
        *(0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
    ),
)
"""Numerator and denominator of the three rational functions of AS 241 (PPND16), highest power first."""


def normal_quantile(uniform: Floats) -> Floats:
    """Return the standard normal quantile of ``(1 + uniform) / 2``, to about 1e-15 of itself.

    Args:
        uniform: Numbers in (-1, 1), shape ``(n,)``.

    Returns:
        Quantiles, shape ``(n,)``.

    Source:
        Wichura 1988, "Algorithm AS 241: The Percentage Points of the Normal Distribution", routine PPND16;
        coefficients as in Python's ``statistics`` module. `natural_log` instead of a library's logarithm is ours.
    """
    values = np.empty_like(uniform)
    # Blocks that stay in the processor's cache.
    for start in range(0, len(uniform), _BLOCK):
        block = uniform[start : start + _BLOCK]
        q = block * 0.5
        result = _rational(_CENTRE, 0.180625 - q * q)
        result *= q
        outside = np.flatnonzero(np.abs(q) > 0.425)
        result[outside] = _tail_quantile(block[outside])
        values[start : start + _BLOCK] = result
    return values


def _tail_quantile(uniform: Floats) -> Floats:
    # 1 - |uniform| is exact for multiples of 2**-53.
    r = np.sqrt(-natural_log((1.0 - np.abs(uniform)) * 0.5))
    size = _rational(_TAIL, r - 1.6)
    far = np.flatnonzero(r > 5.0)
    if len(far):
        size[far] = _rational(_FAR_TAIL, r[far] - 5.0)
    return np.copysign(size, uniform)


def _rational(coefficients: tuple[Sequence[float], Sequence[float]], x: Floats) -> Floats:
    numerator, denominator = (_polynomial(part, x) for part in coefficients)
    numerator /= denominator
    return numerator


def _polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    value = x * coefficients[0]
    value += coefficients[1]
    for coefficient in coefficients[2:]:
        value *= x
        value += coefficient
    return value


_LN2_HIGH = 0.693147180369123816490
_LN2_LOW = 1.90821492927058770002e-10
_ATANH = tuple(2.0 / (2 * power + 1) for power in range(10, -1, -1))


def natural_log(x: Floats) -> Floats:
    r"""Return the natural logarithm, to 5e-16 of itself, by exactly rounded operations alone.

    .. math:: \ln(2^e m) = e \ln 2 + 2 \operatorname{artanh} s, \quad s = (m - 1)/(m + 1), \quad |s| < 0.172

    Args:
        x: Positive normal numbers, shape ``(n,)``.

    Returns:
        Logarithms, shape ``(n,)``.

    Source:
        The series of artanh to the power 21 leaves less than 1e-18 of its value (derived here). The two parts of ln 2
        are those of FreeBSD's ``e_log.c``, whose high part times an exponent is exact.
    """
    m, e = np.frexp(x)
    small = m < math.sqrt(0.5)
    m[small] *= 2.0
    exponent = (e - small).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    value = _polynomial(_ATANH, s * s)
    value *= s
    return exponent * _LN2_HIGH + (value + exponent * _LN2_LOW)


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and values, the same on any device and byte order.

    Args:
        tensor: Real numbers of any type and shape, on any device that holds values.

    Returns:
        64 hexadecimal digits.

    Raises:
        SpecError: The tensor is on the meta device.

    Example:
        >>> digest(torch.zeros(2)) == digest(torch.zeros(2)), digest(torch.zeros(2)) == digest(torch.zeros(1, 2))
        (True, False)
    """
    if tensor.is_meta:
        raise SpecError("A tensor on the meta device has no values and so no digest. Load the weights first.")
    header = f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}\n"
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    values = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big":
        values = np.ascontiguousarray(values.reshape(-1, flat.element_size())[:, ::-1])
    return hashlib.sha256(header.encode() + values.tobytes()).hexdigest()
