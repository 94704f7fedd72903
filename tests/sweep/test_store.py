from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asymlora.errors import DiskSpaceError, RunFolderError, SpecError, UnwritableFolderError
from asymlora.sweep.run_record import RunRow
from asymlora.sweep.store import RunStore
from stub_work import row, write_rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def _filled(file: Path, rows: list[RunRow]) -> RunStore:
    store = RunStore(file)
    assert all(store.append(each) for each in rows)
    return store


def _seeds(store: RunStore) -> list[int]:
    return [each.seed for each in store.rows()]


def test_rows_come_back_as_they_went_in_and_the_first_line_names_the_format(file: Path) -> None:
    rows = [
        row(1),
        row(2, status="diverged", error="The loss is not finite.", losses={"step": [1], "loss": [0.1 + 0.2]}),
    ]
    writer = _filled(file, rows)
    assert RunStore(file).rows() == writer.rows()
    assert [each.result() for each in writer.rows()] == [json.loads(json.dumps(each.result())) for each in rows]
    assert json.loads(file.read_text().splitlines()[0]) == {"kind": "store", "version": 1}
    assert writer.get(rows[1].id) == writer.rows()[1]
    assert writer.get("0" * 20) is None
    assert writer.warnings() == []


def test_there_is_no_file_before_the_first_row(file: Path) -> None:
    store = RunStore(file)
    assert (store.rows(), store.finished(), file.exists()) == ([], frozenset(), False)


@pytest.mark.parametrize("status", ["finished", "pruned", "diverged"])
def test_a_final_row_is_never_appended_twice(file: Path, status: str) -> None:
    first = row(1, status=status)
    _filled(file, [first])
    before = file.read_bytes()
    other = RunStore(file)
    assert not other.append(replace(first, train_seconds=9.0))
    assert file.read_bytes() == before
    assert other.finished() == {first.id}


def test_a_failed_row_gives_way_to_a_later_one_and_not_the_other_way_round(file: Path) -> None:
    failed = row(1, status="failed", error="no memory")
    store = _filled(file, [failed, row(2)])
    assert store.finished() == {row(2).id}
    assert store.append(row(1))
    assert not store.append(failed)
    assert _seeds(store) == _seeds(RunStore(file)) == [2, 1]
    assert {each.status for each in store.rows()} == {"finished"}


def test_a_row_that_another_writer_appended_since_is_seen_under_the_lock(file: Path) -> None:
    one, other = RunStore(file), RunStore(file)
    assert one.append(row(1))
    assert not other.append(row(1))
    assert other.append(row(2))
    assert not one.append(row(2))
    assert _seeds(one) == [1, 2]


def test_writers_at_the_same_time_leave_each_row_once_and_whole(file: Path) -> None:
    # Rows of 20 kB: longer than what a pipe or a page takes at once.
    spawn = multiprocessing.get_context("spawn")
    orders = ([*range(20)], [*reversed(range(20))], [*range(10, 20), *range(10)])
    writers = [spawn.Process(target=write_rows, args=(str(file), order)) for order in orders]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    lines = file.read_text().splitlines()
    assert sorted(json.loads(line)["seed"] for line in lines[1:]) == list(range(20))
    assert RunStore(file).warnings() == []


def test_only_what_others_added_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, taken = os.read, 0

    def counted(handle: int, amount: int) -> bytes:
        nonlocal taken
        piece = read(handle, amount)
        taken += len(piece)
        return piece

    monkeypatch.setattr(os, "read", counted)
    one, other = RunStore(file), RunStore(file)
    for seed in range(0, 20, 2):
        one.append(row(seed))
        other.append(row(seed + 1))
    assert len(one.rows()) == len(other.rows()) == 20
    # Together they read each row once, each the rows of the other; the header is read by the one who did not write it.
    assert taken == file.stat().st_size


def _cuts(content: bytes) -> list[int]:
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    near = {end + shift for end in ends for shift in (-2, -1, 0, 1)}
    return sorted({0, *range(5, len(content), 149), *near} & set(range(len(content))))


def test_a_store_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk's own work, some hundred times
    _filled(file, [row(1), row(2)])
    content = file.read_bytes()
    for cut in _cuts(content):
        file.write_bytes(content[:cut])
        whole = max(content[:cut].count(b"\n") - 1, 0)
        torn = not content[:cut].endswith(b"\n") and cut > 0
        store = RunStore(file)
        assert (_seeds(store), store.torn) == ([1, 2][:whole], int(torn))
        assert [store.append(row(seed)) for seed in (1, 2, 3)] == [whole < 1, whole < 2, True]
        again = RunStore(file)
        assert _seeds(again) == _seeds(store) == [1, 2, 3]
        # A first line that was cut is written again: nothing had stood after it.
        assert again.torn == int(torn and cut > content.index(b"\n"))
        assert again.damaged == ()


