"""The tab about speed: measure here, in a process of its own, or look at results of anywhere, in charts, words and a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from apps.demo import benches, errand, words
from apps.demo.charts import plotted
from apps.demo.errand import Errand
from apps.demo.visitor import Visitor, installed_runtimes
from apps.demo.worker import Worker
from kit.bench import results as files
from kit.bench import sweep
from kit.bench.compare import Limits, compare
from kit.bench.measure import LEAST_ROUNDS
from kit.bench.results import Latency, Results, Row
from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import BadInput, KitError
from kit.report import charts, tables
from kit.report.format import NONE, microseconds
from kit.report.headline import headline
from kit.report.page import pareto
from kit.runtime import registry
from kit.system.machine import this_machine
from kit.tensors import Signature

BATCH_SIZES = (1, 8, 64, 256, 1024)
MOST_POINTS = 16
"""Combinations of sizes in one run."""

BUDGETS = {"2 s": 2, "5 s": 5, "15 s": 15, "30 s": 30, "1 min": 60, "3 min": 180}
MAX_RESULTS_MB = 20
_GRACE_SECONDS = 120
_UPLOADED = "uploaded"


def show(visitor: Visitor, bundle: Bundle) -> None:
    """Draw the tab."""
    # What comes and goes stands in boxes that stay: else all that follows moves, and what is unfolded closes.
    with st.container():
        _form(visitor, bundle)
    with st.container():
        _progress(visitor)
    known = _known(visitor, bundle)
    if not known:
        if not _is_busy(visitor):
            st.info("Nothing was measured on this machine yet.", icon=":material/timer:")
        _uploads(visitor)
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Results", list(known), width=400)
        others = [one for one in known if one != name]
        base = st.selectbox("Compare with", [NONE, *others], disabled=not others, width=400)
        st.download_button(
            "Download",
            known[name].to_json(),
            file_name=f"{bundle.name}.bench.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
        )
    _uploads(visitor)
    if base in known:
        _comparison(known[base], known[name])
    _results(name, known[name], bundle)


def _form(visitor: Visitor, bundle: Bundle) -> None:
    reports = _reports()
    ids = [variant.id for variant in bundle.variants]
    runtimes = installed_runtimes()[:1] if visitor.is_strange else installed_runtimes()
    with st.form("bench", border=True):
        first, second, third = st.columns(3)
        offered = [one["provider"] for one in reports]
        providers = first.multiselect(
            "Providers", offered, **_kept(visitor, "providers", [Provider.CPU.value], offered)
        )
        asked = second.multiselect("Runtimes", runtimes, **_kept(visitor, "runtimes", [registry.DEFAULT], runtimes))
        variants = third.multiselect("Variants", ids, **_kept(visitor, "variants", ids, ids))
        chosen = _sizes(first, visitor, bundle.signature)
        most = max(this_machine().cpus_to_use, 1)
        threads = second.number_input("Threads", 1, most, **_kept(visitor, "threads", 1))
        budget = third.select_slider("Budget", list(BUDGETS), **_kept(visitor, "budget", "15 s"))
        with st.container(horizontal=True, vertical_alignment="center"):
            start = st.form_submit_button(
                "Measure", type="primary", icon=":material/play_arrow:", disabled=_is_busy(visitor)
            )
            swept = NONE
            if axes := bundle.signature.dynamic:
                kept = _kept(visitor, "sweep", NONE, [NONE, *axes])
                swept = st.selectbox("Sweep", [NONE, *axes], format_func=_sweep, label_visibility="collapsed", **kept)
    for one in reports:
        if not one["works"] and one["provider"] in providers:
            st.warning(f"{words.plain(one['reason'])}  \n{words.plain(one['fix'])}", icon=":material/memory_alt:")
    if not start:
        return
    points = [dict(zip(chosen, sizes, strict=True)) for sizes in itertools.product(*map(sorted, chosen.values()))]
    if swept == NONE and len(points) > MOST_POINTS:
        st.error(f"These are {len(points)} combinations of sizes; choose {MOST_POINTS} at most.")
        return
    request: dict[str, Any] = {
        "providers": providers or [Provider.CPU.value],
        "runtimes": asked or [registry.DEFAULT],
        "variants": variants or ids,
        "points": None if swept != NONE else points,
        "sweep": None if swept == NONE else swept,
        "threads": int(threads),
    }
    visitor.bench = benches.start(visitor, request, budget_seconds=BUDGETS[budget], grace_seconds=_GRACE_SECONDS)
    st.rerun()


def _sweep(axis: str) -> str:
    return "These sizes alone" if axis == NONE else f"Sweep: double {axis} until throughput no longer grows"


def _kept(visitor: Visitor, name: str, first: Any, offered: Sequence[Any] = ()) -> dict[str, Any]:
    """Keep a setting over tabs and reloads, what is still `offered` of it; return what its widget is given for that."""
    key = f"{visitor.path} {name}"
    value = st.session_state.get(key, visitor.settings.get(key, first))
    if isinstance(value, list) and any(one not in offered for one in value):
        value = [one for one in value if one in offered] or first
    elif offered and not isinstance(value, list) and value not in offered:
        value = first
    if st.session_state.get(key) != value:
        st.session_state[key] = value
    visitor.settings[key] = value
    return {"key": key, "persist_state": "session"}


def _sizes(column: Any, visitor: Visitor, signature: Signature) -> dict[str, list[int]]:
    chosen = {}
    for name in signature.dynamic:
        axis = signature.axes[name]
        offered = {axis.usual, *axis.typical, *(BATCH_SIZES if name == signature.batch else ())}
        known = sorted(size for size in offered if not axis.problem(size))
        first = [size for size in (1, 64) if size in known] if name == signature.batch else []
        label = "Batch sizes" if name == signature.batch else f"Sizes of {words.plain(name)}"
        kept = _kept(visitor, f"sizes of {name}", first or [axis.usual], known)
        chosen[name] = column.multiselect(label, known, **kept) or [axis.usual]
    return chosen


def _reports() -> list[dict[str, Any]]:
    """Return what runs here, proved once for everyone, in a process that has run nobody's model."""
    try:
        return _proved()
    except KitError as error:
        st.error(words.problem(error))
        return [{"provider": Provider.CPU.value, "works": True, "reason": "", "fix": ""}]


