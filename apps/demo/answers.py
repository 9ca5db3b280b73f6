"""What every contestant answered, side by side: classes, vectors, or tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.demo import charts, words
from apps.demo.explain import picture_of
from apps.demo.pixels import as_address, pixels_of
from apps.demo.views import Question
from apps.demo.visitor import Contestant
from kit.bundle import Bundle
from kit.report.format import NONE, microseconds, size
from kit.system.wording import counted
from kit.tensors import Tensors

SEEN_PIXELS = 136
_MOST_OUTPUTS = 12
_FEW_VALUES = 4
_CLEARLY_FASTER = 1.1
"""Times as fast; a glance cannot tell less."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to one question.

    Attributes:
        kind: `classes`, `vectors` or `tensors`.
        silent: Contestants that did not open.
        answers: Of `contestants`, as apps.demo.jobs.predict gives them; so are `arrays`.
        has_colours: Whether it was asked about a picture that has some, and reads grey ones.
        heat: Where the first one looked, float32 `[height, width]`; None if that was not asked.
    """

    kind: str
    against: str
    contestants: list[Contestant]
    silent: list[Contestant]
    answers: list[dict[str, Any]]
    arrays: Tensors
    classes: tuple[str, ...] = ()
    has_colours: bool = False
    heat: NDArray[np.float32] | None = None

    def array(self, name: str, place: int) -> NDArray[Any]:
        """Return an array of the contestant at a place, such as its `probabilities`."""
        return self.arrays[f"{name} {self.answers[place]['number']}"]

    def first(self, bundle: Bundle) -> int:
        """Return the place of the default variant."""
        default = bundle.variant().id
        return next((place for place, one in enumerate(self.contestants) if one.variant == default), 0)


def show(bundle: Bundle, found: Answers, question: Question) -> None:
    """Draw the answer in large letters, one sentence about all of them, and what else belongs to the first."""
    {"classes": _read, "vectors": _vectors}.get(found.kind, _records)(bundle, found, question)
    st.markdown(words.plain(sentence(bundle, found)))
    if found.kind != "classes":
        {"vectors": _similar}.get(found.kind, _tensors)(bundle, found, question)
    for one in found.silent:
        st.warning(words.plain(f"{one.called} does not open: {one.problem}. {one.fix}"), icon=":material/block:")


def details(bundle: Bundle, found: Answers, question: Question) -> None:
    """Draw what every contestant answered."""
    {"classes": _classes, "vectors": _alike}.get(found.kind, _compared_table)(bundle, found, question)
    st.caption(
        f"µs: median of {min(one['calls'] for one in found.answers)} calls, tensors in to tensors out, in a process of its "
        "own. It is a glance; the Latency tab measures."
    )


def sentence(bundle: Bundle, found: Answers) -> str:
    """Return whether all agree, which was quickest at a glance and by how much, and how much smaller its file is."""
    said = [_agreement(bundle, found)]
    times_us = [one["latency_us"] for one in found.answers]
    base = _baseline(bundle, found)
    quickest = min(range(len(times_us)), key=times_us.__getitem__)
    winner, against = found.contestants[quickest], found.contestants[base]
    faster = times_us[base] / max(times_us[quickest], 1e-3)
    if len(times_us) == 1:
        said.append(f"{winner.called} took {microseconds(times_us[0])} µs.")
    elif faster < _CLEARLY_FASTER:
        said.append(f"None is clearly quicker than {against.called}: {microseconds(times_us[base])} µs.")
    else:
        smaller = _sizes(bundle, winner.variant, against.variant)
        said.append(
            f"Quickest at a glance: {winner.called}, {microseconds(times_us[quickest])} µs, {faster:.1f} times as fast as "
            f"{against.called}{smaller}."
        )
    return " ".join(filter(None, said))


def _baseline(bundle: Bundle, found: Answers) -> int:
    name = bundle.baseline.id if bundle.baseline else ""
    return next((place for place, one in enumerate(found.contestants) if one.variant == name), 0)


def _sizes(bundle: Bundle, variant: str, against: str) -> str:
    one, other = bundle.variant(variant).size_bytes, bundle.variant(against).size_bytes
    if variant == against or one >= other:
        return ""
    return f", and {other / max(one, 1):.1f} times smaller ({size(one)} for {size(other)})"


def _agreement(bundle: Bundle, found: Answers) -> str:
    how_many = len(found.answers)
    every = "Both" if how_many == 2 else f"All {how_many}"
    if found.kind == "classes":
        first = found.first(bundle)
        label = found.answers[first]["label"]
        others = [
            one.called for one, answer in zip(found.contestants, found.answers, strict=True) if answer["label"] != label
        ]
        if others:
            return f"They disagree: {', '.join(others)} {'read' if len(others) > 1 else 'reads'} it otherwise."
        return f"{every} answers agree ({_of(found)})." if how_many > 1 else "One variant answers."
    if how_many == 1 and found.against == found.contestants[0].name:
        return "One variant answers."
    unlike = [
        one.called for one, answer in zip(found.contestants, found.answers, strict=True) if _error(answer) is None
    ]
    if unlike:
        return f"{', '.join(unlike)} cannot be compared: other sizes, or values that are no numbers."
    worst = max(error for answer in found.answers if (error := _error(answer)) is not None)
    against = found.against.replace(" · ", " in ")
    same = f"with errors of {100 * worst:.2g} % at most" if worst else "bit for bit"
    if how_many == 1:
        return f"It answers as {against} does, {same}."
    return f"{every} answers ({_of(found)}) are those of {against}, {same}."


def _error(answer: dict[str, Any]) -> float | None:
    """Return the largest error of any output as a share of its largest value; None if one cannot be compared."""
    if len(answer["fidelity"]) < len(answer["outputs"]) or any(one["strange"] for one in answer["outputs"]):
        return None
    errors = []
    for one in answer["fidelity"]:
        if one["max_abs_error"] == 0:
            errors.append(0.0)
        elif one.get("is_exact") and one.get("agreement") is not None:
            errors.append(1 - one["agreement"])
        else:
            errors.append(math.inf if one.get("max_rel_error") is None else one["max_rel_error"])
    worst = max(errors, default=0.0)
    return worst if math.isfinite(worst) else None


def _of(found: Answers) -> str:
    variants = len({one.variant for one in found.contestants})
    runtimes = len({one.runtime for one in found.contestants})
    return f"{counted(variants, 'variant')} in {counted(runtimes, 'runtime')}"


def _read(bundle: Bundle, found: Answers, question: Question) -> None:
    first = found.first(bundle)
    label, share = found.classes[found.answers[first]["label"]], float(found.array("probabilities", first)[0].max())
    unsure = found.answers[first]["unsure"]
    known = "" if not question.right else ", right" if question.right == label else f"; it is {question.right}"
    st.metric(
        words.plain(f"{found.contestants[first].variant} reads" + (", unsure," if unsure else "")),
        words.plain(label),
        words.plain(f"{100 * share:.1f} % sure{known}"),
        delta_color="off",
        delta_arrow="off",
    )
    if unsure:
        least = _least(bundle)
        under = f"under {100 * least:.1f} %" if least else "when it is not sure enough"
        st.warning(f"Unsure: the model keeps silent {under}.", icon=":material/help:")
    if found.has_colours:
        st.info(
            "This picture has colours, and the model was made for grey ones: look at what it saw, or take a picture of one "
            "thing alone on an even ground.",
            icon=":material/palette:",
        )


def _classes(bundle: Bundle, found: Answers, question: Question) -> None:  # noqa: ARG001 - as the other kinds
    labels = [found.classes[one["label"]] for one in found.answers]
    shares = np.stack([found.array("probabilities", place)[0] for place in range(len(labels))])
    first = found.first(bundle)
    names = [one.name for one in found.contestants]
    st.vega_lite_chart(
        spec=charts.probabilities(names, found.classes, shares, ink=words.ink()),
        alt="Probabilities: "
        + "; ".join(
            f"{name} {label} {100 * one.max():.1f} %" for name, label, one in zip(names, labels, shares, strict=True)
        ),
    )
    unsure = [", unsure" if one["unsure"] else "" for one in found.answers]
    columns = {
        "reads": [f"{label} ≠" if label != labels[first] else label for label in labels],
        "sure": [f"{100 * one.max():.2f} %{said}" for one, said in zip(shares, unsure, strict=True)],
    }
    _table(found, columns)


def _least(bundle: Bundle) -> float:
    """Return the probability under which a model keeps silent; 0 if its task says none."""
    value = bundle.manifest.task.options.get("abstain_below") if bundle.manifest.task else None
    return float(value) if isinstance(value, (int, float)) else 0.0


def _vectors(bundle: Bundle, found: Answers, question: Question) -> None:  # noqa: ARG001 - as the other kinds
    first = found.first(bundle)
    vectors = found.array("vectors", first)
    st.metric(
        words.plain(f"{found.contestants[first].variant} gives"),
        f"{len(vectors)} × {vectors.shape[-1]}",  # noqa: RUF001 - the sign of a product
        "vectors × values",  # noqa: RUF001
        delta_color="off",
        delta_arrow="off",
    )


def _similar(bundle: Bundle, found: Answers, question: Question) -> None:
    vectors = found.array("vectors", found.first(bundle))
    if len(vectors) > 1:
        names = _texts(vectors, question)
        st.markdown("**How alike they are**, cosine")
        numbers = [str(row + 1) for row in range(len(names))]
        words.table(
            [
                {"": number, "text": name, **{other: f"{one:.2f}" for other, one in zip(numbers, row, strict=True)}}
                for number, name, row in zip(numbers, names, _cosines(vectors, vectors), strict=True)
            ]
        )


def _texts(vectors: NDArray[Any], question: Question) -> list[str]:
    return [str(one) for one in question.asked.get("raw", [])] or [f"sample {row + 1}" for row in range(len(vectors))]


def _alike(bundle: Bundle, found: Answers, question: Question) -> None:  # noqa: ARG001 - as the other kinds
    first = found.first(bundle)
    vectors = found.array("vectors", first)
    least = [
        float(np.diagonal(_cosines(found.array("vectors", place), vectors)).min())
        for place in range(len(found.answers))
    ]
    _table(found, {f"least cosine to {found.contestants[first].name}": [f"{one:.5f}" for one in least]})


def _cosines(some: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    one, other = some.astype(np.float64), others.astype(np.float64)
    lengths = np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    found: NDArray[np.float64] = one @ other.T / np.maximum(lengths, 1e-30)
    return found


def _records(bundle: Bundle, found: Answers, question: Question) -> None:
    first = found.first(bundle)
    records = found.answers[first].get("records") or [{}]
    st.markdown(words.plain(f"{found.contestants[first].name} gives") + ":")
    if bundle.manifest.task is not None and 0 < len(records[0]) <= _FEW_VALUES:
        right = f"right: {question.right}" if question.right else None
        for column, (name, value) in zip(st.columns(len(records[0])), records[0].items(), strict=True):
            column.metric(words.plain(name), words.plain(_number(value)), right, delta_color="off", delta_arrow="off")


def _tensors(bundle: Bundle, found: Answers, question: Question) -> None:  # noqa: ARG001 - as the other kinds
    outputs = found.answers[found.first(bundle)]["outputs"]
    shown = [
        {
            "output": one["name"],
            "is": f"{one['dtype']} {one['shape']}",
            "mean": _figure(one.get("mean")),
            "spread": _figure(one.get("spread")),
            "least": _figure(one.get("least")),
            "most": _figure(one.get("most")),
            "begins": ", ".join(one["first"]) + (" …" if math.prod(one["shape"]) > len(one["first"]) else ""),
        }
        for one in outputs[:_MOST_OUTPUTS]
    ]
    words.table(shown)
    if len(outputs) > _MOST_OUTPUTS:
        st.caption(f"and {len(outputs) - _MOST_OUTPUTS:,} outputs more.")
    if strange := [one["name"] for one in outputs if one["strange"]]:
        st.warning(words.plain(f"Not all numbers are finite: {', '.join(strange)}."), icon=":material/warning:")


def _compared_table(bundle: Bundle, found: Answers, question: Question) -> None:  # noqa: ARG001 - as the other kinds
    st.markdown(words.plain(f"Compared with {found.against}") + ":")
    words.table(_compared(found))


def _compared(found: Answers) -> list[dict[str, str]]:
    rows = []
    for contestant, answer in zip(found.contestants, found.answers, strict=True):
        by_output = {one["output"]: one for one in answer["fidelity"]}
        for place, output in enumerate(answer["outputs"][:_MOST_OUTPUTS]):
            one = by_output.get(output["name"], {})
            rows.append(
                {
                    "variant · runtime": contestant.name,
                    "output": output["name"],
                    "max error": _figure(one.get("max_abs_error")),
                    "rms error": _figure(one.get("rms_error")),
                    "cosine": NONE if one.get("cosine") is None else f"{one['cosine']:.6f}",
                    "µs": microseconds(answer["latency_us"]) if place == 0 else "",
                    "on": contestant.provider if place == 0 else "",
                }
            )
    return rows


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _number(text: str) -> str:
    try:
        return f"{float(text.strip('[]')):.4g}"
    except ValueError:
        return text


def _table(found: Answers, columns: dict[str, list[str]]) -> None:
    words.table(
        [
            {
                "variant · runtime": one.name,
                **{name: texts[place] for name, texts in columns.items()},
                "µs": microseconds(answer["latency_us"]),
                "on": one.provider,
            }
            for place, (one, answer) in enumerate(zip(found.contestants, found.answers, strict=True))
        ]
    )


def seen(bundle: Bundle, found: Answers) -> None:
    """Draw the picture that the model saw, and where it looked, if one of its inputs is a picture."""
    name = picture_of(bundle.signature)
    if name is None or found.kind != "classes" or f"input {name}" not in found.arrays:
        return
    picture = found.arrays[f"input {name}"][0]
    with st.container(horizontal=True):
        st.image(
            as_address(pixels_of(picture, SEEN_PIXELS)),
            caption=f"what it saw, {'x'.join(map(str, picture.shape))}",
            alt="What the model saw",
            width=SEEN_PIXELS,
        )
        if found.heat is not None:
            st.image(
                as_address(charts.heat(pixels_of(picture, 1), found.heat, SEEN_PIXELS)),
                caption="where it looked",
                alt="Where it looked: orange parts carry the answer",
                width=SEEN_PIXELS,
            )
