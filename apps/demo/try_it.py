"""The tab to try a model on: a picture in, and what every variant reads in it, in every runtime, side by side."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from apps.demo import canvas, charts, words
from apps.demo.visitor import FIRST_RUNTIMES, Contestant, Visitor, installed_runtimes, pixels_of
from kit.bundle import Bundle
from kit.errors import KitError, PictureInvalid
from kit.report.format import microseconds

SEEN_PIXELS = 136
MAX_PICTURE_MB = 20
_SOURCES = ("Draw", "File", "Camera", "Random")


@dataclass(frozen=True)
class Picture:
    """What is asked about: the bytes of a picture, or pixels as the model takes them."""

    kind: str
    data: NDArray[np.uint8]
    label: str = ""


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab."""
    source = st.segmented_control("Picture", _SOURCES, default=_SOURCES[0], required=True, key="source")
    left, right = st.columns([2, 3], gap="large")
    with left:
        takers = {"Draw": _drawn, "File": _uploaded, "Camera": _photographed}
        picture = takers[source]() if source in takers else _random(visitor, bundle)
    with right:
        runtimes = _runtimes(visitor)
        if picture is None:
            st.info(_INVITATIONS[source], icon=":material/draw:")
            _open_early(visitor, runtimes)
            return
        try:
            found = _asked(visitor, picture, runtimes)
        except PictureInvalid as error:
            st.warning(words.plain(f"{str(error)[:1].upper()}{str(error)[1:]}."), icon=":material/hide_image:")
            return
        except KitError as error:
            st.error(words.problem(error))
            return
        _answers(bundle, found, picture)
    with left:
        _seen(found)


_INVITATIONS = {
    "Draw": "Draw with the mouse or a finger. The answer comes when you lift the pen.",
    "File": "Choose a picture: PNG or JPEG, any size, dark on light or light on dark.",
    "Camera": "Take a photograph: one digit on paper, filling much of the picture.",
    "Random": "There is no picture to draw from.",
}


def _open_early(visitor: Visitor, runtimes: tuple[str, ...]) -> None:
    """Open the models while the visitor draws; what fails is said when it is asked."""
    with contextlib.suppress(KitError):
        visitor.contestants(runtimes)


def _drawn() -> Picture | None:
    png = canvas.canvas()
    return None if png is None else Picture("picture", np.frombuffer(png, np.uint8))


def _uploaded() -> Picture | None:
    file = st.file_uploader(
        "Picture file",
        type=["png", "jpg", "jpeg", "bmp", "webp"],
        max_upload_size=MAX_PICTURE_MB,
        help=f"PNG or JPEG, any size and polarity, up to {MAX_PICTURE_MB} MB",
    )
    return None if file is None else Picture("picture", np.frombuffer(file.getvalue(), np.uint8))


def _photographed() -> Picture | None:
    taken = st.camera_input("Photograph")
    return None if taken is None else Picture("picture", np.frombuffer(taken.getvalue(), np.uint8))


def _random(visitor: Visitor, bundle: Bundle) -> Picture | None:
    if st.button("Another picture", icon=":material/shuffle:") or "draw" not in st.session_state:
        st.session_state["draw"] = st.session_state.get("draw", -1) + 1
    try:
        found = visitor.ask("sample", {"path": visitor.path, "number": st.session_state["draw"]})
    except KitError as error:
        st.error(words.problem(error))
        return None
    label = int(found.told["label"])
    known = f"label **{words.plain(bundle.spec.labels[label])}**" if label >= 0 else "no label"
    st.image(pixels_of(found.arrays[0], canvas.SIDE), alt=f"{found.told['source']}, label {label}")
    st.caption(f"{known} · {words.plain(found.told['source'])}")
    return Picture(
        "pixels",
        found.arrays[0],
        label=bundle.spec.labels[label] if label >= 0 else "",
    )


def _runtimes(visitor: Visitor) -> tuple[str, ...]:
    """Let the visitor choose runtimes; an uploaded bundle runs in the first alone, which is the one that is limited best."""
    found = installed_runtimes()[:1] if visitor.is_strange else installed_runtimes()
    if len(found) == 1:
        return found
    first = [name for name in FIRST_RUNTIMES if name in found]
    chosen = st.pills("Runtimes", found, selection_mode="multi", default=first, key="runtimes")
    return tuple(name for name in found if name in (chosen or first))


