"""The tab about answers: top-1 of every variant, what is misread, where variants disagree, what probabilities are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from apps.demo import charts, words
from apps.demo.visitor import Visitor, pixels_of
from kit.accuracy import confusion, drop_interval, reliability
from kit.bundle import Bundle
from kit.bundle.records import Accuracy
from kit.errors import KitError
from kit.lab import data
from kit.lab.data import DATASETS
from kit.report.format import NONE, percent, size
from kit.system import serial

_MOST_PICTURES = 48
_SIDE = 84
_MOST_CLASSES = 50


@dataclass(frozen=True)
class Counted:
    """What was counted on a data set's test images; see apps.demo.jobs.count for the arrays."""

    dataset: str
    variants: dict[str, Accuracy]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    sure: NDArray[np.float32]
    numbers: NDArray[np.int64]
    pictures: NDArray[np.uint8]

    def shown(self, wanted: NDArray[np.bool_]) -> list[tuple[int, NDArray[np.uint8]]]:
        """Return the numbers and pictures of those images that are wanted, bool `[N]`, as many as are shown."""
        found = [(int(number), one) for number, one in zip(self.numbers, self.pictures, strict=True) if wanted[number]]
        return found[:_MOST_PICTURES]


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab."""
    _published(bundle)
    known = _datasets(bundle)
    if not known:
        name = bundle.manifest.training.dataset if bundle.manifest.training else "its data set"
        st.info(
            f"{words.plain(name)} is not on this machine, so that nothing can be counted here.",
            icon=":material/database_off:",
        )
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        dataset = st.selectbox("Data set", known, format_func=lambda one: f"{one}, test images", width=260)
        again = st.button("Count on this machine", icon=":material/calculate:", type="primary")
    try:
        found = _count(visitor, dataset, again=again)
    except KitError as error:
        st.error(words.problem(error))
        return
    if found is None:
        st.caption("A few seconds; what was counted is kept for next time.")
        return
    _figures(found)
    variant = st.segmented_control("Variant", list(found.variants), default=next(iter(found.variants)), required=True)
    place = list(found.variants).index(variant or next(iter(found.variants)))
    left, right = st.columns([1, 1], gap="large")
    with left:
        _confusion(bundle, found, place)
    with right:
        _calibration(found)
    _disagreements(bundle, found)


def _published(bundle: Bundle) -> None:
    known = [variant for variant in bundle.variants if variant.accuracy]
    if not known:
        st.info("This bundle was published without labelled data.", icon=":material/info:")
        return
    first = known[0].accuracy
    assert first is not None  # filtered above
    rows = {
        variant.id: {
            "top-1": percent(variant.accuracy),
            "drop, points": NONE if variant.accuracy is first else _drop(variant.accuracy),
            "size": size(variant.artifact.size_bytes),
        }
        for variant in known
        if variant.accuracy
    }
    words.table(pd.DataFrame.from_dict(rows, orient="index"))
    st.caption(f"As published: {words.plain(first.dataset)}, {first.split} split, {first.images:,} images.")


def _drop(found: Accuracy) -> str:
    low, high = drop_interval(found)
    return f"{found.drop_points:+.2f} [{low:+.2f}, {high:+.2f}]"


def _datasets(bundle: Bundle) -> list[str]:
    """Return the data sets that are here and have this model's classes, its own first."""
    training = bundle.manifest.training
    own = [training.dataset] if training and data.is_here(training.dataset) else []
    others = [name for name, one in DATASETS.items() if one.labels == bundle.spec.labels and data.is_here(name)]
    return list(dict.fromkeys([*own, *others]))


def _count(visitor: Visitor, dataset: str, *, again: bool) -> Counted | None:
    key = f"counted {visitor.path} {dataset}"
    if not again and key in visitor.results:
        found: Counted = visitor.results[key]
        return found
    asked = {"path": visitor.path, "dataset": dataset, "again": again, "only_kept": not again}
    if again:
        with st.empty().container():
            bar = st.progress(0.0, "reading")
            answer = visitor.ask("count", asked, on_progress=lambda what, share: _told(bar, what, share))
        bar.empty()
    else:
        answer = visitor.ask("count", asked)
    if not answer.arrays:
        return None
    variants = {one["variant"]: serial.decode(Accuracy, one["accuracy"]) for one in answer.told["variants"]}
    found = visitor.results[key] = Counted(dataset, variants, *answer.arrays)
    return found


