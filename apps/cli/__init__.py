"""The command `kit`: parse, call one function of the library, render.

Errors meet the terminal here and nowhere else: a KitError becomes one message, the next thing to type, and its exit code;
anything unforeseen is a defect of kit, exit code 5, with a traceback only under `--debug`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from apps.cli.bench import bench
from apps.cli.blame import blame
from apps.cli.bundles import info, list_bundles, upgrade
from apps.cli.compare import compare
from apps.cli.completion import completion
from apps.cli.compress import compress
from apps.cli.demo import demo
from apps.cli.doctor import doctor
from apps.cli.export import export
from apps.cli.pack import pack, unpack
from apps.cli.predict import predict
from apps.cli.quickstart import quickstart
from apps.cli.report import report
from apps.cli.serve import serve
from apps.cli.train import train
from apps.cli.tune import tune
from apps.cli.verify import verify
from apps.cli.web import web
from kit import __version__
from kit.errors import KitError, MemoryShort

INTERRUPTED = 130
PIPE_CLOSED = 141
"""As a shell says it of a program that SIGPIPE ended: not 0, for what a command found was not heard."""

_STORAGE, _DEFECT = 3, 5


_GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Begin": (quickstart, doctor, completion),
    "Make": (train, export, blame, compress),
    "Prove and measure": (verify, bench, tune, report, compare),
    "Use": (predict, serve, web, demo),
    "Bundles": (list_bundles, info, pack, unpack, upgrade),
}


class _PipeClosed(Exception):  # noqa: N818 - named for what happened
    """Whoever read the output went away, as `kit list | head` does; click would make exit code 1 of it."""


@contextlib.contextmanager
def _piped() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _PipeClosed from error


class _Grouped(click.Group):
    """Lists its commands in the order of the work, under what they are for."""

    def make_context(self, *given: Any, **named: Any) -> click.Context:
        # Help is printed here.
        with _piped():
            return super().make_context(*given, **named)

    def invoke(self, ctx: click.Context) -> Any:
        with _piped():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write each group's commands with their first sentence, all of it."""
        widest = max(len(name) for name in self.commands)
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{one.name or '':<{widest}}", _summary(one)) for one in commands])


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(limit=sys.maxsize)


@click.group(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kit")
def cli() -> None:
    """Put a trained model on machines that are not yours.

    Every artifact says what it is, every figure says where it ran, and nothing is published that was not checked.

    \b
    Start here:
      kit bench model.onnx      how fast a model of yours is here
      kit export model.onnx     a bundle of it: checked, hashed, provable anywhere
      kit quickstart            train, export, verify and bench a model in one go
    """


for command in (one for group in _GROUPS.values() for one in group):
    cli.add_command(command)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    state = {"debug": False}
    try:
        result = cli.main(arguments, prog_name="kit", standalone_mode=False, obj=state)
    except KitError as error:
        _say(f"Error: {error}", error.hint)
        _trace(state)
        return error.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        _say(shown.getvalue().rstrip("\n"))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("Interrupted.")
        return INTERRUPTED
    except _PipeClosed:
        _discard_output()
        return PIPE_CLOSED
    except MemoryError as error:
        said = f"there is not enough memory: {error}".removesuffix(": ")
        short = MemoryShort(said, hint="free some, or give it less at once")
        _say(f"Error: {short}", short.hint)
        _trace(state)
        return short.exit_code
    except ModuleNotFoundError as error:
        from kit.system import packages  # slow to import, as is traceback: only when something went wrong

        missing = packages.explain(error)
        if missing is None:
            return _defect(error, state)
        _say(f"Error: {missing}", missing.hint)
        _trace(state)
        return missing.exit_code
    except OSError as error:
        _say(f"Error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        _trace(state)
        return _STORAGE
    except Exception as error:  # noqa: BLE001 - the border: whatever else comes is a defect, and is said to be one
        return _defect(error, state)
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Files and pipes get UTF-8 wherever they are made; a terminal shows what it can.
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    sys.exit(run())


def _defect(error: Exception, state: dict[str, bool]) -> int:
    _say(f"Error: this is a defect of kit: {type(error).__name__}: {error}", "run it again with --debug and report it")
    _trace(state)
    return _DEFECT


def _say(message: str, hint: str = "") -> None:
    from apps.cli import lines, render  # slow to import

    console = render.stderr()
    lines.say(console, message)
    if hint:
        lines.command(console, hint)


def _discard_output() -> None:
    """Let Python's last flush of a closed pipe go nowhere, without a word."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


def _trace(state: dict[str, bool]) -> None:
    if state["debug"]:
        import traceback

        traceback.print_exc()
