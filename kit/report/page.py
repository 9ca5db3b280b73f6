"""Results as one page of HTML that needs nothing else: no file beside it and no network.

The page is written for whoever decides: what was found in words, the figures, pictures of them, and under which conditions
they came about. Each results file keeps its own tables, charts and verdicts; where several share a row, one more table sets
their medians side by side and says that nobody compared them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kit.bench import sweep
from kit.bench.results import Results, Row, Status
from kit.errors import UsageError
from kit.report import charts, tables
from kit.report.charts import Style
from kit.report.format import NONE, microseconds, percent
from kit.report.headline import Headline, called, headline

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("page.html.j2")
_MOST_PLOTS = 4
_LEAST_SIZES = 3


@dataclass(frozen=True)
class Plot:
    """One chart: a Vega specification in JSON, a title, and the words for those who cannot see it."""

    title: str
    spec: str
    words: str


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a colour, or a shape and a dash."""

    label: str
    colour: str = ""
    shape: str = ""
    dash: str = ""


@dataclass(frozen=True)
class Part:
    """The charts that one results file has for a section."""

    name: str
    plots: Sequence[Plot]
    caption: str
    keys: Sequence[Key] = ()
    findings: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """Charts of one kind."""

    id: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Run:
    """One results file as the page shows it."""

    name: str
    results: Results
    headline: Headline
    remarks: Sequence[str]

    @property
    def unsaid(self) -> int:
        """How many remarks the headline leaves to the environment's section."""
        return len(set(self.remarks) - set(self.headline.cautions))


def render(results: Sequence[Results], *, names: Sequence[str]) -> str:
    """Return the page.

    Args:
        results: What to show, one file or several, of one machine or several.
        names: What to call them, one name for each.

    Raises:
        PackageMissing: What draws the charts or fills the template is not installed.
        UsageError: There is nothing to show, or a name is missing or given twice.
    """
    if not results or len(results) != len(names) or len(set(names)) < len(names):
        raise UsageError(f"a report needs results, each with a name of its own; found {len(results)} and {len(names)}")
    charts.require()
    import jinja2
    from markupsafe import Markup

    runs = [
        Run(name, one, headline(one), tuple(dict.fromkeys(one.remarks())))
        for name, one in zip(names, results, strict=True)
    ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _code
    sections = [section for make in _SECTIONS for section in [make(runs)] if section.parts]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        several=len(runs) > 1,
        machines=len({one.machine.fingerprint for one in results}),
        sections=sections,
        script=Markup(charts.script()),  # noqa: S704 - made by vl-convert, not from a results file
        raw=Markup,
        tables=tables,
        Status=Status,
        side_by_side=_side_by_side(runs),
        placements=_placements,
        none=NONE,
    )


def _code(text: str) -> Markup:
    """Return text with what stands between backticks as code, all of it escaped."""
    from markupsafe import Markup, escape

    pieces = re.split(r"`([^`]+)`", text)
    marked = [Markup("<code>{}</code>").format(piece) if at % 2 else escape(piece) for at, piece in enumerate(pieces)]
    return Markup("").join(marked)


def _measured(run: Run) -> tuple[Row, ...]:
    return tuple(row for row in run.results.rows if row.latency)


def _sizes(rows: Iterable[Row]) -> list[int]:
    return sorted({row.batch_size for row in rows})


def _spread(sizes: Sequence[int]) -> list[int]:
    """Return at most `_MOST_PLOTS` of the sizes, the first and the last among them."""
    if len(sizes) <= _MOST_PLOTS:
        return list(sizes)
    return [sizes[round(step * (len(sizes) - 1) / (_MOST_PLOTS - 1))] for step in range(_MOST_PLOTS)]


def _left_out(sizes: Sequence[int]) -> str:
    if len(sizes) <= _MOST_PLOTS:
        return ""
    return f" Drawn are {_MOST_PLOTS} of {len(sizes)} batch sizes; the table has all."


def _title(size: int) -> str:
    return f"batch {size:,}"


