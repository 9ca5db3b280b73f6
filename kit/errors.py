"""Every error kit raises on purpose, and the exit code each one stands for.

```
KitError                    5  a defect of kit, when raised bare
├── CheckFailed             1  a check said no
│   ├── GateFailed             an export did not meet its gate; nothing was published
│   └── VerifyFailed           a bundle does not do here what its manifest promises
├── UsageError              2  the request contradicts itself
├── Unavailable             3  something asked for is not to be had here
│   ├── ProviderUnavailable    an execution provider that cannot run on this machine
│   ├── PackageMissing         an optional package that is not installed
│   ├── DatasetUnavailable     a data set that is neither here nor downloadable
│   ├── StorageUnavailable     a full disk, a folder that cannot be written
│   └── MemoryShort            more than the memory that is free
└── BadInput                4  missing, corrupt or refused input
    ├── BundleNotFound         no bundle of that name
    ├── BundleInvalid          a manifest or file that is corrupt, altered or too new
    ├── DatasetInvalid         data files that are corrupt
    └── PictureInvalid         no picture, or one without anything on it
```

A message says what happened and what was expected; `hint` holds the next thing to type. The command line prints both.
"""

from __future__ import annotations

from typing import ClassVar


class KitError(Exception):
    """Base of all errors kit raises on purpose.

    Attributes:
        hint: What to do next, ready to be typed where possible; empty when the message says it all.
        exit_code: Exit status of the command line for this kind of error.
    """

    exit_code: ClassVar[int] = 5

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CheckFailed(KitError):  # noqa: N818 - named for what happened, as `Unavailable` is
    """A check that was asked for said no."""

    exit_code = 1


class GateFailed(CheckFailed):
    """An export did not meet its gate; nothing was published."""


class VerifyFailed(CheckFailed):
    """A bundle does not do on this machine what its manifest promises."""


class UsageError(KitError):
    """The request contradicts itself or asks for something that does not exist."""

    exit_code = 2


class Unavailable(KitError):  # noqa: N818
    """Something asked for is not to be had on this machine."""

    exit_code = 3


class ProviderUnavailable(Unavailable):
    """An execution provider that cannot run here; the message names the cause."""


class PackageMissing(Unavailable):
    """An optional package that is not installed; the hint is the line that installs it."""


class DatasetUnavailable(Unavailable):
    """A data set that is neither on this machine nor downloadable."""


class StorageUnavailable(Unavailable):
    """A full disk or a folder that cannot be written."""


class MemoryShort(Unavailable):
    """More was asked for than fits into the memory that is free."""


class BadInput(KitError):  # noqa: N818
    """Missing, corrupt or refused input."""

    exit_code = 4


class BundleNotFound(BadInput):
    """No bundle has that name or path."""


class BundleInvalid(BadInput):
    """A bundle whose manifest or files are corrupt, altered, or newer than this kit."""


class DatasetInvalid(BadInput):
    """Data files that are corrupt."""


class PictureInvalid(BadInput):
    """Not a readable picture, or one with nothing drawn on it."""
