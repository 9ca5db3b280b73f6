"""`kit report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from apps.cli import options
from kit.errors import UsageError
from kit.system import files

_FILE = click.Path(path_type=Path, dir_okay=False)
_STDOUT = Path("-")
_FORMATS = {".html": "html", ".htm": "html", ".csv": "csv", ".md": "markdown"}


@click.command()
@click.argument("results", type=_FILE, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default="report.html",
    show_default=True,
    help="File to write; its suffix (.html, .csv, .md) chooses the format. - writes to stdout and needs --format.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "csv", "markdown"]),
    help="What to write, whatever the suffix.",
)
@options.debug
def report(results: tuple[Path, ...], output: Path, form: str | None) -> int:
    """Make one page, or a table, of results files that kit bench wrote with --json.

    The page holds its charts and needs no network: send it as it is. Files of several machines may be named; each keeps its own
    verdicts.

    \b
    Example:
      kit bench mnist-mlp --json here.json
      kit report here.json                       report.html
      kit report here.json there.json -o both.html
      kit report here.json -o here.csv
      kit report here.json -o - --format markdown
    """
    from kit.bench.results import load

    chosen = form or _by_suffix(output)
    if output != _STDOUT:
        files.check_writable(output)
    loaded, names = [load(path) for path in results], _names(results)
    if chosen == "html":
        from kit.report.page import render

        text = render(loaded, names=names)
    else:
        from kit.report import tables

        text = tables.to_csv(loaded, names=names) if chosen == "csv" else tables.to_markdown(loaded, names=names)
    if output == _STDOUT:
        click.echo(text, nl=False)
        return 0
    files.write(output, text)
    from apps.cli import render as terminal
    from kit.report.format import size

    sources = "1 results file" if len(loaded) == 1 else f"{len(loaded)} results files"
    terminal.remark(f"Wrote {output} ({chosen}, {size(len(text.encode()))}) from {sources}.")
    return 0


def _by_suffix(output: Path) -> str:
    if output == _STDOUT:
        raise UsageError("stdout has no suffix that chooses a format", hint="add --format html, csv or markdown")
    found = _FORMATS.get(output.suffix.lower())
    if found is None:
        raise UsageError(
            f"{output.name} has no suffix that chooses a format",
            hint="end it in .html, .csv or .md, or add --format html, csv or markdown",
        )
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: no longer than tells them apart, and numbered where one is named twice."""
    for parts in (1, 2):
        names = ["/".join([*path.absolute().parts[-parts:-1], path.stem]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {name}" for number, name in enumerate(names, start=1)]
