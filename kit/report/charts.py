"""Results as charts that fill whatever width they are given; as Vega specifications in JSON, and the script that draws them.

Altair and vl-convert are imported here and nowhere else, when a chart is made. Charts are compiled from Vega-Lite to Vega here,
so that a page carries Vega alone (580 kB) and not its compiler as well (900 kB).

A colour is a variant, and a shape or dash is a place, a runtime on a provider: colour alone never tells two apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from kit.bench.results import Row, Status
from kit.bench.sweep import Knee, swept_axis
from kit.metrics import Better, Score
from kit.system import packages

if TYPE_CHECKING:
    import altair as alt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B", "#8C6D1F")
"""Told apart by colour-blind readers and in grey print (Okabe and Ito 2008), the darker ones first."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 4), (12, 4))

_INK, _FAINT = "#1f2933", "#7b8794"
_MOST_NODES = 10
_LEAST_SHOWN = 1e-9  # on a log scale, which has no zero
_NAME_SHARE, _NAMES_SHARE = 0.09, 0.18  # of a chart's height, which a name takes, and of its width
_CONFIG = {
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "background": None,
    "padding": {"left": 2, "right": 10, "top": 6, "bottom": 2},
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": "#3e4c59",
        "titleColor": "#52606d",
        "gridColor": "#e4e7eb",
        "domainColor": "#9aa5b1",
        "tickColor": "#9aa5b1",
        "labelLimit": 160,
    },
    "axisY": {"titleAnchor": "end"},
    "text": {"fontSize": 12, "color": _INK},
}


_DRAW = """window.draw = (container, spec) =>
  new View(parse(spec), { container, renderer: "svg", logLevel: Warn }).runAsync();"""
_DRAW_WITH_EMBED = """window.draw = (container, spec) =>
  vegaEmbed(container, spec, { mode: "vega", renderer: "svg", actions: false });"""


MODULES = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}
"""What a page is made with, and the packages that hold it."""


@dataclass(frozen=True)
class Style:
    """What the colours and shapes of a run stand for, in the order they are given out."""

    variants: tuple[str, ...]
    places: tuple[str, ...]
    ink: str = _INK

    @classmethod
    def of(cls, rows: Iterable[Row], *, ink: str = _INK, first: tuple[str, ...] = ()) -> Style:
        """Give every variant a colour and every place a shape; those of `first` get the first colours, drawn or not."""
        rows = tuple(rows)
        variants = tuple(dict.fromkeys((*first, *(row.variant for row in rows))))
        return cls(variants, tuple(dict.fromkeys(map(place, rows))), ink)

    def colour(self, variant: str) -> str:
        """Return the colour of a variant."""
        return COLOURS[self.variants.index(variant) % len(COLOURS)]

    def shape(self, where: str) -> str:
        """Return the shape of a place."""
        return SHAPES[self.places.index(where) % len(SHAPES)]

    def dash(self, where: str) -> tuple[int, ...]:
        """Return the dash of a place."""
        return DASHES[self.places.index(where) % len(DASHES)]


def place(row: Row) -> str:
    """Return `onnxruntime cpu`; where a fallback ran, what was asked for as well."""
    asked = f" for {row.provider}" if row.status is Status.FALLBACK else ""
    return f"{row.place}{asked}"


def require() -> None:
    """Import what draws.

    Raises:
        PackageMissing: It is not installed; the hint is the line that installs it.
    """
    for module, distribution in MODULES.items():
        beside = tuple(other for other in MODULES.values() if other != distribution)
        packages.needed(module, distribution=distribution, purpose="drawing a report", extra="report", beside=beside)


