"""`kit list` and `kit info`."""

from __future__ import annotations

import click

from apps.cli import options


@click.command("list")
@options.as_json
@options.debug
def list_bundles(as_json: bool) -> None:
    """List the bundles under ./artifacts and those that came with kit.

    \b
    Example:
      kit list
    """
    from apps.cli import render
    from kit.bundle import Bundle, scan

    found = scan()
    if as_json:
        rows = [
            {"name": name, "folder": str(item.folder), "variants": [variant.id for variant in item.variants]}
            if isinstance(item, Bundle)
            else {"name": name, "broken": str(item)}
            for name, item in found.items()
        ]
        render.print_json(rows)
    elif found:
        render.bundle_table(dict(found))
    else:
        render.remark("No bundles here.")
        render.next_steps(("kit quickstart", "make the first one"))


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
