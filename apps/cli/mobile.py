"""`kit export --mobile`: its option, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from apps.cli import options

F = TypeVar("F", bound=Callable[..., Any])

_USES = {"bundle", "mobile", "variant"}


def mobile(function: F) -> F:
    """Add `--mobile`."""
    return click.option(
        "--mobile",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Make no variant: write files for phones, of one size: .ort with the operators of a small build, and .onnx.",
    )(function)


def write(ctx: click.Context, source: str | None, asked: dict[str, Any], *, as_json: bool) -> None:
    """Write the files and say what the execution providers of phones would take."""
    from apps.cli import render
    from apps.cli.tables import Rows
    from kit.report.format import size

    options.refuse_unused(ctx, flag="--mobile", uses=_USES)
    from exporters.mobile import write_mobile
    from kit import ready

    done = write_mobile(ready.find(source), asked["mobile"], variant=asked["variant"])
    if as_json:
        render.print_json({**vars(done), "folder": str(done.folder)})
        return
    files = Rows(headers=("file", "size"), left=("file",))
    for name, nbytes in done.files.items():
        files.add(name, size(nbytes))
    files.show(render.stdout())
    headers = ("would take", "nodes", "parts", "worth a try", "lacks")
    taken = Rows(headers=headers, left=("would take", "lacks"), wraps=("lacks",))
    for one in done.coverage:
        taken.add(one.provider, f"{one.nodes}/{one.total}", str(one.parts), one.advice.lower(), ", ".join(one.lacking))
    taken.show(render.stdout())
    at = ", ".join(f"{axis} {number}" for axis, number in done.sizes.items()) or "its one size"
    render.remark(
        f"{done.variant} at {at}: both files answer {done.samples} golden samples on ONNX Runtime's CPU as promised. What "
        "CoreML and NNAPI would take is ONNX Runtime's estimate; neither ran."
    )
