"""Bytes that transformer blocks keep for backward, by kind of block and by attention kernel.

``T`` tokens (batch times length), ``d`` hidden width, ``f`` width of the feed-forward part. A block is written down as
its ops on a `Tape`; which storages these keep follows from there. A new kind of block is a function and its row in
`BLOCKS`, a new attention kernel a function and its row in `ATTENTION`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asymlora.errors import SpecError, UnknownNameError, nearest
from asymlora.theory.cost import AdaptedLayer
from asymlora.theory.tape import ACTIVATION_KEEPS, Storage, Tape

BlockKind = Literal["post_norm", "pre_norm", "gated", "fused_qkv"]
AttentionKernel = Literal["eager", "flash", "math"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One transformer block.

    Attributes:
        kind: ``post_norm`` (BERT, RoBERTa), ``pre_norm`` (ViT), ``gated`` (Llama), ``fused_qkv`` (GPT-2).
        layers: Its linear layers by role: ``q``, ``k``, ``v`` or ``qkv``, then ``o``, ``up``, ``down``, and ``gate``.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        activation: Name in transformers.
        hidden_dropout: Fraction that the block's own dropout drops of its hidden states.
        attention_dropout: Fraction that it drops of the attention weights.
        trains_norms: Whether gains and biases of its norms are trained.
    """

    kind: BlockKind
    layers: Mapping[str, AdaptedLayer] = field(hash=False)
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    trains_norms: bool = False

    def __post_init__(self) -> None:
        """Check kind, roles and activation.

        Raises:
            UnknownNameError: The kind or the activation has no row.
            SpecError: A layer is missing or not of the kind, or the heads do not divide.
        """
        if self.kind not in BLOCKS:
            raise UnknownNameError(
                f"kind={self.kind!r} is no kind of block.{nearest(self.kind, BLOCKS)} Known: {', '.join(BLOCKS)}."
            )
        wanted = ROLES[self.kind]
        if set(self.layers) != set(wanted):
            raise SpecError(f"A {self.kind} block has layers {', '.join(wanted)}, not {', '.join(self.layers)}.")
        if self.activation not in ACTIVATION_KEEPS:
            raise UnknownNameError(
                f"activation={self.activation!r} is not known.{nearest(self.activation, ACTIVATION_KEEPS)} Known:"
                f" {', '.join(ACTIVATION_KEEPS)}."
            )
        if self.heads % self.kv_heads:
            raise SpecError(f"kv_heads={self.kv_heads} must divide heads={self.heads}. Correct one of them.")

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return self.layers["o"].fan_out

    @property
    def attention_width(self) -> int:
        """Query heads times their width."""
        return self.heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What runs through the blocks, and how.

    Attributes:
        size: Sequences in the batch.
        length: Tokens of a sequence.
        itemsize: Bytes of one entry of the hidden states.
        attention: Which kernel computes attention; `attention_kernel` chooses it.
        padded: Whether an attention mask is passed on because sequences differ in length.
        input_grad: Whether the first block's input takes a gradient.
        kernel: Whether asymlora's C kernel runs the thin products.
        device: Type of the device.
    """

    size: int
    length: int
    itemsize: int = 4
    attention: AttentionKernel = "flash"
    padded: bool = False
    input_grad: bool = True
    kernel: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SpecError: A number is below 1.
            UnknownNameError: The kernel has no row.
        """
        if min(self.size, self.length, self.itemsize) < 1:
            raise SpecError(
                f"size={self.size}, length={self.length} and itemsize={self.itemsize} must each be at least 1."
            )
        if self.attention not in ATTENTION:
            raise UnknownNameError(
                f"attention={self.attention!r} is no kernel.{nearest(self.attention, ATTENTION)} Known:"
                f" {', '.join(ATTENTION)}."
            )

    @property
    def tokens(self) -> int:
        """Tokens of the batch, ``T``."""
        return self.size * self.length

    def tape(self) -> Tape:
        """Return a tape without ops, for this device."""
        return Tape(kernel=self.kernel, on_cpu=self.device == "cpu")


