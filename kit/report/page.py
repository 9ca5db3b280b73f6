"""Results as one page of HTML that needs nothing else: no file beside it and no network.

The page is written for whoever decides: what was found in words, the figures, pictures of them, and under which conditions
they came about. Each results file keeps its own tables, charts and verdicts; where several share a row, one more table sets
their medians side by side and says that nobody compared them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kit.bench import sweep
from kit.bench.results import Results, Row, Status
from kit.errors import UsageError
from kit.metrics import Better
from kit.report import charts, tables
from kit.report.charts import Style
from kit.report.format import NONE, microseconds
from kit.report.format import score as score_of
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
    """Return the page of one results file or several, of one machine or several; `names` are what to call them.

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
    from markupsafe import Markup, escape

    pieces = re.split(r"`([^`]+)`", text)
    marked = [Markup("<code>{}</code>").format(piece) if at % 2 else escape(piece) for at, piece in enumerate(pieces)]
    return Markup("").join(marked)


def _measured(run: Run) -> tuple[Row, ...]:
    return tuple(row for row in run.results.rows if row.latency)


def _points(rows: Iterable[Row]) -> list[str]:
    ordered = sorted(rows, key=lambda row: tuple(row.sizes.values()))
    return list(dict.fromkeys(row.point for row in ordered))


def _spread(points: Sequence[str]) -> list[str]:
    if len(points) <= _MOST_PLOTS:
        return list(points)
    return [points[round(step * (len(points) - 1) / (_MOST_PLOTS - 1))] for step in range(_MOST_PLOTS)]


def _left_out(points: Sequence[str]) -> str:
    if len(points) <= _MOST_PLOTS:
        return ""
    return f" Drawn are {_MOST_PLOTS} of {len(points)} sizes; the table has all."


def _keys(style: Style, *, places: bool = True) -> list[Key]:
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
        point: charts.latency_domain(row for row in everything if row.point == point) for point in _points(everything)
    }
    parts = []
    for run in runs:
        rows = [row for row in _measured(run) if row.latency and len(row.latency.percentiles_us) == 101]
        if not rows:
            continue
        style, plots = Style.of(rows), []
        for point in _spread(_points(rows)):
            here = [row for row in rows if row.point == point]
            words = "; ".join(
                f"{called(row)}: median {microseconds(row.latency.p50_us)} µs, "
                f"5th to 95th percentile {microseconds(row.latency.percentiles_us[5])} to "
                f"{microseconds(row.latency.p95_us)} µs"
                for row in here
                if row.latency
            )
            plots.append(
                Plot(
                    point,
                    charts.compiled(charts.latency(here, style, domains[point])),
                    f"Latency at {point}. {words}.",
                )
            )
        caption = (
            "Latency of one query. Line: 5th to 95th percentile of all calls; box: the middle half; tick: "
            f"median; dot: 99th percentile, from 1,000 calls on. Each size has a scale of its own"
            f"{', the same in every file' if len(runs) > 1 else ''}.{_left_out(_points(rows))}"
        )
        parts.append(Part(run.name, plots, caption))
    return Section("latency", "Latency", parts)


def _score(runs: Sequence[Run]) -> Section:
    parts = []
    for run in runs:
        metric = tables.metric_of(_measured(run))
        rows = [row for row in _measured(run) if row.score and row.score.metric == metric]
        if not rows:
            continue
        style, plots, findings = Style.of(rows), [], []
        for point in _spread(_points(rows)):
            here = [row for row in rows if row.point == point]
            front = pareto(here)
            named = ", ".join(f"{called(row)} ({score_of(row.score)})" for row in front)
            findings.append(f"On the front at {point}: {named}.")
            words = "; ".join(
                f"{called(row)}: {score_of(row.score)} at {microseconds(row.latency.p50_us)} µs"
                for row in here
                if row.latency
            )
            plots.append(
                Plot(
                    point,
                    charts.compiled(charts.score(here, front, style)),
                    f"{metric} and latency. {words}.",
                )
            )
        caption = (
            "Up and to the left is better. Filled: on the Pareto front, nothing measured here is both quicker and at least "
            f"as good in {metric}. Bars: 95 % interval of the median.{_left_out(_points(rows))}"
        )
        parts.append(Part(run.name, plots, caption, _keys(style), findings))
    return Section("score", "Scores against latency", parts)


def pareto(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows that no other beats in latency without losing of its score, the quickest first."""
    order = [(row.latency.p50_us, -_merit(row), row) for row in rows if row.latency and row.score]
    found: list[Row] = []
    best = -math.inf
    for _, lost, row in sorted(order, key=lambda one: one[:2]):
        if -lost > best:
            best = -lost
            found.append(row)
    return tuple(found)


def _merit(row: Row) -> float:
    if row.score is None:
        return -math.inf
    return row.score.value if row.score.better is Better.HIGHER else -row.score.value


def _sweep(runs: Sequence[Run]) -> Section:
    parts = []
    for run in runs:
        rows = _measured(run)
        axis = sweep.swept_axis(rows)
        if axis is None or len(points := _points(rows)) < _LEAST_SIZES:
            continue
        style, knees = Style.of(rows), sweep.knees(run.results)
        findings = [_bend(knee) for knee in knees] + [f"{one.describe()}." for one in sweep.crossovers(run.results)]
        span = f"{points[0]} to {points[-1]}"
        plots = [
            Plot(
                label,
                charts.compiled(charts.sweep(rows, knees, style, field=field, title=title)),
                f"{label}, {span}. See the table.",
            )
            for label, field, title in (
                ("Throughput", "samples_per_second", "samples per second"),
                ("Latency", "p50_us", "p50, µs"),
            )
        ]
        caption = (
            "Both axes are logarithmic."
            + " A ring marks the knee: the smallest batch with nine tenths of the best throughput; more costs latency and "
            "brings little." * bool(knees)
        )
        parts.append(Part(run.name, plots, caption, _keys(style), findings))
    return Section("sweep", "Sizes", parts)


def _bend(knee: sweep.Knee) -> str:
    at = f"{knee.axis} {knee.size:,}"
    rate = f"{knee.samples_per_second:,.0f} samples/s"
    if knee.size == knee.best_size:
        return f"{knee.case}: its best, {rate}, at {at}."
    best = f"{knee.best_samples_per_second:,.0f} at {knee.axis} {knee.best_size:,}"
    return f"{knee.case}: {rate} at {at}, {100 * knee.share:.0f} % of its best ({best})."


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
                f"{called(row)}, {row.point}",
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


_SECTIONS: tuple[Callable[[Sequence[Run]], Section], ...] = (_latency, _score, _sweep, _cold, _profile)


def _side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    if len(runs) < 2:
        return []
    found: dict[tuple[object, ...], dict[str, str]] = {}
    for run in runs:
        for row in _measured(run):
            model = (row.bundle, row.variant, row.sha256, row.runtime, row.provider, row.ran_on)
            key = (*model, tuple(row.sizes.items()), row.threads, row.mode, row.scenario, row.offered_rate)
            cells = found.setdefault(key, {"": f"{row.bundle}: {called(row)}, {row.point}"})
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