def _told(bar: Any, what: str, share: float) -> None:
    bar.progress(min(max(share, 0.0), 1.0), what)


def _figures(found: Counted) -> None:
    columns = st.columns(len(found.variants))
    for column, (variant, one) in zip(columns, found.variants.items(), strict=True):
        flips = (
            ""
            if one is next(iter(found.variants.values()))
            else f"{one.flips_to_wrong} became wrong, {one.flips_to_right} right"
        )
        column.metric(
            variant,
            percent(one),
            flips or f"{one.images - one.correct:,} misread",
            delta_color="off",
            delta_arrow="off",
        )
    first = next(iter(found.variants.values()))
    st.caption(f"Counted on this machine: {words.plain(found.dataset)}, {first.split} split, {first.images:,} images.")


def _confusion(bundle: Bundle, found: Counted, place: int) -> None:
    names = bundle.spec.labels
    counts = confusion(found.labels, found.answers[place], len(names))
    st.subheader("What is read as what")
    if len(names) > _MOST_CLASSES:
        st.caption(f"{len(names):,} classes are too many to draw.")
    chosen = (
        None
        if len(names) > _MOST_CLASSES
        else st.altair_chart(
            charts.confusion(counts, names),
            on_select="rerun",
            selection_mode=charts.CELL,
            key=f"confusion {place}",
            alt="Confusion matrix: labels in rows, readings in columns; the list below it opens the same cells",
        )
    )
    cells = [
        (int(row), int(column))
        for row, column in zip(*np.nonzero(counts * (1 - np.eye(len(names), dtype=np.int64))), strict=True)
    ]
    if not cells:
        st.success("Nothing is misread.")
        return
    cells.sort(key=lambda cell: -counts[cell])
    clicked = _clicked(chosen, names)
    first = cells.index(clicked) if clicked in cells else 0
    row, column = st.selectbox(
        "Misread images",
        cells,
        index=first,
        key=f"cell {place} {clicked}",
        format_func=lambda cell: f"{names[cell[0]]} read as {names[cell[1]]}: {counts[cell]}",
    )
    wanted = (found.labels == row) & (found.answers[place] == column)
    _pictures(found, wanted, lambda number: f"{100 * found.sure[place][number]:.0f} % sure")


def _clicked(chosen: Any, names: Sequence[str]) -> tuple[int, int] | None:
    points = chosen.selection.get(charts.CELL, []) if chosen and chosen.selection else []
    if not points:
        return None
    return names.index(str(points[0]["label"])), names.index(str(points[0]["read"]))


def _pictures(found: Counted, wanted: NDArray[np.bool_], caption: Any) -> None:
    shown = found.shown(wanted)
    if not shown:
        st.caption("None.")
        return
    st.image(
        [pixels_of(picture, _SIDE) for _, picture in shown],
        caption=[caption(number) for number, _ in shown],
        alt=[f"test image {number}" for number, _ in shown],
        width=_SIDE,
    )
    left = int(wanted.sum()) - len(shown)
    if left > 0:
        st.caption(f"and {left:,} more.")


def _calibration(found: Counted) -> None:
    st.subheader("What its probabilities are worth")
    curves = {
        variant: reliability(found.sure[place], found.answers[place] == found.labels)
        for place, variant in enumerate(found.variants)
    }
    st.altair_chart(charts.calibration(curves), alt="Share of right answers against the probability the model gave")
    st.caption(
        "Answers in 15 bins of equal count. On the dashed line a probability is what it says; below it the model is too sure."
    )


def _disagreements(bundle: Bundle, found: Counted) -> None:
    if len(found.variants) < 2:
        return
    variants = list(found.variants)
    st.subheader("Where variants disagree")
    most = int((found.answers != found.answers[0]).sum(axis=1).argmax()) or 1
    other = st.segmented_control(f"{variants[0]} against", variants[1:], default=variants[most], required=True)
    place = variants.index(other or variants[most])
    wanted = found.answers[0] != found.answers[place]
    names = bundle.spec.labels
    st.caption(
        f"{int(wanted.sum()):,} of {len(found.labels):,} images: the label, then what {variants[0]} and {variants[place]} read."
    )

    def told(number: int) -> str:
        return (
            f"{names[found.labels[number]]}: {names[found.answers[0][number]]}, {names[found.answers[place][number]]}"
        )

    _pictures(found, wanted, told)