def _keys(style: Style, *, places: bool = True) -> list[Key]:
    """Return the legend of a run: its variants' colours, and its places' shapes where there are several."""
    found = [Key(variant, colour=style.colour(variant)) for variant in style.variants]
    if places and len(style.places) > 1:
        dashes = ((where, style.dash(where)) for where in style.places)
        found += [
            Key(where, shape=style.shape(where), dash="" if dash == (1, 0) else " ".join(map(str, dash)))
            for where, dash in dashes
        ]
    return found


def _latency(runs: Sequence[Run]) -> Section:
    everything = [row for run in runs for row in _measured(run)]
    domains = {
        size: charts.latency_domain(row for row in everything if row.batch_size == size) for size in _sizes(everything)
    }
    parts = []
    for run in runs:
        rows = [row for row in _measured(run) if row.latency and len(row.latency.percentiles_us) == 101]
        if not rows:
            continue
        style, plots = Style.of(rows), []
        for size in _spread(_sizes(rows)):
            here = [row for row in rows if row.batch_size == size]
            words = "; ".join(
                f"{called(row)}: median {microseconds(row.latency.p50_us)} µs, "
                f"5th to 95th percentile {microseconds(row.latency.percentiles_us[5])} to "
                f"{microseconds(row.latency.p95_us)} µs"
                for row in here
                if row.latency
            )
            plots.append(
                Plot(
                    _title(size),
                    charts.compiled(charts.latency(here, style, domains[size])),
                    f"Latency at batch {size}. {words}.",
                )
            )
        caption = (
            "Latency of one query, whole batch. Line: 5th to 95th percentile of all calls; box: the middle half; tick: "
            f"median; dot: 99th percentile, from 1,000 calls on. Each batch size has a scale of its own"
            f"{', the same in every file' if len(runs) > 1 else ''}.{_left_out(_sizes(rows))}"
        )
        parts.append(Part(run.name, plots, caption))
    return Section("latency", "Latency", parts)


def _accuracy(runs: Sequence[Run]) -> Section:
    parts = []
    for run in runs:
        rows = [row for row in _measured(run) if row.accuracy]
        if not rows:
            continue
        style, plots, findings = Style.of(rows), [], []
        for size in _spread(_sizes(rows)):
            here = [row for row in rows if row.batch_size == size]
            front = pareto(here)
            named = ", ".join(f"{called(row)} ({percent(row.accuracy)})" for row in front)
            findings.append(f"On the front at {_title(size)}: {named}.")
            words = "; ".join(
                f"{called(row)}: {percent(row.accuracy)} at {microseconds(row.latency.p50_us)} µs"
                for row in here
                if row.latency
            )
            plots.append(
                Plot(
                    _title(size),
                    charts.compiled(charts.accuracy(here, front, style)),
                    f"Accuracy and latency. {words}.",
                )
            )
        caption = (
            "Up and to the left is better. Filled: on the Pareto front, nothing measured here is both quicker and at least "
            f"as accurate. Bars: 95 % interval of the median.{_left_out(_sizes(rows))}"
        )
        parts.append(Part(run.name, plots, caption, _keys(style), findings))
    return Section("accuracy", "Accuracy against latency", parts)


