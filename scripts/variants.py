"""Results of `kit bench` as the tables and the picture of the docs: a row for each variant, a column for each batch size.

    python scripts/variants.py results.json [--picture docs/int8.png]

Every figure is read from the results file; ratios are to the baseline of that run, with their 95 % intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from kit.bench import results
from kit.bench.results import Row
from kit.report.format import microseconds, size
from kit.system import files


def main() -> None:
    """Print the table, and draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    found = results.load(asked.results)
    print(table(found.rows))
    print(f"\n{found.machine.describe()}")
    for control in found.controls:
        if control.comparison is not None:
            print(f"baseline against itself, {control.at or control.sizes}: {control.comparison}")
    if asked.picture is not None:
        files.write(asked.picture, vl_convert.vegalite_to_png(picture(found.rows).to_dict(), scale=2))


def table(rows: tuple[Row, ...]) -> str:
    """Return Markdown."""
    sizes = sorted({row.samples for row in rows})
    named: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        named.setdefault((row.variant, row.runtime), {})[row.samples] = row
    several = len({runtime for _, runtime in named}) > 1
    metric = next((row.score.metric for row in rows if row.score), "score")
    start = (
        "| variant | runtime |" if several else f"| variant | size | {metric} | became wrong, right | loss, points |"
    )
    columns = start.count("|") - 1
    lines = [f"{start} {' | '.join(f'batch {one}' for one in sizes)} |", "|" + "---|" * (columns + len(sizes))]
    for (variant, runtime), own in named.items():
        first = next(iter(own.values()))
        told = [variant, runtime] if several else [variant, size(first.size_bytes), *_score(first)]
        lines.append(f"| {' | '.join([*told, *(_cell(own.get(one)) for one in sizes)])} |")
    return "\n".join(lines)


def _score(row: Row) -> list[str]:
    found = row.score
    if found is None:
        return ["", "", ""]
    value = f"{100 * found.value:.2f} %" if found.unit == "%" else f"{found.value:.4g} {found.unit}".strip()
    interval = found.loss_interval
    if found.baseline is None or interval is None:
        return [value, "", ""]
    factor = 100 if found.unit == "%" else 1
    changed = f"{found.worse}, {found.improved}" if found.worse is not None else ""
    low, high = (factor * end for end in interval)
    return [value, changed, f"{factor * found.loss:+.2f} [{low:.2f}, {high:.2f}]"]


def _cell(row: Row | None) -> str:
    if row is None or row.latency is None:
        return ""
    verdict = row.verdict.describe() if row.verdict and row.verdict.comparison else ""
    return f"{microseconds(row.latency.p50_us)} {verdict}".strip()


def picture(rows: tuple[Row, ...]) -> alt.TopLevelMixin:
    """Draw how many times as fast as the baseline each variant is, at every batch size, with intervals."""
    values: list[dict[str, Any]] = [
        {
            "variant": row.variant,
            "batch": f"batch {row.samples}",
            "speedup": row.verdict.comparison.speedup,
            "low": row.verdict.comparison.low,
            "high": row.verdict.comparison.high,
        }
        for row in rows
        if row.verdict and row.verdict.comparison
    ]
    order = list(dict.fromkeys(row["variant"] for row in values))
    batches = list(dict.fromkeys(row["batch"] for row in values))
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("variant:N", title=None, sort=order),
        yOffset=alt.YOffset("batch:N", sort=batches),
    )
    bars = base.mark_bar().encode(
        x=alt.X("speedup:Q", title="times as fast as fp32 (1 is the line)"),
        color=alt.Color(
            "batch:N",
            title=None,
            sort=batches,
            scale=alt.Scale(range=["#9ecae1", "#4292c6", "#2171b5", "#08306b"]),
            legend=alt.Legend(orient="top"),
        ),
    )
    spread = base.mark_rule(color="#1f2933").encode(x="low:Q", x2="high:Q")
    line = alt.Chart(alt.Data(values=[{"one": 1}])).mark_rule(color="#D55E00", strokeDash=[5, 4]).encode(x="one:Q")
    return alt.layer(bars, spread, line).properties(width=620, height=alt.Step(13))


if __name__ == "__main__":
    main()
