from __future__ import annotations

import inspect

from asymlora.sweep.observer import SilentObserver, SweepObserver


def test_silence_has_every_method_with_the_same_arguments() -> None:
    wanted = {name: f for name, f in vars(SweepObserver).items() if inspect.isfunction(f) and not name.startswith("_")}
    assert {"planned", "grown", "started", "progress", "ended", "lost", "stage", "finished"} <= set(wanted)
    for name, function in wanted.items():
        assert inspect.signature(getattr(SilentObserver, name)) == inspect.signature(function)


def test_silence_is_an_observer_and_says_nothing() -> None:
    observer: SweepObserver = SilentObserver()
    observer.planned(["init_a"], 3)
    observer.grown("init_a", 1e-3)
    observer.stage("Loading")
    observer.finished({})
