"""Results as tables: CSV for programs, Markdown for people. Reads results files and knows nothing of how they came about."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kit.bench.points import telling
from kit.bench.results import Results, Row, Status
from kit.choices import Mode
from kit.report.format import NONE, about, interval, microseconds, size
from kit.report.format import score as score_of
from kit.report.words import plain
from kit.system.wording import counted


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table for people; `cell` gives its text for a row."""

    header: str
    cell: Callable[[Row], str]
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Note:
    """Why rows did not run as asked, and what to type."""

    number: int
    reason: str
    fix: str


def columns(results: Results) -> tuple[Column, ...]:
    """Return the columns that a run fills: latency, cold start or profile, with size and score."""
    found = [
        Column(header="variant", cell=lambda row: row.variant, numeric=False),
        Column(header="runtime", cell=lambda row: row.runtime, numeric=False),
        Column(header="ran on (nodes)", cell=where, numeric=False),
    ]
    cold = any(row.cold for row in results.rows)
    profiled = any(row.profile for row in results.rows)
    warm = any(row.latency for row in results.rows) or not (cold or profiled)
    if warm or profiled:
        found += [_axis(name) for name in telling([row.sizes for row in results.rows])]
    if warm:
        found += _LATENCY
    if cold:
        found += _COLD
    if profiled:
        found += _PROFILE
    if any(row.energy_uj is not None for row in results.rows):
        found.append(Column(header="µJ/sample", cell=_energy))
    found.append(Column(header="size", cell=lambda row: size(row.size_bytes)))
    if metric := metric_of(results.rows):
        found.append(Column(header=metric, cell=lambda row: score(row, metric)))
    if warm:
        found.append(Column(header="against the baseline", cell=verdict, numeric=False))
    return tuple(found)


def _axis(name: str) -> Column:
    return Column(header=name, cell=lambda row: f"{row.sizes[name]:,}" if name in row.sizes else NONE)


def metric_of(rows: Sequence[Row]) -> str:
    """Return the metric that counts in a run: the first score of the first row that has one; empty if there is none."""
    return next((row.score.metric for row in rows if row.score), "")


def score(row: Row, metric: str) -> str:
    """Return a row's score, named if it is of another metric."""
    if row.score is None:
        return NONE
    other = "" if row.score.metric == metric else f"{row.score.metric} "
    return f"{other}{score_of(row.score, row.score_source)}"


def where(row: Row) -> str:
    """Return where a row ran, such as `cpu 9/9`; with what was asked for and the status if that is not where it ran."""
    ran = row.placement or str(row.ran_on or row.provider)
    if row.status is Status.OK:
        return ran
    if row.status is Status.FALLBACK:
        return f"{ran} (FALLBACK, asked for {row.provider})"
    return f"{row.provider}: {row.status}"


def verdict(row: Row) -> str:
    """Return `FASTER 1.74x [1.70, 1.78]`, `baseline`, or a dash."""
    return row.verdict.describe() if row.verdict else NONE


def notes(results: Results) -> tuple[Note, ...]:
    """Return the reasons of the rows that did not run as asked, each once, numbered from 1."""
    reasons = dict.fromkeys((row.reason, row.fix) for row in results.rows if row.reason)
    return tuple(Note(number=number, reason=reason, fix=fix) for number, (reason, fix) in enumerate(reasons, start=1))


def memory(rows: Sequence[Row]) -> str:
    """Return where input and output lay, for each mode that is among the rows."""
    words = {
        Mode.HOST: "input and output in host memory",
        Mode.DEVICE: "device: bound where the model runs, copies not counted",
    }
    return "; ".join(words[mode] for mode in dict.fromkeys(row.mode for row in rows))


def measured(results: Results) -> str:
    """Return in one sentence how the rows were measured."""
    rows = [row for row in results.rows if row.latency or row.cold or row.profile]
    if not rows:
        return "Nothing was measured."
    latencies = [row.latency for row in rows if row.latency]
    said = []
    if latencies:
        said.append(f"{span([one.rounds for one in latencies], 'interleaved round')} in random order")
        said.append(f"{span([one.calls for one in latencies], 'call')} for each row")
    if processes := [row.cold.processes for row in rows if row.cold]:
        fresh = span(processes, "fresh process", "fresh processes")
        said.append(f"{fresh} for each row, files in the system's cache")
    if any(row.profile for row in rows):
        said.append("nodes timed by the runtime's profiler, whose own cost is in their times")
    said.append(span([row.threads for row in rows], "thread"))
    said.append(memory(rows))
    if latencies:
        said.append(f"scenario {', '.join(dict.fromkeys(row.scenario for row in rows))}")
    if rates := dict.fromkeys(f"{row.offered_rate:,.0f}" for row in rows if row.offered_rate is not None):
        said.append(f"{', '.join(rates)} queries a second")
    sentence = ", ".join(said) + "."
    return sentence[0].upper() + sentence[1:]


