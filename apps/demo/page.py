"""The demo page: try a model, see how right and how fast it is, and take it away. Started by `kit demo`.

Streamlit runs this file anew at every interaction, and only the tab in sight is drawn. All models run in a process of the
visitor's own (visitor.py, apps.demo.worker); what is computed is computed by the library (apps.demo.jobs).
"""

from __future__ import annotations

import sys

import streamlit as st

from apps.demo import accuracy_tab, artifact_tab, latency_tab, picker, sessions, try_it, words
from apps.demo.settings import Settings
from apps.demo.visitor import Visitor
from kit.bundle import Bundle
from kit.errors import KitError

TABS = {
    "Try it": try_it.show,
    "Accuracy": accuracy_tab.show,
    "Latency": latency_tab.show,
    "Artifact": artifact_tab.show,
}
_MOST_TENSORS = 4
_STYLE = """<style>
.stMainBlockContainer { max-width: 1240px; padding: 3.5rem 1.25rem 4rem; }
.stMainBlockContainer [data-testid="stImageContainer"] { margin-right: 0.4rem; }
.stMainBlockContainer table { font-variant-numeric: tabular-nums; }
</style>"""


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="kit demo", page_icon="✏️", layout="wide")
    st.html(_STYLE)
    me = sessions.here(Settings.parse(sys.argv[1:]))
    if me is None:
        st.info(
            "As many people are here as this machine can serve. Please try again in a few minutes.",
            icon=":material/group:",
        )
        return
    try:
        bundle = me.bundle()
        bundle.variant()
    except KitError as error:
        st.error(words.problem(error))
        picker.show(me, None)
        return
    me.notice(bundle)
    me.ready()
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
        st.title(words.plain(bundle.name), anchor=False)
        picker.show(me, bundle)
    st.caption(words.plain(_about(bundle, me)))
    if told := st.session_state.pop("upload told", ""):
        st.success(words.plain(told), icon=":material/verified:")
    tabs = st.tabs(list(TABS), key="tab", on_change="rerun")
    for tab, show in zip(tabs, TABS.values(), strict=True):
        if tab.open:
            with tab:
                show(me, bundle)


def _about(bundle: Bundle, visitor: Visitor) -> str:
    """Return what the bundle is, in a line: its task, what it takes and gives, and where it comes from."""
    limits = "uploaded, runs with limits" if visitor.is_own else "runs with limits"
    signature, task, original = bundle.signature, bundle.manifest.task, bundle.manifest.original
    ends = []
    for said, specs in (("takes", signature.inputs), ("gives", signature.outputs)):
        shown = [f"{spec.name} {spec.describe()}" for spec in specs[:_MOST_TENSORS]]
        more = [f"{len(specs) - _MOST_TENSORS} more"] if len(specs) > _MOST_TENSORS else []
        ends.append(f"{said} {', '.join([*shown, *more])}")
    kind = task.name.partition("@")[0].replace("-", " ") if task else "tensors"
    came = [f"from {original.kind} {original.name}"] if original else []
    return " · ".join([kind, *ends, *came, *([limits] if visitor.is_strange else [])])


main()
