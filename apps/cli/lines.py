"""Sentences for the terminal: wrapped between words, and never within one. Files and pipes get whole lines."""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_WORD = re.compile(r"\S+\s*")


def wrapped(text: Text, width: int, *, indent: int = 0) -> list[Text]:
    """Return lines of at most `width` columns, with `indent` free after the first; a longer word has its own line."""
    lines: list[Text] = []
    for paragraph in text.split("\n", allow_blank=True):
        breaks: list[int] = []
        used, is_first = (indent if lines else 0) + _margin(paragraph.plain), True
        for word in _WORD.finditer(paragraph.plain):
            if not is_first and used + cell_len(word[0].rstrip()) > width:
                breaks.append(word.start())
                used = indent
            used, is_first = used + cell_len(word[0]), False
        for line in paragraph.divide(breaks):
            line.rstrip()
            lines.append(line)
    return lines


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def say(console: Console, text: str | Text, *, indent: int = 0) -> None:
    """Print sentences; on a terminal the second line and those after it are indented by so many columns."""
    text = Text(text) if isinstance(text, str) else text
    lines = wrapped(text, console.width, indent=indent) if console.is_terminal else [text]
    for number, line in enumerate(lines):
        console.print(Text(" " * indent).append_text(line) if number else line, soft_wrap=True)


def command(console: Console, text: str, *, arrow: str = "  → ") -> None:
    """Print what is to be typed next: in one piece, so that it can be copied, whatever the width."""
    console.print(Text(f"{arrow}{text}"), soft_wrap=True)
