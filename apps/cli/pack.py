"""`kit pack` and `kit unpack`."""

from __future__ import annotations

from pathlib import Path

import click

from apps.cli import complete, options


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="A file ending in .kit, or a folder that exists.  [default: BUNDLE-HASH.kit in the current folder]",
)
@options.debug
def pack(bundle: str | None, out: Path | None) -> None:
    """Write a BUNDLE as one file, to move it; prints its name.

    The file's name carries part of its sha256, and the same bundle always gives the same file. kit.load and every command take
    it as they take a folder; kit unpack makes a folder of it again, to export or train into.

    \b
    Examples:
      kit pack mnist-mlp
      kit pack mnist-mlp -o /media/stick
    """
    from apps.cli import render
    from kit import bundle as bundles
    from kit.report.format import size

    path = bundles.pack(bundles.find(bundle), out)
    click.echo(path)
    render.remark(f"Wrote {path} ({size(path.stat().st_size)}); every command takes it as a BUNDLE.")
    render.next_steps((f"kit verify {path}", "prove it, here or where you copied it to"))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), shell_complete=complete.bundles)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder to make.  [default: artifacts/NAME]"
)
@options.debug
def unpack(file: Path, out: Path | None) -> None:
    """Make a bundle's folder of a packed FILE; prints its name.

    Everything is checked before anything is written. A folder that holds anything but a bundle is left alone; another bundle is
    replaced only when -o names its folder.

    \b
    Example:
      kit unpack mnist-mlp-1a2b3c4d.kit
    """
    from kit import bundle as bundles

    click.echo(bundles.unpack(file, out).folder)