@cache
def script() -> str:
    """Return a script that sets `draw(element, spec)`, which returns a promise; it asks no network for anything.

    It is Vega alone where vl-convert can be asked for that, else Vega with all that vl-convert has, half as large again.
    """
    import vl_convert

    address = (
        f"https://cdn.jsdelivr.net/npm/vega@{vl_convert.get_vega_version()}/+esm"  # vl-convert's own copy has this name
    )
    try:
        found = vl_convert.javascript_bundle(f'import {{ parse, View, Warn }} from "{address}"; {_DRAW}')
    except ValueError:
        found = vl_convert.javascript_bundle(_DRAW_WITH_EMBED)
    return str(found).replace("</script", "<\\/script")


def latency_domain(rows: Iterable[Row]) -> tuple[float, float]:
    """Return the range in microseconds that holds the 5th to 99th percentiles of all rows, with some room."""
    found = [row.latency.percentiles_us for row in rows if row.latency and len(row.latency.percentiles_us) == 101]
    if not found:
        return 1.0, 10.0
    return max(min(one[5] for one in found), 1e-3) / 1.2, max(one[99] for one in found) * 1.2


def latency(rows: Sequence[Row], style: Style, domain: tuple[float, float]) -> alt.LayerChart | alt.FacetChart:
    """Draw the distributions of one point: 5th to 95th percentile, quartiles, median, and p99 from 1,000 calls on."""
    import altair as alt

    values = [
        {"name": _name(row, style), "colour": style.colour(row.variant), **_percentiles(row)}
        for row in rows
        if row.latency and len(row.latency.percentiles_us) == 101
    ]
    base = _chart(values).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=_name_axis()), color=alt.Color("colour:N", scale=None)
    )
    tooltip = [alt.Tooltip(f"{key}:Q", format=",.1f") for key in ("p5", "p25", "p50", "p75", "p95", "p99")]
    whisker = base.mark_rule(strokeWidth=3, opacity=0.45).encode(
        x=_micros("p5", "latency, µs (log scale)", domain), x2="p95:Q"
    )
    box = base.mark_bar(height=14, opacity=0.85).encode(x=_micros("p25", None, domain), x2="p75:Q", tooltip=tooltip)
    median = base.mark_tick(thickness=2.5, size=22).encode(x=_micros("p50", None, domain), color=alt.value(style.ink))
    tail = (
        base.transform_filter("datum.p99 !== null")
        .mark_point(filled=True, size=45, opacity=1)
        .encode(x=_micros("p99", None, domain))
    )
    return _sized(alt.layer(whisker, box, median, tail), height=alt.Step(38))


