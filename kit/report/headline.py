"""What a run found, in words: what is fastest, how sure that is, and whether its answers are still right.

A winner is named only if the verdict says FASTER; otherwise the sentence is about the baseline, which nothing beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.bench.results import Results, Row, Status, Verdict
from kit.bench.stats import Outcome
from kit.report.format import interval, microseconds, score, size
from kit.report.tables import UNKNOWN
from kit.system.wording import counted, times

_MOST_OTHERS = 4


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One large figure: what it is, its value, and whose."""

    label: str
    value: str
    whose: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What a run found: one sentence, what belongs to it, large figures, and what must be known to believe it."""

    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    cautions: tuple[str, ...] = ()


def headline(results: Results) -> Headline:
    """Return what a run found, by its smallest sizes; by its cold starts or profile if it has no latencies."""
    ran = [row for row in results.rows if row.status is Status.OK]
    missing = _missing(results)
    if warm := [row for row in ran if row.latency]:
        return _warm(results, warm, missing)
    if cold := [row for row in ran if row.cold]:
        return _cold(cold, missing)
    if profiled := [row for row in ran if row.profile]:
        return _profile(profiled, missing)
    return Headline(title="Nothing could be measured as it was asked for", cautions=missing)


def called(row: Row) -> str:
    """Return how a sentence names a row: `int8-qdq in onnxruntime on cpu`."""
    how = row.place.removeprefix(f"{row.runtime} {row.ran_on or row.provider}")
    return f"{row.variant} in {row.runtime} on {row.ran_on or row.provider}{how}"


def _warm(results: Results, rows: Sequence[Row], missing: tuple[str, ...]) -> Headline:
    smallest = min(rows, key=_extent).sizes
    here = [row for row in rows if row.sizes == smallest]
    winner = _winner(here)
    busiest = max(rows, key=lambda row: row.latency.samples_per_second if row.latency else 0.0)
    sentences = [_others(here, winner), _elsewhere(rows, winner), _right(winner)]
    if busiest.sizes != smallest and busiest.offered_rate is None:
        found = f": {busiest.verdict.describe()}" if busiest.verdict else ""
        sentences.append(f"The most samples per second were answered by {called(busiest)} at {busiest.point}{found}.")
    controls = [control for control in results.controls if control.sizes == smallest]
    unsure = [remark for control in controls for remark in control.remarks()]
    doubt = any(control.outcome in {Outcome.FASTER, Outcome.SLOWER} for control in controls)
    return Headline(
        title=_title(winner, here) + ("; but the baseline differed from itself in this run" if doubt else ""),
        sentences=tuple(sentence for sentence in sentences if sentence),
        figures=_figures(winner, busiest),
        cautions=(*unsure, *missing),
    )


def _extent(row: Row) -> tuple[int, ...]:
    """Return what points are ordered by: their sizes, the batch first."""
    return tuple(row.sizes.values())


def _winner(rows: Sequence[Row]) -> Row:
    """Return the row that is surely faster than the baseline, by the most; else the baseline; else the quickest."""
    faster = [row for row in rows if _outcome(row) is Outcome.FASTER]
    if faster:
        return max(faster, key=lambda row: comparison.speedup if (comparison := _verdict(row).comparison) else 0.0)
    baseline = next((row for row in rows if _outcome(row) is Outcome.BASELINE), None)
    return baseline or min(rows, key=lambda row: row.latency.p50_us if row.latency else 0.0)


def _title(winner: Row, rows: Sequence[Row]) -> str:
    latency = microseconds(winner.latency.p50_us if winner.latency else None)
    answers = f"answers {_query(winner)} in {latency} µs"
    verdict = _verdict(winner)
    if verdict.outcome is Outcome.FASTER and verdict.comparison:
        than = _baseline(verdict.baseline, winner)
        return f"{called(winner)} {answers}, {verdict.comparison.speedup:.2f} times as fast as {than}{_still(winner)}"
    if len(rows) == 1:
        return f"{called(winner)} {answers}{_still(winner)}; nothing was measured beside it"
    if verdict.outcome is Outcome.BASELINE:
        return f"Nothing was surely faster than {called(winner)}, which {answers}{_still(winner)}"
    return f"{called(winner)} {answers}{_still(winner)}; there is no baseline to hold it against"


def _still(row: Row) -> str:
    return "" if row.score is None else f", with {row.score.metric} {score(row.score)}"


def _right(row: Row) -> str:
    found = row.score
    if found is None:
        return UNKNOWN
    source = "counted in this run" if row.score_source == "live" else "from the bundle's manifest, not counted here"
    told = f"{found.metric} {score(found)} on {found.samples:,} samples of {found.dataset} {found.split}, {source}"
    if found.baseline is None:
        return f"{told}."
    change = f"{found.change()} than" if found.loss else "the same as"
    flips = ""
    if found.worse is not None and found.improved is not None:
        flips = f", {found.worse:,} became wrong and {found.improved:,} right"
    return f"{told}: {change} the baseline{flips}."


def _others(rows: Sequence[Row], winner: Row) -> str:
    others = [row for row in rows if row is not winner and _outcome(row) is not Outcome.BASELINE and row.verdict]
    listed = [f"{called(row)} {_verdict(row).describe()}" for row in others[:_MOST_OTHERS]]
    if len(others) > _MOST_OTHERS:
        listed.append(f"{len(others) - _MOST_OTHERS} more in the table")
    against = next((row.verdict.baseline for row in rows if row.verdict), "")
    said = f"At {winner.point}, against {against}: " if listed or _outcome(winner) is Outcome.FASTER else ""
    if _outcome(winner) is Outcome.FASTER:
        listed.insert(0, f"{called(winner)} {_verdict(winner).describe()}")
    longer = " A longer run may tell what INCONCLUSIVE leaves open." if "INCONCLUSIVE" in " ".join(listed) else ""
    return f"{said}{'; '.join(listed)}.{longer}" if said else ""


def _elsewhere(rows: Sequence[Row], winner: Row) -> str:
    same = (winner.variant, winner.place)
    others = [row for row in rows if (row.variant, row.place) == same and row is not winner]
    if _outcome(winner) is not Outcome.FASTER or not others:
        return ""
    faster = [row for row in others if _outcome(row) is Outcome.FASTER]
    not_so = [f"{_verdict(row).describe()} at {row.point}" for row in others if row not in faster and row.verdict]
    if not_so:
        return f"It is not faster at every size: {'; '.join(not_so)}."
    found = [one.speedup for row in faster if (one := _verdict(row).comparison)]
    if not found:
        return ""
    span = f"{times(min(found))} to {times(max(found))}" if len(found) > 1 else times(found[0])
    at = "; ".join(row.point for row in faster) if len(faster) <= _MOST_OTHERS else f"the other {len(faster)} sizes"
    return f"It is faster at {at} as well: {span}."


def _figures(winner: Row, busiest: Row) -> tuple[Figure, ...]:
    found = []
    if winner.latency and busiest.latency:
        label = f"median latency, {winner.point}"
        found.append(Figure(label=label, value=f"{microseconds(winner.latency.p50_us)} µs", whose=called(winner)))
        rate, whose = busiest.latency.samples_per_second, f"{called(busiest)}, {busiest.point}"
        if winner.offered_rate is None:  # else the arrivals decide it
            found.append(Figure(label="most samples per second", value=f"{rate:,.0f}", whose=whose))
        elif winner.latency.p99_us is not None:
            found.append(Figure(label="p99", value=f"{microseconds(winner.latency.p99_us)} µs", whose=called(winner)))
    if winner.score:
        one = winner.score
        whose = f"{winner.variant}, {one.samples:,} samples of {one.dataset} {one.split}"
        found.append(Figure(label=one.metric, value=score(one), whose=whose))
    found.append(Figure(label="size of the model", value=size(winner.size_bytes), whose=winner.variant))
    return tuple(found)


def _cold(rows: Sequence[Row], missing: tuple[str, ...]) -> Headline:
    starts = sorted(((row.cold, row) for row in rows if row.cold), key=lambda pair: pair[0].total_ms)
    (first, winner), last = starts[0], starts[-1]
    stage, spent = max(first.stages_ms.items(), key=lambda item: item[1], default=("", 0.0))
    sentences = [
        f"{called(row)}: {cold.total_ms:,.0f} ms{interval(cold.low_ms, cold.high_ms)}, "
        f"{counted(cold.processes, 'process', 'processes')}."
        for cold, row in starts[:_MOST_OTHERS]
    ]
    if last[1] is not winner:
        second = starts[1][0]
        if first.high_ms is None or second.low_ms is None:
            sentences.append("So few processes have no interval: which of the first two starts sooner is not sure.")
        elif first.high_ms >= second.low_ms:
            sentences.append("The intervals of the first two overlap: which of them starts sooner is not sure.")
    if stage:
        sentences.append(f"Most of it is “{stage}”: {spent:,.0f} ms.")
    figures = [Figure(label="first answer", value=f"{first.total_ms:,.0f} ms", whose=called(winner))]
    if first.peak_memory_bytes:
        figures.append(Figure(label="peak memory", value=size(first.peak_memory_bytes), whose=called(winner)))
    title = f"{called(winner)} gives its first answer {first.total_ms:,.0f} ms after its process starts"
    return Headline(title=title, sentences=tuple(sentences), figures=tuple(figures), cautions=missing)


def _profile(rows: Sequence[Row], missing: tuple[str, ...]) -> Headline:
    most = [(max(row.profile, key=lambda node: node.share), row) for row in rows]
    node, row = most[0]
    sentences = tuple(
        f"{called(one)}, {one.point}: {found.operator} {100 * found.share:.0f} % of the call, {found.mean_us:,.3g} µs."
        for found, one in most[: 2 * _MOST_OTHERS]
    )
    title = f"{node.operator} takes {100 * node.share:.0f} % of a call of {called(row)} at {row.point}"
    return Headline(title=title, sentences=sentences, cautions=missing)


def _missing(results: Results) -> tuple[str, ...]:
    lost = [row for row in results.rows if row.status is not Status.OK]
    reasons = dict.fromkeys(row.reason or str(row.status) for row in lost)
    return tuple(
        f"{sum((row.reason or str(row.status)) == reason for row in lost)} of {len(results.rows)} rows did not run as "
        f"asked: {reason}"
        for reason in reasons
    )


def _query(row: Row) -> str:
    samples = row.query_samples or row.samples
    asked = f", {row.offered_rate:,.0f} queries a second arriving," if row.offered_rate else ""
    return ("one sample" if samples == 1 else f"{samples:,} samples") + asked


def _baseline(name: str, winner: Row) -> str:
    return name.removesuffix(f" {winner.place}")


def _outcome(row: Row) -> Outcome | None:
    return row.verdict.outcome if row.verdict else None


def _verdict(row: Row) -> Verdict:
    return row.verdict or Verdict(outcome=Outcome.INCONCLUSIVE, baseline="")
