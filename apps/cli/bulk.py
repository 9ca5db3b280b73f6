"""`kit predict -o answers.parquet`: many items into a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.choices import Provider
from kit.errors import BadInput
from kit.report.words import plain
from kit.system.progress import duration
from kit.system.wording import counted

if TYPE_CHECKING:
    from kit.bulk import Outcome
    from kit.bulk.answering import Opening
    from kit.runtime.base import RunnerOptions


def options_of(
    provider: Provider | None, device_id: int, threads: int | None, *, allow_fallback: bool
) -> RunnerOptions | None:
    """Return what a person asked of the runtime; None for nothing, which leaves the choice to `kit tune`."""
    from kit.runtime.base import RunnerOptions

    if provider is None and threads is None:
        return None
    return RunnerOptions(
        provider=provider or Provider.CPU, device_id=device_id, allow_fallback=allow_fallback, threads=threads or 1
    )


def run(
    bundle: str | None,
    sources: Sequence[str],
    output: Path,
    *,
    variant: str | None,
    options: RunnerOptions | None,
    workers: int | None,
    ray: str | None,
    strict: bool,
    probabilities: bool | None,
) -> int:
    """Answer all, with progress on stderr, and return the exit code."""
    from apps.cli.render import progress
    from kit import bulk

    shown = Shown("actors" if ray else "processes")
    with progress() as update:
        outcome = bulk.predict(
            bundle,
            sources,
            output,
            variant=variant,
            options=options,
            workers=workers,
            ray=ray,
            strict=strict,
            probabilities=probabilities,
            on_rows=lambda done, whole: update(shown.line(done, whole)),
            on_start=shown.start,
            on_note=lambda note: click.echo(plain(f"Note: {note}"), err=True),
        )
    click.echo(plain(_summary(outcome)))
    if outcome.refused:
        named = f" ({outcome.first_problem})" if outcome.first_problem else ""
        what = counted(outcome.refused, "item has", "items have")
        click.echo(plain(f"{what} no answer: the column `error` says why{named}", lines=True), err=True)
        return BadInput.exit_code
    return 0


class Shown:
    """The line of progress; `workers` is what those are called that answer, such as `processes`."""

    def __init__(self, workers: str = "processes") -> None:
        self._workers = workers
        self._started, self._before = time.monotonic(), 0

    def start(self, opening: Opening, workers: int, resumed: int) -> None:
        """Say what answers, and where it goes on."""
        self._started, self._before = time.monotonic(), resumed
        crew = "this process" if (workers, self._workers) == (1, "processes") else f"{workers} {self._workers}"
        said = f"{opening.variant} in {opening.runtime} on {opening.options.provider.value}, {crew}"
        if resumed:
            said += f"; goes on after {resumed:,} items that are answered"
        click.echo(plain(said), err=True)

    def line(self, done: int, whole: int | None) -> str:
        """Return `12,288 of about 60,000 items, 580 a second, about 1 min 22 s left`."""
        spent = time.monotonic() - self._started
        rate = (done - self._before) / max(spent, 1e-9)
        said = f"{done:,} items, {rate:,.0f} a second"
        if whole is None or rate <= 0:
            return said
        whole = max(whole, done)
        return f"{done:,} of about {whole:,} items, {rate:,.0f} a second, about {duration((whole - done) / rate)} left"


def _summary(outcome: Outcome) -> str:
    fresh = outcome.rows - outcome.resumed
    said = f"Wrote {outcome.output}: {counted(outcome.rows, 'item')}"
    if outcome.resumed:
        said += f", {fresh:,} of them now"
    return f"{said}, in {duration(outcome.seconds)} ({outcome.rate:,.0f} a second)"
