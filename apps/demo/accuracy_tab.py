"""The tab about answers: scores of every variant, what is misread, where variants disagree, what probabilities are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.demo import charts, errand, words
from apps.demo.charts import calibration as calibration_chart
from apps.demo.counting import GOLDEN
from apps.demo.pixels import as_address, pixels_of
from apps.demo.visitor import Visitor
from kit.bundle import Bundle
from kit.errors import KitError
from kit.metrics import Better, Fidelity, Score
from kit.metrics.calibration import confusion, reliability
from kit.report.charts import COLOURS
from kit.report.format import NONE, size
from kit.report.format import score as score_of
from kit.system import serial

_MOST_SHOWN = 48
_SIDE = 84
_MOST_CLASSES = 50
_MOST_CELLS = 500
_LEAST_BINS, _LEAST_IN_BIN = 5, 20
_GOLDEN = "golden samples"


@dataclass(frozen=True, eq=False)
class Classified:
    """What the variants of a classifier read in each sample; see apps.demo.counting.count."""

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    sure: NDArray[np.float32]
    numbers: NDArray[np.int64]
    pictures: NDArray[Any] | None = None

    def shown(self, wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Return the numbers of those samples that are wanted, bool `[N]`, and their places among the pictures."""
        found = [(int(number), place) for place, number in enumerate(self.numbers) if wanted[number]]
        return found[:_MOST_SHOWN]


