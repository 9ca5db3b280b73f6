"""Tables, progress and number formats for the terminal. Figures go to stdout, progress and remarks to stderr."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kit.accuracy import drop_interval
from kit.bundle import Bundle, Packed
from kit.bundle.records import Quantization, Variant
from kit.choices import Precision
from kit.report.format import NONE, percent, size
from kit.system.serial import encode
from kit.verify import Verification


class Update(Protocol):
    """Tells a progress bar what is being done, and the share that is done."""

    def __call__(self, what: str, done: float | None = None, /) -> None:
        """Show it."""

    def say(self, text: str, /) -> None:
        """Print a line above the bar."""


_PIPE_WIDTH = 160  # a file or pipe has no width of its own: do not fold its lines


def stdout() -> Console:
    """Return the console for figures."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def stderr() -> Console:
    """Return the console for progress and remarks."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value, dataclasses included, as JSON."""
    click.echo(json.dumps(encode(value), indent=2, ensure_ascii=False))


def remark(text: str) -> None:
    """Print a line to stderr."""
    stderr().print(escape(text), soft_wrap=True)


def next_steps(*commands: tuple[str, str]) -> None:
    """Print the next commands to type, each with what it does."""
    width = max(len(command) for command, _ in commands)
    lines = "\n".join(f"  [bold]{escape(command.ljust(width))}[/]  {escape(what)}" for command, what in commands)
    stderr().print(f"\nNext:\n{lines}", soft_wrap=True)


@contextlib.contextmanager
def progress(total: float | None = None) -> Iterator[Update]:
    """Show a progress bar on stderr; yields a function that takes (what, done). Without a total, a spinner."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    if total is None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())  # type: ignore[assignment]
    with Progress(*columns, console=stderr(), transient=True) as bar:
        yield _Bar(bar, bar.add_task("", total=total))


class _Bar:
    """The progress bar of `progress`."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def __call__(self, what: str, done: float | None = None, /) -> None:
        """Show it."""
        self._bar.update(self._task, description=escape(what), completed=done)

    def say(self, text: str, /) -> None:
        """Print a line above the bar."""
        self._bar.console.print(escape(text), soft_wrap=True)


