"""The tab to try a model on: what its task takes in, and what every variant answers, in every runtime, side by side."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import streamlit as st

from apps.demo import answers, explain, words
from apps.demo.answers import Answers
from apps.demo.views import Question, view_of
from apps.demo.visitor import FIRST_RUNTIMES, Visitor, installed_runtimes
from kit.bundle import Bundle
from kit.errors import BadInput, KitError, UsageError

_QUICK_SECONDS = 0.5


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab."""
    view = view_of(bundle)
    names = list(view.sources)
    if st.session_state.get("source") not in names:  # of another bundle
        st.session_state["source"] = names[0]
    source = view.sources[str(st.segmented_control("Ask with", names, required=True, key="source"))]
    left, right = st.columns([2, 3], gap="large")
    with left:
        question = source.take(visitor, bundle)
    with right:
        runtimes = _runtimes(visitor)
        if question is None:
            st.info(source.invitation, icon=":material/draw:")
            _open_early(visitor, runtimes)
            return
        try:
            found = _asked(visitor, question, runtimes)
        except (BadInput, UsageError) as error:
            hint = f"  \n{words.plain(error.hint)}" if error.hint else ""
            st.warning(words.plain(f"{str(error)[:1].upper()}{str(error)[1:]}.") + hint, icon=":material/error:")
            return
        except KitError as error:
            st.error(words.problem(error))
            return
        answers.show(bundle, found, question)
    with left:
        answers.seen(bundle, _explained(visitor, bundle, found))


def _open_early(visitor: Visitor, runtimes: tuple[str, ...]) -> None:
    """Open the models while the visitor draws; what fails is said when it is asked."""
    with contextlib.suppress(KitError):
        visitor.contestants(runtimes)


def _runtimes(visitor: Visitor) -> tuple[str, ...]:
    """Let the visitor choose runtimes; an uploaded bundle runs in the first alone, which is the one that is limited best."""
    found = installed_runtimes()[:1] if visitor.is_strange else installed_runtimes()
    if len(found) == 1:
        return found
    first = [name for name in FIRST_RUNTIMES if name in found]
    chosen = st.pills("Runtimes", found, selection_mode="multi", default=first, key="runtimes")
    return tuple(name for name in found if name in (chosen or first))


def _asked(visitor: Visitor, question: Question, runtimes: tuple[str, ...]) -> Answers:
    """Ask all contestants, unless this very question was the last they were asked."""
    key = (visitor.path, visitor.stamp, question.digest, runtimes)
    kept = st.session_state.get("answer")
    if kept is not None and kept[0] == key:
        found: Answers = kept[1]
        return found
    with st.spinner("asking", show_time=False) if set(runtimes) - set(FIRST_RUNTIMES) else st.empty():
        everyone = visitor.contestants(runtimes)
        answer = visitor.ask("jobs:predict", question.asked, question.arrays)
    told = answer.told
    found = Answers(
        kind=str(told["kind"]),
        against=str(told["against"]),
        contestants=[everyone[one["number"]] for one in told["answers"]],
        silent=[one for one in everyone if one.problem],
        answers=told["answers"],
        arrays=answer.arrays,
        classes=tuple(map(str, told.get("classes", ()))),
    )
    st.session_state["answer"] = (key, found)
    return found


def _explained(visitor: Visitor, bundle: Bundle, found: Answers) -> Answers:
    """Find where the first contestant looked: at once if that is quick, else when the visitor asks for it."""
    name = explain.picture_of(bundle.signature)
    if found.heat is not None or found.kind != "classes" or name is None:
        return found
    picture = found.arrays[f"input {name}"]
    seconds = explain.how_many(picture.shape[1:], str(picture.dtype)) * found.answers[0]["latency_us"] / 1e6
    if seconds > _QUICK_SECONDS and not st.button(
        f"Show where it looked, some {seconds:.0f} s", icon=":material/search:"
    ):
        return found
    inputs = {spec.name: found.arrays[f"input {spec.name}"] for spec in bundle.signature.inputs}
    try:
        heat = visitor.ask("jobs:occlude", {"number": found.answers[0]["number"]}, inputs).arrays["heat"]
    except KitError as error:
        st.caption(words.problem(error))
        return found
    explained = replace(found, heat=heat)
    st.session_state["answer"] = (st.session_state["answer"][0], explained)  # of the question that was just asked
    return explained