def score(rows: Sequence[Row], front: Sequence[Row], style: Style) -> alt.LayerChart | alt.FacetChart:
    """Draw the score against the median latency at one point; filled points are on the Pareto front.

    The axis points upwards for metrics of which more is better, and downwards for others: up is better always.
    """
    import altair as alt

    values = [
        {
            "name": f"{row.variant}, {place(row)}",
            "p50": row.latency.p50_us,
            "low": row.latency.low_us or row.latency.p50_us,
            "high": row.latency.high_us or row.latency.p50_us,
            "score": _shown(row.score),
            "colour": style.colour(row.variant),
            "fill": style.colour(row.variant) if row in front else "transparent",
            "shape": style.shape(place(row)),
            "front": row in front,
        }
        for row in sorted(rows, key=lambda row: row.latency.p50_us if row.latency else 0.0)
        if row.latency and row.score
    ]
    for number, value in enumerate(values):  # neighbours' names stand on either side
        value |= {"label": _label(str(value["name"]), rows), "above": number % 2 == 0}
    first = next(row.score for row in rows if row.latency and row.score)
    title = f"{first.metric}, {first.unit}" if first.unit else first.metric
    tops = [float(str(value["score"])) for value in values]
    room = max(5e-4 * max(map(abs, tops)), 0.25 * (max(tops) - min(tops)), 1e-9)
    domain = [min(tops) - room, max(tops) + room]
    if first.unit == "%":
        domain = [max(domain[0], 0), min(domain[1], 100)]
    low = min(float(str(value["low"])) for value in values) / 1.25
    high = max(float(str(value["high"])) for value in values) * 1.25
    base = _chart(values).encode(
        y=alt.Y(
            "score:Q",
            title=title,
            scale=alt.Scale(domain=domain, nice=False, zero=False, reverse=first.better is Better.LOWER),
            axis=alt.Axis(
                tickCount=4,
                format=".2f" if first.unit == "%" else ".4~g",
                titleAngle=0,
                titleAlign="left",
                titleY=-8,
                titleX=0,
            ),
        )
    )
    axis = _micros("p50", "p50, µs (log scale)", (low, high))
    line = (
        base.transform_filter("datum.front")
        .mark_line(interpolate="step-after", color=_FAINT, strokeDash=[4, 3], strokeWidth=1.5)
        .encode(x=axis)
    )
    error = base.mark_rule(strokeWidth=1.5, opacity=0.5).encode(
        x=_micros("low", None, (low, high)), x2="high:Q", color=alt.Color("colour:N", scale=None)
    )
    points = base.mark_point(size=110, strokeWidth=2, opacity=1, filled=False).encode(
        x=_micros("p50", None, (low, high)),
        stroke=alt.Stroke("colour:N", scale=None),
        fill=alt.Fill("fill:N", scale=None),
        shape=alt.Shape("shape:N", scale=None),
        tooltip=["name:N", alt.Tooltip("p50:Q", format=",.1f"), alt.Tooltip("score:Q", format=".6~g", title=title)],
    )
    names = [
        base.transform_filter(alt.datum.above == is_above)
        .mark_text(dy=-14 if is_above else 17, color=style.ink)
        .encode(x=_micros("p50", None, (low, high)), text="label:N")
        for is_above in (True, False)
    ]
    return _sized(alt.layer(line, error, points, *names), height=210)


def sweep(
    rows: Sequence[Row], knees: Sequence[Knee], style: Style, *, field: str, title: str
) -> alt.LayerChart | alt.FacetChart:
    """Draw `samples_per_second` or `p50_us` against the size of the swept axis, both on log scales; rings mark the knees."""
    import altair as alt

    axis = swept_axis(rows) or ""
    bends = {(knee.case, knee.size) for knee in knees}
    values = [
        {
            "name": f"{row.variant}, {place(row)}",
            "size": row.sizes.get(axis, 1),
            "value": max(getattr(row.latency, field), _LEAST_SHOWN),
            "colour": style.colour(row.variant),
            "shape": style.shape(place(row)),
            "dash": list(style.dash(place(row))),
            "knee": (f"{row.variant} {row.place}", row.sizes.get(axis, 1)) in bends,
        }
        for row in rows
        if row.latency
    ]
    sizes = sorted({row.sizes.get(axis, 1) for row in rows if row.latency})
    found = [float(str(value["value"])) for value in values]
    base = _chart(values).encode(
        x=alt.X(
            "size:Q",
            title=f"{axis} (log scale)",
            scale=alt.Scale(
                type="log",
                base=2,
                nice=False,
                domain=[sizes[0] / 1.15, sizes[-1] * max((sizes[-1] / sizes[0]) ** _NAMES_SHARE, 1.15)],
            ),
            axis=alt.Axis(values=sizes, format=",~f", labelOverlap="greedy", labelSeparation=6),
        ),
        y=alt.Y(
            "value:Q",
            title=title,
            scale=alt.Scale(type="log", nice=False, domain=[min(found) / 1.2, max(found) * 1.2]),
            axis=alt.Axis(
                values=_ticks(min(found), max(found)),
                format=",~f",
                titleAngle=0,
                titleAlign="left",
                titleY=-8,
                titleX=0,
            ),
        ),
        color=alt.Color("colour:N", scale=None),
    )
    # One layer for each line: Vega-Lite draws a dash from data with the legend's scale only.
    lines = [
        base.transform_filter(alt.datum.name == name)
        .mark_line(strokeWidth=2, strokeDash=list(next(v["dash"] for v in values if v["name"] == name)))
        .encode()
        for name in dict.fromkeys(str(value["name"]) for value in values)
    ]
    points = base.mark_point(filled=True, size=40, opacity=1).encode(
        shape=alt.Shape("shape:N", scale=None),
        tooltip=[
            "name:N",
            alt.Tooltip("size:Q", format=",~f", title=axis),
            alt.Tooltip("value:Q", format=",.1f", title=title),
        ],
    )
    rings = base.transform_filter("datum.knee").mark_point(filled=False, size=260, strokeWidth=2.5, opacity=1).encode()
    names = (
        _chart(_names(values, rows))
        .mark_text(align="left", dx=8, color=style.ink)
        .encode(x=base.encoding.x, y=base.encoding.y, text="label:N")
    )
    return _sized(alt.layer(*lines, points, rings, names), height=270)


