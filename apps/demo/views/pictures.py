"""Pictures in: drawn, from a file, from a camera, or a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.demo import canvas, words
from apps.demo.explain import CHANNELS, picture_of
from apps.demo.pixels import as_address, pixels_of
from apps.demo.views import arrays
from apps.demo.views.base import Asking, Question, View, next_draw, sample
from apps.demo.visitor import Visitor
from kit.bundle import Bundle
from kit.errors import KitError

MAX_PICTURE_MB = 20
_FIRST = {"number": 0, "golden": True}
_INVITATION = {
    True: "Choose a picture: PNG or JPEG, any size, dark on light or light on dark. Colours are read as grey.",
    False: "Choose a picture: PNG or JPEG, any size.",
}


def view(bundle: Bundle) -> View:
    """Return the view of a model that reads pictures; drawing is for those that read grey ones."""
    if picture_of(bundle.signature) is None:
        return arrays.view(bundle)
    sources = {
        "Draw": Asking(
            take=_drawn, invitation="Draw with the mouse or a finger. The answer comes when you lift the pen."
        ),
        "Sample": Asking(take=_random, invitation="There is no picture to draw from."),
        "File": Asking(take=_uploaded, invitation=_INVITATION[is_grey(bundle)]),
        "Camera": Asking(
            take=_photographed, invitation="Take a photograph of one thing alone, filling much of the picture."
        ),
    }
    if not is_grey(bundle):
        del sources["Draw"]
    return View(sources=sources, example='"photo.png"')


def is_grey(bundle: Bundle) -> bool:
    """Whether the pictures a bundle reads have no colours."""
    name = picture_of(bundle.signature)
    shape = bundle.signature.input(name).shape[1:] if name else ()
    return len(shape) == 2 or (len(shape) == 3 and 1 in {shape[0], shape[-1]} & CHANNELS)


def _question(data: bytes) -> Question:
    return Question({"kind": "picture"}, {"file": np.frombuffer(data, np.uint8)})


def _drawn(visitor: Visitor, bundle: Bundle) -> Question | None:
    example, known = _example(visitor, bundle)
    png, is_example = canvas.canvas(visitor.path, example)
    if png is not None:
        return _question(png)
    if not is_example:
        return None
    return Question({"kind": "sample", **_FIRST, "path": visitor.path}, right=str(known["right"]))


def _example(visitor: Visitor, bundle: Bundle) -> tuple[NDArray[np.uint8] | None, dict[str, Any]]:
    """Return the first golden sample as a picture, and what is known of it; None if it cannot be read."""
    key, name = f"example {visitor.path}", picture_of(bundle.signature)
    if key not in visitor.results and name is not None and visitor.errand is None:
        try:
            found = visitor.ask("jobs:sample", {**_FIRST, "path": visitor.path})
            visitor.results[key] = pixels_of(found.arrays[name][0], 1), found.told
        except KitError:  # it is said where a model is asked; one may draw all the same
            visitor.results[key] = None, {}
    kept: tuple[NDArray[np.uint8] | None, dict[str, Any]] = visitor.results.get(key, (None, {}))
    return kept


def _uploaded(visitor: Visitor, bundle: Bundle) -> Question | None:  # noqa: ARG001
    file = st.file_uploader(
        "Picture file",
        type=["png", "jpg", "jpeg", "bmp", "webp"],
        max_upload_size=MAX_PICTURE_MB,
        help=f"PNG or JPEG, any size and polarity, up to {MAX_PICTURE_MB} MB",
    )
    return None if file is None else _question(file.getvalue())


def _photographed(visitor: Visitor, bundle: Bundle) -> Question | None:  # noqa: ARG001
    taken = st.camera_input("Photograph")
    return None if taken is None else _question(taken.getvalue())


def _random(visitor: Visitor, bundle: Bundle) -> Question | None:
    asked = {"path": visitor.path, "number": next_draw("Another picture")}
    found = sample(visitor, asked)
    if found is None:
        return None
    right, name = str(found.told["right"]), picture_of(bundle.signature)
    if name is not None:
        picture = found.arrays[name][0]
        st.image(as_address(pixels_of(picture, canvas.SIDE)), alt=f"{found.told['source']}, label {right or 'unknown'}")
    known = f"label **{words.plain(right)}**" if right else "no label"
    st.caption(f"{known} · {words.plain(found.told['source'])}")
    return Question({"kind": "sample", **asked}, right=right)
