"""Several processes that run one recipe: one of them reads and writes folders, all hear what came of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from asymlora.errors import AsymloraError, LostProcessError, SpecError

T = TypeVar("T")


def count() -> int:
    """Return how many processes run together: what ``torchrun`` or ``accelerate launch`` started, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that reads and writes folders and talks to the user."""
    return int(os.environ.get("RANK", "0")) == 0


def join() -> None:
    """Wait for the other processes of this run; nothing where there is none."""
    if count() > 1:
        # Said, because otherwise Accelerate makes a group on CPUs and then takes each process for the only one.
        PartialState(cpu=not torch.accelerator.is_available())


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        PartialState().wait_for_everyone()


def on_first(work: Callable[[], T]) -> T:
    """Do something in the first process only, and give every process its result.

    Args:
        work: What is done; its result must be picklable.

    Returns:
        Its result.

    Raises:
        AsymloraError: The work was refused; every process raises the same.
    """
    if count() == 1:
        return work()
    told: list[Any] = [None, None]
    if is_first():
        try:
            told[0] = work()
        except (AsymloraError, OSError) as error:
            told[1] = error
    distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def share(batch_size: int) -> int:
    """Return the rows of a batch that each process takes.

    Args:
        batch_size: Rows of the whole batch.

    Returns:
        Its share.

    Raises:
        SpecError: The rows cannot be divided evenly.
    """
    if batch_size % count():
        raise SpecError(
            f"train.batch_size={batch_size} cannot be divided among {count()} processes; it is the batch of all"
            f" together. Give a multiple of {count()}."
        )
    return batch_size // count()


@contextmanager
def loss_of_a_process_said(resume: str) -> Iterator[None]:
    """Say in a sentence when another process of the run has died, instead of a trace of the communication library.

    Args:
        resume: How the run is gone on with.

    Yields:
        Nothing.

    Raises:
        LostProcessError: Another process is gone.
        RuntimeError: Whatever else went wrong.
    """
    if count() == 1:
        yield
        return
    sentence = f"Another process of this run has ended, so the run cannot go on. {resume}"

    def say(number: int, _: object) -> None:
        # torchrun ends the others so, when one has died. Nothing is torn: folders appear whole or not at all.
        if is_first():
            os.write(sys.stderr.fileno(), f"asymlora: {sentence}\n".encode())
        os._exit(128 + number)

    # Python takes signals in its main thread only; a worker of Ray trains in another.
    before = signal.signal(signal.SIGTERM, say) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, AsymloraError) or not _is_of_the_connection(error):
            raise
        raise LostProcessError(sentence) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _is_of_the_connection(error: RuntimeError) -> bool:
    words = ("closed by peer", "Connection reset", "gloo", "NCCL", "Socket", "Broken pipe", "Timed out waiting")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
