"""The thin products in C (`cpu_kernel.c`): compiled once for this processor, kept in the user's cache, optional.

Where there is no C compiler, or what it makes does not pass a trial, the products run through torch, with equal results
to rounding; `status` says which it is and why.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from asymlora.atomic import write_file

SOURCE = Path(__file__).with_suffix(".c")
SWITCH = "ASYMLORA_CPU_KERNEL"
"""Environment variable; ``0`` keeps the products in torch."""

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_PLAIN = (Tensor, nn.Parameter)
_pointer, _long, _float, _int = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_logger = logging.getLogger(__name__)


class _UnavailableError(Exception):
    """Says why there is no kernel."""


class Kernel:
    """The compiled products. Tensors are float32 on the CPU, without gaps; ``rows`` is ``B^T``.

    Args:
        library: The shared library, of `cpu_kernel.c`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._forward, self._backward = library.asymlora_forward, library.asymlora_backward
        self._forward.argtypes = [_pointer] * 5 + [_int] + [_long] * 4 + [_float, _int]
        self._backward.argtypes = [_pointer] * 9 + [_long] * 4 + [_float, _int]
        self._forward.restype = self._backward.restype = None

    def code(self, x: Tensor, A: Tensor) -> Tensor:
        """Return ``x A^T``, shape ``(T, r)``, of ``x`` ``(..., n)`` and ``A`` ``(r, n)``."""
        r, n = A.shape
        tokens = x.numel() // n
        code = x.new_empty(tokens, r)  # not torch.empty: a user may have set another default type or device
        self._forward(
            None, x.data_ptr(), A.data_ptr(), None, code.data_ptr(), 0, tokens, n, 0, r, 0.0, torch.get_num_threads()
        )
        return code

    def add(
        self, out: Tensor, x: Tensor, A: Tensor, rows: Tensor, scaling: float, *, code: Tensor | None = None
    ) -> Tensor:
        """Add ``s * x A^T B^T`` to ``out`` ``(..., m)`` in place and return the code ``x A^T``, shape ``(T, r)``.

        Args:
            out: Shape ``(..., m)``.
            x: Shape ``(..., n)``.
            A: Shape ``(r, n)``.
            rows: Shape ``(r, m)``.
            scaling: The whole multiplier ``s``.
            code: The code, where it is known; then it is not computed again.
        """
        (r, n), m = A.shape, rows.shape[1]
        tokens, given = x.numel() // n, code is not None
        code = code if code is not None else x.new_empty(tokens, r)
        at = out.data_ptr(), x.data_ptr(), A.data_ptr(), rows.data_ptr(), code.data_ptr()
        self._forward(*at, given, tokens, n, m, r, scaling, torch.get_num_threads())
        return code

    def backward(
        self,
        g: Tensor,
        A: Tensor | None,
        rows: Tensor | None,
        *,
        x: Tensor | None,
        code: Tensor | None,
        grad_x: Tensor | None,
        sizes: tuple[int, int],
        scaling: float,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add ``s * g B A`` to ``grad_x`` in place and return the gradients of ``A`` and of ``B^T``.

        Args:
            g: Gradient of the output, shape ``(..., m)``.
            A: Shape ``(r, n)``; read for ``grad_x``.
            rows: Shape ``(r, m)``; read where the code of ``g`` is needed, for ``A`` or ``x``.
            x: Input, shape ``(..., n)``; None where ``A`` needs no gradient.
            code: ``x A^T``, shape ``(T, r)``; None where ``B`` needs no gradient.
            grad_x: Shape ``(..., n)``; None where nothing is to be added.
            sizes: ``(r, n)``.
            scaling: The whole multiplier ``s``.

        Returns:
            Shapes ``(r, n)`` and ``(r, m)``, or None where not asked for.
        """
        (r, n), m = sizes, g.shape[-1]
        tokens = g.numel() // m
        grad_A = None if x is None else g.new_empty(r, n)
        grad_rows = None if code is None else g.new_empty(r, m)
        g_code = None if x is None and grad_x is None else g.new_empty(tokens, r)
        at = [None if t is None else t.data_ptr() for t in (g, x, A, rows, code, g_code, grad_x, grad_A, grad_rows)]
        self._backward(*at, tokens, n, m, r, scaling, torch.get_num_threads())
        return grad_A, grad_rows


def takes(x: Tensor, A: Tensor, B: Tensor) -> bool:
    """Return whether the kernel computes the products of this input and these factors.

    Args:
        x: Input, shape ``(..., n)``.
        A: Shape ``(r, n)``.
        B: Shape ``(m, r)``.
    """
    return (
        readable(x)
        and is_float32(A)
        and is_float32(B)
        and A.is_contiguous()
        and x.numel() > 0
        and B.numel() > 0
        and runs_as_called()
        and kernel() is not None
    )


def readable(tensor: Tensor) -> bool:
    """Return whether C may read a tensor that somebody else made: float32 of the CPU, with the values that it says.

    Args:
        tensor: Of any kind.
    """
    return (
        is_float32(tensor)
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    )


def is_float32(tensor: Tensor | None) -> bool:
    """Return whether a tensor is a plain one of float32 on the CPU; None counts as one.

    Args:
        tensor: Of any kind.
    """
    return tensor is None or (type(tensor) in _PLAIN and tensor.dtype is torch.float32 and tensor.is_cpu)


def runs_as_called() -> bool:
    """Return whether operations now run as they are called: nothing traces, batches, casts or dispatches them.

    What such a mode records does not see what C writes.
    """
    return (
        not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def rows_of(B: Tensor) -> Tensor:
    """Return ``B^T`` without gaps: a view of a ``B`` that is laid out as its transpose, else a copy."""
    rows = B.t()
    return rows if rows.is_contiguous() else rows.contiguous()


def kernel() -> Kernel | None:
    """Return the compiled kernel, built by the first call in a machine's life; None where there is none."""
    return (_found or _made()).kernel


def status() -> str:
    """Return one sentence: that the kernel is in use, or why it is not."""
    return (_found or _made()).why


class _Made(NamedTuple):
    kernel: Kernel | None
    why: str


_lock = threading.Lock()
_forked = False


def _after_fork() -> None:
    # The threads of OpenMP do not come along, and the first parallel region in the child would wait for them.
    global _forked
    _forked = True
    forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_found: _Made | None = None


def forget() -> None:
    """Make the next call of `kernel` look for it anew."""
    global _found
    _found = None


def _made() -> _Made:
    global _found
    with _lock:  # threads that call together build once
        if _found is None:
            _found = _look()
        return _found


def _look() -> _Made:
    try:
        if os.environ.get(SWITCH) == "0":
            raise _UnavailableError(f"{SWITCH} is 0")
        if platform.system() != "Linux":
            raise _UnavailableError("the kernel is built on Linux only")
        if _forked:
            raise _UnavailableError("this process was forked, and OpenMP's threads do not survive that")
        kernel = _loaded()
    # Whatever a machine does here, a forward pass must not fail for it.
    except Exception as error:
        said = str(error) if isinstance(error, _UnavailableError) else f"{type(error).__name__}: {error}"
        _logger.info("no kernel: %s", said)
        return _Made(None, f"The thin products run through torch: {said}.")
    return _Made(kernel, "The thin products of float32 layers on the CPU run in asymlora's kernel.")


def _loaded() -> Kernel:
    """Return a kernel that passed its trial, from the cache or built anew.

    Raises:
        _UnavailableError: No compiler makes one that does.
    """
    named = shlex.split(os.environ.get("CC", ""))
    commands = [named] if named and shutil.which(named[0]) else []
    commands += [[found] for found in map(shutil.which, ("gcc", "cc")) if found]
    if not commands:
        raise _UnavailableError("no C compiler (gcc or cc) is on the path")
    said: list[str] = []
    for command in commands:
        try:
            address = _address(command)
            folder = _private_folder()
            kept = _from_file(folder / f"cpu_kernel-{address}.so") if folder is not None else None
            return kept or _build(command, address)
        except (OSError, subprocess.SubprocessError, _UnavailableError) as error:
            detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            said.append(f"{' '.join(command)}: {detail[0] if detail else 'no message'}")
    raise _UnavailableError(f"no compiler could build one that runs ({'; '.join(said)})")


def _address(command: list[str]) -> str:
    """Return a name for what this compiler makes of this source for this very processor."""
    told = [
        _run(*command, "--version"),
        _run(*command, "-march=native", "-dM", "-E", "-x", "c", os.devnull),
        " ".join((*command, *_FLAGS)),
        SOURCE.read_text(encoding="utf-8"),
    ]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:32]