def legend(results: Results) -> tuple[str, ...]:
    """Return what a reader of the table must know: the data set, stars, missing percentiles, the baseline."""
    said = []
    said += [f"{one}." for one in dict.fromkeys(about(row.score) for row in results.rows if row.score)] or [UNKNOWN]
    if any(row.score and row.score_source == "manifest" for row in results.rows):
        said.append("* from the bundle's manifest, not counted in this run.")
    if any(row.latency and row.latency.p99_us is None for row in results.rows):
        said.append("p99 is given from 1,000 calls on.")
    baselines = dict.fromkeys(row.verdict.baseline for row in results.rows if row.verdict)
    if baselines:
        said.append(
            f"Baseline: {' or '.join(baselines)}, same sizes; 95 % intervals of the paired rounds, "
            "Holm's correction over the table."
        )
    return tuple(said)


def to_markdown(results: Sequence[Results], *, names: Sequence[str] = ()) -> str:
    """Return a GitHub table for each run, with the machine, how it was measured, and what must be known below it.

    Of several runs each has a heading, from `names`: verdicts hold within a run only.
    """
    headings = list(names) or [f"results {number}" for number, _ in enumerate(results, start=1)]
    tables = []
    for one, name in zip(results, headings, strict=True):
        lines = [f"### {_escape(name)}", ""] if len(results) > 1 else []
        tables.append("\n".join([*lines, *_markdown(one)]) + "\n")
    return plain("\n".join(tables), lines=True)


