"""Which bundle is in sight: one of this machine, by name or path, or one that is uploaded and checked first."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from apps.demo import places, words
from apps.demo.visitor import MAX_UPLOAD_MB, Visitor
from kit.bundle import Bundle
from kit.errors import KitError


def show(visitor: Visitor, bundle: Bundle | None) -> None:
    """Draw the button that opens the choice."""
    with st.popover("Another bundle", icon=":material/folder_open:"):
        known = (
            places.listed() | visitor.checked | ({bundle.name: visitor.path} if bundle and not visitor.is_own else {})
        )
        names = list(known)
        place = next((place for place, name in enumerate(names) if known[name] == visitor.path), 0)
        chosen = st.selectbox("On this machine", names, index=place if names else None)
        if (
            chosen is not None
            and known[chosen] != visitor.path
            and st.button(f"Open {words.plain(chosen)}", type="primary")
        ):
            _open(visitor, known[chosen])
        if not visitor.artifacts_only:
            path = st.text_input(
                "Path of a folder, a packed file or a ready model",
                placeholder="artifacts/my-model, my-model.kit, model.onnx",
            )
            if path and st.button("Open path"):
                _open(visitor, path)
        file = st.file_uploader(
            "Packed bundle (.kit)",
            type=["kit"],
            max_upload_size=MAX_UPLOAD_MB,
            help=f"Up to {MAX_UPLOAD_MB} MB, checked before it is opened, run in a process with limits of time and memory",
        )
        if file is None:
            st.session_state["upload problem"] = ""
        elif file.file_id != st.session_state.get("checked"):
            _check(visitor, file.name, file.getvalue(), file.file_id)
        if problem := st.session_state.get("upload problem"):
            st.error(words.plain(problem))


def _open(visitor: Visitor, name: str) -> None:
    """Put a bundle of this machine in sight; a stranger's packed file is checked as an upload is."""
    try:
        place = visitor.place(name)
        if visitor.needs_check(place):
            _checked(visitor, place, place.name)
        else:
            found = visitor.look(place)
            found.variant()
            visitor.choose(place, found)
    except KitError as error:
        st.error(words.problem(error))
        return
    st.rerun()


def _check(visitor: Visitor, name: str, data: bytes, file_id: str) -> None:
    """Check an upload once; only what holds is put in sight."""
    try:
        _checked(visitor, visitor.keep_upload(data), name)
    except KitError as error:
        st.session_state["checked"] = file_id
        st.session_state["upload problem"] = f"{name} is refused: {error}. {error.hint}"
        return
    st.session_state["checked"] = file_id
    st.session_state["upload problem"] = ""
    st.rerun()


def _checked(visitor: Visitor, path: Path, name: str) -> None:
    """Check a packed file and put it in sight; raises KitError if it is refused."""
    bar = st.progress(0.0, "checking")
    try:
        done = visitor.check(path, name, lambda what, share=None: words.progress(bar, what, share))
    except KitError:
        bar.empty()
        raise
    st.session_state["upload told"] = f"{name} was checked: {'; '.join(done)}."
