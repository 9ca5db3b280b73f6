"""`kit compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import options

if TYPE_CHECKING:
    from kit.bench.compare import Change, Regression

_FILE = click.Path(path_type=Path, dir_okay=False)


class _Share(click.ParamType[float]):
    """A share typed as `5%` or `0.05`."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share as a float, 0.05 for 5%."""
        text = str(value).strip()
        try:
            found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            found = -1.0
        if found >= 1 and not text.endswith("%"):
            self.fail(f"{text!r} would allow a run {1 + found:g} times as slow; did you mean {text}%?", param, ctx)
        if not 0 <= found < float("inf"):
            self.fail(f"{text!r} is no share such as 5% or 0.05", param, ctx)
        return found


@click.command()
@click.argument("base", type=_FILE)
@click.argument("new", type=_FILE)
@click.option("--fail-if-slower", type=_Share(), default="5%", show_default=True, help="Slowdown that is allowed.")
@click.option(
    "--fail-if-drop", type=click.FloatRange(0), default=0.1, show_default=True, help="Points of top-1 it may lose."
)
@click.option("--any-machine", is_flag=True, help="Compare runs of different machines all the same.")
@click.option("--any-bundle", is_flag=True, help="Compare runs of bundles of different names all the same.")
@options.as_json
@options.debug
def compare(
    base: Path,
    new: Path,
    fail_if_slower: float,
    fail_if_drop: float,
    any_machine: bool,
    any_bundle: bool,
    as_json: bool,
) -> int:
    """Compare two results files of kit bench, BASE the older and NEW the newer one.

    Exit code 1 only for a significant loss of speed or accuracy beyond what is allowed, 3 when a row of BASE has none in NEW
    to be compared with.

    \b
    Example:
      kit bench mnist-mlp --json base.json
      kit bench mnist-mlp --json new.json
      kit compare base.json new.json --fail-if-slower 5% --fail-if-drop 0.1
    """
    from apps.cli import render
    from kit.bench import results
    from kit.bench.compare import Limits
    from kit.bench.compare import compare as hold_against

    limits = Limits(slower=fail_if_slower, drop_points=fail_if_drop)
    before, after = results.load(base), results.load(new)
    found = hold_against(before, after, limits, any_machine=any_machine, any_bundle=any_bundle)
    if as_json:
        render.print_json({"lost": found.lost, "incomplete": found.incomplete, "changes": found.changes})
    else:
        _show(found)
    if found.lost:
        render.remark("Lost: more than noise and more than allowed.")
        return 1
    if found.incomplete:
        render.remark("Nothing measured was lost, but some rows could not be compared.")
        return 3
    render.remark("Nothing was lost beyond what is allowed.")
    return 0


def _show(found: Regression) -> None:
    from rich import box
    from rich.table import Table

    from apps.cli import render

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    several = len({change.runtime for change in found.changes}) > 1
    for header in (
        "variant",
        *(["runtime"] if several else []),
        "provider",
        "batch",
        "base p50 µs",
        "new p50 µs",
        "speed",
        "flips lost/gained",
        "verdict",
    ):
        table.add_column(header, justify="right" if "p50" in header or header == "batch" else "left")
    for change in found.changes:
        cells = _cells(change)
        table.add_row(cells[0], *([change.runtime] if several else []), *cells[1:])
    console = render.stdout()
    console.print(table)
    allowed = f"{100 * found.limits.slower:g} % slower, {found.limits.drop_points:g} points of top-1"
    console.print(f"Allowed: {allowed}. Speed: newer against older, 95 % interval.", soft_wrap=True)


def _cells(change: Change) -> list[str]:
    from rich.markup import escape

    from kit.report.format import NONE, microseconds

    speed, flips = change.speed, change.flips
    lost = [word for word, is_lost in (("SLOWER", change.slower), ("LESS ACCURATE", change.worse)) if is_lost]
    words = " and ".join(lost) or change.missing or str(change.outcome or NONE)
    return [
        change.variant,
        change.provider.value,
        str(change.batch_size),
        microseconds(change.base_p50_us),
        microseconds(change.new_p50_us),
        escape(f"{speed.speedup:.2f}x [{speed.low:.2f}, {speed.high:.2f}]") if speed else NONE,
        f"{flips.lost}/{flips.gained} of {flips.images:,}" if flips else NONE,
        f"[red]LOST: {escape(words)}[/]" if lost else escape(words),
    ]