@dataclass(frozen=True)
class _Found:
    contestants: list[Contestant]
    silent: list[Contestant]
    answers: list[dict[str, Any]]
    pixels: NDArray[np.uint8]
    shares: NDArray[np.float32]
    heat: NDArray[np.float32] | None


def _asked(visitor: Visitor, picture: Picture, runtimes: tuple[str, ...]) -> _Found:
    """Ask all contestants, unless this very picture was the last they were asked about."""
    digest = hashlib.sha256(picture.data.tobytes()).hexdigest()
    key = (visitor.path, digest, picture.kind, runtimes)
    kept = st.session_state.get("answer")
    if kept is not None and kept[0] == key:
        found: _Found = kept[1]
        return found
    with st.spinner("asking", show_time=False) if set(runtimes) - set(FIRST_RUNTIMES) else st.empty():
        everyone = visitor.contestants(runtimes)
        answer = visitor.ask("predict", {"kind": picture.kind}, [picture.data])
    answers = answer.told["answers"]
    pixels, shares = answer.arrays
    heat = None
    if pixels.ndim == 2:
        heat = visitor.ask("occlude", {"number": answers[0]["number"]}, [pixels]).arrays[0]
    asked = [everyone[one["number"]] for one in answers]
    found = _Found(asked, [one for one in everyone if one.problem], answers, pixels, shares, heat)
    st.session_state["answer"] = (key, found)
    return found


def _answers(bundle: Bundle, found: _Found, picture: Picture) -> None:
    labels = [bundle.spec.labels[one["label"]] for one in found.answers]
    first = next((place for place, one in enumerate(found.contestants) if one.variant == bundle.variant().id), 0)
    share = float(found.shares[first].max())
    st.metric(
        words.plain(f"{found.contestants[first].name} reads"),
        labels[first],
        f"{100 * share:.1f} %"
        + ("" if not picture.label else ", right" if picture.label == labels[first] else f", it is a {picture.label}"),
        delta_color="off",
        delta_arrow="off",
    )
    if len(set(labels)) > 1:
        others = [one.name for one, label in zip(found.contestants, labels, strict=True) if label != labels[first]]
        st.warning(words.plain(f"They disagree: {', '.join(others)} read it otherwise."), icon=":material/call_split:")
    if any(one["unsure"] for one in found.answers):
        least = bundle.spec.abstain_below or 0.0
        st.warning(f"Unsure: the model keeps silent under {100 * least:.1f} %.", icon=":material/help:")
    names = [one.name for one in found.contestants]
    st.vega_lite_chart(
        spec=charts.probabilities(names, bundle.spec.labels, found.shares),
        alt="Probabilities: "
        + "; ".join(
            f"{name} {label} {100 * one.max():.1f} %"
            for name, label, one in zip(names, labels, found.shares, strict=True)
        ),
    )
    table = pd.DataFrame(
        {
            "reads": [f"{label} ≠" if label != labels[first] else label for label in labels],
            "sure": [f"{100 * one.max():.2f} %" for one in found.shares],
            "µs": [microseconds(one["latency_us"]) for one in found.answers],
            "on": [one.provider for one in found.contestants],
        },
        index=pd.Index(names, name="variant · runtime"),
    )
    words.table(table)
    st.caption(
        "µs: median of 30 calls, pixels to probabilities, in a process of its own; the Latency tab measures properly."
    )
    for one in found.silent:
        st.caption(words.plain(f"{one.name}: {one.problem}. {one.fix}"))


def _seen(found: _Found) -> None:
    if found.pixels.ndim != 2:
        return
    with st.container(horizontal=True):
        size = "x".join(map(str, found.pixels.shape))
        st.image(
            pixels_of(found.pixels, SEEN_PIXELS),
            caption=f"what it saw, {size}",
            alt="What the model saw",
            width=SEEN_PIXELS,
        )
        if found.heat is not None:
            st.image(
                charts.heat(found.pixels, found.heat, SEEN_PIXELS),
                caption="where it looked",
                alt="Where it looked: orange parts carry the answer",
                width=SEEN_PIXELS,
            )
