"""A file of answers that may be stopped at any time: what is written is neither lost nor written twice.

Beside `answers.csv` stands `answers.csv.unfinished/` until all is answered:

    request.json     what is asked of which model, and how many items make a chunk
    answers          what is answered, as it will be
    journal.jsonl    twice a second, synced: how many chunks and bytes are whole, and a fingerprint of what was read so far
    lock             held while a process writes here

The last whole line of the journal is what counts: `answers` is cut back to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from kit.bulk.answering import Answered
from kit.bulk.chunks import Seen
from kit.bulk.forms import Form
from kit.errors import StorageUnavailable, UsageError
from kit.system import files

_SYNC_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Done:
    """How far the answers go: whole chunks, items in them, items refused, bytes of `answers`, and a fingerprint."""

    chunks: int = 0
    rows: int = 0
    refused: int = 0
    bytes: int = 0
    seen: str = ""


class Output:
    """A file of answers while it is written; `request` must be the same for going on with what is there.

    Raises:
        UsageError: Something else was begun there, or another process is writing it.
        StorageUnavailable: It cannot be written.
    """

    def __init__(self, target: Path, form: Form, request: Mapping[str, Any]) -> None:
        self._target, self._form = target, form
        self.folder = _folder(target)
        files.check_writable(target)
        self._open = contextlib.ExitStack()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim()
            self.done = self._begun(request)
            self._answers: BinaryIO = self._open.enter_context((self.folder / "answers").open("r+b"))
            self._answers.truncate(self.done.bytes)
            self._answers.seek(self.done.bytes)
            self._journal: BinaryIO = self._open.enter_context((self.folder / "journal.jsonl").open("ab"))
        except OSError as error:
            self._open.close()
            raise self._unwritable(error) from error
        except BaseException:
            self._open.close()
            raise
        self._synced = time.monotonic()
        self._written = self.done

    def add(self, answered: Answered, seen: Seen) -> None:
        """Append the answers to the next chunk; it counts once it is synced, which happens twice a second.

        Raises:
            StorageUnavailable: It cannot be written.
        """
        before = self._written
        assert answered.index == before.chunks, "chunks come in order"
        try:
            self._answers.write(answered.content)
            self._written = Done(
                chunks=before.chunks + 1,
                rows=before.rows + answered.rows,
                refused=before.refused + answered.refused,
                bytes=before.bytes + len(answered.content),
                seen=seen.digest(),
            )
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """Make what was added count."""
        if self._written == self.done:
            return
        for file, content in (
            (self._answers, b""),
            (self._journal, json.dumps(asdict(self._written)).encode() + b"\n"),
        ):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.done, self._synced = self._written, time.monotonic()

    def finish(self, about: Mapping[str, Any]) -> Done:
        """Give the file its name; nothing of it was there before. `about`, what answered, is kept by forms that can.

        Raises:
            StorageUnavailable: It cannot be written.
        """
        try:
            self.sync()
            self._close()
            made = self._form.finish(self.folder / "answers", self.folder / "whole", about)
            files.install(made, self._target)
            shutil.rmtree(self.folder, ignore_errors=True)  # without `answers`, what is left of it is begun anew
        except OSError as error:
            raise self._unwritable(error) from error
        return self.done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.sync()
        self._close()
        if self.done.chunks == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._open.close()

    def _claim(self) -> None:
        """Hold the lock, which the system takes back from a process that ends."""
        lock = self._open.enter_context((self.folder / "lock").open("ab"))
        try:
            _lock(lock)
        except OSError as error:
            raise UsageError(
                f"another process is writing {self._target}", hint="wait for it, or give another name: -o NAME"
            ) from error

    def _begun(self, request: Mapping[str, Any]) -> Done:
        """Return how far an earlier run came; a first one writes its request and the head of the file."""
        asked = self.folder / "request.json"
        wanted = json.loads(json.dumps(request))
        if asked.is_file():
            found = _read(asked)
            if found != wanted:
                differing = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
                raise UsageError(
                    f"{self.folder} holds the beginning of something else: it differs in {', '.join(differing)}",
                    hint=f"remove that folder to begin anew, or give another name than {self._target.name}",
                )
            done = _last(self.folder / "journal.jsonl")
            answers = self.folder / "answers"
            if done is not None and answers.is_file() and answers.stat().st_size >= done.bytes:
                return done
        head = self._form.head()
        (self.folder / "answers").write_bytes(head)
        (self.folder / "journal.jsonl").write_bytes(b"")
        files.replace(asked, json.dumps(wanted, indent=2).encode())
        return Done(bytes=len(head))

    def _unwritable(self, error: OSError) -> StorageUnavailable:
        return StorageUnavailable(
            f"cannot write {self._target}: {error.strerror or error}",
            hint="make room and give the same command again: it goes on where it stopped",
        )


def _lock(file: BinaryIO) -> None:
    """Lock a file for this process until it is closed; raises OSError if another one has."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _folder(target: Path) -> Path:
    return target.with_name(target.name + ".unfinished")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _last(journal: Path) -> Done | None:
    try:
        lines = journal.read_bytes().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError):
            return Done(**json.loads(line))
    return None
