"""Every artefact by name, each read from its module when it is asked for. No torch in here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from asymlora.errors import UnknownNameError, nearest
from asymlora.reproduce.artefact import Artefact

NAMES = (
    "hayou_toy",
    "hayou_features",
    "hayou_glue",
    "hayou_lm",
    "hayou_llama",
    "hayou_loraplus",
    "hayou_variance",
    "zhu_least_squares",
    "zhu_inputs",
    "zhu_cca",
    "zhu_glue",
    "zhu_init_scale",
    "zhu_singular",
    "zhu_rank",
    "zhu_summaries",
    "zhu_llama",
    "zhu_vision",
    "zhu_gap",
    "zhu_bounds",
    "advice",
)
"""In the order in which they are listed; each is a module of this folder that holds ``ARTEFACT``."""


def find(name: str) -> Artefact:
    """Return an artefact.

    Args:
        name: One of `NAMES`.

    Returns:
        The artefact.

    Raises:
        UnknownNameError: There is no such artefact.
    """
    if name not in NAMES:
        raise UnknownNameError(f"No artefact is called {name!r}.{nearest(name, NAMES)} Known: {', '.join(NAMES)}.")
    return import_module(f"asymlora.papers.{name}").ARTEFACT


def every() -> Iterator[Artefact]:
    """Yield every artefact, in the order of `NAMES`."""
    for name in NAMES:
        yield find(name)
