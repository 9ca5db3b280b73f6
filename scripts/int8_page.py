"""The table of scripts/int8_networks.py: its rows, its verdicts, its page in Markdown."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import int8_peers
import zoo

KIT = "kit"
PAGE, TABLE = zoo.DOCS / "int8_networks.md", zoo.DOCS / "int8_networks.json"
INTRODUCTION = """What `kit export --precision auto` publishes and `kit tune` opens, beside the other tools that make a
network smaller and faster on a CPU; `scripts/int8_networks.py` makes the table from nothing but packages.

All tools start from the same float graph and the same training samples; losses are counted on a test part made of other files,
against the float network's own answers (labels, for mnist-mlp), by the metric that kit decided by and with its 95 % interval.
Speed is how many times as fast as ONNX Runtime's fp32 with as many threads a call is: the median of interleaved rounds, and the
middle half of them. All tools of a network were measured together on one machine, which its section names; networks on others.
kit's row shows the choice that loses the most. `Right` is what loses no more than kit's metric allows.
torch.compile and torchao are counted as they are before they are compiled. Weights of some networks are random, which says
something of speed and of errors, and nothing of accuracy. Time and peak memory of kit are of all that `--precision auto` does,
the side-by-side measuring of its candidates included."""

Interval = tuple[float, float, float]
"""A value, and the ends of its interval."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """How fast a tool was at one point.

    Attributes:
        us: Median of a call.
        ratio: How many times as fast as ONNX Runtime's fp32: the median, and the middle half of the rounds.
        kit: How many times as fast as this tool kit is, with its 95 % interval; None of kit itself.
    """

    us: float
    ratio: Interval
    kit: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A tool at one network.

    Attributes:
        problem: Why there is no model; empty if there is one.
        peak_mb: Of the process that made it.
        value: Of kit's metric on the test part.
        loss: Of the metric against fp32, with its 95 % interval.
        kit_loses: How much more than this tool kit loses, paired, with its 95 % interval.
        choices: What `kit tune` chose at each point.
        candidates: What it said of each candidate there.
    """

    tool: str
    problem: str = ""
    remark: str = ""
    size_mb: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    value: float | None = None
    loss: Interval | None = None
    is_right: bool = False
    kit_loses: Interval | None = None
    more: dict[str, float] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, dict[str, str]] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network; `allowed` is the loss of the metric, and `remark` why nothing was measured, empty if something was."""

    name: str
    weights: str
    metric: str = ""
    allowed: float = 0.0
    rows: tuple[Row, ...] = ()
    variants: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    remark: str = ""

    @property
    def by_tool(self) -> Mapping[str, Row]:
        """The rows by tool."""
        return {one.tool: one for one in self.rows}


def point(batch: int, threads: int) -> str:
    """Name a point."""
    return f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"


def joined(names: Sequence[str], measured: Sequence[dict[str, Any]]) -> list[Found]:
    """Return what was measured with those of the last table that were not, in the order of the names."""
    earlier = json.loads(TABLE.read_text()) if TABLE.is_file() else []
    known = {one["name"]: _found(one) for one in (*earlier, *measured)}
    return [known[name] for name in names if name in known]


def write(rows: Sequence[Found]) -> None:
    """Write the table into the documentation."""
    TABLE.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    PAGE.write_text(page(rows))


def _found(plain: dict[str, Any]) -> Found:
    return Found(**{**plain, "rows": tuple(_row(one) for one in plain["rows"])})


def _row(plain: dict[str, Any]) -> Row:
    return Row(**{**plain, "times": {name: Times(**one) for name, one in plain["times"].items()}})


def page(rows: Sequence[Found]) -> str:
    """Return the page."""
    from kit.system.machine import tool_versions

    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    parts = ["# INT8 of real networks, tool by tool", "", INTRODUCTION, "", *_summary(rows), ""]
    for one in rows:
        parts += _section(one)
    return "\n".join([*parts, f"{versions}.", ""])


def _summary(rows: Sequence[Found]) -> list[str]:
    """Return each tool's geometric mean over all points, and kit's against it."""
    whole = [one for one in rows if one.rows]
    if not whole:
        return ["Nothing was measured."]
    tools = [*int8_peers.FLOAT[1:], *int8_peers.INT8]
    means = {tool: _mean([_ratio(one, tool, name) for one in whole for name in _points(one)]) for tool in tools}
    right = {
        tool: _mean([_ratio(one, tool, name, only_right=True) for one in whole for name in _points(one)])
        for tool in tools
    }
    kit = _mean([_ratio(one, KIT, name) for one in whole for name in _points(one)])
    best = max(means, key=means.__getitem__)
    lines = [
        "| tool | speed, geometric mean | of what is right alone | kit against it |",
        "|---|---:|---:|---:|",
        f"| {KIT} | {kit:.2f}x |  |  |",
        *(
            f"| {tool} | {mean:.2f}x | {right[tool]:.2f}x | {kit / mean:.2f}x |"
            for tool, mean in sorted(means.items(), key=lambda one: -one[1])
        ),
    ]
    best_right = max(right, key=right.__getitem__)
    told = (
        f"Networks: {len(whole)}; points: {sum(len(_points(one)) for one in whole)}. Where a tool has no model it counts as "
        "fp32, 1.00x; in the second column also where its model is not right. The best single tool, right or wrong, is "
        f"{best}: kit is {kit / means[best]:.2f} times as fast. The best when only what is right counts is {best_right}: "
        f"kit is {kit / right[best_right]:.2f} times as fast."
    )
    verdicts = [line for one in rows for line in _verdicts(one)]
    return [
        *lines,
        "",
        told,
        "",
        "| network | loses no more than the best int8 | as fast as the fastest that is right |",
        "|---|---|---|",
        *verdicts,
    ]


def _points(found: Found) -> list[str]:
    base = found.by_tool.get(int8_peers.BASELINE)
    return list(base.times) if base else []


def _ratio(found: Found, tool: str, name: str, *, only_right: bool = False) -> float:
    row = found.by_tool.get(tool)
    if row is None or name not in row.times or (only_right and not row.is_right):
        return 1.0
    return row.times[name].ratio[0]


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(one) for one in values) / len(values)) if values else math.nan


def _verdicts(found: Found) -> list[str]:
    """Say, in a row, whether kit loses no more than the best int8, and is as fast as the fastest that is right."""
    if found.remark:
        return [f"| {found.name} | not measured: {found.remark} |  |"]
    return [f"| {found.name} | {_of_accuracy(found)} | {_of_speed(found)} |"]


def _of_accuracy(found: Found) -> str:
    peers = [
        one for one in found.rows if one.tool in int8_peers.INT8 and one.loss is not None and one.kit_loses is not None
    ]
    if not peers:
        return "no other int8"
    best = min(peers, key=lambda one: one.loss[0] if one.loss else math.inf)
    assert best.kit_loses is not None  # as chosen above
    loses, low, high = best.kit_loses
    said = "yes" if low <= 0 else "NO"
    return f"{said}: {_signed(found, loses)} [{_signed(found, low)}, {_signed(found, high)}] more than {best.tool}"


def _of_speed(found: Found) -> str:
    """Compare with the fastest at each point; the float networks compete as well."""
    told = []
    for name in _points(found):
        rows = [one for one in found.rows if one.tool != KIT and one.is_right and name in one.times]
        best = max(rows, key=lambda one: one.times[name].ratio[0])
        against = best.times[name].kit
        if against is None:
            continue
        speed, low, high = against
        said = "yes" if high >= 1 else "NO"
        price = (
            f", which loses {_signed(found, -best.kit_loses[0])} more"
            if best.kit_loses and best.kit_loses[2] < 0
            else ""
        )
        told.append(
            f"{name}: {said}, {speed:.2f}x [{low:.2f}, {high:.2f}] of {best.tool}{price if said == 'NO' else ''}"
        )
    return "<br>".join(told)


def _section(found: Found) -> list[str]:
    head = f"## {found.name} ({found.weights})"
    if found.remark:
        return [head, "", f"Not measured: {found.remark}.", ""]
    names = _points(found)
    more = list(dict.fromkeys(key for row in found.rows for key in row.more))
    columns = ["tool", "size", "made in", "peak memory", f"{found.metric}", "loss [95 %]", "right", *more, *names]
    ordered = sorted(found.rows, key=lambda row: row.tool != KIT)
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += [_line(found, row, more, names) for row in ordered]
    kit = found.by_tool.get(KIT)
    published = "; ".join(f"{name}: {told}" for name, told in found.variants.items())
    notes = [f"- {name}: {choice}" for name, choice in kit.choices.items()] if kit else []
    notes += [f"- {row.tool}: {row.problem or row.remark}" for row in ordered if row.problem or row.remark]
    allowed = f"The metric allows a loss of {_signed(found, found.allowed).lstrip('+')}. `kit tune` chose:"
    return [
        head,
        "",
        *lines,
        "",
        f"kit published {published}. {allowed}",
        "",
        *notes,
        "",
        f"Measured on {found.machine}.",
        "",
    ]


def _line(found: Found, row: Row, more: Sequence[str], names: Sequence[str]) -> str:
    if row.problem:
        return f"| {row.tool} | no: see below |" + " |" * (len(more) + len(names) + 5)
    cells = [
        row.tool,
        "" if row.size_mb is None else f"{row.size_mb:,.2f} MB",
        "" if row.seconds is None else f"{row.seconds:,.0f} s",
        "" if row.peak_mb is None else f"{row.peak_mb:,.0f} MB",
        "" if row.value is None else f"{row.value:.4f}",
        ""
        if row.loss is None or row.tool == int8_peers.BASELINE
        else f"{_signed(found, row.loss[0])} [{_signed(found, row.loss[1])}, {_signed(found, row.loss[2])}]",
        "yes" if row.is_right else "no",
        *(f"{row.more[one]:.4f}" if one in row.more else "" for one in more),
        *(_cell(row.times.get(name)) for name in names),
    ]
    return f"| {' | '.join(cells)} |"


def _signed(found: Found, value: float) -> str:
    """Return a loss: in points, of shares."""
    return f"{100 * value:+.2f} points" if found.metric in {"top-1", "agreement"} else f"{value:+.4f}"


def _cell(times: Times | None) -> str:
    if times is None:
        return ""
    middle, low, high = times.ratio
    took = f"{times.us / 1e3:,.2f} ms" if times.us >= 1000 else f"{times.us:,.0f} µs"
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}] {took}"