def test_a_torn_line_is_told_of(file: Path) -> None:
    _filled(file, [row(1)])
    with file.open("ab") as opened:
        opened.write(b'{"id": "abc", "ph')
    store = RunStore(file)
    store.append(row(2))
    assert store.warnings() == ["1 line was left unfinished in runs.jsonl by a writer that was ended."]
    assert file.read_text().splitlines()[2] == '{"id": "abc", "ph # torn'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "abc", "phase": }', "is no JSON"),
        ("[1, 2]", "is no JSON object"),
        ('{"id": "abc"}', "lacks fields"),
        ('{"id": "abc", "colour": 3}', "unknown fields: colour"),
        ('{"id": "abc", "lr": NaN}', "holds NaN"),
        ('{"id": "\udcff"}', "is no JSON"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named_and_its_run_done_again(file: Path, line: str, problem: str) -> None:
    _filled(file, [row(1), row(2), row(3)])
    lines = file.read_bytes().split(b"\n")
    lines[2] = line.encode(errors="surrogateescape")
    file.write_bytes(b"\n".join(lines))
    store = RunStore(file)
    assert _seeds(store) == [1, 3]
    assert [found.number for found in store.damaged] == [3]
    assert "Line 3 of runs.jsonl" in store.warnings()[0]
    assert problem in store.warnings()[0]
    assert row(2).id not in store.finished()
    assert store.append(row(2))
    assert _seeds(RunStore(file)) == [1, 3, 2]


def test_a_store_of_a_newer_version_is_refused_with_both_versions(file: Path) -> None:
    file.write_text('{"kind": "store", "version": 2}\n')
    before = file.read_bytes()
    for act in (RunStore(file).rows, lambda: RunStore(file).append(row(1))):
        with pytest.raises(RunFolderError, match=r"store of version 2; .* up to version 1\. Update asymlora"):
            act()
    assert file.read_bytes() == before


@pytest.mark.parametrize("first", ["", "step,loss", '{"kind": "store"}', '{"kind": "store", "version": 1}x', "[]"])
def test_a_file_that_is_no_store_is_refused_and_left_alone(file: Path, first: str) -> None:
    file.write_text(first + "\n")
    with pytest.raises(RunFolderError, match=r'first line must be \{"kind": "store", "version": 1\}'):
        RunStore(file).append(row(1))
    assert file.read_text() == first + "\n"


def test_a_number_that_is_not_finite_is_refused_by_name(file: Path) -> None:
    store = _filled(file, [row(1)])
    before = file.read_bytes()
    wrong = row(2, validation=float("nan"), losses={"step": [1, 2], "loss": [0.1, float("inf")]})
    with pytest.raises(SpecError, match=r"validation is nan, losses\.loss\[1\] is inf\. .*give None"):
        store.append(wrong)
    with pytest.raises(SpecError, match=r"set is not JSON serializable"):
        store.append(row(2, axes={"train.steps": {1}}))
    assert file.read_bytes() == before


def test_another_file_in_its_place_is_read_anew(file: Path, tmp_path: Path) -> None:
    store = _filled(file, [row(1), row(2)])
    _filled(tmp_path / "other.jsonl", [row(3), row(4), row(5)])
    (tmp_path / "other.jsonl").replace(file)
    assert _seeds(store) == [3, 4, 5]
    file.unlink()
    assert store.rows() == []


FULL = """
import os, resource, sys
from asymlora.errors import DiskSpaceError
from asymlora.sweep.store import RunStore
from stub_work import row, write_rows

store = RunStore(sys.argv[1])
store.append(row(1))
size = os.path.getsize(sys.argv[1])
for room in (0, 1, 100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    try:
        store.append(row(2))
    except DiskSpaceError as error:
        print(error)
    assert os.path.getsize(sys.argv[1]) == size
    assert [each.seed for each in store.rows()] == [1]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.append(row(2))
"""


def test_a_write_that_the_kernel_cuts_short_is_taken_back_whole(file: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(file)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 3
    assert all("the disk is full (File too large). Every run that was stored before is whole" in line for line in said)
    assert all("Free some space and go on with --resume" in line for line in said)
    assert _seeds(RunStore(file)) == [1, 2]
    assert RunStore(file).torn == 0


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskSpaceError),
        (errno.EDQUOT, DiskSpaceError),
        (errno.EROFS, UnwritableFolderError),
        (errno.EIO, RunFolderError),
    ],
)
def test_what_the_disk_refuses_on_flushing_is_taken_back(
    file: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    store = _filled(file, [row(1)])
    before = file.read_bytes()

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunFolderError, match="go on with --resume") as caught:
            store.append(row(2))
    assert type(caught.value) is kind
    assert file.read_bytes() == before
    assert store.append(row(2))


def test_a_folder_that_is_not_there_is_an_error_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunStore(tmp_path / "gone" / "runs.jsonl").append(row(1))
