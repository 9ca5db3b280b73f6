"""What a run looks like: its curve, what is mistaken for what, the misread images, and what its probabilities are worth.

Written into the run's folder, beside the bundle: misread images are the data set's own and do not belong into a bundle.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kit.lab.data import Split
from kit.lab.training.loop import TrainingResult
from kit.metrics.calibration import confusion, reliability
from kit.system import files, packages
from kit.system.wording import percent
from kit.tasks.classification import probabilities

if TYPE_CHECKING:
    import altair as alt

CURVE, CONFUSION, MISREAD, RELIABILITY = "curve.png", "confusion.png", "misread.png", "calibration.png"
_MOST_MISREAD = 120
_COLUMNS = 12
_ENLARGED = 2


def save(result: TrainingResult, folder: Path) -> tuple[Path, ...]:
    """Write the curve and, where images were held out, what the model makes of them; return the files.

    Raises:
        StorageUnavailable: They cannot be written.
        PackageMissing: Altair is not installed.
    """
    made: dict[str, bytes | str] = {
        "curve.json": json.dumps(result.record.history, indent=1) + "\n",
        CURVE: _png(_curve(result.record.history)),
    }
    if result.validation is not None:
        split, logits = result.validation
        labels = result.blueprint.labels
        shares = probabilities(logits, result.blueprint.temperature)
        made[CONFUSION] = _png(_confusion(split.labels, logits.argmax(axis=1), labels))
        made[RELIABILITY] = _png(_reliability(shares, split.labels))
        made[MISREAD] = _misread(split, shares, labels)
    for name, content in made.items():
        files.write(folder / name, content)
    return tuple(folder / name for name in made)


def _curve(history: Sequence[dict[str, float]]) -> alt.TopLevelMixin:
    import altair as alt

    rows = [
        {**row, "error": 100 * (1 - row["validation_top1"])} if "validation_top1" in row else dict(row)
        for row in history
    ]
    wanted = [
        ("loss", "training loss", "log"),
        ("error", "validation error, %", "log"),
        ("learning_rate", "learning rate", "linear"),
    ]
    parts = []
    for field, title, kind in wanted:
        values = [{"epoch": row["epoch"], "value": row[field]} for row in rows if row.get(field, 0) > 0]
        if values:
            scale = alt.Scale(type="log" if kind == "log" else "linear", nice=kind != "log", zero=kind != "log")
            line = alt.Chart(_data(values)).mark_line(point=len(values) < 40, color="#0072B2")
            encoded = line.encode(x=alt.X("epoch:Q", title="epoch"), y=alt.Y("value:Q", title=title, scale=scale))
            parts.append(encoded.properties(width=640, height=150))
    return alt.vconcat(*parts)


def _confusion(labels: NDArray[np.int64], read: NDArray[np.int64], names: Sequence[str]) -> alt.TopLevelMixin:
    """Draw how often each class was read as each other; the right ones are left out, for they would drown the rest."""
    import altair as alt

    counts = confusion(labels, read, len(names))
    values = [
        {"label": names[row], "read": names[column], "count": int(counts[row, column]), "right": row == column}
        for row in range(len(names))
        for column in range(len(names))
    ]
    base = alt.Chart(_data(values)).encode(
        x=alt.X("read:N", title="read as", sort=list(names), axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("label:N", title="label", sort=list(names)),
    )
    cells = (
        base.transform_filter("!datum.right")
        .mark_rect()
        .encode(color=alt.Color("count:Q", title="misread", scale=alt.Scale(scheme="oranges"), legend=None))
    )
    text = (
        base.transform_filter("datum.count > 0")
        .mark_text(fontSize=12)
        .encode(
            text="count:Q",
            color=alt.condition("datum.right", alt.value("#9aa5b1"), alt.value("#1f2933")),
        )
    )
    return alt.layer(cells, text).properties(width=460, height=460, title="Validation images by label and reading")


def _reliability(shares: NDArray[np.float32], labels: NDArray[np.int64]) -> alt.TopLevelMixin:
    import altair as alt

    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    values = [{"said": 100 * one.probability, "right": 100 * one.right} for one in reliability(sure, right)]
    low = min(min(one.values()) for one in values)
    scale = alt.Scale(domain=[low, 100], nice=False)
    points = alt.Chart(_data(values)).encode(
        x=alt.X("said:Q", title="probability of the answer, %", scale=scale),
        y=alt.Y("right:Q", title="right answers, %", scale=scale),
    )
    ends = _data([{"said": low, "right": low}, {"said": 100, "right": 100}])
    diagonal = alt.Chart(ends).mark_line(color="#9aa5b1", strokeDash=[4, 4]).encode(x="said:Q", y="right:Q")
    line = points.mark_line(point=True, color="#0072B2")
    return alt.layer(diagonal, line).properties(width=420, height=420, title=f"{len(labels):,} validation images")


def _misread(split: Split, shares: NDArray[np.float32], labels: Sequence[str]) -> bytes:
    """Draw the misread images, the surest mistakes first, each with its label and what it was read as."""
    read = shares.argmax(axis=1)
    wrong = np.flatnonzero(read != split.labels)
    chosen = wrong[np.argsort(-shares.max(axis=1)[wrong], kind="stable")][:_MOST_MISREAD]
    height, width = (size * _ENLARGED for size in split.images.shape[1:])
    cell = (width + 8, height + 18)
    rows = max(-(-len(chosen) // _COLUMNS), 1)
    sheet = Image.new("L", (_COLUMNS * cell[0], rows * cell[1] + 18), 255)
    draw = ImageDraw.Draw(sheet)
    shown = "" if len(chosen) == len(wrong) else f", the surest {len(chosen)}"
    draw.text((4, 3), f"{len(wrong)} of {len(read):,} validation images misread{shown}: label, then reading", fill=0)
    for place, index in enumerate(chosen):
        left, top = place % _COLUMNS * cell[0] + 4, place // _COLUMNS * cell[1] + 18
        picture = Image.fromarray(255 - split.images[index]).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        said = f"{labels[split.labels[index]]}: {labels[read[index]]} {percent(float(shares[index].max()))}"
        draw.text((left, top + height + 2), said[: width // 6], fill=0)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _data(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=values)  # type: ignore[no-untyped-call]


def _png(chart: Any) -> bytes:
    converter = packages.needed("vl_convert", distribution="vl-convert-python", purpose="drawing charts", extra="train")
    made: bytes = converter.vegalite_to_png(chart.to_dict(), scale=2)
    return made
