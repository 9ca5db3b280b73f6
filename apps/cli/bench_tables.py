"""What `kit bench` prints: the table of latencies, cold starts, node times or a sweep, and what must be known to read them."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apps.cli.render import stdout
from apps.cli.tables import literal, styled
from kit.bench import sweep
from kit.bench.points import described, telling
from kit.bench.results import Results, Row, Status
from kit.bench.scenarios import Scenario
from kit.bench.stats import Outcome
from kit.choices import Mode
from kit.report.format import NONE, about, interval, microseconds, size
from kit.report.tables import UNKNOWN, memory, metric_of, score
from kit.runtime.registry import BROWSER

_NARROW = 104
_WIDE = 126
_RUNTIME = 20  # columns that the name of the runtime takes
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
        console.print(styled(f"Note: {said}.", "yellow"), soft_wrap=True)


def _latency_table(console: Console, results: Results) -> None:
    several = len({row.runtime for row in results.rows}) > 1
    room = console.width - (_RUNTIME if several else 0)
    wide, very_wide = room >= _NARROW, room >= _WIDE
    energy = any(row.energy_uj is not None for row in results.rows)
    against = _against(results, wide=wide)
    axes, metric = telling([row.sizes for row in results.rows]), metric_of(results.rows)
    headers = [
        "variant",
        *(["runtime"] if several else []),
        "nodes on",
        *axes,
        "p50 µs",
        *(["p90"] if wide else []),
        "p99",
        "samples/s",
        *(["size"] if wide else []),
        *(["memory"] if very_wide else []),
        *(["µJ/sample"] if energy else []),
        *([metric] if metric else []),
        against,
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        left = header in {"variant", "runtime", "nodes on"} or header.startswith("against")
        table.add_column(literal(header), justify="left" if left else "right", overflow="fold")
    for row in results.rows:
        cells = _cells(row, metric)
        cells[against] = row.verdict.describe() if row.verdict else NONE
        table.add_row(
            *(literal(cells[header]) for header in headers), style="yellow" if row.status is not Status.OK else ""
        )
    console.print(table)


def _against(results: Results, *, wide: bool) -> str:
    """Return the header of the verdicts, which names what they are against, if that is short enough."""
    if name := _usual_baseline(results):
        return f"against {name} on the CPU" if wide else f"against {name}"
    return "against the baseline"


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


def _cells(row: Row, metric: str) -> dict[str, str]:
    """Return every cell a latency table may show but the verdict, by header."""
    found = row.latency
    energy = row.energy_uj / (row.query_samples or row.samples) if row.energy_uj is not None else None
    return {
        "variant": row.variant,
        "runtime": row.runtime,
        "nodes on": _where(row),
        **{axis: f"{size:,}" for axis, size in row.sizes.items()},
        "p50 µs": microseconds(found.p50_us if found else None),
        "p90": microseconds(found.p90_us if found else None),
        "p99": microseconds(found.p99_us if found else None),
        "samples/s": f"{found.samples_per_second:,.0f}" if found else NONE,
        "size": size(row.size_bytes),
        "memory": size(row.memory_bytes) if row.memory_bytes is not None else NONE,
        "µJ/sample": microseconds(energy),
        metric: score(row, metric),
    }


def _where(row: Row) -> str:
    """Return where it ran, and that this is not where it was asked to."""
    if row.status is Status.FALLBACK:
        return f"{row.placement} (FALLBACK, asked for {row.provider})"
    if row.status is not Status.OK:
        return f"{row.provider}: {row.status}"
    found = row.placement or f"{row.provider}: {row.status}"
    return ", ".join([found, *([row.mode] if row.mode != Mode.HOST else []), *([row.session] if row.session else [])])


def _sweep_lines(console: Console, results: Results) -> None:
    """Say in words where throughput bends and who overtakes whom."""
    if not results.arguments.get("sweep"):
        return
    for knee in sweep.knees(results):
        axis = knee.axis
        console.print(
            Text.assemble(
                styled(knee.case, "bold"),
                f": knee at {axis} {knee.size:,}, {knee.samples_per_second:,.0f} samples/s, "
                f"{knee.share:.0%} of the best ({knee.best_samples_per_second:,.0f} at {axis} {knee.best_size:,}).",
            ),
            soft_wrap=True,
        )
    for one in sweep.crossovers(results):
        console.print(f"{one.describe()}.", soft_wrap=True)


def _cold_table(console: Console, results: Results) -> None:
    stages = next((list(row.cold.stages_ms) for row in results.rows if row.cold), [])
    several = len({row.runtime for row in results.rows}) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("variant", *(["runtime"] if several else []), "nodes on"):
        table.add_column(header)
    for header in ("in all, ms", "95 % interval", *stages, "peak memory"):
        table.add_column(literal(header), justify="right")
    for row in results.rows:
        cold = row.cold
        cells = [row.variant, *([row.runtime] if several else []), _where(row)]
        if cold is None:
            cells += [NONE] * (len(stages) + 3)
        else:
            cells += [f"{cold.total_ms:,.0f}", interval(cold.low_ms, cold.high_ms).strip() or NONE]
            cells += [f"{cold.stages_ms[stage]:,.1f}" for stage in stages]
            cells.append(size(cold.peak_memory_bytes) if cold.peak_memory_bytes else NONE)
        table.add_row(*map(literal, cells), style="yellow" if row.status is not Status.OK else "")
    console.print(table)
    counted = next((row.cold.processes for row in results.rows if row.cold), 0)
    if not counted:
        return
    console.print(
        f"From the start of a process to its first prediction: {counted} fresh processes each, in interleaved order; "
        "medians in ms, files in the system's cache.",
        soft_wrap=True,
    )


def _profile_tables(console: Console, results: Results) -> None:
    for row in results.rows:
        fell_back = f" (FALLBACK, asked for {row.provider})" if row.status is Status.FALLBACK else ""
        name = f"{row.variant} on {row.ran_on or row.provider}{fell_back}, {row.point}"
        if not row.profile:
            console.print(styled(f"{name} in {row.runtime}: {row.status}", "yellow"), soft_wrap=True)
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=literal(name), title_justify="left")
        for header in ("node", "operator", "provider", "µs", "share of the call"):
            table.add_column(header, justify="right" if header in {"µs", "share of the call"} else "left")
        for node in row.profile:
            cells = (node.node, node.operator, node.provider, f"{node.mean_us:,.1f}", f"{node.share:.0%}")
            table.add_row(*map(literal, cells))
        rest = max(1 - sum(node.share for node in row.profile), 0.0)
        call_us = row.profile[0].mean_us / row.profile[0].share if row.profile[0].share else 0.0
        table.add_row("between the nodes", "", "", f"{rest * call_us:,.1f}", f"{rest:.0%}", style="dim")
        console.print(table)
        console.print(
            f"Kernels: {row.kernels} (nodes before fusion: {row.placement}). Trace: {row.trace_file}\n", soft_wrap=True
        )
    if not any(row.profile for row in results.rows):
        return
    console.print(
        "The profiler slows down what it watches, and counts whole microseconds: these are shares, kit bench measures latency. "
        "The traces open in Perfetto (ui.perfetto.dev) and chrome://tracing.",
        soft_wrap=True,
    )


def _notes(console: Console, results: Results) -> None:
    measured = [row for row in results.rows if row.latency]
    warm = [row.latency for row in measured if row.latency]
    if warm:
        rounds = sorted({latency.rounds for latency in warm})
        spread = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        threads = results.arguments.get("threads", "1")
        console.print(
            f"{_load(results)}, {spread} interleaved rounds, {threads} thread(s), {memory(measured)}.",
            soft_wrap=True,
        )
    baselines = _baselines(results)
    if baselines and not _usual_baseline(results):
        console.print(f"Baseline: {', '.join(sorted(baselines))}.", soft_wrap=True)
    if axes := _alike(results):
        console.print(f"Sizes of one call: {axes}.", soft_wrap=True)
    console.print(f"Ran on {results.machine.describe()}.", soft_wrap=True)
    _noise(console, results)
    if not any(row.cold or row.profile for row in results.rows):
        _scores(console, results)
    if any(latency.p99_us is None for latency in warm):
        console.print("p99 is shown from 1,000 calls on.", soft_wrap=True)
    if any(row.runtime == BROWSER and row.latency for row in results.rows):
        console.print(
            "In the browser each latency is a mean over calls that outlast 20 steps of its clock (5 µs): no tails are seen.",
            soft_wrap=True,
        )
    if any(row.verdict and row.verdict.outcome is Outcome.INCONCLUSIVE for row in results.rows):
        budget = max(60, 4 * round(results.conditions.seconds if results.conditions else 15))
        console.print(
            f"INCONCLUSIVE: the interval is too wide to tell; run longer, such as --budget {budget}s.", soft_wrap=True
        )
    for reason, fix in dict.fromkeys((row.reason, row.fix) for row in results.rows if row.reason):
        console.print(Text.assemble(styled(reason, "yellow"), f"\n  → {fix}" if fix else ""), soft_wrap=True)


def _alike(results: Results) -> str:
    """Return the sizes that all rows share and no column shows: `sequence 128`."""
    rows = [row for row in results.rows if row.sizes]
    shown = telling([row.sizes for row in rows])
    shared = {axis: size for axis, size in (rows[0].sizes if rows else {}).items() if axis not in shown}
    return described(shared) if shared else ""


def _scores(console: Console, results: Results) -> None:
    """Print what the scores are, or that nobody knows how right the answers are."""
    scored = [row for row in results.rows if row.score]
    if not scored:
        console.print(UNKNOWN, soft_wrap=True)
    sources = {row.score_source for row in scored}
    where = "counted now" if sources == {"live"} else "* from the manifest, not counted here"
    for one in dict.fromkeys(about(row.score) for row in scored if row.score):
        console.print(f"{one}; {where}.", soft_wrap=True)


def _load(results: Results) -> str:
    row = next(row for row in results.rows if row.latency)
    if row.scenario is Scenario.SERVER:
        return f"Server: {row.offered_rate:,.0f} queries/s arrive at random, latency from when it was due, verdicts by medians"
    if row.scenario is Scenario.OFFLINE:
        return f"Offline: {row.query_samples:,} samples at once, served in batches; p50 is of all of them"
    return str(row.scenario)


def _noise(console: Console, results: Results) -> None:
    """Print the baseline against itself: what this run can tell apart."""
    found = [control for control in results.controls if control.comparison]
    if not found:
        return
    widest = max(
        found, key=lambda control: control.comparison.high - control.comparison.low if control.comparison else 0
    )
    assert widest.comparison is not None  # filtered above
    low, high = widest.comparison.low, widest.comparison.high
    console.print(
        f"Noise of the run: the baseline against itself {widest.comparison.speedup:.2f}x [{low:.2f}, {high:.2f}] "
        f"at {widest.point}, where it was widest.",
        soft_wrap=True,
    )
