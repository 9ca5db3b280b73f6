"""`kit list` and `kit info`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from apps.cli import options
from kit.errors import KitError

if TYPE_CHECKING:
    from kit.bundle import Bundle, Packed


@click.command("list")
@options.as_json
@options.debug
def list_bundles(as_json: bool) -> None:
    """List the bundles under ./artifacts, packed ones too, and those that came with kit.

    \b
    Example:
      kit list
    """
    from apps.cli import render
    from kit.bundle import scan, scan_packed

    found = {**scan(), **scan_packed()}
    if as_json:
        render.print_json([_row(name, item) for name, item in found.items()])
    elif found:
        render.bundle_table(found)
    else:
        render.remark("No bundles here.")
        render.next_steps(("kit quickstart", "make the first one"))


def _row(name: str, item: Bundle | Packed | KitError) -> dict[str, object]:
    if isinstance(item, KitError):
        return {"name": name, "broken": str(item)}
    where = "folder" if item.origin.is_dir() else "file"
    return {"name": name, where: str(item.origin), "variants": [variant.id for variant in item.manifest.variants]}


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@options.as_json
@options.debug
def info(bundle: str | None, as_json: bool) -> None:
    """Show what a BUNDLE takes and gives, where it comes from, and its variants with their figures.

    \b
    Example:
      kit info mnist-mlp
    """
    from apps.cli import render
    from kit.bundle import find

    found = find(bundle)
    if as_json:
        render.print_json(found.manifest)
    else:
        render.bundle_info(found)