def attention_kernel(implementation: str, *, device: str = "cpu", dropout: float = 0.0) -> AttentionKernel:
    """Return which kernel torch runs for an attention implementation of transformers.

    Args:
        implementation: ``eager`` or ``sdpa``.
        device: Type of the device.
        dropout: Fraction of the attention weights that is dropped.

    Returns:
        A row of `ATTENTION`.

    Raises:
        UnknownNameError: The implementation is another.

    Example:
        >>> attention_kernel("sdpa"), attention_kernel("sdpa", dropout=0.1)
        ('flash', 'math')

    Source:
        torch 2.13, `sdp_utils_cpp.h`: the CPU's flash kernel takes no dropout. On other devices: read, not measured.
    """
    if implementation == "eager":
        return "eager"
    if implementation != "sdpa":
        raise UnknownNameError(f"implementation={implementation!r} is not known. Known: eager, sdpa.")
    return "math" if device == "cpu" and dropout else "flash"


# Attention -----------------------------------------------------------------------------------------------------------


def _repeated(tape: Tape, x: Storage, block: Block) -> Storage:
    groups = block.heads // block.kv_heads
    return x if groups == 1 else tape.op(f"{x.name} repeated", (x,), elements=groups * x.elements)


def _eager(tape: Tape, q: Storage, k: Storage, v: Storage, block: Block, batch: Batch) -> Storage:
    """Written out: keeps q, k, v as the products read them, and the attention weights ``(batch, heads, L, L)``."""
    # A batch of products needs its heads side by side in memory, so each of q, k, v is copied; of one sequence not.
    groups = block.heads // block.kv_heads
    copies = batch.size > 1
    q = tape.copy(q) if copies else q
    k, v = ((_repeated(tape, x, block) if groups > 1 else tape.copy(x) if copies else x) for x in (k, v))
    weights = batch.size * block.heads * batch.length**2
    scores = tape.op("scaled scores", (tape.product("scores", q, k, elements=weights),))
    if batch.padded or block.kind in ("gated", "fused_qkv"):
        scores = tape.op("masked scores", (scores,), hands_on=True)
    in_float = block.kind in ("gated", "pre_norm")  # these ask for a softmax in float32
    if in_float:
        scores = tape.cast(scores, 4)
    attended = tape.op("attention weights", (scores,), keeps_output=True)
    attended = tape.cast(attended, batch.itemsize)
    attended = tape.dropout(attended, block.attention_dropout)
    out = tape.product("head outputs", attended, v, elements=q.elements)
    return tape.copy(out)


def _flash(tape: Tape, q: Storage, k: Storage, v: Storage, block: Block, batch: Batch) -> Storage:
    """Fused: keeps q, k, v, the output and a float32 a head and token; with padding the mask as floats too."""
    out = Storage("attention output", q.elements, q.itemsize, grad=any(t.grad for t in (q, k, v)))
    kept = [q, k, v, Storage("logsumexp", batch.tokens * block.heads, 4, grad=False)]
    if batch.padded:
        kept.append(Storage("float mask", batch.size * batch.length**2, q.itemsize, grad=False))
    return tape.op("attention output", (q, k, v), kept=kept, keeps_output=True, elements=out.elements)


def _math(tape: Tape, q: Storage, k: Storage, v: Storage, block: Block, batch: Batch) -> Storage:
    """SDPA by plain products: keeps scaled q and k, v, the weights, and with dropout its mask and what is left."""
    separate = batch.size == 1 or block.heads > block.kv_heads
    k, v = _repeated(tape, k, block), _repeated(tape, v if separate else tape.copy(v), block)
    scaled = [tape.op(f"scaled {x.name}", (x,)) for x in (q, k)]
    weights = batch.size * block.heads * batch.length**2
    scores = tape.product("scores", *scaled, elements=weights)
    attended = tape.op("attention weights", (scores,), keeps_output=True)
    attended = tape.dropout(attended, block.attention_dropout)
    out = tape.product("head outputs", attended, v, elements=q.elements)
    return tape.copy(out)


