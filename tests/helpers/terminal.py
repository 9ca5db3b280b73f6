"""A terminal for `kit`: a pseudo-terminal of some width, and what is left on its screen at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|([\r\n])|([^\x1b\r\n]+)")


@dataclass(frozen=True)
class Seen:
    """What a program showed.

    Attributes:
        code: Its exit code.
        lines: Of the screen at its end, without blanks at their ends.
        raw: All that was sent to the terminal.
        stdout: What went to its standard output, if that was no terminal.
    """

    code: int
    lines: list[str]
    raw: str
    stdout: str = ""

    @property
    def text(self) -> str:
        """The screen."""
        return "\n".join(self.lines)


def seen(
    arguments: Sequence[str], *, cwd: Path, columns: int = 80, pipes_stdout: bool = False, **environment: str
) -> Seen:
    """Run `kit` in a terminal, with its standard output in a file if asked to."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    around = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            [sys.executable, "-c", "import apps.cli; apps.cli.main()", *arguments],
            cwd=cwd,
            env={**around, "TERM": "xterm-256color", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output if pipes_stdout else child,
            stderr=child,
        ) as running,
    ):
        os.close(child)
        raw = _all_of(main)
        running.wait()
        output.seek(0)
        stdout = output.read().decode()
    os.close(main)
    return Seen(running.returncode, screen(raw), raw, stdout)


def _all_of(terminal: int) -> str:
    parts = bytearray()
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # as Linux says that nobody holds the other end any more
            break
        if not part:
            break
        parts += part
    return parts.decode(errors="replace")


def screen(raw: str) -> list[str]:
    """Return the lines that what was sent leaves on a screen of any height and width."""
    lines, row, column = [""], 0, 0
    for found in _CONTROL.finditer(raw):
        count, code, end, text = found.groups()
        if text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif end == "\r":
            column = 0
        elif end == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif code == "A":
            row = max(row - int(count or 1), 0)
        elif code == "K":
            lines[row] = "" if count == "2" else lines[row][:column]
    return [line.rstrip() for line in lines]
