"""What the workshop made, chose and found out, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from apps.cli import figures
from apps.cli.lines import say
from apps.cli.render import remark, stdout
from apps.cli.tables import Rows, literal, styled
from apps.cli.verify_tables import sizes_in_words
from kit.metrics import Score
from kit.report.format import NONE, about, microseconds, score, size
from kit.runtime.choice import Choice
from kit.system.wording import times

if TYPE_CHECKING:  # importing them would import torch or the bench, which the other tables do not need
    from exporters import ExportReport
    from exporters.compress import CompressReport
    from exporters.search.blame import Blame
    from exporters.search.ladder import Rung
    from kit.tuning import Judgement


def export_table(report: ExportReport) -> None:
    """Print what was published and the figures it passed with: fidelity of each output, the metric, what was lost."""
    variants = [one.variant for one in report.passed]
    tests = [figures.main_score(variant) for variant in variants]
    held = [figures.main_score(variant, _validation(variant.scores)) for variant in variants]
    decided = "golden" if {one.split for one in held if one is not None} == {"golden"} else "val"
    several = any(len(one.fidelity) > 1 for one in report.passed)
    rows = Rows(
        headers=(
            *("variant", "size", "quantized", "output", "max rel err", "cosine", "agrees"),
            *(figures.header(held, decided), f"{figures.header(tests, 'test')} ", "loss [95 %]", "changed"),
        ),
        left=("variant", "quantized", "output", "changed"),
        wraps=("quantized", "changed"),
        spare=("cosine", "size", figures.header(held, decided)),
        needed=("agrees", "max rel err"),
    )
    for one, validation, test in zip(report.passed, held, tests, strict=True):
        for number, found in enumerate(one.fidelity):
            first = number == 0
            rows.add(
                one.variant.id if first else "",
                size(one.variant.size_bytes) if first else "",
                figures.layers(one.variant.quantization) if first else "",
                found.output if several else "",
                figures.relative(found),
                figures.cosine(found),
                figures.share(found.agreement),
                *(_scores(validation, test) if first else ("",) * 4),
            )
    console = stdout()
    rows.show(console)
    for line in _footnotes(report, (*held, *tests)):
        say(console, line)


def _validation(scores: tuple[Score, ...]) -> str:
    """Return the split that decided: `validation`, or `train` if nothing was held out, or `golden` without data."""
    splits = [one.split for one in scores if one.split != "test"]
    return next((one for one in splits if one != "golden"), next(iter(splits), "validation"))


def _scores(validation: Score | None, test: Score | None) -> tuple[str, str, str, str]:
    shown = test or validation
    return (
        "" if validation is None else score(validation),
        "" if test is None else score(test),
        "" if shown is None or shown.baseline is None else figures.loss(shown),
        figures.changed(shown),
    )


def _footnotes(report: ExportReport, scores: tuple[Score | None, ...]) -> list[str]:
    original = report.bundle.manifest.original
    whose = "the original" if original is None else f"the {original.kind} {original.name}"
    if original is not None and original.kind == "onnx":
        whose = f"ONNX Runtime's own answers to {original.name}"
    found = report.passed[0].fidelity
    lines = [f"Error, cosine and agreement: against {whose}, {found[0].samples:,} samples."] if found else []
    lines += dict.fromkeys(about(one) for one in scores if one is not None)
    if not any(scores):
        lines.append("No labelled data was given, so nobody knows how right it is: kit export BUNDLE --data FILE.")
    for one in report.passed:
        quantization = one.variant.quantization
        if quantization and quantization.layers_excluded:
            lines.append(f"{one.variant.id} leaves in float: {', '.join(quantization.layers_excluded)}")
    return lines


def rungs_table(rungs: Sequence[Rung]) -> None:
    """Print what was tried because static int8 lost too much; nothing if it did not."""
    if len(rungs) < 2:
        return
    rows = Rows(
        headers=(f"{rungs[0].variant}, tried", "lost", "noise, dB", "time", ""), left=(f"{rungs[0].variant}, tried", "")
    )
    for one in rungs:
        said = one.problem or ("right" if one.is_right else "loses too much")
        noise = NONE if one.problem else f"{one.sqnr_db:.1f}"
        rows.add(one.name, _lost(one.score), noise, f"{one.seconds:.0f} s", said)
    rows.show(stdout())
    scored = next((one.score for one in rungs if one.score is not None), None)
    say(
        stdout(),
        "noise: signal to quantization noise of the answers, 6 dB more are half the error."
        + (f" lost: {about(scored)}." if scored else ""),
    )


def judgement_table(judgement: Judgement, *, names_winner: bool = True) -> None:
    """Print all candidates, what each was found to be, and who won, if there was something to win."""
    points = list(dict.fromkeys(tuple(row.sizes.items()) for one in judgement.candidates for row in one.rows))
    rows = Rows(
        headers=("candidate", *(f"p50 µs,\n{sizes_in_words(dict(point))}" for point in points), "verdict"),
        left=("candidate", "verdict"),
        wraps=("candidate", "verdict"),
    )
    for one in judgement.candidates:
        found = {tuple(row.sizes.items()): row.latency.p50_us for row in one.rows if row.latency}
        chosen = names_winner and one.name == judgement.winner.name
        name = styled(one.name, "bold green") if chosen else one.name
        reason = Text.assemble(literal(one.reason), styled("  <- chosen" if chosen else "", "bold green"))
        rows.add(name, *(microseconds(found.get(point)) for point in points), reason)
    rows.show(stdout())
    if names_winner:
        say(stdout(), "Of those within 5 % of the fastest, the one closest to the original is chosen.")
    if judgement.remark and names_winner:
        remark(judgement.remark)


def choice(found: Choice | None, name: str) -> None:
    """Print what was chosen for a bundle here."""
    if found is None:
        remark(f"Nothing is chosen for {name} here: its default variant runs on one thread. Choose: kit tune {name}")
        return
    told = (
        "" if found.speedup == 1 else f", {times(found.speedup, found.low, found.high)} of the baseline on one thread"
    )
    say(
        stdout(),
        Text.assemble(
            f"{name} here, for {found.goal} at {sizes_in_words(found.sizes)}: ",
            styled(found.describe(), "bold"),
            f", p50 {microseconds(found.p50_us)} µs{told}; measured {found.measured}",
        ),
    )


def blame_table(found: Blame) -> None:
    """Print what quantizing each layer does."""
    rows = Rows(
        headers=(
            *("layer", "its output,\ndB", "answers,\nonly it, dB", "lost"),
            *("answers,\nall but it, dB", "lost\nwithout it"),
        ),
        left=("layer",),
    )
    for row in found.rows:
        rows.add(
            row.layer,
            f"{row.own_sqnr_db:.1f}",
            f"{row.alone_sqnr_db:.1f}",
            _lost(row.alone),
            f"{row.without_sqnr_db:.1f}",
            _lost(row.without),
        )
    rows.rule()
    rows.add("all of them", NONE, f"{found.sqnr_db:.1f}", _lost(found.together), NONE, NONE)
    console = stdout()
    rows.show(console)
    scored = f" Lost: {about(found.together)}." if found.together else ""
    say(
        console,
        f"{found.variant} against the baseline, {found.samples}. dB: signal to quantization noise, 6 more are half the "
        f"error.{scored}",
    )


def _lost(score: Score | None) -> str:
    if score is None:
        return ""
    changes = figures.changed(score)
    return figures.loss(score).partition(" [")[0] + (f" ({changes})" if changes else "")


def compress_table(done: CompressReport) -> None:
    """Print both bundles' variants in one table, and what was left out."""
    judgement_table(done.judgement, names_winner=False)
    origin, (before, after), original = done.origin, done.weights, done.bundle.manifest.original
    found = origin.score
    lost = ""
    if found is not None:
        lost = (
            f" fp32 has {found.metric} {score(found)} on {found.samples:,} samples of {found.dataset} "
            f"{found.split}; "
            f"against the original's: {figures.changed(found)}."
        )
    say(
        stdout(),
        f"{done.bundle.name}: {original.name if original else ''}, {after:,} weights of {before:,}; "
        f"{origin.pixels_left_out} border pixels left out.{lost}",
    )


def as_json(report: ExportReport) -> dict[str, Any]:
    """Return what was published, for `--json`."""
    return {
        "bundle": report.bundle.name,
        "folder": str(report.bundle.folder),
        "published": [{"variant": one.variant, "fidelity": one.fidelity} for one in report.passed],
    }
