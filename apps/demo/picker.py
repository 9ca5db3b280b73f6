"""Which bundle is in sight: one of this machine, by name or path, or one that is uploaded and checked first."""

from __future__ import annotations

import streamlit as st

from apps.demo import words
from apps.demo.visitor import LIMIT_BYTES, LIMIT_SECONDS, MAX_UPLOAD_MB, Visitor
from apps.demo.worker import Worker
from kit import ready
from kit.bundle import Bundle, available
from kit.errors import KitError


def show(visitor: Visitor, bundle: Bundle | None) -> None:
    """Draw the button that opens the choice."""
    with st.popover("Another bundle", icon=":material/folder_open:"):
        known = {one.name: str(one.origin) for one in available() if one.variants}
        known |= visitor.uploads | ({bundle.name: visitor.path} if bundle and not visitor.is_strange else {})
        names = list(known)
        place = next((place for place, name in enumerate(names) if known[name] == visitor.path), 0)
        chosen = st.selectbox("On this machine", names, index=place if names else None)
        if chosen is not None and known[chosen] != visitor.path and st.button(f"Open {chosen}", type="primary"):
            _open(visitor, known[chosen])
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


def _open(visitor: Visitor, path: str) -> None:
    try:
        ready.find(path).variant()
    except KitError as error:
        st.error(words.problem(error))
        return
    visitor.choose(path)
    st.rerun()


def _check(visitor: Visitor, name: str, data: bytes, file_id: str) -> None:
    """Check an upload in a process with limits, which unpacks it; only what holds is put in sight."""
    bar = st.progress(0.0, "checking")
    try:
        path, into = visitor.keep_upload(name, data)
        with Worker(memory_bytes=LIMIT_BYTES) as worker:
            found = worker.ask(
                "apps.demo.jobs:check",
                {"path": path, "into": into},
                seconds=LIMIT_SECONDS,
                on_progress=lambda what, share=None: words.progress(bar, what, share),
            )
    except KitError as error:
        bar.empty()
        st.session_state["checked"] = file_id
        st.session_state["upload problem"] = f"{name} is refused: {error}. {error.hint}"
        return
    st.session_state["checked"] = file_id
    st.session_state["upload problem"] = ""
    visitor.uploads[f"{found.told['name']} (uploaded)"] = into
    visitor.choose(into)
    st.session_state["upload told"] = f"{name} was checked: {'; '.join(found.told['checked'])}."
    st.rerun()