@st.cache_data(ttl="10m", show_spinner="looking what runs here")
def _proved() -> list[dict[str, Any]]:
    with Worker() as worker:
        found: list[dict[str, Any]] = worker.ask("apps.demo.jobs:doctor", seconds=_GRACE_SECONDS).told["providers"]
    return found


def _is_busy(visitor: Visitor) -> bool:
    return visitor.bench is not None and visitor.bench.is_running


def _progress(visitor: Visitor) -> None:
    job: Errand[Results] | None = visitor.bench
    if job is None:
        return
    if job.is_running:
        errand.watch(job, "bench")
        return
    visitor.bench = None
    try:
        found = job.result()
    except KitError as error:
        st.error(words.problem(error))
        return
    if found is None or job.stopped:
        st.info("Stopped: nothing was kept.", icon=":material/stop_circle:")
        return
    st.success("Measured.", icon=":material/check:")


def _known(visitor: Visitor, bundle: Bundle) -> dict[str, Results]:
    """Return all results in sight by what they are called, what was measured last first, and uploads last."""
    kept: dict[str, Results] = visitor.benches.get(visitor.path, {})
    found = {name: kept[name] for name in reversed(kept) if not name.startswith(_UPLOADED)}
    if not visitor.is_strange and (path := files.last_path(bundle)).exists():
        try:
            last = files.load(path)
        except BadInput as error:
            st.error(words.problem(error))
        else:
            found[f"the last kit bench here, {benches.when(last)}"] = last
    return found | {name: one for name, one in kept.items() if name.startswith(_UPLOADED)}


def _uploads(visitor: Visitor) -> None:
    with st.expander("Results from another machine", icon=":material/upload_file:"):
        file = st.file_uploader("Results file of kit bench", type=["json"], max_upload_size=MAX_RESULTS_MB)
        if file is None:
            return
        try:
            found = files.from_bytes(file.getvalue(), Path(file.name))
        except BadInput as error:
            st.error(words.problem(error))
        else:
            if st.session_state.get("results file") != file.file_id:
                st.session_state["results file"] = file.file_id
                visitor.benches.setdefault(visitor.path, {})[f"{_UPLOADED}: {file.name}"] = found
                st.rerun()


def _comparison(base: Results, new: Results) -> None:
    st.subheader("Compared, row by row")
    try:
        found = compare(base, new, Limits(), any_machine=True, any_bundle=True)
    except KitError as error:
        st.warning(words.problem(error))
        return
    rows = [
        {
            "variant": one.variant,
            "runtime": one.runtime,
            "on": str(one.provider),
            "sizes": one.at,
            "p50 µs before": microseconds(one.base_p50_us),
            "p50 µs now": microseconds(one.new_p50_us),
            "now, times as fast": NONE
            if one.speed is None
            else f"{one.speed.speedup:.2f} [{one.speed.low:.2f}, {one.speed.high:.2f}]",
            "": str(one.outcome or one.missing),
        }
        for one in found.changes
    ]
    if rows:
        words.table(rows)
    if base.machine.cpu != new.machine.cpu:
        st.caption(words.plain(f"Two machines: {base.machine.describe()}, and {new.machine.describe()}."))


