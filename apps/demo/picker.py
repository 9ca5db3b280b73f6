"""Which bundle is in sight: one of this machine, by name or path, or one that is uploaded and checked first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from apps.demo import address, errand, words
from apps.demo.visitor import MAX_UPLOAD_MB, Checked, Visitor
from kit.bundle import Bundle
from kit.errors import KitError

_ASKED, _PROBLEM = "bundle asked for", "bundle problem"


def show(visitor: Visitor, bundle: Bundle | None) -> None:
    """Draw the button that opens the choice; it closes when another bundle is in sight."""
    with st.popover("Another bundle", icon=":material/folder_open:", key=f"picker {visitor.path}"):
        known = address.known(visitor)
        names = list(known)
        place = next((place for place, name in enumerate(names) if known[name] == visitor.path), 0)
        chosen = st.selectbox("On this machine", names, index=place if names else None)
        is_other = chosen is not None and (known[chosen] != visitor.path or bundle is None)
        if chosen is not None and is_other and st.button(f"Open {words.plain(chosen)}", type="primary"):
            _ask(known[chosen])
        if not visitor.artifacts_only:
            path = st.text_input(
                "Path of a folder, a packed file or a ready model",
                placeholder="artifacts/my-model, my-model.kit, model.onnx",
            )
            if path and st.button("Open path"):
                _ask(path)
        file = st.file_uploader(
            "Packed bundle (.kit)",
            type=["kit"],
            max_upload_size=MAX_UPLOAD_MB,
            help=f"Up to {MAX_UPLOAD_MB} MB, checked before it is opened, run in a process with limits of time and memory",
        )
        if file is not None and file.file_id != st.session_state.get("checked"):
            st.session_state["checked"] = file.file_id
            _receive(visitor, file)
        if (asked := st.session_state.get(_ASKED)) is not None:
            _open(visitor, asked)
        if problem := st.session_state.get(_PROBLEM):
            st.error(words.plain(problem))


def _ask(what: Any) -> None:
    """Have a bundle opened: a name or path, or an upload. It may take longer than one drawing of the page."""
    st.session_state[_ASKED] = what
    st.session_state[_PROBLEM] = ""


def _receive(visitor: Visitor, file: Any) -> None:
    try:
        _ask((file.file_id, file.name, visitor.keep_upload(file.getvalue())))
    except KitError as error:
        st.session_state[_PROBLEM] = words.sentence(error)


def _open(visitor: Visitor, asked: Any) -> None:
    """Put a bundle in sight; one of a stranger's, or an upload, is checked first, and only what holds is opened."""
    is_upload = not isinstance(asked, str)
    name = asked[1] if is_upload else asked
    try:
        if is_upload:
            number, _, path = asked
            found = _checked(visitor, path, name, number)
        else:
            place = visitor.place(asked)
            found = (
                _checked(visitor, place, place.name, str(place))
                if visitor.needs_check(place)
                else _looked_at(visitor, place)
            )
    except KitError as error:
        st.session_state[_ASKED] = None
        st.session_state[_PROBLEM] = words.refusal(name, error) if is_upload else words.sentence(error)
        return
    if found is None:
        return
    st.session_state[_ASKED] = None
    visitor.choose(found.place, found.bundle)
    address.name(visitor)
    if found.said:
        st.session_state["upload told"] = f"{name} was checked: {'; '.join(found.said)}."
    st.rerun()


def _checked(visitor: Visitor, path: Path, name: str, number: str) -> Checked | None:
    """Check a packed file, which its number tells from others of its name; None as long as that goes on."""
    return errand.within(
        visitor,
        ("check", number),
        lambda on_progress: visitor.check(path, name, on_progress),
        end=visitor.look_no_longer,
        where="picker",
    )


def _looked_at(visitor: Visitor, place: Path) -> Checked | None:
    def look(_: object) -> Checked:
        bundle = visitor.look(place)
        bundle.variant()
        return Checked(place, bundle, ())

    return errand.within(visitor, ("look", str(place)), look, end=visitor.look_no_longer, where="picker")
