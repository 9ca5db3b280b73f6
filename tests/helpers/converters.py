"""Converters that a test runs in a child, by the ending of what they are to make."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from kit.runtime.converted import Converter


def converter(ending: str) -> Converter:
    """What `convert` does for an ending: works, fails, dies, hangs, leaves or empty."""
    return Converter(name="Tool", distribution="numpy", module=__name__, suffix=f".{ending}")


def convert(source: Path, target: Path) -> None:
    content = source.read_bytes()
    ending = target.suffix
    if ending == ".works":
        target.write_bytes(content[::-1])
        (source.parent / "beside.txt").write_text("left")
        source.write_bytes(b"overwritten")
        return
    if ending == ".empty":
        target.touch()
        return
    if ending == ".fails":
        sys.stdout.write("reading\nError: no such operator: Fancy\nbye\n")
        return
    target.write_bytes(content[:10])
    if ending == ".dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if ending == ".hangs":
        time.sleep(60)
    if ending == ".greedy":
        bytearray(2**45)
    raise AssertionError(ending)