def pareto(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows that no other beats in latency without losing accuracy, the quickest first."""
    found: list[Row] = []
    best = -1.0
    order = [(row.latency.p50_us, -row.accuracy.top1, row) for row in rows if row.latency and row.accuracy]
    for _, lost, row in sorted(order, key=lambda one: one[:2]):
        if -lost > best:
            best = -lost
            found.append(row)
    return tuple(found)


def _sweep(runs: Sequence[Run]) -> Section:
    parts = []
    for run in runs:
        rows = _measured(run)
        sizes = _sizes(rows)
        if len(sizes) < _LEAST_SIZES:
            continue
        style, knees = Style.of(rows), sweep.knees(run.results)
        findings = [_bend(knee) for knee in knees] + [f"{one.describe()}." for one in sweep.crossovers(run.results)]
        span = f"batch {sizes[0]:,} to {sizes[-1]:,}"
        plots = [
            Plot(
                label,
                charts.compiled(charts.sweep(rows, knees, style, field=field, title=title)),
                f"{label}, {span}. See the table.",
            )
            for label, field, title in (
                ("Throughput", "images_per_second", "images per second"),
                ("Latency", "p50_us", "p50, µs"),
            )
        ]
        caption = (
            "Both axes are logarithmic. A ring marks the knee: the smallest batch with nine tenths of the best throughput; "
            "more costs latency and brings little."
        )
        parts.append(Part(run.name, plots, caption, _keys(style), findings))
    return Section("sweep", "Batch sizes", parts)


def _bend(knee: sweep.Knee) -> str:
    rate, best = (
        f"{knee.images_per_second:,.0f} images/s",
        f"{knee.best_images_per_second:,.0f} at {_title(knee.best_batch)}",
    )
    if knee.batch_size == knee.best_batch:
        return f"{knee.contestant}: its best, {rate}, at {_title(knee.batch_size)}."
    return f"{knee.contestant}: {rate} at {_title(knee.batch_size)}, {100 * knee.share:.0f} % of its best ({best})."


def _cold(runs: Sequence[Run]) -> Section:
    parts = []
    for run in runs:
        rows = [row for row in run.results.rows if row.cold]
        if not rows:
            continue
        style = Style.of(rows)
        stages = tuple(dict.fromkeys(stage for row in rows if row.cold for stage in row.cold.stages_ms))
        words = "; ".join(
            f"{called(row)}: "
            + ", ".join(f"{stage} {spent:,.0f} ms" for stage, spent in row.cold.stages_ms.items())
            + f", in all {row.cold.total_ms:,.0f} ms"
            for row in rows
            if row.cold
        )
        plot = Plot("", charts.compiled(charts.cold(rows, style, stages)), f"Cold start. {words}.")
        caption = (
            "From the start of a fresh process to its first answer, files in the system's cache. Segments are the median of "
            "each stage; the line at their end is the 95 % interval of the whole."
        )
        colours = dict(zip(stages, charts.COLOURS * len(stages), strict=False))
        parts.append(Part(run.name, [plot], caption, [Key(stage, colour=colours[stage]) for stage in stages]))
    return Section("cold", "Cold start", parts)


def _profile(runs: Sequence[Run]) -> Section:
    parts = []
    for run in runs:
        rows = [row for row in run.results.rows if row.profile]
        if not rows:
            continue
        providers = tuple(dict.fromkeys(node.provider for row in rows for node in row.profile))
        plots = [
            Plot(
                f"{called(row)}, {_title(row.batch_size)}",
                charts.compiled(charts.profile(row, providers)),
                "; ".join(f"{node.operator} {node.node}: {100 * node.share:.0f} %" for node in row.profile[:10]),
            )
            for row in rows
        ]
        caption = (
            "Final nodes as the runtime's profiler saw them, those that take most first; shares are of the whole call, and "
            "what is missing to 100 % is spent between nodes."
        )
        keys = [Key(provider, colour=charts.COLOURS[index]) for index, provider in enumerate(providers)]
        parts.append(Part(run.name, plots, caption, keys))
    return Section("profile", "Where the time goes", parts)


_SECTIONS: tuple[Callable[[Sequence[Run]], Section], ...] = (_latency, _accuracy, _sweep, _cold, _profile)


def _side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the medians of rows that two files or more have, one cell for each file."""
    if len(runs) < 2:
        return []
    found: dict[tuple[object, ...], dict[str, str]] = {}
    for run in runs:
        for row in _measured(run):
            model = (row.bundle, row.variant, row.sha256, row.runtime, row.provider, row.ran_on)
            key = (*model, row.batch_size, row.threads, row.mode, row.scenario, row.offered_rate)
            cells = found.setdefault(key, {"": f"{row.bundle}: {called(row)}, {_title(row.batch_size)}"})
            cells[run.name] = microseconds(row.latency.p50_us if row.latency else None)
    shared = [cells for cells in found.values() if len(cells) > 2]
    return [(cells[""], [cells.get(run.name, NONE) for run in runs]) for cells in shared]


def _placements(results: Results) -> list[tuple[str, ...]]:
    """Return where each contestant ran, each once: variant, runtime, asked for, status, nodes by provider, final kernels."""
    found = [
        (
            row.variant,
            row.runtime,
            str(row.provider),
            str(row.status),
            row.placement or row.ran_on or NONE,
            row.kernels or NONE,
        )
        for row in results.rows
    ]
    return list(dict.fromkeys(found))
