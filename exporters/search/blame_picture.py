"""The blame of each layer as a picture: the error it makes by itself, and what the model loses with it and without it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from exporters.search.blame import Blame
from kit.metrics import Score
from kit.system import packages

if TYPE_CHECKING:
    import altair as alt

_MOST_DB = 120.0  # no noise at all is drawn as this

_WAYS = {
    "own_sqnr_db": "its output, only it quantized",
    "alone_sqnr_db": "the model's output, only it quantized",
    "without_sqnr_db": "the model's output, all quantized but it",
}
_COLOURS = ["#56B4E9", "#0072B2", "#D55E00"]


def draw(found: Blame, *, form: str) -> bytes:
    """Return the picture of a blame, as `png` or `svg`.

    Raises:
        PackageMissing: Altair or vl-convert is not installed.
    """
    converter = packages.needed("vl_convert", distribution="vl-convert-python", purpose="drawing charts", extra="train")
    packages.needed("altair", distribution="altair", purpose="drawing charts", extra="train")
    chart = _chart(found).to_dict()
    made: bytes = (
        converter.vegalite_to_png(chart, scale=2) if form == "png" else converter.vegalite_to_svg(chart).encode()
    )
    return made


def _chart(found: Blame) -> alt.TopLevelMixin:
    import altair as alt

    order = [row.layer for row in found.rows]
    errors = [
        {"layer": row.layer, "way": way, "db": min(getattr(row, field), _MOST_DB)}
        for row in found.rows
        for field, way in _WAYS.items()
    ]
    whole = [{"db": min(found.sqnr_db, _MOST_DB)}]
    colour = alt.Color("way:N", title=None, sort=list(_WAYS.values()), scale=alt.Scale(range=_COLOURS))
    bars = (
        alt.Chart(_data(errors))
        .mark_bar()
        .encode(
            x=alt.X("db:Q", title="signal to quantization noise, dB (longer is better)"),
            y=alt.Y("layer:N", title=None, sort=order),
            yOffset=alt.YOffset("way:N", sort=list(_WAYS.values())),
            color=colour.legend(orient="top", labelLimit=400),
        )
    )
    rule = alt.Chart(_data(whole)).mark_rule(strokeDash=[5, 4], color="#1f2933").encode(x="db:Q")
    title = f"{found.variant}, {found.samples}: all layers together {found.sqnr_db:.1f} dB (dashed)"
    parts = [alt.layer(bars, rule).properties(width=560, height=alt.Step(18), title=title)]
    losses = [
        {"layer": row.layer, "way": way, "loss": _shown(one)}
        for row in found.rows
        for one, way in ((row.alone, _WAYS["alone_sqnr_db"]), (row.without, _WAYS["without_sqnr_db"]))
        if one is not None
    ]
    if losses and found.together is not None:
        unit = "points" if found.together.unit == "%" else found.together.unit
        title = f"{found.together.metric} lost against the baseline{', ' if unit else ''}{unit} (shorter is better)"
        parts.append(
            alt.Chart(_data(losses))
            .mark_bar()
            .encode(
                x=alt.X("loss:Q", title=title),
                y=alt.Y("layer:N", title=None, sort=order),
                yOffset=alt.YOffset("way:N", sort=list(_WAYS.values())),
                color=colour,
            )
            .properties(width=560, height=alt.Step(18))
        )
    return alt.vconcat(*parts)


def _shown(score: Score) -> float:
    return 100 * score.loss if score.unit == "%" else score.loss


def _data(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    clean = [
        {key: 0.0 if isinstance(one, float) and math.isnan(one) else one for key, one in row.items()} for row in values
    ]
    return alt.Data(values=clean)  # type: ignore[no-untyped-call]
