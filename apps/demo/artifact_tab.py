"""The tab about the files: signature, graphs, hashes, model card, manifest, the packed bundle, and the lines that run it."""

from __future__ import annotations

import streamlit as st

from apps.demo import snippets, words
from apps.demo.views import view_of
from apps.demo.visitor import Visitor
from kit.bundle import Bundle, Variant, packed_bytes
from kit.errors import KitError
from kit.ready import ReadyModel
from kit.report.format import size
from kit.system.serial import encode
from kit.tasks.base import Task
from kit.tasks.registry import task_of

MOST_PACKED_BYTES = 500 * 10**6
"""Of a bundle that is packed on the page: it is held in memory while it is downloaded."""

_MOST_OPERATORS = 24


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab."""
    _files(bundle)
    variant = st.segmented_control(
        "Variant",
        [one.id for one in bundle.variants],
        default=bundle.variant().id,
        required=True,
        format_func=words.plain,
        key="artifact variant",
    )
    chosen = bundle.variant(variant)
    left, right = st.columns([1, 1], gap="large")
    with left:
        _graph(visitor, chosen.id)
    with right:
        _signature(bundle)
        _programs(visitor, bundle, chosen)
    _card(visitor, bundle)
    with st.expander("Manifest", icon=":material/data_object:"):
        st.json(encode(bundle.manifest), expanded=1)


def _programs(visitor: Visitor, bundle: Bundle, chosen: Variant) -> None:
    st.subheader("Run it")
    st.markdown("with kit")
    st.code(snippets.with_kit(bundle, chosen, example=view_of(bundle).example), language="python")
    task = _task(visitor, bundle)
    if task is not None and (lines := snippets.of_task(task, chosen)):
        st.markdown("without kit")
        st.code(lines, language="python")
    st.markdown("with ONNX Runtime and numpy alone, from tensors")
    st.code(snippets.with_onnxruntime(bundle, chosen), language="python")


def _task(visitor: Visitor, bundle: Bundle) -> Task | None:
    """Return the task whose own program is shown; None for plain tensors, strangers' bundles, and tasks nobody knows here."""
    if bundle.manifest.task is None or visitor.is_strange:
        return None
    try:
        return task_of(bundle)
    except KitError:
        return None


def _signature(bundle: Bundle) -> None:
    st.subheader("Takes and gives")
    signature = bundle.signature
    rows = [
        {"": said, "name": spec.name, "is": spec.describe() + (", varies" if spec.varies else "")}
        for said, specs in (("takes", signature.inputs), ("gives", signature.outputs))
        for spec in specs
    ]
    words.table(rows)
    if not signature.axes:
        st.caption("All sizes are fixed.")
        return
    axes = [
        {
            "axis": name,
            "sizes": axis.describe(),
            "typical": ", ".join(map(str, axis.typical)),
            "": "samples are independent along it" if name == signature.batch else "",
        }
        for name, axis in signature.axes.items()
    ]
    words.table(axes)


def _card(visitor: Visitor, bundle: Bundle) -> None:
    try:
        data = bundle.attachment("card")
        card = "" if data is None else data.decode()
    except (KitError, UnicodeDecodeError) as error:
        st.error(words.plain(error))
        return
    if card:
        with st.expander("Model card", icon=":material/description:"):  # a stranger's may have pictures of elsewhere
            _ = st.code(card, language="markdown", wrap_lines=True) if visitor.is_strange else st.markdown(card)


def _files(bundle: Bundle) -> None:
    default = bundle.variant().id
    rows = [
        {
            "variant": one.id + (" (default)" if one.id == default else ""),
            "file": ref.file,
            "size": size(ref.size_bytes),
            "precision": f"{one.precision}, {one.format}" if ref == one.graph else "weights",
            "opset": str(one.needs.opset) if ref == one.graph else "",
            "sha256": f"{ref.sha256[:16]}…",
        }
        for one in bundle.variants
        for ref in one.files()
    ]
    words.table(rows)
    total = sum(ref.size_bytes for ref in bundle.manifest.files())
    if isinstance(bundle, ReadyModel):
        st.caption(
            words.plain(f"A ready model, as it lies there. To make it a bundle: kit export {bundle.origin.name}")
        )
        return
    if total > MOST_PACKED_BYTES:
        st.caption(words.plain(f"{size(total)} are too many to be packed here: kit pack {bundle.origin.name}"))
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            f"Download {words.plain(bundle.name)}.kit",
            lambda: packed_bytes(bundle),
            file_name=f"{bundle.name}.kit",
            mime="application/octet-stream",
            icon=":material/download:",
            on_click="ignore",
        )
        st.caption(
            words.plain(f"one file of {size(total)}, which every command takes as it is: kit verify {bundle.name}.kit")
        )


def _graph(visitor: Visitor, variant: str) -> None:
    st.subheader("Graph")
    try:
        key = f"graph {visitor.path} {variant}"
        if key not in visitor.results:
            visitor.results[key] = visitor.ask("jobs:graph", {"path": visitor.path, "variant": variant}).told
        found = visitor.results[key]
    except KitError as error:
        st.warning(words.problem(error), icon=":material/account_tree:")
        return
    counts = list(found["operators"].items())
    operators = ", ".join(f"{count} {words.plain(name)}" for name, count in counts[:_MOST_OPERATORS])
    more = f" and {len(counts) - _MOST_OPERATORS} others" if len(counts) > _MOST_OPERATORS else ""
    opsets = ", ".join(f"{words.plain(name)} {version}" for name, version in found["opsets"].items())
    drawn = (
        f" Of a large graph the beginning is drawn: {found['not_drawn']:,} nodes more." if found["not_drawn"] else ""
    )
    nodes = f"{found['nodes']:,} node{'s' if found['nodes'] != 1 else ''}"
    st.caption(f"{nodes}: {operators}{more}. Opsets: {opsets}. What only prepares weights is not drawn.{drawn}")
    st.graphviz_chart(found["dot"], alt=f"Graph of {variant}: {operators}{more}")
