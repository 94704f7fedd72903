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
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

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
        self._forward.argtypes = [_pointer] * 5 + [_int] + [_long] * 4 + [_float]
        self._backward.argtypes = [_pointer] * 9 + [_long] * 4 + [_float]
        self._forward.restype = self._backward.restype = None

    def code(self, x: Tensor, A: Tensor) -> Tensor:
        """Return ``x A^T``, shape ``(T, r)``, of ``x`` ``(..., n)`` and ``A`` ``(r, n)``."""
        r, n = A.shape
        tokens = x.numel() // n
        code = torch.empty(tokens, r)
        self._forward(None, x.data_ptr(), A.data_ptr(), None, code.data_ptr(), 0, tokens, n, 0, r, 0.0)
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
        code = code if code is not None else torch.empty(tokens, r)
        at = out.data_ptr(), x.data_ptr(), A.data_ptr(), rows.data_ptr(), code.data_ptr()
        self._forward(*at, given, tokens, n, m, r, scaling)
        return code

    def backward(
        self,
        g: Tensor,
        A: Tensor,
        rows: Tensor | None,
        *,
        x: Tensor | None,
        code: Tensor | None,
        grad_x: Tensor | None,
        scaling: float,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add ``s * g B A`` to ``grad_x`` in place and return the gradients of ``A`` and of ``B^T``.

        Args:
            g: Gradient of the output, shape ``(..., m)``.
            A: Shape ``(r, n)``.
            rows: Shape ``(r, m)``; read where the code of ``g`` is needed, for ``A`` or ``x``.
            x: Input, shape ``(..., n)``; None where ``A`` needs no gradient.
            code: ``x A^T``, shape ``(T, r)``; None where ``B`` needs no gradient.
            grad_x: Shape ``(..., n)``; None where nothing is to be added.
            scaling: The whole multiplier ``s``.

        Returns:
            Shapes ``(r, n)`` and ``(r, m)``, or None where not asked for.
        """
        (r, n), m = A.shape, g.shape[-1]
        tokens = g.numel() // m
        grad_A = None if x is None else torch.empty(r, n)
        grad_rows = None if code is None else torch.empty(r, m)
        g_code = None if x is None and grad_x is None else torch.empty(tokens, r)
        at = [None if t is None else t.data_ptr() for t in (g, x, A, rows, code, g_code, grad_x, grad_A, grad_rows)]
        self._backward(*at, tokens, n, m, r, scaling)
        return grad_A, grad_rows


def takes(x: Tensor, A: Tensor, B: Tensor) -> bool:
    """Return whether the kernel computes the products of this input and these factors.

    Args:
        x: Input, shape ``(T, n)``.
        A: Shape ``(r, n)``.
        B: Shape ``(m, r)``.
    """
    return (
        x.dtype is A.dtype is B.dtype is torch.float32
        and type(x) in _PLAIN
        and type(A) in _PLAIN
        and type(B) in _PLAIN
        and x.is_cpu
        and A.is_cpu
        and B.is_cpu
        and A.is_contiguous()
        and x.numel() > 0
        and not (x.is_neg() or A.is_neg() or B.is_neg())
        and kernel() is not None
        and not torch._C._are_functorch_transforms_active()
    )


def rows_of(B: Tensor) -> Tensor:
    """Return ``B^T`` without gaps: a view of a ``B`` that is laid out as its transpose, else a copy."""
    rows = B.t()
    return rows if rows.is_contiguous() else rows.contiguous()


def kernel() -> Kernel | None:
    """Return the compiled kernel, built by the first call in a machine's life; None where there is none."""
    return _made().kernel


def status() -> str:
    """Return one sentence: that the kernel is in use, or why it is not."""
    return _made().why


class _Made(NamedTuple):
    kernel: Kernel | None
    why: str


@lru_cache(maxsize=1)
def _made() -> _Made:
    try:
        kernel = Kernel(_library())
        _try(kernel)
    except _UnavailableError as error:
        _logger.info("%s", error)
        return _Made(None, f"The thin products run through torch: {error}.")
    return _Made(kernel, "The thin products of float32 layers on the CPU run in asymlora's kernel.")


def _library() -> ctypes.CDLL:
    if os.environ.get(SWITCH) == "0":
        raise _UnavailableError(f"{SWITCH} is 0")
    if platform.system() != "Linux":
        raise _UnavailableError("the kernel is built on Linux only")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "cc"))), None)
    if compiler is None:
        raise _UnavailableError("no C compiler (gcc or cc) is on the path")
    before = _openmp_runtimes()
    try:
        library = _load(_address(compiler), compiler)
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise _UnavailableError(f"{compiler} could not build it ({detail[0] if detail else 'no message'})") from error
    if added := _openmp_runtimes() - before:
        # Two pools of threads on the same cores would wait for each other.
        raise _UnavailableError(f"it would bring {', '.join(sorted(added))} beside the OpenMP that torch uses")
    return library


def _address(compiler: str) -> str:
    """Return a name for what this compiler makes of this source for this very processor."""
    told = [
        _run(compiler, "--version"),
        _run(compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull),
        " ".join((compiler, *_FLAGS)),
        SOURCE.read_text(encoding="utf-8"),
    ]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:32]


def _load(address: str, compiler: str) -> ctypes.CDLL:
    folder = _private_folder()
    if folder is None:
        # A library that somebody else could have put there must not be loaded: one of our own, then.
        with tempfile.TemporaryDirectory(prefix="asymlora-") as own:
            return ctypes.CDLL(str(_build(Path(own) / "cpu_kernel.so", compiler)))
    path = folder / f"cpu_kernel-{address}.so"
    return ctypes.CDLL(str(path if path.exists() else _build(path, compiler)))


def _private_folder() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "asymlora"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):
        return None
    open_to_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if found.st_uid == os.getuid() and not open_to_others and os.access(folder, os.W_OK) else None


def _build(path: Path, compiler: str) -> Path:
    with tempfile.TemporaryDirectory(prefix="asymlora-") as folder:
        made = Path(folder) / "made.so"
        _run(compiler, *_FLAGS, "-o", str(made), str(SOURCE))
        write_file(path, made.read_bytes())
    return path


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def _openmp_runtimes() -> set[str]:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return {Path(path).name for path in re.findall(r"\S+/lib(?:gomp|omp|iomp5)\b\S*", maps)}


def _try(kernel: Kernel) -> None:
    """Refuse a kernel whose products are not those of float64.

    Raises:
        _UnavailableError: They are not.
    """
    draw = torch.Generator().manual_seed(0)
    x, A, rows, g = (torch.randn(*shape, generator=draw) for shape in ((70, 37), (9, 37), (9, 43), (70, 43)))
    out, grad_x = torch.zeros(70, 43), torch.zeros(70, 37)
    code = kernel.add(out, x, A, rows, 0.5)
    grad_A, grad_rows = kernel.backward(g, A, rows, x=x, code=code, grad_x=grad_x, scaling=0.5)
    x, A, rows, g = x.double(), A.double(), rows.double(), g.double()
    wanted = (x @ A.t() @ rows, g @ rows.t() @ A, (g @ rows.t()).t() @ x, (x @ A.t()).t() @ g)
    for got, right in zip((out, grad_x, grad_A, grad_rows), wanted, strict=True):
        assert got is not None
        if not torch.allclose(got.double(), 0.5 * right, rtol=1e-4, atol=1e-3):
            raise _UnavailableError("its products failed the trial")
