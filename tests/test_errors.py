from __future__ import annotations

import inspect

import pytest

from asymlora import errors


def _classes() -> dict[str, type[BaseException]]:
    return {n: c for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, BaseException)}


def test_every_class_stands_in_the_drawn_tree() -> None:
    assert errors.__doc__
    assert all(name in errors.__doc__ for name in _classes())


@pytest.mark.parametrize("error", [c for n, c in _classes().items() if n != "AsymloraError"], ids=lambda c: c.__name__)
def test_each_is_ours_and_also_a_builtin_that_old_code_catches(error: type[BaseException]) -> None:
    assert issubclass(error, errors.AsymloraError)
    builtin = (ValueError, KeyError, RuntimeError, OSError, ArithmeticError, ImportError)
    assert issubclass(error, builtin)
    assert str(error("what was wrong")) == "what was wrong"  # KeyError alone would add quotes
