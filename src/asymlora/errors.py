"""What a user can get wrong, one class each.

Every message has three parts: what was wrong and with which value, what is allowed, what to do. Each class is also
the built-in exception that older code would catch.

::

    AsymloraError
    ├── SpecError (ValueError)                 a field holds a value that it must not hold
    │   ├── UnknownKeyError (KeyError)         a field or recipe key that does not exist
    │   ├── UnknownNameError (KeyError)        a name of an init, preset, task or source that does not exist
    │   ├── BothZeroError                      both factors start at zero: neither could ever learn
    │   ├── BothFrozenError                    neither factor is trained
    │   └── NonZeroStartError                  both factors start non-zero: the model would change on attachment
    ├── AttachError (ValueError)               the adapter does not fit the model
    │   ├── NoTargetError                      a target that matches no layer
    │   ├── RankError                          the rank is larger than a layer allows
    │   └── AlreadyAttachedError               the model carries an adapter already
    ├── NotAttachedError (ValueError)          the model carries no adapter
    ├── AdapterFileError (ValueError)          an adapter folder that cannot be read or does not fit
    ├── WholeModelSaveError (RuntimeError)     saving part of an attached model would lose its adapter
    ├── DataError (ValueError)                 the data cannot be trained on
    │   ├── DataNotFoundError (FileNotFoundError)
    │   ├── EmptyDataError
    │   ├── MissingColumnError (KeyError)
    │   ├── SingleClassError
    │   └── UnseenLabelError
    ├── RunFolderError (OSError)               the run directory cannot be used
    │   ├── RunExistsError (FileExistsError)
    │   ├── NothingToResumeError (FileNotFoundError)
    │   ├── UnwritableFolderError (PermissionError)
    │   └── DiskSpaceError
    ├── DivergedError (ArithmeticError)        the loss or a weight is no longer finite
    ├── UnhealthyError (RuntimeError)          a strict run met its first verdict
    ├── SweepFailedError (RuntimeError)        the first runs of a sweep all failed
    ├── IdentityError (ArithmeticError)        numbers that are equal by algebra differ by more than rounding
    ├── LostProcessError (RuntimeError)        another process of the run has ended
    └── MissingPackageError (ImportError)      an optional package, or a package that ships a model or data
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AsymloraError(Exception):
    """Base of every error that asymlora raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes, OSError would look for an errno.
        return " ".join(str(part) for part in self.args)


class SpecError(AsymloraError, ValueError):
    """A field holds a value that it must not hold."""


class UnknownKeyError(SpecError, KeyError):
    """A field or recipe key that does not exist."""


class UnknownNameError(SpecError, KeyError):
    """A name of an init, preset, task or source that does not exist."""


class BothZeroError(SpecError):
    """Both factors start at zero, so both gradients are zero for ever."""


class BothFrozenError(SpecError):
    """Neither factor is trained."""


class NonZeroStartError(SpecError):
    """Both factors start non-zero, so the model would change on attachment."""


class AttachError(AsymloraError, ValueError):
    """The adapter does not fit the model."""


class NoTargetError(AttachError):
    """A target that matches no layer."""


class RankError(AttachError):
    """The rank is larger than a layer allows."""


class AlreadyAttachedError(AttachError):
    """The model carries an adapter already."""


class NotAttachedError(AsymloraError, ValueError):
    """The model carries no adapter."""


class AdapterFileError(AsymloraError, ValueError):
    """An adapter folder that cannot be read or does not fit the model."""


class WholeModelSaveError(AsymloraError, RuntimeError):
    """Saving part of an attached model would lose its adapter."""


class DataError(AsymloraError, ValueError):
    """The data cannot be trained on."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data file or folder that is not there."""


class EmptyDataError(DataError):
    """A data file, or a part of the data, without a row."""


class MissingColumnError(DataError, KeyError):
    """A column that the data does not have."""


class SingleClassError(DataError):
    """Every training row has the same label."""


class UnseenLabelError(DataError):
    """A label of the validation or test part that training never sees."""


class RunFolderError(AsymloraError, OSError):
    """The run directory cannot be used."""


class RunExistsError(RunFolderError, FileExistsError):
    """The run directory holds a run already."""


class NothingToResumeError(RunFolderError, FileNotFoundError):
    """There is no unfinished run to go on with."""


class UnwritableFolderError(RunFolderError, PermissionError):
    """The run directory cannot be written to."""


class DiskSpaceError(RunFolderError):
    """The disk has no room for what the run will write."""


class DivergedError(AsymloraError, ArithmeticError):
    """The loss or a trained weight is no longer finite.

    Args:
        message: What was not finite, and what to do.
        step: The optimizer step at which that was seen; None where it is not known.
    """

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class IdentityError(AsymloraError, ArithmeticError):
    """Numbers that are equal by algebra differ by more than rounding."""


class UnhealthyError(AsymloraError, RuntimeError):
    """A run that was to stop at the first verdict on its health met one."""


class SweepFailedError(AsymloraError, RuntimeError):
    """The first runs of a sweep all failed, so that the others were not begun."""


class LostProcessError(AsymloraError, RuntimeError):
    """Another process of the run has ended."""


class MissingPackageError(AsymloraError, ImportError):
    """An optional package, or a package that ships a model or data, is not installed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'rank'?"`` for the known word closest to ``word``, or nothing.

    Example:
        >>> nearest("rnak", ["rank", "alpha"])
        " Did you mean 'rank'?"
        >>> nearest("xyz", ["rank", "alpha"])
        ''
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
