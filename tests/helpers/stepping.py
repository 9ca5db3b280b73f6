"""Programs that do a step when they are told to, so that a test can end them at a known place."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self


class Stepping:
    """A Python program that prints a line for each step and then waits for one; ended when the block ends.

    Args:
        program: Its text, or its path if it must be a file of its own.
        arguments: Of the command line.
        cwd: Where it runs.
        env: Its environment.
        log: Where its stderr goes; None for this one's.
    """

    def __init__(
        self,
        program: str | Path,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        begin = [str(program)] if isinstance(program, Path) else ["-c", program]
        with contextlib.ExitStack() as stack:
            stderr = None if log is None else stack.enter_context(log.open("w"))
            self.process = subprocess.Popen(
                [sys.executable, "-P", *begin, *arguments],
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def line(self) -> str:
        """Return what it prints next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self, word: str = "") -> None:
        """Let it do the next step."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def finish(self, timeout: float) -> int:
        """Let it run to its end; return its exit code."""
        self.process.communicate("\n" * 1000, timeout=timeout)
        return self.process.returncode

    def kill(self) -> None:
        """End it as the system would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
