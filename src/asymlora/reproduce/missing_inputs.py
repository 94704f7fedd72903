"""What an artefact needs that this machine lacks: packages, models, data sets; all of it told before the first run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asymlora.errors import AsymloraError, DataNotFoundError, MissingPackageError
from asymlora.reproduce.artefact import DataSet, MeasuredPart, Part, Scale, SweepPart
from asymlora.sweep.grid import cells
from asymlora.train.recipe import Recipe

DATA_ROOT = Path("..") / "shared" / "data"
"""Where data sets are looked for when nothing is said."""
_SWEEPS = (("scipy", "sweep"), ("statsmodels", "sweep"))
EMBEDDED = "embedded:"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What is missing, a sentence each.

    Attributes:
        packages: Packages, and models that packages ship.
        data: Data sets and weights, with where they are to be had.
    """

    packages: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything is missing."""
        return bool(self.packages or self.data)


def missing_inputs(
    scale: Scale,
    parts: Sequence[Part],
    *,
    data_root: Path,
    executor: str = "inline",
    others: Sequence[Part] = (),
) -> Missing:
    """Return what the parts of an artefact need and this machine lacks. Nothing is trained; a model may be converted.

    Args:
        scale: The artefact at one scale.
        parts: The parts that are to be run.
        data_root: Where data sets stand.
        executor: Where runs are done.
        others: Parts that are not to be run; data sets that no part but these reads are not asked for.

    Returns:
        All that is missing; nothing where no part is to be run.
    """
    if others and not parts:
        return Missing()
    swept = any(isinstance(part, SweepPart) for part in parts)
    wanted = [*(_SWEEPS if swept else ()), *([("ray", "cluster")] if executor == "ray" else [])]
    packages = [
        f"the package {package}: pip install 'asymlora[{extra}]'"
        for package, extra in wanted
        if importlib.util.find_spec(package) is None
    ]
    read, elsewhere = ({Path(recipe.data.name) for recipe in _recipes(some)} for some in (parts, others))
    data = [
        place_text(each, data_root)
        for each in scale.data
        if each.place and not (data_root / each.place).exists() and data_root / each.place not in elsewhere - read
    ]
    for error in _errors_of(parts, data_root):
        (packages if isinstance(error, MissingPackageError) else data).append(str(error).rstrip("."))
    return Missing(packages=tuple(dict.fromkeys(packages)), data=tuple(dict.fromkeys(data)))


def refuse_missing(missing: Missing, *, name: str, data_root: Path) -> None:
    """Refuse to run an artefact that lacks something.

    Args:
        missing: As `missing_inputs` gives it.
        name: Name of the artefact.
        data_root: Where data sets were looked for.

    Raises:
        DataNotFoundError: A data set or a model is not there.
        MissingPackageError: Packages alone are.
    """
    if not missing:
        return
    said = f"{name} cannot be run here, as these are missing: {'; '.join((*missing.packages, *missing.data))}."
    if not missing.data:
        raise MissingPackageError(said)
    raise DataNotFoundError(
        f"{said} Data sets are looked for below {data_root}; name another folder with --data-root. In which"
        " form each stands there: docs/reproducing.md."
    )


def place_text(data: DataSet, data_root: Path) -> str:
    """Return where a data set is looked for, and where it is to be had.

    Args:
        data: The data set.
        data_root: Where data sets stand.

    Example:
        >>> place_text(DataSet(name="TREC-6", source="github.com/owner/name", place="text/trec6"), Path("data"))
        'the data set TREC-6 at data/text/trec6 (public source: github.com/owner/name)'
    """
    return f"the data set {data.name} at {(data_root / data.place).as_posix()} (public source: {data.source})"


def _recipes(parts: Sequence[Part]) -> list[Recipe]:
    return [recipe for part in parts for recipe in _recipes_of(part)]


def _recipes_of(part: Part) -> Sequence[Recipe]:
    return [cell.recipe for cell in cells(part.plan)] if isinstance(part, SweepPart) else part.recipes


def _errors_of(parts: Sequence[Part], data_root: Path) -> Iterator[AsymloraError]:
    from asymlora.tasks.embedded_data import EMBEDDED_DATA
    from asymlora.tasks.hub import is_hub_id, is_reachable
    from asymlora.tasks.sources import find_model

    recipes = _recipes(parts)
    for model, revision in dict.fromkeys((recipe.model.name, recipe.model.revision) for recipe in recipes):
        try:
            find_model(model, revision=revision)
        except AsymloraError as error:
            yield error
    for name in dict.fromkeys(recipe.data.name for recipe in recipes):
        shipped = EMBEDDED_DATA.get(name.removeprefix(EMBEDDED)) if name.startswith(EMBEDDED) else None
        try:
            if shipped is not None:
                shipped.read()
            elif is_hub_id(name) and not Path(name).is_relative_to(data_root) and not is_reachable():
                yield DataNotFoundError(f"the data set {name} of the hub, which is out of reach")
        except AsymloraError as error:
            yield error
    for package in dict.fromkeys(p for part in parts if isinstance(part, MeasuredPart) for p in part.packages):
        try:
            package.file()
        except AsymloraError as error:
            yield error
