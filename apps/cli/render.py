"""What every command prints with: figures go to stdout, progress and remarks to stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from apps.cli.lines import say
from kit.report.words import in_json, plain
from kit.system import plain_json
from kit.system.progress import duration
from kit.system.serial import encode


class Update(Protocol):
    """Tells a progress bar what is being done, and the share that is done."""

    def __call__(self, what: str, done: float | None = None, /) -> None:
        """Show it."""

    def say(self, text: str, /) -> None:
        """Print a line above the bar."""


_PIPE_WIDTH = 100_000  # a file or pipe has no width of its own: its lines are not folded
_NOTEBOOK = "JPY_PARENT_PID"  # Jupyter's kernels, and what they start
_BAR_WIDTH = 20
_KNOWN_AFTER_SECONDS = 2.0  # what is left after less time is a guess


class _Literal(Console):
    """A console to which a str is text: neither rich's markup, nor an emoji's name, nor an escape sequence."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = _PIPE_WIDTH

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Give segments without invisible characters; rich's own controls pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text, lines=True))

    def on_broken_pipe(self) -> None:
        """Let the command end: rich would with exit code 1, as if a check had said no."""
        self.quiet = True
        raise BrokenPipeError(errno.EPIPE, "the reader went away")


_with_bar: list[Console] = []
"""The console of the progress bar that is shown now: what goes to stderr meanwhile goes above the bar."""


def stdout() -> Console:
    """Return the console for figures."""
    return _Literal()


def stderr() -> Console:
    """Return the console for progress and remarks."""
    return _with_bar[-1] if _with_bar else _Literal(stderr=True)


def print_json(value: Any) -> None:
    """Print a value, dataclasses included, as JSON; what is no number or infinite becomes null."""
    click.echo(in_json(plain_json.write(encode(value), indent=2)))


def remark(text: str) -> None:
    """Print a sentence to stderr."""
    say(stderr(), text)


def next_steps(*commands: tuple[str, str]) -> None:
    """Print the next commands to type, each with what it does: beside it if all lines have room for that, else below."""
    console = stderr()
    width = max(len(command) for command, _ in commands)
    fits = width + 4 + max(len(what) for _, what in commands) <= console.width
    lines = [
        Text.assemble("  ", (command.ljust(width), "bold"), f"  {what}")
        if fits
        else Text.assemble("  ", (command, "bold"), f"\n      {what}")
        for command, what in commands
    ]
    console.print("\nNext:", *lines, sep="\n", soft_wrap=True)


@contextlib.contextmanager
def progress(total: float | None = None) -> Iterator[Update]:
    """Show a progress bar on stderr, without a total a spinner, and leave nothing of it there.

    Nothing is shown where stderr is no terminal, nor in a notebook: its terminal keeps every line ever written.
    """
    console = stderr()
    if not console.is_terminal or _NOTEBOOK in os.environ:
        yield _NoBar()
        return
    what = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns: list[ProgressColumn] = [SpinnerColumn(), what]
    if total is not None:
        columns += [BarColumn(_BAR_WIDTH), TaskProgressColumn()]
    # What goes to a file or a pipe meanwhile is no matter of the bar's.
    redirects = sys.stdout.isatty()
    with Progress(*columns, _Time(), console=console, transient=True, redirect_stdout=redirects) as bar:
        _with_bar.append(console)
        try:
            yield _Bar(bar, bar.add_task("", total=total, began=bar.get_time(), first=0.0))
        finally:
            _with_bar.remove(console)


class _Time(ProgressColumn):
    """How long it has taken, and how long the rest will take once that can be told."""

    def render(self, task: Task) -> Text:
        said = duration(task.elapsed or 0.0)
        began, first = task.fields["began"], task.fields["first"]
        spent, done = task.get_time() - began, task.completed - first
        if task.total and done > 0 and task.completed < task.total and spent >= _KNOWN_AFTER_SECONDS:
            said += f", about {duration(spent * (task.total - task.completed) / done)} left"
        return Text(said, style="progress.elapsed", no_wrap=True)


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task
        self._done = 0.0

    def __call__(self, what: str, done: float | None = None, /) -> None:
        self._bar.update(self._task, description=plain(what), completed=done)
        if done is not None:
            if self._done == 0.0 or done < self._done:  # what came before tells nothing of the speed
                self._bar.update(self._task, began=self._bar.get_time(), first=done)
            self._done = done

    def say(self, text: str, /) -> None:
        say(self._bar.console, text)


class _NoBar:
    """What stands for a progress bar where nobody would see it."""

    def __call__(self, what: str, done: float | None = None, /) -> None:
        """Show nothing."""

    def say(self, text: str, /) -> None:
        remark(text)
