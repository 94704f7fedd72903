from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import asymlora.cpu_kernel as cpu_kernel
from asymlora.cpu_kernel import SWITCH, Kernel, kernel, rows_of, status, takes
from asymlora.ops import adapted_linear

needs_kernel = pytest.mark.skipif(kernel() is None, reason="no C compiler here")
SCALING = 0.75
EPSILON = 2.0**-24


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give an empty cache, and forget the kernel of this process before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernel.forget()
    yield tmp_path / "asymlora"
    cpu_kernel.forget()


def _products() -> Kernel:
    found = kernel()
    assert found is not None
    return found


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _bound(left: Tensor, right: Tensor) -> Tensor:
    """Return what a sum of products may be off by in float32, whatever its order: n eps sum |a b|, doubled."""
    terms = left.shape[1] + 8
    return 2 * terms * EPSILON * (left.double().abs() @ right.double().abs())


def _assert_product(got: Tensor, left: Tensor, right: Tensor, *, onto: Tensor | None = None) -> None:
    wanted = left.double() @ right.double() * SCALING
    room = _bound(left, right)
    if onto is not None:
        wanted, room = wanted + onto.double(), room + 2 * EPSILON * onto.double().abs()
    assert ((got.double() - wanted).abs() <= room + 1e-30).all()


# Around every width at which the kernel changes its way: vectors of 8, stripes of 24, blocks of 64, tiles of 3 and 4.
TOKENS = st.sampled_from((1, 2, 3, 4, 5, 7, 15, 16, 17, 63, 64, 65, 127, 129, 200))
WIDTHS = st.sampled_from((1, 2, 7, 8, 9, 15, 23, 24, 25, 31, 48, 49, 71, 96, 130))
RANKS = st.sampled_from((1, 2, 3, 4, 5, 8, 15, 16, 17, 20, 64, 65, 130))


@needs_kernel
@given(TOKENS, WIDTHS, WIDTHS, RANKS, st.integers(0, 10**6))
def test_every_product_is_that_of_float64_to_the_rounding_of_float32(
    tokens: int, n: int, m: int, r: int, seed: int
) -> None:
    x, A, rows, g = (_draw(*shape, seed=seed + i) for i, shape in enumerate(((tokens, n), (r, n), (r, m), (tokens, m))))
    out, grad_x = _draw(tokens, m, seed=seed + 4), _draw(tokens, n, seed=seed + 5)
    before, grad_before = out.clone(), grad_x.clone()
    code = _products().add(out, x, A, rows, SCALING)
    _assert_product(code * SCALING, x, A.t())
    assert _products().code(x, A).equal(code)
    _assert_product(out, code, rows, onto=before)
    again = before.clone()
    _products().add(again, x, A, rows, SCALING, code=code)
    assert again.equal(out)
    grad_A, grad_rows = _products().backward(g, A, rows, x=x, code=code, grad_x=grad_x, sizes=(r, n), scaling=SCALING)
    g_code = _products().code(g, rows)
    assert grad_A is not None
    assert grad_rows is not None
    _assert_product(grad_x, g_code, A, onto=grad_before)
    _assert_product(grad_A, g_code.t(), x)
    _assert_product(grad_rows, code.t(), g)


@needs_kernel
def test_the_bound_is_one_that_a_wrong_product_breaks() -> None:
    x, A, out = _draw(65, 49), _draw(9, 49, seed=1), torch.zeros(65, 25)
    rows = _draw(9, 25, seed=2)
    code = _products().add(out, x, A, rows, SCALING)
    out[64, 24] *= 1 + 1e-4
    with pytest.raises(AssertionError):
        _assert_product(out, code, rows)


@needs_kernel
@pytest.mark.parametrize(("tokens", "n", "m", "r"), [(200, 130, 71, 9), (64, 384, 384, 8), (5, 48, 25, 64)])
def test_the_bits_do_not_depend_on_the_number_of_threads(tokens: int, n: int, m: int, r: int) -> None:
    x, A, rows, g = _draw(tokens, n), _draw(r, n, seed=1), _draw(r, m, seed=2), _draw(tokens, m, seed=3)
    seen: list[list[Tensor]] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            out, grad_x = torch.zeros(tokens, m), torch.zeros(tokens, n)
            code = _products().add(out, x, A, rows, SCALING)
            grads = _products().backward(g, A, rows, x=x, code=code, grad_x=grad_x, sizes=(r, n), scaling=SCALING)
            seen.append([out, code, grad_x, *(t for t in grads if t is not None)])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(a.equal(b) for a, b in zip(seen[0], other, strict=True))


@needs_kernel
def test_what_it_does_not_take() -> None:
    x, A, B = _draw(5, 6), _draw(2, 6), _draw(7, 2)
    assert takes(x, A, B)
    assert takes(x, nn.Parameter(A), B.t().contiguous().t())
    others: list[tuple[Any, Any, Any]] = [
        (x.double(), A, B),
        (x, A.bfloat16(), B),
        (x, A, B.double()),
        (x[:0], A, B),
        (x.to("meta"), A, B),
        (x, A.t().contiguous().t(), B),
        (torch.complex(x, x).conj().imag, A, B),  # holds the values of x and says that they are negated
    ]
    assert not any(takes(*other) for other in others)

    class Marked(Tensor):
        pass

    assert not takes(x.as_subclass(Marked), A, B)
    assert torch.func.vmap(lambda row: torch.tensor(float(takes(row, A, B))))(x[None]).sum() == 0


def test_rows_are_a_view_where_they_can_be() -> None:
    B = _draw(7, 3)
    assert rows_of(B).equal(B.t())
    assert rows_of(B).is_contiguous()
    laid = B.t().contiguous().t()
    assert rows_of(laid).data_ptr() == laid.data_ptr()


