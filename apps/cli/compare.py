"""`kit compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import options

if TYPE_CHECKING:
    from apps.cli.tables import Cell
    from kit.bench.compare import Change, Regression

_FILE = click.Path(path_type=Path, dir_okay=False)


class _Share(click.ParamType[float]):
    """A share typed as `5%` or `0.05`."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
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
    "--fail-if-drop",
    type=options.Number(0),
    default=0.1,
    show_default=True,
    help="Points it may lose of a metric that is a share, such as top-1.",
)
@click.option(
    "--fail-if-loss",
    type=options.Number(0),
    help="What it may lose of any other metric, in its unit.  [default: what the metric allows]",
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
    fail_if_loss: float | None,
    any_machine: bool,
    any_bundle: bool,
    as_json: bool,
) -> int:
    """Compare two results files of kit bench, BASE the older and NEW the newer one.

    Exit code 1 only for a significant loss of speed or of a score beyond what is allowed, 3 if a row of BASE, or a metric of
    it, has none in NEW to be compared with.

    \b
    Example:
      kit bench mnist-mlp --json base.json
      kit bench mnist-mlp --json new.json
      kit compare base.json new.json --fail-if-slower 5% --fail-if-drop 0.1
    """
    from apps.cli import render
    from kit.bench import results
    from kit.bench.compare import Limits
    from kit.bench.compare import compare as compared

    limits = Limits(slower=fail_if_slower, drop_points=fail_if_drop, loss=fail_if_loss)
    before, after = results.load(base), results.load(new)
    found = compared(before, after, limits, any_machine=any_machine, any_bundle=any_bundle)
    if as_json:
        render.print_json({"lost": found.lost, "incomplete": found.incomplete, "changes": found.changes})
    else:
        _show(found)
    if found.lost:
        render.remark("Lost: more than noise and more than allowed.")
        return 1
    if found.incomplete:
        render.remark("Nothing measured was lost, but some rows or metrics could not be compared.")
        return 3
    render.remark("Nothing was lost beyond what is allowed.")
    return 0


def _show(found: Regression) -> None:
    from apps.cli import render
    from apps.cli.lines import say
    from apps.cli.tables import Rows

    metrics = list(dict.fromkeys(one.metric for change in found.changes for one in change.scores))
    several = len({change.runtime for change in found.changes}) > 1
    rows = Rows(
        headers=(
            *("variant", "runtime", "provider", "at", "base p50 µs", "new p50 µs", "speed"),
            *metrics,
            *("flips lost/gained", "verdict"),
        ),
        left=("variant", "runtime", "provider", "at", "speed", *metrics, "flips lost/gained"),
        wraps=("verdict",),
        spare=("flips lost/gained",),
        needed=("base p50 µs", "new p50 µs"),
    )
    for change in found.changes:
        rows.add(*_cells(change, metrics, names_runtime=several))
    console = render.stdout()
    rows.show(console)
    allowed = f"{100 * found.limits.slower:g} % slower, {found.limits.drop_points:g} points of a share"
    say(console, f"Allowed: {allowed}. Speed: newer against older, 95 % interval.")


def _cells(change: Change, metrics: Sequence[str], *, names_runtime: bool) -> list[Cell]:
    from apps.cli.tables import styled
    from kit.report.format import NONE, microseconds

    speed, flips = change.speed, change.flips
    lost = [word for word, is_lost in (("SLOWER", change.slower), ("LESS RIGHT", change.worse)) if is_lost]
    missing = [one.missing for one in change.scores if one.missing]
    words = " and ".join(lost) or change.missing or "; ".join([str(change.outcome or NONE), *missing])
    return [
        change.variant,
        change.runtime if names_runtime else "",
        change.provider.value,
        change.at,
        microseconds(change.base_p50_us),
        microseconds(change.new_p50_us),
        speed.describe() if speed else NONE,
        *(_score(change, metric) for metric in metrics),
        f"{flips.lost}/{flips.gained} of {flips.samples:,}" if flips else "",
        styled(f"LOST: {words}", "red") if lost else words,
    ]


def _score(change: Change, metric: str) -> str:
    """Return `98.45 % -> 98.40 %`, or one value if nothing changed."""
    from kit.report.format import NONE, value

    one = next((one for one in change.scores if one.metric == metric), None)
    if one is None:
        return ""
    before, now = value(one.base, one.unit), NONE if one.new is None else value(one.new, one.unit)
    return before if before == now else f"{before} → {now}"
