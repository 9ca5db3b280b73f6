"""The demo page: try a model, see how right and how fast it is, and take it away. Started by `kit demo`.

Streamlit runs this file anew at every interaction, and only the tab in sight is drawn. All models run in a process of the
visitor's own (visitor.py, apps.demo.worker); what is computed is computed by the library (apps.demo.jobs).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import streamlit as st

from apps.demo import address, errand, picker, sessions, words
from apps.demo.settings import Settings
from apps.demo.visitor import Visitor
from kit.bundle import Bundle
from kit.errors import KitError
from kit.report.format import size
from kit.system.wording import counted

# Their modules, which are imported when they are first opened: what draws charts takes a second.
TABS = {"Try it": "try_it", "Accuracy": "accuracy_tab", "Latency": "latency_tab", "Artifact": "artifact_tab"}
# How the keys of the work begin that each of them draws itself.
_WORK = {"try_it": ("ask", "explain"), "accuracy_tab": ("count",)}
_MOST_LABELS = 40  # letters of all labels together that are worth a place in the line below the title
_STYLE = f"<style>{Path(__file__).with_name('page.css').read_text(encoding='utf-8')}</style>"


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
        bundle = address.follow(me)
        bundle.variant()
    except KitError as error:
        st.error(words.problem(error))
        picker.show(me, None)
        return
    st.set_page_config(page_title=f"{bundle.name} · kit demo")
    me.notice(bundle)
    me.ready()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", key="head"):
        st.title(words.plain(bundle.name), anchor=False)
        picker.show(me, bundle)
    st.caption(words.plain(_about(bundle, me)))
    if told := st.session_state.pop("upload told", ""):
        st.success(words.plain(told), icon=":material/verified:")
    address.follow_tab(tuple(TABS))
    tabs = st.tabs(list(TABS), key=address.TAB, on_change=address.name_tab)
    for tab, module in zip(tabs, TABS.values(), strict=True):
        if tab.open:
            with tab:
                if not errand.other_work(me, *_WORK.get(module, ())):
                    importlib.import_module(f"apps.demo.{module}").show(me, bundle)


def _about(bundle: Bundle, visitor: Visitor) -> str:
    task = bundle.manifest.task
    labels = task.options.get("labels") if task else None
    kind = task.name.partition("@")[0].replace("-", " ") if task else "tensors in, tensors out"
    if isinstance(labels, list) and labels:
        kind += f" into {counted(len(labels), 'class', 'classes')}"
        if sum(map(len, map(str, labels))) <= _MOST_LABELS:
            kind += f": {', '.join(map(str, labels))}"
    sizes = [variant.size_bytes for variant in bundle.variants]
    span = size(min(sizes)) if min(sizes) == max(sizes) else f"{size(min(sizes))} to {size(max(sizes))}"
    limits = ["uploaded, runs with limits" if visitor.is_own else "runs with limits"] if visitor.is_strange else []
    said = [kind[:1].upper() + kind[1:], f"{counted(len(sizes), 'variant')} of {span}", *limits]
    return " · ".join(said)


if __name__ == "__main__":  # which Streamlit calls it; a process that one started here imports it under another name
    main()
