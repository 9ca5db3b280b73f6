"""What every command prints with: figures go to stdout, progress and remarks to stderr."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from kit.report.words import in_json, plain
from kit.system import plain_json
from kit.system.serial import encode


class Update(Protocol):
    """Tells a progress bar what is being done, and the share that is done."""

    def __call__(self, what: str, done: float | None = None, /) -> None:
        """Show it."""

    def say(self, text: str, /) -> None:
        """Print a line above the bar."""


_PIPE_WIDTH = 160  # a file or pipe has no width of its own: do not fold its lines


class _Literal(Console):
    """A console to which a str is text: neither rich's markup, nor an emoji's name, nor an escape sequence."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Give segments without invisible characters; rich's own controls pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text, lines=True))

    def on_broken_pipe(self) -> None:
        """Let the command end: rich would with exit code 1, as if a check had said no."""
        self.quiet = True
        raise BrokenPipeError(errno.EPIPE, "the reader went away")


def stdout() -> Console:
    """Return the console for figures."""
    console = _Literal()
    return console if console.is_terminal else _Literal(width=_PIPE_WIDTH)


def stderr() -> Console:
    """Return the console for progress and remarks."""
    return _Literal(stderr=True)


def print_json(value: Any) -> None:
    """Print a value, dataclasses included, as JSON; what is no number or infinite becomes null."""
    click.echo(in_json(plain_json.write(encode(value), indent=2)))


def remark(text: str) -> None:
    """Print a line to stderr."""
    stderr().print(text, soft_wrap=True)


def next_steps(*commands: tuple[str, str]) -> None:
    """Print the next commands to type, each with what it does."""
    width = max(len(command) for command, _ in commands)
    lines = [Text.assemble("  ", (command.ljust(width), "bold"), f"  {what}") for command, what in commands]
    stderr().print("\nNext:", *lines, sep="\n", soft_wrap=True)


@contextlib.contextmanager
def progress(total: float | None = None) -> Iterator[Update]:
    """Show a progress bar on stderr; yields a function that takes (what, done). Without a total, a spinner."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    if total is None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())  # type: ignore[assignment]
    with Progress(*columns, console=stderr(), transient=True) as bar:
        yield _Bar(bar, bar.add_task("", total=total))


class _Bar:
    """The progress bar of `progress`."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def __call__(self, what: str, done: float | None = None, /) -> None:
        """Show it."""
        self._bar.update(self._task, description=what, completed=done)

    def say(self, text: str, /) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, soft_wrap=True)