ATTENTION: dict[str, Callable[[Tape, Storage, Storage, Storage, Block, Batch], Storage]] = {
    "eager": _eager,
    "flash": _flash,
    "math": _math,
}
"""One row a kernel."""


# Blocks --------------------------------------------------------------------------------------------------------------


def _separate_qkv(tape: Tape, x: Storage, block: Block, batch: Batch) -> list[Storage]:
    return [tape.linear(x, block.layers[role], rows=batch.tokens, name=role) for role in "qkv"]


def _attention(tape: Tape, qkv: list[Storage], block: Block, batch: Batch) -> Storage:
    q, k, v = qkv
    context = ATTENTION[batch.attention](tape, q, k, v, block, batch)
    return tape.linear(context, block.layers["o"], rows=batch.tokens, name="o")


def _feed_forward(tape: Tape, x: Storage, block: Block, batch: Batch) -> Storage:
    hidden = tape.linear(x, block.layers["up"], rows=batch.tokens, name="up")
    return tape.linear(tape.activation(hidden, block.activation), block.layers["down"], rows=batch.tokens, name="down")


def _post_norm(tape: Tape, x: Storage, block: Block, batch: Batch, _rotary: list[Storage]) -> Storage:
    norm: dict[str, Any] = {"rows": batch.tokens, "trains_gain": block.trains_norms}
    attended = _attention(tape, _separate_qkv(tape, x, block, batch), block, batch)
    x = tape.layer_norm(tape.add("sum", tape.dropout(attended, block.hidden_dropout), x), **norm)
    fed = tape.dropout(_feed_forward(tape, x, block, batch), block.hidden_dropout)
    return tape.layer_norm(tape.add("sum", fed, x), **norm)