def verify_table(result: Verification) -> None:
    """Print hashes, parity and verdicts."""
    console = stdout()
    for check in result.files:
        console.print(
            f"{_mark(check.ok)} {escape(check.file)}" + (f": {escape(check.problem)}" if check.problem else "")
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headers = (
        "variant",
        "nodes on",
        "max abs err",
        "max rel err",
        "agreement",
        "tolerance",
        "needed",
        "golden right (reference)",
        "verdict",
    )
    for header in headers:
        table.add_column(header, justify="left" if header in {"variant", "nodes on", "verdict"} else "right")
    several = len({row.runtime for row in result.variants}) > 1
    for row in result.variants:
        name = f"{row.variant} in {row.runtime}" if several else row.variant
        if row.parity is None or row.verdict is None:
            table.add_row(name, f"{row.provider}: not run", *[NONE] * 6, "[yellow]NOT RUN[/]")
            continue
        table.add_row(
            name,
            row.placement,
            f"{row.parity.max_abs_error:.3g}",
            f"{row.parity.max_rel_error:.3g}",
            f"{100 * row.parity.top1_agreement:.2f} %",
            f"{row.verdict.tolerance:.3g}",
            f"{row.verdict.needed:.3g}",
            f"{row.golden_correct}/{row.golden_labelled} ({row.reference_correct})" if row.golden_labelled else NONE,
            "[green]PASS[/]" if row.ok else "[red]FAIL[/]",
        )
    if result.variants:
        console.print(table)
        images = next((row.parity.images for row in result.variants if row.parity), 0)
        console.print(
            escape(f"{images} golden samples ({result.golden_source}), against {result.reference}."), soft_wrap=True
        )
        console.print(
            "Tolerance and needed: relative error for fp32 and fp16; for integers rms error, up to 1.5 times that at export.",
            soft_wrap=True,
        )
    for row in result.variants:
        if row.problem:
            console.print(f"[yellow]{row.variant} in {row.runtime}: {escape(row.problem)}[/]", soft_wrap=True)


def bundle_table(bundles: Mapping[str, Bundle | Packed | Exception]) -> None:
    """Print the bundles there are, one row each; an unreadable one says why."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("bundle", "model", "trained on", "variants", "top-1 test", "where"):
        table.add_column(header, overflow="fold")
    for name, found in bundles.items():
        if isinstance(found, Exception):
            table.add_row(name, f"[red]broken[/]: {escape(str(found))}", "", "", "", "")
            continue
        training, variants = found.manifest.training, found.manifest.variants
        ids = ", ".join(variant.id for variant in variants) or "none yet"
        best = variants[0].accuracy if variants else None
        data = training.dataset if training else NONE
        table.add_row(name, found.manifest.spec.architecture, data, ids, percent(best), str(found.origin))
    stdout().print(table)


def bundle_info(bundle: Bundle) -> None:
    """Print everything a stranger needs to use a bundle."""
    spec, training, console = bundle.spec, bundle.manifest.training, stdout()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    threshold = f", unsure under {spec.abstain_below:.0%}" if spec.abstain_below else ""
    rows = [
        ("bundle", f"{bundle.name}  ({bundle.origin})"),
        ("task", f"{spec.task}: {', '.join(spec.labels)}"),
        ("model", spec.architecture),
        ("takes", f"{spec.input.name}: {spec.input.describe()}, raw pixels"),
        (
            "gives",
            f"{spec.output.name}: {spec.output.describe()}, softmax at temperature {spec.temperature:g}{threshold}",
        ),
        ("a picture", f"goes through {spec.pipeline}" if spec.pipeline else "is not taken: pixels only"),
        ("normalises", f"(x/255 - {spec.normalization.mean:g}) / {spec.normalization.std:g}, inside the graph"),
        ("golden", f"{bundle.manifest.golden.file}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in bundle.manifest.tools.items())),
    ]
    if training is not None:
        held_out = f"{percent(training.validation)} on validation" if training.validation else "on all its images"
        kept = f"epoch {training.best_epoch} of {training.epochs_run}, {held_out}"
        rows.insert(3, ("trained", f"on {training.dataset}, seed {training.seed}: {kept}"))
    if (origin := bundle.manifest.origin) is not None:
        gains = ", ".join(f"{one.speedup:.2f}x at batch {one.batch_size}" for one in origin.speedups)
        left = "-".join(map(str, origin.units_left))
        rows.insert(3, ("compressed", f"from {origin.bundle} ({origin.architecture}) to {left} units: {gains} in fp32"))
    for label, text in rows:
        table.add_row(label, escape(text))
    console.print(table)
    _variant_table(console, bundle)


def _variant_table(console: Console, bundle: Bundle) -> None:
    if not bundle.variants:
        console.print(f"\nno variants yet: kit export {bundle.name}")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("variant", "file", "size", "opset", "needs", "layers", "top-1 test", "drop"):
        table.add_column(header, justify="left" if header in {"variant", "file", "needs"} else "right")
    for variant in bundle.variants:
        default = " (default)" if variant.id == bundle.manifest.default_variant else ""
        quantization = variant.quantization
        operators = "portable ONNX" if not variant.domains else " ".join(variant.domains)
        table.add_row(
            variant.id + default,
            variant.artifact.file,
            size(variant.artifact.size_bytes),
            str(variant.opset),
            f"onnxruntime {variant.min_onnxruntime}+, {operators}",
            layers(quantization),
            percent(variant.accuracy),
            drop(variant),
        )
    console.print(table)


def layers(quantization: Quantization | None) -> str:
    """Return how many layers are quantized, and how: `4/4 7 bit per channel`."""
    if quantization is None:
        return NONE
    one = quantization
    scale = f"blocks of {one.block_size}" if one.block_size else "per channel" if one.per_channel else "per tensor"
    return f"{one.layers_quantized}/{one.layers_total} {one.weight_bits} bit {scale}"


def drop(variant: Variant) -> str:
    """Return what a variant lost against fp32 with its exact 95 % interval, in points: `-0.02 [-0.08, 0.04]`."""
    if variant.accuracy is None or variant.precision is Precision.FP32:
        return NONE
    low, high = drop_interval(variant.accuracy)
    return f"{variant.accuracy.drop_points:+.2f} [{low:.2f}, {high:.2f}]"


def _mark(ok: bool) -> str:
    return "[green]ok[/]  " if ok else "[red]BAD[/] "
