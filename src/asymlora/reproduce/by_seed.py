"""Values by seed that know which seeds were asked for: a test's level is set by these, not by what is left of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class BySeed(dict[int, float]):
    """Values by seed, and the seeds that were asked for.

    A run that diverges takes its pair with it. Were the level that of the pairs that are left, ten seeds of which four
    are lost would get the level of the first look, which had its chance already.

    Args:
        values: Those that there are.
        planned: Every seed that was asked for.

    Example:
        >>> BySeed({0: 0.5}, planned=(0, 1)).planned
        (0, 1)
    """

    def __init__(self, values: Mapping[int, float], *, planned: Iterable[int] = ()) -> None:
        super().__init__(values)
        self.planned = tuple(sorted({*planned, *values}))


def asked_for(*sides: Mapping[int, float]) -> tuple[int, ...]:
    """Return the seeds that were asked for on any of some sides, rising; of a plain mapping, those that it has.

    Args:
        sides: Values by seed.

    Example:
        >>> asked_for(BySeed({0: 0.5}, planned=(0, 1)), {2: 0.25})
        (0, 1, 2)
    """
    found = {seed for side in sides for seed in side}
    found.update(seed for side in sides if isinstance(side, BySeed) for seed in side.planned)
    return tuple(sorted(found))
