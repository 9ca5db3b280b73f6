"""The demo page: try a model, see how right and how fast it is, and take it away. Started by `kit demo`.

Streamlit runs this file anew at every interaction, and only the tab in sight is drawn. All models run in a process of the
visitor's own (visitor.py, apps.demo.worker); what is computed is computed by the library (apps.demo.jobs).
"""

from __future__ import annotations

import sys

import streamlit as st

from apps.demo import accuracy_tab, artifact_tab, latency_tab, picker, try_it, visitor, words
from kit.errors import KitError

TABS = {
    "Try it": try_it.show,
    "Accuracy": accuracy_tab.show,
    "Latency": latency_tab.show,
    "Artifact": artifact_tab.show,
}
_STYLE = """<style>
.stMainBlockContainer { max-width: 1240px; padding: 3.5rem 1.25rem 4rem; }
.stMainBlockContainer [data-testid="stImageContainer"] { margin-right: 0.4rem; }
.stMainBlockContainer table { font-variant-numeric: tabular-nums; }
</style>"""


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="kit demo", page_icon="✏️", layout="wide")
    st.html(_STYLE)
    me = visitor.here(sys.argv[1] if len(sys.argv) > 1 else "mnist-mlp")
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
    takes = bundle.spec.pipeline or "no pipeline: pixels only"
    uploaded = " · uploaded, runs with limits" if me.is_strange else ""
    about = f"{bundle.spec.architecture} · takes {bundle.spec.input.describe()} · pictures go through {takes}{uploaded}"
    st.caption(words.plain(about))
    if told := st.session_state.pop("upload told", ""):
        st.success(words.plain(told), icon=":material/verified:")
    tabs = st.tabs(list(TABS), key="tab", on_change="rerun")
    for tab, show in zip(tabs, TABS.values(), strict=True):
        if tab.open:
            with tab:
                show(me, bundle)


main()
