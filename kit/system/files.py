"""Files that hold all of what was written, or what they held before."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import psutil

from kit.errors import StorageUnavailable

PARTIAL = ".partial-"
"""How the names of files and folders begin that are not yet whole."""

_OF_WRITER = re.compile(re.escape(PARTIAL) + r"(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,9})-.+")
_DAY_SECONDS = 24 * 3600

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
    """Raise StorageUnavailable if `write` would fail, for all one can know: before long work, not after it."""
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


def replace(path: Path, data: bytes, *, read_only: bool = False) -> None:
    """Write a file, synced, so that its name holds either all of the bytes or what it held before; raises OSError."""
    with partial(path.parent) as own:
        with own.open("r+b") as file:
            file.write(data)
        install(own, path, read_only=read_only)


@contextlib.contextmanager
def partial(folder: Path) -> Iterator[Path]:
    """Give an empty file of a name of its own in a folder, which goes unless it was renamed; raises OSError.

    Its mode is the one that the umask leaves: a service must be able to read what it is meant to serve.
    """
    sweep(folder)
    own = folder / partial_name()
    os.close(os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield own
    finally:
        own.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(place: Path, *, what: str, needed_bytes: int = 0) -> Iterator[Path]:
    """Give a new folder that takes the name `place` when the block ends; if it fails, nothing of it stays.

    What bore the name goes when that is done, and gets it back if it cannot be. Folders above it are made. `what` names
    it in messages.

    Raises:
        StorageUnavailable: There is too little room, or it cannot be written.
    """
    try:
        check_room(place.parent, needed_bytes, what=what)
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
        own = place.parent / partial_name()
        own.mkdir()
        try:
            yield own
            _rename_folder(own, place)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    except OSError as error:
        raise StorageUnavailable(f"cannot write {place}: {error.strerror or error}", hint=_ELSEWHERE) from error


def _rename_folder(own: Path, place: Path) -> None:
    if not place.exists():
        own.rename(place)
        return
    before = place.parent / partial_name()
    place.rename(before)
    try:
        own.rename(place)
    except OSError:
        before.rename(place)
        raise
    shutil.rmtree(before, ignore_errors=True)


def holds(place: Path, sha256s: Mapping[str, str], *, beside: Collection[str] = ()) -> bool:
    """Whether a folder holds these files, by path in it, unchanged, and no others but `beside`; raises OSError."""
    found = {one.relative_to(place).as_posix() for one in place.rglob("*") if one.is_symlink() or not one.is_dir()}
    return found == {*sha256s, *beside} and all(
        not (place / name).is_symlink() and sha256(place / name) == wanted for name, wanted in sha256s.items()
    )


def partial_name() -> str:
    """Return a new name for what is not yet whole; it says which process writes it, for `sweep`."""
    return f"{PARTIAL}{_host()}-{os.getpid()}-{secrets.token_hex(8)}"


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder: at once if their process is gone, after a day if that cannot be known."""
    try:
        left = [Path(one) for one in os.scandir(folder) if one.name.startswith(PARTIAL)]
    except OSError:
        return
    for path in left:
        with contextlib.suppress(OSError):
            if not _is_left(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_left(path: Path) -> bool:
    named = _OF_WRITER.fullmatch(path.name)
    if named is not None and named["host"] == _host():
        return not psutil.pid_exists(int(named["pid"]))
    return time.time() - path.lstat().st_mtime > _DAY_SECONDS


@functools.cache
def _host() -> str:
    """Return what tells machines apart that write into one folder: numbers of processes mean nothing elsewhere."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def install(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Give a whole file the name it is to have, durably, in place of what bore it; raises OSError.

    From another file system it is copied first, so that the name never holds a part.
    """
    with source.open("rb") as file:
        os.fsync(file.fileno())
    if read_only:
        source.chmod(stat.S_IMODE(source.stat().st_mode) & ~0o222)
    try:
        _replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with partial(target.parent) as copy:
            shutil.copyfile(source, copy)
            install(copy, target, read_only=read_only)
        source.unlink()
    _sync_folder(target.parent)


def _replace(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except PermissionError:  # Windows does not replace a file that is read-only
        if not target.exists():
            raise
        target.chmod(0o666)
        source.replace(target)


def remove(path: Path) -> None:
    """Remove a file, read-only or not; raises OSError."""
    with contextlib.suppress(OSError):
        path.chmod(0o666)  # Windows
    path.unlink()


def sha256(path: Path) -> str:
    """Return a file's sha256 in hexadecimal digits, read by stream; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_room(folder: Path, needed_bytes: int, *, what: str) -> None:
    """Raise StorageUnavailable, before minutes are spent, if there is less room on the disk than is needed."""
    above = folder.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    free = shutil.disk_usage(above).free
    if needed_bytes > free:
        raise StorageUnavailable(
            f"{what} needs {needed_bytes / 1e9:,.2f} GB in {folder}, and {free / 1e9:,.2f} GB are free", hint=_ELSEWHERE
        )


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
