"""What the workshop made, chose and found out, as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from apps.cli.render import drop, layers, remark, stdout
from kit.report.format import NONE, microseconds, percent, size
from kit.runtime.choice import Choice

if TYPE_CHECKING:  # importing them would import torch or the bench, which the other tables do not need
    from exporters import ExportReport
    from exporters.compress import CompressReport
    from exporters.search.blame import Blame
    from kit.bundle.records import Accuracy
    from kit.tuning import Judgement


def _table(*headers: str, left: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, justify="left" if header in left else "right", overflow="fold")
    return table


def export_table(report: ExportReport) -> None:
    """Print what was published and the figures it passed with."""
    table = _table(
        *("variant", "size", "quantized", "agrees with PyTorch", "max err", "top-1 val", "top-1 test"),
        *("drop, points [95 %]", "flips"),
        left=("variant", "quantized"),
    )
    for one in report.passed:
        variant, found = one.variant, one.variant.accuracy
        is_baseline = variant.id == "fp32" or found is None
        table.add_row(
            variant.id,
            size(variant.artifact.size_bytes),
            layers(variant.quantization),
            f"{100 * one.parity.top1_agreement:.2f} %",
            f"{one.parity.max_abs_error:.2g}",
            percent(variant.validation),
            percent(found),
            drop(variant),
            NONE if is_baseline or found is None else f"{found.flips_to_wrong} wrong, {found.flips_to_right} right",
        )
    console = stdout()
    console.print(table)
    first = report.passed[0]
    held = first.variant.validation
    seen = f" Val: {held.images:,} images of {held.dataset} {held.split}." if held else ""
    console.print(
        f"Agreement with PyTorch: {first.parity.images:,} images of {first.parity_images}.{seen}", soft_wrap=True
    )
    for one in report.passed:
        quantization = one.variant.quantization
        if quantization and quantization.layers_excluded:
            console.print(
                f"{one.variant.id} leaves in float: {', '.join(quantization.layers_excluded)}", soft_wrap=True
            )


def judgement_table(judgement: Judgement, *, names_winner: bool = True) -> None:
    """Print all candidates, what each was found to be, and who won, where there was something to win."""
    sizes = sorted({row.batch_size for one in judgement.candidates for row in one.rows})
    table = _table("candidate", *(f"p50 µs, batch {size}" for size in sizes), "verdict", left=("candidate", "verdict"))
    for one in judgement.candidates:
        found = {row.batch_size: row.latency.p50_us for row in one.rows if row.latency}
        chosen = names_winner and one.name == judgement.winner.name
        name = f"[bold green]{escape(one.name)}[/]" if chosen else escape(one.name)
        reason = escape(one.reason) + ("  [bold green]<- chosen[/]" if chosen else "")
        table.add_row(name, *(microseconds(found.get(size)) for size in sizes), reason)
    stdout().print(table)
    if names_winner:
        stdout().print("Of those within 2 % of the fastest, the plainest is chosen.", soft_wrap=True)
    if judgement.remark and names_winner:
        remark(judgement.remark)


def choice(found: Choice | None, name: str) -> None:
    """Print what was chosen for a bundle here."""
    if found is None:
        remark(f"Nothing is chosen for {name} here: its default variant runs on one thread. Choose: kit tune {name}")
        return
    told = (
        ""
        if found.speedup == 1
        else f", {found.speedup:.2f}x [{found.low:.2f}, {found.high:.2f}] of fp32 on one thread"
    )
    stdout().print(
        f"{name} here, for {found.goal} at batch {found.batch_size}: [bold]{escape(found.describe())}[/], "
        f"p50 {microseconds(found.p50_us)} µs{told}; measured {found.measured}",
        soft_wrap=True,
    )


def compress_table(done: CompressReport) -> None:
    """Print both bundles' variants in one table, and what was left out."""
    judgement_table(done.judgement, names_winner=False)
    origin, (before, after) = done.bundle.manifest.origin, done.weights
    assert origin is not None  # it was compressed a moment ago
    found = origin.accuracy
    lost = (
        ""
        if found is None
        else (
            f" fp32 reads {percent(found)} of {found.images:,} {found.dataset} {found.split} images, the original's changed by "
            f"{found.flips_to_wrong} wrong and {found.flips_to_right} right."
        )
    )
    stdout().print(
        f"{done.bundle.name}: {done.bundle.spec.architecture}, {after:,} weights of {before:,}; "
        f"{origin.pixels_left_out} border pixels left out.{lost}",
        soft_wrap=True,
    )


def blame_table(found: Blame) -> None:
    """Print what quantizing each layer does."""
    headers = (
        "layer",
        "its output, dB",
        "logits, only it, dB",
        "top-1 lost",
        "logits, all but it, dB",
        "top-1 lost without it",
    )
    table = _table(*headers, left=("layer",))
    for row in found.rows:
        table.add_row(
            row.layer,
            f"{row.own_sqnr_db:.1f}",
            f"{row.alone_sqnr_db:.1f}",
            _lost(row.alone),
            f"{row.without_sqnr_db:.1f}",
            _lost(row.without),
        )
    table.add_section()
    table.add_row("all of them", NONE, f"{found.sqnr_db:.1f}", _lost(found.together), NONE, NONE)
    console = stdout()
    console.print(table)
    console.print(
        f"{found.variant} against fp32, {found.images}. dB: signal to quantization noise, 6 more are half the error.",
        soft_wrap=True,
    )


def _lost(found: Accuracy | None) -> str:
    if found is None:
        return NONE
    return f"{found.drop_points:+.2f} ({found.flips_to_wrong} wrong, {found.flips_to_right} right)"
