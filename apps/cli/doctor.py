"""`kit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from apps.cli import options

if TYPE_CHECKING:
    from kit.doctor import Diagnosis


@click.command()
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--device-id", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")
@options.as_json
@options.debug
def doctor(model: str | None, device_id: int, as_json: bool) -> int:
    """Say what this machine can run, by running a one-node model on each provider, and your MODEL.

    MODEL is a model.onnx or a bundle: each of its variants is then run on each provider that works. Exit code 0 if at least
    one provider works and nothing is installed twice, else 3.

    \b
    Examples:
      kit doctor
      kit doctor model.onnx
    """
    from apps.cli import render
    from kit import ready
    from kit.doctor import diagnose

    found = diagnose(None if model is None else ready.find(model), device_id=device_id)
    if as_json:
        render.print_json(found)
    else:
        _show(found)
    return 0 if found.ok else 3


def _show(found: Diagnosis) -> None:
    from rich.markup import escape

    from apps.cli import render

    console = render.stdout()
    console.print(f"[bold]machine[/]    {escape(found.machine.describe())}", soft_wrap=True)
    versions = ", ".join(f"{name} {version}" for name, version in found.tools.items())
    console.print(f"[bold]versions[/]   {escape(versions)}", soft_wrap=True)
    imported = f"{found.runtime} is the one that is imported" if found.runtime else "no ONNX Runtime is installed"
    console.print(f"[bold]runtime[/]    {escape(imported)}", soft_wrap=True)
    for report in found.providers:
        if report.works:
            console.print(
                f"[bold]{report.provider.value:<9}[/]  [green]works[/]: it ran a model and the answer was right"
            )
            continue
        console.print(f"[bold]{report.provider.value:<9}[/]  [yellow]{escape(report.reason)}[/]", soft_wrap=True)
        if report.fix:
            console.print(f"           → {escape(report.fix)}", soft_wrap=True)
    for model in found.models:
        name = f"{escape(model.variant)} on {model.provider}"
        if model.runs:
            console.print(f"[bold]{name}[/]  [green]runs[/]: {escape(model.placement.describe())}", soft_wrap=True)
            continue
        console.print(f"[bold]{name}[/]  [yellow]{escape(model.reason)}[/]", soft_wrap=True)
        if model.fix:
            console.print(f"           → {escape(model.fix)}", soft_wrap=True)
    for warning in found.warnings:
        console.print(f"[red]warning[/]    {escape(warning)}", soft_wrap=True)