@dataclass(frozen=True, eq=False)
class Counted:
    """Scores by variant, the one that counts first; `against`: what stands for labels where none are known."""

    dataset: str
    samples: int
    variants: dict[str, tuple[Score, ...]]
    against: str
    classified: Classified | None


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab."""
    _published(bundle)
    try:
        known = _datasets(visitor)
    except KitError as error:
        st.error(words.problem(error))
        known = [GOLDEN]
    if known == [GOLDEN]:
        st.info(
            "No labelled data of this model is on this machine. Its golden samples hold the original's answers.",
            icon=":material/database_off:",
        )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        dataset = st.selectbox(
            "Samples", known, format_func=lambda one: f"{one}, test split" if one else _GOLDEN, width=260
        )
        again = st.button("Count on this machine", icon=":material/calculate:", type="primary")
    try:
        found = _count(visitor, dataset, again=again)
    except KitError as error:
        st.error(words.problem(error))
        return
    if found is None:
        st.caption("What was counted is kept for next time.")
        return
    _figures(found, bundle)
    if found.classified is not None:
        _classes(found, found.classified, bundle)


def _classes(found: Counted, classified: Classified, bundle: Bundle) -> None:
    ids = list(found.variants)
    variant = st.segmented_control("Variant", ids, default=ids[0], required=True, format_func=words.plain)
    place = ids.index(variant or ids[0])
    left, right = st.columns([1, 1], gap="large")
    with left:
        _confusion(classified, place, f"{bundle.origin} {found.dataset}")
    with right:
        _calibration(ids, classified, bundle)
    _disagreements(ids, classified)


def _loss(score: Score) -> str:
    """Return what was lost against the baseline, with its interval; shares of 1 in points."""
    if score.baseline is None:
        return NONE
    factor = 100 if score.unit == "%" else 1
    ends = score.loss_interval
    span = "" if ends is None else f" [{factor * ends[0]:+.3g}, {factor * ends[1]:+.3g}]"
    unit = " points" if score.unit == "%" else f" {score.unit}".rstrip()
    return f"{factor * score.loss:+.3g}{span}{unit}"


def _direction(score: Score) -> str:
    return "higher is better" if score.better is Better.HIGHER else "lower is better"


def _published(bundle: Bundle) -> None:
    rows = [
        {
            "variant": variant.id,
            "metric": score.metric,
            "value": score_of(score),
            "loss": _loss(score),
            "better": _direction(score),
            "samples": f"{score.dataset}, {score.split}, {score.samples:,}",
            "size": size(variant.size_bytes),
        }
        for variant in bundle.variants
        for score in variant.scores
        if score.split == "test" or not any(one.split == "test" for one in variant.scores)
    ]
    if rows:
        words.table(rows)
        st.caption(
            "As published. Loss: against the baseline on the same samples, with its 95 % interval if one is known."
        )
    else:
        st.info("This bundle was published without labelled data.", icon=":material/info:")
    if any(variant.fidelity for variant in bundle.variants):
        original = bundle.manifest.original
        with st.expander("How far each variant is from the original", icon=":material/straighten:", expanded=not rows):
            words.table(_fidelities(bundle))
            st.caption(words.plain(f"On golden samples, when it was published. {_original(bundle)}"))
            if original is not None and original.kind == "onnx":
                st.caption("The original is an ONNX file itself: ONNX Runtime answered for it, with optimizations off.")


def _original(bundle: Bundle) -> str:
    original = bundle.manifest.original
    return f"The original: {original.kind} {original.name}." if original else ""


def _fidelities(bundle: Bundle) -> list[dict[str, str]]:
    return [
        {"variant": variant.id, **_fidelity(one), "samples": f"{one.samples:,}"}
        for variant in bundle.variants
        for one in variant.fidelity
    ]


def _fidelity(one: Fidelity) -> dict[str, str]:
    return {
        "output": one.output,
        "max error": f"{one.max_abs_error:.3g}",
        "rms error": f"{one.rms_error:.3g}",
        "cosine": NONE if one.cosine is None else f"{one.cosine:.6f}",
        "agreement": NONE if one.agreement is None else f"{100 * one.agreement:.2f} %",
    }


def _datasets(visitor: Visitor) -> list[str]:
    key = f"datasets {visitor.path}"
    if key not in visitor.results:
        visitor.results[key] = visitor.ask("counting:datasets", {"path": visitor.path}).told["names"]
    found: list[str] = visitor.results[key]
    return found


def _count(visitor: Visitor, dataset: str, *, again: bool) -> Counted | None:
    key, asked = f"counted {visitor.path} {dataset}", {"path": visitor.path, "dataset": dataset}
    work = ("count", visitor.path, visitor.stamp, dataset)
    if not again and not errand.is_on(visitor, work):
        if key in visitor.results:
            found: Counted = visitor.results[key]
            return found
        if errand.other_work(visitor):
            return None
        answer = visitor.ask("counting:count", {**asked, "only_kept": True})
    else:
        counted = errand.within(
            visitor,
            work,
            lambda on_progress: visitor.ask("counting:count", {**asked, "again": True}, on_progress=on_progress),
        )
        if counted is None:
            return None
        answer = counted
    if "variants" not in answer.told:
        return None
    told = answer.told
    variants = {
        one["variant"]: tuple(serial.decode(Score, score) for score in one["scores"]) for one in told["variants"]
    }
    classified = Classified(names=_names(told["classes"], answer.arrays), **answer.arrays) if answer.arrays else None
    found = visitor.results[key] = Counted(dataset, int(told["samples"]), variants, str(told["against"]), classified)
    return found


def _names(names: Sequence[str], arrays: Any) -> tuple[str, ...]:
    most = int(max(arrays["labels"].max(initial=0), arrays["answers"].max(initial=0))) + 1
    return tuple(names) if len(names) >= most else tuple(map(str, range(most)))


def _figures(found: Counted, bundle: Bundle) -> None:
    columns = st.columns(max(len(found.variants), 1))
    for column, (variant, scores) in zip(columns, found.variants.items(), strict=True):
        if not scores:
            column.metric(words.plain(variant), NONE)
            continue
        first = scores[0]
        column.metric(
            words.plain(f"{variant}, {first.metric}"),
            score_of(first),
            _changed(first),
            delta_color="off",
            delta_arrow="off",
        )
    where = f"{found.dataset}, test split" if found.dataset else _GOLDEN
    said = f"Counted on this machine: {where}, {found.samples:,} samples."
    if found.against != "labels":
        said += f" No labels are known: {found.against}'s answers stand for them."
    st.caption(words.plain(said))
    rows = [
        {
            "metric": score.metric,
            "variant": variant,
            "value": score_of(score),
            "loss": _loss(score),
            "better": _direction(score),
        }
        for variant, scores in found.variants.items()
        for score in scores
    ]
    rows.sort(key=lambda row: [one.metric for one in next(iter(found.variants.values()))].index(row["metric"]))
    if rows:
        with st.expander("All metrics", icon=":material/table_rows:", expanded=found.classified is None):
            words.table(rows)
            base = bundle.baseline.id if bundle.baseline else bundle.variants[0].id
            on_data = f" On a data set, {base} stands for the original." if found.dataset else ""
            st.caption(
                words.plain(f"Loss: against {base}. Agreement, cosine and max-error: against the original.{on_data}")
            )


def _changed(score: Score) -> str:
    if score.worse is not None and score.improved is not None:
        return f"{score.worse} became wrong, {score.improved} right"
    if score.baseline is not None:
        return f"loss {_loss(score)}"
    return f"{score.samples - score.correct:,} wrong" if score.unit == "%" else _direction(score)


def _misread(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> dict[tuple[int, int], int]:
    """Return how often each class was read as each other, where it was."""
    wrong = labels != answers
    pairs, counts = np.unique(labels[wrong] * classes + answers[wrong], return_counts=True)
    return {(int(pair) // classes, int(pair) % classes): int(count) for pair, count in zip(pairs, counts, strict=True)}


def _confusion(found: Classified, place: int, where: str) -> None:
    names = found.names
    known = found.labels >= 0
    misread = _misread(found.labels[known], found.answers[place][known], len(names))
    st.subheader("What is read as what")
    if len(names) > _MOST_CLASSES:
        st.caption(f"{len(names):,} classes are too many to draw.")
    chosen = (
        None
        if len(names) > _MOST_CLASSES
        else st.altair_chart(
            charts.plotted(
                charts.confusion(
                    confusion(found.labels[known], found.answers[place][known], len(names)), names, ink=words.ink()
                ),
                words.ink(),
            ),
            on_select="rerun",
            selection_mode=charts.CELL,
            key=f"confusion {where} {place}",
            alt="Confusion matrix: labels in rows, readings in columns; the list below it opens the same cells",
        )
    )
    if not misread:
        st.success("Nothing is misread.")
        return
    cells = sorted(misread, key=lambda cell: -misread[cell])[:_MOST_CELLS]
    clicked = _clicked(chosen, names)
    if clicked is not None and clicked not in cells and clicked[0] != clicked[1]:
        st.caption(words.plain(f"No {names[clicked[0]]} is read as {names[clicked[1]]}."))
    first = cells.index(clicked) if clicked in cells else 0
    row, column = st.selectbox(
        "Misread samples",
        cells,
        index=first,
        key=f"cell {where} {place} {clicked}",
        format_func=lambda cell: f"{names[cell[0]]} read as {names[cell[1]]}: {misread[cell]}",
    )
    wanted = (found.labels == row) & (found.answers[place] == column)
    _pictures(found, wanted, lambda number: f"{100 * found.sure[place][number]:.0f} % sure")


def _clicked(chosen: Any, names: Sequence[str]) -> tuple[int, int] | None:
    points = chosen.selection.get(charts.CELL, []) if chosen and chosen.selection else []
    if not points:
        return None
    label, read = str(points[0]["label"]), str(points[0]["read"])
    return (names.index(label), names.index(read)) if {label, read} <= set(names) else None


def _pictures(found: Classified, wanted: NDArray[np.bool_], caption: Callable[[int], str]) -> None:
    shown = found.shown(wanted)
    if not shown:
        st.caption("None.")
        return
    if found.pictures is None:
        words.table([{"": f"test sample {number:,}", "reading": caption(number)} for number, _ in shown])
    else:
        st.image(
            [as_address(pixels_of(found.pictures[place], _SIDE)) for _, place in shown],
            caption=[words.plain(caption(number)) for number, _ in shown],
            alt=[f"test sample {number}" for number, _ in shown],
            width=_SIDE,
        )
    left = int(wanted.sum()) - len(shown)
    if left > 0:
        st.caption(f"and {left:,} more.")


def _calibration(variants: Sequence[str], found: Classified, bundle: Bundle) -> None:
    st.subheader("What its probabilities are worth")
    curves = {
        variant: reliability(found.sure[place], found.answers[place] == found.labels)
        for place, variant in enumerate(variants)
    }
    if any(len(bins) < _LEAST_BINS or min(one.samples for one in bins) < _LEAST_IN_BIN for bins in curves.values()):
        st.caption(
            f"{len(found.labels):,} samples are too few to draw this: it takes {_LEAST_BINS} bins of {_LEAST_IN_BIN} samples."
        )
        return
    if min(len({round(100 * one.probability, 1) for one in bins}) for bins in curves.values()) < _LEAST_BINS:
        first = {variant: bins[0] for variant, bins in curves.items()}
        said = "; ".join(
            f"{variant} says {100 * one.probability:.1f} % and is right in {100 * one.right:.1f} %"
            for variant, one in first.items()
        )
        st.caption(
            words.plain(
                f"Nearly all answers are given with the same probability, so there is no curve to draw. Of the "
                f"{next(iter(first.values())).samples:,} least sure ones {said}."
            )
        )
        return
    colours = {variant.id: COLOURS[place % len(COLOURS)] for place, variant in enumerate(bundle.variants)}
    st.altair_chart(
        charts.plotted(calibration_chart(curves, colours, ink=words.ink()), words.ink()),
        alt="Share of right answers against the probability the model gave",
    )
    counts = {len(bins) for bins in curves.values()}
    st.caption(
        f"Answers in {max(counts)} bins of equal count. On the dashed line a probability is what it says; below it the model "
        "is too sure."
    )


def _disagreements(variants: Sequence[str], found: Classified) -> None:
    if len(variants) < 2:
        return
    st.subheader("Where variants disagree")
    most = int((found.answers != found.answers[0]).sum(axis=1).argmax()) or 1
    other = st.segmented_control(
        words.plain(f"{variants[0]} against"),
        variants[1:],
        default=variants[most],
        required=True,
        format_func=words.plain,
    )
    place = variants.index(other or variants[most])
    wanted = found.answers[0] != found.answers[place]
    names = found.names
    said = f"the label, then what {variants[0]} and {variants[place]} read."
    st.caption(words.plain(f"{int(wanted.sum()):,} of {len(found.labels):,} samples: {said}"))

    def told(number: int) -> str:
        return (
            f"{names[found.labels[number]]}: {names[found.answers[0][number]]}, {names[found.answers[place][number]]}"
        )

    _pictures(found, wanted, told)
