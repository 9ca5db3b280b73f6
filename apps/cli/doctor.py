"""`kit doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from apps.cli import complete, options

if TYPE_CHECKING:
    from rich.text import Text

    from apps.cli.tables import Cell
    from kit.doctor import Diagnosis, Trial

_NAMES = 11  # columns that the names of lines take


@click.command()
@click.argument("model", required=False, metavar="[MODEL]", shell_complete=complete.bundles)
@click.option("--device-id", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")
@options.as_json
@options.debug
def doctor(model: str | None, device_id: int, as_json: bool) -> int:
    """Say what this machine can run, by running a one-node model on each provider, and your MODEL.

    MODEL is a model.onnx or a bundle: its default variant is then run in every runtime on every provider. Exit code 0 if at
    least one provider works, runs the model, and nothing is installed twice; else 3.

    \b
    Examples:
      kit doctor
      kit doctor model.onnx
    """
    from apps.cli import render
    from kit import ready
    from kit.doctor import diagnose, try_model
    from kit.system.serial import encode

    named = None if model is None else ready.find(model)
    found = diagnose(device_id=device_id)
    tried: tuple[Trial, ...] = ()
    if named is not None:
        with render.progress() as update:
            tried = try_model(named, device_id=device_id, on_progress=update)
    if as_json:
        render.print_json({**encode(found), **({} if named is None else {"model": tried})})
    else:
        _show(found)
        _show_trials(tried)
    return 0 if found.ok and (named is None or any(one.works for one in tried)) else 3


def _show(found: Diagnosis) -> None:
    from apps.cli import render
    from apps.cli.lines import command, say
    from apps.cli.tables import styled

    console = render.stdout()
    say(console, _line("machine", found.machine.describe()), indent=_NAMES)
    versions = ", ".join(f"{name} {version}" for name, version in found.tools.items())
    say(console, _line("versions", versions), indent=_NAMES)
    imported = f"{found.runtime} is the one that is imported" if found.runtime else "no ONNX Runtime is installed"
    say(console, _line("runtime", imported), indent=_NAMES)
    for report in found.providers:
        if report.works:
            said = ": it ran a model and the answer was right"
            say(console, _line(report.provider.value, styled("works", "green"), said), indent=_NAMES)
            continue
        say(console, _line(report.provider.value, styled(report.reason, "yellow")), indent=_NAMES)
        if report.fix:
            command(console, report.fix, arrow=f"{'':<{_NAMES}}→ ")
    if found.int8_saturates is not None:
        said = "saturates with weights of 8 bits: kit makes ONNX Runtime exact, for others take --weight-bits 7"
        exact = "sums are exact in ONNX Runtime, whatever the weights' bits"
        say(console, _line("int8", said if found.int8_saturates else exact), indent=_NAMES)
    for warning in found.warnings:
        say(console, _line("warning", warning, style="red"), indent=_NAMES)


def _line(name: str, *said: Cell, style: str = "bold") -> Text:
    from rich.text import Text

    return Text.assemble((f"{name:<{_NAMES}}", style), *said)


def _show_trials(tried: Sequence[Trial]) -> None:
    from apps.cli import render
    from apps.cli.lines import command, say
    from apps.cli.tables import Rows, styled

    if not tried:
        return
    rows = Rows(headers=("runtime", "provider", "model", "nodes on"), left=("runtime", "provider", "model", "nodes on"))
    for one in tried:
        runs = styled("runs", "green") if one.works else styled("does not run", "yellow")
        rows.add(one.runtime, one.provider.value, runs, one.placement)
    console = render.stdout()
    rows.show(console)
    for one in tried:
        if not one.works:
            say(console, styled(f"{one.runtime} on {one.provider}: {one.reason}", "yellow"))
            if one.fix:
                command(console, one.fix)