def _pre_norm(tape: Tape, x: Storage, block: Block, batch: Batch, _rotary: list[Storage]) -> Storage:
    norm: dict[str, Any] = {"rows": batch.tokens, "trains_gain": block.trains_norms}
    normed = tape.layer_norm(x, **norm)
    if block.kind == "fused_qkv":
        joint = tape.linear(normed, block.layers["qkv"], rows=batch.tokens, name="qkv")
        qkv = [tape.view(role, joint, joint.elements // 3) for role in "qkv"]
    else:
        qkv = _separate_qkv(tape, normed, block, batch)
    x = tape.add("sum", tape.dropout(_attention(tape, qkv, block, batch), block.hidden_dropout), x)
    fed = _feed_forward(tape, tape.layer_norm(x, **norm), block, batch)
    return tape.add("sum", tape.dropout(fed, block.hidden_dropout), x)


def _gated(tape: Tape, x: Storage, block: Block, batch: Batch, rotary: list[Storage]) -> Storage:
    norm: dict[str, Any] = {"rows": batch.tokens, "trains_gain": block.trains_norms}
    q, k, v = _separate_qkv(tape, tape.rms_norm(x, **norm), block, batch)
    q, k = (_rotated(tape, part, rotary) for part in (q, k))
    x = tape.add("sum", _attention(tape, [q, k, v], block, batch), x)
    normed = tape.rms_norm(x, **norm)
    gate, up = (tape.linear(normed, block.layers[role], rows=batch.tokens, name=role) for role in ("gate", "up"))
    product = tape.product("gated", tape.activation(gate, block.activation), up)
    return tape.add("sum", tape.linear(product, block.layers["down"], rows=batch.tokens, name="down"), x)


def _rotated(tape: Tape, x: Storage, rotary: list[Storage]) -> Storage:
    cos, sin = rotary
    turned = tape.op(f"{x.name} turned", (x,))
    return tape.add(f"{x.name} rotated", tape.product("cos part", x, cos), tape.product("sin part", turned, sin))


BLOCKS: dict[str, Callable[[Tape, Storage, Block, Batch, list[Storage]], Storage]] = {
    "post_norm": _post_norm,
    "pre_norm": _pre_norm,
    "gated": _gated,
    "fused_qkv": _pre_norm,
}
"""One row a kind of block."""
ROLES = {
    "post_norm": ("q", "k", "v", "o", "up", "down"),
    "pre_norm": ("q", "k", "v", "o", "up", "down"),
    "gated": ("q", "k", "v", "o", "gate", "up", "down"),
    "fused_qkv": ("qkv", "o", "up", "down"),
}
"""Linear layers of each kind."""


def run_blocks(tape: Tape, x: Storage, blocks: tuple[Block, ...], batch: Batch) -> list[Storage]:
    """Put blocks on a tape, one after another.

    Args:
        tape: Where they go.
        x: Input of the first, shape ``(T, d)``.
        blocks: The blocks.
        batch: What runs through them.

    Returns:
        The input of each block, and the output of the last.
    """
    head_dim = max((block.head_dim for block in blocks), default=0)
    # Every block reads the same two tables of angles, and every block keeps them.
    rotary = [tape.given(name, batch.length * head_dim, batch.itemsize, grad=False) for name in ("cos", "sin")]
    states = [x]
    for block in blocks:
        states.append(BLOCKS[block.kind](tape, states[-1], block, batch, rotary))
    return states


def saved_bytes(blocks: tuple[Block, ...], batch: Batch, *, checkpointing: bool = False) -> int:
    """Return the bytes that blocks keep between forward and backward.

    Args:
        blocks: The blocks, in order.
        batch: What runs through them.
        checkpointing: Whether each block keeps its input only, and runs again before its backward.

    Returns:
        Bytes of all distinct storages, weights left out. With checkpointing: what is kept when forward ends.

    Example:
        >>> layers = {role: AdaptedLayer(fan_in=8, fan_out=8) for role in "qkvo"}
        >>> layers |= {"up": AdaptedLayer(fan_in=8, fan_out=32), "down": AdaptedLayer(fan_in=32, fan_out=8)}
        >>> block = Block(kind="post_norm", layers=layers, heads=2, kv_heads=2, head_dim=4, activation="gelu")
        >>> saved_bytes((block,), Batch(size=1, length=10)) == 4 * 10 * (6 * 8 + 32 + 2 + 4)  # T (6d + f + heads + 4)
        True

    Source:
        Read in the code of torch 2.13 and transformers 5.23, and held to counted bytes in the tests, without a
        difference. On a CPU; `attention_kernel` and `Tape` say what of other devices was read only.
    """
    return sum(saved_by_name(blocks, batch, checkpointing=checkpointing).values())


def _mask_bytes(block: Block, batch: Batch) -> int:
    # One mask for all blocks: floats where attention is written out, else booleans.
    eager = batch.attention == "eager"
    made = batch.padded or (eager and block.kind == "fused_qkv")
    return made * batch.size * batch.length**2 * (batch.itemsize if eager else 1)


def saved_by_name(blocks: tuple[Block, ...], batch: Batch, *, checkpointing: bool = False) -> dict[str, int]:
    """Return what `saved_bytes` does, by what the storages hold.

    Args:
        blocks: As for `saved_bytes`.
        batch: As for `saved_bytes`.
        checkpointing: As for `saved_bytes`.

    Returns:
        Bytes by name.
    """
    if not blocks:
        return {}
    tape = batch.tape()
    x = tape.given("block input", batch.tokens * blocks[0].hidden, batch.itemsize, grad=batch.input_grad)
    if checkpointing:
        return {"block input": len(blocks) * x.nbytes, "attention mask": _mask_bytes(blocks[0], batch)}
    run_blocks(tape, x, blocks, batch)
    found: dict[str, int] = {}
    for storage in tape.saved():
        found[storage.name] = found.get(storage.name, 0) + storage.nbytes
    return found