def to_csv(results: Sequence[Results], *, names: Sequence[str] = ()) -> str:
    """Return one flat line for each row of each run, `names` in the column `file`; a cell without a figure is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *_RUN, *_ROW])
    for index, one in enumerate(results):
        run = [names[index] if names else "", *(cell(one) for cell in _RUN.values())]
        writer.writerows([*run, *(_plain(cell(row)) for cell in _ROW.values())] for row in one.rows)
    return plain(text.getvalue(), lines=True)


def _markdown(results: Results) -> list[str]:
    shown, numbered = columns(results), {(note.reason, note.fix): note.number for note in notes(results)}
    lines = [
        f"| {' | '.join(_escape(column.header) for column in shown)} |",
        f"|{'|'.join('---:' if column.numeric else '---' for column in shown)}|",
    ]
    for row in results.rows:
        cells = [_escape(column.cell(row)) for column in shown]
        if number := numbered.get((row.reason, row.fix)):
            cells[2] += f", note {number}"
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Ran on {_escape(results.machine.describe())}.", ""]
    lines += [_escape(" ".join([measured(results), *legend(results)]))]
    if numbered:
        lines += ["", "Notes:", ""]
        lines += [
            f"{note.number}. {_escape(note.reason)}" + (f" → {_escape(note.fix)}" if note.fix else "")
            for note in notes(results)
        ]
    if remarks := results.remarks():
        lines += ["", "Read with care:", "", *(f"- {_escape(remark)}" for remark in remarks)]
    return lines


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line; code between backticks stays code."""
    return re.sub(r"([\\|*])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def span(values: Sequence[int], noun: str, nouns: str = "") -> str:
    """Return `1 thread`, or `20 to 100 rounds`."""
    low, high = min(values), max(values)
    return ("" if low == high else f"{low:,} to ") + counted(high, noun, nouns)


def _plain(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _energy(row: Row) -> str:
    return microseconds(None if row.energy_uj is None else row.energy_uj / (row.query_samples or row.samples))


def _cold(row: Row) -> str:
    if row.cold is None:
        return NONE
    return f"{row.cold.total_ms:,.0f}{interval(row.cold.low_ms, row.cold.high_ms)}"


def _most(row: Row) -> str:
    if not row.profile:
        return NONE
    most = max(row.profile, key=lambda node: node.share)
    return f"{most.operator} {100 * most.share:.0f} %"


UNKNOWN = "Whether its answers are right is not known: these results hold no score."

_LATENCY = (
    Column(header="p50 µs", cell=lambda row: microseconds(row.latency.p50_us if row.latency else None)),
    Column(header="p90 µs", cell=lambda row: microseconds(row.latency.p90_us if row.latency else None)),
    Column(header="p99 µs", cell=lambda row: microseconds(row.latency.p99_us if row.latency else None)),
    Column(header="samples/s", cell=lambda row: f"{row.latency.samples_per_second:,.0f}" if row.latency else NONE),
)
_COLD = (
    Column(header="first answer, ms", cell=_cold),
    Column(
        header="peak memory",
        cell=lambda row: size(row.cold.peak_memory_bytes) if row.cold and row.cold.peak_memory_bytes else NONE,
    ),
)
_PROFILE = (
    Column(header="final kernels", cell=lambda row: row.kernels or NONE, numeric=False),
    Column(header="takes most", cell=_most, numeric=False),
    Column(header="trace", cell=lambda row: row.trace_file or NONE, numeric=False),
)

_RUN: dict[str, Callable[[Results], str]] = {
    "machine": lambda run: run.machine.cpu,
    "fingerprint": lambda run: run.machine.fingerprint,
    "created": lambda run: run.created,
}
_ROW: dict[str, Callable[[Row], object]] = {
    "bundle": lambda row: row.bundle,
    "variant": lambda row: row.variant,
    "sha256": lambda row: row.sha256,
    "precision": lambda row: row.precision,
    "runtime": lambda row: row.runtime,
    "provider_asked": lambda row: row.provider,
    "ran_on": lambda row: row.ran_on,
    "placement": lambda row: row.placement,
    "kernels": lambda row: row.kernels,
    "mode": lambda row: row.mode,
    "scenario": lambda row: row.scenario,
    "offered_rate": lambda row: row.offered_rate,
    "query_samples": lambda row: row.query_samples or row.samples,
    "sizes": lambda row: "; ".join(f"{axis}={size}" for axis, size in row.sizes.items()),
    "call_samples": lambda row: row.samples,
    "threads": lambda row: row.threads,
    "status": lambda row: row.status,
    "reason": lambda row: row.reason,
    "fix": lambda row: row.fix,
    "calls": lambda row: row.latency and row.latency.calls,
    "rounds": lambda row: row.latency and row.latency.rounds,
    "p50_us": lambda row: row.latency and row.latency.p50_us,
    "p50_low_us": lambda row: row.latency and row.latency.low_us,
    "p50_high_us": lambda row: row.latency and row.latency.high_us,
    "p90_us": lambda row: row.latency and row.latency.p90_us,
    "p95_us": lambda row: row.latency and row.latency.p95_us,
    "p99_us": lambda row: row.latency and row.latency.p99_us,
    "max_us": lambda row: row.latency and row.latency.max_us,
    "mean_us": lambda row: row.latency and row.latency.mean_us,
    "noise": lambda row: row.latency and row.latency.noise,
    "settled": lambda row: row.latency and str(row.latency.settled).lower(),
    "samples_per_second": lambda row: row.latency and row.latency.samples_per_second,
    "size_bytes": lambda row: row.size_bytes,
    "memory_bytes": lambda row: row.memory_bytes,
    "energy_uj": lambda row: row.energy_uj,
    "metric": lambda row: row.score and row.score.metric,
    "score": lambda row: row.score and row.score.value,
    "score_unit": lambda row: row.score and row.score.unit,
    "better": lambda row: row.score and row.score.better,
    "dataset": lambda row: row.score and row.score.dataset,
    "split": lambda row: row.score and row.score.split,
    "score_samples": lambda row: row.score and row.score.samples,
    "score_loss": lambda row: row.score.loss if row.score and row.score.baseline is not None else None,
    "became_wrong": lambda row: row.score and row.score.worse,
    "became_right": lambda row: row.score and row.score.improved,
    "score_source": lambda row: row.score_source,
    "verdict": lambda row: row.verdict and row.verdict.outcome,
    "baseline": lambda row: row.verdict and row.verdict.baseline,
    "speedup": lambda row: row.verdict and row.verdict.comparison and row.verdict.comparison.speedup,
    "speedup_low": lambda row: row.verdict and row.verdict.comparison and row.verdict.comparison.low,
    "speedup_high": lambda row: row.verdict and row.verdict.comparison and row.verdict.comparison.high,
    "p_value": lambda row: row.verdict and row.verdict.comparison and row.verdict.comparison.p_value,
    "cold_processes": lambda row: row.cold and row.cold.processes,
    "cold_total_ms": lambda row: row.cold and row.cold.total_ms,
    "cold_low_ms": lambda row: row.cold and row.cold.low_ms,
    "cold_high_ms": lambda row: row.cold and row.cold.high_ms,
    "cold_stages_ms": lambda row: (
        row.cold and "; ".join(f"{stage}={_plain(spent)}" for stage, spent in row.cold.stages_ms.items())
    ),
    "cold_peak_memory_bytes": lambda row: row.cold and row.cold.peak_memory_bytes,
    "trace_file": lambda row: row.trace_file,
}
