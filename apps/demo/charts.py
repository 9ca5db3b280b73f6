"""Charts of the page that no report has: probabilities, the confusion matrix, the calibration curve, a heat map.

Altair is imported when a chart is made with it: the first answer needs none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.metrics.calibration import Bin
from kit.report.charts import apart

if TYPE_CHECKING:
    import altair as alt

ACCENT, MUTED, ALARM = "#2a6fdb", "#9aa5b1", "#d55e00"
_ROW = 34
_FIT_CHARACTERS = 60  # of labels beside each other
_NAME_SHARE = 0.05  # of a chart's height, which a name takes
MOST_CLASSES = 12
"""Drawn of one answer."""

CELL = "cell"
"""Name of the selection of a confusion matrix."""


def probabilities(
    names: Sequence[str], labels: Sequence[str], shares: NDArray[np.float32], *, ink: str
) -> dict[str, Any]:
    """Draw the probabilities of every contestant as bars, a row for each; the answer is in colour.

    Of many classes the most probable ones alone are drawn. `shares` is float32 `[contestants, classes]`.
    """
    # Written as Vega-Lite by hand: Altair's own checks would take a third of the time in which an answer is due.
    last = len(names) - 1
    drawn = np.sort(np.argsort(-shares.max(axis=0), kind="stable")[:MOST_CLASSES])
    rows = [
        {
            "contestant": name,
            "label": label,
            "base": last - place,
            "top": last - place + 0.82 * float(share),
            "probability": float(share),
            "answer": column == int(own.argmax()),
        }
        for place, (name, own) in enumerate(zip(names, shares, strict=True))
        for column, label, share in ((int(one), labels[int(one)], own[int(one)]) for one in drawn)
    ]
    longest = max(len(labels[int(one)]) for one in drawn)
    angle = 0 if longest * len(drawn) <= _FIT_CHARACTERS else -30
    return {
        "data": {"values": rows},
        "config": {"axis": {"labelColor": ink}},
        "height": _ROW * len(names) + 26,
        "mark": {"type": "bar", "cornerRadiusTopLeft": 2, "cornerRadiusTopRight": 2},
        "encoding": {
            "x": {
                "field": "label",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"labelAngle": angle, "ticks": False, "domain": False, "labelLimit": 120},
            },
            "y": {
                "field": "base",
                "type": "quantitative",
                "title": None,
                "scale": {"domain": [0, len(names)], "nice": False},
                "axis": {
                    "values": list(range(len(names))),
                    "labelExpr": f"{json.dumps(list(reversed(names)))}[datum.value]",
                    "labelLimit": 170,
                    "labelOffset": -_ROW // 3,
                    "labelFlush": False,
                    "ticks": False,
                    "domain": False,
                },
            },
            "y2": {"field": "top"},
            "color": {"condition": {"test": "datum.answer", "value": ACCENT}, "value": MUTED},
            "tooltip": [
                {"field": "contestant", "type": "nominal"},
                {"field": "label", "type": "nominal"},
                {"field": "probability", "type": "quantitative", "format": ".2%"},
            ],
        },
    }


def plotted(chart: Any, ink: str) -> Any:
    """Return a chart whose axes are written in a colour that can be read."""
    return chart.configure_axis(labelColor=ink, titleColor=ink).configure_legend(labelColor=ink, titleColor=ink)


def confusion(counts: NDArray[np.int64], labels: Sequence[str], *, ink: str) -> alt.LayerChart | alt.FacetChart:
    """Draw how often each class was read as each other; a click on a cell selects it. Right answers stay grey."""
    import altair as alt
    import pandas as pd

    rows = [
        {
            "label": labels[row],
            "read": labels[column],
            "count": int(counts[row, column]),
            "misread": int(counts[row, column]) if row != column else 0,
            "right": row == column,
        }
        for row in range(len(labels))
        for column in range(len(labels))
    ]
    chosen = alt.selection_point(name=CELL, fields=["label", "read"], on="click", clear=False)
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X(
            "read:N", title="read as", sort=None, axis=alt.Axis(orient="top", labelAngle=0, domain=False, ticks=False)
        ),
        y=alt.Y("label:N", title="label", sort=None, axis=alt.Axis(domain=False, ticks=False)),
        tooltip=["label", "read", "count"],
    )
    cells = (
        base.mark_rect(cornerRadius=3, cursor="pointer")
        .encode(
            color=alt.condition(
                "datum.misread > 0",
                alt.Color("misread:Q", legend=None, scale=alt.Scale(range=["#f7c59f", ALARM])),
                alt.value("rgba(128,128,128,0.10)"),
            ),
            stroke=alt.condition(chosen, alt.value(ACCENT), alt.value("transparent"), empty=False),
            strokeWidth=alt.value(2),
        )
        .add_params(chosen)
    )
    text = (
        base.transform_filter("datum.count > 0")
        .mark_text(fontSize=11)
        .encode(
            text=alt.Text("count:Q", format=",d"),
            color=alt.condition("datum.right", alt.value(ink), alt.value("#1f2933")),
        )
    )
    return alt.layer(cells, text).properties(height=alt.Step(28))


def calibration(
    curves: Mapping[str, Sequence[Bin]], colours: Mapping[str, str], *, ink: str
) -> alt.LayerChart | alt.FacetChart:
    """Draw the share of right answers against the probability the model gave, a named line for each variant."""
    import altair as alt
    import pandas as pd

    rows = [
        {"variant": variant, "said": 100 * one.probability, "right": 100 * one.right, "samples": one.samples}
        for variant, bins in curves.items()
        for one in bins
    ]
    low = min(min(float(str(one["said"])), float(str(one["right"]))) for one in rows)
    scale = alt.Scale(domain=[low, 100], nice=False)
    ends = pd.DataFrame([{"said": low, "right": low}, {"said": 100, "right": 100}])
    diagonal = (
        alt.Chart(ends)
        .mark_line(color=MUTED, strokeDash=[4, 4])
        .encode(x=alt.X("said:Q", scale=scale), y=alt.Y("right:Q", scale=scale))
    )
    colour = alt.Color(
        "variant:N",
        sort=None,
        legend=None,
        scale=alt.Scale(domain=list(curves), range=[colours[variant] for variant in curves]),
    )
    lines = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("said:Q", title="probability of the answer, %", scale=scale),
            y=alt.Y("right:Q", title="right answers, %", scale=scale),
            color=colour,
            tooltip=["variant", alt.Tooltip("said", format=".2f"), alt.Tooltip("right", format=".2f"), "samples"],
        )
    )
    names = (
        alt.Chart(pd.DataFrame(_beginnings(curves, 100 - low)))
        .mark_text(align="left", dx=8, fontSize=12, color=ink)
        .encode(x=alt.X("said:Q", scale=scale), y=alt.Y("at:Q", scale=scale), text="variant:N")
    )
    return alt.layer(diagonal, lines, names).properties(height=320)


def _beginnings(curves: Mapping[str, Sequence[Bin]], span: float) -> list[dict[str, object]]:
    """Return where the name of each line stands: at its least sure bin, each below the one before where they would touch."""
    ends = sorted(
        ((100 * bins[0].right, 100 * bins[0].probability, variant) for variant, bins in curves.items() if bins),
        reverse=True,
    )
    places = apart([right for right, _, _ in ends], _NAME_SHARE * span)
    return [
        {"variant": variant, "said": said, "at": where} for (_, said, variant), where in zip(ends, places, strict=True)
    ]


def heat(picture: NDArray[Any], lost: NDArray[np.float32], side: int) -> Image.Image:
    """Lay what was lost over what the model saw: the more orange, the more of the probability rests on it.

    Args:
        picture: uint8 `[height, width]`, or `[height, width, 3]`.
        lost: float32 `[height, width]`, shares of the probability; what is gained is not shown.
        side: Of the picture, in pixels.
    """
    shares = np.maximum(lost, 0) / max(float(lost.max()), 1e-6)
    base = 0.75 * picture.astype(np.float32).reshape(*lost.shape, -1)
    orange = np.array([255, 120, 10], np.float32)
    mixed = base * (1 - shares[..., np.newaxis]) + orange * shares[..., np.newaxis]
    return Image.fromarray(mixed.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
