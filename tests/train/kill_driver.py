"""Run in a process of its own: interrupt a small run at many moments, resume it, compare with an uninterrupted one.

A moment is a touch of a file inside the run's folder, seen by an audit hook: opening for writing, renaming, making or
removing. The process imports once and forks for each run. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asymlora.atomic import STAGING_PREFIX
from asymlora.checkpoint import WEIGHTS_FILE, read_adapter
from asymlora.train.recipe import Recipe
from asymlora.train.run import finetune
from asymlora.train.run_folder import stored_recipe
from asymlora.train.trainer import checkpoints, last_checkpoint

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


class Moments:
    """Counts touches of the run's folder and calls ``act`` at the chosen one."""

    def __init__(self, folder: Path, chosen: int | None, act: Callable[[], None]) -> None:
        self.folder, self.chosen, self.act, self.count = str(folder), chosen, act, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in TOUCHES or not str(args[0]).startswith(self.folder):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self.count += 1
        if self.count == self.chosen:
            self.act()


def in_child(work: Callable[[], None]) -> int:
    """Fork, do the work there, and return how the child ended (negative: the signal)."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def half_written(folder: Path) -> list[str]:
    """Return what stands under a final name and cannot be used."""
    found: list[str] = []
    if not folder.exists():
        return found
    for check, path in ((stored_recipe, folder), (_json, folder / "environment.json")):
        if path.exists() and any(folder.iterdir()):
            found += _fails(check, path)
    for path in (folder / "result.json", folder / "checkpoints" / "baseline.json"):
        found += _fails(_json, path) if path.exists() else []
    found += _fails(read_adapter, folder / "adapter") if (folder / "adapter").exists() else []
    whole = checkpoints(folder / "checkpoints")
    found += [f"{c.name} is incomplete" for c in whole if last_checkpoint_is_not(c)]
    return found


def last_checkpoint_is_not(checkpoint: Path) -> bool:
    """Whether a checkpoint folder would be passed over on resume."""
    others = [c for c in checkpoints(checkpoint.parent) if c != checkpoint]
    hidden = [(c, c.with_name("x" + c.name)) for c in others]
    for path, away in hidden:
        path.rename(away)
    try:
        return last_checkpoint(checkpoint.parent) != checkpoint
    finally:
        for path, away in hidden:
            away.rename(path)


def _json(path: Path) -> None:
    json.loads(path.read_text())


def _fails(check: Callable[[Path], Any], path: Path) -> list[str]:
    try:
        check(path)
    except Exception as error:
        return [f"{path.name}: {type(error).__name__}: {error}"]
    return []


def main(recipe: dict[str, Any], root: Path, number: int, how: signal.Signals) -> dict[str, Any]:
    """Interrupt at ``number`` moments, evenly over the run, and report what went wrong."""
    torch.set_num_threads(1)
    resolved = Recipe.from_dict(recipe)
    counted = root / "count"

    def count() -> None:
        moments = Moments(root / "reference", None, lambda: None)
        sys.addaudithook(moments)
        finetune(resolved, output=root / "reference")
        counted.write_text(str(moments.count))

    assert in_child(count) == 0
    total, wanted = int(counted.read_text()), (root / "reference" / "adapter" / WEIGHTS_FILE).read_bytes()
    report: dict[str, Any] = {"moments": total, "tried": [], "resumed_from_checkpoint": 0, "problems": []}
    for chosen in sorted({1 + round(i * (total - 1) / (number - 1)) for i in range(number)}):
        folder = root / f"run-{chosen}"

        def interrupted(folder: Path = folder, chosen: int = chosen) -> None:
            sys.addaudithook(Moments(folder, chosen, lambda: os.kill(os.getpid(), how)))
            finetune(resolved, output=folder)

        ended = in_child(interrupted)
        expected = {signal.SIGKILL: (-9,), signal.SIGINT: (130, 0)}[how]
        problems = [] if ended in expected else [f"ended with {ended}"]
        problems += half_written(folder)
        finished = (folder / "result.json").exists()
        report["resumed_from_checkpoint"] += last_checkpoint(folder / "checkpoints") is not None
        if not finished:
            resumed = in_child(lambda folder=folder: _discard(finetune(resolved, output=folder, resume=True)))
            problems += [] if resumed == 0 else [f"resuming ended with {resumed}"]
        weights = folder / "adapter" / WEIGHTS_FILE
        if not weights.is_file() or weights.read_bytes() != wanted:
            problems.append("final weights differ from the uninterrupted run's")
        if not finished:
            problems += [f"left over: {f.name}" for f in folder.rglob(f"{STAGING_PREFIX}*")]
            problems += _records(folder, root / "reference")
        report["tried"].append(chosen)
        report["problems"] += [f"moment {chosen} of {total}: {problem}" for problem in problems]
    return report


def _records(folder: Path, reference: Path) -> list[str]:
    rows: list[list[dict[str, Any]]] = []
    for run in (folder, reference):
        lines = (run / "records.jsonl").read_text().splitlines()
        rows.append([{k: v for k, v in json.loads(line).items() if k != "wall_s"} for line in lines])
    return [] if rows[0] == rows[1] else ["records differ from the uninterrupted run's"]


def _discard(_: object) -> None:
    return None


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(main(given["recipe"], Path(given["root"]), given["number"], signal.Signals[given["how"]])))