def _results(name: str, found: Results, bundle: Bundle) -> None:
    if not found.rows:
        st.info("These results have no rows.", icon=":material/table_rows:")
        return
    _whose(name, found, bundle)
    rows = [row for row in found.rows if row.latency]
    is_enough = all(row.latency.rounds >= LEAST_ROUNDS for row in rows if row.latency)
    if is_enough:
        told = headline(found)
        st.subheader(words.plain(told.title))
        for sentence in told.sentences:
            st.markdown(words.plain(sentence))
    else:
        st.subheader("Too few rounds to say which is faster: choose a longer budget, or fewer variants and sizes")
    if cautions := dict.fromkeys((*headline(found).cautions, *found.remarks())):
        st.warning(
            "  \n".join(words.plain(f"{one[:1].upper()}{one[1:]}.") for one in cautions), icon=":material/warning:"
        )
    if rows and is_enough:
        _charts(found, rows, bundle)
    metric = tables.metric_of(found.rows)
    words.table([_row(row, metric) for row in found.rows])
    for reason, fix in dict.fromkeys((row.reason, row.fix) for row in found.rows if row.reason):
        st.warning(f"{words.plain(reason)}  \n{words.plain(fix)}", icon=":material/block:")
    st.caption(
        "p50: the middle one of calls timed one by one. Samples/s: from calls made in one go without a clock between them, the "
        "median over rounds with its 95 % interval; slow calls lower it and leave p50 as it is."
    )
    st.caption(words.plain(f"{tables.measured(found)} {benches.when(found)}, {found.machine.describe()}."))


def _whose(name: str, found: Results, bundle: Bundle) -> None:
    hashes = {(row.bundle, row.variant): row.sha256 for row in found.rows}
    names = list(dict.fromkeys(row.bundle for row in found.rows))
    said = ", ".join(f"{variant} {digest[:8]}" for (_, variant), digest in hashes.items())
    st.markdown(
        words.bold(", ".join(names))
        + words.plain(f" ({said}) on {found.machine.cpu}, {benches.when(found)}: {name.partition(',')[0]}")
    )
    own = {variant.id: variant.graph.sha256 for variant in bundle.variants}
    if not set(hashes.values()) & set(own.values()):
        is_named = bundle.name in names
        st.warning(
            words.plain(
                f"{bundle.name} was exported again since: these are figures of other files."
                if is_named
                else f"These are figures of another bundle, {', '.join(names)}, and not of {bundle.name}."
            ),
            icon=":material/history:" if is_named else ":material/swap_horiz:",
        )
    elif any(own.get(variant) != digest for (_, variant), digest in hashes.items()):
        st.warning("Some of these variants were exported again since.", icon=":material/history:")
    if found.machine.cpu != this_machine().cpu:
        st.caption(words.plain(f"Measured on another machine: {found.machine.describe()}."))


def _charts(found: Results, rows: list[Row], bundle: Bundle) -> None:
    style = charts.Style.of(rows, ink=words.ink(), first=tuple(variant.id for variant in bundle.variants))
    points = list(dict.fromkeys(row.point for row in sorted(rows, key=lambda row: row.samples)))
    point = (
        st.segmented_control("Sizes", points, default=points[0], required=True, format_func=words.plain) or points[0]
    )
    here = [row for row in rows if row.point == point]
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Latency** of one call")
        st.altair_chart(
            plotted(charts.latency(here, style, charts.latency_domain(here)), style.ink),
            alt="Distribution of latencies; the table has the figures",
        )
        st.caption(
            "Line: 5th to 95th percentile; box: the middle half; tick: median; dot: 99th percentile, from 1,000 calls on."
        )
    with right:
        score = next((row.score for row in here if row.score), None)
        if score is not None:
            front = pareto(here)
            st.markdown(f"**{words.plain(score.metric)}** against latency")
            st.altair_chart(
                plotted(charts.score(here, front, style), style.ink),
                alt=f"{score.metric} against median latency; the table has the figures",
            )
            st.caption("Up and to the left is better. Filled: on the Pareto front.")
    axis = sweep.swept_axis(rows)
    if axis is not None:
        st.markdown(f"**Throughput** against {words.plain(axis)}")
        knees = sweep.knees(found)
        st.altair_chart(
            plotted(
                charts.sweep(rows, knees, style, field="samples_per_second", title="samples per second"), style.ink
            ),
            alt="Samples per second against size; the table has the figures",
        )
        for one in sweep.crossovers(found):
            st.markdown(words.plain(f"{one.describe()}."))
    drawn = {row.variant for row in rows}
    st.caption(
        " · ".join(
            f':color[■]{{foreground="{style.colour(one)}"}} {words.plain(one)}'
            for one in style.variants
            if one in drawn
        )
    )


def _row(row: Row, metric: str) -> dict[str, str]:
    latency = row.latency
    return {
        "variant": row.variant,
        "runtime": row.runtime,
        "nodes on": row.placement or f"{row.provider}: {row.status}",
        "sizes": row.point,
        "p50 µs": microseconds(latency.p50_us if latency else None),
        "p99 µs": microseconds(latency.p99_us if latency else None),
        "samples/s": _rate(latency) if latency else NONE,
        metric or "score": tables.score(row, metric),
        "verdict": row.verdict.describe() if row.verdict else NONE,
    }


def _rate(latency: Latency) -> str:
    low, high = latency.samples_per_second_low, latency.samples_per_second_high
    span = "" if low is None or high is None else f" [{low:,.0f}, {high:,.0f}]"
    return f"{latency.samples_per_second:,.0f}{span}"
