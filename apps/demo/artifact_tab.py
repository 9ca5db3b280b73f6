"""The tab about the files: model card, manifest, graphs, hashes, the packed bundle, and the lines of Python that run it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from apps.demo import snippets, words
from apps.demo.visitor import Visitor
from kit.bundle import Bundle, packed_bytes
from kit.errors import KitError
from kit.report.format import size
from kit.system.serial import encode


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab."""
    _files(bundle)
    variant = st.segmented_control(
        "Variant",
        [one.id for one in bundle.variants],
        default=bundle.variant().id,
        required=True,
        key="artifact variant",
    )
    chosen = bundle.variant(variant)
    left, right = st.columns([1, 1], gap="large")
    with left:
        _graph(visitor, chosen.id)
    with right:
        st.subheader("Run it")
        st.markdown("with kit")
        st.code(snippets.with_kit(bundle, chosen), language="python")
        st.markdown("with ONNX Runtime and numpy alone, from pixels")
        st.code(snippets.with_onnxruntime(bundle, chosen), language="python")
    if bundle.manifest.card is not None:
        with st.expander("Model card", icon=":material/description:"):
            try:
                card = bundle.read(bundle.manifest.card).decode()
            except (KitError, UnicodeDecodeError) as error:
                st.error(words.plain(error))
            else:  # a stranger's card is shown as it was written: Markdown may have pictures of elsewhere
                _ = st.code(card, language="markdown", wrap_lines=True) if visitor.is_strange else st.markdown(card)
    with st.expander("Manifest", icon=":material/data_object:"):
        st.json(encode(bundle.manifest), expanded=1)


def _files(bundle: Bundle) -> None:
    default = bundle.variant().id
    rows = [
        {
            "variant": one.id + (" (default)" if one.id == default else ""),
            "file": one.artifact.file,
            "size": size(one.artifact.size_bytes),
            "precision": f"{one.precision}, {one.format}",
            "opset": str(one.opset),
            "sha256": f"{one.artifact.sha256[:16]}…",
        }
        for one in bundle.variants
    ]
    words.table(pd.DataFrame(rows).set_index("variant"))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            f"Download {bundle.name}.kit",
            lambda: packed_bytes(bundle),
            file_name=f"{bundle.name}.kit",
            mime="application/octet-stream",
            icon=":material/download:",
            on_click="ignore",
        )
        total = sum(ref.size_bytes for ref in bundle.manifest.files())
        st.caption(f"one file of {size(total)}, which every command takes as it is: kit verify {bundle.name}.kit")


def _graph(visitor: Visitor, variant: str) -> None:
    st.subheader("Graph")
    try:
        key = f"graph {visitor.path} {variant}"
        if key not in visitor.results:
            visitor.results[key] = visitor.ask("graph", {"path": visitor.path, "variant": variant}).told
        found = visitor.results[key]
    except KitError as error:
        st.warning(words.problem(error), icon=":material/account_tree:")
        return
    operators = ", ".join(f"{count} {words.plain(name)}" for name, count in found["operators"].items())
    opsets = ", ".join(f"{words.plain(name)} {version}" for name, version in found["opsets"].items())
    st.caption(f"{found['nodes']} nodes: {operators}. Opsets: {opsets}. What only prepares weights is not drawn.")
    st.graphviz_chart(found["dot"], alt=f"Graph of {variant}: {operators}")