@needs_kernel
def test_nan_and_infinity_are_not_lost() -> None:
    x, A, rows = _draw(70, 48), _draw(8, 48), _draw(8, 24)
    x[3, 5], x[69, 47] = float("nan"), float("inf")
    out = torch.zeros(70, 24)
    _products().add(out, x, A, rows, SCALING)
    assert out[3].isnan().all()
    assert not out[69].isfinite().any()
    assert out.isfinite().sum() == 68 * 24


# How it comes about


@needs_kernel
def test_it_is_built_once_and_read_from_a_folder_of_ones_own(afresh: Path) -> None:
    assert kernel() is not None
    (made,) = afresh.iterdir()
    first = made.stat()
    assert stat.S_IMODE(afresh.stat().st_mode) == 0o700
    cpu_kernel.forget()
    assert kernel() is not None
    assert list(afresh.iterdir()) == [made]
    assert made.stat().st_mtime_ns == first.st_mtime_ns


@needs_kernel
def test_a_folder_that_others_can_write_to_is_not_read(afresh: Path) -> None:
    afresh.mkdir(parents=True)
    afresh.chmod(0o777)
    (afresh / f"cpu_kernel-{cpu_kernel._address([_compiler()])}.so").write_bytes(b"not ours")
    assert kernel() is not None
    assert len(list(afresh.iterdir())) == 1


def _compiler() -> str:
    found = shutil.which("gcc")
    assert found is not None
    return found


@needs_kernel
def test_another_source_has_another_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = cpu_kernel._address([_compiler()])
    changed = tmp_path / "cpu_kernel.c"
    changed.write_text(cpu_kernel.SOURCE.read_text() + "\n")
    monkeypatch.setattr(cpu_kernel, "SOURCE", changed)
    assert cpu_kernel._address([_compiler()]) != address


@pytest.mark.usefixtures("afresh")
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert kernel() is None
    assert status() == f"The thin products run through torch: {SWITCH} is 0."
    x, W0, A, B = _draw(5, 6), _draw(7, 6), _draw(2, 6), _draw(7, 2)
    out = adapted_linear(x, W0, None, A, B, scaling=SCALING)
    torch.testing.assert_close(out, x @ (W0 + SCALING * B @ A).t())


@pytest.mark.usefixtures("afresh")
def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert kernel() is None
    assert "no C compiler" in status()


def test_a_compiler_that_fails_is_named_with_what_it_said(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = _broken_compiler(tmp_path)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("PATH", "")
    assert kernel() is None
    assert "broken-cc" in status()
    assert "no room left" in status()
    assert not list(afresh.glob("*"))


@needs_kernel
def test_another_compiler_is_tried_after_one_that_fails(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", str(_broken_compiler(tmp_path)))
    assert kernel() is not None
    assert len(list(afresh.glob("*"))) == 1


def _broken_compiler(folder: Path) -> Path:
    broken = folder / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'no room left' >&2\nexit 1\n")
    broken.chmod(0o755)
    return broken


@needs_kernel
@pytest.mark.parametrize("size", [0, 1000, 8000, -1])
def test_a_file_that_is_not_what_was_written_is_built_again(afresh: Path, size: int) -> None:
    assert kernel() is not None
    (made,) = afresh.iterdir()
    whole = made.read_bytes()
    made.write_bytes(whole[:size])
    cpu_kernel.forget()
    assert kernel() is not None
    assert made.stat().st_size == len(whole)
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


@needs_kernel
def test_a_file_that_others_can_write_to_is_not_loaded(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel() is not None
    (made,) = afresh.iterdir()
    made.chmod(0o666)
    cpu_kernel.forget()
    loaded: list[str] = []
    original = cpu_kernel._tried
    monkeypatch.setattr(cpu_kernel, "_tried", lambda path: (loaded.append(path), original(path))[1])
    assert kernel() is not None
    assert not any(path.startswith("/proc/self/fd") for path in loaded)


@needs_kernel
def test_a_forked_process_computes_by_torch() -> None:
    code = (
        "import os, torch\nfrom asymlora.cpu_kernel import kernel, status\nassert kernel() is not None\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if kernel() is None and 'forked' in status() else 1)\n"
        "raise SystemExit(os.waitpid(pid, 0)[1])"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=60).returncode == 0


@needs_kernel
def test_a_first_call_inside_a_transform_neither_builds_nor_fails() -> None:
    code = (
        "import torch\nfrom asymlora.ops import adapted_linear\n"
        "x, W, A, B = torch.randn(3, 5, 6), torch.randn(7, 6), torch.randn(2, 6), torch.randn(7, 2)\n"
        "f = lambda x: adapted_linear(x, W, None, A, B, scaling=0.5)\n"
        "torch.testing.assert_close(torch.func.vmap(f)(x), x @ (W + 0.5 * B @ A).t())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@needs_kernel
def test_a_kernel_that_computes_something_else_is_refused(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "cpu_kernel.c"
    text = cpu_kernel.SOURCE.read_text()
    assert "float sum = 0;" in text
    wrong.write_text(text.replace("float sum = 0;", "float sum = 1;"))
    monkeypatch.setattr(cpu_kernel, "SOURCE", wrong)
    assert kernel() is None
    assert "failed the trial" in status()
    assert afresh.exists()


@needs_kernel
def test_processes_that_start_together_build_one(tmp_path: Path) -> None:
    code = "from asymlora.cpu_kernel import kernel; raise SystemExit(kernel() is None)"
    given = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=given) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(list((tmp_path / "asymlora").iterdir())) == 1
