"""What libraries write past Python goes nowhere for a while."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

STDOUT, STDERR = 1, 2
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def muted(descriptor: int) -> Iterator[None]:
    """Let what is written to STDOUT or STDERR go nowhere, by whichever part of the process.

    Where there is no such stream, or it is closed, nothing is done.
    """
    stream = sys.stdout if descriptor == STDOUT else sys.stderr
    with _ONE_AT_A_TIME, contextlib.ExitStack() as closing:
        try:
            stream.flush()
            kept = os.dup(descriptor)
            closing.callback(os.close, kept)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            closing.callback(os.close, nowhere)
        except (AttributeError, OSError, ValueError):
            yield
            return
        os.dup2(nowhere, descriptor)
        try:
            yield
        finally:
            os.dup2(kept, descriptor)
