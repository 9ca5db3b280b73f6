"""A process and all that it starts, as one: its memory is counted together, and it ends together.

The first process leads a session of its own, whose number all its descendants carry. On Windows, which has no such
sessions, they are found by their parents.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1  # prctl(2)
_NICE = 10


def start(line: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a process that leads a group, with pipes to its stdin and from its stdout; its stderr is discarded."""
    return _starter().submit(_start, line).result()


@functools.cache
def _starter() -> ThreadPoolExecutor:
    # Linux ends a child that asked for it (`end_with`) when the thread that started it ends: this thread stays.
    return ThreadPoolExecutor(1, thread_name_prefix="starts processes")


def _start(line: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def end_with(parent: int) -> None:
    """Have Linux end this process when the one that started it ends, however that ends. Called by the child itself."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that was asked for
        os._exit(1)


def give_way() -> None:
    """Let all other processes come first where processors are short. Called by the leader itself; nothing on Windows."""
    if sys.platform == "win32":
        return
    os.nice(_NICE)
    with contextlib.suppress(OSError):  # Linux may weigh whole sessions against each other (sched(7), autogroup)
        Path("/proc/self/autogroup").write_text(str(_NICE))


def resident_bytes(leader: int) -> int:
    """Return the memory that a group holds; 0 if it has ended."""
    total = 0
    for one in members(leader):
        with contextlib.suppress(psutil.Error):
            total += int(one.memory_info().rss)
    return total


def members(leader: int) -> list[psutil.Process]:
    """Return the processes of a group that have not ended."""
    found = []
    if sys.platform == "win32":
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(leader)
            found = [first, *first.children(recursive=True)]
        return found
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(pid) == leader:
                found.append(psutil.Process(pid))
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a group now, whether or not its leader has ended before."""
    if sys.platform == "win32":
        for one in members(process.pid):
            with contextlib.suppress(psutil.Error):
                one.kill()
    else:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
