"""`kit export --triton`: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from apps.cli import complete, options
from kit.choices import Provider

F = TypeVar("F", bound=Callable[..., Any])

ONLY = ("variant", "provider", "max_batch_size")
"""Options that change nothing without `--triton`."""

_USES = {"bundle", "triton", "name", "threads", "as_json", *ONLY}


def triton(function: F) -> F:
    """Add `--triton`, `--variant`, `--provider` and `--max-batch-size`."""
    for one in (
        click.option(
            "--max-batch-size",
            type=click.IntRange(1),
            help="Triton: samples it may join.  [default: 64, or as many as kit tune measured]",
        ),
        click.option(
            "--provider",
            type=click.Choice(list(Provider), case_sensitive=False),
            help="Triton: where the model runs.  [default: what kit tune chose here, else cpu]",
        ),
        click.option(
            "--variant",
            metavar="ID",
            shell_complete=complete.variants,
            help="Triton: which one.  [default: what kit tune chose here, else the bundle's]",
        ),
        click.option(
            "--triton",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="Make no variant: write the bundle's model, or a model.onnx, into a model repository for NVIDIA Triton.",
        ),
    ):
        function = one(function)
    return function


def write(ctx: click.Context, source: str | None, asked: dict[str, Any], *, as_json: bool) -> None:
    """Write the repository and say what Triton cannot be told."""
    from apps.cli import render

    options.refuse_unused(ctx, flag="--triton", uses=_USES)
    if asked["data_dir"] is not None:
        raise click.UsageError("--data-dir changes nothing with --triton")
    from exporters.triton import TritonOptions, write_repository
    from kit import ready

    done = write_repository(
        ready.find(source),
        asked["triton"],
        TritonOptions(
            name=asked["name"],
            variant=asked["variant"],
            provider=Provider.parse(asked["provider"]) if asked["provider"] else None,
            threads=asked["threads"],
            max_batch_size=asked["max_batch_size"],
        ),
    )
    for said in done.remarks:
        render.remark(said)
    if as_json:
        render.print_json({**vars(done), "folder": str(done.folder)})
        return
    click.echo(done.folder)
    render.remark(f"{'Wrote' if done.is_new else 'Nothing changed:'} {done.folder}, variant {done.variant}.")
    render.next_steps((f"tritonserver --model-repository={asked['triton'].absolute()}", "to serve it"))