def _names(values: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return where the name of each line stands: at its largest size, moved apart where names would touch."""
    largest = max(value["size"] for value in values)
    ends = sorted((value for value in values if value["size"] == largest), key=lambda value: -float(value["value"]))
    span = math.log(max(float(value["value"]) for value in values) / min(float(value["value"]) for value in values))
    places = apart([math.log(float(end["value"])) for end in ends], _NAME_SHARE * max(span, 0.5))
    return [
        {"size": largest, "value": math.exp(where), "label": _label(str(end["name"]), rows)}
        for end, where in zip(ends, places, strict=True)
    ]


def _label(name: str, rows: Sequence[Row]) -> str:
    return name if len({place(row) for row in rows}) > 1 else name.partition(",")[0]


def apart(places: Sequence[float], least: float) -> list[float]:
    """Return places, the highest first, moved down until each is as far as `least` below the one before."""
    found: list[float] = []
    for one in places:
        found.append(one if not found else min(one, found[-1] - least))
    return found


def cold(rows: Sequence[Row], style: Style, stages: Sequence[str]) -> alt.LayerChart | alt.FacetChart:
    """Draw the stages from the start of a process to its first answer, stacked, with the total and its interval."""
    import altair as alt

    colours = dict(zip(stages, COLOURS * len(stages), strict=False))
    values, totals = [], []
    for row in rows:
        if row.cold is None:
            continue
        start = 0.0
        for stage, spent in row.cold.stages_ms.items():
            one = {"stage": stage, "start": start, "end": start + spent, "ms": spent, "colour": colours[stage]}
            values.append({"name": _name(row, style), **one})
            start += spent
        whole = row.cold.total_ms
        ends = {"low": row.cold.low_ms or whole, "high": row.cold.high_ms or whole, "total": whole}
        totals.append({"name": _name(row, style), **ends, "label": f"{row.cold.total_ms:,.0f} ms"})
    room = 1.22 * max(float(str(one["high"])) for one in totals)
    scale = alt.Scale(domain=[0, room], nice=False)
    y = alt.Y("name:N", sort=None, title=None, axis=_name_axis())
    bars = (
        _chart(values)
        .mark_bar(height=22)
        .encode(
            x=alt.X(
                "start:Q",
                title="milliseconds since the process started",
                scale=scale,
                axis=alt.Axis(tickCount=6, format=",~f"),
            ),
            x2="end:Q",
            y=y,
            color=alt.Color("colour:N", scale=None),
            tooltip=["stage:N", alt.Tooltip("ms:Q", format=",.1f")],
        )
    )
    total = _chart(totals).encode(y=y)
    interval = total.mark_rule(strokeWidth=2, color=_INK).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    label = total.mark_text(align="left", dx=6, fontWeight="bold").encode(
        x=alt.X("high:Q", scale=scale), text="label:N"
    )
    return _sized(alt.layer(bars, interval, label), height=alt.Step(44))


def profile(row: Row, providers: Sequence[str]) -> alt.LayerChart | alt.FacetChart:
    """Draw the nodes that take the most time in a call; what the others take is one bar more."""
    import altair as alt

    nodes = sorted(row.profile, key=lambda node: node.mean_us, reverse=True)
    values = [
        {"node": f"{node.operator}\n{node.node}", "us": node.mean_us, "share": node.share, "provider": node.provider}
        for node in nodes[:_MOST_NODES]
    ]
    if rest := nodes[_MOST_NODES:]:
        us, share = sum(node.mean_us for node in rest), sum(node.share for node in rest)
        values.append({"node": f"{len(rest)} more nodes", "us": us, "share": share, "provider": ""})
    for value in values:
        value["label"] = f"{value['us']:,.3g} µs, {100 * float(str(value['share'])):.0f} %"
        index = providers.index(str(value["provider"])) if value["provider"] else -2
        value["colour"] = COLOURS[index]
    base = _chart(values).encode(
        x=alt.X(
            "us:Q",
            title="mean time in one call, µs",
            scale=alt.Scale(domain=[0, 1.6 * max(float(str(value["us"])) for value in values)], nice=False),
            axis=alt.Axis(tickCount=4, format=",~f"),
        ),
        y=alt.Y("node:N", sort=None, title=None, axis=_name_axis()),
    )
    bars = base.mark_bar(height=18).encode(color=alt.Color("colour:N", scale=None))
    label = base.mark_text(align="left", dx=5).encode(text="label:N")
    return _sized(alt.layer(bars, label), height=alt.Step(38))


def _chart(values: Sequence[Mapping[str, object]]) -> alt.Chart:
    import altair as alt

    return alt.Chart(alt.InlineData(values=[dict(value) for value in values]))


def _sized(layers: alt.LayerChart | alt.FacetChart, *, height: int | alt.Step) -> alt.LayerChart | alt.FacetChart:
    return layers.properties(width="container", height=height)


def compiled(chart: alt.LayerChart | alt.FacetChart) -> str:
    """Return a chart as a Vega specification in JSON, safe inside a script element."""
    import vl_convert

    spec: dict[str, Any] = chart.to_dict() | {"config": _CONFIG}
    vega = vl_convert.vegalite_to_vega(spec)
    vega.pop("$schema", None)
    vega.pop("usermeta", None)
    return json.dumps(vega, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _name(row: Row, style: Style) -> str:
    return row.variant if len(style.places) == 1 else f"{row.variant}\n{place(row)}"


def _name_axis() -> alt.Axis:
    import altair as alt

    return alt.Axis(labelExpr="split(datum.label, '\\n')", domain=False, ticks=False, labelPadding=8, grid=False)


def _shown(found: Score) -> float:
    return 100 * found.value if found.unit == "%" else found.value


def _percentiles(row: Row) -> dict[str, float | None]:
    if row.latency is None:
        return {}
    found: dict[str, float | None] = {f"p{at}": row.latency.percentiles_us[at] for at in (5, 25, 50, 75, 95)}
    return found | {"p99": row.latency.p99_us}


def _micros(field: str, title: str | None, domain: tuple[float, float]) -> alt.X:
    import altair as alt

    axis = alt.Axis(values=_ticks(*domain), format=",~f", labelOverlap="greedy", labelSeparation=6)
    scale = alt.Scale(type="log", domain=list(domain), nice=False)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=axis) if title else alt.X(f"{field}:Q", scale=scale)


def _ticks(low: float, high: float) -> list[float]:
    """Return round values between two ends of a log scale: 1, 2, 5, 10, or powers of ten alone over many decades."""
    first, last = math.floor(math.log10(max(low, 1e-6))), math.ceil(math.log10(max(high, 1e-6)))
    digits = (1, 2, 5) if last - first <= 3 else (1,)
    return [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
