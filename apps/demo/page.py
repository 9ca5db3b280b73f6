"""The demo page: draw or upload a picture and watch every variant read it. Started by `kit demo`.

Streamlit runs this file anew at every interaction; what must survive stands in `st.session_state`, so that two visitors
never see each other's pictures or share an engine.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray
from PIL import Image
from streamlit_drawable_canvas import st_canvas

from kit import bundle as bundles
from kit import data
from kit.accuracy import accuracy
from kit.bench import results
from kit.bundle import Bundle
from kit.engine import Engine, Prediction, open_engine
from kit.errors import BadInput, KitError, PictureInvalid
from kit.report.format import NONE, microseconds, percent, size
from kit.runtime.base import logits_of
from kit.runtime.onnxruntime import OnnxRuntimeRunner

CANVAS_PIXELS = 280
CALLS = 30  # the latency shown is the median of this many: a single call measures the page, not the model
MAX_UPLOAD_MB = 20


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="kit demo", page_icon="✏️", layout="centered")
    try:
        bundle = bundles.find(sys.argv[1] if len(sys.argv) > 1 else None)
        bundle.variant()
    except KitError as error:
        st.error(f"{error}  \n{error.hint}")
        return
    st.title(bundle.name)
    st.caption(
        f"{bundle.spec.architecture} · takes {bundle.spec.input.describe()} · pictures go through {bundle.spec.pipeline}"
    )
    draw, figures, latency = st.tabs(["Try it", "Accuracy", "Latency"])
    with draw:
        try_it(bundle)
    with figures:
        show_accuracy(bundle)
    with latency:
        show_latency(bundle)


def try_it(bundle: Bundle) -> None:
    """Take a picture and show what every variant reads in it."""
    source = st.radio("Picture", ["Draw", "Upload", "Golden sample"], horizontal=True)
    st.space("small")  # the canvas opens its tool bar above itself
    left, right = st.columns([1, 1], gap="medium")
    with left:
        picture = {"Draw": _drawn, "Upload": _uploaded}.get(source, lambda: _golden(bundle))()
    with right:
        if picture is None:
            st.info("Draw with the mouse or a finger." if source == "Draw" else "Choose a picture.")
            return
        try:
            answers = {engine.variant.id: _ask(engine, picture) for engine in _engines(bundle)}
        except PictureInvalid as error:
            st.warning(str(error))
            return
        except KitError as error:
            st.error(f"{error}  \n{error.hint}")
            return
        _show_answers(bundle, answers)
    seen = next(iter(answers.values()))[0].pixels[0]
    if isinstance(picture, bytes):
        left.image(picture, width=CANVAS_PIXELS)  # only now: what the engine could read, the page can show
    left.image(Image.fromarray(seen).resize((112, 112), Image.Resampling.NEAREST), caption="what the model sees")


def _drawn() -> Image.Image | None:
    canvas = st_canvas(
        fill_color="#000000",
        stroke_width=20,
        stroke_color="#ffffff",
        background_color="#000000",
        width=CANVAS_PIXELS,
        height=CANVAS_PIXELS,
        drawing_mode="freedraw",
        return_image_data=True,
        key="canvas",
    )
    drawn = canvas.image_data
    if drawn is None or not np.asarray(drawn)[..., :3].any():
        return None
    return Image.fromarray(np.asarray(drawn, np.uint8)).convert("RGB")


def _uploaded() -> bytes | None:
    file = st.file_uploader("PNG or JPEG, any size and polarity", type=["png", "jpg", "jpeg", "bmp", "webp"])
    if file is None:
        return None
    if file.size > MAX_UPLOAD_MB * 2**20:
        st.warning(f"{file.name} is larger than {MAX_UPLOAD_MB} MB.")
        return None
    content: bytes = file.getvalue()
    return content


def _golden(bundle: Bundle) -> NDArray[np.uint8]:
    golden = bundle.golden()
    number = int(st.number_input("Sample", min_value=0, max_value=len(golden.pixels) - 1, value=0))
    pixels: NDArray[np.uint8] = golden.pixels[number]
    label = int(golden.labels[number])
    known = f"label {bundle.spec.labels[label]}" if label >= 0 else "no label"
    st.image(Image.fromarray(pixels).resize((CANVAS_PIXELS,) * 2, Image.Resampling.NEAREST))
    st.caption(f"{known} · {golden.source}")
    return pixels


def _engines(bundle: Bundle) -> list[Engine]:
    """Return this visitor's engines, opened once for each file."""
    kept: dict[str, Engine] = st.session_state.setdefault("engines", {})
    for variant in bundle.variants:
        if variant.artifact.sha256 not in kept:
            kept[variant.artifact.sha256] = open_engine(bundle, variant.id)
    return [kept[variant.artifact.sha256] for variant in bundle.variants]


def _ask(engine: Engine, picture: Image.Image | bytes | NDArray[np.uint8]) -> tuple[Prediction, float]:
    """Return the answer and the median latency of CALLS calls, in microseconds."""
    pixels = engine.pixels(picture)
    answers = [engine.predict(pixels) for _ in range(CALLS)]
    return answers[-1], statistics.median(answer.latency_us for answer in answers)


