"""The tab to try a model on: what its task takes in, and what every variant answers, in every runtime, side by side."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.demo import answers, errand, explain, words
from apps.demo.answers import Answers
from apps.demo.views import Question, view_of
from apps.demo.views.pictures import is_grey
from apps.demo.visitor import FIRST_RUNTIMES, OPENING_SECONDS, Contestant, Visitor, installed_runtimes
from apps.demo.worker import Answer
from kit.bundle import Bundle
from kit.errors import BadInput, KitError, UsageError
from kit.system.progress import OnProgress

_QUICK_SECONDS = 0.5
_DETAILS = "every answer"


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab: the question, beside it the answer in a sentence, and what every contestant says folded away."""
    view = view_of(bundle)
    names = list(view.sources)
    if st.session_state.get("source") not in names:  # of another bundle
        st.session_state["source"] = names[0]
    left, right = st.columns([2, 3], gap="large")
    with left:
        source = view.sources[
            str(st.segmented_control("Ask with", names, required=True, key="source", label_visibility="collapsed"))
        ]
        question = source.take(visitor, bundle)
    with right:
        if question is None:
            st.info(source.invitation, icon=":material/draw:")
            _open_early(visitor)
            return
        try:
            found = _asked(visitor, bundle, question)
        except KitError as error:
            if isinstance(error, (BadInput, UsageError)):
                st.warning(words.problem(error), icon=":material/error:")
            else:
                st.error(words.problem(error))
            return
        if found is None:
            _details(visitor, bundle, None, question)
            return
        answers.show(bundle, found, question)
        answers.seen(bundle, _explained(visitor, bundle, found))
        _details(visitor, bundle, found, question)


def _details(visitor: Visitor, bundle: Bundle, found: Answers | None, question: Question) -> None:
    with st.expander("Every answer", icon=":material/table_rows:", key=_DETAILS, on_change="rerun") as folded:
        if not folded.open:
            return
        _choose_runtimes(visitor)
        if found is not None:
            answers.details(bundle, found, question)


def _open_early(visitor: Visitor) -> None:
    """Open the models while the visitor draws; what fails is said when it is asked."""
    if visitor.errand is not None or visitor.stopped is not None or set(_runtimes(visitor)) - set(FIRST_RUNTIMES):
        return
    with contextlib.suppress(KitError):
        visitor.contestants(_runtimes(visitor))


def _offered(visitor: Visitor) -> tuple[str, ...]:
    """Return the runtimes to choose from; a stranger's bundle runs in the first alone, which is the one limited best."""
    return installed_runtimes()[:1] if visitor.is_strange else installed_runtimes()


def _choose_runtimes(visitor: Visitor) -> None:
    if len(offered := _offered(visitor)) > 1:
        first = [name for name in FIRST_RUNTIMES if name in offered]
        st.pills("Runtimes", offered, selection_mode="multi", default=first, key="runtimes", persist_state="session")


def _runtimes(visitor: Visitor) -> tuple[str, ...]:
    offered = _offered(visitor)
    chosen = st.session_state.get("runtimes") or FIRST_RUNTIMES
    return tuple(name for name in offered if name in chosen) or offered[:1]


def _asked(visitor: Visitor, bundle: Bundle, question: Question) -> Answers | None:
    """Ask all contestants, unless this very question was the last they were asked; None as long as that goes on."""
    runtimes = _runtimes(visitor)
    key = (visitor.path, visitor.stamp, question.digest, runtimes)
    kept = st.session_state.get("answer")
    if kept is not None and kept[0] == key:
        found: Answers = kept[1]
        return found

    def ask(on_progress: OnProgress) -> tuple[list[Contestant], Answer]:
        everyone = visitor.contestants(runtimes, on_progress=on_progress)
        on_progress("Asking", 1.0)
        return everyone, visitor.ask("jobs:predict", question.asked, question.arrays)

    about = sum(OPENING_SECONDS.get(name, 0.0) for name in runtimes) * len(bundle.variants)
    done = errand.within(visitor, ("ask", *key), ask, about_seconds=about)
    if done is None:
        return None
    everyone, answer = done
    told = answer.told
    found = Answers(
        kind=str(told["kind"]),
        against=str(told["against"]),
        contestants=[everyone[one["number"]] for one in told["answers"]],
        silent=[one for one in everyone if one.problem],
        answers=told["answers"],
        arrays=answer.arrays,
        classes=tuple(map(str, told.get("classes", ()))),
        has_colours=bool(told.get("has_colours")) and is_grey(bundle),
    )
    st.session_state["answer"] = (key, found)
    return found


def _explained(visitor: Visitor, bundle: Bundle, found: Answers) -> Answers:
    """Find where the first contestant looked: at once if that is quick, else when the visitor asks for it."""
    name = explain.picture_of(bundle.signature)
    if found.heat is not None or found.kind != "classes" or name is None:
        return found
    key, number = st.session_state["answer"][0], found.answers[0]["number"]
    picture = found.arrays[f"input {name}"]
    seconds = explain.how_many(picture.shape[1:], str(picture.dtype)) * found.answers[0]["latency_us"] / 1e6
    wanted = seconds <= _QUICK_SECONDS or errand.is_on(visitor, ("explain", key))
    if not wanted and not st.button(f"Show where it looked, about {seconds:.0f} s", icon=":material/search:"):
        return found
    inputs = {spec.name: found.arrays[f"input {spec.name}"] for spec in bundle.signature.inputs}

    def explained(on_progress: OnProgress) -> NDArray[np.float32]:
        visitor.contestants(key[3], on_progress=on_progress)  # its process may be a new one
        on_progress("Covering one part after another", 0.0)
        heat: NDArray[np.float32] = visitor.ask("jobs:occlude", {"number": number}, inputs).arrays["heat"]
        return heat

    try:
        heat = errand.within(visitor, ("explain", key), explained, about_seconds=seconds)
    except KitError as error:
        st.caption(words.problem(error))
        return found
    if heat is None:
        return found
    found = replace(found, heat=heat)
    st.session_state["answer"] = (key, found)
    return found
