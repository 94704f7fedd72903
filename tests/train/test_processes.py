"""What one process can tell; two of them run in test_torchrun.py."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from asymlora.errors import DivergedError, LostProcessError, SpecError
from asymlora.train import processes


def test_one_process_is_the_first_and_does_its_work_itself() -> None:
    assert (processes.count(), processes.is_first()) == (1, True)
    assert processes.on_first(lambda: 3) == 3
    processes.join()
    processes.wait()


def test_a_batch_is_divided_evenly_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.share(7) == 7
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes.share(32) == 8
    with pytest.raises(SpecError, match=r"batch_size=30 cannot be divided among 4 processes.*a multiple of 4"):
        processes.share(30)


def test_a_broken_connection_is_a_sentence_and_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(LostProcessError, match=r"has ended, so the run cannot go on\. Resume it"):  # noqa: SIM117
        with processes.loss_of_a_process_said("Resume it."):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), processes.loss_of_a_process_said("Resume it."):
        raise RuntimeError("shapes do not match")
    with pytest.raises(DivergedError), processes.loss_of_a_process_said("Resume it."):
        raise DivergedError("the loss is nan (gloo)")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_beside_the_main_thread_goes_without_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    def train() -> None:
        with processes.loss_of_a_process_said("Start it again."):
            raise RuntimeError("Connection reset by peer")

    with ThreadPoolExecutor(1) as threads, pytest.raises(LostProcessError, match="Start it again"):
        threads.submit(train).result()