def _show_answers(bundle: Bundle, answers: dict[str, tuple[Prediction, float]]) -> None:
    names = {prediction.names[0] for prediction, _ in answers.values()}
    columns = st.columns(len(answers))
    for column, (variant, (prediction, median_us)) in zip(columns, answers.items(), strict=True):
        share = float(prediction.probabilities[0].max())
        column.metric(variant, prediction.names[0], f"{share:.1%}", delta_color="off", delta_arrow="off")
        column.caption(f"{microseconds(median_us)} µs on {prediction.provider}")
    if len(names) > 1:
        st.warning("The variants disagree on this picture.")
    if any(bool(prediction.unsure[0]) for prediction, _ in answers.values()):
        st.warning("The model is unsure.")
    table = pd.DataFrame(
        {variant: prediction.probabilities[0] for variant, (prediction, _) in answers.items()},
        index=pd.Index(bundle.spec.labels, name="label"),
    )
    bars = table.reset_index().melt("label", var_name="variant", value_name="probability")
    chart = alt.Chart(bars).mark_bar()
    chart = chart.encode(
        x=alt.X("label:N", sort=None, title=None, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("variant:N", sort=None),
        y=alt.Y("probability:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=3)),
        color=alt.Color("variant:N", sort=None, title=None, legend=alt.Legend(orient="bottom")),
        tooltip=["variant", "label", alt.Tooltip("probability", format=".2%")],
    )
    st.altair_chart(chart.properties(height=200))


def show_accuracy(bundle: Bundle) -> None:
    """Show the figures the bundle was published with, and count them again where the data is at hand."""
    known = [variant for variant in bundle.variants if variant.accuracy]
    if not known:
        st.info("This bundle was published without labelled data.")
        return
    published = known[0].accuracy
    assert published is not None  # filtered above
    rows = {
        variant.id: {
            "top-1": percent(variant.accuracy),
            "became wrong": str(variant.accuracy.flips_to_wrong),
            "became right": str(variant.accuracy.flips_to_right),
            "size": size(variant.artifact.size_bytes),
        }
        for variant in known
        if variant.accuracy
    }
    st.table(pd.DataFrame.from_dict(rows, orient="index"))
    st.caption(f"{published.dataset}, {published.split} split, {published.images:,} images; counted when published.")
    if not data.is_here(published.dataset):
        st.caption(f"{published.dataset} is not on this machine, so that it cannot be counted again here.")
        return
    if st.button("Count again on this machine"):
        try:
            _count_again(bundle, published.dataset)
        except KitError as error:
            st.error(f"{error}  \n{error.hint}")


def _count_again(bundle: Bundle, dataset: str) -> None:
    bar = st.progress(0.0, "reading data")
    test = data.load(dataset).test
    baseline = None
    lines = []
    for done, variant in enumerate(bundle.variants, start=1):
        with OnnxRuntimeRunner(bundle.read(variant.artifact)) as runner:
            logits = logits_of(runner, test.images)
        found = accuracy(logits, test.labels, dataset=dataset, split="test", baseline=baseline)
        baseline = logits if baseline is None else baseline
        same = "as published" if variant.accuracy and found.correct == variant.accuracy.correct else "NOT as published"
        lines.append(f"{variant.id}: {found.correct:,} of {found.images:,} right, {percent(found)}, {same}")
        bar.progress(done / len(bundle.variants), variant.id)
    bar.empty()
    st.success("  \n".join(lines))


def show_latency(bundle: Bundle) -> None:
    """Show the last results of `kit bench`."""
    path = results.last_path(bundle)
    line = f"kit bench {bundle.origin}"
    if not path.exists():
        st.info("Not measured on this machine yet. Type:")
        st.code(line, language="shell")
        return
    try:
        found = results.load(path)
    except BadInput as error:
        st.error(f"{error}  \n{error.hint}")
        return
    st.table(pd.DataFrame([_latency_row(row) for row in found.rows]).set_index("variant"))
    st.caption(f"{found.created} · {found.machine.describe()}")
    for reason, fix in dict.fromkeys((row.reason, row.fix) for row in found.rows if row.reason):
        st.warning(f"{reason}  \n{fix}")
    stale = {row.sha256 for row in found.rows} - {variant.artifact.sha256 for variant in bundle.variants}
    if stale:
        st.warning("The bundle was exported again since.")
    st.caption("Measure again:")
    st.code(line, language="shell")
    _download(path)


def _latency_row(row: results.Row) -> dict[str, str]:
    latency = row.latency
    return {
        "variant": row.variant,
        "nodes on": row.placement or f"{row.provider}: {row.status}",
        "batch": str(row.batch_size),
        "p50 µs": microseconds(latency.p50_us if latency else None),
        "p99 µs": microseconds(latency.p99_us if latency else None),
        "images/s": f"{latency.images_per_second:,.0f}" if latency else NONE,
        "against fp32": row.verdict.describe() if row.verdict else NONE,
    }


def _download(path: Path) -> None:
    st.download_button("Download the results", path.read_bytes(), file_name=path.name, mime="application/json")


main()
