"""Files that hold all of what was written, or what they held before."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from kit.errors import StorageUnavailable

PARTIAL = ".partial-"
"""How the names of files begin that are not yet whole."""

_ELSEWHERE = "free some space there, or name another place"


def write(path: Path, data: bytes | str) -> None:
    """Write a file whole; folders above it are made. Text is written as UTF-8.

    A link is followed, and a device or a pipe is written to, as `>` of the shell does.

    Raises:
        StorageUnavailable: It cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    try:
        target = path.resolve() if path.is_symlink() else path
        if _is_special(target):
            target.write_bytes(content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(target, content)
    except OSError as error:
        raise StorageUnavailable(f"cannot write {path}: {error.strerror or error}", hint=_ELSEWHERE) from error


def check_writable(path: Path) -> None:
    """Refuse a path that `write` would fail on for all one can know now: before long work, not after it.

    Raises:
        StorageUnavailable: It is a folder, or lies where nothing can be written.
    """
    if path.is_dir():
        raise StorageUnavailable(f"cannot write {path}: it is a folder", hint="name a file in it")
    if _is_special(path):
        return
    above = path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "cannot be written to" if above.is_dir() else "is no folder"
        raise StorageUnavailable(f"cannot write {path}: {above} {reason}", hint=_ELSEWHERE)


def replace(path: Path, data: bytes) -> None:
    """Write a file, synced, so that its name holds either all of the bytes or what it held before; raises OSError."""
    descriptor, partial = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)  # mkstemp's 0600 would hide the file from the service that reads it
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _is_special(path: Path) -> bool:
    """Whether it is there and neither a file nor a folder: a device or a pipe, which must not be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
