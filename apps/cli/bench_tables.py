"""What `kit bench` prints: the table of latencies, cold starts, node times or a sweep, and what must be known to read them."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from apps.cli.lines import command, say
from apps.cli.render import stdout
from apps.cli.tables import Rows, breakable, styled
from kit.bench import sweep
from kit.bench.points import described, telling
from kit.bench.results import Results, Row, Status
from kit.bench.scenarios import Scenario
from kit.bench.stats import Outcome
from kit.choices import Mode
from kit.report.format import NONE, about, interval, microseconds, size
from kit.report.tables import UNKNOWN, memory, metric_of, score, span
from kit.runtime.registry import BROWSER
from kit.system.wording import counted, percent

_USUAL = " onnxruntime cpu"  # where the baseline usually runs


def show(results: Results) -> None:
    """Print the tables that suit what was measured."""
    console = stdout()
    kind = results.arguments.get("kind", "warm")
    if kind == "cold":
        _cold_table(console, results)
    elif kind == "profile":
        _profile_tables(console, results)
    else:
        _latency_table(console, results)
        _sweep_lines(console, results)
    _notes(console, results)
    for said in results.remarks():
        say(console, styled(f"Note: {said}.", "yellow"))


def _latency_table(console: Console, results: Results) -> None:
    several = len({row.runtime for row in results.rows}) > 1
    axes, metric = telling([row.sizes for row in results.rows]), metric_of(results.rows)
    figures = ("p50 µs", "p90 µs", "p99 µs", "samples/s", "size", "memory", "µJ/sample", *([metric] if metric else []))
    against = _against(results)
    rows = Rows(
        headers=("variant", "runtime", "nodes on", *axes, *figures, against),
        left=("variant", "runtime", "nodes on", against),
        spare=("memory", "size", "p90 µs", "µJ/sample"),
        needed=("samples/s", "p99 µs"),
    )
    for row in results.rows:
        cells = _figures(row, metric)
        rows.add(
            row.variant,
            row.runtime if several else "",
            _where(row),
            *(f"{row.sizes[axis]:,}" if axis in row.sizes else NONE for axis in axes),
            *(cells[header] for header in figures),
            breakable(*row.verdict.parts()) if row.verdict else NONE,
            style="yellow" if row.status is not Status.OK else "",
        )
    rows.show(console)


def _against(results: Results) -> str:
    return f"against {_usual_baseline(results) or 'the baseline'}"


def _usual_baseline(results: Results) -> str:
    """Return what all rows are compared with, if it ran in ONNX Runtime on the CPU; empty if not.

    That is its variant, or the runtime if there are rows of one variant only.
    """
    names = _baselines(results)
    (name,) = names if len(names) == 1 else ("",)
    if not name.endswith(_USUAL):
        return ""
    variants, runtimes = {row.variant for row in results.rows}, {row.runtime for row in results.rows}
    return "onnxruntime" if len(variants) == 1 and len(runtimes) > 1 else name.removesuffix(_USUAL)


def _baselines(results: Results) -> set[str]:
    return {row.verdict.baseline for row in results.rows if row.verdict}


def _figures(row: Row, metric: str) -> dict[str, str]:
    found = row.latency
    energy = row.energy_uj / (row.query_samples or row.samples) if row.energy_uj is not None else None
    return {
        "p50 µs": microseconds(found.p50_us if found else None),
        "p90 µs": microseconds(found.p90_us if found else None),
        "p99 µs": microseconds(found.p99_us if found else None),
        "samples/s": f"{found.samples_per_second:,.0f}" if found else NONE,
        "size": size(row.size_bytes),
        "memory": size(row.memory_bytes) if row.memory_bytes is not None else "",
        "µJ/sample": microseconds(energy) if energy is not None else "",
        metric: score(row, metric),
    }


def _where(row: Row) -> str:
    if row.status is Status.FALLBACK:
        return f"{row.placement} (FALLBACK, asked for {row.provider})"
    if row.status is not Status.OK:
        return f"{row.provider}: {row.status}"
    found = row.placement or f"{row.provider}: {row.status}"
    return ", ".join([found, *([row.mode] if row.mode != Mode.HOST else []), *([row.session] if row.session else [])])


def _sweep_lines(console: Console, results: Results) -> None:
    if not results.arguments.get("sweep"):
        return
    for knee in sweep.knees(results):
        axis = knee.axis
        say(
            console,
            Text.assemble(
                styled(knee.case, "bold"),
                f": knee at {axis} {knee.size:,}, {knee.samples_per_second:,.0f} samples/s, "
                f"{percent(knee.share)} of the best ({knee.best_samples_per_second:,.0f} at {axis} {knee.best_size:,}).",
            ),
        )
    for one in sweep.crossovers(results):
        say(console, f"{one.describe()}.")


def _cold_table(console: Console, results: Results) -> None:
    stages = next((list(row.cold.stages_ms) for row in results.rows if row.cold), [])
    several = len({row.runtime for row in results.rows}) > 1
    rows = Rows(
        headers=("variant", "runtime", "nodes on", "in all, ms", "95 % interval", *stages, "peak memory"),
        left=("variant", "runtime", "nodes on"),
        spare=("peak memory",),
        needed=("95 % interval",),
    )
    for row in results.rows:
        cold = row.cold
        if cold is None:
            cells = [NONE] * (len(stages) + 3)
        else:
            cells = [f"{cold.total_ms:,.0f}", interval(cold.low_ms, cold.high_ms).strip() or NONE]
            cells += [f"{cold.stages_ms[stage]:,.1f}" for stage in stages]
            cells.append(size(cold.peak_memory_bytes) if cold.peak_memory_bytes else NONE)
        style = "yellow" if row.status is not Status.OK else ""
        rows.add(row.variant, row.runtime if several else "", _where(row), *cells, style=style)
    rows.show(console)
    processes = next((row.cold.processes for row in results.rows if row.cold), 0)
    if not processes:
        return
    say(
        console,
        f"From the start of a process to its first prediction: {counted(processes, 'fresh process', 'fresh processes')} each, "
        "in interleaved order; medians in ms, files in the system's cache.",
    )


def _profile_tables(console: Console, results: Results) -> None:
    for row in results.rows:
        fell_back = f" (FALLBACK, asked for {row.provider})" if row.status is Status.FALLBACK else ""
        name = f"{row.variant} on {row.ran_on or row.provider}{fell_back}, {row.point}"
        if not row.profile:
            say(console, styled(f"{name} in {row.runtime}: {row.status}", "yellow"))
            continue
        say(console, styled(name, "bold"))
        rows = Rows(
            headers=("node", "operator", "provider", "µs", "share of the call"),
            left=("node", "operator", "provider"),
            spare=("provider",),
            needed=("operator",),
        )
        for node in row.profile:
            rows.add(node.node, node.operator, node.provider, f"{node.mean_us:,.1f}", percent(node.share))
        rest = max(1 - sum(node.share for node in row.profile), 0.0)
        call_us = row.profile[0].mean_us / row.profile[0].share if row.profile[0].share else 0.0
        rows.add("between the nodes", "", "", f"{rest * call_us:,.1f}", percent(rest), style="dim")
        rows.show(console)
        say(console, f"Kernels: {row.kernels} (nodes before fusion: {row.placement}). Trace: {row.trace_file}\n")
    if not any(row.profile for row in results.rows):
        return
    say(
        console,
        "The profiler slows down what it watches, and counts whole microseconds: these are shares, kit bench measures latency. "
        "The traces open in Perfetto (ui.perfetto.dev) and chrome://tracing.",
    )


def _notes(console: Console, results: Results) -> None:
    measured = [row for row in results.rows if row.latency]
    warm = [row.latency for row in measured if row.latency]
    if warm:
        rounds = span([latency.rounds for latency in warm], "interleaved round")
        threads = span([row.threads for row in measured], "thread")
        say(console, f"{_load(results)}, {rounds}, {threads}, {memory(measured)}.")
    baselines = _baselines(results)
    if baselines and not _usual_baseline(results):
        say(console, f"Baseline: {', '.join(sorted(baselines))}.")
    if axes := _alike(results):
        say(console, f"Sizes of one call: {axes}.")
    say(console, f"Ran on {results.machine.describe()}.")
    _noise(console, results)
    if not any(row.cold or row.profile for row in results.rows):
        _scores(console, results)
    if any(latency.p99_us is None for latency in warm):
        say(console, "p99 is shown from 1,000 calls on.")
    if any(row.runtime == BROWSER and row.latency for row in results.rows):
        say(console, "In the browser each latency is a mean over calls that outlast 20 steps of its clock (5 µs).")
    if any(row.verdict and row.verdict.outcome is Outcome.INCONCLUSIVE for row in results.rows):
        budget = max(60, 4 * round(results.conditions.seconds if results.conditions else 15))
        say(console, f"INCONCLUSIVE: the interval is too wide to tell; run longer, such as --budget {budget}s.")
    for reason, fix in dict.fromkeys((row.reason, row.fix) for row in results.rows if row.reason):
        say(console, styled(reason, "yellow"))
        if fix:
            command(console, fix)


def _alike(results: Results) -> str:
    """Return the sizes that all rows share and no column shows: `sequence 128`."""
    rows = [row for row in results.rows if row.sizes]
    shown = telling([row.sizes for row in rows])
    shared = {axis: size for axis, size in (rows[0].sizes if rows else {}).items() if axis not in shown}
    return described(shared) if shared else ""


def _scores(console: Console, results: Results) -> None:
    scored = [row for row in results.rows if row.score]
    if not scored:
        say(console, UNKNOWN)
    sources = {row.score_source for row in scored}
    where = "counted now" if sources == {"live"} else "* from the manifest, not counted here"
    for one in dict.fromkeys(about(row.score) for row in scored if row.score):
        say(console, f"{one}; {where}.")


def _load(results: Results) -> str:
    row = next(row for row in results.rows if row.latency)
    if row.scenario is Scenario.SERVER:
        return f"Server: {row.offered_rate:,.0f} queries/s arrive at random, latency from when it was due, verdicts by medians"
    if row.scenario is Scenario.OFFLINE:
        return f"Offline: {row.query_samples:,} samples at once, served in batches; p50 is of all of them"
    return str(row.scenario)


def _noise(console: Console, results: Results) -> None:
    found = [control for control in results.controls if control.comparison]
    if not found:
        return
    widest = max(
        found, key=lambda control: control.comparison.high - control.comparison.low if control.comparison else 0
    )
    assert widest.comparison is not None  # filtered above
    against_itself = f"the baseline against itself {widest.comparison.describe()}"
    say(console, f"Noise of the run: {against_itself} at {widest.point}, where it was widest.")
