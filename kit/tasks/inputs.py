"""What a word of the command line names: a regular file, or stdin. Reading either comes to an end, which a pipe's may not."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from kit.errors import BadInput

MOST_BYTES = 2**29
"""Of stdin: more than the largest picture takes without compression."""

_CHUNK = 2**20
_SPECIAL = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def refuse_special(path: Path, error: type[BadInput] = BadInput) -> None:
    """Raise `error` for a pipe, a device or a socket, or a link to one, before it is opened: that may wait for ever.

    What does not exist and what is a folder is left to whoever opens it.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = next((name for holds, name in _SPECIAL if holds(mode)), "a device")
        raise error(f"{path} is {kind}, not a file", hint="give a file, or its content on stdin: -")


def stdin() -> bytes:
    """Return all of stdin; raise BadInput if it is closed, cannot be read, or gives more than MOST_BYTES."""
    if sys.stdin is None:  # as Python starts with `<&-`
        raise BadInput("stdin is closed", hint="give a file, or pipe one in")
    content = bytearray()
    try:
        while chunk := sys.stdin.buffer.read(_CHUNK):
            content += chunk
            if len(content) > MOST_BYTES:
                raise BadInput(
                    f"stdin gives more than {MOST_BYTES // 2**20} MiB", hint="write it into a file and give its name"
                )
    except (OSError, ValueError) as error:
        raise BadInput(f"stdin cannot be read: {error}", hint="give a file, or pipe one in") from error
    return bytes(content)