def _build(command: list[str], address: str) -> Kernel:
    with tempfile.TemporaryDirectory(prefix="asymlora-") as own:
        made = Path(own) / "made.so"
        _run(*command, *_FLAGS, "-o", str(made), str(SOURCE))
        content = made.read_bytes()
        signed = Path(own) / "cpu_kernel.so"
        signed.write_bytes(content + hashlib.sha256(content).digest())
        signed.chmod(0o600)
        kernel = _tried(str(signed))
        folder = _private_folder()
        if folder is not None and os.access(folder, os.W_OK):
            write_file(folder / f"cpu_kernel-{address}.so", signed.read_bytes(), mode=0o600)
        return kernel


def _from_file(path: Path) -> Kernel | None:
    """Return the kernel of a cached file; None where it is not there, not ours, or not what was written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        content = file.read()
        whole = hashlib.sha256(content[:-32]).digest() == content[-32:]
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not whole:
            return None
        try:
            # By its descriptor: the file that was checked is the one that is loaded.
            return _tried(f"/proc/self/fd/{descriptor}")
        except (OSError, _UnavailableError) as error:
            _logger.info("%s is not used: %s", path, error)
            return None


def _private_folder() -> Path | None:
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = (base if base.is_absolute() else Path("~/.cache")).expanduser() / "asymlora"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError):
        return None
    # A library that somebody else could have put there must not be loaded.
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return folder if ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=60, stdin=subprocess.DEVNULL
    )
    return done.stdout


def _openmp_runtimes() -> set[str]:
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {Path(path).name for path in re.findall(r"\S+/lib(?:gomp|omp|iomp5)\b\S*", maps)}


def _tried(path: str) -> Kernel:
    """Return the kernel of a library, if its products are those of float64 and it brings no threads of its own.

    Raises:
        _UnavailableError: They are not, or it does.
    """
    before = _openmp_runtimes()
    kernel = Kernel(ctypes.CDLL(path))
    if added := _openmp_runtimes() - before:
        # Two pools of threads on the same cores would wait for each other.
        raise _UnavailableError(f"it would bring {', '.join(sorted(added))} beside the OpenMP that torch uses")
    draw = torch.Generator("cpu").manual_seed(0)
    kind = {"generator": draw, "dtype": torch.float32, "device": "cpu"}
    x, A, rows, g = (torch.randn(*shape, **kind) for shape in ((70, 37), (9, 37), (9, 43), (70, 43)))
    out, grad_x = g.new_zeros(70, 43), g.new_zeros(70, 37)
    code = kernel.add(out, x, A, rows, 0.5)
    grad_A, grad_rows = kernel.backward(g, A, rows, x=x, code=code, grad_x=grad_x, sizes=(9, 37), scaling=0.5)
    x, A, rows, g = x.double(), A.double(), rows.double(), g.double()
    wanted = (x @ A.t() @ rows, g @ rows.t() @ A, (g @ rows.t()).t() @ x, (x @ A.t()).t() @ g)
    for got, right in zip((out, grad_x, grad_A, grad_rows), wanted, strict=True):
        assert got is not None
        if not torch.allclose(got.double(), 0.5 * right, rtol=1e-4, atol=1e-3):
            raise _UnavailableError("its products failed the trial")
    return kernel
